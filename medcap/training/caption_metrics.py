"""The metrics of an evaluation during training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase

from medcap.data.captions import pad_token_id
from medcap.metrics.coco import Scores, score_captions
from medcap.metrics.diversity import describe_captions, sameness
from medcap.modeling.generation import decode_captions

logger = logging.getLogger(__name__)


class CaptionMetrics:
    """The `compute_metrics` of a CaptionTrainer: decodes the generated ids and scores them against references.

    `predictions` holds the captions of the last evaluation by row number, `last` its scores.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        references: Sequence[str],
        extra: Mapping[str, object] | None = None,
        checks: Callable[[list[str], list[str]], dict[str, float]] | None = None,
    ) -> None:
        """Set up the scorer.

        Args:
            tokenizer: Decodes the generated ids.
            references: The reference caption of every row, not truncated.
            extra: Pairs to add to the signature of the metrics.
            checks: Returns more figures of predictions and references.
        """
        self.extra, self.checks = extra, checks
        self.last: Scores | None = None
        self.tokenizer, self.references = tokenizer, list(references)
        self.predictions: list[str] = []

    def __call__(self, evaluated: EvalPrediction) -> dict[str, float]:
        """Return the COCO metrics, mean words, length ratio, and the fraction of distinct captions."""
        ids = np.where(evaluated.predictions < 0, pad_token_id(self.tokenizer), evaluated.predictions)  # (n, T)
        rows = [int(row) for row in np.asarray(evaluated.label_ids).ravel()]
        captions = dict(zip(rows, decode_captions(self.tokenizer, ids.tolist()), strict=True))
        self.predictions = [captions[row] for row in sorted(captions)]
        references = [[self.references[row]] for row in sorted(captions)]
        self.last = scores = score_captions(self.predictions, references, extra=self.extra)
        if same := sameness(self.predictions):
            logger.warning(same)
        described = describe_captions(self.predictions)
        distinct = len(set(self.predictions)) / len(self.predictions)
        return {
            **scores.metrics,
            "mean_words": described.mean_words,
            "length_ratio": scores.statistics.length_ratio,
            "distinct_fraction": distinct,
            **(self.checks(self.predictions, [caption for (caption,) in references]) if self.checks else {}),
        }
