"""Predictions: written as `ID,Caption`, read again, described, and scored while training."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase

from medcap.data.tables import read_column
from medcap.evaluation.coco import Meteor, Scores, score_captions
from medcap.modeling.blip import decode_captions

logger = logging.getLogger(__name__)


def write_predictions(path: Path, captions: Mapping[str, str]) -> None:
    """Write a CSV with the header `ID,Caption`, in the order given: an ImageCLEFmedical submission as it stands."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ID", "Caption"))
        writer.writerows(captions.items())
    part.replace(path)


def paired(predictions: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Ids, predictions and references of two `ID,Caption` files, in the order of the references.

    Raises ValueError when an id stands in one of them only: nothing is left out in silence.
    """
    made, said = read_column(predictions, "Caption"), read_column(references, "Caption")
    for where, lacking in ((predictions, said.keys() - made.keys()), (references, made.keys() - said.keys())):
        if lacking:
            raise ValueError(f"{where}: {len(lacking)} ids are missing, {min(lacking)} the first")
    return list(said), [made[image_id] for image_id in said], list(said.values())


def describe_captions(predictions: Sequence[str]) -> dict[str, float | int | str]:
    """How varied captions are: an adapter that says one sentence for every picture shows here."""
    caption, count = Counter(predictions).most_common(1)[0]
    return {
        "distinct": len(set(predictions)),
        "most_frequent": caption,
        "most_frequent_share": count / len(predictions),
        "mean_words": sum(len(text.split()) for text in predictions) / len(predictions),
        "repeated_share": sum(map(_repeats, predictions)) / len(predictions),
    }


def sameness(predictions: Sequence[str]) -> str:
    """What to say where every picture got the same caption, in one line; "" where they did not."""
    if len(predictions) < 2 or len(set(predictions)) > 1:
        return ""
    return (
        f"all {len(predictions)} captions are the same, {predictions[0]!r}: the model does not tell pictures apart; "
        "train longer, raise learning_rate, or let lora_target_modules reach the cross-attention"
    )


def _repeats(caption: str) -> bool:
    """Whether a caption says three words in a row twice."""
    words = caption.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) < len(trigrams)


class CaptionScores:
    """`compute_metrics` of a CaptionTrainer: decodes the generated ids and scores them against `references`.

    `references` is whole captions by row number, never what the tokenizer left of them. The predictions of the last
    evaluation stay in `predictions`, by row, its scores in `last`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        references: Sequence[str],
        prompt: str = "",
        meteor: Meteor | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """`meteor`: a running one spares each evaluation its start; `extra` goes into the signature."""
        self.meteor, self.extra = meteor, extra
        self.last: Scores | None = None
        self.tokenizer, self.references, self.prompt = tokenizer, list(references), prompt
        self.predictions: list[str] = []

    def __call__(self, evaluated: EvalPrediction) -> dict[str, float]:
        """COCO metrics, the mean words of a caption, their length ratio, and the share of distinct captions."""
        ids = np.where(evaluated.predictions < 0, self.tokenizer.pad_token_id, evaluated.predictions)  # (n, T)
        rows = [int(row) for row in np.asarray(evaluated.label_ids).ravel()]
        captions = dict(zip(rows, decode_captions(self.tokenizer, ids.tolist(), self.prompt), strict=True))
        self.predictions = [captions[row] for row in sorted(captions)]
        references = [[self.references[row]] for row in sorted(captions)]
        self.last = scores = score_captions(self.predictions, references, meteor=self.meteor, extra=self.extra)
        if same := sameness(self.predictions):
            logger.warning(same)
        described = describe_captions(self.predictions)
        distinct = len(set(self.predictions)) / len(self.predictions)
        return {
            **scores.metrics,
            "mean_words": float(described["mean_words"]),
            "length_ratio": scores.statistics.length_ratio,
            "distinct_share": distinct,
        }
