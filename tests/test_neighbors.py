"""Reranking chooses among the beams, in `evaluate` and `caption` alike, and is refused without training captions."""

import json

import pytest
import torch
from torch.nn import functional as F

from medcap.cli import main
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.evaluation.predict import predict
from medcap.evaluation.split import load_split
from medcap.inference import caption_dataset, load_captioner
from medcap.modeling.generation import with_candidates
from medcap.neighbors import image_features, with_consensus
from medcap.recipe import RecipeError

SETTINGS = {"num_beams": 4, "max_new_tokens": 12, "rerank": "consensus", "rerank_neighbors": 2}


@pytest.fixture(scope="module")
def training(phantoms):
    return load_data(phantoms, splits=["train"])["train"]


@pytest.fixture(scope="module")
def captioner(tiny_base, training):
    return with_consensus(load_captioner(str(tiny_base), generation=SETTINGS), training)


@pytest.fixture(scope="module")
def test_split(phantoms):
    return load_split(str(phantoms), "test")


def candidates(captioner, image):
    """Return the captions of all beams by transformers' `generate`."""
    pixels = captioner.family.pixels()(load_image(image))[None]
    settings = with_candidates(captioner.generation_config)
    ids = captioner.model.generate(pixel_values=pixels, generation_config=settings)
    return captioner.processor.batch_decode(ids, skip_special_tokens=True)


def test_the_caption_is_that_of_the_consensus(captioner, tiny_base, test_split):
    features = image_features(captioner, test_split.rows, 4, with_adapter=True)
    beams = [candidates(captioner, image) for image in test_split.rows["image"]]
    chosen = captioner.consensus.choose([text for texts in beams for text in texts], F.normalize(features, dim=1))
    plain = load_captioner(str(tiny_base), generation={**SETTINGS, "rerank": "none"}, detokenize=False)
    best = caption_dataset(plain, test_split.rows)[0]
    assert best == [texts[0] for texts in beams]
    raw = load_captioner(str(tiny_base), generation=SETTINGS, detokenize=False)
    raw = with_consensus(raw, test_split.training)
    expected = [beams[row // 4][row % 4] for row in chosen]
    assert caption_dataset(raw, test_split.rows)[0] == expected
    assert expected != best  # else reranking would change nothing here


@pytest.mark.parametrize("batch_size", [1, 4])
def test_captions_do_not_depend_on_the_batch(captioner, test_split, batch_size):
    captions = caption_dataset(captioner, test_split.rows)
    assert caption_dataset(captioner, test_split.rows, batch_size=batch_size) == captions


def test_evaluation_and_caption_files_agree(captioner, tiny_base, phantoms, test_split, tmp_path, capsys):
    predicted = predict(load_captioner(str(tiny_base), generation=SETTINGS), test_split, tmp_path)
    decoding = predicted.signature_pairs["decoding"]
    assert "rerank-consensus" in decoding
    assert "rerank_neighbors-2" in decoding
    load_image(test_split.rows[0]["image"]).save(tmp_path / "image.png")
    options = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    main(["caption", str(tmp_path / "image.png"), "--model", str(tiny_base), "--data", str(phantoms), *options])
    assert json.loads(capsys.readouterr().out)["caption"] == predicted.captions[0]


def test_caption_without_the_training_data_is_refused(tiny_base, tmp_path, capsys, test_split):
    load_image(test_split.rows[0]["image"]).save(tmp_path / "image.png")
    with pytest.raises(SystemExit) as status:
        main(["caption", str(tmp_path / "image.png"), "--model", str(tiny_base), "--rerank", "consensus"])
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert "give the data set of the training with --data, or turn it off with --rerank none" in error
    assert "Traceback" not in error


def test_a_captioner_without_consensus_refuses_to_generate(tiny_base):
    captioner = load_captioner(str(tiny_base), generation=SETTINGS)
    with pytest.raises(RecipeError, match="rerank: consensus needs training captions"):
        captioner.generate({"pixel_values": torch.zeros(1, 3, 32, 32)})


def test_the_searched_images_are_limited(tiny_base, training):
    captioner = load_captioner(str(tiny_base), generation={**SETTINGS, "rerank_pool": 5})
    consensus = with_consensus(captioner, training).consensus
    assert len(consensus.captions) == len(consensus.vectors) == 5
    assert consensus.idf.captions == 12  # the idf is of all captions


CONTRADICTIONS = {
    "an unknown method": ({"rerank": "mbr"}, "rerank is 'mbr'"),
    "one beam": ({"rerank": "consensus", "num_beams": 1}, "num_beams is 1"),
    "no end": ({"min_new_tokens": 12, "max_new_tokens": 12}, "min_new_tokens is 12"),
}


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictory_settings_are_refused(tiny_base, settings, message):
    with pytest.raises(RecipeError, match=message):
        load_captioner(str(tiny_base), generation=settings)
