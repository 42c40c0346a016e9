"""The nearest-neighbour baseline: the caption of the most similar training image, by vision encoder features."""

from __future__ import annotations

import torch
from datasets import Dataset, concatenate_datasets

from medcap.inference import Captioner
from medcap.neighbors import image_features, sample_images

BLOCK = 1024  # images compared at a time


def nearest_captions(
    captioner: Captioner, rows: Dataset, training: Dataset, *, most: int = 2000, batch_size: int = 16, seed: int = 0
) -> tuple[list[str], int]:
    """Return the caption of the most similar training image for each row, and the number of training images searched.

    Similarity is the cosine of `image_features`, without the adapter, so that systems on one base share one baseline.
    At most `most` images of `training` are searched, a random sample; unreadable images are skipped.
    """
    training = sample_images(training, most, seed)
    images = [dataset.select_columns(["image_id", "image"]) for dataset in (training, rows)]
    features = image_features(captioner, concatenate_datasets(images), batch_size)
    known, queries = features.split([len(training), len(rows)])
    closest = torch.cat([(block @ known.T).argmax(1) for block in queries.split(BLOCK)])
    captions = list(training["caption"])
    return [captions[row] for row in closest.tolist()], len(training)
