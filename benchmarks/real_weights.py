"""Train captioners with real pretrained parts on real images, and compare them with controls.

    python benchmarks/real_weights.py BASES DATA OUT [--epochs 10] [--threads N] [--write]

BASES is a folder with the checkpoints dinov2-small, minilm (a BERT) and smollm2-135m. DATA is any data set that medcap
reads with training, validation and test images and 100 captions or more for training. `medcap base` joins DINOv2 with
MiniLM to an encoder-decoder model and with SmolLM2 to a LLaVA; both, and the tiny base of quickstart, are trained by
their recipes and evaluated on the test split, next to the base without training, constant, shuffled and nearest.

Everything is written to OUT; what is there already is not computed again. --write writes docs/real-weights.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import yaml

from medcap.evaluation.baselines import LEGEND
from medcap.evaluation.result import Comparison, PairedDifference
from medcap.evaluation.split import load_split
from medcap.modeling.join import RECIPE_FILE
from medcap.phantom import TINY_BASE
from medcap.reporting.tables import intervals_table

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "real-weights.md"
BASELINES = tuple(LEGEND)
METRIC = "cider"


@dataclass
class System:
    """A base that is trained: joined from two parts, or a folder.

    Attributes:
        name: Name in tables.
        decoder: Folder in BASES of the text model; "" for the tiny base.
        image_size: Height and width in pixels.
        changes: Recipe keys that differ from the recipe.
    """

    name: str
    decoder: str
    image_size: int
    changes: dict[str, str] = field(default_factory=dict)

    def recipe(self, out: Path) -> Path:
        """Return the path of the recipe."""
        return out / self.name / RECIPE_FILE if self.decoder else ROOT / "recipes" / "phantom" / "lora.yaml"


SYSTEMS = (
    # 64 image tokens: on a CPU the text model takes most of the time
    System("dinov2-smollm2", "smollm2-135m", 112, {"prompt": "Write the caption of this radiology image."}),
    # it never predicted words, so it learns slowly; features are cached, so its epochs are short
    System("dinov2-minilm", "minilm", 224, {"num_train_epochs": "30"}),
    System("tiny", "", 96, {"model_name_or_path": str(TINY_BASE), "lora_modules_to_save": "word_embeddings"}),
)


def main() -> None:
    """Run all steps and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["PYTHONPATH"] = str(ROOT)
    folders = [folder for system in SYSTEMS for folder in run(system, args)]
    medcap("compare", *folders, "--out", args.out, "--overwrite")
    text = document(args, Comparison.read(args.out / "comparison.json"))
    print(text)
    if args.write:
        DOCUMENT.write_text(text, encoding="utf-8")


def run(system: System, args: argparse.Namespace) -> list[Path]:
    """Join, train and evaluate a system; return the folders of the evaluations of base and adapter."""
    base = args.out / system.name
    if system.decoder and not base.exists():
        parts = ("--encoder", args.bases / "dinov2-small", "--decoder", args.bases / system.decoder)
        medcap("base", *parts, "--image_size", system.image_size, "--out", base)
    trained = args.out / f"run-{system.name}"
    if not (trained / "adapter").exists():
        changes = {"data_dir": args.data, "output_dir": trained, "num_train_epochs": args.epochs, **system.changes}
        medcap("train", "--config", system.recipe(args.out), *(x for key in changes.items() for x in flag(*key)))
    generation = yaml.safe_load((trained / "recipe.yaml").read_text())
    options = [
        x for key in ("num_beams", "max_new_tokens", "no_repeat_ngram_size") for x in flag(key, generation[key])
    ]
    evaluations = []
    for name, model in (
        (f"{system.name} base", base if system.decoder else TINY_BASE),
        (system.name, trained / "adapter"),
    ):
        folder = args.out / f"eval-{name.replace(' ', '-')}"
        if not (folder / "metrics.json").exists():
            common = ("--model", model, "--data", args.data, "--out", folder, "--name", name, *options)
            medcap("evaluate", *common, "--nearest", 100_000, "--precision", "fp32")
        evaluations.append(folder)
    return evaluations


def flag(key: str, value: object) -> tuple[str, object]:
    """Return an option of the command line."""
    return f"--{key}", value


def medcap(*arguments: object) -> None:
    """Run a command of medcap; stop at an error."""
    command = [sys.executable, "-m", "medcap.cli", *map(str, arguments)]
    sys.stderr.write(f"$ medcap {' '.join(command[3:])}\n")
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def document(args: argparse.Namespace, comparison: Comparison) -> str:
    """Return the results as Markdown."""
    train, test = (load_split(str(args.data), name) for name in ("train", "test"))
    counts = Counter(test.references)
    return HEAD.format(
        train=len(train.rows), test=len(test.rows), epochs=args.epochs,
        shared=sum(count for count in counts.values() if count > 1),
        machine=f"{os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}",
        scores=intervals_table(comparison.systems), tests=test_table(comparison.tests),
    )  # fmt: skip


def test_table(tests: Sequence[PairedDifference]) -> str:
    """Return a table of the differences in CIDEr of each trained system to its base and to the controls."""
    lines = [
        "| system | compared with | difference | 95 % interval | p | significant |",
        "|---|---|---:|---:|---:|---|",
    ]
    found = {frozenset((test.first, test.second)): test for test in tests if test.metric == METRIC}
    for system in SYSTEMS:
        for other in (f"{system.name} base", *BASELINES):
            test = found[frozenset((system.name, other))]
            sign = 1 if test.first == system.name else -1
            low, high = sorted((sign * test.low, sign * test.high))
            lines.append(
                f"| {system.name} | {other} | {sign * test.difference:+.4f} | {low:+.4f} to {high:+.4f} | "
                f"{test.p:.4f} | {'yes' if test.significant else 'no'} |"
            )
    return "\n".join(lines)


HEAD = """# Real pretrained weights on real images

Written by `benchmarks/real_weights.py`: {train:,} training and {test:,} test images, one seed.

- `dinov2-smollm2`: `medcap base` joined the vision encoder DINOv2-small (22 M parameters) and SmolLM2-135M to a LLaVA;
  {epochs} epochs at 112 px. Its projector is trained completely, the text model by LoRA.
- `dinov2-minilm`: `medcap base` joined DINOv2-small and MiniLM (BERT, 22.7 M) to an encoder-decoder model; 30 epochs
  at 224 px. Cross-attention, head and word embeddings are trained completely, the other layers by LoRA.
- `tiny`: the tiny base of quickstart, which was made for synthetic images; {epochs} epochs with its word embeddings
  freed.

The recipes are those that `medcap base` writes, and `recipes/phantom/lora.yaml`. Vision encoders are frozen. The best
epoch was chosen by CIDEr on the validation split. Machine: {machine}.

## Scores

CIDEr as fraction (1.0 is 100), with 95 % bootstrap intervals over images. The baselines are those of
[scores.md](scores.md), with the features of DINOv2. {shared} of the {test:,} test images share their caption with
another one, such as images of one patient.

{scores}

## Differences in CIDEr

Paired tests on the same images.

{tests}
"""


if __name__ == "__main__":
    main()
