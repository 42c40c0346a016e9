"""Pictures that are the same or nearly so, and what of them crosses splits.

Time grows with the images, and with the square only of those that resemble each other without being the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 16  # bits of 256: copies of radiographs at 0.33 to 1.7 times the size, JPEG quality 40 to 90, were within 6;
# of phantoms within 16; no two different pictures among 377 radiographs were within 32, among 500 phantoms within 20


def near_pairs(hashes: NDArray[np.uint8], limit: int = NEAR) -> NDArray[np.intp]:
    """Return (m, 2) pairs i < j of the rows of `hashes` (n, bytes), all different, at most `limit` bits apart.

    Exact: of `limit` + 1 bands of bits, two rows that differ in at most `limit` bits share at least one whole (the
    pigeonhole principle), so only rows that share a band are compared. A band takes every (`limit` + 1)-th bit, so
    that each has its part of the low frequencies, in which X-rays of one region resemble each other.
    """
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)  # (n, 8 * bytes)
    bands = [bits[:, band :: limit + 1] for band in range(limit + 1)]
    keys = np.stack([band @ (1 << np.arange(band.shape[1])) for band in bands])  # (limit + 1, n)
    words = np.pad(hashes, ((0, 0), (0, -hashes.shape[1] % 8))).view(np.uint64).T  # 8 bytes are compared at once
    found = np.concatenate([_pairs_in_band(keys, band, words, limit) for band in range(limit + 1)])
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _pairs_in_band(keys: NDArray[np.int64], band: int, words: NDArray[np.uint64], limit: int) -> NDArray[np.intp]:
    """Pairs of rows at most `limit` bits apart in `words` (w, n) whose first equal one of `keys` (b, n) is `band`."""
    order = np.argsort(keys[band], kind="stable")  # stable: i < j where the keys are equal
    ranked, words, places = keys[band, order], words[:, order], np.arange(len(order))
    pairs = [np.empty((0, 2), np.intp)]
    for step in range(1, len(order)):  # each row with the one `step` places on, as long as they share the key
        places = places[places + step < len(order)]
        places = places[ranked[places] == ranked[places + step]]
        if not len(places):
            break
        near = places[np.bitwise_count(words[:, places] ^ words[:, places + step]).sum(0, np.int64) <= limit]
        i, j = order[near], order[near + step]
        new = (keys[:band, i] != keys[:band, j]).all(0)  # an earlier band has found the others
        pairs.append(np.stack([i[new], j[new]], 1))
    return np.concatenate(pairs)


@dataclass(frozen=True)
class ImageSimilarity:
    """Which of n pictures resemble each other.

    `kinds` (n,) numbers their perceptual hashes, equal hashes alike, and `pairs` (m, 2) are kinds at most `NEAR` bits
    apart: so a picture in 10,000 copies costs 10,000 and not its square.
    """

    kinds: NDArray[np.intp]
    pairs: NDArray[np.intp]

    @classmethod
    def of(cls, hashes: Sequence[bytes]) -> ImageSimilarity:
        """Compare n perceptual hashes of 32 bytes."""
        distinct, kinds = np.unique(np.frombuffer(b"".join(hashes), "S32"), return_inverse=True)
        return cls(kinds, near_pairs(distinct.view(np.uint8).reshape(-1, 32)))

    def groups(self) -> list[list[int]]:
        """Return the groups of two or more pictures that hang together, each in order; a chain may join its ends."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n = self.kinds.max(initial=-1) + 1
        links = coo_array((np.ones(len(self.pairs)), (self.pairs[:, 0], self.pairs[:, 1])), shape=(n, n))
        labels = connected_components(links, directed=False)[1][self.kinds]  # (n,)
        order = np.argsort(labels, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        return sorted(part.tolist() for part in parts if len(part) > 1)

    def repeated(self, split: Sequence[int]) -> NDArray[np.bool_]:
        """Return (n,) whether a picture resembles an earlier one of its `split` that is not itself a repetition."""
        neighbours: dict[int, list[int]] = {}
        for i, j in self.pairs.tolist():
            neighbours.setdefault(i, []).append(j)
            neighbours.setdefault(j, []).append(i)
        kept: set[tuple[int, int]] = set()
        found = np.zeros(len(self.kinds), bool)
        for row, (kind, part) in enumerate(zip(self.kinds.tolist(), split, strict=True)):
            found[row] = any((part, near) in kept for near in [kind, *neighbours.get(kind, [])])
            if not found[row]:
                kept.add((part, kind))
        return found

    def leaked(self, rank: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return (n,) whether a picture resembles one of a split of higher `rank` (n,), test being the highest."""
        highest = np.full(self.kinds.max(initial=-1) + 1, -1)
        np.maximum.at(highest, self.kinds, rank)
        around = highest.copy()
        np.maximum.at(around, self.pairs[:, 0], highest[self.pairs[:, 1]])
        np.maximum.at(around, self.pairs[:, 1], highest[self.pairs[:, 0]])
        return around[self.kinds] > rank


def leaked_groups(groups: Sequence[str | None], rank: Sequence[int]) -> NDArray[np.bool_]:
    """Return (n,) whether a row's group (article, patient) also has a row in a split of higher rank."""
    highest: dict[str | None, int] = {}
    for group, place in zip(groups, rank, strict=True):
        highest[group] = max(highest.get(group, place), place)
    return np.array([bool(group) and highest[group] > place for group, place in zip(groups, rank, strict=True)], bool)
