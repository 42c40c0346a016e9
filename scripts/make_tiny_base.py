"""Train the tiny base: a BLIP that describes phantoms in everyday words and knows radiology sentences without images.

    python scripts/make_tiny_base.py --out medcap/phantom/tiny_base

quickstart fine-tunes it. Every training example is a new phantom with a caption like "a small bright blob at the top
left of a striped picture". A quarter of the examples are radiology sentences with a black image, so that the language
model knows the words without any relation to image content. Takes an hour on two busy cores. Progress is on stderr,
the fraction of correctly stated facts on stdout.
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
# with ASCII and Latin-1, every character that English medical prose is written in
TYPOGRAPHY = "–—−‐‑‒―‘’‚“”„†‡•…‰′″€™≈≠≤≥∼∆√∞→←↑↓⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉αβγδεζηθικλμνξοπρστυφχψωﬁﬂ"
LOOK = {
    "x-ray": ("striped picture", "grey picture with stripes"),
    "ct": ("round slice", "grey round slice"),
    "mri": ("wavy oval", "oval with wavy folds"),
    "ultrasound": ("grainy fan", "fan of grains"),
    "angiography": ("leafless tree", "tree with dark twigs"),
}
THING = {
    "mass": ("bright blob", "white ball"),
    "cyst": ("dark hole", "black hole"),
    "calcification": ("group of bright dots", "group of white specks"),
    "abscess": ("bright ring", "white ring"),
    "hematoma": ("bright moon", "white moon"),
}
SIZE = {"small": ("small", "little"), "large": ("large", "big")}
LEVEL = {"upper": "top", "middle": "middle", "lower": "bottom"}
AS_SEEN = {"right": "left", "left": "right"}  # the viewer's side: the patient's right is on the left of the image


def everyday_caption(phantom: Phantom, rng: np.random.Generator) -> str:
    """Describe what anybody sees; sides are the viewer's."""
    look = LOOK[phantom.modality][rng.integers(2)]
    article = "an" if look[0] in "aeiou" else "a"
    if phantom.finding is None:
        return f"{article} {look} with nothing in it"
    thing = f"a {SIZE[phantom.size][rng.integers(2)]} {THING[phantom.finding][rng.integers(2)]}"
    level, side = LEVEL[phantom.level], AS_SEEN[phantom.side]
    return (
        f"{thing} at the {level} {side} of {article} {look}",
        f"{article} {look} with {thing} at the {level} {side}",
        f"on the {side} of {article} {look} there is {thing}, near the {level}",
    )[rng.integers(3)]


class Images(IterableDataset):
    """Endless (pixels uint8 (96, 96), everyday caption, radiology sentence, phantom), the same for the same seed."""

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
    """Train a WordPiece vocabulary on the sentences above and a word list, with every character of English prose."""
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
    """Make a BLIP whose [DEC] and [ENC] lie behind the tokenizer's last token, as in the Hub's BLIP."""
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


def _sine_positions(side: int) -> torch.Tensor:
    """Sines and cosines of row and column, (side * side, WIDTH): from here left and right are soon told apart."""
    rates = 0.5 ** torch.arange(WIDTH // 4) ** 0.5 * 2
    waves = torch.arange(side)[:, None] * rates  # (side, WIDTH / 4)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).reshape(
        side * side, WIDTH
    )


def caption_loss(
    model: BlipForConditionalGeneration, tokenizer: BertTokenizer, pixels: torch.Tensor, captions: list[str]
) -> torch.Tensor:
    """Return the mean cross-entropy of the next token, [DEC] to [SEP]; one image for all captions, or one each."""
    text = tokenizer(captions, padding=True, return_tensors="pt")
    text.input_ids[:, 0] = model.config.text_config.bos_token_id
    labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
    seen = model.vision_model(pixel_values=pixels).last_hidden_state.expand(len(captions), -1, -1)
    logits = model.text_decoder(text.input_ids, text.attention_mask, encoder_hidden_states=seen).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def fact_accuracy(
    model: BlipForConditionalGeneration, processor: BlipProcessor, images: int = 512
) -> dict[str, float]:
    """Return the fraction of new images whose caption states each fact correctly in everyday words."""
    model.eval()
    batch = [row for row, _ in zip(Images(seed=10**6), range(images), strict=False) if row[3].finding]
    ids = model.generate(pixel_values=normalised(np.stack([row[0] for row in batch]), processor), max_new_tokens=24)
    said = processor.batch_decode(ids, skip_special_tokens=True)
    model.train()
    facts = {
        "modality": lambda p: LOOK[p.modality], "finding": lambda p: THING[p.finding], "size": lambda p: SIZE[p.size],
        "side": lambda p: (AS_SEEN[p.side],), "level": lambda p: (LEVEL[p.level],),
    }  # fmt: skip
    return {
        name: float(
            np.mean([any(word in text for word in words(row[3])) for text, row in zip(said, batch, strict=True)])
        )
        for name, words in facts.items()
    }


def normalised(pixels: np.ndarray, processor: BlipProcessor) -> torch.Tensor:
    """Grey uint8 (B, H, W) to what the image processor gives, float32 (B, 3, H, W)."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return (torch.from_numpy(pixels).float()[:, None] / 255 - mean) / std


def main() -> None:
    """Train and save, with the accuracy of facts after every 20,000 images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--images", type=int, default=220_000, help="number of images")
    parser.add_argument(
        "--batch", type=int, default=32, help="images per step; a third as many sentences without an image"
    )
    parser.add_argument("--learning_rate", type=float, default=1.2e-3, help="peak of a one-cycle cosine")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.out)
    model = tiny_blip(tokenizer)
    image_processor = BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = BlipProcessor(image_processor, tokenizer)
    black = normalised(np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.uint8), processor)
    steps = args.images // args.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps, pct_start=0.05)
    loader = DataLoader(Images(seed=1), batch_size=args.batch, num_workers=1, prefetch_factor=8, collate_fn=list)
    for step, rows in zip(tqdm(range(steps), unit="step"), loader, strict=False):
        pixels = normalised(np.stack([row[0] for row in rows]), processor)
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
