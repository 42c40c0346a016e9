"""The split of an evaluation: images, references, and what is known about them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, concatenate_datasets

from medcap.data.captions import clean_caption
from medcap.data.concepts import concept_names, modality_in_words, modality_of
from medcap.data.layout import DataLayout
from medcap.data.load import describe_sources, read_data
from medcap.data.readers import flattened
from medcap.data.selection import Selection, check_images, sample_rows, select_rows
from medcap.data.sources import SOURCE, DataPaths, own_id, source_names, source_paths
from medcap.evaluation.baselines import shuffled
from medcap.phantom.truth import read_truth

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The images and references of one split, and what is known about them.

    Attributes:
        rows: Images and references.
        training_captions: All rows of the training split with a caption, for baselines: caption, group, manual_cuis.
        training: Rows of the training split with images; None on the training split itself.
        truth: Known findings of phantoms by image id.
        concepts: Names by CUI.
    """

    name: str
    rows: Dataset
    training_captions: Dataset | None = None
    training: Dataset | None = None
    truth: dict[str, dict[str, Any]] | None = None
    concepts: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """One reference per image, in order."""
        return list(self.rows["caption"])

    @property
    def training_images(self) -> int:
        """Number of training images."""
        return 0 if self.training is None else len(self.training)

    @property
    def ids(self) -> list[str]:
        """Image ids, in order."""
        return list(self.rows["image_id"])

    @property
    def groups(self) -> list[str | None]:
        """Article or patient of each image; None if not known."""
        return list(self.rows["group"])

    @property
    def modalities(self) -> list[str]:
        """Modality of each image: from its manual concepts, else from its reference, else "unknown"."""
        pairs = zip(concept_modalities(self.rows), self.references, strict=True)
        return [modality or modality_in_words(caption) or "unknown" for modality, caption in pairs]

    @property
    def sources(self) -> list[str] | None:
        """Source of each image; None if the data has one source."""
        return list(self.rows[SOURCE]) if SOURCE in self.rows.column_names else None

    def with_shuffled_images(self) -> Split:
        """Return the split with each image in another row, to test image dependence."""
        images = flattened(self.rows.select_columns(["image"]).select(shuffled(range(len(self.rows)), self.groups)))
        others = flattened(self.rows.remove_columns("image"))
        rows = concatenate_datasets([others, images], axis=1).select_columns(list(self.rows.column_names))
        rows.info.description = self.rows.info.description
        return replace(self, rows=rows)


def load_split(
    data: DataPaths,
    name: str,
    *,
    layout: DataLayout | None = None,
    selection: Selection | None = None,
    max_eval_samples: int | None = None,
) -> Split:
    """Load the selected rows of one split, and the training split for the baselines.

    Args:
        data: Folder, CSV file, or Hub name, or several, as for `load_data`.
        name: train, valid or test.
        layout: Layout of the data; None to detect it.
        selection: Rows to use; None for all.
        max_eval_samples: Use at most this many rows (see `sample_rows`).
    """
    layout, selection = layout or DataLayout(), selection or Selection()
    raw = read_data(data, layout, [name])
    logger.warning("data: %s", describe_sources(data, layout.data_format))
    rows = select_rows(raw if selection.exclude_leaks else {name: raw[name]}, [name], selection)[name]
    rows = check_images(sample_rows(rows, max_eval_samples), selection.max_broken)
    training = raw.get("train")
    if training is None:
        logger.warning(
            "the baselines constant and nearest, and their variants, are omitted: the data has no training split"
        )
    return Split(
        name,
        rows,
        training_captions=None if training is None else _captions(training),
        training=None if training is None or name == "train" else _with_images(training),
        truth=_truth(data, rows, name),
        concepts=concept_names(data),
    )


def _truth(data: DataPaths, rows: Dataset, split: str) -> dict[str, dict[str, Any]] | None:
    """Return the known findings of phantoms by image id; None unless all sources are phantoms."""
    paths = source_paths(data)
    if len(paths) == 1:
        return read_truth(paths[0], split)
    known = {name: read_truth(path, split) for name, path in zip(source_names(data), paths, strict=True)}
    pairs = list(zip(rows["image_id"], rows[SOURCE], strict=True))
    truth = {image_id: (known[source] or {}).get(own_id(image_id, source)) for image_id, source in pairs}
    return {key: value for key, value in truth.items() if value} if all(truth.values()) else None


def concept_modalities(rows: Dataset) -> list[str | None]:
    """Return the modality of each image by its manual concepts alone; None if they name none."""
    return [modality_of(cuis or []) for cuis in rows["manual_cuis"]]


def _captions(training: Dataset) -> Dataset:
    captions = [clean_caption(caption or "") for caption in training["caption"]]
    columns = training.select_columns(["group", "manual_cuis"]).add_column("caption", captions)
    return columns.select([row for row, caption in enumerate(captions) if caption])


def _with_images(training: Dataset) -> Dataset | None:
    try:
        return select_rows({"train": training}, ["train"], Selection(max_broken=1.0))["train"]
    except ValueError:  # only the captions were downloaded
        logger.warning("the baseline nearest is omitted: the training split has no images")
        return None
