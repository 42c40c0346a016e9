"""The ONNX models generate the adapter's captions, or they are not written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from onnxruntime import InferenceSession
from transformers import BlipForConditionalGeneration

from medcap.cli import main
from medcap.inference import load_captioner
from medcap.modeling.positions import resize_positions
from medcap.publish import onnx_export
from medcap.publish.merge import check_images
from medcap.publish.onnx_export import MODELS, write_onnx
from medcap.publish.release import build_release


@pytest.fixture(scope="module")
def models(trained_run, tmp_path_factory):
    """ONNX models of an adapter trained at 48 px on a base for 32 px; read-only."""
    return build_release(trained_run.folder, tmp_path_factory.mktemp("onnx") / "models", write=write_onnx)


def test_release_is_complete_without_local_paths(models, trained_run, tiny_base):
    names = {path.name for path in models.iterdir()}
    assert {*MODELS, "generation_config.json", "processor_config.json", "README.md"} <= names
    libraries = Path(torch.__file__).parents[1]  # the source paths of the exported code
    for path in models.iterdir():
        for local_path in (trained_run.folder, tiny_base, libraries, Path(onnx_export.__file__).parents[1]):
            assert str(local_path).encode() not in path.read_bytes(), path.name


def test_batch_size_and_length_are_dynamic(models):
    encoder, decoder = (InferenceSession(models / name) for name in MODELS)
    for rows, length in ((1, 1), (3, 9)):
        features = encoder.run(None, {"pixel_values": torch.rand(rows, 3, 48, 48).numpy()})[0]
        ids = torch.ones(rows, length, dtype=torch.int64).numpy()
        assert decoder.run(None, {"input_ids": ids, "features": features})[0].shape[:2] == (rows, length)


def test_usage_code_of_the_card_runs_with_onnxruntime(models, trained_run, tmp_path):
    card = ModelCard.load(models / "README.md")
    code = re.search(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)[1]
    image = check_images(trained_run.folder / "adapter")[0][0]
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    image.save(tmp_path / "image.png")
    script = f"import sys\nsys.modules['medcap'] = sys.modules['peft'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    greedy = load_captioner(
        str(trained_run.folder / "adapter"), generation={"num_beams": 1, "no_repeat_ngram_size": 0}, detokenize=False
    )
    assert done.stdout.strip() == greedy.caption([image])[0] != ""


def test_different_captions_leave_no_files(trained_run, tiny_base, tmp_path, monkeypatch, capsys):
    def base_without_adapter(adapter):
        model = BlipForConditionalGeneration.from_pretrained(tiny_base).eval()
        resize_positions(model, 48)
        return model

    monkeypatch.setattr(onnx_export, "merge", base_without_adapter)
    with pytest.raises(SystemExit) as raised:
        main(["publish", str(trained_run.folder), "--onnx", "--to", str(tmp_path / "out" / "models")])
    assert raised.value.code == 1
    assert "error: image 1: the exported model generates" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_extra_raises(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx is not installed: pip install .*\[onnx\]"):
        build_release(trained_run.folder, tmp_path / "models", write=write_onnx)
