"""Training images that are similar to others, and the choice of captions by those of similar images."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from torch.nn import functional as F
from tqdm import tqdm

from medcap.data.selection import check_images
from medcap.inference import Captioner, image_batches
from medcap.metrics.consensus import Consensus, caption_words
from medcap.metrics.training_idf import TrainingIdf
from medcap.modeling.feature_cache import FeatureEncoder
from medcap.modeling.generation import reranks
from medcap.processes import in_parts
from medcap.recipe import GenerationArguments, RecipeError


def sample_images(training: Dataset, most: int, seed: int = 0, processes: PartialState | None = None) -> Dataset:
    """Return at most `most` random rows, without those whose image is unreadable; the main process decodes them."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(training))[:most])
    with nullcontext() if processes is None else processes.main_process_first():
        return check_images(training.select(chosen), max_broken=1.0)


def image_features(
    captioner: Captioner, rows: Dataset, batch_size: int, *, with_adapter: bool = False
) -> torch.Tensor:
    """Return the mean over patches of the vision encoder's output for n images: (n, width) float32 of length 1.

    Without the adapter, systems on one base have the same features; `generate` computes them with it. Each of the
    captioner's `processes` encodes a part of the images, and all return all features.
    """
    work = partial(_encode_rows, captioner, with_adapter=with_adapter)
    return torch.cat(in_parts(captioner.processes, rows, batch_size, work))


@torch.inference_mode()
def _encode_rows(captioner: Captioner, rows: Dataset, batch_size: int, with_adapter: bool) -> list[torch.Tensor]:
    model, family, parts = captioner.model, captioner.family, []
    is_bare = isinstance(model, PeftModel) and not with_adapter
    adapter = model.disable_adapter() if is_bare else nullcontext()
    encode = FeatureEncoder(family, captioner.cache)
    with (
        adapter,
        captioner.autocast(),
        tqdm(total=len(rows), desc="features", unit="image", disable=len(rows) < 2) as bar,
    ):
        for batch in image_batches(captioner, rows, batch_size):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            features = None if family.feature_obstacle() else encode(batch)
            parts.append(F.normalize(family.vectors(batch, features).float(), dim=1).cpu())
            bar.update(len(parts[-1]))
    encode.flush()
    return [torch.cat(parts)]


def with_consensus(captioner: Captioner, training: Dataset | None, batch_size: int | None = None) -> Captioner:
    """Return the captioner with what `rerank: consensus` needs of the training split; unchanged without reranking.

    Raises:
        RecipeError: It is needed, and there is no training split with images and captions.
    """
    settings = captioner.generation_config
    if captioner.consensus is not None or not reranks(settings):
        return captioner
    if training is None:
        raise RecipeError(NO_TRAINING)
    given = {**vars(GenerationArguments()), **settings.to_dict()}
    rows = sample_images(training, given["rerank_pool"], processes=captioner.processes)
    consensus = Consensus(
        list(rows["caption"]),
        image_features(captioner, rows, batch_size or 16, with_adapter=True),
        TrainingIdf([caption_words(caption) for caption in training["caption"]]),
        given["rerank_neighbors"],
        given["rerank_neighbor_weight"],
    )
    return replace(captioner, consensus=consensus)


NO_TRAINING = (
    "rerank: consensus compares captions with those of training images, and there are none: give the data set of the "
    "training with --data, or turn it off with --rerank none"
)
