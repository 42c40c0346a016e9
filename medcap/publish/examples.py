"""Example images of a model card: only images whose license allows redistribution, with their attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from medcap.data.images import load_image
from medcap.data.layout import DataLayout
from medcap.data.licenses import allows_commercial_use, license_of, read_attributions
from medcap.data.load import load_data
from medcap.data.selection import Selection
from medcap.data.tables import read_column
from medcap.io import file_digest, read_json, unguard, write_json
from medcap.phantom.dataset import LICENSE as PHANTOM
from medcap.publish.card_data import Example
from medcap.publish.plots import CHUNKS, png_chunks

COUNT = 6
SIDE = 256  # pixels of the longer side
INDEX = "examples.json"
FILES = tuple(f"examples/{number}.png" for number in range(1, COUNT + 1))


def allows_redistribution(attribution: str) -> bool:
    """Return whether a resized copy may be published: by CC0, CC BY, CC BY-SA, the public domain, or as a phantom."""
    return attribution == PHANTOM or allows_commercial_use(license_of(attribution))


def write_examples(release: Path, data: str, split: str, predictions: Path) -> None:
    """Write `examples/` and `examples.json`: evaluated images, evenly spaced over those that may be published.

    Nothing is written unless `data` is a folder with `license_information.csv`.

    Args:
        release: The folder of the release.
        data: The data set of the run.
        split: The evaluated split.
        predictions: predictions.csv of the evaluation.
    """
    sources = read_attributions(Path(data))
    allowed = {key: source for key, source in sources.items() if allows_redistribution(source[0])}
    captions = {unguard(key): unguard(text) for key, text in read_column(predictions, "Caption").items()}
    candidates = [image_id for image_id in captions if image_id in allowed]
    if not candidates:
        return
    rows = load_data(data, DataLayout(data_format="rocov2"), Selection(max_broken=1.0), [split])[split]
    numbers = {image_id: row for row, image_id in enumerate(rows["image_id"][:])}
    chosen = _evenly_spaced([image_id for image_id in candidates if image_id in numbers])
    (release / "examples").mkdir()
    examples = []
    for file, image_id in zip(FILES, chosen, strict=False):
        row = rows[numbers[image_id]]
        image = load_image(row["image"])
        image.thumbnail((SIDE, SIDE))
        image.info.clear()
        image.save(release / file, "PNG")
        texts = (image_id, row["caption"], captions[image_id], *allowed[image_id])
        examples.append(asdict(Example(file, *texts, file_digest(release / file))))
    write_json(release / INDEX, examples)


def _evenly_spaced(ids: Sequence[str]) -> list[str]:
    count = min(COUNT, len(ids))
    return [ids[round(number * (len(ids) - 1) / max(count - 1, 1))] for number in range(count)]


def read_examples(release: Path) -> list[Example]:
    """Return the examples of a release; none without `examples.json`."""
    path = release / INDEX
    return [Example(**entry) for entry in read_json(path)] if path.is_file() else []


def check_example(path: Path) -> None:
    """Raise ValueError unless `path` is a redistributable example of its release, unchanged and without metadata."""
    release = path.parents[1]
    known: Mapping[str, Example] = {example.file: example for example in read_examples(release)}
    name = path.relative_to(release).as_posix()
    if name not in known:
        raise ValueError(f"{name} is not listed in {INDEX}; remove it")
    if not allows_redistribution(known[name].attribution):
        raise ValueError(f"{name}: {known[name].attribution!r} does not allow redistribution; remove it")
    if file_digest(path) != known[name].sha256:
        raise ValueError(f"{name} differs from {INDEX}; build the release again")
    if png_chunks(path) - CHUNKS:
        raise ValueError(f"{name} contains metadata; build the release again")
