"""MODEL_CARD.md is the card of quickstart's adapter, byte for byte, without the plots of a release.

After a new `medcap quickstart`, copy the files in tests/publish/quickstart_facts from quickstart/release, except
adapter.json, and generate adapter.json and the card again:

    python tests/publish/test_model_card.py quickstart/release
"""

import json
import sys
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.publish.adapter_files import tokenizer_traits, trained_layers
from medcap.publish.card import render_card
from medcap.publish.card_data import CardData
from medcap.reporting.plots import read_curve

ROOT = Path(__file__).parents[2]
CARD = ROOT / "MODEL_CARD.md"
FOLDER = Path(__file__).with_name("quickstart_facts")


def read_json(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def card_data():
    recipe = yaml.safe_load((FOLDER / "recipe.yaml").read_text(encoding="utf-8"))
    return CardData(
        base=recipe["model_name_or_path"],
        base_is_local=True,
        base_kind="blip",
        recipe=recipe,
        environment=read_json("environment.json"),
        curve=read_curve(FOLDER / "metrics.jsonl"),
        evaluation=EvaluationResult.read(FOLDER / "metrics.json"),
        comparison=Comparison.read(FOLDER / "comparison.json"),
        **read_json("adapter.json"),
    )


def test_card_is_generated_from_the_run_files():
    assert CARD.read_text(encoding="utf-8") == render_card(card_data())


def test_front_matter_has_the_scores_of_the_run():
    results = ModelCard.load(CARD).data.eval_results
    assert [result.metric_value for result in results] == list(read_json("metrics.json")["metrics"].values())


def test_run_has_a_commit():
    assert len(read_json("environment.json")["commit"]) == 40


if __name__ == "__main__":
    release = Path(sys.argv[1])
    adds_spaces, lowercases = tokenizer_traits(release / "tokenizer.json")
    facts = {
        "layers": trained_layers(release / "adapter_model.safetensors"),
        "tokenizer_adds_spaces": adds_spaces,
        "tokenizer_lowercases": lowercases,
    }
    (FOLDER / "adapter.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    CARD.write_text(render_card(card_data()), encoding="utf-8")
