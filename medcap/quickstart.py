"""The end-to-end demo, offline: phantom images, two trainings, evaluation, and a release used without medcap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from medcap import __version__
from medcap.data.detokenize import detokenize
from medcap.data.images import load_image
from medcap.data.tables import read_column
from medcap.evaluation.compare import compare
from medcap.evaluation.evaluate import evaluate
from medcap.evaluation.folder import METRICS, evaluation_folder
from medcap.evaluation.split import Split, load_split
from medcap.inference import load_captioner
from medcap.io import PARTIAL, atomic_path, new_folder, read_json, remove_folder, write_text
from medcap.launch import launch_command, run_launched, shipped_folder
from medcap.locks import LOCK, lock_folder
from medcap.phantom import TINY_BASE
from medcap.phantom.dataset import write_phantom
from medcap.publish.release import build_release
from medcap.reporting.comparison_page import write_comparison_page
from medcap.reporting.evaluation_page import write_page
from medcap.reporting.plots import plot_curves, read_curve, write_png, write_sample_sheet
from medcap.reporting.tables import differences_text, text_table, write_comparison

BASE_NAME = "without fine-tune"
RECIPES = {"4 epochs": "4-epochs.yaml", "6 epochs": "6-epochs.yaml"}
SEED = 0
MARK = "made-by-medcap-quickstart"


@dataclass(frozen=True)
class Sizes:
    """Number of images in each split, and options that override the recipes."""

    train: int = 2000
    valid: int = 100
    test: int = 300
    overrides: tuple[str, ...] = ()


SHORT = Sizes(train=96, valid=16, test=24, overrides=("--num_train_epochs", "1"))


def quickstart(out: Path, *, short: bool = False, overwrite: bool = False) -> None:
    """Run the end-to-end demo, or what is missing of an earlier one in the same folder.

    Args:
        out: New or empty folder, or the folder of an earlier quickstart. It will contain data/, base/,
            run-4-epochs/, run-6-epochs/, eval-*/, comparison.json, comparison.html, report.html, samples.png,
            curves.png, release/, and images/ with four images of the test split.
        short: Use few images and train for one epoch.
        overwrite: Remove what an earlier quickstart wrote, and start again.

    Raises:
        FileExistsError: `out` has other files, or was written with other options or by another version of medcap.
    """
    with lock_folder(out):
        _prepare_folder(out, {"medcap": __version__, "short": short, "seed": SEED}, overwrite)
        _run(out, short)


def _run(out: Path, short: bool) -> None:
    started, sizes = time.monotonic(), SHORT if short else Sizes()
    _heading("1. Write a data set of phantom images in the layout of ROCOv2")
    if not _is_complete(out / "data"):
        write_phantom(out / "data", train=sizes.train, valid=sizes.valid, test=sizes.test, seed=SEED)
    _heading("2. Copy the tiny base model, a BLIP not trained on radiology")
    if not _is_complete(out / "base"):
        with new_folder(out / "base") as part:
            shutil.copytree(TINY_BASE, part, dirs_exist_ok=True)
    for name, recipe in RECIPES.items():
        _heading(f"3. Fine-tune: {name}")
        if not _is_complete(_folder(out, "run", name) / "adapter"):
            _train(out, name, recipe, sizes)
    _heading("4. Evaluate on the test split")
    split = load_split(str(out / "data"), "test")
    last = list(RECIPES)[-1]
    captions = {name: _evaluate(out, name, split, baselines=name == last) for name in [BASE_NAME, *RECIPES]}
    folders = [_folder(out, "eval", name) for name in captions]
    comparison = compare(folders, out)
    write_comparison(out / "comparison.md", comparison)
    write_comparison_page(out / "comparison.html", comparison, folders, split.rows)
    _heading("5. Build a release and load it without medcap")
    release = out / "release"
    if not _is_complete(release):
        evaluation, comparison_file = _folder(out, "eval", last), out / "comparison.json"
        build_release(_folder(out, "run", last), release, evaluation=evaluation, comparison=comparison_file)
    checked = check_release(out / "base", release, split, captions[last])
    shutil.copyfile(_folder(out, "eval", last) / "report.html", out / "report.html")
    curves = {name: read_curve(_folder(out, "run", name) / "metrics.jsonl") for name in RECIPES}
    if figure := plot_curves(curves):
        write_png(out / "curves.png", figure)
    write_sample_sheet(out / "samples.png", split.rows, {"reference": split.references, **captions})
    example = write_images(out / "images", split.rows.select(range(4)))
    print(f"\n{text_table(comparison.systems)}\n\n{differences_text(comparison.tests)}\n")
    if short:
        print("--short trains both adapters for one epoch on few images; they have the names of the full demo.")
    print("Modality, side, level, finding: fraction of test images whose caption states the fact correctly.")
    print("The base names the side as seen by the viewer; radiology names the side of the patient.")
    print(f"Without medcap, transformers and peft generate the same captions from release/ ({checked} images).")
    print(f"\nFinished in {(time.monotonic() - started) / 60:.1f} minutes. Read the results in")
    print(f"  {out / 'report.html'}\n  {out / 'comparison.html'}\n  {out / 'samples.png'}\n  {release / 'README.md'}")
    print(f"Caption a test image with\n  medcap caption {example} --model {release}")
    print("This adapter was trained on synthetic images only: its captions of real images are meaningless.")


def write_images(folder: Path, rows: Dataset) -> Path:
    """Write the images of `rows` as PNG files; return the path of the first."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{row['image_id']}.png" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        with atomic_path(path) as part:
            load_image(row["image"]).save(part, "PNG")
    return paths[0]


def _prepare_folder(out: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Check that what `out` holds has the same settings, or remove it, and what a kill left incomplete."""
    mark, files = out / MARK, [path for path in out.iterdir() if path.name not in (MARK, LOCK)]
    if files and not mark.exists():
        raise FileExistsError(f"{out} is not empty and was not made by quickstart; name another folder with --out")
    if files and not overwrite and mark.read_text(encoding="utf-8") != json.dumps(settings):
        raise FileExistsError(
            f"{out} was made by quickstart of another version of medcap or with other options: name another folder "
            "with --out, or replace it with --overwrite"
        )
    for path in files:
        if overwrite or path.name.endswith(PARTIAL):
            remove_folder(path) if path.is_dir() else path.unlink()
    write_text(mark, json.dumps(settings))


def _is_complete(folder: Path) -> bool:
    """Return whether an earlier quickstart completed `folder`, which was then renamed to its name."""
    if is_complete := folder.exists():
        sys.stderr.write(f"{folder} is complete\n")
    return is_complete


def _heading(text: str) -> None:
    sys.stderr.write(f"\n{text}\n")


def _folder(out: Path, kind: str, name: str) -> Path:
    return out / f"{kind}-{name.replace(' ', '-')}"


def _train(out: Path, name: str, recipe: str, sizes: Sizes) -> None:
    """Run scripts/train.py through accelerate, with its output on stderr."""
    options = {
        "config": shipped_folder("recipes") / "phantom" / recipe,
        "data_dir": out / "data",
        "model_name_or_path": out / "base",
        "output_dir": _folder(out, "run", name),
        "feature_cache": out / "features",
    }
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))] + [*sizes.overrides]
    command = "accelerate launch scripts/train.py " + " ".join(arguments)
    sys.stderr.write(f"$ {command}\n")
    status = run_launched(launch_command(arguments, "cpu"), stdout=sys.stderr)
    if status > 128:  # a signal; training has said that it resumes
        sys.exit(status)
    if status:
        raise RuntimeError(f"training failed, see above; the command was {command}")


def _evaluate(out: Path, name: str, split: Split, *, baselines: bool) -> list[str]:
    """Evaluate one system with the generation settings of the recipes and return its captions."""
    folder = _folder(out, "eval", name)
    if _is_complete(folder / METRICS):
        return list(read_column(folder / "predictions.csv", "Caption").values())
    saved = read_json(_folder(out, "run", list(RECIPES)[-1]) / "adapter" / "generation_config.json")
    settings = {key: saved[key] for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size")}
    model = out / "base" if name == BASE_NAME else _folder(out, "run", name) / "adapter"
    captioner = load_captioner(str(model), generation=settings)
    captioner = captioner.with_cache(str(out / "features"), len(split.rows) + split.training_images)
    with evaluation_folder(folder, {"quickstart": name}) as new:
        staging = new.start(captioner, split)
        evaluation = evaluate(captioner, split, staging, name=name, batch_size=50, baselines=baselines)
        write_page(staging / "report.html", evaluation, split.rows)
    return evaluation.captions


def check_release(base: Path, release: Path, split: Split, captions: Sequence[str], count: int = 48) -> int:
    """Caption test images with the release in a process that cannot import medcap, and compare the captions.

    Args:
        base: Folder of the base model.
        release: Folder of the release.
        split: The evaluated split.
        captions: The evaluated captions of the split.
        count: Number of images to caption.

    Returns:
        The number of compared captions.

    Raises:
        RuntimeError: The release cannot be loaded, or a caption differs.
    """
    rows = range(min(count, len(split.rows)))
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:  # as 8-bit RGB: Pillow converts 16-bit images differently
            load_image(split.rows[row]["image"]).save(Path(folder) / f"{row:06d}.png")
        command = [sys.executable, "-c", PLAIN_SCRIPT, str(base.resolve()), str(release.resolve()), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"the release does not load without medcap: {done.stderr.strip().splitlines()[-1]}")
    generated = [detokenize(text) for text in json.loads(done.stdout.splitlines()[-1])]
    for row, caption in zip(rows, generated, strict=True):
        if caption != captions[row]:
            raise RuntimeError(
                f"{split.ids[row]}: the release generates {caption!r}, the evaluation {captions[row]!r}"
            )
    return len(generated)


# captions images with transformers and peft only
PLAIN_SCRIPT = """
import json, sys
from pathlib import Path
sys.modules["medcap"] = None  # importing it would fail
import torch
from peft import PeftModel
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig

base, release, folder = sys.argv[1:]
model = PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), release).eval()
processor = BlipProcessor.from_pretrained(release)
config = GenerationConfig.from_pretrained(release)
captions = []
for path in sorted(Path(folder).glob("*.png")):
    pixels = processor(images=Image.open(path), return_tensors="pt").pixel_values
    with torch.inference_mode():
        ids = model.generate(pixel_values=pixels, generation_config=config, interpolate_pos_encoding=True)
    captions += processor.batch_decode(ids, skip_special_tokens=True)
print(json.dumps(captions))
"""
