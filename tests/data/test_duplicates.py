"""All similar images are found without comparing every pair."""

import numpy as np
import pytest

from medcap.data.duplicates import MAX_DISTANCE, ImageSimilarity, leaked_groups, near_pairs


def random_hashes(n, seed=0, prototypes=None, flips=20):
    """Random hashes, or copies of a few prototypes with up to `flips` bits changed; all different."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n, 256), np.uint8)
    if prototypes:
        bits = bits[:prototypes][rng.integers(0, prototypes, n)]
        for row in bits:
            row[rng.choice(256, rng.integers(0, flips + 1), replace=False)] ^= 1
    return np.unique(np.packbits(bits, axis=1), axis=0)


def brute_force(hashes, limit):
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
    i, j = np.nonzero(np.triu(distances <= limit, 1))
    return list(zip(i.tolist(), j.tolist(), strict=True))


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 40])
@pytest.mark.parametrize("prototypes", [None, 3, 40])
def test_near_pairs_equal_brute_force(limit, prototypes):
    hashes = random_hashes(300, prototypes=prototypes)
    expected = brute_force(hashes, limit)
    assert [tuple(pair) for pair in near_pairs(hashes, limit).tolist()] == expected
    if prototypes and limit >= 16:
        assert expected


def test_pairs_are_unique_and_ordered():
    pairs = near_pairs(random_hashes(400, prototypes=2, flips=6))
    assert len(pairs) > 1000
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_hashes_give_no_pairs(n):
    assert near_pairs(np.zeros((n, 32), np.uint8)).shape == (0, 2)


def test_hashes_that_end_in_zeros_are_distinguished():
    assert len(similarity_of([flipped(*range(100)), flipped(*range(101)), flipped()]).pairs) == 1


def test_hashes_at_the_limit_are_near_for_any_choice_of_bits():
    rng = np.random.default_rng(1)
    zero = np.zeros(256, np.uint8)
    for n, expected in ((MAX_DISTANCE, 1), (MAX_DISTANCE + 1, 0)):
        for _ in range(50):
            other = zero.copy()
            other[rng.choice(256, n, replace=False)] = 1
            assert len(near_pairs(np.packbits([zero, other], axis=1))) == expected


def similarity_of(hashes):
    """Images of unknown groups, in which equal hashes are equal pixels."""
    return ImageSimilarity.of(
        [bytes(row) for row in hashes], [row.tobytes().hex() for row in hashes], [""] * len(hashes)
    )


def flipped(*bits):
    row = np.zeros(256, np.uint8)
    row[list(bits)] = 1
    return np.packbits(row)


# a chain (each is near the next, the ends are not), a copy of the first, and an unrelated hash
CHAIN = [flipped(), flipped(*range(8)), flipped(*range(16)), flipped(), flipped(*range(100, 200))]


def test_groups_are_connected_components_of_two_or_more():
    assert similarity_of(CHAIN).groups() == [[0, 1, 2, 3]]


def test_only_images_similar_to_a_kept_image_are_duplicates():
    assert similarity_of(CHAIN).duplicates([0] * 5).tolist() == [False, True, False, True, False]


def test_duplicates_are_found_within_a_split_only():
    assert similarity_of(CHAIN).duplicates([0, 1, 0, 0, 1]).tolist() == [False, False, False, True, False]


def test_images_similar_to_one_of_a_higher_split_leak():
    assert similarity_of(CHAIN).leaked(np.array([0, 1, 2, 0, 0])).tolist() == [True, True, False, True, False]
    assert similarity_of(CHAIN).leaked(np.array([2, 0, 0, 2, 0])).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("seed", range(4))
def test_leaks_and_duplicates_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    hashes = random_hashes(60, seed, prototypes=8)[rng.integers(0, 40, 80)]
    rank, near = rng.integers(0, 3, 80), np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) <= MAX_DISTANCE
    similarity = similarity_of(hashes)
    assert similarity.leaked(rank).tolist() == [bool((rank[near[i]] > rank[i]).any()) for i in range(80)]
    kept = []
    for i in range(80):
        if not any(near[i, j] and rank[i] == rank[j] for j in kept):
            kept.append(i)
    assert np.flatnonzero(~similarity.duplicates(rank.tolist())).tolist() == kept


@pytest.mark.parametrize("seed", range(4))
def test_groups_equal_brute_force(seed):
    hashes = random_hashes(60, seed, prototypes=12)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) <= MAX_DISTANCE
    labels = np.arange(len(hashes))
    for _ in labels:  # every image takes the smallest label of its neighbors
        labels = np.where(near, labels, len(labels)).min(1)
    expected = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    assert similarity_of(hashes).groups() == [group for group in expected if len(group) > 1]


def test_ten_thousand_copies_share_one_hash():
    similarity = similarity_of([flipped()] * 10_000)
    assert (len(similarity.pairs), similarity.duplicates([0] * 10_000).sum()) == (0, 9_999)


def test_empty_data_set_has_no_duplicates():
    similarity = similarity_of([])
    assert similarity.groups() == []
    assert similarity.duplicates([]).tolist() == similarity.leaked(np.array([], int)).tolist() == []


def test_groups_leak_from_the_lower_split_and_unknown_groups_do_not():
    groups = ["PMC1", "PMC2", None, "PMC1", "PMC2", None, "", ""]
    assert leaked_groups(groups, [0, 1, 0, 2, 1, 2, 0, 2]).tolist() == [True] + [False] * 7


def test_images_of_one_group_are_similar_only_with_equal_pixels():
    """Neighbouring slices: three of one patient, a copy of the first, and one of another patient."""
    hashes = [bytes(flipped(*range(bit))) for bit in (0, 1, 1, 0, 2)]
    slices = ImageSimilarity.of(hashes, ["a", "b", "c", "a", "d"], ["P1", "P1", "P1", "P1", "P2"])
    assert slices.pairs.tolist() == [[0, 3], [1, 3], [2, 3]]
    one_patient = ImageSimilarity.of(hashes[:4], ["a", "b", "c", "a"], ["P1"] * 4)
    assert one_patient.groups() == [[0, 3]]
    assert one_patient.duplicates([0] * 4).tolist() == [False, False, False, True]
    assert one_patient.leaked(np.array([0, 1, 1, 1])).tolist() == [True, False, False, False]


@pytest.mark.parametrize("groups", [[None, None], ["", ""], ["P1", None], ["P1", "P2"]])
def test_near_images_of_other_or_unknown_groups_are_similar(groups):
    similarity = ImageSimilarity.of([bytes(flipped()), bytes(flipped(3))], ["a", "b"], groups)
    assert similarity.groups() == [[0, 1]]


def test_copies_in_several_articles_are_similar_to_an_image_of_one_of_them():
    hashes = [bytes(flipped()), bytes(flipped()), bytes(flipped(3))]
    assert ImageSimilarity.of(hashes, ["a", "a", "b"], ["P1", "P2", "P1"]).groups() == [[0, 1, 2]]
