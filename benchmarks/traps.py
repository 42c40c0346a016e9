"""What each mistake of fine-tuning BLIP costs: the phantom recipe with one of them put back at a time.

    python benchmarks/traps.py
    python benchmarks/traps.py --out traps --only black pads

Every mistake is put back from outside the package, in a process of its own, with the data, the seeds and the recipe of
quickstart's "4 epochs". What was made is kept in --out and not made again; docs/traps.md is written from it. About
twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
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
DOCUMENT = ROOT / "docs" / "traps.md"
SIZES = {"train": 2000, "valid": 100, "test": 300}
SMALL = 64  # pixels a side, where the tiny base has 96
PADDED = 128  # tokens that every caption is padded to
SEED = 0
Patch = Callable[[Any], None]


@dataclass(frozen=True)
class Trap:
    """One way to run the recipe: a mistake, or a control that is right and has no `sign`.

    `sign` is how to see the mistake in one's own run.
    `patches` are put on before training, `words` change the recipe, `after` is another variant whose adapter is taken,
    `against` the control it is compared with.
    """

    title: str
    sign: str = ""
    patches: tuple[Patch, ...] = ()
    words: tuple[str, ...] = ()
    after: str | None = None
    against: str = "right"
    generation: tuple[tuple[str, int], ...] = ()
    restore: bool = True
    tokenized: bool = False
    leaks: bool = False


def black(script: Any) -> None:
    """Divide the pixels by 255 once more, as a tensor of 0 to 1 in BlipProcessor is."""
    from medcap.data.images import ImageTransform

    plain = ImageTransform.__call__

    def twice(self: Any, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        import torch

        made = plain(self, batch)
        mean, std = (torch.tensor(values)[:, None, None] for values in _normalisation(self.image_processor))
        made["pixel_values"] = [(x / 255 / 255 - mean) / std for x in made.get("pixel_values", [])]
        return made if "image" in batch else plain(self, batch)

    ImageTransform.__call__ = twice  # type: ignore[method-assign]


def _normalisation(processor: Any) -> tuple[Sequence[float], Sequence[float]]:
    return processor.image_mean, processor.image_std


def first_rows(script: Any) -> None:
    """Give a smaller picture the first rows of the position embeddings, as BLIP does by itself."""
    from torch import nn

    from medcap.modeling import blip

    def resize(model: Any, image_size: int) -> None:
        embeddings = model.vision_model.embeddings
        count = (image_size // embeddings.patch_size) ** 2 + 1
        rows = embeddings.position_embedding.data[:, :count].clone()
        embeddings.position_embedding = nn.Parameter(rows, requires_grad=False)
        embeddings.image_size = model.config.vision_config.image_size = image_size
        embeddings.num_patches, embeddings.num_positions = count - 1, count

    blip.resize_positions = resize


def cls_first(script: Any) -> None:
    """Begin the captions of training with [CLS], which generation does not."""
    from transformers import BlipProcessor

    from medcap.phantom import TINY_BASE

    script.first_token_id = lambda model: BlipProcessor.from_pretrained(TINY_BASE).tokenizer.cls_token_id


def pads_scored(script: Any) -> None:
    """Pad every caption to one length, attend to the pads, and learn them."""
    import torch
    from torch.nn import functional as F

    from medcap.data.captions import CaptionCollator

    plain = CaptionCollator._text

    def padded(self: Any, captions: list[str]) -> dict[str, torch.Tensor]:
        ids = plain(self, captions)["input_ids"]
        ids = F.pad(ids, (0, PADDED - ids.shape[1]), value=self.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    CaptionCollator._text = padded  # type: ignore[method-assign]


def not_divided(script: Any) -> None:
    """Take BLIP's mean over each micro-batch, which the Trainer then believes to be divided already."""
    from medcap.training.trainer import CaptionTrainer

    plain = CaptionTrainer.compute_loss

    def mean(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return plain(self, model, inputs, return_outputs, None)

    CaptionTrainer.compute_loss = mean  # type: ignore[method-assign]


SELF_ONLY = ("--lora_target_modules", r"text_decoder\.bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)")
MICRO = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4")
AT_SMALL = ("--image_size", str(SMALL))
VARIANTS = {
    "right": Trap("the right way"),
    "black": Trap(
        "pictures rescaled twice: black",
        "`pixel_values.max()` is below 0, where a picture with bright parts reaches about 2",
        patches=(black,),
    ),
    "small": Trap(f"the right way at {SMALL} px", words=AT_SMALL),
    "positions": Trap(
        f"{SMALL} px on a base of 96 px, first rows of its positions",
        "`interpolate_pos_encoding` is False while `image_size` is not the base's",
        patches=(first_rows,), words=AT_SMALL, against="small",
    ),
    "cls": Trap(
        "[CLS] first in training, [DEC] in generation",
        "`input_ids[:, 0]` of a training batch is not `config.text_config.bos_token_id`", patches=(cls_first,),
    ),
    "pads": Trap(
        f"captions padded to {PADDED} tokens, pads attended to and scored",
        "`(labels == tokenizer.pad_token_id).any()` is True",
        patches=(pads_scored,),
    ),
    "self": Trap(
        "LoRA on query and key of self-attention alone",
        "no name among the trainable weights holds `crossattention`", words=SELF_ONLY,
    ),
    "micro": Trap("the right way in micro-batches, 4 x 4", words=MICRO),
    "accumulation": Trap(
        "accumulation not divided, 4 x 4",
        "loss and gradient norm are `gradient_accumulation_steps` times those of one large batch",
        patches=(not_divided,), words=MICRO, against="micro",
    ),
    "leak": Trap(
        "reference given to `generate` as a prompt", "every prediction begins with its own reference",
        after="right", leaks=True,
    ),
    "whitespace": Trap(
        "scored without PTB tokens", "the metric's signature, or code, names no tokeniser",
        after="right", tokenized=True,
    ),
    "cap": Trap(
        "generation's own limit, 20 tokens",
        "captions end in the middle of a sentence (phantoms have shorter ones): a cut share above 0",
        after="right", generation=(("max_new_tokens", 19),),
    ),
    "decoded": Trap(
        "captions as WordPiece leaves them", 'predictions hold "x - ray" and "3. 5 cm"', after="right", restore=False,
    ),
    "seed": Trap(
        "all that the replaced project did, together", "CIDEr is below the constant sentence's",
        patches=(black, first_rows, cls_first, pads_scored, not_divided), words=(*SELF_ONLY, *MICRO, *AT_SMALL),
        generation=(("max_new_tokens", 19),), restore=False, tokenized=True,
    ),
}  # fmt: skip


def run_one(name: str, out: Path) -> None:
    """Train (or take another variant's adapter) and caption the test split, with the mistake in place."""
    trap, folder = VARIANTS[name], out / name
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for patch in trap.patches:
        patch(script)
    started = time.monotonic()
    if trap.after is None:
        script.main([*recipe_words(out, folder), *trap.words])
    seconds = time.monotonic() - started
    captions = caption(trap, out / (trap.after or name) / "run" / "adapter", out / "data")
    folder.mkdir(exist_ok=True)
    content = json.dumps({"captions": captions, "seconds": seconds})
    (folder / "captions.json.part").write_text(content, encoding="utf-8")
    (folder / "captions.json.part").replace(folder / "captions.json")


def recipe_words(out: Path, folder: Path) -> list[str]:
    from medcap.phantom import TINY_BASE

    recipe = ROOT / "recipes" / "phantom" / "4-epochs.yaml"
    words = ["--config", str(recipe), "--data_dir", str(out / "data"), "--model_name_or_path", str(TINY_BASE)]
    words += ["--feature_cache", "off"]  # its key does not know of mistakes that are put back
    return [*words, "--output_dir", str(folder / "run"), "--seed", str(SEED), "--use_cpu", "true"]


def caption(trap: Trap, adapter: Path, data: Path) -> list[str]:
    from medcap.evaluation.split import load_split
    from medcap.inference import caption_dataset, load_captioner

    captioner = load_captioner(str(adapter), generation=dict(trap.generation), detokenize=trap.restore)
    split = load_split(str(data), "test")
    if trap.leaks:
        return continued(captioner, split.rows)
    return caption_dataset(captioner, split.rows, batch_size=50)[0]


def continued(captioner: Any, rows: Any) -> list[str]:
    """What Seq2SeqTrainer does with a batch that holds `input_ids`: the reference is the prompt."""
    import torch

    from medcap.data.captions import CaptionCollator
    from medcap.data.images import with_pixel_values
    from medcap.modeling.blip import decode_captions, first_token_id

    needed = rows.select_columns(["image_id", "image", "caption"])
    images = with_pixel_values(needed, captioner.processor.image_processor)
    collate = CaptionCollator(captioner.processor.tokenizer, first_token_id(captioner.model), max_caption_tokens=96)
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
    """Every variant's scores, intervals, facts and difference to its control, and those of two floors."""
    from medcap.evaluation.baselines import constant_caption, shuffled
    from medcap.evaluation.split import load_split
    from medcap.metrics.coco import Meteor, score_captions
    from medcap.metrics.statistics import bootstrap, paired_test
    from medcap.phantom.truth import findings_accuracy

    split = load_split(str(out / "data"), "test")
    assert split.training_captions is not None
    assert split.truth is not None
    made = {name: json.loads((out / name / "captions.json").read_text()) for name in VARIANTS}
    texts = {name: run["captions"] for name, run in made.items()}
    texts["constant"] = [constant_caption(split.training_captions)] * len(split.rows)
    texts["shuffled"] = shuffled(split.references)
    rows: dict[str, dict[str, Any]] = {}
    with Meteor() as meteor:
        for name, captions in tqdm(texts.items(), desc="scores", unit="variant"):
            trap = VARIANTS.get(name, Trap(name))
            references = [[reference] for reference in split.references]
            scores = score_captions(captions, references, tokenized=trap.tokenized, meteor=meteor)
            rows[name] = {
                "metrics": scores.metrics,
                "intervals": bootstrap(scores.statistics),
                "findings": findings_accuracy(captions, split.ids, split.truth),
                "statistics": scores.statistics,
                "captions": captions,
                "seconds": made.get(name, {}).get("seconds"),
            }
    for name, trap in VARIANTS.items():
        rows[name]["test"] = paired_test(rows[trap.against]["statistics"], rows[name]["statistics"])
    return rows


def write(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    with (out / "data" / "test_captions.csv").open(encoding="utf-8", newline="") as file:
        references = [row["Caption"] for row in csv.DictReader(file)]
    taken = sum(row["seconds"] or 0 for row in rows.values())
    parts = [HEAD.format(**SIZES, cores=os.cpu_count(), minutes=taken / 60, trainings=_trainings(), **_versions())]
    parts += [results(rows), NOTES, *(section(name, rows, references) for name in VARIANTS if VARIANTS[name].sign)]
    parts += [harmless(rows)]
    DOCUMENT.write_text("\n".join(parts), encoding="utf-8")


HEAD = """# What each mistake costs

Written by `benchmarks/traps.py`: quickstart's recipe `recipes/phantom/4-epochs.yaml` with one mistake put back at a
time, from outside of the package. The same {train:,} training, {valid} validation and {test} test phantoms, the same
seed ({seed}), one run each: what another seed would change is not in these numbers. {trainings} trainings took
{minutes:.0f} minutes on {cores} CPU cores beside other work. medcap {medcap}, transformers {transformers},
peft {peft}, torch {torch}.

A tiny base and drawn pictures are not BLIP-base and ROCOv2: how much a mistake costs there was not measured.
"""
NOTES = """
In brackets 95 % bootstrap intervals. Modality to finding: share of images whose caption names it rightly.
`constant` and `shuffled` need no model.
"""
SHOWN = {"bleu_1": "BLEU-1", "bleu_4": "BLEU-4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}


def _trainings() -> int:
    return sum(trap.after is None for trap in VARIANTS.values())


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    return {"seed": SEED, **{name: version(name) for name in ("medcap", "transformers", "peft", "torch")}}


def results(rows: dict[str, dict[str, Any]]) -> str:
    facts = list(rows["right"]["findings"])
    lines = [["", *SHOWN.values(), *facts], ["---"] + ["---:"] * (len(SHOWN) + len(facts))]
    for name, row in rows.items():
        cells = [f"{row['metrics'][key]:.3f} ({_range(row['intervals'][key])})" for key in SHOWN]
        title = VARIANTS[name].title if name in VARIANTS else name
        lines.append([title, *cells, *(f"{row['findings'][fact]:.0%}" for fact in facts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def section(name: str, rows: dict[str, dict[str, Any]], references: Sequence[str]) -> str:
    trap, row = VARIANTS[name], rows[name]
    test = row["test"]["cider"]
    real = "" if test["p"] < 0.05 else ", not significant"
    example = next((i for i, text in enumerate(rows["right"]["captions"]) if text != row["captions"][i]), 0)
    return (
        f"\n## {trap.title[0].upper()}{trap.title[1:]}\n\n"
        f"CIDEr {row['metrics']['cider']:.3f} against {rows[trap.against]['metrics']['cider']:.3f} of "
        f"{VARIANTS[trap.against].title}: {-test['difference']:+.3f} ({-test['high']:+.3f} to {-test['low']:+.3f}), "
        f"p {test['p']:.4f}{real}.\n\n"
        f"- how to see it: {trap.sign}\n- reference: {references[example]}\n- prediction: {row['captions'][example]}\n"
    )


def harmless(rows: dict[str, dict[str, Any]]) -> str:
    """What cost nothing that could be measured, and what even raised a score."""
    tests = {trap.title: rows[name]["test"]["cider"] for name, trap in VARIANTS.items() if trap.sign}
    none = [title for title, test in tests.items() if test["p"] >= 0.05]
    better = [title for title, test in tests.items() if test["p"] < 0.05 and test["difference"] < 0]
    lines = ["\n## What cost nothing here\n"]
    lines += [f"- {title}: no significant difference in CIDEr on phantoms" for title in none] or ["- nothing"]
    lines += [f"- {title}: CIDEr is *higher*, which is why it is a trap and not a feature" for title in better]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("traps"), help="folder of data, runs and captions")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="make these variants, and write no document")
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
            words = [sys.executable, __file__, "--out", str(options.out), "--one", name]
            subprocess.run(words, check=True)
    if not options.only:
        write(options.out, score(options.out))
        print(DOCUMENT)
    return None


if __name__ == "__main__":
    main()
