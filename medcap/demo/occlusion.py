"""Occlusion maps: how much the log-probability of a word of a caption depends on each part of the image.

Method: Zeiler and Fergus, 2014, "Visualizing and Understanding Convolutional Networks", section 4.2, with the
log-probability of a word instead of a class. It needs no gradients or attention weights, so it is the same for all
models. Patches are covered one at a time: what two patches show both is not found, and gray is itself unusual.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from peft.helpers import disable_input_dtype_casting
from PIL import Image

from medcap.data.captions import IGNORED
from medcap.inference import Captioner
from medcap.modeling.families.family import Batch
from medcap.modeling.feature_cache import FeatureEncoder

GRID = 8  # patches per side
MAX_TOKENS = 256  # of a caption
OPACITY = 0.6  # of the color where the change is largest


def caption_words(captioner: Captioner, caption: str) -> list[str]:
    """Return the words of a caption as the tokenizer decodes them."""
    _, words = _words(captioner, _batch(captioner, Image.new("RGB", (64, 64)), caption))
    return words


def occlusion_map(captioner: Captioner, image: Image.Image, caption: str, word: int) -> Image.Image:
    """Return `image` with the patches colored on which a word depends: red if covering one lowers its log-probability.

    Args:
        captioner: The model.
        image: RGB.
        caption: Whose words before `word` are given to the model.
        word: Index in `caption_words`.
    """
    change = occlusion_change(captioner, image, caption, word)
    largest = max(float(np.abs(change).max()), 1e-9)
    sign = np.stack([change > 0, np.zeros_like(change, dtype=bool), change < 0], axis=-1)
    color = Image.fromarray((sign * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    opacity = (np.abs(change) / largest * OPACITY * 255).astype(np.uint8)
    mask = Image.fromarray(opacity).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(color, image, mask)


def occlusion_change(captioner: Captioner, image: Image.Image, caption: str, word: int) -> NDArray[np.float64]:
    """Return by how much covering each patch lowers the log-probability of a word: (GRID, GRID), in nats."""
    gray = tuple(int(value) for value in np.asarray(image).reshape(-1, 3).mean(0))
    columns, rows = (np.linspace(0, side, GRID + 1).astype(int).tolist() for side in image.size)
    change = np.zeros((GRID, GRID))
    whole = word_log_probability(captioner, image, caption, word)
    for row, column in np.ndindex(GRID, GRID):
        covered = image.copy()
        box = columns[column], rows[row], columns[column + 1], rows[row + 1]
        covered.paste(gray, box)
        change[row, column] = whole - word_log_probability(captioner, covered, caption, word)
    return change


@torch.inference_mode()
def word_log_probability(captioner: Captioner, image: Image.Image, caption: str, word: int) -> float:
    """Return the log-probability of the tokens of a word, given the image and the words before it."""
    batch = _batch(captioner, image, caption)
    of_word, _ = _words(captioner, batch)
    batch = {**batch, "labels": batch["labels"].masked_fill(of_word != word, IGNORED)}
    batch = {name: values.to(captioner.model.device) for name, values in batch.items()}
    casting = disable_input_dtype_casting(captioner.model, active=captioner.model.dtype != torch.float32)
    captioner.model.eval()
    with captioner.autocast(), casting:
        features = None if captioner.family.feature_obstacle() else FeatureEncoder(captioner.family, None)(batch)
        return -float(captioner.family.loss(captioner.model, batch, features, 1))


def _batch(captioner: Captioner, image: Image.Image, caption: str) -> Batch:
    collator = captioner.family.collator(MAX_TOKENS, captioner.prompt)
    return dict(collator([{"pixel_values": captioner.family.pixels()(image), "caption": caption}]))


def _words(captioner: Captioner, batch: Batch) -> tuple[torch.Tensor, list[str]]:
    """Return for each label of a batch of one caption the index of its word (1, T), -1 for none; and the words."""
    labels, tokenizer = batch["labels"], captioner.processor.tokenizer
    of_word, ids, text = torch.full_like(labels, -1), list[int](), ""
    for position in labels[0].ne(IGNORED).nonzero().flatten().tolist():
        ids.append(int(labels[0, position]))
        longer = tokenizer.decode(ids, skip_special_tokens=True)
        if len(longer.strip()) > len(text.strip()):
            of_word[0, position] = len(longer.split()) - 1
        text = longer
    return of_word, text.split()
