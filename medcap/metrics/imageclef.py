"""Scores of ImageCLEFmedical Caption, 2025 and 2026.

As in the public evaluation code of the organizers (taubsity/clef-caption-evaluation and, for 2026,
taubsity/clef-caption-evaluation-2026): captions are lower-cased, digits are replaced by "number", and punctuation is
deleted, in this order; the score is the mean over images; two captions of length 0 score 1. Parts that cannot be
computed here are listed with what they need, and an aggregate without one of its parts is not computed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from rouge_score.rouge_scorer import RougeScorer

from medcap import __version__
from medcap.extras import install_command
from medcap.metrics.signature import Signature

BERT_MODEL = "microsoft/deberta-xlarge-mnli"
MAX_TOKENS = 512  # of that model; its tokenizer has no limit, but bert-score needs one
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FACTUALITY = ("medcat_f1", "alignscore")
# the parts of each aggregate, which is their mean
PROTOCOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "imageclef-2025": {"relevance": ("bertscore", "rouge_1", "similarity"), "factuality": _FACTUALITY},
    "imageclef-2026": {"relevance": ("bertscore", "rouge_1", "similarity", "bleurt"), "factuality": _FACTUALITY},
}
NEEDS = {
    "similarity": "the images and MedImageInsight (lion-ai/MedImageInsights on the Hub): 2.5 x max(cosine, 0), and 0 "
    "for an empty caption",
    "bleurt": "the package bleurt-pytorch and its model lucadiliello/BLEURT-20-D12, on normalized captions",
    "medcat_f1": "the package medcat and its UMLS model pack, which requires a UMLS license, on raw captions",
    "alignscore": "the package alignscore and AlignScore-base.ckpt (yzha/AlignScore on the Hub), on raw captions",
}


def normalize(caption: str) -> str:
    """Lower-case `caption`, replace each run of digits by "number", and delete ASCII punctuation."""
    return re.sub(r"\d+", "number", caption.lower()).translate(_NO_PUNCTUATION)


def score_imageclef(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    protocol: str = "imageclef-2026",
    bertscore: bool = False,
    model: str = BERT_MODEL,
    num_layers: int | None = None,
) -> dict[str, Any]:
    """Score captions, which are given as they are in the files, by a protocol of ImageCLEFmedical.

    Args:
        predictions: One caption per image.
        references: The reference of each image.
        protocol: A name of `PROTOCOLS`.
        bertscore: Download BERTScore's model if it is not on this machine.
        model: Hub name or folder of that model.
        num_layers: Its layer to use; None for the default of bert-score.

    Returns:
        `metrics` (rouge_1, bertscore if its model is available, and the aggregates whose parts are complete; 0 to 1),
        `per_image`, `not_computed` ({name: what it needs}), and `signature`.

    Raises:
        ValueError: There are no images, or the lengths differ.
        ImportError: `bertscore` is true and the package bert-score is missing.
        OSError: `bertscore` is true and its model is not available.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: need equally many, at least one"
        )
    not_computed = dict(NEEDS)
    per_image = {"rouge_1": rouge_1(predictions, references)}
    need = None if bertscore else bertscore_need(model)
    if need is None:
        per_image["bertscore"] = bert_score(predictions, references, model, num_layers)
    else:
        not_computed["bertscore"] = need
    metrics = {name: sum(scores) / len(scores) for name, scores in per_image.items()}
    aggregates, missing = _aggregate(metrics, PROTOCOLS[protocol])
    parts = {part for names in PROTOCOLS[protocol].values() for part in names}
    signature = Signature.of(
        metrics=protocol,
        norm="lower,number,nopunct",
        empty="raw",
        n=len(predictions),
        rouge_1="f1,nostem,mean",
        tool=f"rouge-score-{importlib.metadata.version('rouge-score')}",
        bertscore=f"{model},idf:references" if "bertscore" in per_image else None,
        medcap=__version__,
    )
    return {
        "metrics": {**metrics, **aggregates},
        "per_image": per_image,
        "not_computed": {name: need for name, need in not_computed.items() if name in parts} | missing,
        "signature": str(signature),
    }


def _aggregate(
    metrics: dict[str, float], protocol: dict[str, tuple[str, ...]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the means of complete parts, and {name: "all of its parts: ..."} of the other aggregates."""
    complete = {name: parts for name, parts in protocol.items() if all(part in metrics for part in parts)}
    means = {name: sum(metrics[part] for part in parts) / len(parts) for name, parts in complete.items()}
    missing = {
        name: f"all of its parts: the mean of {', '.join(parts)}"
        for name, parts in protocol.items()
        if name not in complete
    }
    return means, missing


def rouge_1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return ROUGE-1 F1 of each image, 0 to 1, without stemming (Lin 2004, W04-1013), of normalized texts."""
    scorer = RougeScorer(["rouge1"], use_stemmer=False)

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        return [float(scorer.score(reference, prediction)["rouge1"].fmeasure) for prediction, reference in pairs]

    return _score_filled(predictions, references, score)


def bertscore_need(model: str = BERT_MODEL) -> str | None:
    """Return what BERTScore needs that is not on this machine; None if it can be computed without a download."""
    if importlib.util.find_spec("bert_score") is None:
        return f"the package bert-score: {install_command('bertscore')}"
    files = ("model.safetensors", "pytorch_model.bin")
    if Path(model).is_dir() or any(isinstance(try_to_load_from_cache(model, name), str) for name in files):
        return None
    return f"the model {model}: --bertscore downloads it"


def bert_score(
    predictions: Sequence[str], references: Sequence[str], model: str = BERT_MODEL, num_layers: int | None = None
) -> list[float]:
    """Return BERTScore F1 of each image (Zhang et al. 2020, arXiv:1904.09675), idf over the references, no baseline.

    Captions are raw; `model` is a Hub name or a folder; None for `num_layers` is the default of bert-score.

    Raises:
        ImportError: The package bert-score is missing.
        OSError: The model is not available.
    """
    try:
        from bert_score import BERTScorer
    except ImportError:
        raise ImportError(f"BERTScore needs bert-score: {install_command('bertscore')}") from None

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        try:
            scorer = BERTScorer(model_type=model, num_layers=num_layers, idf=True)
        except OSError as error:
            raise OSError(f"BERTScore's model {model} is neither local nor on the Hub: {error}") from error
        tokenizer = scorer._tokenizer  # noqa: SLF001 - bert-score has no public way to set the limit (2026-11)
        tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TOKENS)
        # a blank text has only special tokens; bert-score fails on it with some versions of transformers
        scorer.compute_idf([normalize(text).strip() or tokenizer.sep_token for text in references])
        return [float(value) for value in scorer.score(*map(list, zip(*pairs, strict=True)))[2]]

    return _score_filled(predictions, references, score)


def _score_filled(
    predictions: Sequence[str], references: Sequence[str], score: Callable[[list[tuple[str, str]]], list[float]]
) -> list[float]:
    """Score the normalized pairs without a blank text; a blank text scores 0, two captions of length 0 score 1."""
    pairs = [(normalize(text), normalize(true)) for text, true in zip(predictions, references, strict=True)]
    filled = [pair for pair in pairs if all(map(str.strip, pair))]
    scores = iter(score(filled) if filled else [])
    raw = zip(predictions, references, pairs, strict=True)
    return [next(scores) if all(map(str.strip, pair)) else float(not text and not true) for text, true, pair in raw]
