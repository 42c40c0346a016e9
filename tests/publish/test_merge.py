"""A merged model generates the adapter's captions, or it is not written."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file

from medcap.cli import main
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.inference import caption_dataset, load_captioner
from medcap.publish.merge import NUM_CHECKED_IMAGES, check_captions, check_images, plain_captions, write_merged
from medcap.publish.release import build_release


@pytest.fixture(scope="module")
def model(trained_run, tmp_path_factory):
    """A merged model of an adapter trained at 48 px on a base for 32 px; read-only."""
    return build_release(trained_run.folder, tmp_path_factory.mktemp("merged") / "model", write=write_merged)


def test_merged_model_has_no_adapter_files(model):
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md"} <= names
    assert not {"adapter_config.json", "adapter_model.safetensors"} & names
    assert not [name for name in load_file(model / "model.safetensors") if "lora" in name]


PLAIN_SCRIPT = """
import json, sys
sys.modules["medcap"] = sys.modules["peft"] = None  # importing either would fail
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig

model = BlipForConditionalGeneration.from_pretrained(".").eval()
processor, config = BlipProcessor.from_pretrained("."), GenerationConfig.from_pretrained(".")
pixels = [processor(images=Image.open(path), return_tensors="pt").pixel_values for path in sys.argv[1:]]
ids = [model.generate(pixel_values=image, generation_config=config)[0] for image in pixels]
print(json.dumps([processor.decode(tokens, skip_special_tokens=True) for tokens in ids]))
"""


def test_transformers_generates_the_adapters_captions(model, trained_run, phantoms, tmp_path):
    rows = load_data(phantoms, splits=["test"])["test"]
    paths = [tmp_path / f"{number}.png" for number in range(len(rows))]
    for path, row in zip(paths, rows, strict=True):
        load_image(row["image"]).save(path)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_SCRIPT, *map(str, paths)], cwd=model, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    captioner = load_captioner(str(trained_run.folder / "adapter"), detokenize=False)
    assert json.loads(done.stdout) == caption_dataset(captioner, rows)[0]
    assert len(set(json.loads(done.stdout))) > 1


def test_card_of_a_merged_model(model):
    card = ModelCard.load(model / "README.md")
    assert (card.data.library_name, card.data.get("base_model_relation")) == ("transformers", None)  # of a local base
    assert "import PeftModel" not in card.text
    assert "interpolate_pos_encoding" not in card.text  # the position embeddings have the model's image size


def test_no_file_contains_a_local_path(model, trained_run, tiny_base):
    for path in model.iterdir():
        for local_path in (trained_run.folder, tiny_base):
            assert str(local_path).encode() not in path.read_bytes(), path.name


def test_check_uses_test_images_or_phantoms(trained_run, tmp_path):
    images, source = check_images(trained_run.folder / "adapter")
    assert (len(images), source) == (6, "test images of data")
    shutil.copytree(trained_run.folder / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "data_dir": str(tmp_path / "gone")}))
    images, source = check_images(tmp_path / "adapter")
    assert len({image.tobytes() for image in images}) == NUM_CHECKED_IMAGES
    assert source.startswith("phantoms")


def test_different_captions_raise_an_error_of_one_line(model, trained_run, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    weights = load_file(model / "model.safetensors")
    name = "text_decoder.bert.encoder.layer.1.output.dense.weight"
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    images, _ = check_images(trained_run.folder / "adapter")
    captions = plain_captions(tmp_path / "other", images, "")
    with pytest.raises(ValueError, match="image 1: the exported model generates '.*', the adapter '.*'") as raised:
        check_captions(captions, trained_run.folder / "adapter", images)
    assert "\n" not in str(raised.value)


def test_failed_check_leaves_no_files(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda model: model.unload(), raising=False)  # only the base
    with pytest.raises(SystemExit) as raised:
        main(["publish", str(trained_run.folder), "--merge", "--to", str(tmp_path / "out" / "model")])
    assert raised.value.code == 1
    assert capsys.readouterr().err.startswith("medcap: error: image 1: the exported model generates")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("option", ["--merge", "--onnx", "--space"])
def test_other_formats_need_a_folder(option, trained_run, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["publish", str(trained_run.folder), option, "--repo-id", "someone/captions"])
    assert raised.value.code == 2
    expected = "medcap: error: --merge, --onnx and --space write a folder: use --to DIR, not --repo-id\n"
    assert capsys.readouterr().err == expected
