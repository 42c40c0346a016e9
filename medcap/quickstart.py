"""The whole story offline: phantoms, two trainings, evaluation, a release, and its captions made without medcap."""

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
from medcap.launch import launch_command, shipped_folder
from medcap.phantom import TINY_BASE
from medcap.phantom.dataset import write_phantom
from medcap.publish.release import build_release
from medcap.reporting.plots import write_curves, write_sample_sheet
from medcap.reporting.tables import differences_text, text_table

BASE_NAME = "without fine-tune"
RECIPES = {"4 epochs": "4-epochs.yaml", "6 epochs": "6-epochs.yaml"}
MARK = "made-by-medcap-quickstart"


@dataclass(frozen=True)
class Sizes:
    """Images of each split, and what `--short` changes in the recipes."""

    train: int = 2000
    valid: int = 100
    test: int = 300
    overrides: tuple[str, ...] = ()


SHORT = Sizes(train=96, valid=16, test=24, overrides=("--num_train_epochs", "1"))


def quickstart(out: Path, *, short: bool = False) -> None:
    """Tell the story into `out`: a new or empty folder, or an earlier quickstart's, which is replaced.

    Leaves data/, base/, run-4-epochs/, run-6-epochs/, eval-*/, comparison.json, samples.png, curves.png and release/.
    """
    started, sizes = time.monotonic(), SHORT if short else Sizes()
    _make_room(out)
    _say("1. A data set of phantoms, in ROCOv2's own layout")
    write_phantom(out / "data", train=sizes.train, valid=sizes.valid, test=sizes.test, seed=0)
    _say("2. The tiny base: a BLIP that speaks, but not radiology")
    shutil.copytree(TINY_BASE, out / "base")
    for name, recipe in RECIPES.items():
        _say(f"3. Fine-tuning: {name}")
        _train(out, name, recipe, sizes)
    _say("4. Evaluation on the test split")
    split = load_split(str(out / "data"), "test")
    captions = {name: _evaluate(out, name, split, baselines=name == BASE_NAME) for name in [BASE_NAME, *RECIPES]}
    comparison = compare([_folder(out, "eval", name) for name in captions], out)
    _say("5. A release, loaded where medcap cannot be imported")
    last = list(RECIPES)[-1]
    release = build_release(
        _folder(out, "run", last),
        out / "release",
        evaluation=_folder(out, "eval", last),
        comparison=out / "comparison.json",
    )
    same = check_release(out / "base", release, split, captions[last])
    write_curves(out / "curves.png", {name: _folder(out, "run", name) for name in RECIPES})
    write_sample_sheet(
        out / "samples.png", split.rows, {"reference": split.references, **{name: captions[name] for name in captions}}
    )
    print(f"\n{text_table(comparison['systems'])}\n\n{differences_text(comparison['tests'])}\n")
    if short:
        print("--short: both rows are one epoch on few images, which teaches nothing; the names are the full story's")
    print(
        "modality ... finding: share of test images whose caption names it rightly, by the known truth of the phantoms"
    )
    print("(the base says left and right as the viewer sees them; radiology names the patient's side, the other one)")
    print(f"release/: {same} captions made by plain transformers and peft are the evaluation's, word for word")
    print(
        f"{(time.monotonic() - started) / 60:.1f} minutes. Look at {out / 'samples.png'}, and at what was published:"
    )
    print(f"  {release / 'README.md'}\nNext, a picture of your own:")
    print(f"  medcap caption IMAGE --model {out / 'release'}")


def _make_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise FileExistsError(f"{out} holds something else than a quickstart: take another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _say(text: str) -> None:
    sys.stderr.write(f"\n{text}\n")


def _folder(out: Path, kind: str, name: str) -> Path:
    return out / f"{kind}-{name.replace(' ', '-')}"


def _train(out: Path, name: str, recipe: str, sizes: Sizes) -> None:
    """Run scripts/train.py as a user would; its one line of result is shown with the progress."""
    words = ["--config", str(shipped_folder("recipes") / "phantom" / recipe), "--data_dir", str(out / "data")]
    words += [
        "--model_name_or_path",
        str(out / "base"),
        "--output_dir",
        str(_folder(out, "run", name)),
        "--feature_cache",
        str(out / "features"),
        *sizes.overrides,
    ]
    shown = "accelerate launch scripts/train.py " + " ".join(words)
    sys.stderr.write(f"$ {shown}\n")
    if subprocess.run(launch_command(words, "cpu"), stdout=sys.stderr, check=False).returncode:
        raise RuntimeError(f"training failed, see above; the command was {shown}")


def _evaluate(out: Path, name: str, split: Split, *, baselines: bool) -> list[str]:
    """Evaluate one system with the decoding of the recipes, and return its captions."""
    decoding = json.loads((_folder(out, "run", list(RECIPES)[-1]) / "adapter" / "generation_config.json").read_text())
    wanted = {key: decoding[key] for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size")}
    model = out / "base" if name == BASE_NAME else _folder(out, "run", name) / "adapter"
    captioner = load_captioner(str(model), generation=wanted)
    captioner = captioner.with_cache(str(out / "features"), len(split.rows) + split.training_images)
    return evaluate(captioner, split, _folder(out, "eval", name), name=name, batch_size=50, baselines=baselines)[1]


def check_release(base: Path, release: Path, split: Split, captions: Sequence[str], count: int = 48) -> int:
    """Caption `count` test images with the release where medcap cannot be imported; returns how many agree: all.

    Raises RuntimeError when a caption differs from what was evaluated.
    """
    rows = range(min(count, len(split.rows)))
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:  # as 8-bit RGB: what a stranger's PIL makes of 16 bits is another matter
            load_image(split.rows[row]["image"]).save(Path(folder) / f"{row:06d}.png")
        words = [sys.executable, "-c", STRANGER, str(base.resolve()), str(release.resolve()), folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"the release does not load without medcap: {done.stderr.strip().splitlines()[-1]}")
    made = [detokenize(text) for text in json.loads(done.stdout.splitlines()[-1])]
    for row, caption in zip(rows, made, strict=True):
        if caption != captions[row]:
            raise RuntimeError(f"the release says {caption!r} of {split.ids[row]}, the evaluation {captions[row]!r}")
    return len(made)


# What a stranger would write: transformers and peft alone.
STRANGER = """
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
