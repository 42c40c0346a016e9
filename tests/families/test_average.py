"""The average of adapters changes the base by the mean of their changes, exactly; others are refused.

pytest tests/families/test_average.py
"""

import copy
import json

import pytest
import tiny_bases
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from medcap.modeling.average import Adapter, average

LAYERS = {"blip": "query|value|dense", "vit-gpt2": "c_attn|c_proj|q_attn"}
KINDS = {
    "plain": ({"r": 4, "lora_alpha": 6}, {"r": 4, "lora_alpha": 6}),
    "other ranks": ({"r": 2, "lora_alpha": 9}, {"r": 5, "lora_alpha": 3}),
    "rslora": ({"r": 4, "lora_alpha": 6, "use_rslora": True}, {"r": 4, "lora_alpha": 6}),
    "patterns": (
        {"r": 4, "rank_pattern": {"query|c_attn": 3}, "alpha_pattern": {"value|c_attn": 16}},
        {"r": 4, "rank_pattern": {"value|c_proj": 2}, "use_rslora": True},
    ),
    "biases": ({"r": 2, "bias": "all", "lora_bias": True}, {"r": 3, "bias": "all", "lora_bias": True}),
}


@pytest.fixture(params=LAYERS)
def base(request, loaded):
    """Return a tiny base, read-only, and its layers with an adapter."""
    model = loaded[0] if request.param == "blip" else tiny_bases.loaded(request.param).base
    return model, rf".*(decoder|text_decoder).*\.({LAYERS[request.param]})"


def save(base, folder, seed=0, **settings):
    """Save an adapter with random weights and return its folder."""
    model, pattern = base
    settings = {"target_modules": pattern, "fan_in_fan_out": "GPT2" in str(model), **settings}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(init_lora_weights=True, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    adapted.peft_config["default"].base_model_name_or_path = "namespace/base"
    adapted.save_pretrained(folder)
    return folder


def merged(base, folder):
    adapted = PeftModel.from_pretrained(copy.deepcopy(base[0]), folder)
    return {name: weight.clone() for name, weight in adapted.merge_and_unload().state_dict().items()}


def averaged(folders, fractions, out):
    weights, config = average([Adapter.read(folder, folder.name) for folder in folders], fractions)
    out.mkdir()
    save_file(weights, out / "adapter_model.safetensors", {"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_adds_the_mean_of_the_changes(base, tmp_path, kind):
    folders = [save(base, tmp_path / str(n), n, **settings) for n, settings in enumerate(KINDS[kind])]
    mean = merged(base, averaged(folders, [0.25, 0.75], tmp_path / "mean"))
    before, first, second = base[0].state_dict(), merged(base, folders[0]), merged(base, folders[1])
    assert any(not torch.equal(first[name], before[name]) for name in before)
    for name, weight in before.items():
        expected = 0.25 * (first[name] - weight) + 0.75 * (second[name] - weight)
        torch.testing.assert_close(mean[name] - weight, expected, atol=1e-6, rtol=1e-6)


def test_trained_modules_are_averaged_themselves(loaded, tmp_path):
    base = loaded[0], r"text_decoder.*\.query"
    saved = ["text_decoder.bert.embeddings.LayerNorm"]
    folders = [save(base, tmp_path / str(n), n, r=2, modules_to_save=saved) for n in range(2)]
    mean = merged(base, averaged(folders, [0.5, 0.5], tmp_path / "mean"))
    first, second = (merged(base, folder) for folder in folders)
    for end in ("weight", "bias"):
        name = f"{saved[0]}.{end}"
        assert not torch.equal(first[name], second[name])
        torch.testing.assert_close(mean[name], (first[name] + second[name]) / 2, atol=1e-6, rtol=1e-6)


REFUSED = {
    "another base": ({}, {"base_model_name_or_path": "namespace/other"}, "the bases must agree"),
    "another revision": ({}, {"revision": "v2"}, "namespace/base@v2"),
    "other layers": ({"target_modules": r"text_decoder.*\.key"}, {}, "train different layers"),
    "dora": ({"use_dora": True}, {}, "has use_dora True"),
    "a changed base": ({}, {"init_lora_weights": "pissa"}, "that lora_init pissa changed"),
    "another method": ({}, {"peft_type": "LOHA"}, "is a LOHA adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exact_average_is_refused_in_one_line(loaded, tmp_path, case):
    settings, changes, message = REFUSED[case]
    base = loaded[0], r"text_decoder.*\.query"
    folders = [save(base, tmp_path / "first", r=2), save(base, tmp_path / "second", r=2, **settings)]
    path = folders[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as error:
        averaged(folders, [0.5, 0.5], tmp_path / "mean")
    assert "second" in str(error.value)
    assert "\n" not in str(error.value)
