"""ROCOv2 (Zenodo record 10821435, or its mirror on the Hub) as a `datasets.DatasetDict`, with no image decoded."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, NamedSplit, load_dataset
from datasets.exceptions import DatasetBuildError

from medcap.data.concepts import split_cuis
from medcap.data.dicom import register_dicom
from medcap.data.images import index_images
from medcap.data.licenses import Source, read_sources
from medcap.data.selection import FEATURES, Selection, select_rows
from medcap.data.tables import check_columns, read_column
from medcap.logs import error_line

SPLITS = ("train", "valid", "test")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_rocov2(
    path_or_hub_id: str | os.PathLike[str],
    fraction: float = 1.0,
    seed: int = 0,
    splits: Sequence[str] = SPLITS,
    max_broken: float = 0.001,
    license_filter: str = "any",
    dedupe: bool = False,
    exclude_leaks: bool = False,
    num_proc: int | None = None,
) -> DatasetDict:
    """Return the splits with the columns of `medcap.data.selection.FEATURES`.

    These are `image_id`, `image` (datasets.Image), `caption` (cleaned), `cuis` (list; `manual_cuis`: those that were
    curated by hand), `group` (article, patient or case) and `license`, None where they are not known.

    `path_or_hub_id` is a folder in Zenodo's layout: `{split}_captions.csv`, `{split}_concepts.csv`,
    `{split}_concepts_manual.csv` and `license_information.csv` (these three may be absent), and the images in
    `{split}_images.zip`, read in place, or in `{split}_images/{split}/`, `{split}_images/` or `{split}/` (the first of
    these that holds images; valid may be called validation). Or it is a folder of parquet files, or a data set on the
    Hub, with the columns `image_id`, `image`, `caption`, `cui`; there no source or licence of an image is known.

    `fraction`, `seed`, `max_broken`, `license_filter`, `dedupe` and `exclude_leaks` are those of
    `medcap.data.selection.Selection`. Rows with a blank caption are left out with a warning; so are rows whose image
    is missing. Nothing is replaced, and `drop_counts` tells what became of every row. No image is decoded, but for
    `dedupe` and `exclude_leaks` (by `num_proc` processes; None: one a core). Whether they can be: `check_images`.

    `dataset[i]["image"]` is decoded by `datasets`, which reopens the zip each time; training and everything that reads
    many images uses `with_pixel_values` or `load_image` (medcap.data.images).

    Raises FileNotFoundError where there is no such data, and ValueError for what is wrong in it: a split or a column
    that it lacks, ids twice or with a slash, too many images missing; no licences known that could be filtered.
    """
    if isinstance(splits, str):
        raise ValueError(f"splits must be a list of names, got {splits!r}: write [{splits!r}]")
    selection = Selection(fraction, seed, max_broken, license_filter, dedupe, exclude_leaks)
    splits = ["valid" if split == "validation" else split for split in splits]
    raw = read_rocov2(path_or_hub_id, splits, others_too=exclude_leaks)
    return select_rows(raw, splits, selection, num_proc)


def read_rocov2(
    path_or_hub_id: str | os.PathLike[str], splits: Sequence[str] = (), others_too: bool = True
) -> dict[str, Dataset]:
    """Return the raw rows of `splits`, and with `others_too` also of whatever else of train, valid and test there is.

    Columns as `FEATURES`, texts as they are, None for an image that is not there: of the others, all may be missing.
    Raises as `load_rocov2`.
    """
    register_dicom()  # `datasets` decodes with Pillow
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir() and any(folder.glob("*_captions.csv")):
        others = [split for split in SPLITS if others_too and _find(folder, split, "captions.csv")]
        return {split: _read_split(folder, split, split in splits) for split in dict.fromkeys([*splits, *others])}
    return _read_parquet_or_hub(str(folder if folder.exists() else path_or_hub_id), splits, others_too)


def _read_split(folder: Path, split: str, with_images: bool) -> Dataset:
    """Return the rows of a split in Zenodo's layout; an image is a path or a zip:// URL."""
    captions = read_column(_find(folder, split, "captions.csv", required=True)[0], "Caption")
    images = _find_images(folder, split, with_images)
    sources = read_sources(folder)
    found = [sources.get(image_id, Source()) for image_id in captions]
    columns = {
        "image_id": list(captions),
        "image": [images.get(image_id) for image_id in captions],
        "caption": list(captions.values()),
        "cuis": _concepts(folder, split, "concepts.csv", captions),
        "manual_cuis": _concepts(folder, split, "concepts_manual.csv", captions),
        "group": [source.group for source in found],
        "license": [source.license for source in found],
    }
    return Dataset.from_dict(columns, features=FEATURES, split=NamedSplit(split))


def _concepts(folder: Path, split: str, ending: str, ids: Iterable[str]) -> list[list[str]]:
    files = _find(folder, split, ending)
    cells = read_column(files[0], "CUIs") if files else {}
    return [split_cuis(cells.get(image_id)) for image_id in ids]


def _read_parquet_or_hub(name: str, splits: Sequence[str], others_too: bool) -> dict[str, Dataset]:
    """Return the rows of a data set as the Hub's mirror has it (columns image, image_id, caption, cui)."""
    nothing = (
        f"no ROCOv2 at {name!r}: looked for a folder with train_captions.csv (as in Zenodo record 10821435) or "
        "parquet files, and for a data set NAMESPACE/NAME on the Hub; `medcap data phantom --out DIR` makes one"
    )
    found = open_data_set(name, nothing)
    data = {"valid" if split == "validation" else split: rows for split, rows in found.items()}
    lacking = [split for split in splits if split not in data]
    if lacking:
        raise ValueError(f"no split {lacking[0]!r} in {name}: it has {', '.join(data)}")
    others = [split for split in SPLITS if others_too and split in data]
    chosen = dict.fromkeys([*splits, *others])
    return {split: _with_our_columns(data[split], f"{name}, split {split}") for split in chosen}


def open_data_set(name: str, nothing: str) -> DatasetDict:
    """Return the splits, as they are called there, of a folder of parquet files or of a data set on the Hub.

    Raises FileNotFoundError `nothing` where neither is, and ValueError with the name for what cannot be read.
    """
    path = Path(name)  # data/rocov2 where data/ exists is a path that is wrong, and not worth asking the Hub for
    if not (any(path.rglob("*.parquet")) if path.exists() else _HUB_ID.fullmatch(name) and not path.parent.is_dir()):
        raise FileNotFoundError(nothing)
    try:
        return load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{nothing} ({error_line(error)})") from error
    except (DatasetBuildError, ValueError) as error:  # ValueError: pyarrow's, without the name
        raise ValueError(f"{name}: {error_line(error.__cause__ or error)}") from error


def _with_our_columns(rows: Dataset, where: str) -> Dataset:
    """Return rows of the Hub's mirror under our names; the texts are rewritten, the images stay where they are."""
    check_columns(rows.column_names, ["image_id", "image", "caption"], where)
    n, ours = len(rows), rows.select_columns(["image"]).cast_column("image", Image())
    cuis = next((rows[name][:] for name in ("cui", "cuis") if name in rows.column_names), [None] * n)
    columns: dict[str, list[Any]] = {
        "image_id": [str(image_id) for image_id in rows["image_id"]],
        "caption": rows["caption"][:],
        "cuis": [split_cuis(value) for value in cuis],
        "manual_cuis": [[]] * n,
        "group": [None] * n,
        "license": [None] * n,
    }
    for name, values in columns.items():
        ours = ours.add_column(name, values, feature=FEATURES[name])
    return ours


def _find(folder: Path, split: str, ending: str, required: bool = False) -> list[Path]:
    """Return the files `{split}_{ending}` in `folder`, at most two: valid may be called validation."""
    paths = [folder / f"{name}_{ending}" for name in _names(split)]
    found = [path for path in paths if path.is_file()]
    if required and not found:
        splits = sorted(path.name.removesuffix("_captions.csv") for path in folder.glob("*_captions.csv"))
        raise ValueError(f"no split {split!r}: {paths[0]} is not there; splits found: {', '.join(splits)}")
    return found


def _find_images(folder: Path, split: str, required: bool) -> dict[str, str]:
    """Return {id: absolute path or zip:// URL} from one table of contents or directory listing; no file is opened."""
    for name in _names(split):
        archive = folder / f"{name}_images.zip"
        if archive.is_file():
            return index_images(archive)
        for place in (folder / f"{name}_images" / name, folder / f"{name}_images", folder / name):
            if place.is_dir() and (images := index_images(place)):
                return images
    if not required:
        return {}
    raise ValueError(
        f"no images of split {split!r} in {folder}: looked for {split}_images.zip, {split}_images/{split}/, "
        f"{split}_images/ and {split}/"
    )


def _names(split: str) -> tuple[str, ...]:
    return ("valid", "validation") if split == "valid" else (split,)
