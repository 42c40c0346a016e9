"""ROCOv2 (Zenodo record 10821435, or its mirror on the Hub) as a `datasets.DatasetDict`, with no image decoded."""

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, NamedSplit, Value, load_dataset
from datasets.exceptions import DatasetBuildError

from medcap.data.captions import clean_caption
from medcap.data.images import index_images, load_image

logger = logging.getLogger(__name__)

FEATURES = Features(image_id=Value("string"), image=Image(), caption=Value("string"), cuis=List(Value("string")))
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_UNFIT_ID = re.compile(r"[/\\]|::|^$")  # an id is part of file names, and of zip:// URLs whose parts :: separates


def load_rocov2(
    path_or_hub_id: str | os.PathLike[str],
    fraction: float = 1.0,
    seed: int = 0,
    splits: Sequence[str] = ("train", "valid", "test"),
    max_broken: float = 0.001,
) -> DatasetDict:
    """Return the splits with columns `image_id`, `image` (datasets.Image), `caption` (cleaned) and `cuis` (list).

    `path_or_hub_id` is a folder in Zenodo's layout: `{split}_captions.csv`, `{split}_concepts.csv` (may be absent),
    and the images in `{split}_images.zip`, read in place, or in `{split}_images/{split}/`, `{split}_images/` or
    `{split}/` (the first of these that holds images; valid may be called validation). Or it is a folder of parquet
    files, or a data set on the Hub, with the columns `image_id`, `image`, `caption`, `cui`.

    `fraction` (above 0, at most 1) of train is kept, by a hash of seed and id: the same 10 % everywhere, and 10 % is
    inside 20 %. The other splits stay whole, or scores would not compare. Rows with a blank caption are left out with
    a warning; so are rows whose image is missing, up to the share `max_broken` (0 to 1) of those asked for. Nothing is
    replaced, and `drop_counts` tells what became of every row. Whether images can be decoded: `check_images`.

    `dataset[i]["image"]` is decoded by `datasets`, which reopens the zip each time; training and everything that reads
    many images uses `with_pixel_values` or `load_image` (medcap.data.images).

    Raises FileNotFoundError where there is no such data, and ValueError for what is wrong in it: a split or a column
    that it lacks, ids twice or with a slash, too many images missing.
    """
    if isinstance(splits, str):
        raise ValueError(f"splits must be a list of names, got {splits!r}: write [{splits!r}]")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    _check_limit(max_broken)
    splits = ["valid" if split == "validation" else split for split in splits]
    folder = Path(path_or_hub_id).expanduser()
    is_zenodo = folder.is_dir() and any(folder.glob("*_captions.csv"))
    name = str(folder if folder.exists() else path_or_hub_id)
    raw = _read_folder(folder, splits) if is_zenodo else _read_parquet_or_hub(name, splits)
    return DatasetDict(
        {split: _tidy(raw[split], split, fraction if split == "train" else 1.0, seed, max_broken) for split in splits}
    )


def read_column(path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """Return {id: cell} of a CSV with the columns `ID` and `column`, uncleaned and in file order.

    UTF-8 with or without a BOM, any line ends. Raises ValueError with file and cause: other columns, an id twice or
    blank, a row with surplus cells (a caption whose comma was not quoted), a broken quote, another encoding.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or [], ["ID", column], path)
            rows = [(row["ID"], row[column] or "", None in row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8 ({error})") from error
    surplus = [image_id for image_id, _, is_surplus in rows if is_surplus]
    if surplus:
        raise ValueError(f"{path}: more cells than the header has in the rows of {_some(surplus)}; quote the captions")
    _check_ids([image_id for image_id, _, _ in rows], path)
    return {image_id: cell for image_id, cell, _ in rows}


def check_images(dataset: Dataset, max_broken: float = 0.001, num_proc: int | None = None) -> Dataset:
    """Return `dataset` without the rows whose image cannot be decoded, each image having been decoded once.

    Up to the share `max_broken` (0 to 1) they are left out with a warning that names them; above it, ValueError.
    `num_proc` processes share the work; a progress bar runs on stderr. Where the images lie in the data itself (the
    Hub's parquet files) `datasets` remembers what was found; files and zips, which may change, are decoded each time.
    """
    _check_limit(max_broken)
    name = dataset.split or "the data set"
    plain = dataset.with_format(None)
    undecoded = plain.select_columns(["image"]).cast_column("image", Image(decode=False))
    causes = undecoded.map(
        _cause_of_failure,
        input_columns=["image"],
        remove_columns=["image"],
        features=Features(cause=Value("string")),
        num_proc=num_proc,
        desc=f"Decoding every image of {name}",
    )["cause"][:]
    ids = plain["image_id"][:]
    broken = [f"{image_id} ({cause})" for image_id, cause in zip(ids, causes, strict=True) if cause]
    _tolerate(broken, len(dataset), f"images of {name} cannot be decoded", max_broken)
    kept = dataset.select([i for i, cause in enumerate(causes) if not cause])
    counts = drop_counts(dataset)
    if not counts:
        return kept
    moved = {"undecodable": counts["undecodable"] + len(broken), "kept": counts["kept"] - len(broken)}
    return _with_counts(kept, {**counts, **moved})


def drop_counts(dataset: Dataset) -> dict[str, int | float]:
    """Return what became of every row of a split: read = blank + outside_fraction + missing + undecodable + kept.

    `fraction` and `seed` stand beside them. The numbers travel as JSON in `dataset.info.description`, so they survive
    select, filter, map and with_transform, and go on telling what was loaded. Empty for other data.
    """
    try:
        return dict(json.loads(dataset.info.description)["medcap"])
    except (ValueError, KeyError, TypeError):
        return {}


def fingerprint(dataset: Dataset) -> str:
    """Return 16 hex digits that name the ids and captions of a split, whatever their order and place on the disk."""
    texts = dataset.with_format(None).select_columns(["image_id", "caption"])
    digest = hashlib.sha256()
    for row in sorted(zip(texts["image_id"][:], texts["caption"][:], strict=True)):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def _read_folder(folder: Path, splits: Iterable[str]) -> dict[str, Dataset]:
    """Return the rows of Zenodo's layout; an image is a path or a zip:// URL, None where there is none."""
    data = {}
    for split in splits:
        captions = read_column(_find(folder, split, "captions.csv", required=True)[0], "Caption")
        concepts = [read_column(path, "CUIs") for path in _find(folder, split, "concepts.csv")]
        images = _find_images(folder, split)
        rows = {
            "image_id": list(captions),
            "image": [images.get(image_id) for image_id in captions],
            "caption": list(captions.values()),
            "cuis": [_cuis(concepts[0].get(image_id) if concepts else None) for image_id in captions],
        }
        data[split] = Dataset.from_dict(rows, features=FEATURES, split=NamedSplit(split))
    return data


def _read_parquet_or_hub(name: str, splits: Iterable[str]) -> dict[str, Dataset]:
    """Return the rows of a data set as the Hub's mirror has it (columns image, image_id, caption, cui)."""
    nothing = (
        f"no ROCOv2 at {name!r}: looked for a folder with train_captions.csv (as in Zenodo record 10821435) or "
        "parquet files, and for a data set NAMESPACE/NAME on the Hub; `medcap data phantom --out DIR` makes one"
    )
    path = Path(name)  # data/rocov2 where data/ exists is a path that is wrong, and not worth asking the Hub for
    if not (any(path.rglob("*.parquet")) if path.exists() else _HUB_ID.fullmatch(name) and not path.parent.is_dir()):
        raise FileNotFoundError(nothing)
    try:
        found = load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{nothing} ({' '.join(str(error).split())})") from error
    except (DatasetBuildError, ValueError) as error:  # ValueError: pyarrow's, without the name
        raise ValueError(f"{name}: {' '.join(str(error.__cause__ or error).split())}") from error
    data = {"valid" if split == "validation" else split: rows for split, rows in found.items()}
    lacking = [split for split in splits if split not in data]
    if lacking:
        raise ValueError(f"no split {lacking[0]!r} in {name}: it has {', '.join(data)}")
    return {split: _with_our_columns(data[split], f"{name}, split {split}") for split in splits}


def _with_our_columns(rows: Dataset, where: str) -> Dataset:
    """Return rows of the Hub's mirror under our names; the texts are rewritten, the images stay where they are."""
    _check_columns(rows.column_names, ["image_id", "image", "caption"], where)
    cuis = next((rows[name][:] for name in ("cui", "cuis") if name in rows.column_names), [None] * len(rows))
    return (
        rows.select_columns(["image"])
        .cast_column("image", Image())
        .add_column("image_id", [str(image_id) for image_id in rows["image_id"]], feature=FEATURES["image_id"])
        .add_column("caption", rows["caption"][:], feature=FEATURES["caption"])
        .add_column("cuis", [_cuis(value) for value in cuis], feature=FEATURES["cuis"])
    )


def _tidy(rows: Dataset, split: str, fraction: float, seed: int, max_broken: float) -> Dataset:
    """Return the rows that are asked for and can be used, with the counts of all others."""
    ids = rows["image_id"][:]
    captions = [clean_caption(caption or "") for caption in rows["caption"]]
    has_image = rows.data["image"].is_valid().to_pylist()
    _check_ids(ids, split)
    blank = [image_id for image_id, caption in zip(ids, captions, strict=True) if not caption]
    _tolerate(blank, len(ids), f"captions of {split} are blank", 1.0)
    asked = [i for i, image_id in enumerate(ids) if captions[i] and _in_fraction(image_id, fraction, seed)]
    if not asked:
        raise ValueError(
            f"fraction {fraction:g} keeps none of the {len(ids)} rows of {split}, {len(blank)} of them blank"
        )
    missing = [ids[i] for i in asked if not has_image[i]]
    _tolerate(missing, len(asked), f"images of {split} are missing", max_broken)
    kept = [i for i in asked if has_image[i]]
    cleaned = rows.remove_columns("caption").add_column("caption", captions, feature=FEATURES["caption"])
    counts = {
        "read": len(ids),
        "blank": len(blank),
        "outside_fraction": len(ids) - len(blank) - len(asked),
        "missing": len(missing),
        "undecodable": 0,
        "kept": len(kept),
        "fraction": fraction,
        "seed": seed,
    }
    return _with_counts(cleaned.select_columns(list(FEATURES)).select(kept), counts)


def _with_counts(dataset: Dataset, counts: Mapping[str, int | float]) -> Dataset:
    dataset.info.description = json.dumps({"medcap": counts})
    return dataset


def _in_fraction(image_id: str, fraction: float, seed: int) -> bool:
    """Whether the 64-bit hash of seed and id lies in the first `fraction` of its range."""
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _find(folder: Path, split: str, ending: str, required: bool = False) -> list[Path]:
    """Return the files `{split}_{ending}` in `folder`, at most two: valid may be called validation."""
    paths = [folder / f"{name}_{ending}" for name in _names(split)]
    found = [path for path in paths if path.is_file()]
    if required and not found:
        splits = sorted(path.name.removesuffix("_captions.csv") for path in folder.glob("*_captions.csv"))
        raise ValueError(f"no split {split!r}: {paths[0]} is not there; splits found: {', '.join(splits)}")
    return found


def _find_images(folder: Path, split: str) -> dict[str, str]:
    """Return {id: absolute path or zip:// URL} from one table of contents or directory listing; no file is opened."""
    for name in _names(split):
        archive = folder / f"{name}_images.zip"
        if archive.is_file():
            return index_images(archive)
        for place in (folder / f"{name}_images" / name, folder / f"{name}_images", folder / name):
            if place.is_dir() and (images := index_images(place)):
                return images
    raise ValueError(
        f"no images of split {split!r} in {folder}: looked for {split}_images.zip, {split}_images/{split}/, "
        f"{split}_images/ and {split}/"
    )


def _names(split: str) -> tuple[str, ...]:
    return ("valid", "validation") if split == "valid" else (split,)


def _cuis(value: str | list[str] | None) -> list[str]:
    """Return the concepts of a cell `C1;C2` or of a list; blank cells are empty lists."""
    parts = value.split(";") if isinstance(value, str) else value or []
    return [part.strip() for part in parts if part.strip()]


def _cause_of_failure(entry: Any) -> dict[str, str]:
    try:
        load_image(entry)
    except ValueError as error:
        return {"cause": str(error)}
    return {"cause": ""}


def _tolerate(bad: list[str], n: int, what: str, limit: float) -> None:
    """Warn of the rows `bad` among `n` that are left out; raise when they are more than the share `limit`."""
    line = f"{len(bad)} of {n} {what}: {_some(bad)}"
    if len(bad) > limit * n:
        raise ValueError(f"{line}. At most {limit:.2%} may be (max_broken)")
    if bad:
        logger.warning("%s. Left out", line)


def _check_limit(max_broken: float) -> None:
    if not 0 <= max_broken <= 1:
        raise ValueError(f"max_broken is a share, 0 to 1, got {max_broken}")


def _check_columns(found: Sequence[str], needed: Sequence[str], where: object) -> None:
    if not set(needed) <= set(found):
        raise ValueError(f"{where}: needs the columns {', '.join(needed)}, has {', '.join(found) or 'none'}")


def _check_ids(ids: Sequence[str], where: object) -> None:
    unfit = [image_id or "(blank)" for image_id in ids if _UNFIT_ID.search(image_id or "")]
    if unfit:
        raise ValueError(f"{where}: ids that are blank or hold a slash or '::' cannot name files: {_some(unfit)}")
    twice = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"{where}: ids that occur more than once: {_some(twice)}")


def _some(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
