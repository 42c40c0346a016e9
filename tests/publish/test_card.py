"""The card shows exactly what was measured, and text from files cannot break its Markdown."""

import ast
import importlib.resources
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.metrics.coco import METRICS
from medcap.publish.card import TAGS, hub_results, render_card
from medcap.publish.card_data import CardData
from medcap.publish.markdown import escape
from medcap.reporting.tables import TITLES

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


def card_data(**changes):
    """Card data with `changes`; evaluation and comparison are given as JSON."""
    fields = {"base": RECIPE["model_name_or_path"], "base_is_local": False, "base_image_size": 384, "recipe": RECIPE}
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


def program(card):
    return re.search(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[1]


def section(card, title):
    return re.search(rf"^##+ {title}\n(.*?)(?=^##+ |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_front_matter_for_the_hub():
    found = ModelCard(render_card(card_data())).data
    assert found.base_model == "Salesforce/blip-image-captioning-base"
    assert (found.library_name, found.pipeline_tag, found.language) == ("peft", "image-to-text", "en")
    assert found.tags == TAGS
    assert found.metrics == ["bleu", "meteor", "rouge", "cider"]
    assert found.model_name == "blip-image-captioning-base-lora-radiographs"


def test_front_matter_has_exactly_the_scores_of_metrics_json():
    results = ModelCard(render_card(card_data())).data.eval_results
    assert {result.metric_name: result.metric_value for result in results} == {
        TITLES[name]: value for name, value in SCORES.items()
    }
    assert {(result.dataset_name, result.dataset_split) for result in results} == {("radiographs", "test")}


PHANTOMS = {**EVALUATION, "findings": FINDINGS}
LICENCES = {
    "the mirror on the Hub": ("eltorio/ROCOv2-radiology", EVALUATION, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "a folder of ROCOv2": ("rocov2", EVALUATION, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "not evaluated": ("rocov2", None, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "phantoms, by their truth": ("rocov2", PHANTOMS, "other", None),
    "phantoms, by name": ("rocov2-phantom", None, "other", None),
    "other data": ("radiographs", EVALUATION, "other", None),
}


@pytest.mark.parametrize(("data", "evaluation", "licence", "datasets"), LICENCES.values(), ids=LICENCES)
def test_licence_depends_on_data_set(data, evaluation, licence, datasets):
    card = ModelCard(render_card(card_data(recipe={**RECIPE, "data_dir": data}, evaluation=evaluation)))
    assert card.data.license == licence
    assert card.data.get("datasets") == datasets
    assert ("non-commercial" in card.text) == (licence == "cc-by-nc-4.0")
    assert ("no patient in them" in card.text) == ("phantom" in data or evaluation is PHANTOMS)


def test_results_show_adapter_and_baselines():
    table = rows(section(render_card(card_data()), "Results"))
    assert table["**6 epochs** (this adapter)"] == [f"{value:.4f}" for value in SCORES.values()]
    assert table["constant"] == [f"{value:.4f}" for value in HIGH.values()]
    assert table["shuffled"] == ["0.0000"] * 7
    assert "ct of the chest" in section(render_card(card_data()), "Results")
    assert escape(EVALUATION["signature"]) in section(render_card(card_data()), "Results")


def test_results_show_every_system_of_the_comparison():
    base = {
        "name": "without fine-tune",
        "n": 72,
        "metrics": LOW,
        "findings": {"modality": 0.2},
        "signature": "metrics:other|n:72",
    }
    systems = [
        base,
        {"name": "6 epochs", "n": 72, "metrics": SCORES, "findings": FINDINGS},
        {"name": "4 epochs", "n": 72, "metrics": SCORES},
    ]
    results = section(render_card(card_data(comparison={"systems": systems, "tests": []})), "Results")
    scores, found = results.split("Fraction of images")
    assert list(rows(scores))[2:] == ["without fine-tune", "**6 epochs** (this adapter)", "4 epochs"]
    assert rows(found)["**6 epochs** (this adapter)"] == ["97.0%", "81.2%", "90.0%", "85.0%"]
    assert rows(found)["without fine-tune"] == ["20.0%", "", "", ""]
    assert "4 epochs" not in found
    assert "Signature of without fine-tune: <code>metrics:other&#124;n:72</code>" in results


def test_card_states_metrics_not_above_a_baseline():
    results = section(render_card(card_data()), "Results")
    everything = ", ".join(TITLES.values())  # equal is not above
    assert f"not above *constant* in {everything}." in results
    assert "not above *shuffled*" not in results


INTERVALS = {name: [value / 2, value * 2] for name, value in SCORES.items()}
FACT_SCORES = {
    "kinds": {"finding": {"precision": 0.9, "recall": 0.85, "f1": 0.875, "predicted": 20, "reference": 21}},
    "sides": {row: {**dict.fromkeys(("left", "right", "both", "none"), 0), row: 9} for row in ("left", "right")},
    "one_side": 16,
    "wrong_side": 0.125,
}
WRONG = {
    "invented finding": {
        "count": 3,
        "of": 40,
        "examples": [{"caption": "a | mass", "predicted": ["mass"], "reference": []}],
    }
}
MODALITIES = {"modality": [{"value": "CT", "n": 40, "metrics": SCORES, "intervals": INTERVALS}], "length": []}
FULL = {**EVALUATION, "intervals": INTERVALS, "facts": FACT_SCORES, "failures": WRONG, "breakdown": MODALITIES}


def test_scores_with_intervals():
    table = rows(section(render_card(card_data(evaluation=FULL)), "Results"))
    assert table["**6 epochs** (this adapter)"][0] == "0.3375 (0.169 to 0.675)"
    assert table["constant"][0] == "0.3375"


def test_differences_are_stated_for_this_adapter():
    systems = [
        {"name": name, "n": 72, "metrics": scores}
        for name, scores in (("a_b", LOW), ("6 epochs", SCORES), ("c", HIGH))
    ]
    pairs = [("a_b", "6 epochs", -0.1, True), ("6 epochs", "c", -0.2, False), ("a_b", "c", -0.5, True)]
    tests = [
        {
            "first": first,
            "second": second,
            "metric": metric,
            "difference": difference,
            "p": 0.5,
            "low": -1.0,
            "high": 1.0,
            "significant": significant,
        }
        for first, second, difference, significant in pairs
        for metric in METRICS
    ]
    results = section(render_card(card_data(comparison={"systems": systems, "tests": tests})), "Results")
    assert [line for line in results.splitlines() if line.startswith("- ")] == [
        "- 6 epochs against a_b: above in all metrics",
        "- 6 epochs against c: no significant difference in all metrics",
    ]
    assert "not tested" not in results
    assert "The differences in this table were not tested" in section(render_card(card_data()), "Results")


def test_modalities_sides_and_failures():
    card = render_card(card_data(evaluation=FULL))
    assert rows(section(card, "By modality"))["CT"][:2] == ["40", "0.1000 (0.050 to 0.200)"]
    failures = section(card, "Factual errors")
    assert rows(failures)["finding"] == ["0.9000", "0.8500", "0.8750", "20", "21"]
    assert rows(failures)["reference: left"] == ["9", "0", "0", "0"]
    assert "Wrong side in 12.5% of the 16 captions" in failures
    assert "- **invented finding**: 3 of 40 applicable captions (7.5%)" in failures
    assert "“a &#124; mass”: predicted mass, reference none" in failures


def test_splits_table_shows_rows_left_out_and_filters():
    data = {"train": {"rows": 90, "read": 100, "leaked_group": 7, "duplicate": 3, "license": 0, "fingerprint": "f"}}
    recipe = {**RECIPE, "exclude_leaks": True, "license_filter": "commercial", "train_fraction": 0.1}
    part = section(render_card(card_data(environment={**ENVIRONMENT, "data": data}, recipe=recipe)), "Training data")
    assert rows(part)["split"] == [
        "images used", "captions read", "articles or patients of a later split", "near-duplicate images",
        "fingerprint",
    ]  # fmt: skip
    for text in ("licences that allow commercial use", "of a later split removed", "10% of the training split"):
        assert text in part


def test_energy_from_codecarbon():
    energy = {"duration": 61.7, "energy_consumed": 0.00123456, "emissions": 0.0004}
    assert "Training took 62 s and 0.001235 kWh, measured or estimated by codecarbon" in render_card(
        card_data(energy=energy)
    )


def test_plots_are_embedded():
    shown = render_card(card_data(plots=["curve.png", "scores.png"]))
    assert "](curve.png)" in section(shown, "Training curve")
    assert "](scores.png)" in section(shown, "Results")


def test_eval_results_yaml_for_a_data_set_on_the_hub():
    results = hub_results(card_data(recipe={**RECIPE, "data_dir": "rocov2"}))
    entries = parse_eval_result_entries(yaml.safe_load(results))
    assert {entry.task_id: entry.value for entry in entries} == SCORES
    assert {entry.dataset_id for entry in entries} == {"eltorio/ROCOv2-radiology"}
    assert hub_results(card_data()) is None  # a folder is no data set of the Hub
    assert hub_results(card_data(recipe={**RECIPE, "data_dir": "rocov2"}, evaluation=None)) is None


def test_metadata_of_a_merged_model():
    card = render_card(card_data(format="merged"))
    found = ModelCard(card).data
    assert (found.library_name, found.get("base_model_relation")) == ("transformers", "finetune")
    assert "peft" not in program(card)
    assert found.model_name == "blip-image-captioning-base-merged-radiographs"


def test_captions_recipe_data_and_machine():
    card = render_card(card_data())
    diversity = section(card, "Caption diversity")
    assert "3 different captions for 72 images, 12.3 words on average" in diversity
    assert "61.1% of the images: “ct scan”" in diversity
    assert "1.4% of the evaluated captions were cut at the limit of 48 new tokens" in card
    assert rows(section(card, "Training data"))["train"] == ["12,345", "12,350", "5", "c5ba788748f8d0bb"]
    recipe = rows(section(card, "Training recipe"))
    assert list(recipe)[2:] == [f"`{key}`" for key in RECIPE]
    assert recipe["`learning_rate`"] == ["`0.0001`", "`5e-05`"]  # and medcap's default, if different
    assert recipe["`bf16`"] == ["`true`", "`false`"]
    assert recipe["`max_caption_tokens`"] == ["`96`", ""]
    assert recipe["`data_dir`"] == ["`radiographs`", ""]  # has no default
    assert recipe["`lora_target_modules`"] == [r"`text_decoder\.(query\|value)`", "`attention`"]
    machine = rows(section(card, "Hardware and software"))
    assert machine["device"] == ["cpu, 2 threads"]
    assert machine["training_seconds"] == ["812.4"]
    assert machine["torch"] == ["2.13.0"]
    assert machine["seed"] == ["7"]
    assert "commit" not in machine


def test_training_curve_has_measured_columns_only():
    curve = section(render_card(card_data()), "Training curve")
    assert rows(curve) == {
        "epoch": ["step", "training loss", "validation loss", "CIDEr"],
        "---": ["---:"] * 4,
        "1": ["13", "", "0.9517", "0.4998"],
        "2": ["1,026", "0.9046", "0.9171", "0.5042"],
    }
    assert "the best one by `cider`" in curve
    kept_last = render_card(card_data(recipe={**RECIPE, "load_best_model_at_end": False}))
    assert "The released epoch is the last one." in section(kept_last, "Training curve")


def test_missing_measurements_are_left_out():
    card = render_card(card_data(evaluation=None, environment=None, curve=[]))
    assert "not evaluated" in section(card, "Results")
    assert section(card, "Caption diversity").strip() == "Not measured."
    assert section(card, "Factual errors").strip() == "Not measured."
    assert "Energy consumption was not measured." in card
    assert "](curve.png)" not in card
    assert "no record of the number of images" in section(card, "Training data")
    assert "Not recorded." in section(card, "Training curve")
    assert "Not recorded." in section(card, "Hardware and software")
    assert next(iter(rows(card))) == "key"  # the recipe is the only table
    assert ModelCard(card).data.eval_results is None
    assert not re.search(r"\b(None|nan|Undefined)\b|\{%|(?<!= )\{\{", card)  # `= {{` is BibTeX's


def test_card_is_deterministic():
    assert render_card(card_data()) == render_card(
        card_data(recipe=dict(RECIPE), evaluation=json.loads(json.dumps(EVALUATION)))
    )


SPECIAL_TEXTS = [
    "<script>alert(1)</script>",
    "a | b",
    "`code` | ``` fence",
    "*bold* _it_ __b__ ~~s~~ $x$",
    "![x](https://example.com/x.png) [y](javascript:z)",
    "two\n\n# lines\n---\n| a | b |",
    "back\\slash \\| pipe \\",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; “quotes” α",
]


def evaluation_with_value(special):
    example = {"caption": special, "predicted": [special], "reference": [special]}
    return {
        **FULL,
        "breakdown": {"modality": [{**MODALITIES["modality"][0], "value": special}], "length": []},
        "failures": {special: {"count": 1, "of": 2, "examples": [example]}},
    }


@pytest.mark.parametrize("special", SPECIAL_TEXTS)
def test_text_from_files_is_escaped(special):
    plain = render_card(card_data(evaluation=evaluation_with_value("plain")))
    evaluation = {
        **evaluation_with_value(special),
        "name": special,
        "signature": f"metrics:{special.replace('|', '/')}",
        "captions": {**SUMMARY, "most_frequent": special},
        "baselines": {name: {**row, "caption": special} for name, row in EVALUATION["baselines"].items()},
    }
    recipe = {**RECIPE, "prompt": special, "lora_target_modules": special}
    card = render_card(card_data(evaluation=evaluation, recipe=recipe, environment={**ENVIRONMENT, "device": special}))
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", card, flags=re.DOTALL | re.MULTILINE)  # code is shown as it is
    assert "<script" not in text
    assert "](" not in text.replace("](#reproduce)", "").replace("](https://doi.org/10.1038/s41597-024-03496-6)", "")
    assert {line for line in text.splitlines() if line.startswith("#")} == {
        line for line in plain.splitlines() if line.startswith("#")
    }
    assert shape(card) == shape(plain)
    ast.parse(program(card))
    assert ModelCard(card).data.eval_results


def shape(card):
    """Return the number of cells of each table row, as GitHub counts them."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [len(re.sub(r"\\.", "", line).split("|")) for line in lines]


SIZES = {
    "the base's": (None, 384, False),
    "the same, written down": (384, 384, False),
    "another": (224, 384, True),
    "another, or not: harmless": (224, None, True),
}


@pytest.mark.parametrize(("size", "of_base", "flag"), SIZES.values(), ids=SIZES)
def test_interpolation_only_for_another_image_size(size, of_base, flag):
    recipe = {**RECIPE, "image_size": size} if size else RECIPE
    shown = program(render_card(card_data(recipe=recipe, base_image_size=of_base)))
    assert ("interpolate_pos_encoding=True" in shown) == flag


def test_usage_code_names_base_release_and_revision():
    recipe = {**RECIPE, "model_revision": "v1", "quantization": "4bit"}
    card = render_card(card_data(recipe=recipe, repo_id="someone/radiology-captions"))
    shown = program(card)
    assert '"Salesforce/blip-image-captioning-base", "someone/radiology-captions"' in shown
    assert 'from_pretrained(base, revision="v1")' in shown
    assert "the example loads the base without quantization" in card
    assert card.count("\n# radiology-captions\n") == 1
    imported = [node.module for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.ImportFrom)]
    assert sorted(imported) == ["PIL", "peft", "transformers"]
    work = [line for line in shown.splitlines() if line and not line.startswith(("from ", "base, "))]
    assert len(work) == 5


def test_template_is_package_data():
    assert importlib.resources.files("medcap.publish").joinpath("card_template.md").is_file()
