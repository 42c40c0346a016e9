"""Run a recipe at BLIP-base's size with random weights: two steps and eight captions at two image sizes.

    python benchmarks/full_size.py --files FOLDER --out NEW_FOLDER

FOLDER contains config.json, preprocessor_config.json and vocab.txt of the base on the Hub (30,522 tokens, without
[DEC]). NEW_FOLDER receives a checkpoint of about 1 GB, synthetic data, and one run per image size. This tests shapes,
position embeddings, first token and memory, and measures the time; captions of random weights are meaningless.
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
    """Write a BLIP checkpoint with random weights and the Hub's processor."""
    config = BlipConfig.from_pretrained(files)
    assert config.vision_config.initializer_range > 1e-3, "with weights of 1e-10 the vision encoder returns a constant"
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(out)
    tokenizer = BertTokenizer(str(files / "vocab.txt"), model_max_length=512)
    BlipProcessor(BlipImageProcessorPil.from_pretrained(files), tokenizer).save_pretrained(out)
    print(f"{out}: {len(tokenizer)} tokens, [DEC] is {config.text_config.bos_token_id}")


def main() -> None:
    """Write checkpoint and data, train and evaluate at each size, and print the results."""
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
        argv = ["--config", args.recipe, "--data_dir", args.out / "data", "--model_name_or_path", args.out / "base"]
        argv += ["--output_dir", run, "--image_size", size, "--train_fraction", 1, "--max_steps", 2]
        argv += ["--max_eval_samples", 8, "--logging_steps", 1, "--precision", "auto"]
        subprocess.run([sys.executable, str(ROOT / "scripts/train.py"), *map(str, argv)], check=True)
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        metrics = {key: round(line[key], 4) for key in ("step", "loss", "eval_loss", "eval_bleu_1", "eval_cider")}
        print(f"{size} px: {metrics}, {time.monotonic() - started:.0f} s in total", flush=True)


if __name__ == "__main__":
    main()
