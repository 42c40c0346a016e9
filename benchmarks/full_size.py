"""Does a recipe of BLIP-base's real size run? Two steps and eight captions, with random weights, at two image sizes.

    python benchmarks/full_size.py --files FOLDER --out NEW_FOLDER

FOLDER holds the base's own config.json, preprocessor_config.json and vocab.txt (the Hub's: 30,522 tokens, no [DEC]).
NEW_FOLDER gets a checkpoint of about 1 GB, phantoms, and a run for each size. Captions of random weights are noise:
what is shown is that shapes, positions, first token and memory fit, and what a step costs here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from medcap.phantom.dataset import write_phantom

ROOT = Path(__file__).parents[1]


def write_checkpoint(files: Path, out: Path) -> None:
    """Write a BLIP of the given config with random weights, and the processor as the Hub has it."""
    config = BlipConfig.from_pretrained(files)
    assert config.vision_config.initializer_range > 1e-3, "random weights of 1e-10 would see nothing"
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(out)
    tokenizer = BertTokenizer(str(files / "vocab.txt"), model_max_length=512)
    BlipProcessor(BlipImageProcessorPil.from_pretrained(files), tokenizer).save_pretrained(out)
    print(f"{out}: {len(tokenizer)} tokens, [DEC] is {config.text_config.bos_token_id}")


def main() -> None:
    """Write checkpoint and phantoms, train and evaluate at each size, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default=str(ROOT / "recipes/blip-base-rocov2/seed-6-epochs.yaml"))
    args = parser.parse_args()
    write_checkpoint(args.files, args.out / "base")
    write_phantom(args.out / "data", train=60, valid=8, test=1)
    for size in (224, 384):
        run, started = args.out / f"run-{size}", time.monotonic()
        shutil.rmtree(run, ignore_errors=True)
        words = ["--config", args.recipe, "--data_dir", args.out / "data", "--model_name_or_path", args.out / "base"]
        words += ["--output_dir", run, "--image_size", size, "--train_fraction", 1, "--max_steps", 2]
        words += ["--max_eval_samples", 8, "--logging_steps", 1]
        subprocess.run([sys.executable, str(ROOT / "scripts/train.py"), *map(str, words)], check=True)
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        seen = {key: round(line[key], 4) for key in ("step", "loss", "eval_loss", "eval_bleu_1", "eval_cider")}
        print(f"{size} px: {seen}, {time.monotonic() - started:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
