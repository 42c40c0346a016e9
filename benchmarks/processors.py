"""Run the quickstart as on older processors, and compare its table: which digits do not depend on the processor?

    python benchmarks/processors.py OUT

Environment variables limit the math libraries to AVX2 and to SSE4.2, and the number of threads is 1 or 2.
Each run takes as long as `medcap quickstart`; a folder that exists is resumed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PROCESSORS = {
    "this processor": {"OMP_NUM_THREADS": "2"},
    "this processor again": {"OMP_NUM_THREADS": "2"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "AVX2": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
             "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.2": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
               "ONEDNN_MAX_CPU_ISA": "SSE41"},
}  # fmt: skip
SYSTEMS = ("without fine-tune", "4 epochs", "6 epochs")


def scores(out: Path) -> dict[str, float]:
    """Return metrics and correct findings of the quickstart in `out`, by system and name."""
    table = {}
    for system in SYSTEMS:
        result = json.loads((out / f"eval-{system.replace(' ', '-')}" / "metrics.json").read_text())
        for name, value in {**result["metrics"], **result["findings"]}.items():
            table[f"{system}: {name}"] = value
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    out = parser.parse_args().out
    tables = {}
    for name, variables in PROCESSORS.items():
        folder = out / name.replace(" ", "-")
        command = [str(Path(sys.executable).with_name("medcap")), "quickstart", "--out", str(folder)]
        subprocess.run(command, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL)
        tables[name] = scores(folder)
    print(f"| score | {' | '.join(tables)} |\n|---|{'---:|' * len(tables)}")
    for score in tables["this processor"]:
        print(f"| {score} | {' | '.join(f'{table[score]:.4f}' for table in tables.values())} |")


if __name__ == "__main__":
    main()
