"""The sections of a card show what was measured, and nothing else."""

import re

from card_examples import (
    ENVIRONMENT,
    EVALUATION,
    FINDINGS,
    FULL,
    HIGH,
    LOW,
    RECIPE,
    SCORES,
    card_data,
    rows,
    section,
)
from huggingface_hub import ModelCard

from medcap.evaluation.verdict import RULE
from medcap.markdown import escape
from medcap.metrics.coco import METRICS
from medcap.publish.card import render_card


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
    scores, findings = results.split("Fraction of images")
    assert list(rows(scores))[2:] == ["without fine-tune", "**6 epochs** (this adapter)", "4 epochs"]
    assert rows(findings)["**6 epochs** (this adapter)"] == ["97.0%", "81.2%", "90.0%", "85.0%"]
    assert rows(findings)["without fine-tune"] == ["20.0%", "", "", ""]
    assert "4 epochs" not in findings
    assert "Signature of without fine-tune: <code>metrics:other&#124;n:72</code>" in results


def test_card_states_the_verdict_on_baselines_and_image_dependence():
    numbers = {"metric": "cider", "p": 0.01, "low": -1.0, "high": 1.0}
    tests = [
        {"first": "6 epochs", "second": name, "difference": difference, "significant": significant, **numbers}
        for name, difference, significant in (
            ("constant", -0.1, True),
            ("shuffled", 0.1, True),
            ("nearest", 0.1, False),
        )
    ]
    shuffled = {"name": "shuffled images", "n": 72, "metrics": LOW, "test": {}}
    results = section(
        render_card(card_data(evaluation={**EVALUATION, "tests": tests, "shuffled_images": shuffled})), "Results"
    )
    assert re.search(r"^\*\*CIDEr 0\.000 is below the baseline constant, .*\*\*$", results, re.M)
    assert re.search(r"^CIDEr 0\.000 is above the baseline shuffled, .*\.$", results, re.M)
    assert re.search(r"^\*\*CIDEr 0\.000 is not significantly different from the baseline nearest, ", results, re.M)
    assert re.search(
        r"^\*\*There are too few images to tell whether the captions depend on the image: ", results, re.M
    )
    assert escape(RULE) in results
    assert "too few" not in section(render_card(card_data()), "Results")  # nothing was tested


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


def test_scores_by_modality_and_factual_errors():
    card = render_card(card_data(evaluation=FULL))
    assert rows(section(card, "By modality"))["CT"][:2] == ["40", "0.1000 (0.050 to 0.200)"]
    failures = section(card, "Factual errors")
    assert rows(failures)["finding"] == ["0.9000", "0.8500", "0.8750", "20", "21"]
    assert rows(failures)["reference: left"] == ["9", "0", "0", "0"]
    assert "Wrong side in 12.5% of the 16 captions" in failures
    assert "- **invented finding**: 3 of 40 applicable captions (7.5%)" in failures
    assert "“a &#124; mass”: predicted mass, reference none" in failures


def test_training_data_shows_excluded_rows_and_filters():
    data = {"train": {"rows": 90, "read": 100, "leaked_group": 7, "duplicate": 3, "license": 0, "fingerprint": "f"}}
    recipe = {**RECIPE, "exclude_leaks": True, "license_filter": "commercial", "train_fraction": 0.1}
    part = section(render_card(card_data(environment={**ENVIRONMENT, "data": data}, recipe=recipe)), "Training data")
    assert rows(part)["split"] == [
        "images used", "captions read", "articles or patients also in a later split", "near-duplicate images",
        "fingerprint",
    ]  # fmt: skip
    for text in ("licenses that allow commercial use", "also in a later split removed", "10% of the training split"):
        assert text in part


def test_energy_from_codecarbon():
    energy = {"duration": 61.7, "energy_consumed": 0.00123456, "emissions": 0.0004}
    assert "Training took 62 s and 0.001235 kWh, measured or estimated by codecarbon" in render_card(
        card_data(energy=energy)
    )


def test_plots_are_embedded():
    card = render_card(card_data(plots=["curve.png", "scores.png"]))
    assert "](curve.png)" in section(card, "Training curve")
    assert "](scores.png)" in section(card, "Results")


def test_diversity_data_recipe_and_machine():
    card = render_card(card_data())
    diversity = section(card, "Caption diversity")
    assert "3 distinct captions for 72 images, 12.3 words on average" in diversity
    assert "61.1% of the images, is “ct scan”" in diversity
    assert "1.4% of the evaluated captions were truncated at the limit of 48 new tokens" in card
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
    assert machine["training time (s)"] == ["812.4"]
    assert machine["torch"] == ["2.13.0"]
    assert machine["seed"] == ["7"]
    assert "commit" not in machine


def test_training_curve_has_only_measured_columns():
    curve = section(render_card(card_data()), "Training curve")
    assert rows(curve) == {
        "epoch": ["step", "training loss", "validation loss", "CIDEr"],
        "---": ["---:"] * 4,
        "1": ["13", "", "0.9517", "0.4998"],
        "2": ["1,026", "0.9046", "0.9171", "0.5042"],
    }
    assert "the best one by `cider`" in curve
    last_epoch = render_card(card_data(recipe={**RECIPE, "load_best_model_at_end": False}))
    assert "The released epoch is the last one." in section(last_epoch, "Training curve")


def test_card_without_measurements_has_no_tables_of_scores():
    card = render_card(card_data(evaluation=None, environment=None, curve=[]))
    assert "not evaluated" in section(card, "Results")
    assert section(card, "Caption diversity").strip() == "Not measured."
    assert section(card, "Factual errors").strip() == "Not measured."
    assert "Energy consumption was not measured." in card
    assert "](curve.png)" not in card
    assert "does not record the number of images" in section(card, "Training data")
    assert "Not recorded." in section(card, "Training curve")
    assert "Not recorded." in section(card, "Hardware and software")
    assert next(iter(rows(card))) == "key"  # the recipe is the only table
    assert ModelCard(card).data.eval_results is None
    assert not re.search(r"\b(None|nan|Undefined)\b|\{%|(?<!= )\{\{", card)  # `= {{` is BibTeX's
