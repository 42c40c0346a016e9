"""Find duplicate and near-duplicate images, and those that leak across splits.

Run time grows with the number of images, and with the square only of those that are similar without being equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

# Bits of 256. Copies at 0.33 to 1.7 times the size and JPEG quality 40 to 90 differ in up to 8 bits (radiographs) or 6
# (slices of synthetic volumes), two patients in more than 50. But slices of one volume differ in 0 to 22 bits at 1 mm,
# 4 to 32 at 2 mm and 14 to 58 at 5 mm: only their group tells them from copies (benchmarks/duplicates.py).
MAX_DISTANCE = 10


def near_pairs(hashes: NDArray[np.uint8], limit: int = MAX_DISTANCE) -> NDArray[np.intp]:
    """Return all pairs of hashes that differ in at most `limit` bits.

    Exact: of `limit` + 1 bands of bits, two rows that differ in at most `limit` bits share at least one complete band
    (pigeonhole principle), so only rows that share a band are compared. A band takes every (`limit` + 1)-th bit, so
    every band contains some of the low frequencies, in which X-rays of one region are similar.

    Args:
        hashes: (n, bytes), all different.
        limit: Largest Hamming distance in bits.

    Returns:
        (m, 2) row numbers i < j, sorted.
    """
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)  # (n, 8 * bytes)
    bands = [bits[:, band :: limit + 1] for band in range(limit + 1)]
    keys = np.stack([band @ (1 << np.arange(band.shape[1])) for band in bands])  # (limit + 1, n)
    words = np.pad(hashes, ((0, 0), (0, -hashes.shape[1] % 8))).view(np.uint64).T  # (words, n): 8 bytes per comparison
    pairs = np.concatenate([_pairs_in_band(keys, band, words, limit) for band in range(limit + 1)])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _pairs_in_band(keys: NDArray[np.int64], band: int, words: NDArray[np.uint64], limit: int) -> NDArray[np.intp]:
    """Return pairs of rows at most `limit` bits apart in `words` (w, n) whose first equal row of `keys` is `band`."""
    order = np.argsort(keys[band], kind="stable")  # stable: i < j where the keys are equal
    ranked, words, rows = keys[band, order], words[:, order], np.arange(len(order))
    pairs = [np.empty((0, 2), np.intp)]
    for step in range(1, len(order)):  # compare each row with the one `step` later, as long as they share the key
        rows = rows[rows + step < len(order)]
        rows = rows[ranked[rows] == ranked[rows + step]]
        if not len(rows):
            break
        near = rows[np.bitwise_count(words[:, rows] ^ words[:, rows + step]).sum(0, np.int64) <= limit]
        i, j = order[near], order[near + step]
        new = (keys[:band, i] != keys[:band, j]).all(0)  # the others were found in an earlier band
        pairs.append(np.stack([i[new], j[new]], 1))
    return np.concatenate(pairs)


@dataclass(frozen=True)
class ImageSimilarity:
    """Which of n images are duplicates or near-duplicates of each other.

    Images with the same pixels are duplicates. Others are near-duplicates if their perceptual hashes differ in at most
    `MAX_DISTANCE` bits, unless they are of one group (article or patient): neighbouring slices are similar.

    Equal pixels are compared once, so an image with 10,000 copies costs 10,000 steps and not its square.

    Attributes:
        pixel_ids: (n,) index of each image's pixels among the distinct pixels.
        pairs: (m, 2) distinct pixels that are near-duplicates.
    """

    pixel_ids: NDArray[np.intp]
    pairs: NDArray[np.intp]

    @classmethod
    def of(cls, hashes: Sequence[bytes], pixels: Sequence[str], groups: Sequence[str | None]) -> ImageSimilarity:
        """Compare n perceptual hashes of 32 bytes, pixel digests and groups, which are None or "" if unknown."""
        _, first, pixel_ids = np.unique(np.array(pixels, str), return_index=True, return_inverse=True)
        distinct, hash_ids = np.unique(
            np.frombuffer(b"".join(hashes[i] for i in first), "S32"), return_inverse=True
        )  # hash_ids: of the distinct pixels
        members = np.split(np.argsort(hash_ids, kind="stable"), np.cumsum(np.bincount(hash_ids))[:-1])
        pairs = [pair for part in members for pair in combinations(part.tolist(), 2)]
        for i, j in near_pairs(distinct.view(np.uint8).reshape(-1, 32)).tolist():
            pairs += product(members[i].tolist(), members[j].tolist())
        group = _only_groups(pixel_ids, groups)
        pairs = [(i, j) for i, j in pairs if not group.get(i) or group.get(i) != group.get(j)]
        return cls(pixel_ids, np.array(sorted(pairs), np.intp).reshape(-1, 2))

    def groups(self) -> list[list[int]]:
        """Return the connected groups of two or more similar images, as sorted row numbers.

        The ends of a chain of similar images are in one group even if they are not similar to each other.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n = self.pixel_ids.max(initial=-1) + 1
        links = coo_array((np.ones(len(self.pairs)), (self.pairs[:, 0], self.pairs[:, 1])), shape=(n, n))
        labels = connected_components(links, directed=False)[1][self.pixel_ids]  # (n,)
        order = np.argsort(labels, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        return sorted(part.tolist() for part in parts if len(part) > 1)

    def duplicates(self, splits: Sequence[int]) -> NDArray[np.bool_]:
        """Return (n,) whether an image is similar to an earlier one of its split that is not itself a duplicate."""
        neighbours: dict[int, list[int]] = {}
        for i, j in self.pairs.tolist():
            neighbours.setdefault(i, []).append(j)
            neighbours.setdefault(j, []).append(i)
        kept: set[tuple[int, int]] = set()
        is_duplicate = np.zeros(len(self.pixel_ids), bool)
        for row, (pixel_id, split) in enumerate(zip(self.pixel_ids.tolist(), splits, strict=True)):
            is_duplicate[row] = any((split, near) in kept for near in [pixel_id, *neighbours.get(pixel_id, [])])
            if not is_duplicate[row]:
                kept.add((split, pixel_id))
        return is_duplicate

    def leaked(self, rank: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return (n,) whether an image is similar to one of a split of higher `rank` (n,); test has the highest."""
        highest = np.full(self.pixel_ids.max(initial=-1) + 1, -1)
        np.maximum.at(highest, self.pixel_ids, rank)
        highest_near = highest.copy()
        np.maximum.at(highest_near, self.pairs[:, 0], highest[self.pairs[:, 1]])
        np.maximum.at(highest_near, self.pairs[:, 1], highest[self.pairs[:, 0]])
        return highest_near[self.pixel_ids] > rank


def _only_groups(pixel_ids: NDArray[np.intp], groups: Sequence[str | None]) -> dict[int, str | None]:
    """Return the group of the images with the same pixels; None for several groups or an unknown one."""
    only: dict[int, str | None] = {}
    for pixel_id, group in zip(pixel_ids.tolist(), groups, strict=True):
        only[pixel_id] = group if only.get(pixel_id, group) == group else None
    return only


def leaked_groups(groups: Sequence[str | None], ranks: Sequence[int]) -> NDArray[np.bool_]:
    """Return (n,) whether a row's group (article, patient) also has a row in a split of higher rank."""
    highest: dict[str | None, int] = {}
    for group, rank in zip(groups, ranks, strict=True):
        highest[group] = max(highest.get(group, rank), rank)
    return np.array([bool(group) and highest[group] > rank for group, rank in zip(groups, ranks, strict=True)], bool)
