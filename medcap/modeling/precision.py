"""The dtype of a recipe's `precision` on a device."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def allow_tf32(precision: str, device: torch.device | str) -> None:
    """Let float32 matrix products use TF32 if `precision` is "auto" and `device` is CUDA."""
    if precision == "auto" and torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


def resolve_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the dtype of `precision` ("auto", "fp32", "bf16" or "fp16") on `device`.

    "auto" is bfloat16 if the hardware supports it (CUDA from Ampere on, a CPU with avx512_bf16 or AMX), float16 on
    older CUDA devices, and float32 elsewhere.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    cpu = torch.cpu
    has_bf16 = kind == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())  # noqa: SLF001
    return torch.bfloat16 if has_bf16 else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype: fp32, bf16 or fp16."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
