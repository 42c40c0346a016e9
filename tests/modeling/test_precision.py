"""`precision: auto` is what the device has in hardware. pytest tests/modeling/test_precision.py"""

import pytest
import torch

from medcap.modeling.precision import precision_name, resolve_dtype


@pytest.mark.parametrize(("avx512_bf16", "amx", "expected"), [(1, 0, "bf16"), (0, 1, "bf16"), (0, 0, "fp32")])
def test_a_cpu_takes_bf16_where_it_multiplies_it(monkeypatch, avx512_bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512_bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert precision_name(resolve_dtype("auto", "cpu")) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_takes_fp16(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    assert precision_name(resolve_dtype("auto", "cuda")) == expected


def test_another_device_takes_fp32():
    assert resolve_dtype("auto", "mps") == torch.float32


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(name):
    assert precision_name(resolve_dtype(name, "cpu")) == name
