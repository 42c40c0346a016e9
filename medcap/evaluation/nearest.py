"""The nearest-neighbour baseline: the caption of the most similar training image, by vision encoder features."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn import functional as F
from tqdm import tqdm

from medcap.data.selection import check_images
from medcap.inference import Captioner, image_batches
from medcap.modeling.feature_cache import FeatureEncoder

logger = logging.getLogger(__name__)

BLOCK = 1024  # images compared at a time


def nearest_captions(
    captioner: Captioner, rows: Dataset, training: Dataset, *, most: int = 2000, batch_size: int = 16, seed: int = 0
) -> tuple[list[str], int]:
    """Return for each of `rows` the caption of the training image whose features are closest, and of how many.

    Of `training` at most `most` images take part, chosen by `seed`. Features are as of `image_features`, closeness is
    their cosine; of equals the first. A captioner that is no better than this has learned to look things up.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(training))[:most])
    known = check_images(training.select(chosen), max_broken=1.0)
    there = image_features(captioner, known, batch_size, "features of train")
    here = image_features(captioner, rows, batch_size, "features")
    closest = torch.cat([(block @ there.T).argmax(1) for block in here.split(BLOCK)])
    captions = list(known["caption"])
    return [captions[row] for row in closest.tolist()], len(known)


@torch.inference_mode()
def image_features(captioner: Captioner, rows: Dataset, batch_size: int, title: str) -> torch.Tensor:
    """Return (n, width) float32 of length 1: the mean over patches of the base's vision encoder output.

    The base's also where an adapter changes the vision encoder, so that systems on one base share one baseline.
    """
    model, parts = captioner.model, []
    adapter = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    encode = FeatureEncoder(captioner.blip.vision_model, captioner.cache)
    with adapter, captioner.autocast(), tqdm(total=len(rows), desc=title, unit="image") as bar:
        for batch in image_batches(captioner, rows, batch_size, captioner.cache):
            parts.append(F.normalize(encode(batch).float().mean(1), dim=1).cpu())
            bar.update(len(parts[-1]))
    return torch.cat(parts)
