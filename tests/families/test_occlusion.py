"""Occlusion maps of other families than BLIP: words and their log-probabilities."""

import numpy as np
import pytest
from PIL import Image
from tiny_bases import base

from medcap.demo.occlusion import caption_words, occlusion_change, word_log_probability
from medcap.inference import load_captioner


@pytest.mark.parametrize("name", ["vit-gpt2", "blip2-t5", "qwen2_5_vl"])
def test_log_probability_of_a_word_depends_on_the_image_and_not_on_later_words(name, monkeypatch):
    monkeypatch.setattr("medcap.demo.occlusion.GRID", 2)
    captioner, text = load_captioner(str(base(name))), "a mass in the lung"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert caption_words(captioner, text) == text.split()
    short, longer = (word_log_probability(captioner, image, each, 1) for each in (text, f"{text} with a cyst"))
    assert short == pytest.approx(longer, abs=1e-3)
    assert short < 0
    assert np.abs(occlusion_change(captioner, image, text, 1)).max() > 1e-3
