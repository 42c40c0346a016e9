"""The model card: what an adapter is, how it was made and what it scored, from measured files only.

A figure that was not measured is not printed. The same facts give the same bytes. Whatever comes from a file is
escaped: a caption is text of a data set or of a model, and may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, StrictUndefined

from medcap.metrics.coco import METRICS
from medcap.publish import card_sections as sections
from medcap.publish.card_data import ROCOV2, CardData, is_row_of, last_part
from medcap.publish.markdown import code, escape
from medcap.reporting.tables import TITLES

__all__ = ["CardData", "card_metadata", "code", "escape", "hub_results", "is_row_of", "last_part", "render_card"]

TEMPLATE = Path(__file__).with_name("card_template.md")
BASELINES = ("constant", "shuffled", "nearest")  # as medcap.evaluation.evaluate calls them
TAGS = ["lora", "blip", "radiology", "image-captioning", "medcap"]
# names of https://huggingface.co/metrics, which has one for all of BLEU and one for all of ROUGE
HUB_METRICS = {**{name: name for name in METRICS}, **dict.fromkeys(METRICS[:4], "bleu"), "rouge_l": "rouge"}
LIBRARIES = {"adapter": "peft", "merged": "transformers"}  # with which the Hub shows how to load it
# the Hub's name for captioning, under which it lists BLIP; the pipeline of transformers is called image-text-to-text
TASK = "image-to-text"


def render_card(facts: CardData) -> str:
    """Return the README.md of a release: YAML front matter and Markdown.

    Raises ValueError when huggingface_hub does not read the front matter back as it was meant.
    """
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    jinja.filters.update(text=escape, code=code, literal=lambda text: json.dumps(text, ensure_ascii=False))
    body = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(_content(facts))
    front = card_metadata(facts)
    card = f"---\n{front.to_yaml()}\n---\n\n{body}"
    if (read := ModelCard(card).data.to_dict()) != front.to_dict():
        raise ValueError(f"the card's front matter reads back as {read}, not as {front.to_dict()}")
    return card


def _content(facts: CardData) -> dict[str, Any]:
    """What the template is filled with."""
    environment, evaluation = facts.environment or {}, facts.evaluation or {}
    return {
        "facts": facts,
        "recipe": facts.recipe,
        "evaluation": facts.evaluation,
        "medcap": environment.get("medcap"),
        "systems": facts.systems,
        "results": sections.scores_table(facts.systems),
        "findings": sections.findings_table(facts.systems),
        "baselines": {row["name"]: row for row in facts.systems if row["name"] in BASELINES},
        "not_above": sections.not_above,
        "differences": sections.differences(facts),
        "modalities": sections.parts_table(facts, "modality"),
        "lengths": sections.parts_table(facts, "length"),
        "kinds": sections.kinds_table(facts),
        "sides": sections.sides_table(facts),
        "wrong_side": evaluation.get("facts", {}).get("wrong_side"),
        "failures": evaluation.get("failures", {}),
        "splits": sections.splits_table(facts),
        "settings": sections.recipe_table(facts.recipe),
        "curve": sections.curve_table(facts),
        "kept": sections.kept_epoch(facts.recipe),
        "versions": sections.versions_table(environment),
        "mirror": ROCOV2,
    }


def card_metadata(facts: CardData) -> ModelCardData:
    """The front matter: what the Hub lists and finds a model by; test scores only where there was an evaluation."""
    return ModelCardData(
        base_model=facts.base,
        base_model_relation="adapter" if facts.format == "adapter" else "finetune",
        datasets=[ROCOV2] if facts.is_rocov2 else None,
        language="en",
        library_name=LIBRARIES.get(facts.format),
        license="cc-by-nc-4.0" if facts.is_rocov2 else "other",
        metrics=list(dict.fromkeys(HUB_METRICS.values())),
        model_name=facts.name if facts.evaluation else None,  # it stands in model-index
        pipeline_tag=TASK,
        tags=TAGS,
        eval_results=_eval_results(facts),
    )


def hub_results(facts: CardData) -> str | None:
    """The scores as `.eval_results/*.yaml`, the Hub's newer form; None where the data set is none of the Hub's.

    It counts a result under a task that the data set defines. ROCOv2's mirror defines none as yet: the metric stands
    in its place, and the Hub passes over what it does not know.
    """
    if facts.evaluation is None or not facts.is_rocov2:
        return None
    entries = [
        EvalResultEntry(ROCOV2, task_id=key, value=score, notes=facts.evaluation["signature"])
        for key, score in _scores(facts)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _scores(facts: CardData) -> Sequence[tuple[str, float]]:
    measured = (facts.evaluation or {}).get("metrics", {})
    return [(key, measured[key]) for key in METRICS if key in measured]


def _eval_results(facts: CardData) -> list[EvalResult] | None:
    if facts.evaluation is None:
        return None
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image captioning",
            dataset_type=ROCOV2 if facts.is_rocov2 else last_part(facts.data),
            dataset_name="ROCOv2" if facts.is_rocov2 else last_part(facts.data),
            dataset_split=facts.evaluation["split"],
            metric_type=HUB_METRICS[key],
            metric_name=TITLES[key],
            metric_value=score,
        )
        for key, score in _scores(facts)
    ]
