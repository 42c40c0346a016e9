"""Compare the loading speed of medcap's zip files, of `datasets` and of a plain torch data set on 60,000 images.

    python benchmarks/reading.py --out NEW_FOLDER [--images 60000] [--read 4000]

Generates different JPEGs (500 synthetic images with varying brightness, 112 to 160 px per side) in ROCOv2's layout,
and the same files unpacked next to a metadata.csv. Images are converted to `pixel_values` of 224 px, as in training.
Every measurement runs in a new process; the methods alternate for three rounds. The tables give median, min and max.
After the first round the files are in the page cache: disks are not measured. Memory is the peak resident memory of
the process or of its largest worker.
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

METHODS = ("medcap, zip", "imagefolder, files", "plain dataset, files")
BATCH_SIZE = 32


def write_layout(folder: Path, count: int) -> None:
    """Write the data set to `folder`: zip, captions, concepts, and the same images unpacked."""
    rng = np.random.default_rng(0)
    planes = [
        draw(random_phantom(rng), rng, *rng.integers(112, 161, 2)) for _ in tqdm(range(500), desc="synthetic images")
    ]
    ids = [f"PHANTOM_train_{i:06d}" for i in range(count)]
    (folder / "files").mkdir(parents=True)
    with zipfile.ZipFile(folder / "train_images.zip", "w") as archive:
        for i, image_id in enumerate(tqdm(ids, desc="images", unit="image")):
            pixels = 255 * planes[i % 500] ** rng.uniform(0.5, 2) * rng.uniform(0.7, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(buffer := io.BytesIO(), "JPEG", quality=90)
            archive.writestr(f"train/{image_id}.jpg", buffer.getvalue())
            (folder / "files" / f"{image_id}.jpg").write_bytes(buffer.getvalue())
    captions = [f"Synthetic image {i} with its own brightness." for i in range(count)]
    write_csv(folder / "train_captions.csv", ("ID", "Caption"), zip(ids, captions, strict=True))
    write_csv(folder / "train_concepts.csv", ("ID", "CUIs"), ((i, "C1306645;C0817096") for i in ids))
    names = [f"{image_id}.jpg" for image_id in ids]
    write_csv(folder / "files" / "metadata.csv", ("file_name", "caption"), zip(names, captions, strict=True))


def write_csv(path: Path, header: tuple[str, ...], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


class PlainFiles:
    """A plain torch data set: a list of paths, and the processor applied to each image."""

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


def open_data(method: str, folder: Path, processor: Any) -> Any:
    """Return the data set of one method for a DataLoader."""
    from medcap.data.images import with_pixel_values

    if method == "medcap, zip":
        from medcap.data.load import load_data

        return with_pixel_values(load_data(folder, splits=["train"])["train"], processor)
    if method == "imagefolder, files":
        from datasets import load_dataset

        options: dict[str, Any] = {"data_dir": str(folder / "files"), "split": "train", "drop_labels": True}
        return with_pixel_values(load_dataset("imagefolder", cache_dir=str(folder / "cache"), **options), processor)
    return PlainFiles(folder, processor)


def measure(method: str, folder: Path, workers: int, read: int) -> dict[str, float]:
    """Open the data, read `read` images in batches, and return seconds, images per second and megabytes."""
    import torch
    from torch.utils.data import DataLoader
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.set_num_threads(1)
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224})
    started = time.perf_counter()
    data = open_data(method, folder, processor)
    opened = time.perf_counter()
    batches = iter(
        DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, num_workers=workers, collate_fn=lambda rows: len(rows))
    )
    next(batches)
    first, read_images, quarter = time.perf_counter(), BATCH_SIZE, 0.0
    for count in batches:
        read_images += count
        if read_images >= read:
            break
        if not quarter and read_images >= read // 4:
            quarter = peak()
    rate = (read_images - BATCH_SIZE) / (time.perf_counter() - first)
    return {"open": opened - started, "first": first - opened, "rate": rate, "memory": peak(), "quarter": quarter}


def peak() -> float:
    """Return the peak resident memory so far of this process or of its largest worker, in MB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def measure_in_process(*argv: str) -> dict[str, float]:
    """Run `measure` in a new process."""
    process = subprocess.run([sys.executable, __file__, *argv], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def spread(values: list[float], digits: int) -> str:
    median = statistics.median(values)
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def compare(folder: Path, read: int) -> None:
    """Print the table of all methods and numbers of workers."""
    cells = [(method, workers) for workers in (0, 1, 2) for method in METHODS]
    results: dict[tuple[str, int], list[dict[str, float]]] = {cell: [] for cell in cells}
    for _ in tqdm(range(3), desc="rounds"):
        for method, workers in cells:
            results[method, workers].append(
                measure_in_process(
                    "--measure", method, "--out", str(folder), "--workers", str(workers), "--read", str(read)
                )
            )
    print("| method | workers | open, s | first batch, s | images/s | peak MB | MB after a quarter |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (method, workers), rounds in results.items():
        columns = [
            spread([result[key] for result in rounds], n)
            for key, n in (("open", 2), ("first", 2), ("rate", 0), ("memory", 0), ("quarter", 0))
        ]
        print(f"| {method} | {workers} | {' | '.join(columns)} |")


def audit_time(folder: Path) -> None:
    """Print the time of the perceptual hashes of all images, and of comparing them."""
    import datasets

    from medcap.data.duplicates import ImageSimilarity
    from medcap.data.image_info import inspect_images
    from medcap.data.load import load_data

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = load_data(folder, splits=["train"])["train"]
    started = time.perf_counter()
    infos = inspect_images(rows, perceptual_hash=True)
    decoded = time.perf_counter()
    similarity = ImageSimilarity.of([info.phash for info in infos])
    compared = time.perf_counter()
    inspect_images(rows, perceptual_hash=True)
    cached, distinct = time.perf_counter() - compared, similarity.hash_ids.max() + 1
    print(f"\nperceptual hashes of {len(rows):,} images: {decoded - started:.0f} s; cached: {cached:.1f} s")
    print(f"comparing {distinct:,} hashes: {compared - decoded:.1f} s, {len(similarity.pairs):,} near-duplicate pairs")


def main() -> None:
    """Write the data once, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--read", type=int, default=4000, help="images read by each measurement")
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.out, args.workers, args.read)))
        return
    if not args.out.exists():
        write_layout(args.out, args.images)
    print(
        f"{args.images:,} images; Python {platform.python_version()}, {platform.machine()}, batch size {BATCH_SIZE}\n",
        flush=True,
    )
    compare(args.out, args.read)
    audit_time(args.out)


if __name__ == "__main__":
    main()
