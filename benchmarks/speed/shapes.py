"""What is measured on: BLIP of published shapes with random weights, and pictures and captions of ROCOv2's sizes.

Speed does not depend on the values of weights, nor on what a picture shows.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from medcap.phantom.images import draw, random_phantom

# vision width, layers, heads; the text decoder is BERT-base's in both (Li et al., 2022, and the config.json of
# Salesforce/blip-image-captioning-base and -large on the Hub)
TOWERS = {"base": (768, 12, 12), "large": (1024, 24, 16)}
WORDS = 30_522  # the Hub's tokenizer; the model has two more, [DEC] and [ENC]
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
# tokens of ROCOv2's 9,903 validation captions, [CLS] and [SEP] counted: measured quantiles, cut at 128 by the recipe
LENGTHS = ((0, 5), (0.5, 31), (0.95, 86), (0.99, 128), (1, 128))
SIDES = (480, 640)  # pixels of a picture's sides


def blip_config(shape: str, image_size: int = 384) -> BlipConfig:
    """The configuration of BLIP "base" or "large" for pictures of `image_size` pixels a side."""
    width, layers, heads = TOWERS[shape]
    text = {
        "vocab_size": WORDS + 2, "bos_token_id": WORDS, "pad_token_id": 0, "sep_token_id": 102, "eos_token_id": 2,
        "encoder_hidden_size": width, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "num_attention_heads": 12,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "image_size": image_size, "patch_size": 16, "initializer_range": 0.02,
    }  # fmt: skip
    return BlipConfig(text_config=text, vision_config=vision)


def write_base(folder: Path, shape: str = "base") -> Path:
    """Write a checkpoint as the Hub has it, with random weights; what is there already stays."""
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"w{i}" for i in range(WORDS)]
    for word, position in SPECIAL.items():
        words[position] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)
    BlipProcessor(BlipImageProcessorPil(size={"height": 384, "width": 384}), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    BlipForConditionalGeneration(blip_config(shape)).save_pretrained(folder)
    return folder


def write_data(folder: Path, images: int, seed: int = 0) -> Path:
    """Write `images` training pictures and as many for the test, JPEG as in ROCOv2, in its layout."""
    if (folder / "sizes.json").is_file() and json.loads((folder / "sizes.json").read_text()) == images:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(seed)
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        ids = [f"{split}_{row:06d}" for row in range(images)]
        for image_id in ids:
            plane = draw(random_phantom(random), random, *random.integers(*SIDES, 2))
            Image.fromarray((255 * plane).astype(np.uint8)).save(folder / split / f"{image_id}.jpg", quality=90)
        with (folder / f"{split}_captions.csv").open("w", encoding="utf-8", newline="") as file:
            rows = zip(ids, [caption(random) for _ in ids], strict=True)
            csv.writer(file).writerows([("ID", "Caption"), *rows])
    (folder / "sizes.json").write_text(json.dumps(images))
    return folder


def caption(random: np.random.Generator, tokens: int | None = None) -> str:
    """Words of one token each, as many as a caption of ROCOv2 has, or `tokens` with [CLS] and [SEP]."""
    shares, lengths = zip(*LENGTHS, strict=True)
    count = (tokens or round(float(np.interp(random.uniform(), shares, lengths)))) - 2
    return " ".join(f"w{word}" for word in random.integers(200, WORDS, max(count, 1)))
