"""Measure the speed and memory of medcap, of a reference loop and of the original project.

    python benchmarks/bench.py [--out bench] [--rounds 3] [--write]

Creates BLIP-base with random weights, and images and captions of ROCOv2's sizes, in --out, and reuses them. Prints
tables; --write also writes docs/benchmarks.md. Takes about 15 minutes on two CPU cores.
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
from speed.training import CACHED, FIRST, PLAIN, measure_peak, measure_steps, run_for_memory

from medcap import __version__

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
IMAGES = 60


def machine() -> dict[str, Any]:
    """Return the device and the versions of the libraries."""
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else model.partition(":")[2].strip()
    versions = {"medcap": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), **versions,
            "peft": peft.__version__}  # fmt: skip


def peak_kilobytes() -> int:
    """Return the peak resident memory of this process. `ru_maxrss` survives exec and would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure_memory(out: Path) -> dict[str, float]:
    """Return the peak resident bytes of each training method, each measured in a new process."""
    peaks = {}
    for name in (*PLAIN, FIRST, CACHED):
        sys.stderr.write(f"memory: {name}\n")
        argv = [sys.executable, __file__, "--out", str(out), "--memory", name]
        process = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name] = 1024 * float(process.stdout.split()[-1])
    return peaks


def main() -> None:
    """Measure, print the tables, and write the document with --write."""
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
            ("peak", lambda: measure_peak(base)),
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
