"""In what precision a recipe is computed: what the device is fastest at, and what its numbers then are."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(wanted: str, device: torch.device | str) -> torch.dtype:
    """The dtype that `wanted` ("auto", "fp32", "bf16" or "fp16") stands for on `device`.

    "auto" is bfloat16 where the device multiplies it in hardware (CUDA from Ampere on, a CPU with avx512_bf16 or AMX),
    float16 on older CUDA devices, and float32 elsewhere. On CUDA it also lets float32 products use TF32.
    """
    device = torch.device(device)
    if device.type == "cuda" and wanted == "auto":
        torch.set_float32_matmul_precision("high")
    if wanted != "auto":
        return PRECISIONS[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_bf16 = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if has_bf16 else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """The short name of a dtype: fp32, bf16 or fp16."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
