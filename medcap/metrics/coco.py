"""The COCO caption metrics as in pycocoevalcap: BLEU, METEOR, ROUGE-L and CIDEr.

The protocol is that of the COCO caption server (Chen et al. 2015, arXiv:1504.00325): PTB tokens in lower case without
punctuation, then
    BLEU-1..4   Papineni et al. 2002 (ACL P02-1040): corpus level, closest reference length, 0 to 1
    METEOR 1.5  Denkowski & Lavie 2014 (WMT W14-3348): the authors' Java program, 0 to 1
    ROUGE-L     Lin 2004 (W04-1013): F with beta 1.2, mean over images, 0 to 1
    CIDEr       Vedantam et al. 2015 (arXiv:1411.5726): the CIDEr-D variant, idf of these references, 0 to 10
The tokenizer and METEOR are the jars of pycocoevalcap. medcap runs Java itself, because in pycocoevalcap a line break
in a caption shifts all following captions, and the tokenizer needs a writable site-packages. BLEU, ROUGE-L and CIDEr
come from `medcap.metrics.statistics`: equal to those of pycocoevalcap within 1e-12, and about twenty times as fast.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from medcap import __version__
from medcap.metrics.java import replace_line_breaks, run_java
from medcap.metrics.meteor import MAX_WORDS, meteor_statistics, truncate
from medcap.metrics.signature import Signature
from medcap.metrics.statistics import METRICS, Statistics, caption_statistics

__all__ = ["METRICS", "Scores", "score_captions", "signature", "tokenize"]

logger = logging.getLogger(__name__)

# With -lowerCase the tokenizer writes brackets as -lrb- and -rrb-, but this list has -LRB- and -RRB-. Brackets stay in
# the text as words, as in published COCO scores.
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)


@dataclass(frozen=True)
class Scores:
    """Scores of n captions.

    Attributes:
        metrics: Corpus scores by metric.
        per_image: n scores by metric. For BLEU and METEOR their mean is not the corpus score, which pools counts.
        signature: How the scores were computed.
        statistics: Statistics of each image, for intervals and tests.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    signature: Signature
    statistics: Statistics


def tokenize(captions: Sequence[str]) -> list[str]:
    """Return the PTB tokens of each caption in lower case, joined by spaces, as PTBTokenizer of pycocoevalcap.

    A blank caption gives "". The lexer reads across line ends ("no." keeps its full stop if the next line begins with
    a digit), so the tokens of a caption depend on the next caption, as in pycocoevalcap.

    Raises:
        RuntimeError: Java failed.
    """
    _refuse_text("captions", captions)
    if len(captions) == 0:
        return []
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    program = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # no line break after the last caption, as in pycocoevalcap's temporary file
    text = "\n".join(map(replace_line_breaks, captions))
    lines = run_java([*program, "-encoding", "UTF-8"], text, seconds=300 + len(text) / 10_000).split("\n")
    if len(lines) != len(captions):
        raise RuntimeError(f"the PTB tokenizer returned {len(lines)} lines for {len(captions)} captions")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION) for line in lines]


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenized: bool = False,
    metrics: Sequence[str] = METRICS,
    extra: Mapping[str, object] | None = None,
) -> Scores:
    """Score one predicted caption per image against the references of that image.

    CIDEr of a single image is 0, because the idf of every word is 0.

    Args:
        predictions: n captions.
        references: n lists of at least one caption.
        tokenized: Whether the texts are already PTB tokens joined by spaces.
        metrics: A subset of `METRICS`; METEOR takes most of the time.
        extra: More pairs for the signature.

    Raises:
        ValueError: Lengths differ, there are no images, an image has no reference, or a str is given for a list.
        RuntimeError: Java failed.
    """
    _check(predictions, references, metrics)
    lines, version = None, None
    if not tokenized:
        predictions, references = tokenize(predictions), _tokenize_references(references)
    if "meteor" in metrics:
        lines, version = _meteor_lines(predictions, references)
    statistics = caption_statistics(predictions, references, lines)
    corpus, per_image = statistics.corpus(), statistics.per_image()
    return Scores(
        metrics={name: float(corpus[name][0]) for name in metrics},
        per_image={name: per_image[name].tolist() for name in metrics},
        signature=signature(references, tokenized, meteor=version, **(extra or {})),
        statistics=statistics,
    )


def signature(
    references: Sequence[Sequence[str]], tokenized: bool, meteor: str | None = "1.5", **extra: object
) -> Signature:
    """Return the signature of the COCO metrics; `refs` is the number of references per image, "5-6" if it varies.

    `meteor` is the version of METEOR, None if it was not run; `extra` are more pairs, such as split="test".
    """
    version = Path(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).stem.rpartition("-")[2]
    low, high = min(map(len, references)), max(map(len, references))
    pairs = {
        "metrics": "coco",
        "tok": "none" if tokenized else f"ptb-{version}-lower",
        "n": len(references),
        "refs": low if low == high else f"{low}-{high}",
        "bleu": "corpus,closest",
        "cider": "d,idf:references",
        "meteor": meteor,
        **extra,
        "tool": f"pycocoevalcap-{importlib.metadata.version('pycocoevalcap')}",
        "medcap": __version__,
    }
    return Signature.of(**pairs)


def _tokenize_references(references: Sequence[Sequence[str]]) -> list[list[str]]:
    tokens = iter(tokenize([caption for captions in references for caption in captions]))
    return [[next(tokens) for _ in captions] for captions in references]


def _meteor_lines(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str | None], str]:
    """Return the answer of METEOR for each image, and its version with the numbers of truncated and failed images."""
    predictions, references, cut = truncate(predictions, references)
    if cut:
        message = "METEOR scores the first %d words of %d images with a longer prediction and reference; see signature"
        logger.warning(message, MAX_WORDS, cut)
    lines = meteor_statistics(predictions, references)
    failed = lines.count(None)
    return lines, "1.5" + (f",cut:{cut}" if cut else "") + (f",failed:{failed}" if failed else "")


def _refuse_text(name: str, value: object) -> None:
    if isinstance(value, str):  # a str is a sequence of letters
        raise ValueError(f"{name} must be a list of captions, got the text {value!r}")


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> None:
    _refuse_text("predictions", predictions)
    _refuse_text("references", references)
    unknown = [metrics] if isinstance(metrics, str) else [name for name in metrics if name not in METRICS]
    if unknown or len(metrics) == 0:
        raise ValueError(f"metrics must be a list of some of {', '.join(METRICS)}; got {unknown or metrics}")
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions but references of {len(references)} images: need one prediction per image"
        )
    if len(predictions) == 0:
        raise ValueError("no images to score")
    for image, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        _refuse_text(f"references[{image}]", captions)
        if len(captions) == 0:
            raise ValueError(f"references[{image}] is empty: an image needs at least one reference caption")
        if wrong := [text for text in (prediction, *captions) if not isinstance(text, str)]:
            raise ValueError(f"image {image}: a caption must be text, got {wrong[0]!r}")
