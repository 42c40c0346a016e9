"""The model card: what an adapter is, how it was made and what it scored, from measured files only.

A figure that was not measured is not printed. The same facts give the same bytes. Whatever comes from a file is
escaped: a caption is text of a data set or of a model, and may hold anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from medcap.evaluation.coco import METRICS
from medcap.evaluation.findings import FACTS
from medcap.evaluation.report import TITLES
from medcap.recipe import CaptionTrainingArguments

TEMPLATE = Path(__file__).with_name("card_template.md")
ROCOV2 = "eltorio/ROCOv2-radiology"  # the mirror on the Hub
BASELINES = ("constant", "shuffled", "nearest")  # as medcap.evaluation.evaluate calls them
TAGS = ["lora", "blip", "radiology", "image-captioning", "medcap"]
# names of https://huggingface.co/metrics, which has one for all of BLEU and one for all of ROUGE
HUB_METRICS = {**{name: name for name in METRICS}, **dict.fromkeys(METRICS[:4], "bleu"), "rouge_l": "rouge"}
SPLIT_COLUMNS = {
    "split": "split",
    "rows": "images used",
    "read": "captions read",
    "blank": "blank captions, left out",
    "outside_fraction": "outside of the chosen fraction",
    "missing": "images missing",
    "undecodable": "images broken",
    "fingerprint": "fingerprint",
}
CURVE_COLUMNS = {
    "epoch": "epoch",
    "step": "step",
    "loss": "training loss",
    "eval_loss": "validation loss",
    **{f"eval_{name}": title for name, title in TITLES.items()},
}


@dataclass(frozen=True)
class Facts:
    """All that a card says. None, or an empty list, stands for what was not measured or is not known.

    `curve` is the lines of metrics.jsonl, `evaluation` a metrics.json, `comparison` a comparison.json. `repo_id` is
    the name that the release gets on the Hub, if that is known already.
    """

    base: str
    base_is_local: bool
    base_image_size: int | None
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any] | None = None
    curve: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None
    repo_id: str | None = None

    @property
    def name(self) -> str:
        """What the release is called."""
        if self.repo_id is not None:
            return self.repo_id.split("/")[-1]
        return f"{last_part(self.base)}-lora-{last_part(self.data)}"

    @property
    def data(self) -> str:
        """The data set: a name on the Hub or of a folder."""
        return str(self.recipe["data_dir"])

    @property
    def is_phantom(self) -> bool:
        """Whether the images were drawn by medcap: only there is the truth of every image known."""
        return "phantom" in last_part(self.data).lower() or "findings" in (self.evaluation or {})

    @property
    def is_rocov2(self) -> bool:
        """Whether the data are ROCOv2, by the name of the folder or of the mirror on the Hub."""
        return "rocov2" in last_part(self.data).lower() and not self.is_phantom

    @property
    def interpolates(self) -> bool:
        """Whether the base's position embeddings are for another image size (without effect where they are not)."""
        size = self.recipe.get("image_size")
        return size is not None and size != self.base_image_size


def render_card(facts: Facts) -> str:
    """Return the README.md of a release: YAML front matter and Markdown.

    Raises ValueError when huggingface_hub does not read the front matter back as it was meant.
    """
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    jinja.filters.update(text=escape, code=code, literal=lambda text: json.dumps(text, ensure_ascii=False))
    systems, environment = _systems(facts), facts.environment or {}
    splits = [{"split": name, **counts} for name, counts in environment.get("data", {}).items()]
    body = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts,
        recipe=facts.recipe,
        evaluation=facts.evaluation,
        medcap=environment.get("medcap"),
        systems=systems,
        results=_scores_table(systems, "metrics", TITLES, "{:.4f}"),
        findings=_scores_table(systems, "findings", dict(zip(FACTS, FACTS, strict=True)), "{:.1%}"),
        baselines={row["name"]: row for row in systems if row["name"] in BASELINES},
        not_above=_not_above,
        splits=_measured_table(SPLIT_COLUMNS, splits),
        settings=table(("key", "value"), [(code(key), code(value)) for key, value in facts.recipe.items()], "---"),
        curve=_measured_table(CURVE_COLUMNS, [{**line, "epoch": f"{line['epoch']:g}"} for line in facts.curve]),
        kept=_kept_epoch(facts),
        versions=_versions_table(environment),
        mirror=ROCOV2,
    )
    front = metadata(facts)
    card = f"---\n{front.to_yaml()}\n---\n\n{body}"
    if (read := ModelCard(card).data.to_dict()) != front.to_dict():
        raise ValueError(f"the card's front matter reads back as {read}, not as {front.to_dict()}")
    return card


def metadata(facts: Facts) -> ModelCardData:
    """The front matter: what the Hub lists and finds a model by; test scores only where there was an evaluation."""
    return ModelCardData(
        base_model=facts.base,
        datasets=[ROCOV2] if facts.is_rocov2 else None,
        language="en",
        library_name="peft",
        license="cc-by-nc-4.0" if facts.is_rocov2 else "other",
        metrics=list(dict.fromkeys(HUB_METRICS.values())),
        model_name=facts.name if facts.evaluation else None,  # it stands in model-index
        pipeline_tag="image-to-text",
        tags=TAGS,
        eval_results=_eval_results(facts),
    )


def escape(value: object) -> str:
    """Write any text on one line so that neither Markdown nor HTML sees anything in it but letters.

    Entities, because CommonMark (6.2) takes them for text wherever they stand, in the cell of a table too.
    """
    line = " ".join(str(value).split())
    return re.sub(r"[&<>|`*\[\]\\~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)", lambda found: f"&#{ord(found[0])};", line)


def code(value: object) -> str:
    """Write a value of a recipe as inline code that may stand in a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not text.strip() or re.search(r"[`\r\n]|\\\||\\$", text):  # no code span can hold these
        return f"<code>{escape(json.dumps(text, ensure_ascii=False))}</code>"
    return f"`{text}`".replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """A Markdown table of cells that are escaped already; `align` is for all columns but the first."""
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the columns that were measured in any row; "" without rows."""
    measured = [key for key in columns if any(row.get(key) is not None for row in rows)]
    cells = [[_cell(row.get(key)) for key in measured] for row in rows]
    return table([columns[key] for key in measured], cells) if cells else ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else escape("" if value is None else value)


def _systems(facts: Facts) -> list[dict[str, Any]]:
    """The rows of the results: those of the comparison, else this adapter and its baselines."""
    ours = facts.evaluation or {}
    rows = [ours] if ours else []
    rows += [{"name": name, **row} for name, row in ours.get("baselines", {}).items()]
    rows = rows if facts.comparison is None else facts.comparison["systems"]
    return [{**row, "ours": is_row_of(row, ours)} for row in rows]


def is_row_of(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
    """Whether a row of a comparison is this evaluation's, by name and scores."""
    return all(row[key] == evaluation.get(key) for key in ("name", "metrics"))


def _named(row: Mapping[str, Any]) -> str:
    name = escape(row["name"])
    return f"**{name}** (this adapter)" if row["ours"] else name


def _scores_table(systems: Sequence[Mapping[str, Any]], part: str, titles: Mapping[str, str], form: str) -> str:
    """One row per system that has `part`, one column per title; what was not measured is left blank; "" for none."""
    known = [row for row in systems if row.get(part)]
    cells = [[form.format(row[part][key]) if key in row[part] else "" for key in titles] for row in known]
    rows = [(_named(row), *scores) for row, scores in zip(known, cells, strict=True)]
    return table(("", *titles.values()), rows) if rows else ""


def _not_above(evaluation: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """The metrics in which an evaluation is not above a baseline."""
    ours, floor = evaluation["metrics"], baseline["metrics"]
    return [title for key, title in TITLES.items() if key in floor and ours.get(key, 0) <= floor[key]]


def _kept_epoch(facts: Facts) -> str | None:
    """By which validation metric the released epoch was chosen; None for the last one."""
    default = {field.name: field.default for field in fields(CaptionTrainingArguments)}
    if not facts.recipe.get("load_best_model_at_end", default["load_best_model_at_end"]):
        return None
    return str(facts.recipe.get("metric_for_best_model", default["metric_for_best_model"]))


def _versions_table(environment: Mapping[str, Any]) -> str:
    single = {key: value for key, value in environment.items() if key not in ("data", "packages")}
    known = {**single, **environment.get("packages", {})}
    rows = [(escape(key), escape(value)) for key, value in known.items() if value is not None]
    return table(("", "value"), rows, "---") if rows else ""


def _eval_results(facts: Facts) -> list[EvalResult] | None:
    if facts.evaluation is None:
        return None
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=ROCOV2 if facts.is_rocov2 else last_part(facts.data),
            dataset_name="ROCOv2" if facts.is_rocov2 else last_part(facts.data),
            dataset_split=facts.evaluation["split"],
            metric_type=HUB_METRICS[key],
            metric_name=TITLES[key],
            metric_value=facts.evaluation["metrics"][key],
        )
        for key in METRICS
        if key in facts.evaluation["metrics"]
    ]


def last_part(path: str) -> str:
    """Return the last part of a path or of a name on the Hub."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
