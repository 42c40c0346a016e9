"""Captions are equal in training's evaluation, in batches, one by one, and with plain PEFT.

Traps 2, 6, 8, 9, 15, 20. pytest tests/test_inference.py
"""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import write_recipe
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save

from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.inference import Captioner, caption_dataset, has_adapter, load_captioner
from medcap.modeling.families import blip as blip_family
from medcap.modeling.families import family_of
from medcap.recipe import read_recipe
from medcap.training.run_folder import save_adapter


@pytest.fixture(scope="module")
def adapted(trained_run):
    """The adapter of the run; read-only."""
    return load_captioner(str(trained_run.folder / "adapter"))


@pytest.fixture(scope="module")
def base(tiny_base):
    """The tiny base, whose captions differ between images; read-only."""
    return load_captioner(str(tiny_base), generation={"num_beams": 3, "max_new_tokens": 12})


@pytest.fixture(scope="module")
def valid(phantoms):
    return load_data(phantoms, splits=["valid"])["valid"]


@pytest.fixture(scope="module")
def images(valid):
    return [load_image(image) for image in valid["image"]]


def test_captions_in_a_batch_equal_captions_one_by_one(base, images):
    together = base.caption(images)
    assert together == [base.caption([image])[0] for image in images]
    assert len(set(together)) > 1


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_caption_dataset_keeps_the_order(base, valid, images, batch_size):
    captions, cut = caption_dataset(base, valid, batch_size=batch_size)
    assert captions == base.caption(images)
    assert len(cut) == len(captions) == 6


def test_caption_dataset_needs_no_references(base, valid, images):
    unlabeled = Dataset.from_dict({"image_id": valid["image_id"][:], "image": images}).cast(
        valid.select_columns(["image_id", "image"]).features
    )
    assert caption_dataset(base, unlabeled)[0] == caption_dataset(base, valid)[0]


def test_images_of_any_mode_are_captioned(base):
    gray = np.random.default_rng(0).integers(0, 2**16, (40, 60), dtype=np.uint16)
    images = [Image.fromarray(gray), Image.new("1", (9, 5)), Image.new("RGBA", (200, 30), (9, 8, 7, 100))]
    assert all(isinstance(caption, str) for caption in base.caption(images))


def test_saved_adapter_reproduces_captions_of_training(trained_run, adapted, valid):
    """Weights, size, beams and detokenization are those of the best epoch."""
    epoch = int(re.search(r"checkpoint-(\d+),", trained_run.stdout)[1]) // 3
    sample = html.unescape((trained_run.folder / "samples" / f"epoch-{epoch}.md").read_text(encoding="utf-8"))
    assert caption_dataset(adapted, valid)[0] == re.findall(r"^- prediction: (.*)$", sample, re.MULTILINE)


def test_adapter_determines_base_size_and_generation_settings(adapted, trained_run, tiny_base):
    assert (adapted.base, adapted.adapter) == (str(tiny_base), str(trained_run.folder / "adapter"))
    assert adapted.image_size == 48
    settings = adapted.generation_config
    assert (settings.num_beams, settings.max_new_tokens, settings.no_repeat_ngram_size) == (2, 24, 3)
    assert adapted.prompt == ""
    assert not adapted.model.training


def test_arguments_override_settings_of_the_adapter(trained_run):
    captioner = load_captioner(
        str(trained_run.folder / "adapter"), image_size=64, generation={"num_beams": 1, "max_new_tokens": 3}
    )
    assert captioner.image_size == 64
    settings = captioner.generation_config
    assert (settings.num_beams, settings.max_new_tokens, settings.no_repeat_ngram_size) == (1, 3, 3)
    _, cut = captioner.generate({"pixel_values": torch.zeros(1, 3, 64, 64)})
    assert cut == [True]  # no caption ends within three tokens


def test_base_has_default_settings_of_recipes(tiny_base):
    captioner = load_captioner(str(tiny_base))
    assert (captioner.base, captioner.adapter, captioner.image_size) == (str(tiny_base), None, 32)
    assert (captioner.generation_config.num_beams, captioner.generation_config.max_new_tokens) == (4, 64)


def test_adapter_changes_captions(adapted, valid, tiny_base):
    base = load_captioner(str(tiny_base), image_size=48, generation={"num_beams": 2, "max_new_tokens": 24})
    assert caption_dataset(base, valid)[0] != caption_dataset(adapted, valid)[0]


def test_adapter_without_recipe_has_no_prompt(trained_run, tmp_path):
    shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "recipe.yaml").unlink()
    assert load_captioner(str(tmp_path / "adapter")).prompt == ""


def test_has_adapter(trained_run, tiny_base):
    assert has_adapter(str(trained_run.folder / "adapter"))
    assert has_adapter(str(trained_run.folder / "checkpoint-3"))
    assert not has_adapter(str(tiny_base))
    with pytest.raises(FileNotFoundError, match=r"holds no model.*did you mean .*adapter\?"):
        has_adapter(str(trained_run.folder))


def fake_generation(monkeypatch, ids):
    """Make every generation return `ids`; return the list of its input tokens."""
    inputs = []

    def generate(decoder, features, settings, given, sampler):
        inputs.append(given)
        return torch.tensor(ids)

    monkeypatch.setattr(blip_family, "beam_search", generate)
    return inputs


def test_prompt_is_passed_to_generation_and_removed_from_captions(trained_run, tmp_path, monkeypatch):
    shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    recipe = yaml.safe_load((tmp_path / "adapter" / "recipe.yaml").read_text())
    (tmp_path / "adapter" / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "prompt": "a large"}))
    captioner = load_captioner(str(tmp_path / "adapter"))
    assert captioner.prompt == "a large"
    a, large, mass = captioner.processor.tokenizer("a large mass", add_special_tokens=False)["input_ids"]
    dec = family_of(captioner.model).first_token_id
    inputs = fake_generation(monkeypatch, [[dec, a, large, mass, captioner.generation_config.eos_token_id]] * 2)
    captions, cut = captioner.generate({"pixel_values": torch.zeros(2, 3, 48, 48)})
    assert inputs[0].tolist() == [[dec, a, large]] * 2
    assert (captions, cut) == (["mass"] * 2, [False] * 2)


def test_captions_at_the_token_limit_are_marked_as_cut(loaded, monkeypatch):
    model, processor = loaded
    dec, (a, mass), sep, pad = family_of(model).first_token_id, processor.tokenizer("a mass")["input_ids"][1:3], 3, 0
    assert (processor.tokenizer.sep_token_id, processor.tokenizer.pad_token_id) == (sep, pad)
    rows = [
        [dec, sep, pad, pad, pad],  # empty
        [dec, a, mass, sep, pad],
        [dec, a, mass, mass, sep],  # ends with the last token
        [dec, a, mass, mass, mass],  # cut
    ]
    fake_generation(monkeypatch, rows)
    captioner = Captioner(
        model, processor, family_of(model).make_generation_config(num_beams=1, max_new_tokens=4), base=""
    )
    captions, cut = captioner.generate({"pixel_values": torch.zeros(4, 3, 32, 32)})
    assert captions == ["", "a mass", "a mass mass", "a mass mass mass"]
    assert cut == [False, False, False, True]


def test_batch_size_is_halved_when_out_of_memory(base, valid, images, monkeypatch, capsys):
    sizes, generate = [], Captioner.generate

    def with_little_memory(self, batch):
        sizes.append(len(batch["pixel_values"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, batch)

    monkeypatch.setattr(Captioner, "generate", with_little_memory)
    captions, cut = caption_dataset(base, valid, batch_size=8)
    assert sizes == [6, 4, 2, 2, 2]
    assert "8 images at a time do not fit into memory; continuing with 4" in capsys.readouterr().err
    monkeypatch.undo()
    assert captions == base.caption(images)
    assert len(cut) == 6


PLAIN_PROGRAM = """
import json, sys
sys.modules["medcap"] = None  # importing it raises
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, BlipForConditionalGeneration, GenerationConfig
base, adapter, pixels, out = sys.argv[1:]
pixels = torch.load(pixels, weights_only=True)
config = GenerationConfig.from_pretrained(adapter)
models = {
    "peft": PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), adapter),
    "auto": AutoModelForImageTextToText.from_pretrained(adapter),
}
inputs = {"pixel_values": pixels, "generation_config": config, "interpolate_pos_encoding": True}
ids = {name: model.eval().generate(**inputs).tolist() for name, model in models.items()}
open(out, "w").write(json.dumps([ids, [name for name in sys.modules if name.startswith("medcap.")]]))
"""


def test_adapter_generates_equal_ids_without_medcap(trained_run, adapted, images, tmp_path):
    """With PEFT or transformers only, interpolated position embeddings, and the saved generation settings."""
    pixels = adapted.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    torch.save(pixels, tmp_path / "pixels.pt")
    arguments = [
        adapted.base,
        str(trained_run.folder / "adapter"),
        str(tmp_path / "pixels.pt"),
        str(tmp_path / "ids.json"),
    ]
    command = [sys.executable, "-c", PLAIN_PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, medcap_modules = json.loads((tmp_path / "ids.json").read_text())
    assert medcap_modules == []
    expected = adapted.model.generate(pixel_values=pixels, generation_config=adapted.generation_config).tolist()
    assert ids == {"peft": expected, "auto": expected}


def test_base_is_loaded_at_the_revision_of_training(hub, train_script, tiny_base, tmp_path):
    """PEFT records the revision of the base in adapter_config.json."""
    base = hub.add_repository("someone/base", {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    first, weights = base.branches["main"], load_file(tiny_base / "model.safetensors")
    base.commit("main", "other weights", {"model.safetensors": save({n: w + 1 for n, w in weights.items()})})
    keys = {"data_dir": "data", "model_name_or_path": "someone/base", "model_revision": first, "use_cpu": True}
    recipe = write_recipe(tmp_path / "recipe.yaml", **keys, output_dir=str(tmp_path / "run"))
    adapted = train_script.make_model(read_recipe(["--config", str(recipe)]), torch.float32)
    save_adapter(tmp_path / "adapter", adapted, read_recipe(["--config", str(recipe)]))
    name = "text_decoder.cls.predictions.bias"
    again = load_captioner(str(tmp_path / "adapter"), precision="fp32").family.base.state_dict()[name]
    assert torch.equal(again, weights[name])
    other = load_captioner(str(tmp_path / "adapter"), base="someone/base", precision="fp32").family.base.state_dict()[
        name
    ]
    assert torch.equal(other, weights[name] + 1)  # `base` also replaces the revision


def test_adapter_with_missing_weights_raises(trained_run, tmp_path):
    """PEFT only warns and initializes them at random."""
    shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    missing = sorted(weights)[3]
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(
        save({name: weight for name, weight in weights.items() if name != missing}, {"format": "pt"})
    )
    with pytest.raises(ValueError, match=r"adapter cannot be used: .*missing adapter keys.*lora_"):
        load_captioner(str(tmp_path / "adapter"))


@pytest.mark.parametrize(("name", "keys"), [
    ("generation_config.json", {"max_new_tokens": 10**9}),
    ("generation_config.json", {"num_beams": -1}),
    ("adapter_config.json", {"r": "x"}),
    ("adapter_config.json", {"peft_type": None}),
    ("processor_config.json", {"image_processor": {
        "image_processor_type": "BlipImageProcessor", "size": {"height": 10**9, "width": 10**9},
    }}),
])  # fmt: skip
def test_invalid_file_of_an_adapter_raises_with_its_name(name, keys, trained_run, tmp_path):
    folder = shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **keys}))
    with pytest.raises(ValueError, match=r"adapter cannot be used|allowed is \d+ to \d+"):
        load_captioner(str(folder))


def test_error_during_generation_names_the_base(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": "x"}))
    captioner = load_captioner(str(folder), generation={"num_beams": 1, "max_new_tokens": 3})
    captioner = replace(captioner, prompt="ct of")  # tokenized only when captions are generated
    with pytest.raises(ValueError, match=r"base cannot be used: TypeError: '>' not supported"):
        captioner.caption([Image.new("RGB", (9, 9))])
