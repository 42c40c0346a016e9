"""The private names of other libraries that medcap needs, and a check that they still exist.

A private name may disappear in any release and silently disable a check. Training then stops with a one-line error.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from importlib import metadata


class MissingHookError(ImportError):
    """An installed library lacks a private name that medcap needs."""


@dataclass(frozen=True)
class Hook:
    """A private name of `owner`, a module or class; with `on_instance`, an attribute that only instances have."""

    owner: str
    name: str
    reason: str
    removable: str
    checked: str = "2026-11-25"  # the last date on which the reason was confirmed
    on_instance: bool = False


TRAINER = "transformers.Trainer"
CHECKPOINT = "atomic checkpoints"
IN_PLACE = "when the Trainer writes checkpoints atomically"
LOSSES = "the losses that are not logged yet, in a resumed run"
LOSSES_SAVED = "when the Trainer saves them in its checkpoints"
CPU_BF16 = ("whether the CPU multiplies bfloat16 in hardware", "when torch offers it publicly")
DICOM = ("the transfer syntax of a file that is not read yet", "when pydicom offers it publicly")
HOOKS = (
    Hook(TRAINER, "_save_checkpoint", CHECKPOINT, IN_PLACE),
    Hook(TRAINER, "_save_optimizer_and_scheduler", CHECKPOINT, IN_PLACE),
    Hook(TRAINER, "_save", "checkpoints of whole models", "when the Trainer loads what it saves for every model"),
    Hook(TRAINER, "_save_scaler", CHECKPOINT, IN_PLACE),
    Hook(TRAINER, "_save_rng_state", CHECKPOINT, IN_PLACE),
    Hook(TRAINER, "_run_epoch", "ended runs that are resumed", "when a resumed run that had ended trains no step"),
    Hook(TRAINER, "_maybe_log_save_evaluate", "the evaluation that a signal postponed", "when it is public"),
    Hook(TRAINER, "_tr_loss", LOSSES, LOSSES_SAVED, on_instance=True),
    Hook(TRAINER, "_globalstep_last_logged", LOSSES, LOSSES_SAVED, on_instance=True),
    Hook("torch.cpu", "_is_avx512_bf16_supported", *CPU_BF16),
    Hook("torch.cpu", "_is_amx_tile_supported", *CPU_BF16),
    Hook("torch.utils._python_dispatch", "TorchDispatchMode", "the memory estimate", "when its module is public"),
    Hook("pydicom.filereader", "_read_file_meta_info", *DICOM),
    Hook("pydicom.filereader", "_read_command_set_elements", *DICOM),
)


def check_hooks(library: str, instance: object | None = None) -> None:
    """Check that the private names of a library exist.

    Args:
        library: Its import name, such as "transformers".
        instance: If given, only the attributes of this object are checked, else only those of modules and classes.

    Raises:
        MissingHookError: The first name that is missing, what it is needed for, and which releases have it.
    """
    for hook in HOOKS:
        if hook.owner.partition(".")[0] != library or hook.on_instance != (instance is not None):
            continue
        if not hasattr(_import(hook.owner) if instance is None else instance, hook.name):
            raise MissingHookError(
                f"{library} {metadata.version(library)} has no {hook.owner.rpartition('.')[2]}.{hook.name}, which "
                f"medcap needs for {hook.reason}; install {_supported(library)}"
            )


def _import(owner: str) -> object:
    try:
        return importlib.import_module(owner)
    except ModuleNotFoundError:  # a class, or a module that was removed: None has none of the names
        module, _, name = owner.rpartition(".")
        return getattr(importlib.import_module(module), name, None)


def _supported(library: str) -> str:
    """Return medcap's requirement of a library, such as "transformers<6,>=5.15"."""
    requirements = [text.partition(";")[0].strip() for text in metadata.requires("medcap") or ()]
    return next((text for text in requirements if re.split(r"[^\w.-]", text)[0] == library), f"another {library}")
