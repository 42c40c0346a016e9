"""Rewards of sampled captions, and figures that show whether a model exploits them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from medcap.metrics.clinical.facts import extract_facts
from medcap.metrics.diversity import repeats_trigram
from medcap.metrics.ngrams import Floats
from medcap.metrics.statistics import caption_statistics
from medcap.metrics.training_idf import TrainingIdf
from medcap.recipe.ranges import REWARDS

FACTS = ("laterality", "modality", "finding")
CHECKS = ("words", "repeated_fraction", "period_fraction", "cut_fraction")
FIGURES = ("reward", *(f"reward_{name}" for name in REWARDS), *(f"sample_{name}" for name in CHECKS))
END = "</s>"  # a word behind a caption that has ended
_WORDS = re.compile(r"\w+(?:[-.,'/]\w+)*|\.(?!\w)")


def reward_words(caption: str, has_ended: bool = True) -> list[str]:
    """Return the words of a caption in lower case, its periods, and `END` if it has ended.

    The PTB tokens of evaluations need Java. They have neither periods nor ends, so that a reward of them would leave
    it open how captions end; the end token counts in self-critical.pytorch (Luo) too.
    """
    return _WORDS.findall(caption.lower()) + [END] * has_ended


def fact_f1(prediction: str, reference: str) -> float:
    """Return F1 of the stated sides, modalities and findings, 0 to 1; 1 if neither caption states any."""
    named, true = (
        {(kind, value) for kind in FACTS for value in extract_facts(text)[kind]} for text in (prediction, reference)
    )
    return 2 * len(named & true) / (len(named) + len(true)) if named or true else 1.0


class Rewards:
    """Score captions against the captions of their training images.

    cider     CIDEr-D with the idf of the training captions, 0 to 10
    rouge_l   0 to 1
    bleu_4    BLEU-4 of the single caption, 0 to 1; about 0 without a common 4-gram
    facts_f1  `fact_f1`
    """

    def __init__(self, captions: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        """Take the training captions, and the weight of each reward; None is CIDEr alone."""
        self.captions, self.weights = list(captions), dict(weights or {"cider": 1.0})
        self.words = [reward_words(caption) for caption in self.captions]
        self.idf = TrainingIdf(self.words)

    def __call__(
        self, predictions: Sequence[str], has_ended: Sequence[bool], rows: Sequence[int]
    ) -> dict[str, Floats]:
        """Return (n,) values of FIGURES, of predictions for the training images `rows`.

        "reward" is the weighted sum of the rewards.
        """
        words = [reward_words(text, ended) for text, ended in zip(predictions, has_ended, strict=True)]
        references = [self.words[row] for row in rows]
        single = caption_statistics([" ".join(text) for text in words], [[" ".join(text)] for text in references])
        facts = [fact_f1(text, self.captions[row]) for text, row in zip(predictions, rows, strict=True)]
        rewards = {**single.per_image(), "cider": self.idf.cider_d(words, references), "facts_f1": np.array(facts)}
        checks = (
            [len(text.split()) for text in predictions],
            [repeats_trigram(text) for text in predictions],
            [text.endswith(".") for text in predictions],
            [not ended for ended in has_ended],
        )
        return {
            "reward": np.sum([weight * rewards[name] for name, weight in self.weights.items()], 0),
            **{f"reward_{name}": rewards[name] for name in REWARDS},
            **{f"sample_{name}": np.array(values, float) for name, values in zip(CHECKS, checks, strict=True)},
        }


def caption_checks(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return figures of an evaluation in which captions that exploit a reward differ, beside the length ratio."""
    return {
        "facts_f1": float(np.mean([fact_f1(*pair) for pair in zip(predictions, references, strict=True)])),
        "repeated_fraction": float(np.mean([repeats_trigram(text) for text in predictions])),
        "period_fraction": float(np.mean([text.endswith(".") for text in predictions])),
    }
