"""`medcap env`: the environment for a bug report."""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, json_option, print_result

OPTIONAL = ("pydicom", "gradio", "optuna", "onnxruntime", "bert-score", "radeval", "torchvision", "deepspeed")


def add_commands(commands: Any) -> None:
    """Add `env`."""
    text = "print versions, device and caches for a bug report; without tokens and the user's name"
    json_option(add_command(commands, "env", _env, text, "medcap env"))


def _env(args: argparse.Namespace) -> None:
    from medcap.environment import environment

    found = environment()
    packages = {**found.pop("packages"), **{name: _version(name) for name in OPTIONAL}}
    result = json.loads(_without_user(json.dumps({**found, **_hardware(), **packages, **_caches()})))
    width = max(map(len, result))
    print_result(args, result, "\n".join(f"{name.ljust(width)}  {value}" for name, value in result.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, str]:
    import psutil
    import torch

    from medcap.disk import megabytes

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, "
        f"{megabytes(psutil.virtual_memory().total)} of memory",
        "gpus": ", ".join(f"{gpu.name} ({megabytes(gpu.total_memory)})" for gpu in gpus) or "none",
        "cuda": torch.version.cuda or "torch without CUDA",
    }


def _caches() -> dict[str, str]:
    """Return folder and size of the caches: image features, all of medcap's files, and the Hub's files."""
    from huggingface_hub import CacheNotFound, scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE

    from medcap.disk import folder_bytes, megabytes
    from medcap.io import cache_folder
    from medcap.modeling.feature_store import default_folder

    try:
        hub = scan_cache_dir().size_on_disk  # a snapshot has links to files, which would count twice
    except CacheNotFound:
        hub = 0
    folders = {"features": default_folder(), "medcap's cache, with features": cache_folder()}
    sizes = {name: (folder, folder_bytes(folder)) for name, folder in folders.items()}
    sizes["Hub cache"] = (Path(HF_HUB_CACHE), hub)
    return {name: f"{folder}, {megabytes(size)}" for name, (folder, size) in sizes.items()}


def _without_user(text: str) -> str:
    """Replace the home folder, and the user's name in other paths."""
    text = text.replace(str(Path.home()), "~")
    for name in {Path.home().name, os.environ.get("USER", ""), os.environ.get("LOGNAME", "")} - {""}:
        text = text.replace(f"/{name}/", "/(user)/")
    return text
