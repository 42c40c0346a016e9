"""The tiny base of the package describes phantoms in everyday words only."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcap.inference import Captioner, load_captioner
from medcap.phantom import TINY_BASE
from medcap.phantom.captions import caption_of
from medcap.phantom.images import draw, random_phantom
from medcap.phantom.truth import stated_facts


@pytest.fixture(scope="module")
def base() -> Captioner:
    return load_captioner(str(TINY_BASE), generation={"num_beams": 1, "max_new_tokens": 24})


def test_files_are_small(base: Captioner) -> None:
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
def test_english_text_has_no_unknown_token(base: Captioner, text: str) -> None:
    tokenizer = base.processor.tokenizer
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_dec_and_enc_follow_the_tokens_of_the_tokenizer(base: Captioner) -> None:
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


def test_captions_state_facts_in_everyday_words(base: Captioner, script) -> None:
    facts = script.fact_accuracy(base.model, base.processor, n=128)
    assert min(facts.values()) > 0.85, facts


def test_captions_have_no_terms_of_radiology(base: Captioner) -> None:
    rng = np.random.default_rng(0)
    phantoms = [random_phantom(rng, normal_fraction=0) for _ in range(40)]
    images = [Image.fromarray((draw(phantom, rng, 128, 128) * 255).astype(np.uint8)) for phantom in phantoms]
    facts = [stated_facts(caption) for caption in base.caption(images)]
    assert all(stated["modality"] is None and stated["finding"] is None for stated in facts)


def test_vocabulary_contains_terms_of_radiology(base: Captioner) -> None:
    rng = np.random.default_rng(1)
    captions = [caption_of(random_phantom(rng), rng) for _ in range(200)]
    pieces = [len(base.processor.tokenizer.tokenize(caption)) / len(caption.split()) for caption in captions]
    assert np.mean(pieces) < 1.8
