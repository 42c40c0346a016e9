"""Dry runs of the recipes at the size of their bases, with random weights, on the GPU of this machine.

    python benchmarks/gpu.py --out NEW_FOLDER [--only medgemma-4b ...]

For each recipe this writes a checkpoint of the published shape, and runs `medcap train --dry_run`: four steps with the
recipe's batch, an evaluation and a checkpoint. It prints the plan with the measured memory and time. The captions of
random weights are as long as max_new_tokens allows, so evaluations take the longest time they can. Needs up to 10 GB
of disk per base.
"""

from __future__ import annotations

import argparse
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.shapes import write_base, write_data

CHAT = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
IMAGES = 64
TIMEOUT_S = 240


def tokenizer(**named: str) -> hf.PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a few hundred tokens; `named` are special tokens by their attribute."""
    special = ["<pad>", "<bos>", "<eos>", "<|turn|>", "<|end|>", *named.values()]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*string.ascii_letters, *(f" w{number}" for number in range(300))], trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", extra_special_tokens=named
    )


def ids(text: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids of the usual special tokens."""
    return {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def blip2_opt(folder: Path) -> None:
    """Write the shape of Salesforce/blip2-opt-2.7b."""
    text = tokenizer(image_token="<image>")
    config = hf.Blip2Config(
        vision_config={"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
                       "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
        qformer_config={"encoder_hidden_size": 1408, "vocab_size": 30523},
        text_config={"model_type": "opt", "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "word_embed_proj_dim": 2560, "vocab_size": 50304, **ids(text)},
        num_query_tokens=32, image_token_index=text.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.BlipImageProcessor(size={"height": 224, "width": 224})
    write(folder, hf.Blip2ForConditionalGeneration, config, hf.Blip2Processor(images, text, num_query_tokens=32))


def medgemma_4b(folder: Path) -> None:
    """Write the shape of google/medgemma-4b-it."""
    text = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<image_soft>")
    config = hf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
                       "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
                       "vision_use_head": False},
        text_config={"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                     "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
                     "sliding_window": 1024, **ids(text)},
        mm_tokens_per_image=256, boi_token_index=text.boi_token_id, eoi_token_index=text.eoi_token_id,
        image_token_index=text.image_token_id,
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 896, "width": 896})
    template = CHAT.replace("IMAGE", "<boi>")
    processor = hf.Gemma3Processor(images, text, image_seq_length=256, chat_template=template)
    write(folder, hf.Gemma3ForConditionalGeneration, config, processor)


def smolvlm_256m(folder: Path) -> None:
    """Write the shape of HuggingFaceTB/SmolVLM-256M-Instruct."""
    rows = {f"part_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 6) for c in range(1, 6)}
    marks = {"fake_image_token": "<fake>", "image_token": "<image>", "global_image_token": "<global-img>"}
    text = tokenizer(**marks, **rows, end_of_utterance_token="<|end|>")
    config = hf.SmolVLMConfig(
        vision_config={"model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072,
                       "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
        text_config={"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49280,
                     "max_position_embeddings": 8192, **ids(text)},
        image_token_id=text.image_token_id, scale_factor=4, pad_token_id=text.pad_token_id,
    )  # fmt: skip
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    videos = hf.SmolVLMVideoProcessor()
    template = CHAT.replace("IMAGE", "<image>")
    processor = hf.SmolVLMProcessor(images, text, videos, image_seq_len=64, chat_template=template)
    write(folder, hf.SmolVLMForConditionalGeneration, config, processor)


def qwen_3b(folder: Path) -> None:
    """Write the shape of Qwen/Qwen2.5-VL-3B-Instruct."""
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    text = tokenizer(**marks, vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>")
    config = hf.Qwen2_5_VLConfig(
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                       "out_hidden_size": 2048, "patch_size": 14, "window_size": 112,
                       "fullatt_block_indexes": [7, 15, 23, 31]},
        text_config={"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                     "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
                     "max_position_embeddings": 128000, "tie_word_embeddings": True, **ids(text),
                     "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}},
        image_token_id=text.image_token_id, video_token_id=text.video_token_id,
        vision_start_token_id=text.vision_start_token_id, vision_end_token_id=text.vision_end_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    images = hf.Qwen2VLImageProcessor()
    processor = hf.Qwen2_5_VLProcessor(images, text, hf.Qwen2VLVideoProcessor(), chat_template=template)
    write(folder, hf.Qwen2_5_VLForConditionalGeneration, config, processor)


def write(folder: Path, model_class: Any, config: Any, processor: Any) -> None:
    """Write a checkpoint with random weights in bfloat16, made on the GPU."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = model_class(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def blip(shape: str) -> Callable[[Path], object]:
    """Return what writes the shape of BLIP "base" or "large"."""
    return lambda folder: write_base(folder, shape)


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "blip-base": ("blip-base-rocov2/lora.yaml", blip("base")),
    "blip-base-vision": ("blip-base-rocov2/lora-vision.yaml", blip("base")),
    "blip-base-full": ("blip-base-rocov2/full.yaml", blip("base")),
    "blip-large": ("blip-large-rocov2/qlora.yaml", blip("large")),
    "smolvlm-256m": ("smolvlm-256m-rocov2/lora.yaml", smolvlm_256m),
    "blip2-opt-2.7b": ("blip2-opt-2.7b-rocov2/qlora.yaml", blip2_opt),
    "qwen-vl-3b": ("qwen-vl-rocov2/qlora.yaml", qwen_3b),
    "medgemma-4b": ("medgemma-4b-rocov2/qlora.yaml", medgemma_4b),
}


def main() -> None:
    """Run the cases and print their plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{device}, torch {torch.__version__}, transformers {hf.__version__}", flush=True)
    data = write_data(args.out / "data", IMAGES)
    for name in args.only:
        recipe, write_checkpoint = CASES[name]
        base, started = args.out / name, time.monotonic()
        write_checkpoint(base)
        written = time.monotonic() - started
        status = dry_run(ROOT / "recipes" / recipe, base, data, args.out)
        print(f"{name}: status {status}; {written:.0f} s to write, {time.monotonic() - started:.0f} s in all\n")
        shutil.rmtree(base)


def dry_run(recipe: Path, base: Path, data: Path, out: Path) -> int | str:
    """Run a recipe dry, print its plan, or the end of its messages, and return its exit status."""
    argv = ["--config", recipe, "--model_name_or_path", base, "--data_dir", data, "--output_dir", out / "run"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, argv), "--dry_run"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"none after {TIMEOUT_S} s"
    messages = [line for line in done.stderr.replace("\r", "\n").splitlines() if "it/s]" not in line]
    lines = done.stdout.splitlines() if done.returncode == 0 else messages[-15:]
    print("\n".join(lines), flush=True)
    print("\n".join(line for line in messages if line.startswith(("memory:", "measured"))), flush=True)
    return done.returncode


if __name__ == "__main__":
    main()
