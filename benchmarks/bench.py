"""How fast is medcap? The seed's way, a careful plain loop and medcap, in turn, in one run.

    python benchmarks/bench.py [--out bench] [--rounds 3] [--write]

Builds BLIP-base of its published shape with random weights and pictures and captions of ROCOv2's sizes in --out, where
both are kept. Prints tables; with --write they become docs/benchmarks.md. About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from medcap.logs import configure_logging

configure_logging()

import peft
import torch
import transformers
from speed.document import render
from speed.generation import measure_beams, measure_generation, measure_loading
from speed.shapes import write_base, write_data
from speed.training import CACHED, FIRST, PLAIN, measure_floor, measure_steps, run_for_memory

from medcap import __version__

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
IMAGES = 60


def machine() -> dict[str, Any]:
    """What it was measured on and with."""
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else model.partition(":")[2].strip()
    versions = {"medcap": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), **versions,
            "peft": peft.__version__}  # fmt: skip


def peak_kilobytes() -> int:
    """Greatest resident size of this process. (`ru_maxrss` survives exec: it would be that of the parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure_memory(out: Path) -> dict[str, float]:
    """Peak resident bytes of each way of training, each in a process of its own."""
    peaks = {}
    for name in (*PLAIN, FIRST, CACHED):
        sys.stderr.write(f"memory: {name}\n")
        words = [sys.executable, __file__, "--out", str(out), "--memory", name]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name] = 1024 * float(done.stdout.split()[-1])
    return peaks


def main() -> None:
    """Measure, print, and with --write also write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--memory", choices=(*PLAIN, FIRST, CACHED), help=argparse.SUPPRESS)
    args = parser.parse_args()
    base, data = write_base(args.out / "base"), write_data(args.out / "data", IMAGES)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        out = Path(folder)
        if args.memory:
            run_for_memory(args.memory, base, data, out)
            print(peak_kilobytes())
            return
        results: dict[str, Any] = {"machine": machine(), "rounds": args.rounds}
        for name, measure in (
            ("steps", lambda: measure_steps(base, data, out, args.rounds)),
            ("floor", lambda: measure_floor(base)),
            ("loading", lambda: measure_loading(base, data, out, args.rounds)),
            ("generation", lambda: measure_generation(base, data, args.rounds)),
            ("beams", lambda: measure_beams(base, data)),
            ("memory", lambda: measure_memory(args.out)),
        ):
            sys.stderr.write(f"measuring {name}\n")
            results[name] = measure()
            (args.out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    text = render(results)
    print(text)
    if args.write:
        DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
