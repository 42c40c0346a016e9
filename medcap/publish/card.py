"""The model card of a release, rendered from the files of a run.

A figure that was not measured is not printed, and the same input gives the same bytes. All text from files is escaped:
captions come from a data set or a model and may contain Markdown or HTML.
"""

from __future__ import annotations

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from medcap.evaluation.verdict import RULE
from medcap.metrics.clinical.accuracy import LATERALITIES
from medcap.metrics.coco import METRICS
from medcap.modeling.families.roles import ROLES
from medcap.publish import card_sections as sections
from medcap.publish.card_data import ROCOV2, CardData
from medcap.publish.usage import TEMPLATES, caption_code
from medcap.reporting.tables import TITLES, legend_list

TEMPLATE = "card_template.md"
TAGS = ["lora", "radiology", "image-captioning", "medcap"]
# names in https://huggingface.co/metrics, which has a single BLEU and a single ROUGE
HUB_METRICS = {**{name: name for name in METRICS}, **dict.fromkeys(METRICS[:4], "bleu"), "rouge_l": "rouge"}
# selects the loading snippet on the Hub
LIBRARIES = {"adapter": "peft", "merged": "transformers", "full": "transformers"}


def render_card(card_data: CardData) -> str:
    """Return the README.md of a release: YAML front matter and Markdown.

    Raises:
        ValueError: huggingface_hub reads other values from the front matter than were written.
    """
    names = {"sections": sections, "lateralities": LATERALITIES, "rocov2": ROCOV2, "roles": ROLES}
    names |= {"legend_list": legend_list, "rule": RULE}
    body = TEMPLATES.get_template(TEMPLATE).render(card=card_data, caption_code=caption_code, **names)
    front = card_metadata(card_data)
    card = f"---\n{front.to_yaml()}\n---\n\n{body}"
    if (parsed := ModelCard(card).data.to_dict()) != front.to_dict():
        raise ValueError(f"the card's front matter is read as {parsed} instead of {front.to_dict()}")
    return card


def card_metadata(card_data: CardData) -> ModelCardData:
    """Return the front matter, the Hub's metadata; it has scores only if there was an evaluation."""
    relation = "adapter" if card_data.format == "adapter" else "finetune"
    return ModelCardData(
        base_model=None if card_data.base_is_local else card_data.base,  # the Hub would look it up
        base_model_relation=None if card_data.base_is_local else relation,
        datasets=[ROCOV2] if card_data.is_rocov2 else None,
        language="en",
        library_name=LIBRARIES.get(card_data.format),
        license="cc-by-nc-4.0" if card_data.is_rocov2 else "other",
        metrics=list(dict.fromkeys(HUB_METRICS.values())),
        model_name=card_data.name if card_data.evaluation else None,  # part of model-index
        pipeline_tag=card_data.family.task,
        tags=_tags(card_data),
        eval_results=_eval_results(card_data),
    )


def _tags(card_data: CardData) -> list[str]:
    """Return the tags: those of all releases, the model type, and the base as PEFT names it."""
    is_linked = card_data.format == "adapter" and not card_data.base_is_local
    tags = TAGS[1:] if card_data.format == "full" else TAGS  # without "lora"
    return [*tags, card_data.base_kind, *([f"base_model:adapter:{card_data.base}"] if is_linked else [])]


def hub_results(card_data: CardData) -> str | None:
    """Return the scores in the Hub's `.eval_results/*.yaml` format; None for a data set that is not on the Hub.

    The Hub assigns a result to a task that the data set defines. ROCOv2's mirror defines none yet, so the metric name
    is used; the Hub ignores unknown tasks.
    """
    if card_data.evaluation is None or not card_data.is_rocov2:
        return None
    entries = [
        EvalResultEntry(ROCOV2, task_id=key, value=score, notes=str(card_data.evaluation.signature))
        for key, score in card_data.evaluation.metrics.items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _eval_results(card_data: CardData) -> list[EvalResult] | None:
    if card_data.evaluation is None:
        return None
    data_set = card_data.data_name
    return [
        EvalResult(
            task_type=card_data.family.task,
            task_name="Image captioning",
            dataset_type=ROCOV2 if card_data.is_rocov2 else data_set,
            dataset_name="ROCOv2" if card_data.is_rocov2 else data_set,
            dataset_split=card_data.evaluation.split,
            metric_type=HUB_METRICS[key],
            metric_name=TITLES[key],
            metric_value=score,
        )
        for key, score in card_data.evaluation.metrics.items()
    ]
