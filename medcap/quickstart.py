"""The end-to-end demo, offline: phantom images, two trainings, evaluation, and a release used without medcap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcap.data.detokenize import detokenize
from medcap.data.images import load_image
from medcap.evaluation.compare import compare
from medcap.evaluation.evaluate import evaluate
from medcap.evaluation.split import Split, load_split
from medcap.inference import load_captioner
from medcap.io import read_json
from medcap.launch import launch_command, shipped_folder
from medcap.phantom import TINY_BASE
from medcap.phantom.dataset import write_phantom
from medcap.publish.release import build_release
from medcap.reporting.evaluation_page import write_page
from medcap.reporting.plots import plot_curves, read_curve, write_png, write_sample_sheet
from medcap.reporting.tables import differences_text, text_table, write_comparison

BASE_NAME = "without fine-tune"
RECIPES = {"4 epochs": "4-epochs.yaml", "6 epochs": "6-epochs.yaml"}
MARK = "made-by-medcap-quickstart"


@dataclass(frozen=True)
class Sizes:
    """Number of images in each split, and options that override the recipes."""

    train: int = 2000
    valid: int = 100
    test: int = 300
    overrides: tuple[str, ...] = ()


SHORT = Sizes(train=96, valid=16, test=24, overrides=("--num_train_epochs", "1"))


def quickstart(out: Path, *, short: bool = False) -> None:
    """Run the end-to-end demo.

    Args:
        out: New or empty folder, or the folder of an earlier quickstart, which is replaced. It will contain data/,
            base/, run-4-epochs/, run-6-epochs/, eval-*/, comparison.json, report.html, samples.png, curves.png and
            release/.
        short: Use few images and train for one epoch.
    """
    started, sizes = time.monotonic(), SHORT if short else Sizes()
    _prepare_folder(out)
    _heading("1. Write a data set of phantom images in the layout of ROCOv2")
    write_phantom(out / "data", train=sizes.train, valid=sizes.valid, test=sizes.test, seed=0)
    _heading("2. Copy the tiny base model, a BLIP not trained on radiology")
    shutil.copytree(TINY_BASE, out / "base")
    for name, recipe in RECIPES.items():
        _heading(f"3. Fine-tune: {name}")
        _train(out, name, recipe, sizes)
    _heading("4. Evaluate on the test split")
    split = load_split(str(out / "data"), "test")
    captions = {name: _evaluate(out, name, split, baselines=name == BASE_NAME) for name in [BASE_NAME, *RECIPES]}
    comparison = compare([_folder(out, "eval", name) for name in captions], out)
    write_comparison(out / "comparison.md", comparison)
    _heading("5. Build a release and load it without medcap")
    last = list(RECIPES)[-1]
    release = build_release(
        _folder(out, "run", last),
        out / "release",
        evaluation=_folder(out, "eval", last),
        comparison=out / "comparison.json",
    )
    checked = check_release(out / "base", release, split, captions[last])
    shutil.copyfile(_folder(out, "eval", last) / "report.html", out / "report.html")
    curves = {name: read_curve(_folder(out, "run", name) / "metrics.jsonl") for name in RECIPES}
    if figure := plot_curves(curves):
        write_png(out / "curves.png", figure)
    write_sample_sheet(out / "samples.png", split.rows, {"reference": split.references, **captions})
    print(f"\n{text_table(comparison.systems)}\n\n{differences_text(comparison.tests)}\n")
    if short:
        print("--short trains both adapters for one epoch on few images; they have the names of the full demo.")
    print("Modality, side, level, finding: fraction of test images whose caption states the fact correctly.")
    print("The base names the side as seen by the viewer; radiology names the side of the patient.")
    print(f"Without medcap, transformers and peft generate the same captions from release/ ({checked} images).")
    print(f"\nFinished in {(time.monotonic() - started) / 60:.1f} minutes. Read the results in")
    print(f"  {out / 'report.html'}\n  {out / 'samples.png'}\n  {release / 'README.md'}")
    print(f"Caption an image of your own with\n  medcap caption IMAGE --model {out / 'release'}")


def _prepare_folder(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise FileExistsError(f"{out} is not empty and was not made by quickstart; name another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


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
    if subprocess.run(launch_command(arguments, "cpu"), stdout=sys.stderr, check=False).returncode:
        raise RuntimeError(f"training failed, see above; the command was {command}")


def _evaluate(out: Path, name: str, split: Split, *, baselines: bool) -> list[str]:
    """Evaluate one system with the generation settings of the recipes and return its captions."""
    saved = read_json(_folder(out, "run", list(RECIPES)[-1]) / "adapter" / "generation_config.json")
    settings = {key: saved[key] for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size")}
    model = out / "base" if name == BASE_NAME else _folder(out, "run", name) / "adapter"
    captioner = load_captioner(str(model), generation=settings)
    captioner = captioner.with_cache(str(out / "features"), len(split.rows) + split.training_images)
    folder = _folder(out, "eval", name)
    evaluation = evaluate(captioner, split, folder, name=name, batch_size=50, baselines=baselines)
    write_page(folder / "report.html", evaluation, split.rows)
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
