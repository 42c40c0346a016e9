"""BLEU, ROUGE-L and CIDEr by pycocoevalcap and by medcap.metrics.statistics: the same numbers, and what they cost.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --predictions predictions.csv --references captions.csv

Without options 8,000 pairs of captions are made up. The CSVs have the columns ID and Caption; the images of
predictions.csv are scored, tokenised once (the only step that needs Java). Both scorers take turns in one process
after a warm-up. Seconds are the processor's, which other programs do not lengthen. Peak memory is above what was held
before scoring, each scorer in a process of its own, as Linux tells it. About two minutes on 2 cores.
Exit status 1 when the numbers differ by more than 1e-12.
"""

import argparse
import csv
import multiprocessing
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from medcap.metrics.coco import tokenize
from medcap.metrics.statistics import Statistics, bootstrap, caption_statistics, paired_test

ROUNDS, PAIRS, IMAGES = 5, 8_000, 10_000
Scores = dict[str, np.ndarray]  # the corpus score, then each image's


def made_up(n: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Predictions that are worse copies of their references: about 20 words, rare and frequent as in a language."""
    rng = random.Random(seed)
    words = [f"w{rank}" for rank in range(8_000)]
    chances = [1 / (rank + 3) for rank in range(len(words))]

    def copied(caption: list[str]) -> str:
        return " ".join(rng.choice(words) if rng.random() < 0.3 else word for word in caption if rng.random() < 0.8)

    captions = [rng.choices(words, chances, k=int(rng.gammavariate(3, 7)) + 1) for _ in range(n)]
    return [copied(caption) for caption in captions], [[" ".join(caption)] for caption in captions]


def read(predictions: Path, references: Path) -> tuple[list[str], list[list[str]]]:
    columns = []
    for path in (predictions, references):
        with path.open(encoding="utf-8", newline="") as file:
            columns.append({row["ID"]: row["Caption"] for row in csv.DictReader(file)})
    wanted = tokenize([columns[1][image] for image in columns[0]])
    return tokenize(list(columns[0].values())), [[caption] for caption in wanted]


def stock(predictions: list[str], references: list[list[str]]) -> Scores:
    """Scores of pycocoevalcap itself."""
    gts, res = dict(enumerate(references)), {image: [text] for image, text in enumerate(predictions)}
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    found = {f"bleu_{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    found |= {"rouge_l": Rouge().compute_score(gts, res), "cider": Cider().compute_score(gts, res)}
    return {name: np.append(corpus, per_image) for name, (corpus, per_image) in found.items()}


def ours(predictions: list[str], references: list[list[str]]) -> Scores:
    counted = caption_statistics(predictions, references)
    corpus, per_image = counted.corpus(), counted.per_image()
    return {name: np.append(corpus[name], per_image[name]) for name in corpus}


def seconds(*calls: Callable[[], object]) -> list[list[float]]:
    """CPU seconds of each round of each call, in turns, after one round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):
        for call, taken in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            taken.append(time.process_time() - started)
    return [taken[1:] for taken in times]


def _held(key: str) -> float:
    return int(re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def _peak(score: Callable[[list[str], list[list[str]]], Scores], *texts: list) -> float:
    before = _held("VmRSS")
    score(*texts)
    return _held("VmHWM") - before


def peak(score: Callable[[list[str], list[list[str]]], Scores], *texts: list) -> float:
    """MB above what was held before scoring, in a new process: the highest mark of this one is no longer of use."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (score, *texts))


def resampling(n: int) -> dict[str, list[float]]:
    """Seconds for the intervals of one system and the test between two; METEOR's columns are there, with noise."""
    rng = np.random.default_rng(0)

    def system(seed: int) -> Statistics:
        return replace(caption_statistics(*made_up(n, seed)), meteor=1 + rng.random((n, 6)))

    one, other = system(0), system(1)
    names = [f"1,000 resamples of {n:,} captions", f"10,000 trials of {n:,} captions"]
    times = seconds(lambda: bootstrap(one), lambda: paired_test(one, other))
    return dict(zip(names, times, strict=True))


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, help="CSV with the columns ID and Caption")
    parser.add_argument("--references", type=Path, help="CSV of the same images, or of more")
    options = parser.parse_args(argv)
    if (options.predictions is None) != (options.references is None):
        parser.error("--predictions and --references go together")
    texts = read(options.predictions, options.references) if options.predictions else made_up(PAIRS)
    right, found = stock(*texts), ours(*texts)
    apart = max(float(np.abs(right[name] - found[name]).max()) for name in right)
    slow, fast = seconds(lambda: stock(*texts), lambda: ours(*texts))
    print(f"{len(texts[0]):,} captions, median of {ROUNDS} rounds (fastest to slowest)\n")
    print("| | pycocoevalcap | medcap |\n|---|---|---|")
    print(f"| BLEU, ROUGE-L, CIDEr | {shown(slow)} | {shown(fast)} |")
    print(f"| peak memory | {peak(stock, *texts):.0f} MB | {peak(ours, *texts):.0f} MB |")
    ratios = [theirs / mine for theirs, mine in zip(slow, fast, strict=True)]  # in one round: the load is the same
    print(f"| times as fast | 1 | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")
    print(f"| greatest difference, corpus or image | | {apart:.1e} |")
    for name, times in resampling(IMAGES).items():
        print(f"| {name} | | {shown(times)} |")
    sys.exit(apart > 1e-12)


if __name__ == "__main__":
    main()
