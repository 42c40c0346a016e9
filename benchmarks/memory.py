"""Compare the memory estimate with the measured peak, in dry runs of BLIP-base and BLIP-large with random weights.

    python benchmarks/memory.py --out NEW_FOLDER [--only large-4bit]

Needs about 4 GB of RAM, 3 GB of disk space and, on two CPU cores, one to two minutes per row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.shapes import write_base, write_data

RECIPE = ROOT / "recipes" / "blip-large-rocov2" / "qlora.yaml"
PLAIN = {"quantization": "none", "gradient_checkpointing": "false", "optim": "adamw_torch"}
CASES = {
    "base": ("base", {**PLAIN, "per_device_train_batch_size": 8}),
    "base-checkpointing": ("base", {**PLAIN, "per_device_train_batch_size": 8, "gradient_checkpointing": "true"}),
    "large": ("large", {**PLAIN, "per_device_train_batch_size": 4}),
    "large-4bit": ("large", {"per_device_train_batch_size": 4}),
}


def main() -> None:
    """Print the memory line of the dry run of each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    write_data(args.out / "data", 16)
    for name in args.only:
        shape, settings = CASES[name]
        base = write_base(args.out / shape, shape)
        argv = ["--config", RECIPE, "--data_dir", args.out / "data", "--model_name_or_path", base, "--dry_run"]
        argv += ["--output_dir", args.out / "run", "--use_cpu", "true", "--precision", "fp32", "--image_size", "224"]
        argv += ["--gradient_accumulation_steps", "1", "--per_device_eval_batch_size", "2", "--num_beams", "1"]
        argv += ["--dataloader_num_workers", "0", "--max_new_tokens", "8"]
        argv += [word for key, value in settings.items() for word in (f"--{key}", value)]
        process = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, argv)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for line in (process.stderr + process.stdout).splitlines():
            if line.startswith("memory: "):
                print(f"{name}: {line.removeprefix('memory: ')}", flush=True)


if __name__ == "__main__":
    main()
