"""How a data set is laid out, and how it is split where it is not split yet."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from datasets import Dataset

from medcap.data.tables import list_some

logger = logging.getLogger(__name__)

LayoutName = Literal["auto", "rocov2", "imagefolder", "csv", "hub"]
Rows = TypeVar("Rows", dict[str, list[Any]], Dataset)
SPLIT_NAMES = "train; valid, validation, val or dev; test"
_SPLIT_OF = {"train": "train", "test": "test", **dict.fromkeys(("valid", "validation", "val", "dev"), "valid")}


@dataclass(frozen=True)
class DataLayout:
    """How a data set is laid out, and how it is split where it is not split yet.

    - `data_format`: "auto" (as found), "rocov2", "imagefolder", "csv" or "hub".
    - `image_column`, `caption_column`: where paths and captions stand; "file_name" (hub: "image") and "caption" when
      None. `group_column`: the patient or study; no group is in two of the splits created here.
    - `valid_fraction`, `test_fraction`: fractions of the groups, 0 to 1 and below 1 in sum, by a hash of `split_seed`
      and group: a row keeps its split when others are added or removed.

    ROCOv2's layout has columns and splits of its own: there all but `data_format` goes unused. Raises ValueError for
    a value outside its range.
    """

    data_format: LayoutName = "auto"
    image_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.data_format not in get_args(LayoutName):
            raise ValueError(f"data_format is {self.data_format!r}; allowed are {', '.join(get_args(LayoutName))}")
        for key in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; allowed is 0 to below 1")
        if not self.valid_fraction + self.test_fraction < 1:
            both = f"{self.valid_fraction} and {self.test_fraction}"
            raise ValueError(f"valid_fraction and test_fraction are {both}, and must leave something to train")


def split_of(name: str) -> str | None:
    """Return train, valid or test for a name that Hugging Face's convention has for them, None for any other."""
    return _SPLIT_OF.get(name.strip().lower())


def rows_by_split(told: Sequence[str], where: object) -> dict[str, list[int]]:
    """Return {split: row numbers} of a column of split names; all rows are train where it is blank throughout.

    Raises ValueError, naming `where`, for a name that `split_of` does not know, and for a blank one among others.
    """
    if not any(name.strip() for name in told):
        return {"train": list(range(len(told)))}
    unknown = [name or "(blank)" for name in dict.fromkeys(told) if split_of(name) is None]
    if unknown:
        said = f"the splits of the rows must be called {SPLIT_NAMES}, and some are {list_some(unknown)}"
        raise ValueError(f"{where}: {said}; a column split with these names in every row settles it")
    splits = [split_of(name) for name in told]
    return {split: _where(splits, split) for split in dict.fromkeys(_SPLIT_OF.values()) if split in splits}


def complete_splits(
    given: dict[str, Rows], take: Callable[[Rows, list[int]], Rows], layout: DataLayout, where: str
) -> dict[str, Rows]:
    """Return `given` with the validation split, and test beside it, taken out of train where there is no valid.

    Rows have the columns `image_id` and `group`; `take` selects them by number. What is made is said in one line. A
    test split alone is not made: who gave train and valid has decided which images are for what.
    """
    if "train" not in given or "valid" in given:
        return given
    train = given["train"]
    shares: dict[str, float] = {"test": layout.test_fraction, "valid": layout.valid_fraction}
    if "test" in given:
        del shares["test"]
    groups = [group or image_id for group, image_id in zip(train["group"], train["image_id"], strict=True)]
    splits = [_split(group, shares, layout.split_seed) for group in groups]
    made = {split: numbers for split in ("train", *shares) if (numbers := _where(splits, split))}
    counts = ", ".join(f"{len(numbers)} {split}" for split, numbers in made.items())
    logger.warning("%s: %d rows are split into %s, by %s", where, len(splits), counts, _by(layout, train["group"]))
    return {**given, **{split: take(train, numbers) for split, numbers in made.items()}}


def _by(layout: DataLayout, groups: Sequence[str | None]) -> str:
    if layout.group_column is None:
        return "image: those of one patient may be in several splits; name the patients with group_column"
    unknown = sum(group is None for group in groups)
    return layout.group_column + (f"; {unknown} rows without one are split by image" if unknown else "")


def _split(group: str, shares: Mapping[str, float], seed: int) -> str:
    """Return the split by the 64-bit hash of seed and group: valid and test take their fractions, train the rest.

    "split" stands before them, or train would be just the rows that a small train_fraction leaves out.
    """
    digest = hashlib.blake2b(f"split:{seed}:{group}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _where(splits: Sequence[str | None], split: str) -> list[int]:
    return [row for row, name in enumerate(splits) if name == split]
