"""Compare the metrics of pycocoevalcap and medcap: equal scores, time and memory.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --predictions predictions.csv --references captions.csv

Without options, 8,000 pairs of captions are generated. The CSV files have the columns ID and Caption; the images of
predictions.csv are scored. Tokenization, the only step that needs Java, runs once. The scorers alternate in one
process after a warm-up. Times are CPU times. Peak memory is the increase during scoring, measured in a new process per
scorer (Linux only). Then whole processes are compared, with imports, tokenizer and METEOR: `medcap score`, which also
computes intervals, and the stock scorers on the same two CSV files. Takes about five minutes on two CPU cores. Exit
status 1 if scores differ by more than 1e-12, or those of whole processes by more than 1e-9.
"""

import argparse
import csv
import json
import multiprocessing
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from medcap.metrics.coco import tokenize
from medcap.metrics.paraphrases import ParaphraseIndex, index_folder
from medcap.metrics.statistics import Statistics, bootstrap, caption_statistics, paired_test

ROUNDS, PAIRS, RESAMPLED = 5, 8_000, 10_000
PROCESSES = {3_000: 3, 20_000: 1}  # captions: rounds
Scores = dict[str, np.ndarray]  # corpus score followed by the score of each image


def random_captions(
    n: int, seed: int = 0, vocab: Sequence[str] = tuple(f"w{rank}" for rank in range(8_000))
) -> tuple[list[str], list[list[str]]]:
    """Return `n` references of about 20 words with natural word frequencies, and predictions with errors."""
    rng = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(vocab))]

    def with_errors(caption: list[str]) -> str:
        return " ".join(rng.choice(vocab) if rng.random() < 0.3 else word for word in caption if rng.random() < 0.8)

    captions = [rng.choices(vocab, weights, k=int(rng.gammavariate(3, 7)) + 1) for _ in range(n)]
    return [with_errors(caption) for caption in captions], [[" ".join(caption)] for caption in captions]


def read(predictions: Path, references: Path) -> tuple[list[str], list[list[str]]]:
    """Return the tokenized predictions and the references of the same images."""
    columns = []
    for path in (predictions, references):
        with path.open(encoding="utf-8", newline="") as file:
            columns.append({row["ID"]: row["Caption"] for row in csv.DictReader(file)})
    selected = tokenize([columns[1][image] for image in columns[0]])
    return tokenize(list(columns[0].values())), [[caption] for caption in selected]


def pycocoevalcap_scores(predictions: list[str], references: list[list[str]]) -> Scores:
    """Return the scores of pycocoevalcap."""
    gts, res = dict(enumerate(references)), {image: [text] for image, text in enumerate(predictions)}
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"bleu_{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    scores |= {"rouge_l": Rouge().compute_score(gts, res), "cider": Cider().compute_score(gts, res)}
    return {name: np.append(corpus, per_image) for name, (corpus, per_image) in scores.items()}


def medcap_scores(predictions: list[str], references: list[list[str]]) -> Scores:
    """Return the scores of medcap."""
    counts = caption_statistics(predictions, references)
    corpus, per_image = counts.corpus(), counts.per_image()
    return {name: np.append(corpus[name], per_image[name]) for name in corpus}


def seconds(*calls: Callable[[], object]) -> list[list[float]]:
    """Return the CPU seconds of each call in each round; the calls alternate after a warm-up round."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):
        for call, measured in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            measured.append(time.process_time() - started)
    return [measured[1:] for measured in times]


def _resident_megabytes(key: str) -> float:
    return int(re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def _peak_here(score: Callable[[list[str], list[list[str]]], Scores], *captions: list) -> float:
    before = _resident_megabytes("VmRSS")
    score(*captions)
    return _resident_megabytes("VmHWM") - before


def peak(score: Callable[[list[str], list[list[str]]], Scores], *captions: list) -> float:
    """Return the MB that scoring adds to the resident memory of a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (score, *captions))


def resampling(n: int) -> dict[str, list[float]]:
    """Return the seconds of bootstrap intervals and of a paired test, with random METEOR statistics."""
    rng = np.random.default_rng(0)

    def system(seed: int) -> Statistics:
        return replace(caption_statistics(*random_captions(n, seed)), meteor=1 + rng.random((n, 6)))

    first, second = system(0), system(1)
    names = [f"1,000 resamples of {n:,} captions", f"10,000 trials of {n:,} captions"]
    times = seconds(lambda: bootstrap(first), lambda: paired_test(first, second))
    return dict(zip(names, times, strict=True))


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def stock(predictions: Path, references: Path) -> dict[str, float]:
    """Return the scores of pycocoevalcap for two CSV files, computed as its users do."""
    images = []
    for path in (predictions, references):
        with path.open(encoding="utf-8", newline="") as file:
            images.append({row["ID"]: [{"caption": row["Caption"]}] for row in csv.DictReader(file)})
    res, gts = (PTBTokenizer().tokenize(captions) for captions in images)
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"bleu_{n + 1}": bleu[n] for n in range(4)}
    scorers = {"meteor": Meteor(), "rouge_l": Rouge(), "cider": Cider()}
    return scores | {name: float(scorer.compute_score(gts, res)[0]) for name, scorer in scorers.items()}


def write_captions(n: int, folder: Path) -> list[str]:
    """Write `n` predictions and references of frequent words; return the paths as options of `medcap score`."""
    words = [atom for atom in ParaphraseIndex(index_folder()).atoms if atom.isalpha()][:8_000]
    predictions, references = random_captions(n, vocab=words)
    options = []
    for name, captions in (("predictions", predictions), ("references", [texts[0] for texts in references])):
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("ID", "Caption"), *((str(i), text) for i, text in enumerate(captions))])
        options += [f"--{name}", str(path)]
    return options


def run(command: list[str]) -> tuple[float, float, dict[str, float]]:
    """Run a process; return its CPU seconds, with those of its children, its wall seconds and its scores."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    scores = json.loads(output[output.index("{\n") :])
    return cpu, wall, scores.get("metrics", scores)


def whole_processes() -> float:
    """Print CPU and wall seconds of whole processes; return the largest difference of a score."""
    difference = 0.0
    print("\n| captions, whole process | pycocoevalcap, CPU | medcap, CPU | pycocoevalcap, wall | medcap, wall |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n, rounds in PROCESSES.items():
            options = write_captions(n, Path(folder))
            commands = [
                [sys.executable, __file__, "--stock", *options],
                [str(Path(sys.executable).with_name("medcap")), "score", "--json", *options],
            ]
            results = [[run(command) for command in commands] for _ in range(rounds)]
            times = [spread([result[i][kind] for result in results]) for kind in (0, 1) for i in (0, 1)]
            print(f"| {n:,} | {' | '.join(times)} |")
            (_, _, expected), (_, _, actual) = results[0]
            difference = max(difference, *(abs(expected[name] - actual[name]) for name in expected))
    print(f"\nlargest difference of a score: {difference:.1e}")
    return difference


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, help="CSV with the columns ID and Caption")
    parser.add_argument("--references", type=Path, help="CSV with at least the same images")
    parser.add_argument("--stock", action="store_true", help="only print the scores of pycocoevalcap")
    options = parser.parse_args(argv)
    if options.stock:
        print("\n" + json.dumps(stock(options.predictions, options.references), indent=1))
        return
    if (options.predictions is None) != (options.references is None):
        parser.error("--predictions and --references must be given together")
    captions = read(options.predictions, options.references) if options.predictions else random_captions(PAIRS)
    expected, actual = pycocoevalcap_scores(*captions), medcap_scores(*captions)
    difference = max(float(np.abs(expected[name] - actual[name]).max()) for name in expected)
    slow, fast = seconds(lambda: pycocoevalcap_scores(*captions), lambda: medcap_scores(*captions))
    print(f"{len(captions[0]):,} captions, median of {ROUNDS} rounds (min to max)\n")
    print("| | pycocoevalcap | medcap |\n|---|---|---|")
    print(f"| BLEU, ROUGE-L, CIDEr | {spread(slow)} | {spread(fast)} |")
    print(
        f"| peak memory | {peak(pycocoevalcap_scores, *captions):.0f} MB | {peak(medcap_scores, *captions):.0f} MB |"
    )
    ratios = [baseline / own for baseline, own in zip(slow, fast, strict=True)]  # within a round the load is the same
    print(f"| speedup | 1 | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")
    print(f"| largest difference, corpus or image | | {difference:.1e} |")
    for name, times in resampling(RESAMPLED).items():
        print(f"| {name} | | {spread(times)} |")
    sys.exit(difference > 1e-12 or whole_processes() > 1e-9)


if __name__ == "__main__":
    main()
