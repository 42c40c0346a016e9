"""Measure the effect of each known pitfall of fine-tuning BLIP: reintroduce it into the phantom recipe.

    python benchmarks/traps.py
    python benchmarks/traps.py --out traps --only rescaled-twice padding

Each pitfall is patched in from outside the package, in a new process, with the data, seed and recipe of quickstart's
"4 epochs". Results in --out are reused. Writes docs/traps.md. Takes about 20 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
DOCUMENT = ROOT / "docs" / "traps.md"
SIZES = {"train": 2000, "valid": 100, "test": 300}
SMALL = 64  # image size in pixels; the tiny base has 96
PADDED = 128  # caption length in tokens
SEED = 0
Patch = Callable[[], None]


@dataclass(frozen=True)
class Trap:
    """A variant of the recipe: a pitfall, or a control without `symptom`.

    `symptom` describes how to detect the pitfall in a run. `patches` are applied before training, `argv` overrides the
    recipe, `adapter_of` names the variant whose adapter is used instead of training, `control` the variant to compare
    with.
    """

    title: str
    symptom: str = ""
    patches: tuple[Patch, ...] = ()
    argv: tuple[str, ...] = ()
    adapter_of: str | None = None
    control: str = "correct"
    generation: tuple[tuple[str, int], ...] = ()
    detokenized: bool = True
    tokenized: bool = False
    leaks: bool = False


def rescale_twice() -> None:
    """Divide the pixels by 255 again, as BlipProcessor does with a tensor in 0 to 1."""
    import torch

    from medcap.data.images import ImageTransform

    original = ImageTransform.__call__

    def rescaled(self: Any, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows, processor = original(self, batch), self.pixels.keywords["image_processor"]
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        if "pixel_values" in rows:
            rows["pixel_values"] = [(pixels / 255 / 255 - mean) / std for pixels in rows["pixel_values"]]
        return rows

    ImageTransform.__call__ = rescaled  # type: ignore[method-assign]


def take_first_positions() -> None:
    """Use the first rows of the position embeddings for a smaller image, as BLIP does without interpolation."""
    from torch import nn

    from medcap.modeling.families import blip

    def resize(model: Any, image_size: int) -> None:
        embeddings = model.vision_model.embeddings
        count = (image_size // embeddings.patch_size) ** 2 + 1
        rows = embeddings.position_embedding.data[:, :count].clone()
        embeddings.position_embedding = nn.Parameter(rows, requires_grad=False)
        embeddings.image_size = model.config.vision_config.image_size = image_size
        embeddings.num_patches, embeddings.num_positions = count - 1, count

    blip.resize_positions = resize


def start_with_cls() -> None:
    """Start training captions with [CLS]; generation starts with [DEC]."""
    from transformers import BlipProcessor

    from medcap.modeling.families.blip import Blip
    from medcap.phantom import TINY_BASE

    cls = BlipProcessor.from_pretrained(TINY_BASE).tokenizer.cls_token_id
    Blip.first_token_id = property(lambda family: cls)  # type: ignore[assignment]


def score_padding() -> None:
    """Pad every caption to one length, attend to the padding and include it in the loss."""
    import torch
    from torch.nn import functional as F

    from medcap.data.captions import CaptionCollator

    original = CaptionCollator.__call__

    def padded(self: Any, rows: Any) -> dict[str, torch.Tensor]:
        batch = original(self, rows)
        if "input_ids" in batch:
            ids = batch["input_ids"]
            ids = F.pad(ids, (0, PADDED - ids.shape[1]), value=self.tokenizer.pad_token_id)
            batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
        return batch

    CaptionCollator.__call__ = padded  # type: ignore[method-assign]


def average_micro_batches() -> None:
    """Use BLIP's mean over each micro-batch, which the Trainer does not divide by the accumulation steps."""
    from medcap.training.trainer import CaptionTrainer

    original = CaptionTrainer.compute_loss

    def mean(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return original(self, model, inputs, return_outputs, None)

    CaptionTrainer.compute_loss = mean  # type: ignore[method-assign]


SELF_ATTENTION = ("--lora_target_modules", r"text_decoder\.bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)")
MICRO_BATCHES = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4")
SMALL_IMAGES = ("--image_size", str(SMALL))
VARIANTS = {
    "correct": Trap("correct recipe"),
    "rescaled-twice": Trap(
        "pixel values rescaled twice (black images)",
        "`pixel_values.max()` is below 0; with bright image regions it should reach about 2",
        patches=(rescale_twice,),
    ),
    "small": Trap(f"correct recipe at {SMALL} px", argv=SMALL_IMAGES),
    "positions": Trap(
        f"{SMALL} px on a base of 96 px without interpolated position embeddings",
        "`interpolate_pos_encoding` is False and `image_size` differs from the base's",
        patches=(take_first_positions,), argv=SMALL_IMAGES, control="small",
    ),
    "cls": Trap(
        "captions start with [CLS] in training and [DEC] in generation",
        "`input_ids[:, 0]` of a training batch is not `config.text_config.bos_token_id`", patches=(start_with_cls,),
    ),
    "padding": Trap(
        f"captions padded to {PADDED} tokens, padding in attention and loss",
        "`(labels == tokenizer.pad_token_id).any()` is True",
        patches=(score_padding,),
    ),
    "self-attention": Trap(
        "LoRA only on query and key of self-attention",
        "no trainable parameter has `crossattention` in its name", argv=SELF_ATTENTION,
    ),
    "micro-batches": Trap("correct recipe in micro-batches, 4 x 4", argv=MICRO_BATCHES),
    "accumulation": Trap(
        "loss not divided by the accumulation steps, 4 x 4",
        "loss and gradient norm are `gradient_accumulation_steps` times those of one large batch",
        patches=(average_micro_batches,), argv=MICRO_BATCHES, control="micro-batches",
    ),
    "leak": Trap(
        "reference passed to `generate` as a prompt", "every prediction starts with its reference",
        adapter_of="correct", leaks=True,
    ),
    "no-ptb": Trap(
        "scored without PTB tokenization", "the signature or code of the metric names no tokenizer",
        adapter_of="correct", tokenized=True,
    ),
    "max-length": Trap(
        "generation's default limit of 20 tokens",
        "captions end in the middle of a sentence; synthetic captions are shorter than the limit",
        adapter_of="correct", generation=(("max_new_tokens", 19),),
    ),
    "raw-decoding": Trap(
        "captions without detokenization", 'predictions contain "x - ray" and "3. 5 cm"',
        adapter_of="correct", detokenized=False,
    ),
    "original": Trap(
        "all pitfalls of the original project", "CIDEr is below that of the constant caption",
        patches=(rescale_twice, take_first_positions, start_with_cls, score_padding, average_micro_batches),
        argv=(*SELF_ATTENTION, *MICRO_BATCHES, *SMALL_IMAGES),
        generation=(("max_new_tokens", 19),), detokenized=False, tokenized=True,
    ),
}  # fmt: skip


def run_one(name: str, out: Path) -> None:
    """Train the variant, or load the adapter of another one, and caption the test split."""
    import train  # scripts/train.py

    trap, folder = VARIANTS[name], out / name
    for patch in trap.patches:
        patch()
    started = time.monotonic()
    if trap.adapter_of is None:
        train.main([*recipe_argv(out, folder), *trap.argv])
    seconds = time.monotonic() - started
    captions = caption(trap, out / (trap.adapter_of or name) / "run" / "adapter", out / "data")
    folder.mkdir(exist_ok=True)
    content = json.dumps({"captions": captions, "seconds": seconds})
    (folder / "captions.json.part").write_text(content, encoding="utf-8")
    (folder / "captions.json.part").replace(folder / "captions.json")


def recipe_argv(out: Path, folder: Path) -> list[str]:
    from medcap.phantom import TINY_BASE

    recipe = ROOT / "recipes" / "phantom" / "4-epochs.yaml"
    argv = ["--config", str(recipe), "--data_dir", str(out / "data"), "--model_name_or_path", str(TINY_BASE)]
    argv += ["--feature_cache", "off"]  # cached features do not depend on the patches
    return [*argv, "--output_dir", str(folder / "run"), "--seed", str(SEED), "--use_cpu", "true"]


def caption(trap: Trap, adapter: Path, data: Path) -> list[str]:
    from medcap.evaluation.split import load_split
    from medcap.inference import caption_dataset, load_captioner

    captioner = load_captioner(str(adapter), generation=dict(trap.generation), detokenize=trap.detokenized)
    split = load_split(str(data), "test")
    if trap.leaks:
        return caption_with_leak(captioner, split.rows)
    return caption_dataset(captioner, split.rows, batch_size=50)[0]


def caption_with_leak(captioner: Any, rows: Any) -> list[str]:
    """Generate with the reference as a prompt, as Seq2SeqTrainer does if a batch contains `input_ids`."""
    import torch

    from medcap.data.captions import CaptionCollator
    from medcap.data.images import with_pixel_values
    from medcap.modeling.generation import decode_captions

    columns = rows.select_columns(["image_id", "image", "caption"])
    images = with_pixel_values(columns, captioner.processor.image_processor)
    collate = CaptionCollator(captioner.processor.tokenizer, captioner.family.first_token_id, max_caption_tokens=96)
    captions = []
    for row in tqdm(images, desc="captions", unit="image"):
        batch = collate([row])
        with torch.inference_mode():
            ids = captioner.model.generate(
                pixel_values=batch["pixel_values"], input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"], generation_config=captioner.generation_config,
            )  # fmt: skip
        captions += decode_captions(captioner.processor.tokenizer, ids)
    return captions


def score(out: Path) -> dict[str, dict[str, Any]]:
    """Return scores, intervals, accuracy and the test against the control for each variant and two baselines."""
    from medcap.evaluation.baselines import constant_captions, shuffled
    from medcap.evaluation.split import load_split
    from medcap.metrics.coco import score_captions
    from medcap.metrics.statistics import bootstrap, paired_test
    from medcap.phantom.truth import findings_accuracy

    split = load_split(str(out / "data"), "test")
    assert split.training_captions is not None
    assert split.truth is not None
    runs = {name: json.loads((out / name / "captions.json").read_text()) for name in VARIANTS}
    texts = {name: run["captions"] for name, run in runs.items()}
    training = split.training_captions
    texts["constant"] = [constant_captions(training["caption"][:], training["group"][:])[None]] * len(split.rows)
    texts["shuffled"] = shuffled(split.references, split.groups)
    rows: dict[str, dict[str, Any]] = {}
    for name, captions in tqdm(texts.items(), desc="scores", unit="variant"):
        trap = VARIANTS.get(name, Trap(name))
        references = [[reference] for reference in split.references]
        scores = score_captions(captions, references, tokenized=trap.tokenized)
        rows[name] = {
            "metrics": scores.metrics,
            "intervals": bootstrap(scores.statistics),
            "findings": findings_accuracy(captions, split.ids, split.truth),
            "statistics": scores.statistics,
            "captions": captions,
            "seconds": runs.get(name, {}).get("seconds"),
        }
    for name, trap in VARIANTS.items():
        rows[name]["test"] = paired_test(rows[trap.control]["statistics"], rows[name]["statistics"])
    return rows


def write_document(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    with (out / "data" / "test_captions.csv").open(encoding="utf-8", newline="") as file:
        references = [row["Caption"] for row in csv.DictReader(file)]
    seconds = sum(row["seconds"] or 0 for row in rows.values())
    parts = [HEAD.format(**SIZES, cores=os.cpu_count(), minutes=seconds / 60, trainings=_trainings(), **_versions())]
    parts += [results(rows), NOTES, *(section(name, rows, references) for name in VARIANTS if VARIANTS[name].symptom)]
    parts += [without_lower_score(rows)]
    DOCUMENT.write_text("\n".join(parts), encoding="utf-8")


HEAD = """# Effect of each pitfall

Generated by `benchmarks/traps.py`: quickstart's recipe `recipes/phantom/4-epochs.yaml` with one pitfall reintroduced
at a time. All variants use the same {train:,} training, {valid} validation and {test} test images and the same seed
({seed}). Each was trained once, so variation between seeds is not measured. {trainings} trainings took {minutes:.0f}
minutes on {cores} CPU cores with other programs running. medcap {medcap}, transformers {transformers}, peft {peft},
torch {torch}.

The tiny base and synthetic images differ from BLIP-base and ROCOv2; the effects there were not measured.
"""
NOTES = """
95 % bootstrap intervals in parentheses. The columns from modality to finding give the percentage of images whose
caption states the correct value. `constant` and `shuffled` need no model.
"""
COLUMNS = {"bleu_1": "BLEU-1", "bleu_4": "BLEU-4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}


def _trainings() -> int:
    return sum(trap.adapter_of is None for trap in VARIANTS.values())


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    return {"seed": SEED, **{name: version(name) for name in ("medcap", "transformers", "peft", "torch")}}


def results(rows: dict[str, dict[str, Any]]) -> str:
    facts = list(rows["correct"]["findings"])
    lines = [["", *COLUMNS.values(), *facts], ["---"] + ["---:"] * (len(COLUMNS) + len(facts))]
    for name, row in rows.items():
        cells = [f"{row['metrics'][key]:.3f} ({_range(row['intervals'][key])})" for key in COLUMNS]
        title = VARIANTS[name].title if name in VARIANTS else name
        lines.append([title, *cells, *(f"{row['findings'][fact]:.0%}" for fact in facts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def section(name: str, rows: dict[str, dict[str, Any]], references: Sequence[str]) -> str:
    trap, row = VARIANTS[name], rows[name]
    test = row["test"]["cider"]
    verdict = "" if test["p"] < 0.05 else ", not significant"
    example = next((i for i, text in enumerate(rows["correct"]["captions"]) if text != row["captions"][i]), 0)
    return (
        f"\n## {trap.title[0].upper()}{trap.title[1:]}\n\n"
        f"CIDEr {row['metrics']['cider']:.3f} instead of {rows[trap.control]['metrics']['cider']:.3f} for the "
        f"{VARIANTS[trap.control].title}: {-test['difference']:+.3f} ({-test['high']:+.3f} to {-test['low']:+.3f}), "
        f"p {test['p']:.4f}{verdict}.\n\n"
        f"- symptom: {trap.symptom}\n- reference: {references[example]}\n- prediction: {row['captions'][example]}\n"
    )


def without_lower_score(rows: dict[str, dict[str, Any]]) -> str:
    """Return the pitfalls without a significant effect, and those that raise the score."""
    tests = {trap.title: rows[name]["test"]["cider"] for name, trap in VARIANTS.items() if trap.symptom}
    unaffected = [title for title, test in tests.items() if test["p"] >= 0.05]
    better = [title for title, test in tests.items() if test["p"] < 0.05 and test["difference"] < 0]
    lines = ["\n## Pitfalls without a lower score\n"]
    lines += [f"- {title}: no significant difference in CIDEr on synthetic data" for title in unaffected] or ["- none"]
    lines += [f"- {title}: CIDEr is *higher*, which hides the error" for title in better]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("traps"), help="folder for data, runs and captions")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="run only these variants and write no document")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run_one(options.one, options.out)
    from medcap.phantom.dataset import write_phantom

    if not (options.out / "data").is_dir():
        write_phantom(options.out / "data", **SIZES, seed=SEED)
    for name in options.only or VARIANTS:
        if not (options.out / name / "captions.json").is_file():
            sys.stderr.write(f"\n{name}: {VARIANTS[name].title}\n")
            argv = [sys.executable, __file__, "--out", str(options.out), "--one", name]
            subprocess.run(argv, check=True)
    if not options.only:
        write_document(options.out, score(options.out))
        print(DOCUMENT)
    return None


if __name__ == "__main__":
    main()
