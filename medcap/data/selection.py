"""Which rows of a data set are used: every one that is left out is counted, with the reason."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as compute
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from numpy.typing import NDArray

from medcap.data.captions import clean_caption
from medcap.data.duplicates import ImageSimilarity, leaked_groups
from medcap.data.image_info import inspect_images
from medcap.data.licenses import allows_commercial_use
from medcap.data.tables import check_ids, some

logger = logging.getLogger(__name__)

FEATURES = Features(
    image_id=Value("string"),
    image=Image(),
    caption=Value("string"),
    cuis=List(Value("string")),
    manual_cuis=List(Value("string")),
    group=Value("string"),
    license=Value("string"),
)
REASONS = (
    "blank", "license", "outside_fraction", "missing", "undecodable", "leaked_image", "leaked_group", "duplicate",
)  # fmt: skip
RANK = {"train": 0, "valid": 1, "test": 2}  # what leaks is left out of the lower split, so that the test stays whole


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted.

    - `fraction` (above 0, at most 1) of train, by a hash of `seed` and id: the same 10 % everywhere, and 10 % is
      inside 20 %. The other splits stay whole, or scores would not compare.
    - `max_broken` (0 to 1): the share of images that may be missing or undecodable before it is an error.
    - `license_filter`: "any", or "commercial" for the images whose licence is known to allow commercial use.
    - `dedupe`: of pictures in one split that are the same or nearly so, only the first.
    - `exclude_leaks`: out of train go pictures, articles and patients that also occur in valid or test, and out of
      valid those that occur in test.

    Raises ValueError for a value outside its range.
    """

    fraction: float = 1.0
    seed: int = 0
    max_broken: float = 0.001
    license_filter: str = "any"
    dedupe: bool = False
    exclude_leaks: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"max_broken is a share, 0 to 1, got {self.max_broken}")
        if self.license_filter not in ("any", "commercial"):
            raise ValueError(f"license_filter is any or commercial, got {self.license_filter!r}")


def select_rows(
    raw: Mapping[str, Dataset], splits: Iterable[str], wanted: Selection, num_proc: int | None = None
) -> DatasetDict:
    """Return the rows of `splits` that are `wanted` and can be used; `drop_counts` tells what became of all others.

    `raw` has the columns of `FEATURES` but for texts that are not cleaned; an image of None is missing. With
    `exclude_leaks` it holds all splits, also those that are not asked for. Images are decoded for `dedupe` and
    `exclude_leaks` alone, by `num_proc` processes. Raises ValueError where nothing or too little is left.
    """
    data = {split: _usable(rows, split, wanted) for split, rows in raw.items()}
    if wanted.dedupe or wanted.exclude_leaks:
        data = _without_repetitions(data, wanted, num_proc)
    return DatasetDict({split: data[split] for split in splits})


def check_images(dataset: Dataset, max_broken: float = 0.001, num_proc: int | None = None) -> Dataset:
    """Return `dataset` without the rows whose image cannot be decoded, each image having been decoded once.

    Up to the share `max_broken` (0 to 1) they are left out with a warning that names them; above it, ValueError.
    `num_proc` processes share the work; a progress bar runs on stderr. What was found is remembered until the file
    changes (see `inspect_images`).
    """
    Selection(max_broken=max_broken)
    prints = inspect_images(dataset, num_proc)
    kept = _without_undecodable(dataset, [one.cause for one in prints], max_broken)
    pictures = hashlib.sha256("".join(one.pixels for one in prints).encode()).hexdigest()[:16]
    kept.info.description = json.dumps({**_described(kept), "images": pictures})
    return kept


def drop_counts(dataset: Dataset) -> dict[str, Any]:
    """Return what became of every row of a split: `read` = `kept` + one number for each of `REASONS`.

    The fields of `Selection` stand beside them. All of it travels as JSON in `dataset.info.description`, so it
    survives select, filter, map and with_transform, and goes on telling what was loaded. Empty for other data.
    """
    return dict(_described(dataset).get("medcap", {}))


def image_fingerprint(dataset: Dataset) -> dict[str, str]:
    """Return {"images": 16 hex digits that name the pixels of all images in order}, as `check_images` found them."""
    described = _described(dataset)
    return {"images": described["images"]} if "images" in described else {}


def _described(dataset: Dataset) -> dict[str, Any]:
    """Return what was noted in `dataset.info.description`; empty where that is somebody else's text."""
    try:
        found = json.loads(dataset.info.description)
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(dataset: Dataset) -> str:
    """Return 16 hex digits that name the ids and captions of a split, whatever their order and place on the disk."""
    texts = dataset.with_format(None).select_columns(["image_id", "caption"])
    digest = hashlib.sha256()
    for row in sorted(zip(texts["image_id"][:], texts["caption"][:], strict=True)):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def _usable(rows: Dataset, split: str, wanted: Selection) -> Dataset:
    """Return the rows with a caption, the licence, in the fraction and with an image; captions are cleaned."""
    ids, fraction = rows["image_id"][:], wanted.fraction if split == "train" else 1.0
    check_ids(ids, split)
    captions = [clean_caption(caption or "") for caption in rows["caption"][:]]  # [:]: by rows it takes seconds
    reasons = np.full(len(ids), "", dtype=object)
    _mark(reasons, "blank", [not caption for caption in captions])
    if wanted.license_filter == "commercial":
        licenses = rows["license"][:]
        if not any(licenses):
            raise ValueError(
                f"license_filter is commercial, but no licence is known of any image of {split}: there is no "
                "license_information.csv, or none of its Attributions names one"
            )
        _mark(reasons, "license", [not allows_commercial_use(name) for name in licenses])
    _mark(reasons, "outside_fraction", [not _in_fraction(image_id, fraction, wanted.seed) for image_id in ids])
    asked = np.sum(reasons == "")
    _mark(reasons, "missing", _missing(rows))
    _tolerate(_ids(ids, reasons, "blank"), len(ids), f"captions of {split} are blank", 1.0)
    _tolerate(_ids(ids, reasons, "missing"), asked, f"images of {split} are missing", wanted.max_broken)
    cleaned = rows.remove_columns("caption").add_column("caption", captions, feature=FEATURES["caption"])
    choices = {**asdict(wanted), "fraction": fraction}
    del choices["max_broken"]  # a limit, and not a choice of rows
    counts = {"read": len(ids), **dict.fromkeys(REASONS, 0), "kept": len(ids), **choices}
    return _left_out(_with_counts(cleaned.select_columns(list(FEATURES)), counts), reasons)


def _missing(rows: Dataset) -> list[bool]:
    """Return (n,) whether there is no image; `rows.data` would not know of rows that were selected or shuffled."""
    found: list[bool] = []
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(1000):
        data, path = (compute.is_null(compute.struct_field(batch["image"], name)) for name in ("bytes", "path"))
        found += compute.and_(data, path).to_pylist()
    return found


def _without_repetitions(data: dict[str, Dataset], wanted: Selection, num_proc: int | None) -> dict[str, Dataset]:
    """Return the splits without what cannot be decoded, leaks and is repeated, as far as it is `wanted`."""
    prints = {split: inspect_images(rows, num_proc) for split, rows in data.items()}
    for split, found in prints.items():
        causes = [one.cause for one in found]
        data[split] = _without_undecodable(data[split], causes, wanted.max_broken)
        prints[split] = [one for one in found if not one.cause]
    rank = np.repeat([RANK[split] for split in data], [len(rows) for rows in data.values()])
    likeness = ImageSimilarity.of([one.phash for found in prints.values() for one in found])
    reasons = np.full(len(rank), "", dtype=object)
    if wanted.exclude_leaks:
        _mark(reasons, "leaked_image", likeness.leaked(rank))
        groups = [group for rows in data.values() for group in rows["group"][:]]
        _mark(reasons, "leaked_group", leaked_groups(groups, rank.tolist()))
    if wanted.dedupe:
        _mark(reasons, "duplicate", likeness.repeated(np.where(reasons == "", rank, -1).tolist()))  # not of leaks
    ends = np.cumsum([len(rows) for rows in data.values()])
    parts = np.split(reasons, ends[:-1])
    return {split: _left_out(rows, part) for (split, rows), part in zip(data.items(), parts, strict=True)}


def _without_undecodable(rows: Dataset, causes: Sequence[str], max_broken: float) -> Dataset:
    reasons = np.where(np.array(causes, dtype=object) != "", "undecodable", "")
    broken = [
        f"{i} ({cause})" for i, cause in zip(rows.with_format(None)["image_id"][:], causes, strict=True) if cause
    ]
    _tolerate(broken, len(rows), f"images of {rows.split or 'the data set'} cannot be decoded", max_broken)
    return _left_out(rows, reasons)


def _mark(reasons: NDArray[np.object_], reason: str, rows: Any) -> None:
    """Write `reason` at the `rows` (n,) that are true and have no other reason yet."""
    reasons[(reasons == "") & np.asarray(rows, dtype=bool)] = reason


def _ids(ids: Sequence[str], reasons: NDArray[np.object_], reason: str) -> list[str]:
    return [image_id for image_id, why in zip(ids, reasons, strict=True) if why == reason]


def _left_out(rows: Dataset, reasons: NDArray[np.object_]) -> Dataset:
    """Return the rows without a reason; those with one are counted under it. Raises ValueError when none is left."""
    counts, found = drop_counts(rows), Counter(reasons[reasons != ""].tolist())
    if counts:
        counts.update({reason: counts[reason] + n for reason, n in found.items()}, kept=counts["kept"] - found.total())
    kept = np.flatnonzero(reasons == "")
    if not len(kept):
        why = ", ".join(f"{n} {reason}" for reason, n in (counts or found).items() if reason in REASONS and n)
        raise ValueError(f"nothing is left of the {len(rows)} rows of {rows.split or 'the data set'}: {why}")
    return _with_counts(rows.select(kept), counts) if counts else rows.select(kept)


def _with_counts(rows: Dataset, counts: Mapping[str, Any]) -> Dataset:
    rows.info.description = json.dumps({"medcap": counts})
    return rows


def _in_fraction(image_id: str, fraction: float, seed: int) -> bool:
    """Whether the 64-bit hash of seed and id lies in the first `fraction` of its range."""
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _tolerate(bad: list[str], n: int, what: str, limit: float) -> None:
    """Warn of the rows `bad` among `n` that are left out; raise when they are more than the share `limit`."""
    line = f"{len(bad)} of {n} {what}: {some(bad)}"
    if len(bad) > limit * n:
        raise ValueError(f"{line}. At most {limit:.2%} may be (max_broken)")
    if bad:
        logger.warning("%s. Left out", line)
