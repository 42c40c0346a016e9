"""Baselines of similar training images, by vision encoder features: captions of the nearest and of the k nearest."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from medcap.evaluation.caption_vectors import CaptionVectors
from medcap.inference import Captioner
from medcap.metrics.ngrams import mutual_cider_d
from medcap.neighbors import image_features, sample_images

BLOCK = 256  # images compared at a time
NEIGHBORS = 60  # k, of 3 to 90 the best on the validation split of quickstart's phantoms


def nearest_captions(
    captioner: Captioner, rows: Dataset, training: Dataset, *, most: int = 2000, batch_size: int = 16, seed: int = 0
) -> tuple[dict[str, list[str]], int]:
    """Return the captions of the baselines "nearest" and "nearest-k" for each row, and the number of images searched.

    Similarity is the cosine of `image_features`, without the adapter, so that systems on one base share one baseline.
    At most `most` images of `training` are searched, a random sample; unreadable images are skipped.
    Of the captioner's `processes` only the one that `writes` has captions.
    """
    training = sample_images(training, most, seed, captioner.processes)
    images = [dataset.select_columns(["image_id", "image"]) for dataset in (training, rows)]
    features = image_features(captioner, concatenate_datasets(images), batch_size)
    if not captioner.writes:
        return {}, len(training)
    known, queries = features.split([len(training), len(rows)])
    vectors = CaptionVectors.of(training["caption"][:], training["group"][:])
    neighbors = nearest_rows(queries, known, vectors.row)
    texts = {
        "nearest": [vectors.captions[rows[0]] for rows in neighbors],
        "nearest-k": [vectors.captions[consensus(vectors, rows)] for rows in neighbors],
    }
    return texts, len(training)


def nearest_rows(queries: torch.Tensor, known: torch.Tensor, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (q, k) the captions of the k = `NEIGHBORS` most similar images, in this order, each caption once.

    Args:
        queries: (q, width) unit vectors.
        known: (n, width) unit vectors of the training images.
        row: (n,) number of each training image's caption; -1 for none.
    """
    index = torch.from_numpy(row).clamp(min=0)
    found = []
    for block in queries.split(BLOCK):
        similarity = (block @ known.T).masked_fill(torch.from_numpy(row < 0), -torch.inf)
        best = torch.full((len(block), int(row.max()) + 1), -torch.inf)  # of the images with one caption
        best = best.scatter_reduce(1, index.expand(len(block), -1), similarity, "amax")
        found.append(best.topk(min(NEIGHBORS, best.shape[1])).indices)
    return torch.cat(found).numpy()


def consensus(vectors: CaptionVectors, rows: NDArray[np.int64]) -> int:
    """Return the one of `rows` with the highest mean CIDEr-D to the others; those of its own group do not count.

    The consensus caption of Devlin et al. 2015 (arXiv:1505.04467), with one caption per image and m = k - 1: on the
    validation splits a mean over the m closest captions was not better.
    """
    scores = mutual_cider_d(vectors.orders, vectors.words, rows)
    scores[vectors.group[rows][:, None] == vectors.group[rows]] = 0
    return int(rows[scores.sum(1).argmax()])
