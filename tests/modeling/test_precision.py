"""The dtype of each `precision` on each device."""

import pytest
import torch

from medcap.modeling.precision import precision_name, resolve_dtype


@pytest.mark.parametrize(("avx512_bf16", "amx", "expected"), [(1, 0, "bf16"), (0, 1, "bf16"), (0, 0, "fp32")])
def test_auto_on_a_cpu(monkeypatch, avx512_bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512_bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert precision_name(resolve_dtype("auto", "cpu")) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert precision_name(resolve_dtype("auto", "cuda")) == expected


def test_auto_on_another_device_is_fp32():
    assert resolve_dtype("auto", "mps") == torch.float32


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_given_precision_is_used(name):
    assert precision_name(resolve_dtype(name, "cpu")) == name
