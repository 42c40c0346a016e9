"""The nearest-neighbour baseline: the caption of the most similar training image, by vision encoder features."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
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
    """Return the caption of the most similar training image for each row, and the number of training images searched.

    Similarity is the cosine of `image_features`. At most `most` images of `training` are searched, a random sample;
    unreadable images are skipped.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(training))[:most])
    training = check_images(training.select(chosen), max_broken=1.0)
    images = [dataset.select_columns(["image_id", "image"]) for dataset in (training, rows)]
    features = image_features(captioner, concatenate_datasets(images), batch_size)
    known, queries = features.split([len(training), len(rows)])
    closest = torch.cat([(block @ known.T).argmax(1) for block in queries.split(BLOCK)])
    captions = list(training["caption"])
    return [captions[row] for row in closest.tolist()], len(training)


@torch.inference_mode()
def image_features(captioner: Captioner, rows: Dataset, batch_size: int) -> torch.Tensor:
    """Return the mean over patches of the vision encoder's output for n images: (n, width) float32 of length 1.

    Without the adapter, so that systems on one base share one baseline.
    """
    model, parts = captioner.model, []
    adapter = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    family = captioner.family
    encode = FeatureEncoder(family, captioner.cache)
    with adapter, captioner.autocast(), tqdm(total=len(rows), desc="features", unit="image") as bar:
        for batch in image_batches(captioner, rows, batch_size):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            features = None if family.feature_obstacle() else encode(batch)
            parts.append(F.normalize(family.vectors(batch, features).float(), dim=1).cpu())
            bar.update(len(parts[-1]))
    return torch.cat(parts)
