"""Card data of an imagined run, and helpers that read a rendered card."""

import re

from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.metrics.coco import METRICS
from medcap.publish.card_data import CardData

RECIPE = {
    "data_dir": "radiographs",
    "model_name_or_path": "Salesforce/blip-image-captioning-base",
    "prompt": "",
    "max_caption_tokens": 96,
    "lora_target_modules": r"text_decoder\.(query|value)",
    "max_new_tokens": 48,
    "learning_rate": 1e-4,
    "bf16": True,
}
ENVIRONMENT = {
    "medcap": "0.1.0",
    "commit": None,
    "device": "cpu, 2 threads",
    "training_seconds": 812.4,
    "packages": {"torch": "2.13.0"},
    "seed": 7,
    "data": {"train": {"rows": 12345, "read": 12350, "blank": 5, "fingerprint": "c5ba788748f8d0bb"}},
}
CURVE = [
    {"epoch": 1.0, "step": 13, "loss": None, "eval_loss": 0.95171, "eval_cider": 0.49983, "eval_runtime": 111.37},
    {"epoch": 2.0, "step": 1026, "loss": 0.90457, "eval_loss": 0.91712, "eval_cider": 0.50425, "eval_runtime": 142.36},
]
SCORES = dict(zip(METRICS, (0.33746643884609073, 0.25, 0.17, 0.1, 0.14, 0.32, 1e-05), strict=True))
LOW, HIGH = dict.fromkeys(METRICS, 0.0), {**SCORES, "cider": 0.0862}
FINDINGS = {"modality": 0.97, "side": 0.8125, "level": 0.9, "finding": 0.85}
SUMMARY = {
    "distinct": 3,
    "most_frequent": "ct scan",
    "most_frequent_fraction": 0.611,
    "repeated_fraction": 0.0,
    "mean_words": 12.34,
    "cut_fraction": 0.0139,
}
EVALUATION = {
    "name": "6 epochs",
    "split": "test",
    "metrics": SCORES,
    "n": 72,
    "signature": "metrics:coco|n:72|decoding:beams-3",
    "captions": SUMMARY,
    "baselines": {
        "constant": {"name": "constant", "n": 72, "caption": "ct of the chest", "metrics": HIGH},
        "shuffled": {"name": "shuffled", "n": 72, "metrics": LOW},
    },
}
INTERVALS = {name: [value / 2, value * 2] for name, value in SCORES.items()}
FACT_SCORES = {
    "kinds": {"finding": {"precision": 0.9, "recall": 0.85, "f1": 0.875, "predicted": 20, "reference": 21}},
    "sides": {row: {**dict.fromkeys(("left", "right", "both", "none"), 0), row: 9} for row in ("left", "right")},
    "one_side": 16,
    "wrong_side": 0.125,
}
FAILURES = {
    "invented finding": {
        "count": 3,
        "of": 40,
        "examples": [{"caption": "a | mass", "predicted": ["mass"], "reference": []}],
    }
}
MODALITIES = {"modality": [{"value": "CT", "n": 40, "metrics": SCORES, "intervals": INTERVALS}], "length": []}
FULL = {**EVALUATION, "intervals": INTERVALS, "facts": FACT_SCORES, "failures": FAILURES, "breakdown": MODALITIES}


def card_data(**changes):
    """Card data with `changes`; evaluation and comparison are given as JSON."""
    fields = {"base": RECIPE["model_name_or_path"], "base_is_local": False, "base_kind": "blip", "recipe": RECIPE}
    fields |= {"environment": ENVIRONMENT, "curve": CURVE, "evaluation": EVALUATION, **changes}
    for name, kind in (("evaluation", EvaluationResult), ("comparison", Comparison)):
        if fields.get(name) is not None:
            fields[name] = kind.from_json(fields[name])
    return CardData(**fields)


def rows(card):
    """Return the cells of every table row by its first cell; `\\|` does not separate cells."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {line[0]: line[1:] for line in cells}


def usage_code(card):
    """Return the Python example of a card."""
    return re.search(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[1]


def section(card, title):
    """Return the text below a heading, up to the next heading."""
    return re.search(rf"^##+ {title}\n(.*?)(?=^##+ |\Z)", card, re.DOTALL | re.MULTILINE)[1]
