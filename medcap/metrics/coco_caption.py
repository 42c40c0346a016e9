"""The COCO caption metrics as an `evaluate.Metric`; `evaluate.load` accepts the path of this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from medcap.metrics.coco import score_captions


class CocoCaption(evaluate.Metric):
    """`score_captions` as an `evaluate.Metric`.

    `compute(predictions=[...], references=[...])` returns the corpus scores by name. References are one caption per
    image, or one list per image; `tokenized` and `metrics` are passed on to `score_captions`.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU, METEOR, ROUGE-L and CIDEr as in pycocoevalcap.",
            citation="Chen et al. 2015, Microsoft COCO Captions, arXiv:1504.00325",
            inputs_description="predictions: one caption per image; references: a caption or a list of them per image",
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (datasets.List(text), text)
            ],
            reference_urls=["https://arxiv.org/abs/1504.00325", "https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str | list[str]], **settings: Any
    ) -> dict[str, float]:
        listed = [[captions] if isinstance(captions, str) else captions for captions in references]
        return score_captions(list(predictions), listed, **settings).metrics
