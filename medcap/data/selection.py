"""Select the rows of a data set that are used, and count every excluded row with the reason."""

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
from datasets import Dataset, DatasetDict, Features, Image, List, NamedSplit, Value, concatenate_datasets
from numpy.typing import NDArray

from medcap.data.captions import clean_caption
from medcap.data.duplicates import ImageSimilarity, leaked_groups
from medcap.data.image_info import inspect_images
from medcap.data.licenses import allows_commercial_use
from medcap.data.sources import SOURCE, rows_by_source
from medcap.data.tables import check_ids, list_some

logger = logging.getLogger(__name__)

FEATURES = Features(
    image_id=Value("string"),
    image=Image(decode=False),  # only `load_image` opens a file: `datasets` would pass it to any plugin of Pillow
    caption=Value("string"),
    cuis=List(Value("string")),
    manual_cuis=List(Value("string")),
    group=Value("string"),
    license=Value("string"),
)
REASONS = (
    "blank", "license", "outside_fraction", "missing", "undecodable", "leaked_image", "leaked_group", "duplicate",
)  # fmt: skip
RANK = {"train": 0, "valid": 1, "test": 2}  # leaks are removed from the lower split, so that test stays complete


@dataclass(frozen=True)
class Selection:
    """Which rows of a data set to use.

    Attributes:
        fraction: of train, above 0 and at most 1, by a hash of `seed` and id: the same rows on every machine, and a
            smaller fraction is a subset of a larger one. The other splits stay complete, so that scores compare.
        seed: of the hash.
        max_broken: the largest fraction of images (0 to 1) that may be missing or undecodable; above, an error.
        license_filter: "any", or "commercial" for images whose license is known to allow commercial use.
        dedupe: keep only the first of duplicate and near-duplicate images within a split.
        exclude_leaks: drop images, articles and patients from train that also occur in valid or test, and from valid
            those that occur in test.

    Raises:
        ValueError: for a value out of range.
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
            raise ValueError(f"max_broken must be 0 to 1, got {self.max_broken}")
        if self.license_filter not in ("any", "commercial"):
            raise ValueError(f"license_filter must be any or commercial, got {self.license_filter!r}")


def select_rows(
    raw: Mapping[str, Dataset], splits: Iterable[str], selection: Selection, num_proc: int | None = None
) -> DatasetDict:
    """Return the usable rows of `splits` that `selection` selects; `drop_counts` reports all others.

    Images are decoded for `dedupe` and `exclude_leaks` only.

    Args:
        raw: {split: rows} with the columns of `FEATURES`, captions not cleaned, None for a missing image. With
            `exclude_leaks` it must contain all splits of the data set.
        splits: the splits to return.
        selection: which rows to use.
        num_proc: number of processes that decode images; None: one per core.

    Raises:
        ValueError: too many images are missing or broken, or no row is left.
    """
    data = {split: _usable_sources(rows, split, selection) for split, rows in raw.items()}
    if selection.dedupe or selection.exclude_leaks:
        data = _without_duplicates(data, selection, num_proc)
    return DatasetDict({split: data[split] for split in splits})


def check_images(dataset: Dataset, max_broken: float = 0.001, num_proc: int | None = None) -> Dataset:
    """Return `dataset` without the rows whose image cannot be decoded; every image is decoded once.

    Results are cached until a file changes (see `inspect_images`).

    Args:
        dataset: rows with the columns "image_id" and "image".
        max_broken: fraction of undecodable images (0 to 1) up to which they are dropped with a warning.
        num_proc: number of processes; None: one per core.

    Raises:
        ValueError: more than `max_broken` of the images cannot be decoded, or no row is left.
    """
    Selection(max_broken=max_broken)
    infos = inspect_images(dataset, num_proc)
    kept = _without_undecodable(dataset, [info.error for info in infos], max_broken)
    digest = hashlib.sha256("".join(info.pixel_digest for info in infos).encode()).hexdigest()[:16]
    kept.info.description = json.dumps({**_description(kept), "images": digest})
    return kept


def drop_counts(dataset: Dataset) -> dict[str, Any]:
    """Return how many rows of a split were read, kept and dropped: `read` = `kept` + a number for each of `REASONS`.

    The fields of `Selection` are included. It is stored as JSON in `dataset.info.description`, so it survives select,
    filter, map and with_transform, which do not update it. Empty for other data sets.
    """
    return dict(_description(dataset).get("medcap", {}))


def image_fingerprint(dataset: Dataset) -> dict[str, str]:
    """Return {"images": 16 hex digits that identify the pixels of all images}; empty before `check_images`."""
    description = _description(dataset)
    return {"images": description["images"]} if "images" in description else {}


def _description(dataset: Dataset) -> dict[str, Any]:
    """Return the JSON in `dataset.info.description`; empty when it contains any other text."""
    try:
        content = json.loads(dataset.info.description)
    except (ValueError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


def fingerprint(dataset: Dataset) -> str:
    """Return 16 hex digits that identify the ids and captions of a split, independent of order and location."""
    texts = dataset.with_format(None).select_columns(["image_id", "caption"])
    digest = hashlib.sha256()
    for row in sorted(zip(texts["image_id"][:], texts["caption"][:], strict=True)):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def sample_rows(rows: Dataset, n: int | None) -> Dataset:
    """Return the `n` rows with the lowest hashes of their ids, in their order; all rows for None or a larger `n`.

    Which rows these are does not depend on the order of the rows, and changes little when rows are added.
    """
    if n is None or n >= len(rows):
        return rows
    hashes = [_hash(f"sample:{image_id}") for image_id in rows.with_format(None)["image_id"][:]]
    return rows.select(np.sort(np.argsort(np.array(hashes, np.uint64))[:n]))


def _usable_sources(rows: Dataset, split: str, selection: Selection) -> Dataset:
    """Return the usable rows of each source; `max_broken` limits those that are missing in each of them."""
    fraction, sources = selection.fraction if split == "train" else 1.0, rows_by_source(rows)
    parts = [
        _usable_rows(
            rows.select(numbers) if source else rows, f"{split} of {source}" if source else split, fraction, selection
        )
        for source, numbers in sources.items()
    ]
    if len(parts) == 1:
        return parts[0]
    counts = [drop_counts(part) for part in parts]
    total = {name: sum(count[name] for count in counts) for name in ("read", "kept", *REASONS)}
    return _with_counts(concatenate_datasets(parts, split=NamedSplit(split)), {**counts[0], **total})


def _usable_rows(rows: Dataset, split: str, fraction: float, selection: Selection) -> Dataset:
    """Return the rows with a caption, an allowed license and an image, within the fraction; captions are cleaned."""
    ids = rows["image_id"][:]
    check_ids(ids, split)
    captions = [clean_caption(caption or "") for caption in rows["caption"][:]]  # [:]: row by row takes seconds
    reasons = np.full(len(ids), "", dtype=object)
    _mark(reasons, "blank", [not caption for caption in captions])
    if selection.license_filter == "commercial":
        licenses = rows["license"][:]
        if not any(licenses):
            raise ValueError(
                f"license_filter is commercial, but no license of an image of {split} is known: "
                "license_information.csv is missing or has no licenses"
            )
        _mark(reasons, "license", [not allows_commercial_use(name) for name in licenses])
    _mark(reasons, "outside_fraction", [not _in_fraction(image_id, fraction, selection.seed) for image_id in ids])
    selected = np.sum(reasons == "")
    _mark(reasons, "missing", _missing(rows))
    blank, missing = (np.array(ids, object)[reasons == reason].tolist() for reason in ("blank", "missing"))
    _check_dropped(blank, len(ids), f"captions of {split} are blank", 1.0)
    _check_dropped(missing, selected, f"images of {split} are missing", selection.max_broken)
    cleaned = rows.remove_columns("caption").add_column("caption", captions, feature=FEATURES["caption"])
    options = {**asdict(selection), "fraction": fraction}
    del options["max_broken"]  # a limit, not a criterion
    counts = {"read": len(ids), **dict.fromkeys(REASONS, 0), "kept": len(ids), **options}
    return _drop(
        _with_counts(
            cleaned.select_columns([name for name in (*FEATURES, SOURCE) if name in cleaned.column_names]), counts
        ),
        reasons,
    )


def _missing(rows: Dataset) -> list[bool]:
    """Return (n,) whether the image is missing; `rows.data` would ignore a selection or a shuffle of the rows."""
    missing: list[bool] = []
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(1000):
        data, path = (compute.is_null(compute.struct_field(batch["image"], name)) for name in ("bytes", "path"))
        missing += compute.and_(data, path).to_pylist()
    return missing


def _without_duplicates(data: dict[str, Dataset], selection: Selection, num_proc: int | None) -> dict[str, Dataset]:
    """Return the splits without undecodable images and, as selected, without leaks and duplicates."""
    infos = {split: inspect_images(rows, num_proc, perceptual_hash=True) for split, rows in data.items()}
    data = {
        split: _without_undecodable(rows, [info.error for info in infos[split]], selection.max_broken)
        for split, rows in data.items()
    }
    rank = np.repeat([RANK[split] for split in data], [len(rows) for rows in data.values()])
    decoded = [info for split in data for info in infos[split] if not info.error]
    groups = [group for rows in data.values() for group in rows["group"][:]]
    similarity = ImageSimilarity.of([info.phash for info in decoded], [info.pixel_digest for info in decoded], groups)
    reasons = np.full(len(rank), "", dtype=object)
    if selection.exclude_leaks:
        _mark(reasons, "leaked_image", similarity.leaked(rank))
        _mark(reasons, "leaked_group", leaked_groups(groups, rank.tolist()))
    if selection.dedupe:  # -1 for leaks: a row that is only similar to a leak is not a duplicate
        _mark(reasons, "duplicate", similarity.duplicates(np.where(reasons == "", rank, -1).tolist()))
    return {split: _drop(rows, reasons[rank == RANK[split]]) for split, rows in data.items()}


def _without_undecodable(rows: Dataset, errors: Sequence[str], max_broken: float) -> Dataset:
    reasons = np.where(np.array(errors, dtype=object) != "", "undecodable", "")
    ids = rows.with_format(None)["image_id"][:]
    broken = [f"{image_id} ({error})" for image_id, error in zip(ids, errors, strict=True) if error]
    _check_dropped(broken, len(rows), f"images of {rows.split or 'the data set'} cannot be decoded", max_broken)
    return _drop(rows, reasons)


def _mark(reasons: NDArray[np.object_], reason: str, rows: Sequence[bool] | NDArray[np.bool_]) -> None:
    """Write `reason` at the `rows` (n,) that are true and have no other reason yet."""
    reasons[(reasons == "") & np.asarray(rows, dtype=bool)] = reason


def _drop(rows: Dataset, reasons: NDArray[np.object_]) -> Dataset:
    """Return the rows without a reason and update the counts. Raises ValueError when no row is left."""
    counts, new = drop_counts(rows), Counter(reasons[reasons != ""].tolist())
    if counts:
        counts.update({reason: counts[reason] + n for reason, n in new.items()}, kept=counts["kept"] - new.total())
    kept = np.flatnonzero(reasons == "")
    if not len(kept):
        dropped = ", ".join(f"{n} {reason}" for reason, n in (counts or new).items() if reason in REASONS and n)
        name = rows.split or "the data set"
        raise ValueError(f"no rows left: all {len(rows)} rows of {name} were dropped: {dropped}")
    return _with_counts(rows.select(kept), counts)


def _with_counts(rows: Dataset, counts: Mapping[str, Any]) -> Dataset:
    if counts:
        rows.info.description = json.dumps({"medcap": counts})
    return rows


def _in_fraction(image_id: str, fraction: float, seed: int) -> bool:
    """Return whether the 64-bit hash of seed and id is in the first `fraction` of its range."""
    return _hash(f"{seed}:{image_id}") < fraction * 2**64


def _hash(text: str) -> int:
    """Return a hash of 64 bits that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _check_dropped(dropped: list[str], n: int, what: str, limit: float) -> None:
    """Warn about the `dropped` rows among `n`; raise ValueError when they are more than the fraction `limit`."""
    line = f"{len(dropped)} of {n} {what}: {list_some(dropped)}"
    if len(dropped) > limit * n:
        raise ValueError(f"{line}. At most {limit:.2%} are allowed (max_broken)")
    if dropped:
        logger.warning("%s. They are dropped", line)
