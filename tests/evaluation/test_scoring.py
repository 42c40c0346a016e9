"""Scores by parts and with shuffled images, and the baseline of nearest training images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PilImage

from medcap.data.images import load_image
from medcap.data.layout import DataLayout
from medcap.data.selection import FEATURES
from medcap.evaluation.caption_vectors import CaptionVectors
from medcap.evaluation.evaluate import _baselines, _omitted
from medcap.evaluation.nearest import consensus, nearest_captions, nearest_rows
from medcap.evaluation.scoring import breakdown
from medcap.evaluation.split import Split, load_split
from medcap.evaluation.verdict import depends_on_image
from medcap.inference import load_captioner
from medcap.metrics.coco import score_captions
from medcap.metrics.statistics import paired_test
from medcap.neighbors import image_features

CAPTIONS = [
    "CT of the abdomen with a mass of the left kidney",
    "Chest X-ray with a right pleural effusion",
    "CT scan",
    "MRI of the brain shows a lesion of the right frontal lobe with edema around it and midline shift",
]
CUIS = [["C0040405"], ["C1306645"], [], []]  # CT, X-ray, and two without concepts


def split_of(captions, cuis, groups=None, colours=None, **fields):
    images = [PilImage.new("RGB", (8, 8), colour) for colour in colours or ["black"] * len(captions)]
    columns = {
        "image_id": [f"i{number}" for number in range(len(captions))], "image": images, "caption": captions,
        "cuis": cuis, "manual_cuis": cuis, "group": groups or [None] * len(captions),
        "license": [None] * len(captions),
    }  # fmt: skip
    return Split("test", Dataset.from_dict(columns, features=FEATURES), **fields)


def scores_of(predictions, references):
    metrics = ["bleu_1", "rouge_l", "cider"]
    return score_captions(predictions, [[text] for text in references], tokenized=True, metrics=metrics)


def test_modality_is_read_from_concepts_else_from_the_caption():
    assert split_of(CAPTIONS, CUIS).modalities == ["CT", "X-ray", "CT", "MRI"]
    assert split_of(["a hand"], [[]]).modalities == ["unknown"]


def test_parts_are_scored_separately_and_add_up():
    split = split_of(CAPTIONS, CUIS)
    total = scores_of([*CAPTIONS[:3], "nothing"], CAPTIONS)
    parts = breakdown(split, total.statistics)
    by_modality = {part.value: part for part in parts["modality"]}
    assert {name: part.n for name, part in by_modality.items()} == {"CT": 2, "X-ray": 1, "MRI": 1}
    assert by_modality["MRI"].metrics["rouge_l"] == 0
    assert by_modality["CT"].metrics["rouge_l"] == 1
    mean = sum(part.n * part.metrics["cider"] for part in parts["modality"]) / 4
    assert mean == pytest.approx(total.metrics["cider"])
    assert [(part.value, part.n) for part in parts["length"]] == [("1 to 10 words", 2), ("11 to 20 words", 2)]


def test_constant_caption_does_not_depend_on_the_image():
    references = [f"word{number} thing{number % 7} of the left side" for number in range(40)]
    constant = scores_of(["thing of the left side"] * 40, references)
    original, shuffled = scores_of(references, references), scores_of(references[1:] + references[:1], references)
    for first, second, expected in ((constant, constant, False), (original, shuffled, True)):
        test = paired_test(first.statistics, second.statistics)["cider"]
        assert depends_on_image(first.metrics["cider"], test, [None] * 40) is expected
        assert depends_on_image(first.metrics["cider"], test, ["a", "b"] * 20) is None  # two patients


TESTS = {  # difference, p, interval; CIDEr is 0.5 and at least 0.05 must be lost
    "a large drop": ((0.3, 0.001, 0.2, 0.4), True),
    "a significant drop of less than a tenth": ((0.03, 0.001, 0.02, 0.04), False),
    "no drop": ((0.0, 1.0, -0.02, 0.02), False),
    "a significant rise": ((-0.3, 0.001, -0.4, -0.2), False),
    "a drop that is not significant": ((0.2, 0.12, -0.1, 0.5), None),
    "a small drop with a wide interval": ((0.04, 0.03, 0.01, 0.07), None),
}


@pytest.mark.parametrize(("numbers", "expected"), TESTS.values(), ids=TESTS)
def test_image_dependence_has_three_values(numbers, expected):
    test = dict(zip(("difference", "p", "low", "high"), numbers, strict=True))
    assert depends_on_image(0.5, test, [None] * 6) is expected
    assert depends_on_image(0.5, test, [None] * 5) is None


def test_four_images_are_too_few_for_a_verdict():
    references = [f"word{number} thing{number} of the left side" for number in range(4)]
    original, shuffled = scores_of(references, references), scores_of(references[1:] + references[:1], references)
    test = paired_test(original.statistics, shuffled.statistics)["cider"]
    assert test["p"] > 0.1
    assert depends_on_image(original.metrics["cider"], test, [None] * 4) is None


def test_constant_by_modality_uses_concepts_alone():
    training = split_of(CAPTIONS, [["C0040405"], ["C1306645"], ["C0040405"], ["C1306645"]]).rows
    split = split_of([*CAPTIONS[:2], "CT"], [*CUIS[:2], []], training_captions=training)  # the last one names none
    rows = _baselines(SimpleNamespace(nearest={}), split)
    assert list(rows) == ["constant", "constant-modality", "shuffled"]
    assert rows["constant-modality"].captions[2] == rows["constant"].caption
    without = split_of(CAPTIONS, [[]] * 4, training_captions=training)
    rows = _baselines(SimpleNamespace(nearest={}), without)
    assert list(rows) == ["constant", "shuffled"]
    reason = "no concept of the data names the modality of an image"
    assert _omitted(without, rows)["constant-modality"] == reason


def test_shuffled_images_keep_references_and_move_every_image():
    colours = ["red", "green", "blue", "white"]
    split = split_of(CAPTIONS, CUIS, colours=colours)
    moved = split.with_shuffled_images()
    assert (moved.ids, moved.references, moved.modalities) == (split.ids, split.references, split.modalities)
    before, after = ([load_image(image).getpixel((0, 0)) for image in part.rows["image"]] for part in (split, moved))
    assert sorted(before) == sorted(after)
    assert all(one != two for one, two in zip(before, after, strict=True))


def test_captions_of_shuffled_images_are_shuffled_captions(phantoms, tiny_base):
    from medcap.evaluation.baselines import shuffled
    from medcap.inference import caption_dataset

    split, captioner = load_split(str(phantoms), "test"), load_captioner(str(tiny_base))
    captions = caption_dataset(captioner, split.rows)[0]
    assert len(set(captions)) > 1
    assert caption_dataset(captioner, split.with_shuffled_images().rows)[0] == shuffled(captions)


def test_nearest_training_image_is_the_most_similar(tiny_base):
    colours = ["black", "red", "white", "blue"]
    training = split_of(["dark", "red", "bright", "blue"], [[]] * 4, colours=colours).rows
    test = split_of(["a", "b", "c"], [[]] * 3, colours=["#0000f0", "#060606", "#f8f8f8"]).rows
    captions, searched = nearest_captions(load_captioner(str(tiny_base)), test, training)
    assert (captions["nearest"], searched) == (["blue", "dark", "bright"], 4)


def test_number_of_training_images_is_limited(tiny_base):
    training = split_of([f"c{number}" for number in range(9)], [[]] * 9).rows
    captions, searched = nearest_captions(load_captioner(str(tiny_base)), training, training, most=1)
    assert searched == 1
    assert len(set(captions["nearest"])) == len(set(captions["nearest-k"])) == 1


def test_features_are_those_of_the_base_without_the_adapter(trained_run, tiny_base, phantoms):
    rows = load_split(str(phantoms), "test").rows
    adapter = load_captioner(str(trained_run.folder / "adapter"))
    base = load_captioner(str(tiny_base), image_size=adapter.image_size)
    features = image_features(adapter, rows, 4)
    assert torch.allclose(features, image_features(base, rows, 4), atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(len(rows)))


def test_training_split_without_images_omits_nearest_with_a_warning(phantoms, tmp_path, caplog):
    for file in phantoms.iterdir():
        if file.name != "train_images.zip":
            (tmp_path / file.name).symlink_to(file)
    split = load_split(str(tmp_path), "test", layout=DataLayout(allow_outside=True))
    assert split.training is None
    assert len(split.training_captions) == 12
    assert "baseline nearest is omitted: the training split has no images" in caplog.text


def test_evaluation_of_train_omits_nearest(phantoms):
    assert load_split(str(phantoms), "train").training is None


def test_unreadable_training_images_are_skipped(tiny_base):
    training = split_of(["dark", "broken"], [[]] * 2).rows
    undecoded = training.cast_column("image", Image(decode=False))
    rows = [dict(row) for row in undecoded]
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    broken = Dataset.from_list(rows, features=FEATURES)
    captions, searched = nearest_captions(load_captioner(str(tiny_base)), training, broken)
    assert (captions, searched) == ({"nearest": ["dark", "dark"], "nearest-k": ["dark", "dark"]}, 1)


def test_neighbors_are_different_captions_in_the_order_of_similarity(monkeypatch):
    monkeypatch.setattr("medcap.evaluation.nearest.NEIGHBORS", 2)
    known = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [0.0, 1.0]]), dim=1)
    found = nearest_rows(known[[0, 3]], known, np.array([0, 0, 1, 2]))
    assert found.tolist() == [[0, 1], [2, 1]]
    assert nearest_rows(known[[0]], known, np.array([-1, 0, 1, 2])).tolist() == [[0, 1]]  # a caption without words


def test_consensus_is_the_caption_most_similar_to_those_of_other_groups():
    case = "a portable film of a patient"
    texts = [f"{case} one", f"{case} two", f"{case} three", "ct of the left lung", "ct of the right lung", "an ankle"]
    vectors = CaptionVectors.of(texts, ["a", "a", "a", None, None, None])
    rows = np.arange(6)
    assert texts[consensus(vectors, rows)].startswith("ct of the")
    assert texts[consensus(CaptionVectors.of(texts), rows)].startswith(case)
    assert consensus(vectors, rows[5:]) == 5


def test_groups_widen_the_intervals_of_parts():
    references = [f"a b c w{number}" for number in range(60)]
    is_correct = np.repeat(np.random.default_rng(0).random(10) < 0.5, 6)  # all or none of the six of a patient
    predictions = [text if correct else "x" for text, correct in zip(references, is_correct, strict=True)]
    statistics = scores_of(predictions, references).statistics
    ungrouped, grouped = (
        breakdown(split_of(references, [[]] * 60, groups), statistics)["modality"][0].intervals["rouge_l"]
        for groups in (None, [str(number // 6) for number in range(60)])
    )
    assert grouped[1] - grouped[0] > 1.5 * (ungrouped[1] - ungrouped[0])
