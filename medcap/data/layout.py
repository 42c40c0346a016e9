"""How a data set is laid out, and how it is split if it is not split yet."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from datasets import Dataset

from medcap.data import SPLITS
from medcap.data.tables import list_some

logger = logging.getLogger(__name__)

LayoutName = Literal["auto", "rocov2", "imagefolder", "csv", "hub"]
Rows = TypeVar("Rows", dict[str, list[Any]], Dataset)
SPLIT_NAMES = "train; valid, validation, val or dev; test"
_SPLIT_OF = {"train": "train", "test": "test", **dict.fromkeys(("valid", "validation", "val", "dev"), "valid")}


@dataclass(frozen=True)
class DataLayout:
    """How a data set is laid out, and how it is split if it is not split yet. ROCOv2 needs only `data_format`.

    Attributes:
        data_format: "rocov2", "imagefolder", "csv", "hub" or "auto" (detected).
        image_column: Column of image paths; default "file_name" (hub: "image").
        caption_column: Default "caption".
        group_column: Column of patients or studies. Splits created here do not separate a group.
        valid_fraction: Fraction of the groups, 0 to below 1, by a hash of `split_seed` and group: a row keeps its
            split when other rows are added or removed.
        test_fraction: As `valid_fraction`; the sum is below 1.
        split_seed: Seed of the hash.
        allow_outside: Whether image files outside the data set's folder, and links to them, are read.

    Raises:
        ValueError: A value is out of range.
    """

    data_format: LayoutName = "auto"
    image_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    allow_outside: bool = False

    def __post_init__(self) -> None:
        if self.data_format not in get_args(LayoutName):
            raise ValueError(f"data_format is {self.data_format!r}; allowed are {', '.join(get_args(LayoutName))}")
        for key in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; allowed is 0 to below 1")
        if not self.valid_fraction + self.test_fraction < 1:
            both = f"{self.valid_fraction} and {self.test_fraction}"
            raise ValueError(f"valid_fraction and test_fraction are {both}; their sum must be below 1")


def split_of(name: str) -> str | None:
    """Return train, valid or test for a split name of Hugging Face's convention, None for any other name."""
    return _SPLIT_OF.get(name.strip().lower())


def rows_by_split(names: Sequence[str], source: object) -> dict[str, list[int]]:
    """Return {split: row numbers} of a column of split names; all rows are train if the column is blank.

    Raises:
        ValueError: A name is unknown, or blank while others are not. The message starts with `source`.
    """
    if not any(name.strip() for name in names):
        return {"train": list(range(len(names)))}
    if unknown := [name or "(blank)" for name in dict.fromkeys(names) if split_of(name) is None]:
        raise ValueError(
            f"{source}: the splits of rows must be named {SPLIT_NAMES}; found {list_some(unknown)}; name the split of "
            "every row in a column split"
        )
    splits = [split_of(name) for name in names]
    return {split: _rows_in(splits, split) for split in SPLITS if split in splits}


def complete_splits(
    splits: dict[str, Rows], select: Callable[[Rows, list[int]], Rows], layout: DataLayout, source: str
) -> dict[str, Rows]:
    """Return `splits` with valid, and test if it is missing too, taken from train; logs the sizes.

    Nothing is changed if there is a valid split or no train split. `select(rows, numbers)` selects rows, which have
    the columns `image_id` and `group`.
    """
    if "train" not in splits or "valid" in splits:
        return splits
    train = splits["train"]
    fractions: dict[str, float] = {"test": layout.test_fraction, "valid": layout.valid_fraction}
    if "test" in splits:
        del fractions["test"]
    groups = [group or image_id for group, image_id in zip(train["group"], train["image_id"], strict=True)]
    assigned = [_assign(group, fractions, layout.split_seed) for group in groups]
    new = {split: numbers for split in ("train", *fractions) if (numbers := _rows_in(assigned, split))}
    sizes = ", ".join(f"{len(numbers)} {split}" for split, numbers in new.items())
    logger.warning("%s: %d rows are split into %s, by %s", source, len(groups), sizes, _unit(layout, train["group"]))
    return {**splits, **{split: select(train, numbers) for split, numbers in new.items()}}


def _unit(layout: DataLayout, groups: Sequence[str | None]) -> str:
    if layout.group_column is None:
        return "image: images of one patient may be in several splits; name the column of patients with group_column"
    unknown = sum(group is None for group in groups)
    return layout.group_column + (f"; {unknown} rows without a value are split by image" if unknown else "")


def _assign(group: str, fractions: Mapping[str, float], seed: int) -> str:
    """Return the split of a group by a 64-bit hash; what the fractions leave is train.

    The prefix "split" makes the hash independent of the one that selects a fraction of train.
    """
    digest = hashlib.blake2b(f"split:{seed}:{group}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    for split, fraction in fractions.items():
        if position < fraction:
            return split
        position -= fraction
    return "train"


def _rows_in(splits: Sequence[str | None], split: str) -> list[int]:
    return [row for row, name in enumerate(splits) if name == split]
