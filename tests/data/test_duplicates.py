"""Pictures that resemble each other are found without comparing each with each, and none is missed."""

import numpy as np
import pytest

from medcap.data.duplicates import NEAR, ImageSimilarity, leaked_groups, near_pairs


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
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
    i, j = np.nonzero(np.triu(apart <= limit, 1))
    return list(zip(i.tolist(), j.tolist(), strict=True))


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 40])
@pytest.mark.parametrize("prototypes", [None, 3, 40])
def test_near_pairs_are_those_of_brute_force(limit, prototypes):
    hashes = random_hashes(300, prototypes=prototypes)
    expected = brute_force(hashes, limit)
    assert [tuple(pair) for pair in near_pairs(hashes, limit).tolist()] == expected
    if prototypes and limit >= 16:
        assert expected


def test_no_pair_comes_twice_and_each_is_in_order():
    pairs = near_pairs(random_hashes(400, prototypes=2, flips=6))
    assert len(pairs) > 1000
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("n", [0, 1])
def test_of_no_or_one_hash_there_are_no_pairs(n):
    assert near_pairs(np.zeros((n, 32), np.uint8)).shape == (0, 2)


def test_hashes_that_end_in_zeros_are_told_apart():
    assert len(likeness_of([flipped(*range(100)), flipped(*range(101)), flipped()]).pairs) == 1


def test_two_hashes_exactly_at_the_limit_are_near_whatever_bits_differ():
    rng = np.random.default_rng(1)
    zero = np.zeros(256, np.uint8)
    for n, found in ((NEAR, 1), (NEAR + 1, 0)):
        for _ in range(50):
            other = zero.copy()
            other[rng.choice(256, n, replace=False)] = 1
            assert len(near_pairs(np.packbits([zero, other], axis=1))) == found


def likeness_of(hashes):
    return ImageSimilarity.of([bytes(row) for row in hashes])


def flipped(*bits):
    row = np.zeros(256, np.uint8)
    row[list(bits)] = 1
    return np.packbits(row)


# a chain: each is near the next, the ends are not near; then a copy of the first, and one that is alone
CHAIN = [flipped(), flipped(*range(10)), flipped(*range(20)), flipped(), flipped(*range(100, 200))]


def test_groups_hang_together_and_loners_are_none():
    assert likeness_of(CHAIN).groups() == [[0, 1, 2, 3]]


def test_of_a_chain_only_what_resembles_one_that_is_kept_is_a_repetition():
    assert likeness_of(CHAIN).repeated([0] * 5).tolist() == [False, True, False, True, False]


def test_repetitions_are_counted_within_a_split():
    assert likeness_of(CHAIN).repeated([0, 1, 0, 0, 1]).tolist() == [False, False, False, True, False]


def test_what_resembles_a_picture_of_a_higher_split_leaks():
    assert likeness_of(CHAIN).leaked(np.array([0, 1, 2, 0, 0])).tolist() == [True, True, False, True, False]
    assert likeness_of(CHAIN).leaked(np.array([2, 0, 0, 2, 0])).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("seed", range(4))
def test_leaks_and_repetitions_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    hashes = random_hashes(60, seed, prototypes=8)[rng.integers(0, 40, 80)]
    rank, near = rng.integers(0, 3, 80), np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) <= NEAR
    found = likeness_of(hashes)
    assert found.leaked(rank).tolist() == [bool((rank[near[i]] > rank[i]).any()) for i in range(80)]
    kept = []
    for i in range(80):
        if not any(near[i, j] and rank[i] == rank[j] for j in kept):
            kept.append(i)
    assert np.flatnonzero(~found.repeated(rank.tolist())).tolist() == kept


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_brute_force(seed):
    hashes = random_hashes(60, seed, prototypes=12)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) <= NEAR
    labels = np.arange(len(hashes))
    for _ in labels:  # everyone takes the least label of those who are near
        labels = np.where(near, labels, len(labels)).min(1)
    expected = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    assert likeness_of(hashes).groups() == [group for group in expected if len(group) > 1]


def test_ten_thousand_copies_are_one_kind():
    found = likeness_of([flipped()] * 10_000)
    assert (len(found.pairs), found.repeated([0] * 10_000).sum()) == (0, 9_999)


def test_of_no_pictures_nothing_is_alike():
    found = likeness_of([])
    assert found.groups() == []
    assert found.repeated([]).tolist() == found.leaked(np.array([], int)).tolist() == []


def test_a_group_leaks_from_the_lower_split_and_the_unknown_is_no_group():
    groups = ["PMC1", "PMC2", None, "PMC1", "PMC2", None, "", ""]
    assert leaked_groups(groups, [0, 1, 0, 2, 1, 2, 0, 2]).tolist() == [True] + [False] * 7
