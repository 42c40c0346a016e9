"""The COCO caption metrics of radiology captions, as pycocoevalcap computes them: BLEU, METEOR, ROUGE-L, CIDEr.

The protocol is the caption evaluation server's (Chen et al. 2015, arXiv:1504.00325): PTB tokens in lower case without
punctuation, then
    BLEU-1..4   Papineni et al. 2002 (ACL P02-1040): corpus level, closest reference length, 0 to 1
    METEOR 1.5  Denkowski & Lavie 2014 (WMT W14-3348): the authors' Java program, 0 to 1
    ROUGE-L     Lin 2004 (W04-1013): F with beta 1.2, mean over images, 0 to 1
    CIDEr       Vedantam et al. 2015 (arXiv:1411.5726): the CIDEr-D variant, idf of these references, 0 to 10
The tokeniser's jar and METEOR's jar are pycocoevalcap's; how Java is run is ours, because there one line break in a
caption shifts every caption after it, and the tokeniser needs a writable site-packages. BLEU, ROUGE-L and CIDEr come
from `medcap.metrics.statistics`, equal to pycocoevalcap's scorers to the last digits and some twenty times as fast.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import evaluate
from pycocoevalcap.tokenizer import ptbtokenizer

from medcap import __version__
from medcap.metrics.java import one_line, run_java
from medcap.metrics.meteor import LONGEST, Meteor, bounded
from medcap.metrics.statistics import METRICS, Statistics, caption_statistics

__all__ = ["METRICS", "CocoCaption", "Meteor", "Scores", "score_captions", "signature", "tokenize"]

logger = logging.getLogger(__name__)

# With -lowerCase brackets come out as -lrb- and -rrb-, while this list holds -LRB- and -RRB-: they stay in the text as
# words. Published COCO scores are computed so, and so are these.
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)


@dataclass(frozen=True)
class Scores:
    """What a set of captions scored.

    `metrics` holds the corpus scores, `per_image` one number per image in the order given (the mean of BLEU's and
    METEOR's is not the corpus score: those two pool their counts), `signature` how it was computed, and `statistics`
    each image's part, from which intervals and tests are made.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    signature: str
    statistics: Statistics


def tokenize(captions: Sequence[str]) -> list[str]:
    """Return each caption's PTB tokens in lower case, joined by spaces; what pycocoevalcap's PTBTokenizer gives.

    A blank caption gives "". The lexer looks across the line's end ("no." keeps its full stop before a line that
    begins with a digit), so identical captions are not merged: the lines must be the ones pycocoevalcap feeds.
    RuntimeError when Java fails.
    """
    _refuse_text("captions", captions)
    if len(captions) == 0:
        return []
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    program = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # no line break after the last caption, as in pycocoevalcap's temporary file
    text = "\n".join(map(one_line, captions))
    lines = run_java([*program, "-encoding", "UTF-8"], text, seconds=300 + len(text) / 10_000).split("\n")
    if len(lines) != len(captions):
        raise RuntimeError(f"the PTB tokeniser gave {len(lines)} lines for {len(captions)} captions")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION) for line in lines]


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenized: bool = False,
    metrics: Sequence[str] = METRICS,
    meteor: Meteor | None = None,
    extra: Mapping[str, object] | None = None,
) -> Scores:
    """Score one predicted caption per image against that image's references.

    `predictions` is n captions, `references` n lists of at least one caption. `tokenized` says that the texts are PTB
    tokens joined by spaces already. Leaving meteor out of `metrics` saves its ten seconds of start,
    and so does a running `meteor` that serves several calls. `extra` goes into the signature.
    CIDEr of a single image is 0: every word is in all the references, so its idf is 0.
    ValueError for lengths that differ, zero images, an image without reference, a text in the place of a list.
    RuntimeError, one line, when Java fails.
    """
    _check(predictions, references, metrics)
    wanted = "meteor" in metrics
    with nullcontext(meteor) if meteor or not wanted else Meteor() as running:  # it starts while the tokeniser runs
        if not tokenized:
            predictions, references = tokenize(predictions), _tokenize_references(references)
        lines, cut = _meteor_lines(running, predictions, references) if running and wanted else (None, 0)
    counted = caption_statistics(predictions, references, lines)
    corpus, per_image = counted.corpus(), counted.per_image()
    version = f"1.5,cut:{cut}" if cut else "1.5"
    return Scores(
        metrics={name: float(corpus[name][0]) for name in metrics},
        per_image={name: per_image[name].tolist() for name in metrics},
        signature=signature(references, tokenized, meteor=version if wanted else None, **(extra or {})),
        statistics=counted,
    )


def signature(
    references: Sequence[Sequence[str]], tokenized: bool, meteor: str | None = "1.5", **extra: object
) -> str:
    """Return one line that says how the scores were computed, in the manner of sacrebleu (Post 2018, W18-6319).

    `refs` is how many references an image has, "5-6" where it varies; `meteor` the version, None where it was not
    run. `extra` adds pairs, as split="test"; one that is None is left out. Two numbers may be compared when their
    signatures agree. ValueError for a bar in a value.
    """
    version = Path(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).stem.rpartition("-")[2]
    least, most = min(map(len, references)), max(map(len, references))
    pairs = {
        "metrics": "coco",
        "tok": "none" if tokenized else f"ptb-{version}-lower",
        "n": len(references),
        "refs": least if least == most else f"{least}-{most}",
        "bleu": "corpus,closest",
        "cider": "d,idf:references",
        "meteor": meteor,
        **extra,
        "tool": f"pycocoevalcap-{importlib.metadata.version('pycocoevalcap')}",
        "medcap": __version__,
    }
    if barred := [f"{key}={value}" for key, value in pairs.items() if "|" in str(value)]:
        raise ValueError(f"a signature's pairs are joined by '|', so none may hold one: {barred[0]!r}")
    return "|".join(f"{key}:{value}" for key, value in pairs.items() if value is not None)


class CocoCaption(evaluate.Metric):
    """`score_captions` as an evaluate.Metric; `evaluate.load` takes this file's path, offline.

    `compute(predictions=[...], references=[...])` gives the corpus scores by name. A reference is a caption or a list
    of captions, the same for all images; `tokenized` and `metrics` are passed on to `score_captions`.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU, METEOR, ROUGE-L and CIDEr as pycocoevalcap computes them.",
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


def _tokenize_references(references: Sequence[Sequence[str]]) -> list[list[str]]:
    tokens = iter(tokenize([caption for captions in references for caption in captions]))
    return [[next(tokens) for _ in captions] for captions in references]


def _meteor_lines(
    meteor: Meteor, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], int]:
    """METEOR's answer for each image, and for how many of them it saw the beginning of the captions only."""
    heads, listed, cut = bounded(predictions, references)
    if cut:
        logger.warning(
            "METEOR scores the first %d words of %d images whose prediction and reference are both longer: "
            "the signature says so",
            LONGEST,
            cut,
        )
    return meteor.statistics(heads, listed), cut


def _refuse_text(name: str, value: object) -> None:
    if isinstance(value, str):  # a str is a sequence too, of letters
        raise ValueError(f"{name} must be a list of captions, got the text {value!r}")


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> None:
    _refuse_text("predictions", predictions)
    _refuse_text("references", references)
    unknown = [metrics] if isinstance(metrics, str) else [name for name in metrics if name not in METRICS]
    if unknown or len(metrics) == 0:
        raise ValueError(f"metrics must be a list of some of {', '.join(METRICS)}; got {unknown or metrics}")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions do not go with the references of {len(references)} images")
    if len(predictions) == 0:
        raise ValueError("nothing to score: 0 images")
    for image, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        _refuse_text(f"references[{image}]", captions)
        if len(captions) == 0:
            raise ValueError(f"references[{image}] is empty: an image needs at least one reference caption")
        if wrong := [text for text in (prediction, *captions) if not isinstance(text, str)]:
            raise ValueError(f"image {image}: a caption must be text, got {wrong[0]!r}")
