"""One split to be evaluated on: its images and references, and what is known about it beside them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, concatenate_datasets

from medcap.data.captions import clean_caption
from medcap.data.concepts import concept_names, modality_in_words, modality_of
from medcap.data.layout import DataLayout
from medcap.data.load import find_layout, read_data
from medcap.data.selection import Selection, check_images, select_rows
from medcap.evaluation.baselines import shuffled
from medcap.phantom.truth import read_truth

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The images and references of one split, and what is known about it beside them.

    `training_captions` and `training` are what baselines may learn from: all captions, and the rows whose images are
    there; None where there are none. `truth` is that of phantoms, `concepts` {CUI: name}.
    """

    name: str
    rows: Dataset
    training_captions: Sequence[str] | None = None
    training: Dataset | None = None
    truth: dict[str, dict[str, Any]] | None = None
    concepts: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """One reference per image, in order."""
        return list(self.rows["caption"])

    @property
    def training_images(self) -> int:
        """How many training images are there."""
        return 0 if self.training is None else len(self.training)

    @property
    def ids(self) -> list[str]:
        """Image ids, in order."""
        return list(self.rows["image_id"])

    @property
    def groups(self) -> list[str | None]:
        """Article or patient of each image, None where it is not known."""
        return list(self.rows["group"])

    @property
    def modalities(self) -> list[str]:
        """Modality of each image by its manual concepts, else by the words of its reference, else "unknown"."""
        pairs = zip(self.rows["manual_cuis"], self.references, strict=True)
        return [modality_of(cuis or []) or modality_in_words(caption) or "unknown" for cuis, caption in pairs]

    def with_shuffled_images(self) -> Split:
        """Return the split with every image in another row: a captioner that looks at images must then fail."""
        others = shuffled(range(len(self.rows)))
        images = self.rows.select_columns(["image"]).select(others).flatten_indices()
        rows = self.rows.remove_columns("image").flatten_indices()
        return replace(self, rows=_beside(rows, images, self.rows))


def _beside(rows: Dataset, images: Dataset, like: Dataset) -> Dataset:
    joined = concatenate_datasets([rows, images], axis=1).select_columns(list(like.column_names))
    joined.info.description = like.info.description
    return joined


def load_split(
    data: str,
    name: str,
    *,
    form: DataLayout | None = None,
    wanted: Selection | None = None,
    max_eval_samples: int | None = None,
) -> Split:
    """Load the `wanted` rows of one split, every image of it decoded once; `data` and `form` as for `load_data`.

    The training split comes along for the baselines: its captions, all of them, and its images where there are any.
    """
    form, wanted = form or DataLayout(), wanted or Selection()
    raw = read_data(data, form, [name])
    sys.stderr.write(f"{data}: read as {find_layout(data, form.data_format)}\n")
    rows = select_rows(raw if wanted.exclude_leaks else {name: raw[name]}, [name], wanted)[name]
    rows = check_images(rows.select(range(min(max_eval_samples or len(rows), len(rows)))), wanted.max_broken)
    training = raw.get("train")
    if training is None:
        logger.warning("no constant caption and no nearest neighbour as baselines: there is no training split")
    return Split(
        name,
        rows,
        training_captions=None if training is None else _captions(training),
        training=None if training is None or name == "train" else _with_images(training),
        truth=read_truth(data, name),
        concepts=concept_names(data),
    )


def _captions(training: Dataset) -> list[str]:
    captions = (clean_caption(caption or "") for caption in training["caption"])
    return [caption for caption in captions if caption]


def _with_images(training: Dataset) -> Dataset | None:
    try:
        return select_rows({"train": training}, ["train"], Selection(max_broken=1.0))["train"]
    except ValueError:  # nothing is left: the captions were fetched, and not the images
        logger.warning("no nearest neighbour as a baseline: the images of the training split are not there")
        return None
