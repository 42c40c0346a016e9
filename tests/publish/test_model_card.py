"""MODEL_CARD.md is the card of quickstart's adapter, byte for byte, but for the plots that lie beside a release's.

After another `medcap quickstart`, copy these five files from quickstart/release into tests/publish/quickstart_facts,
and write the card anew:

    python tests/publish/test_model_card.py
"""

import json
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from medcap.publish.card import CardData, render_card
from medcap.publish.plots import read_curve

ROOT = Path(__file__).parents[2]
CARD = ROOT / "MODEL_CARD.md"
FOLDER = Path(__file__).with_name("quickstart_facts")


def measured(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def facts():
    recipe = yaml.safe_load((FOLDER / "recipe.yaml").read_text(encoding="utf-8"))
    return CardData(
        base=recipe["model_name_or_path"],
        base_is_local=True,
        base_image_size=None,
        recipe=recipe,
        environment=measured("environment.json"),
        curve=read_curve(FOLDER / "metrics.jsonl"),
        evaluation=measured("metrics.json"),
        comparison=measured("comparison.json"),
    )


def test_the_card_is_made_of_the_measured_facts_and_of_nothing_else():
    assert CARD.read_text(encoding="utf-8") == render_card(facts())


def test_its_front_matter_has_the_scores_of_the_run():
    results = ModelCard.load(CARD).data.eval_results
    assert [result.metric_value for result in results] == list(measured("metrics.json")["metrics"].values())


def test_the_run_was_made_by_a_commit_and_not_by_something_between_two():
    assert len(measured("environment.json")["commit"]) == 40


if __name__ == "__main__":
    CARD.write_text(render_card(facts()), encoding="utf-8")
