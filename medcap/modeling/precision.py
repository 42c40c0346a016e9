"""Precision of the computation: the dtype of a recipe's setting on a device."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def allow_tf32(precision: str, device: torch.device | str) -> None:
    """Let float32 matrix products of this process use TF32, where `precision` is "auto" and `device` is CUDA."""
    if precision == "auto" and torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


def resolve_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype of `precision` ("auto", "fp32", "bf16" or "fp16") on `device`.

    "auto" is bfloat16 where the device multiplies it in hardware (CUDA from Ampere on, a CPU with avx512_bf16 or AMX),
    float16 on older CUDA devices, and float32 elsewhere.
    """
    device = torch.device(device)
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else torch.float32


def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; see `medcap.private_hooks`."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001


def precision_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype: fp32, bf16 or fp16."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
