"""The submission file of ImageCLEFmedical Caption: its check, and the zip that is uploaded.

The check refuses what the checker of the organizers refuses (caption_prediction/submission_check.py in
taubsity/clef-caption-evaluation-2026), and also blank captions and quotes that are not closed.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medcap.data.captions import clean_caption
from medcap.data.tables import read_column, read_jsonl
from medcap.io import atomic_path, unguard

NAME = "submission.csv"  # the name in the zip
HEADER = ["ID", "Caption"]


def check_submission(content: bytes, ids: Sequence[str]) -> list[str]:
    """Return the problems of a submission for the images `ids`, one line each; none if it is valid.

    A valid file is UTF-8 without BOM, has the header `ID,Caption`, no blank line, each id once and in the order of
    `ids`, no blank caption, and quotes around captions with a comma.
    """
    try:
        text = content.decode("utf-8")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError as error:
        return [f"not in UTF-8: {error.reason} at byte {error.start}"]
    except csv.Error as error:
        return [f"not a valid CSV: {error}"]
    if not rows or rows[0] != HEADER:
        found = ",".join(rows[0]).replace("\ufeff", "(BOM)") if rows else "missing"
        return [f"the header is {found}, but must be ID,Caption"]
    lines = text.splitlines()
    if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        return [f"{len(blank)} lines are blank, the first: line {blank[0]}"]
    if wrong := [row for row in rows[1:] if len(row) != 2]:
        return [f"{len(wrong)} lines do not have two cells, the first: {','.join(wrong[0])[:80]}"]
    return [*_check_ids([row[0] for row in rows[1:]], ids), *_check_captions(rows[1:], lines[1:])]


def _check_ids(found: Sequence[str], ids: Sequence[str]) -> list[str]:
    counts, allowed = Counter(found), set(ids)
    problems = {
        "ids begin or end with a blank": [image_id for image_id in counts if image_id != image_id.strip()],
        "ids are missing": [image_id for image_id in ids if image_id not in counts],
        "ids are not in the split": [image_id for image_id in counts if image_id not in allowed],
        "ids occur more than once": [image_id for image_id, count in counts.items() if count > 1],
    }
    if any(problems.values()):
        return _list_first(problems)
    moved = [
        f"{image_id}, where {other} must be" for image_id, other in zip(found, ids, strict=True) if image_id != other
    ]
    return _list_first({"ids are not in the order of the split": moved})


def _check_captions(rows: Sequence[Sequence[str]], lines: Sequence[str]) -> list[str]:
    """Check captions; the organizers look for commas in the lines of the file, not in the cells."""
    after = [(line, line.partition(",")[2]) for line in lines[: len(rows)]]
    unquoted = [line for line, rest in after if "," in rest and not (rest.startswith('"') and rest.endswith('"'))]
    blank = [image_id for image_id, caption in rows if not caption.strip()]
    return _list_first(
        {
            "captions are blank": blank,
            "captions with a comma are not in double quotes": [line[:80] for line in unquoted],
        }
    )


def _list_first(problems: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{len(which)} {problem}, the first: {which[0]}" for problem, which in problems.items() if which]


def write_submission(source: Path, out: Path, ids_file: Path | None = None) -> int:
    """Check the captions of `source` and write them as `submission.csv` into the zip file `out`.

    The same captions give the same bytes: the time in the archive is fixed, and it is not compressed.

    Args:
        source: Folder of `medcap evaluate`, a file `ID,Caption`, or the JSON lines of `medcap caption`.
        out: The zip file.
        ids_file: CSV with a column ID, which gives images and order; None for those of `source`.

    Returns:
        Number of captions.

    Raises:
        ValueError: `source` is not valid, or its captions are no valid submission; `out` is not changed.
    """
    captions = _read_captions(source)
    if not captions:
        raise ValueError(f"{source} has no captions")
    ids = list(captions) if ids_file is None else [image_id.strip() for image_id in read_column(ids_file, "ID")]
    ordered = {image_id: captions[image_id] for image_id in ids if image_id in captions} | captions
    content = _csv_bytes(ordered)
    if problems := check_submission(content, ids):
        raise ValueError(f"{source} is no valid submission: {'; '.join(problems)}")
    entry = zipfile.ZipInfo(NAME, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr, entry.create_system = 0o644 << 16, 3  # as on Unix, on every system
    with atomic_path(out) as part, zipfile.ZipFile(part, "w") as archive:
        archive.writestr(entry, content)
    return len(ordered)


def _read_captions(source: Path) -> dict[str, str]:
    """Return {id: caption}; the id of an image file is its name without the suffix."""
    path = source / "predictions.csv" if source.is_dir() else source
    if path.suffix != ".jsonl":
        rows = read_column(path, "Caption")
        return {unguard(image_id): clean_caption(unguard(caption)) for image_id, caption in rows.items()}
    table = read_jsonl(path)
    names = [Path(image or "").stem for image in table.get("image", [])]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: {len(twice)} images have the name of another one, the first: {twice[0]}")
    captions = table.get("caption", [None] * len(names))  # an image with an error has none
    return {name: clean_caption(text or "") for name, text in zip(names, captions, strict=True)}


def _csv_bytes(captions: Mapping[str, str]) -> bytes:
    """Return the CSV with every caption in double quotes, as the organizers recommend."""
    rows = (f'{image_id},"{caption.replace(chr(34), chr(34) * 2)}"' for image_id, caption in captions.items())
    return "".join(f"{row}\n" for row in (",".join(HEADER), *rows)).encode()
