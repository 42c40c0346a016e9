"""docs/benchmarks.md, from what was measured and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from speed.generation import AT_ONCE, BATCHED, SEEDS_LOOP
from speed.training import CACHED, FIRST

SEED, CAREFUL = "the seed's way", "a careful loop"


def render(results: dict[str, Any]) -> str:
    """The whole document."""
    about = results["machine"]
    parts = [
        HEAD.format(rounds=results["rounds"], at_once=AT_ONCE, **about),
        "## A training step\n",
        steps_table(results["steps"]),
        TRAINING,
        "## The floor\n",
        floor_table(results["floor"]),
        floor_text(results["floor"]),
        "## Generation\n",
        ways_table(results["generation"], SEEDS_LOOP, BATCHED, "s an image"),
        GENERATION.format(at_once=AT_ONCE),
        beams_table(results["beams"]),
        "\n## Loading\n",
        ways_table(results["loading"], "PIL and BlipProcessor", None, "s a picture"),
        LOADING,
        "## Peak memory of training\n",
        memory_table(results["memory"]),
    ]
    return "\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Median, and least to greatest in brackets."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def ways_table(ways: dict[str, list[float]], first: str, second: str | None, unit: str) -> str:
    """Each way's time, and how many times sooner it is than one or two others."""
    middle = {name: statistics.median(values) for name, values in ways.items()}
    against = [name for name in (first, second) if name]
    rows = [
        [name, spread(values), *(f"{middle[other] / middle[name]:.2f}" for other in against)]
        for name, values in ways.items()
    ]
    return table(["", unit, *(f"times sooner than {other}" for other in against)], rows)


def steps_table(steps: dict[str, list[float]]) -> str:
    """The ways of training."""
    return ways_table(steps, SEED, CAREFUL, "s a step")


def floor_table(floor: dict[str, Any]) -> str:
    """Cached steps beside what they must do."""
    rows = []
    for row in floor["rows"]:
        reached = row["operations"] / row["seconds"]
        rows.append([
            f"{row['images']} images, {row['tokens']} tokens", f"{1e3 * row['seconds']:.0f}",
            f"{row['operations'] / 1e9:.0f}", f"{1e3 * row['operations'] / row['rate']:.0f}",
            f"{reached / 1e9:.0f}", f"{row['rate'] / 1e9:.0f}", f"{reached / row['rate']:.0%}",
        ])  # fmt: skip
    header = ["cached step", "ms", "must do, GFLOP", "floor, ms", "GFLOP/s", "matrix rate, GFLOP/s", "share"]
    return table(header, rows)


def floor_text(floor: dict[str, Any]) -> str:
    """How bytes compare, in words."""
    moved = 1e3 * floor["bytes"] / floor["copy_rate"]
    step, rate, dtype = floor["bytes"] / 1e6, floor["copy_rate"] / 1e9, floor["dtype"].removeprefix("torch.")
    return FLOOR.format(moved=moved, step=step, rate=rate, dtype=dtype)


def beams_table(rows: list[dict[str, float]]) -> str:
    """How generation grows."""
    cells = [[f"{row['beams']} beams, {row['images']} images at a time", f"{row['seconds']:.3g}"] for row in rows]
    return table(["medcap", "s an image"], cells)


def memory_table(peaks: dict[str, float]) -> str:
    """Peak resident size of each way's process."""
    rows = [[name, f"{peak / 1e9:.2f}", f"{peak / peaks[SEED]:.0%}"] for name, peak in peaks.items()]
    return table(["", "GB", f"of {SEED}"], rows)


HEAD = """# How fast it is

Written by `make bench` (`benchmarks/bench.py`): BLIP-base of its published shape with random weights, on which speed
does not depend, batches of 3, drawn JPEGs of 480 to 640 pixels a side, captions as long as ROCOv2's were measured to
be (median 31 tokens, 95 % under 86, cut at 128). {cores} cores of a shared {device}, Python {python}, torch {torch},
transformers {transformers}, peft {peft}, medcap {medcap}. The ways take turns in one process, {rounds} rounds after a
warm-up; given is the median, in brackets the least and the greatest. No GPU was at hand: nothing is said of one.
"""
TRAINING = f"""
A step is loading, forward, backward and optimizer; for the loops that pad to the batch and for medcap the mean over
the captions of a round. "{SEED}" takes 384 px, pads every caption to 512 tokens and keeps nothing; "{CAREFUL}" takes
224 px, pads to the longest of the batch and masks the pads; both are plain loops in `benchmarks/speed/plain.py`.
"{FIRST}" also encodes each image and writes its features; "{CACHED}" reads them. medcap computes in what
`precision: auto` picks, bfloat16 on a processor that multiplies it in hardware: that is a large part of the
difference, and the careful loop stands there in bf16 too.
"""
FLOOR = """
Operations are counted by hand (`least_operations` in `benchmarks/speed/training.py`), the rate is that of a product of
2,048 x 2,048 in {dtype}, measured before and after each row. The step of 3 images and 40 tokens must move {step:,.0f}
MB, {moved:.0f} ms at the measured copy rate of {rate:.0f} GB/s.
"""
GENERATION = """
4 beams, up to 128 ids. Random weights never end a caption, so every image takes all 127 steps: with trained weights
images leave medcap's batch as they end. The seed's loop takes 384 px and 3 images at a time, the others 224 px and
{at_once} at a time. Captions are those of `generate`, token for token in fp32 (tests/modeling/test_generation.py).
"""
LOADING = """
One process, files in the page cache. Bytes are normalised by the tower, on its device; where features are kept a
picture is read and recognised by its digest, and not decoded.
"""
