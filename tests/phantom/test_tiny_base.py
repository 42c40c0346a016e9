"""The tiny base that ships with the package: it speaks, it sees, and it does not know radiology by sight."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcap.inference import Captioner, load_captioner
from medcap.phantom import TINY_BASE
from medcap.phantom.captions import caption_of
from medcap.phantom.images import draw, random_phantom
from medcap.phantom.truth import said


@pytest.fixture(scope="module")
def base() -> Captioner:
    return load_captioner(str(TINY_BASE), generation={"num_beams": 1, "max_new_tokens": 24})


def test_it_is_small_enough_to_ship(base: Captioner) -> None:
    assert sum(path.stat().st_size for path in TINY_BASE.iterdir()) < 12e6
    assert 1e6 < sum(parameter.numel() for parameter in base.model.parameters()) < 4e6
    assert {path.suffix for path in TINY_BASE.iterdir()} <= {".json", ".txt", ".safetensors", ".md"}


TEXTS = {
    "plain": "Any English sentence, however odd, zigzags quickly past Jupiter's 67 moons; why not?",
    "clinical": "X-ray (PA) of a 3.5 × 2 cm mass – “ground-glass” – at T1/T2, HR ≥ 90 bpm, 37.5 °C, 10 µg, ~50 %",
    "accents": "naïve café, Ménétrier’s disease, Sjögren, Röntgen, Münchmeyer, señor, Ångström",
    "greek and signs": "α β γ δ μ Ω ± ≤ ≥ ≈ ∼ → ← ↑ ↓ • … ′ ″ ² ³ ½ § © ® £ € ¥",
    "brackets and code": "[a] {b} <c> \\d+ a_b #1 @ & * ^ | ~ ` ' \" $ % = +",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_english_text_has_an_unknown_token(base: Captioner, text: str) -> None:
    tokenizer = base.processor.tokenizer
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_the_tokenizer_is_as_the_hubs_without_dec(base: Captioner) -> None:
    text = base.model.config.text_config
    assert text.bos_token_id == len(base.processor.tokenizer)
    assert text.vocab_size == len(base.processor.tokenizer) + 2


@pytest.fixture(scope="module")
def script() -> object:
    path = Path(__file__).parents[2] / "scripts" / "make_tiny_base.py"
    spec = importlib.util.spec_from_file_location("make_tiny_base", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_sees_what_is_drawn_and_says_it_in_everyday_words(base: Captioner, script) -> None:
    facts = script.facts_said(base.model, base.processor, pictures=128)
    assert min(facts.values()) > 0.85, facts


def test_it_does_not_speak_radiology(base: Captioner) -> None:
    rng = np.random.default_rng(0)
    phantoms = [random_phantom(rng, normal_share=0) for _ in range(40)]
    images = [Image.fromarray((draw(phantom, rng, 128, 128) * 255).astype(np.uint8)) for phantom in phantoms]
    captions = [said(caption) for caption in base.caption(images)]
    assert all(words["modality"] is None and words["finding"] is None for words in captions)


def test_its_vocabulary_holds_the_words_of_radiology(base: Captioner) -> None:
    rng = np.random.default_rng(1)
    captions = [caption_of(random_phantom(rng), rng) for _ in range(200)]
    pieces = [len(base.processor.tokenizer.tokenize(caption)) / len(caption.split()) for caption in captions]
    assert np.mean(pieces) < 1.8
