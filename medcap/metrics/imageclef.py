"""Scores and submission format of ImageCLEFmedical Caption.

As in the public evaluation code of the organizers (taubsity/clef-caption-evaluation): captions are lower-cased, digits
are replaced by "number", and punctuation is deleted, in this order; the score is the mean over images; two empty
captions score 1. BLEURT, AlignScore and the concept F1 by MedCAT are not implemented.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from medcap import __version__
from medcap.extras import install_command
from medcap.io import unguard
from medcap.metrics.signature import Signature

BERT_MODEL = "microsoft/deberta-xlarge-mnli"
MAX_TOKENS = 512  # of that model; its tokenizer has no limit, but bert-score needs one
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(caption: str) -> str:
    """Lower-case `caption`, replace each run of digits by "number", and delete ASCII punctuation."""
    return re.sub(r"\d+", "number", caption.lower()).translate(_NO_PUNCTUATION)


def score_imageclef(
    predictions: Sequence[str], references: Sequence[str], *, bertscore: bool = False, model: str = BERT_MODEL
) -> dict[str, Any]:
    """Score captions by the protocol of ImageCLEFmedical.

    Returns:
        `metrics` (rouge_1 and, if requested, bertscore; 0 to 1), `per_image`, and `signature`.

    Raises:
        ValueError: There are no images, or the lengths differ.
        ImportError: The package bert-score is missing.
        OSError: BERTScore's model is not available.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: need equally many, at least one"
        )
    normalized = [normalize(text) for text in predictions], [normalize(text) for text in references]
    per_image = {"rouge_1": rouge_1(*normalized)}
    if bertscore:
        per_image["bertscore"] = bert_score(*normalized, model)
    signature = Signature.of(
        metrics="imageclef",
        norm="lower,number,nopunct",
        n=len(normalized[0]),
        rouge_1="f1,nostem,mean",
        tool=f"rouge-score-{importlib.metadata.version('rouge-score')}",
        bertscore=f"{model},idf:references" if bertscore else None,
        medcap=__version__,
    )
    return {
        "metrics": {name: sum(scores) / len(scores) for name, scores in per_image.items()},
        "per_image": per_image,
        "signature": str(signature),
    }


def rouge_1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return ROUGE-1 F1 of each image, 0 to 1, without stemming (Lin 2004, W04-1013), of normalized texts."""
    scorer = RougeScorer(["rouge1"], use_stemmer=False)

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        return [float(scorer.score(reference, prediction)["rouge1"].fmeasure) for prediction, reference in pairs]

    return _score_filled(predictions, references, score)


def bert_score(
    predictions: Sequence[str], references: Sequence[str], model: str = BERT_MODEL, num_layers: int | None = None
) -> list[float]:
    """Return BERTScore F1 of each image (Zhang et al. 2020, arXiv:1904.09675), idf over the references, no baseline.

    Texts are normalized; `model` is a Hub name or a folder; None for `num_layers` is the default of bert-score.

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
        scorer.compute_idf([text for text in references if text.strip()])  # fails on blank texts
        return [float(value) for value in scorer.score(*map(list, zip(*pairs, strict=True)))[2]]

    return _score_filled(predictions, references, score)


def _score_filled(
    predictions: Sequence[str], references: Sequence[str], score: Callable[[list[tuple[str, str]]], list[float]]
) -> list[float]:
    """Score the pairs without a blank text; two blank texts score 1, one blank text scores 0."""
    pairs = list(zip(predictions, references, strict=True))
    filled = [pair for pair in pairs if all(map(str.strip, pair))]
    scores = iter(score(filled) if filled else [])
    return [next(scores) if all(map(str.strip, pair)) else float(not any(map(str.strip, pair))) for pair in pairs]


def check_submission(path: Path, ids: Collection[str]) -> list[str]:
    """Return the problems of a submission for the images `ids`, one line each; none if it is valid.

    A valid file is UTF-8 with the header `ID,Caption`, each id exactly once, and no blank caption.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        return [f"not in UTF-8: {error.reason} at byte {error.start}"]
    except csv.Error as error:
        return [f"not a valid CSV: {error}"]
    if not lines or lines[0] != ["ID", "Caption"]:
        return [f"the header is {','.join(lines[0]) if lines else 'missing'}, but must be ID,Caption"]
    rows = [line for line in lines[1:] if line]
    if wrong := [line for line in rows if len(line) != 2]:
        return [f"{len(wrong)} lines do not have two cells, the first: {','.join(wrong[0])[:80]}"]
    counts = Counter(unguard(line[0]) for line in rows)
    problems = {
        "ids are missing": [image_id for image_id in ids if image_id not in counts],
        "ids are not in the split": [image_id for image_id in counts if image_id not in set(ids)],
        "ids occur more than once": [image_id for image_id, count in counts.items() if count > 1],
        "captions are blank": [image_id for image_id, caption in rows if not caption.strip()],
    }
    return [f"{len(which)} {problem}, the first: {which[0]}" for problem, which in problems.items() if which]
