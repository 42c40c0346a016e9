"""Versions, device and commit of this process."""

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
    """Versions, device and git commit (a dirty tree is written down) of this process."""
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
    """The commit of the checkout that medcap runs from, or None for an installed package."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with uncommitted changes" if dirty.stdout.strip() else "")
