"""CIDEr-D with a fixed idf equals pycocoevalcap, and the caption of the consensus is the best by exhaustive search."""

from collections import Counter

import pytest
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer, precook

from medcap.metrics.consensus import Consensus, caption_words
from medcap.metrics.training_idf import TrainingIdf

TRAINING = [
    "chest x ray shows a mass in the left lung", "chest x ray shows pleural effusion", "axial ct of the liver",
    "axial ct shows a mass in the liver", "ct", "a a a a a", "ultrasound of the right kidney", "",
]  # fmt: skip
CAPTIONS = ["chest x ray shows a mass", "a mass in the left kidney", "ct of the liver", "unknown words only", "a a"]
IDF = TrainingIdf([caption_words(text) for text in TRAINING])


def by_pycocoevalcap(caption, reference):
    """Return CIDEr-D of pycocoevalcap with the document frequencies of TRAINING."""
    scorer = CiderScorer(test=caption, refs=[reference])
    scorer.document_frequency = Counter(gram for text in TRAINING for gram in set(precook(text)))
    scorer.compute_doc_freq = lambda: None  # it would add the reference
    scorer.crefs = [[precook(reference)]] * len(TRAINING)  # it takes log(images) from their number
    scorer.ctest = [precook(caption)] * len(TRAINING)
    return scorer.compute_cider()[0]


@pytest.mark.parametrize("reference", [*TRAINING[:4], *CAPTIONS])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_scores_equal_pycocoevalcap(caption, reference):
    (score,) = IDF.cider_d([caption_words(caption)], [caption_words(reference)])
    assert score == pytest.approx(by_pycocoevalcap(caption, reference), abs=1e-12)


def test_case_and_punctuation_do_not_count():
    assert caption_words("Axial CT, of the LIVER.") == caption_words("axial ct of the liver")


def consensus(**settings):
    vectors = torch.eye(len(TRAINING))
    return Consensus(TRAINING, vectors, IDF, **{"neighbors": 2, "weight": 0.5, **settings})


def near(*rows):
    return torch.stack([torch.eye(len(TRAINING))[list(image)].sum(0) for image in rows])


CANDIDATES = ["axial ct of the liver", "chest x ray shows a mass", "chest x ray shows effusion"]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_choice_is_the_best_by_exhaustive_search(weight):
    images, nearest = near((0, 1), (2, 3)), ((0, 1), (2, 3))
    expected = []
    for image, rows in enumerate(nearest):
        scores = []
        for own, caption in enumerate(CANDIDATES):
            others = [by_pycocoevalcap(caption, text) for index, text in enumerate(CANDIDATES) if index != own]
            similar = [by_pycocoevalcap(caption, TRAINING[row]) for row in rows]
            scores.append((1 - weight) * sum(others) / 2 + weight * sum(similar) / 2)
        expected.append(3 * image + scores.index(max(scores)))
    assert consensus(weight=weight).choose(CANDIDATES * 2, images) == expected
    assert weight < 1 or expected[1] == 3  # the neighbors' captions are of the liver


def test_the_first_of_equal_candidates_is_chosen():
    assert consensus().choose(["ct", "ct", "ct"], near((4,))) == [0]
    assert consensus().choose([CANDIDATES[0], CANDIDATES[1], CANDIDATES[1]], near((0, 1))) == [1]


def test_all_training_images_are_neighbors_if_there_are_fewer():
    assert consensus(neighbors=99).choose(CANDIDATES, near((0, 1))) in ([0], [1], [2])
