"""transformers' pipeline on an adapter from the Hub behaves as docs/publish.md describes."""

import json
import os
import subprocess
import sys

from PIL import Image

SCRIPT = """
import json, sys
sys.modules["medcap"] = None  # importing it would fail
import torch
from PIL import Image
from peft import PeftModel
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig, pipeline

base, repo, path = sys.argv[1:]
image, settings = Image.open(path), GenerationConfig.from_pretrained(repo)
processor = BlipProcessor.from_pretrained(repo)
model = PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), repo).eval()
asked = {"generation_config": settings, "interpolate_pos_encoding": True}
with torch.inference_mode():
    ids = model.generate(pixel_values=processor(images=image, return_tensors="pt").pixel_values, **asked)
found = {"peft": processor.decode(ids[0], skip_special_tokens=True)}
ways = {"alone": {}, "text": {"text": ""}, "settings": {"text": "", "generate_kwargs": asked}}
for name, arguments in ways.items():
    try:
        found[name] = pipeline("image-text-to-text", model=repo)(images=image, **arguments)
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"[:600]
print(json.dumps(found))
"""


def test_pipeline_generates_other_captions_than_evaluated(hub, trained_run, tiny_base, tmp_path):
    hub.add_repository("someone/base", {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    files = {path.name: path.read_bytes() for path in (trained_run.folder / "adapter").iterdir()}
    config = {**json.loads(files["adapter_config.json"]), "base_model_name_or_path": "someone/base"}
    hub.add_repository("someone/adapter", {**files, "adapter_config.json": json.dumps(config).encode()})
    Image.effect_noise((40, 50), 90).save(tmp_path / "x.png")
    command = [sys.executable, "-c", SCRIPT, "someone/base", "someone/adapter", str(tmp_path / "x.png")]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alone"] == "ValueError: You must provide text for this pipeline."
    captions = [found[name][0]["generated_text"] for name in ("text", "settings")]
    assert all(captions)
    assert found["peft"] not in captions  # BLIP passes only some settings on to its decoder, and no text is a text
