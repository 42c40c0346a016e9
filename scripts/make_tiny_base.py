"""Train the tiny base: a BLIP that describes phantoms in everyday words and knows radiology sentences without images.

    python scripts/make_tiny_base.py --out medcap/phantom/tiny_base

quickstart fine-tunes it. Every training example is a new phantom with a caption like "a small bright blob at the top
left of a striped picture". A quarter of the examples are radiology sentences with a black image, so that the model
knows the vocabulary of radiology but not what it refers to. Training takes about an hour on two cores. Progress is
printed to stderr, the fraction of correctly stated facts to stdout.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from medcap.phantom.captions import caption_of
from medcap.phantom.images import Phantom, draw, random_phantom

IMAGE_SIZE, PATCH_SIZE, WIDTH = 96, 16, 128
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# in addition to ASCII and Latin-1
TYPOGRAPHY = "–—−‐‑‒―‘’‚“”„†‡•…‰′″€™≈≠≤≥∼∆√∞→←↑↓⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉αβγδεζηθικλμνξοπρστυφχψωﬁﬂ"
MODALITY_WORDS = {
    "x-ray": ("striped picture", "grey picture with stripes"),
    "ct": ("round slice", "grey round slice"),
    "mri": ("wavy oval", "oval with wavy folds"),
    "ultrasound": ("grainy fan", "fan of grains"),
    "angiography": ("leafless tree", "tree with dark twigs"),
}
FINDING_WORDS = {
    "mass": ("bright blob", "white ball"),
    "cyst": ("dark hole", "black hole"),
    "calcification": ("group of bright dots", "group of white specks"),
    "abscess": ("bright ring", "white ring"),
    "hematoma": ("bright moon", "white moon"),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
LEVEL_WORDS = {"upper": "top", "middle": "middle", "lower": "bottom"}
VIEWER_SIDE = {"right": "left", "left": "right"}  # the patient's right is on the left of the image


def everyday_caption(phantom: Phantom, rng: np.random.Generator) -> str:
    """Return a random description in everyday words; left and right are those of the image."""
    scene = MODALITY_WORDS[phantom.modality][rng.integers(2)]
    article = "an" if scene[0] in "aeiou" else "a"
    if phantom.finding is None:
        return f"{article} {scene} with nothing in it"
    thing = f"a {SIZE_WORDS[phantom.size][rng.integers(2)]} {FINDING_WORDS[phantom.finding][rng.integers(2)]}"
    level, side = LEVEL_WORDS[phantom.level], VIEWER_SIDE[phantom.side]
    return (
        f"{thing} at the {level} {side} of {article} {scene}",
        f"{article} {scene} with {thing} at the {level} {side}",
        f"on the {side} of {article} {scene} there is {thing}, near the {level}",
    )[rng.integers(3)]


class Images(IterableDataset):
    """Infinite stream of (pixels uint8 (96, 96), everyday caption, radiology sentence, phantom) for one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, str, str, Phantom]]:
        rng = np.random.default_rng(self.seed)
        while True:
            phantom = random_phantom(rng)
            height, width = rng.integers(96, 150, 2)
            plane = Image.fromarray((draw(phantom, rng, int(height), int(width)) * 255).astype(np.uint8))
            pixels = np.array(plane.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
            yield pixels, everyday_caption(phantom, rng), caption_of(random_phantom(rng), rng), phantom


def train_tokenizer(out: Path) -> BertTokenizer:
    """Train a WordPiece tokenizer on captions and a word list; it knows every character of English text."""
    rng = np.random.default_rng(0)
    phantoms = [random_phantom(rng) for _ in range(4000)]
    words = Path(__file__).with_name("tiny_base_words.txt").read_text(encoding="utf-8").split()
    texts = [f(p, rng) for p in phantoms for f in (everyday_caption, caption_of)] + words * 20
    alphabet = [chr(c) for c in [*range(33, 127), *range(161, 256)] if chr(c).strip()] + list(TYPOGRAPHY)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=2400, min_frequency=4, special_tokens=SPECIAL_TOKENS)
    tokenizer.train_from_iterator(texts, trainer)
    learned = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    plain = sorted({c for a in alphabet for c in tokenizer.normalizer.normalize_str(a) if c.strip()})
    vocabulary = dict.fromkeys([*learned, *words, *plain, *(f"##{c}" for c in plain)])
    path = out / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(str(path), model_max_length=512)


def tiny_blip(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """Return a BLIP whose [DEC] and [ENC] follow the tokenizer's last token, as in the Hub's BLIP."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = {
        **shape, "num_hidden_layers": 3, "vocab_size": len(tokenizer) + 2, "encoder_hidden_size": WIDTH,
        "bos_token_id": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id,
        "max_position_embeddings": 256, "projection_dim": 64,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    vision = {
        **shape, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 64,
        "initializer_range": 0.02,  # the default, 1e-10, makes a vision encoder with constant output
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=64))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = 0.5 * _sine_positions(IMAGE_SIZE // PATCH_SIZE)
    return model


def _sine_positions(n: int) -> torch.Tensor:
    """Return sines and cosines of row and column, (n * n, WIDTH): left and right are learned faster from these."""
    rates = 0.5 ** torch.arange(WIDTH // 4) ** 0.5 * 2
    waves = torch.arange(n)[:, None] * rates  # (n, WIDTH / 4)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    return torch.cat([line[:, None].expand(-1, n, -1), line[None].expand(n, -1, -1)], 2).reshape(n * n, WIDTH)


def caption_loss(
    model: BlipForConditionalGeneration, tokenizer: BertTokenizer, pixels: torch.Tensor, captions: list[str]
) -> torch.Tensor:
    """Return the mean cross-entropy from [DEC] to [SEP]; one image for all captions, or one for each."""
    text = tokenizer(captions, padding=True, return_tensors="pt")
    text.input_ids[:, 0] = model.config.text_config.bos_token_id
    labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
    image = model.vision_model(pixel_values=pixels).last_hidden_state.expand(len(captions), -1, -1)
    logits = model.text_decoder(text.input_ids, text.attention_mask, encoder_hidden_states=image).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def fact_accuracy(model: BlipForConditionalGeneration, processor: BlipProcessor, n: int = 512) -> dict[str, float]:
    """Return the fraction of `n` new images whose everyday caption states each fact correctly."""
    model.eval()
    batch = [row for row, _ in zip(Images(seed=10**6), range(n), strict=False) if row[3].finding]
    ids = model.generate(pixel_values=normalize(np.stack([row[0] for row in batch]), processor), max_new_tokens=24)
    captions = processor.batch_decode(ids, skip_special_tokens=True)
    model.train()
    correct = [
        {
            "modality": any(words in caption for words in MODALITY_WORDS[phantom.modality]),
            "finding": any(words in caption for words in FINDING_WORDS[phantom.finding or ""]),
            "size": any(word in caption for word in SIZE_WORDS[phantom.size]),
            "side": VIEWER_SIDE[phantom.side] in caption,
            "level": LEVEL_WORDS[phantom.level] in caption,
        }
        for caption, (*_, phantom) in zip(captions, batch, strict=True)
    ]
    return {fact: float(np.mean([row[fact] for row in correct])) for fact in correct[0]}


def normalize(pixels: np.ndarray, processor: BlipProcessor) -> torch.Tensor:
    """Return the pixel values, float32 (B, 3, H, W), of gray uint8 images (B, H, W)."""
    config = processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    return (torch.from_numpy(pixels).float()[:, None] / 255 - mean) / std


def main() -> None:
    """Train and save the model; evaluate it after every 20,000 images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--images", type=int, default=220_000, help="number of images")
    parser.add_argument("--batch", type=int, default=32, help="images per step; plus a third as many black images")
    parser.add_argument("--learning_rate", type=float, default=1.2e-3, help="peak of a one-cycle cosine")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.out)
    model = tiny_blip(tokenizer)
    image_processor = BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = BlipProcessor(image_processor, tokenizer)
    black = normalize(np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.uint8), processor)
    steps = args.images // args.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps, pct_start=0.05)
    loader = DataLoader(Images(seed=1), batch_size=args.batch, num_workers=1, prefetch_factor=8, collate_fn=list)
    for step, rows in zip(tqdm(range(steps), unit="step"), loader, strict=False):
        pixels = normalize(np.stack([row[0] for row in rows]), processor)
        loss = caption_loss(model, tokenizer, pixels, [row[1] for row in rows])
        (loss + caption_loss(model, tokenizer, black, [row[2] for row in rows[: len(rows) // 3]]) / 3).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % (20_000 // args.batch) == 0 or step + 1 == steps:
            print((step + 1) * args.batch, f"loss {loss.item():.3f}", fact_accuracy(model, processor), flush=True)
            model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {args.out}")


if __name__ == "__main__":
    main()
