"""Package versions, device and git commit, for environment.json and bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from medcap import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "pycocoevalcap", "bitsandbytes")


def environment() -> dict[str, Any]:
    """Return the package versions, device, number of processes and git commit of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return {
        "medcap": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that medcap runs from; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        changes = subprocess.check_output([*git, "status", "--porcelain"], text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + (" with uncommitted changes" if changes else "")
