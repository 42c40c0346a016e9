"""The card says what was measured, all of it and nothing else; nothing in it breaks the page."""

import ast
import importlib.resources
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from medcap.metrics.coco import METRICS
from medcap.publish.card import TAGS, CardData, hub_results, render_card
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
FOUND = {"modality": 0.97, "side": 0.8125, "level": 0.9, "finding": 0.85}
SAID = {
    "distinct": 3,
    "most_frequent": "ct scan",
    "most_frequent_share": 0.611,
    "mean_words": 12.34,
    "cut_fraction": 0.0139,
}
EVALUATION = {
    "name": "6 epochs",
    "split": "test",
    "metrics": SCORES,
    "n": 72,
    "signature": "metrics:coco|n:72|decoding:beams-3",
    "captions": SAID,
    "baselines": {"constant": {"caption": "ct of the chest", "metrics": HIGH}, "shuffled": {"metrics": LOW}},
}


def facts(**changes):
    known = {"base": RECIPE["model_name_or_path"], "base_is_local": False, "base_image_size": 384, "recipe": RECIPE}
    return CardData(**{**known, "environment": ENVIRONMENT, "curve": CURVE, "evaluation": EVALUATION, **changes})


def rows(card):
    """The cells of every line of a table, by what stands in the first; `\\|` is no border of a cell."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {line[0]: line[1:] for line in cells}


def program(card):
    return re.search(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[1]


def section(card, title):
    return re.search(rf"^##+ {title}\n(.*?)(?=^##+ |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_front_matter_says_what_the_hub_needs():
    found = ModelCard(render_card(facts())).data
    assert found.base_model == "Salesforce/blip-image-captioning-base"
    assert (found.library_name, found.pipeline_tag, found.language) == ("peft", "image-to-text", "en")
    assert found.tags == TAGS
    assert found.metrics == ["bleu", "meteor", "rouge", "cider"]
    assert found.model_name == "blip-image-captioning-base-lora-radiographs"


def test_front_matter_has_exactly_the_scores_of_metrics_json():
    results = ModelCard(render_card(facts())).data.eval_results
    assert {result.metric_name: result.metric_value for result in results} == {
        TITLES[name]: value for name, value in SCORES.items()
    }
    assert {(result.dataset_name, result.dataset_split) for result in results} == {("radiographs", "test")}


PHANTOMS = {**EVALUATION, "findings": FOUND}
LICENCES = {
    "the mirror on the Hub": ("eltorio/ROCOv2-radiology", EVALUATION, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "a folder of ROCOv2": ("rocov2", EVALUATION, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "not evaluated": ("rocov2", None, "cc-by-nc-4.0", ["eltorio/ROCOv2-radiology"]),
    "phantoms, by their truth": ("rocov2", PHANTOMS, "other", None),
    "phantoms, by name": ("rocov2-phantom", None, "other", None),
    "other data": ("radiographs", EVALUATION, "other", None),
}


@pytest.mark.parametrize(("data", "evaluation", "licence", "datasets"), LICENCES.values(), ids=LICENCES)
def test_licence_and_data_set_go_with_the_data(data, evaluation, licence, datasets):
    card = ModelCard(render_card(facts(recipe={**RECIPE, "data_dir": data}, evaluation=evaluation)))
    assert card.data.license == licence
    assert card.data.get("datasets") == datasets
    assert ("non-commercial" in card.text) == (licence == "cc-by-nc-4.0")
    assert ("no patient in them" in card.text) == ("phantom" in data or evaluation is PHANTOMS)


def test_results_show_this_adapter_and_what_needs_no_model():
    table = rows(section(render_card(facts()), "Results"))
    assert table["**6 epochs** (this adapter)"] == [f"{value:.4f}" for value in SCORES.values()]
    assert table["constant"] == [f"{value:.4f}" for value in HIGH.values()]
    assert table["shuffled"] == ["0.0000"] * 7
    assert "ct of the chest" in section(render_card(facts()), "Results")
    assert escape(EVALUATION["signature"]) in section(render_card(facts()), "Results")


def test_results_show_every_system_of_the_comparison():
    base = {"name": "without fine-tune", "metrics": LOW, "findings": {"modality": 0.2}, "signature": "other|way"}
    systems = [
        base,
        {"name": "6 epochs", "metrics": SCORES, "findings": FOUND},
        {"name": "4 epochs", "metrics": SCORES},
    ]
    results = section(render_card(facts(comparison={"systems": systems, "tests": []})), "Results")
    scores, found = results.split("Share of images")
    assert list(rows(scores))[2:] == ["without fine-tune", "**6 epochs** (this adapter)", "4 epochs"]
    assert rows(found)["**6 epochs** (this adapter)"] == ["97.0%", "81.2%", "90.0%", "85.0%"]
    assert rows(found)["without fine-tune"] == ["20.0%", "", "", ""]  # not measured, not printed
    assert "4 epochs" not in found
    assert "without fine-tune was scored otherwise: <code>other&#124;way</code>" in results


def test_an_adapter_that_is_not_above_a_baseline_is_said_to_be_so():
    results = section(render_card(facts()), "Results")
    everything = ", ".join(TITLES.values())  # equal is not above
    assert f"not above *constant* in {everything}." in results
    assert "not above *shuffled*" not in results


INTERVALS = {name: [value / 2, value * 2] for name, value in SCORES.items()}
FACTS_SAID = {
    "kinds": {"finding": {"precision": 0.9, "recall": 0.85, "f1": 0.875, "said": 20, "true": 21}},
    "sides": {row: {**dict.fromkeys(("left", "right", "both", "none"), 0), row: 9} for row in ("left", "right")},
    "one_side": 16,
    "wrong_side": 0.125,
}
WRONG = {
    "invented finding": {"count": 3, "of": 40, "examples": [{"caption": "a | mass", "said": ["mass"], "true": []}]}
}
MODALITIES = {"modality": [{"value": "CT", "n": 40, "metrics": SCORES, "intervals": INTERVALS}], "length": []}
FULL = {**EVALUATION, "intervals": INTERVALS, "facts": FACTS_SAID, "failures": WRONG, "breakdown": MODALITIES}


def test_intervals_stand_beside_the_scores():
    table = rows(section(render_card(facts(evaluation=FULL)), "Results"))
    assert table["**6 epochs** (this adapter)"][0] == "0.3375 (0.169 to 0.675)"
    assert table["constant"][0] == "0.3375"  # not computed, not printed


def test_differences_are_told_from_this_adapters_side_as_the_tests_found_them():
    systems = [{"name": name, "metrics": scores} for name, scores in (("a_b", LOW), ("6 epochs", SCORES), ("c", HIGH))]
    pairs = [("a_b", "6 epochs", -0.1, True), ("6 epochs", "c", -0.2, False), ("a_b", "c", -0.5, True)]
    tests = [
        {"first": first, "second": second, "metric": metric, "difference": difference, "significant": real}
        for first, second, difference, real in pairs
        for metric in METRICS
    ]
    results = section(render_card(facts(comparison={"systems": systems, "tests": tests})), "Results")
    assert [line for line in results.splitlines() if line.startswith("- ")] == [
        "- 6 epochs against a_b: above in all metrics",
        "- 6 epochs against c: no real difference in all metrics",
    ]
    assert "was tested" not in results
    assert "No difference in this table was tested" in section(render_card(facts()), "Results")


def test_modalities_sides_and_failures_are_told():
    card = render_card(facts(evaluation=FULL))
    assert rows(section(card, "By modality"))["CT"][:2] == ["40", "0.1000 (0.050 to 0.200)"]
    failures = section(card, "Known failures")
    assert rows(failures)["finding"] == ["0.9000", "0.8500", "0.8750", "20", "21"]
    assert rows(failures)["reference: left"] == ["9", "0", "0", "0"]
    assert "Wrong side in 12.5% of the 16 captions" in failures
    assert "- **invented finding**: 3 of 40 captions where it could be (7.5%)" in failures
    assert "“a &#124; mass”: says mass, the reference none" in failures


def test_what_was_left_out_has_a_column_and_the_filters_are_named():
    data = {"train": {"rows": 90, "read": 100, "leaked_group": 7, "duplicate": 3, "license": 0, "fingerprint": "f"}}
    recipe = {**RECIPE, "exclude_leaks": True, "license_filter": "commercial", "train_fraction": 0.1}
    part = section(render_card(facts(environment={**ENVIRONMENT, "data": data}, recipe=recipe)), "Training data")
    assert rows(part)["split"] == [
        "images used", "captions read", "articles or patients of a later split", "repeated pictures", "fingerprint",
    ]  # fmt: skip
    for words in ("licences that allow commercial use", "of a later split left out", "10% of the training split"):
        assert words in part


def test_energy_is_told_when_it_was_counted():
    energy = {"duration": 61.7, "energy_consumed": 0.00123456, "emissions": 0.0004}
    assert "Training took 62 s and 0.001235 kWh, as codecarbon counted" in render_card(facts(energy=energy))


def test_plots_that_lie_beside_the_card_are_shown_in_it():
    shown = render_card(facts(plots=["curve.png", "scores.png"]))
    assert "](curve.png)" in section(shown, "Training curve")
    assert "](scores.png)" in section(shown, "Results")


def test_the_hubs_newer_form_has_the_scores_of_data_that_is_on_the_hub():
    results = hub_results(facts(recipe={**RECIPE, "data_dir": "rocov2"}))
    entries = parse_eval_result_entries(yaml.safe_load(results))
    assert {entry.task_id: entry.value for entry in entries} == SCORES
    assert {entry.dataset_id for entry in entries} == {"eltorio/ROCOv2-radiology"}
    assert hub_results(facts()) is None  # a folder is no data set of the Hub
    assert hub_results(facts(recipe={**RECIPE, "data_dir": "rocov2"}, evaluation=None)) is None


def test_a_merged_model_is_no_adapter():
    card = render_card(facts(format="merged"))
    found = ModelCard(card).data
    assert (found.library_name, found.get("base_model_relation")) == ("transformers", "finetune")
    assert "peft" not in program(card)
    assert found.model_name == "blip-image-captioning-base-merged-radiographs"


def test_captions_recipe_data_and_machine_are_told():
    card = render_card(facts())
    said = section(card, "How varied the captions are")
    assert "3 different captions for 72 images, 12.3 words on average" in said
    assert "61.1% of the images: “ct scan”" in said
    assert "1.4% of its captions in the evaluation were cut by the limit of 48 new tokens" in card
    assert rows(section(card, "Training data"))["train"] == ["12,345", "12,350", "5", "c5ba788748f8d0bb"]
    recipe = rows(section(card, "Recipe"))
    assert list(recipe)[2:] == [f"`{key}`" for key in RECIPE]
    assert recipe["`learning_rate`"] == ["`0.0001`", "`5e-05`"]  # and medcap's default, where it is another
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


def test_training_curve_has_a_row_per_epoch_and_the_columns_that_were_measured():
    curve = section(render_card(facts()), "Training curve")
    assert rows(curve) == {
        "epoch": ["step", "training loss", "validation loss", "CIDEr"],
        "---": ["---:"] * 4,
        "1": ["13", "", "0.9517", "0.4998"],
        "2": ["1,026", "0.9046", "0.9171", "0.5042"],
    }
    assert "best by `cider`" in curve
    kept_last = render_card(facts(recipe={**RECIPE, "load_best_model_at_end": False}))
    assert "Released is the last epoch." in section(kept_last, "Training curve")


def test_what_was_not_measured_is_not_there():
    card = render_card(facts(evaluation=None, environment=None, curve=[]))
    assert "not evaluated" in section(card, "Results")
    assert section(card, "How varied the captions are").strip() == "Not measured."
    assert section(card, "Known failures").strip() == "Not measured."
    assert "Energy was not measured." in card
    assert "](curve.png)" not in card
    assert "counts were not kept" in section(card, "Training data")
    assert "not kept" in section(card, "Training curve")
    assert "not kept" in section(card, "Hardware and software")
    assert next(iter(rows(card))) == "key"  # the recipe is the only table
    assert ModelCard(card).data.eval_results is None
    assert not re.search(r"\b(None|nan|Undefined)\b|\{%|(?<!= )\{\{", card)  # `= {{` is BibTeX's


def test_same_facts_same_bytes():
    assert render_card(facts()) == render_card(
        facts(recipe=dict(RECIPE), evaluation=json.loads(json.dumps(EVALUATION)))
    )


NASTY = [
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


def with_parts_called(nasty):
    example = {"caption": nasty, "said": [nasty], "true": [nasty]}
    return {
        **FULL,
        "breakdown": {"modality": [{**MODALITIES["modality"][0], "value": nasty}], "length": []},
        "failures": {nasty: {"count": 1, "of": 2, "examples": [example]}},
    }


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_in_a_caption_or_a_name_breaks_the_page(nasty):
    plain = render_card(facts(evaluation=with_parts_called("plain")))
    evaluation = {
        **with_parts_called(nasty),
        "name": nasty,
        "signature": nasty,
        "captions": {**SAID, "most_frequent": nasty},
        "baselines": {"constant": {"caption": nasty, "metrics": HIGH}, "shuffled": {"metrics": LOW}},
    }
    recipe = {**RECIPE, "prompt": nasty, "lora_target_modules": nasty}
    card = render_card(facts(evaluation=evaluation, recipe=recipe, environment={**ENVIRONMENT, "device": nasty}))
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
    """How many cells each line of a table has, as GitHub counts them."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [len(re.sub(r"\\.", "", line).split("|")) for line in lines]


SIZES = {
    "the base's": (None, 384, False),
    "the same, written down": (384, 384, False),
    "another": (224, 384, True),
    "another, or not: harmless": (224, None, True),
}


@pytest.mark.parametrize(("size", "of_base", "flag"), SIZES.values(), ids=SIZES)
def test_positions_are_interpolated_exactly_when_the_size_is_not_the_bases(size, of_base, flag):
    recipe = {**RECIPE, "image_size": size} if size else RECIPE
    shown = program(render_card(facts(recipe=recipe, base_image_size=of_base)))
    assert ("interpolate_pos_encoding=True" in shown) == flag


def test_the_program_names_base_release_and_revision_and_needs_no_medcap():
    recipe = {**RECIPE, "model_revision": "v1", "quantization": "4bit"}
    card = render_card(facts(recipe=recipe, repo_id="someone/radiology-captions"))
    shown = program(card)
    assert '"Salesforce/blip-image-captioning-base", "someone/radiology-captions"' in shown
    assert 'from_pretrained(base, revision="v1")' in shown
    assert "here the base is unquantised" in card
    assert card.count("\n# radiology-captions\n") == 1
    imported = [node.module for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.ImportFrom)]
    assert sorted(imported) == ["PIL", "peft", "transformers"]
    work = [line for line in shown.splitlines() if line and not line.startswith(("from ", "base, "))]
    assert len(work) == 5


def test_template_is_found_in_the_installed_package():
    assert importlib.resources.files("medcap.publish").joinpath("card_template.md").is_file()
