"""The pipeline of transformers does not generate an adapter's evaluated captions; docs/publish.md documents this."""

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
image, config = Image.open(path), GenerationConfig.from_pretrained(repo)
processor = BlipProcessor.from_pretrained(repo)
model = PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), repo).eval()
options = {"generation_config": config, "interpolate_pos_encoding": True}
with torch.inference_mode():
    ids = model.generate(pixel_values=processor(images=image, return_tensors="pt").pixel_values, **options)
results = {"peft": processor.decode(ids[0], skip_special_tokens=True)}
calls = {"image only": {}, "empty text": {"text": ""}, "options": {"text": "", "generate_kwargs": options}}
for name, arguments in calls.items():
    try:
        results[name] = pipeline("image-text-to-text", model=repo)(images=image, **arguments)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"[:600]
print(json.dumps(results))
"""


def test_pipeline_generates_other_captions_than_peft(hub, trained_run, tiny_base, tmp_path):
    hub.add_repository("someone/base", {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    files = {path.name: path.read_bytes() for path in (trained_run.folder / "adapter").iterdir()}
    config = {**json.loads(files["adapter_config.json"]), "base_model_name_or_path": "someone/base"}
    hub.add_repository("someone/adapter", {**files, "adapter_config.json": json.dumps(config).encode()})
    Image.effect_noise((40, 50), 90).save(tmp_path / "x.png")
    command = [sys.executable, "-c", SCRIPT, "someone/base", "someone/adapter", str(tmp_path / "x.png")]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["image only"] == "ValueError: You must provide text for this pipeline."
    captions = [results[name][0]["generated_text"] for name in ("empty text", "options")]
    assert all(captions)
    # BLIP passes only some options to its decoder, and an empty text is tokenized as a prompt
    assert results["peft"] not in captions
