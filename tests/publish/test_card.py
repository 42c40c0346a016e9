"""A card has valid metadata and usage code, and text from files cannot break its Markdown."""

import ast
import json
import re

import pytest
import yaml
from card_examples import (
    ENVIRONMENT,
    EVALUATION,
    FINDINGS,
    FULL,
    MODALITIES,
    RECIPE,
    SCORES,
    SUMMARY,
    card_data,
    usage_code,
)
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import BlipConfig

from medcap.publish.card import TAGS, hub_results, render_card
from medcap.reporting.tables import TITLES


def test_front_matter_has_the_metadata_of_the_hub():
    metadata = ModelCard(render_card(card_data())).data
    assert metadata.base_model == "Salesforce/blip-image-captioning-base"
    assert (metadata.library_name, metadata.pipeline_tag, metadata.language) == ("peft", "image-to-text", "en")
    assert metadata.tags == [*TAGS, "blip", "base_model:adapter:Salesforce/blip-image-captioning-base"]
    assert metadata.metrics == ["bleu", "meteor", "rouge", "cider"]
    assert metadata.model_name == "blip-image-captioning-base-lora-radiographs"


def test_front_matter_has_the_scores_of_metrics_json():
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
    assert ("show no patient" in card.text) == ("phantom" in data or evaluation is PHANTOMS)


def test_eval_results_yaml_for_a_data_set_on_the_hub():
    results = hub_results(card_data(recipe={**RECIPE, "data_dir": "rocov2"}))
    entries = parse_eval_result_entries(yaml.safe_load(results))
    assert {entry.task_id: entry.value for entry in entries} == SCORES
    assert {entry.dataset_id for entry in entries} == {"eltorio/ROCOv2-radiology"}
    assert hub_results(card_data()) is None  # a folder is not a data set on the Hub
    assert hub_results(card_data(recipe={**RECIPE, "data_dir": "rocov2"}, evaluation=None)) is None


def test_metadata_of_a_merged_model():
    card = render_card(card_data(format="merged"))
    metadata = ModelCard(card).data
    assert (metadata.library_name, metadata.get("base_model_relation")) == ("transformers", "finetune")
    assert "peft" not in usage_code(card)
    assert metadata.model_name == "blip-image-captioning-base-merged-radiographs"


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
    assert column_counts(card) == column_counts(plain)
    ast.parse(usage_code(card))
    assert ModelCard(card).data.eval_results


def column_counts(card):
    """Return the number of cells of each table row, as GitHub counts them."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [len(re.sub(r"\\.", "", line).split("|")) for line in lines]


SIZES = {
    "size of the base": (None, 384, False),
    "size of the base, set in the recipe": (384, 384, False),
    "another size": (224, 384, True),
    "unknown size of the base": (224, None, True),
}


@pytest.mark.parametrize(("size", "base_size", "is_interpolated"), SIZES.values(), ids=SIZES)
def test_usage_code_interpolates_positions_only_for_another_image_size(size, base_size, is_interpolated):
    recipe = {**RECIPE, "image_size": size} if size else RECIPE
    config = BlipConfig(vision_config={"image_size": base_size}) if base_size else None
    code = usage_code(render_card(card_data(recipe=recipe, config=config)))
    assert ("interpolate_pos_encoding=True" in code) == is_interpolated


def test_card_says_that_its_code_does_not_rerank():
    text = "This code\ngenerates the most probable beam."
    signature = EVALUATION["signature"] + ",rerank-consensus"
    assert text in render_card(card_data(evaluation={**EVALUATION, "signature": signature}))
    assert text not in render_card(card_data())


def test_usage_code_names_base_release_and_revision():
    recipe = {**RECIPE, "model_revision": "v1", "quantization": "4bit"}
    card = render_card(card_data(recipe=recipe, repo_id="someone/radiology-captions"))
    code = usage_code(card)
    assert '"Salesforce/blip-image-captioning-base", "someone/radiology-captions"' in code
    assert 'from_pretrained(base, revision="v1", dtype="float32")' in code
    assert "the example loads the base without quantization" in card
    assert card.count("\n# radiology-captions\n") == 1
    imported = [node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert sorted(imported) == ["PIL", "peft", "transformers"]
