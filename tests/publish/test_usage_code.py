"""The usage code of the card runs without medcap and generates the same captions."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from medcap.data.detokenize import detokenize
from medcap.inference import load_captioner
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.publish.release import build_release


@pytest.fixture(scope="module")
def make_run(tiny_base, tmp_path_factory):
    """Return a function that writes a run whose adapter has random weights and changes the captions."""

    def make(image_size, prompt):
        run = tmp_path_factory.mktemp("run")
        model, processor = load_base(str(tiny_base), image_size=image_size)
        adapted = add_lora(model, targets="text", r=4, alpha=64, dropout=0.5)
        torch.manual_seed(1)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        for part in (adapted, processor, family_of(model).make_generation_config(num_beams=2, max_new_tokens=12)):
            part.save_pretrained(run / "adapter")
        recipe = {
            "data_dir": "phantoms",
            "model_name_or_path": str(tiny_base),
            "prompt": prompt,
            "image_size": image_size,
        }
        (run / "adapter" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return run

    return make


@pytest.mark.parametrize(("image_size", "prompt"), [(32, ""), (48, "ct of ")])
def test_usage_code_generates_the_captions_of_medcap(image_size, prompt, make_run, tiny_base, tmp_path):
    run = make_run(image_size, prompt)
    release = build_release(run, tmp_path / "release")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    image.save(release / "image.png")
    (release / tiny_base.name).symlink_to(tiny_base)  # the user's copy of the base
    code = re.search(r"^```python\n(.*?)^```$", (release / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    caption = run_without_medcap(code, release)

    captioner = load_captioner(str(run / "adapter"))  # interpolates the position embeddings when it is loaded
    expected = captioner.caption([image])[0]
    assert detokenize(caption).removeprefix(detokenize(prompt.strip())).strip() == expected
    with captioner.model.disable_adapter():
        assert expected not in ("", captioner.caption([image])[0])  # the adapter changes the caption
    assert caption == plain_caption(tiny_base, run / "adapter", image, prompt, image_size != 32)


def run_without_medcap(code, folder):
    """Run Python code in `folder` without medcap and return its output."""
    blocked = f"import sys\nsys.modules['medcap'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", blocked], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def plain_caption(base, adapter, image, prompt, interpolate):
    """Caption with transformers and peft."""
    model = PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), adapter).eval()
    processor = BlipProcessor.from_pretrained(adapter)
    inputs = processor(images=image, text=prompt or None, return_tensors="pt")
    ids = model.generate(**inputs, num_beams=2, max_new_tokens=12, interpolate_pos_encoding=interpolate)
    return processor.decode(ids[0], skip_special_tokens=True).strip()
