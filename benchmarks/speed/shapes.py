"""Create BLIP checkpoints of published sizes with random weights, and images and captions of ROCOv2's sizes.

Speed depends neither on the values of the weights nor on the content of the images.
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
VISION_SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
VOCAB_SIZE = 30_522  # of the Hub's tokenizer; the model has two more tokens, [DEC] and [ENC]
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
# quantiles of the tokens of ROCOv2's 9,903 validation captions, including [CLS] and [SEP], truncated at 128
LENGTH_QUANTILES = ((0, 5), (0.5, 31), (0.95, 86), (0.99, 128), (1, 128))
IMAGE_SIDES = (480, 640)  # range of width and height in pixels


def blip_config(shape: str, image_size: int = 384) -> BlipConfig:
    """Return the configuration of BLIP "base" or "large" for images of `image_size` x `image_size` pixels."""
    width, layers, heads = VISION_SIZES[shape]
    text = {
        "vocab_size": VOCAB_SIZE + 2, "bos_token_id": VOCAB_SIZE,
        "pad_token_id": 0, "sep_token_id": 102, "eos_token_id": 2,
        "encoder_hidden_size": width, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "num_attention_heads": 12,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "image_size": image_size, "patch_size": 16, "initializer_range": 0.02,
    }  # fmt: skip
    return BlipConfig(text_config=text, vision_config=vision)


def write_base(folder: Path, shape: str = "base") -> Path:
    """Write a checkpoint with random weights in the layout of the Hub, unless it exists."""
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [f"w{i}" for i in range(VOCAB_SIZE)]
    for token, position in SPECIAL_TOKENS.items():
        tokens[position] = token
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)
    BlipProcessor(BlipImageProcessorPil(size={"height": 384, "width": 384}), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    BlipForConditionalGeneration(blip_config(shape)).save_pretrained(folder)
    return folder


def write_data(folder: Path, images: int, seed: int = 0) -> Path:
    """Write `images` JPEG images with captions for each split, in ROCOv2's layout, unless they exist."""
    if (folder / "sizes.json").is_file() and json.loads((folder / "sizes.json").read_text()) == images:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        ids = [f"{split}_{row:06d}" for row in range(images)]
        for image_id in ids:
            plane = draw(random_phantom(rng), rng, *rng.integers(*IMAGE_SIDES, 2))
            Image.fromarray((255 * plane).astype(np.uint8)).save(folder / split / f"{image_id}.jpg", quality=90)
        with (folder / f"{split}_captions.csv").open("w", encoding="utf-8", newline="") as file:
            rows = zip(ids, [caption(rng) for _ in ids], strict=True)
            csv.writer(file).writerows([("ID", "Caption"), *rows])
    (folder / "sizes.json").write_text(json.dumps(images))
    return folder


def caption(rng: np.random.Generator, tokens: int | None = None) -> str:
    """Return a caption of `tokens` tokens including [CLS] and [SEP]; None: a random length as in ROCOv2."""
    probabilities, lengths = zip(*LENGTH_QUANTILES, strict=True)
    count = (tokens or round(float(np.interp(rng.uniform(), probabilities, lengths)))) - 2
    return " ".join(f"w{token}" for token in rng.integers(200, VOCAB_SIZE, max(count, 1)))
