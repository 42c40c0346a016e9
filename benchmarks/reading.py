"""How fast are 60,000 images opened and read? medcap's zips against `datasets` and against unpacked files, in one run.

    python benchmarks/reading.py --out NEW_FOLDER [--images 60000] [--read 4000]

Draws `--images` different JPEGs (500 phantoms in varying light, 112 to 160 pixels a side) in ROCOv2's layout, and the
same ones unpacked beside a metadata.csv. Every way is measured in processes of its own, three rounds in turn; printed
are median, least and greatest. The files are in the page cache after the first round: a disk is not measured. Memory
is the greatest resident size of the process, or of its greatest worker. What is read becomes `pixel_values` of 224
pixels, as for training.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from medcap.phantom.images import draw, random_phantom

WAYS = ("medcap, zip", "imagefolder, files", "plain dataset, files")
BATCH = 32


def write_layout(folder: Path, count: int) -> None:
    """Write the data set into `folder`: zip, captions, concepts, licences, and the same images unpacked."""
    rng = np.random.default_rng(0)
    planes = [draw(random_phantom(rng), rng, *rng.integers(112, 161, 2)) for _ in tqdm(range(500), desc="phantoms")]
    ids = [f"PHANTOM_train_{i:06d}" for i in range(count)]
    (folder / "files").mkdir(parents=True)
    with zipfile.ZipFile(folder / "train_images.zip", "w") as archive:
        for i, image_id in enumerate(tqdm(ids, desc="images", unit="image")):
            light = 255 * planes[i % 500] ** rng.uniform(0.5, 2) * rng.uniform(0.7, 1)
            Image.fromarray(light.astype(np.uint8)).save(buffer := io.BytesIO(), "JPEG", quality=90)
            archive.writestr(f"train/{image_id}.jpg", buffer.getvalue())
            (folder / "files" / f"{image_id}.jpg").write_bytes(buffer.getvalue())
    captions = [f"Phantom number {i} in one of many lights." for i in range(count)]
    write_csv(folder / "train_captions.csv", ("ID", "Caption"), zip(ids, captions, strict=True))
    write_csv(folder / "train_concepts.csv", ("ID", "CUIs"), ((i, "C1306645;C0817096") for i in ids))
    names = [f"{image_id}.jpg" for image_id in ids]
    write_csv(folder / "files" / "metadata.csv", ("file_name", "caption"), zip(names, captions, strict=True))


def write_csv(path: Path, header: tuple[str, ...], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


class PlainFiles:
    """What one would write by hand: a list of paths, and the processor on each picture."""

    def __init__(self, folder: Path, processor: Any) -> None:
        with (folder / "files" / "metadata.csv").open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        self.folder, self.processor = folder / "files", processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        image = Image.open(self.folder / row["file_name"]).convert("RGB")
        return {
            "pixel_values": self.processor(image, return_tensors="pt")["pixel_values"][0],
            "caption": row["caption"],
        }


def open_way(way: str, folder: Path, processor: Any) -> Any:
    """Return the data set of one way, ready for a DataLoader."""
    from medcap.data.images import with_pixel_values

    if way == "medcap, zip":
        from medcap.data.rocov2 import load_rocov2

        return with_pixel_values(load_rocov2(folder, splits=["train"])["train"], processor)
    if way == "imagefolder, files":
        from datasets import load_dataset

        options: dict[str, Any] = {"data_dir": str(folder / "files"), "split": "train", "drop_labels": True}
        return with_pixel_values(load_dataset("imagefolder", cache_dir=str(folder / "cache"), **options), processor)
    return PlainFiles(folder, processor)


def measure(way: str, folder: Path, workers: int, read: int) -> dict[str, float]:
    """Open, read `read` images in batches, and return seconds, images a second and megabytes."""
    import torch
    from torch.utils.data import DataLoader
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.set_num_threads(1)
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224})
    started = time.perf_counter()
    data = open_way(way, folder, processor)
    opened = time.perf_counter()
    batches = iter(
        DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=lambda rows: len(rows))
    )
    next(batches)
    first, seen, early = time.perf_counter(), BATCH, 0.0
    for count in batches:
        seen += count
        if seen >= read:
            break
        if not early and seen >= read // 4:
            early = peak()
    rate = (seen - BATCH) / (time.perf_counter() - first)
    return {"open": opened - started, "first": first - opened, "rate": rate, "memory": peak(), "quarter": early}


def peak() -> float:
    """The greatest resident size so far of this process, or of its greatest worker, in MB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def in_process(*words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def compare(folder: Path, read: int) -> None:
    """ImageInfo the table of all ways and workers."""
    cells = [(way, workers) for workers in (0, 1, 2) for way in WAYS]
    found: dict[tuple[str, int], list[dict[str, float]]] = {cell: [] for cell in cells}
    for _ in tqdm(range(3), desc="rounds"):
        for way, workers in cells:
            found[way, workers].append(
                in_process("--measure", way, "--out", str(folder), "--workers", str(workers), "--read", str(read))
            )
    print("| way | workers | opened in s | first batch in s | images/s | peak MB | after a quarter, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (way, workers), rounds in found.items():
        columns = [
            spread([one[key] for one in rounds], n)
            for key, n in (("open", 2), ("first", 2), ("rate", 0), ("memory", 0), ("quarter", 0))
        ]
        print(f"| {way} | {workers} | {' | '.join(columns)} |")


def audit_time(folder: Path) -> None:
    """Print how long the audit of all images takes, decoding included, and its comparison of hashes alone."""
    import datasets

    from medcap.data.duplicates import ImageSimilarity
    from medcap.data.image_info import inspect_images
    from medcap.data.rocov2 import load_rocov2

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = load_rocov2(folder, splits=["train"])["train"]
    started = time.perf_counter()
    infos = inspect_images(rows, perceptual_hash=True)
    decoded = time.perf_counter()
    similarity = ImageSimilarity.of([info.phash for info in infos])
    compared = time.perf_counter()
    inspect_images(rows, perceptual_hash=True)
    again, n = time.perf_counter() - compared, similarity.hash_ids.max() + 1
    print(f"\ninspecting {len(rows):,} images: {decoded - started:.0f} s; cached, {again:.1f} s")
    print(f"{n:,} hashes compared in {compared - decoded:.1f} s: {len(similarity.pairs):,} pairs are near")


def main() -> None:
    """Draw the data once, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--read", type=int, default=4000, help="images that each measurement reads")
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.out, args.workers, args.read)))
        return
    if not args.out.exists():
        write_layout(args.out, args.images)
    print(
        f"{args.images:,} images; Python {platform.python_version()}, {platform.machine()}, batch {BATCH}\n",
        flush=True,
    )
    compare(args.out, args.read)
    audit_time(args.out)


if __name__ == "__main__":
    main()
