"""What is in a data set and what is wrong with it: counts, lengths, broken files, repetitions, leaks, licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from medcap import __version__
from medcap.data.captions import clean_caption
from medcap.data.concepts import modality_in_words, modality_of, region_of
from medcap.data.duplicates import ImageSimilarity, leaked_groups
from medcap.data.image_info import ImageInfo, inspect_images
from medcap.data.licenses import allows_commercial_use, groups_in_several
from medcap.data.selection import RANK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITS = (32, 64, 96, 128)  # of max_caption_tokens, for which the captions that would be cut are counted


def audit(
    raw: Mapping[str, Dataset],
    concept_names: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Sequence[int] = LIMITS,
    num_proc: int | None = None,
) -> dict[str, Any]:
    """Return the report on raw splits (columns of `FEATURES`, an image of None is missing), ready for JSON.

    `concept_names`: {CUI: name}. Tokens are counted with `tokenizer`, [CLS] and [SEP] included, and left out without
    one; `limits` are values of `max_caption_tokens`. Every image is decoded once, by `num_proc` processes (None: one
    a core), with progress on stderr. Time grows with the number of images, and not with its square.

    The keys: `splits` (for each what `_split_report` lists), `concepts` ({CUI: {name, split: n}}, the most frequent
    first), `pictures` (groups of pictures that are the same or nearly so), `groups_across_splits` (articles, patients
    or cases in more than one split), `left_out_by` (how many rows each option of `Selection` would drop).
    """
    prints = {split: _prints(rows, num_proc) for split, rows in raw.items()}
    pictures = _pictures(raw, prints)
    likeness = ImageSimilarity.of([one.print.phash for one in pictures])
    return {
        "medcap": __version__,
        "splits": {split: _split_report(rows, prints[split], tokenizer, limits) for split, rows in raw.items()},
        "concepts": _concepts(raw, concept_names),
        "pictures": _alike(pictures, likeness),
        "groups_across_splits": _groups_across(raw),
        "left_out_by": _left_out_by(raw, pictures, likeness),
    }


def _prints(rows: Dataset, num_proc: int | None) -> list[ImageInfo | None]:
    """Return the ImageInfo of each image, None where there is none."""
    there = np.flatnonzero(rows.data["image"].is_valid())
    found: list[ImageInfo | None] = [None] * len(rows)
    if len(there):
        for i, one in zip(there, inspect_images(rows.select(there), num_proc), strict=True):
            found[i] = one
    return found


def _split_report(
    rows: Dataset,
    prints: Sequence[ImageInfo | None],
    tokenizer: PreTrainedTokenizerBase | None,
    limits: Sequence[int],
) -> dict[str, Any]:
    """Everything about one split but what its pictures have in common with others."""
    ids, captions = rows["image_id"][:], [clean_caption(caption or "") for caption in rows["caption"]]
    said = [caption for caption in captions if caption]
    groups = [group for group in rows["group"] if group]
    return {
        "rows": len(ids),
        "blank_captions": [i for i, caption in zip(ids, captions, strict=True) if not caption],
        "missing_images": [i for i, one in zip(ids, prints, strict=True) if one is None],
        "broken_images": {i: one.cause for i, one in zip(ids, prints, strict=True) if one and one.cause},
        "pixels": _pixels(prints),
        "words": _words(said),
        "tokens": _tokens(said, tokenizer, limits),
        "repeated_captions": _repeated(said),
        "modality_by_concepts": _shares(map(modality_of, rows["manual_cuis"])),
        "modality_by_words": _shares(map(modality_in_words, captions)),
        "region_by_concepts": _shares(map(region_of, rows["manual_cuis"])),
        "licenses": _shares(rows["license"]),
        "groups": {"rows": len(groups), "distinct": len(set(groups))},
    }


def _pixels(prints: Iterable[ImageInfo | None]) -> dict[str, Any]:
    sizes = [one for one in prints if one and not one.cause]
    return {"width": _spread([one.width for one in sizes]), "height": _spread([one.height for one in sizes])}


def _spread(numbers: Sequence[int]) -> dict[str, float | int]:
    """Return n, least, median, mean, 95th percentile and greatest; only n = 0 where there are none."""
    if not numbers:
        return {"n": 0}
    values = np.asarray(numbers)
    return {
        "n": len(values),
        "least": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 3),
        "p95": float(np.percentile(values, 95)),
        "greatest": int(values.max()),
    }


def _words(captions: Sequence[str]) -> dict[str, Any]:
    """Return the spread of words, and how many captions have 0 to 4, 5 to 9, ... and 100 or more."""
    lengths = [len(caption.split()) for caption in captions]
    fives = np.minimum(np.array(lengths, int), 100) // 5  # int: of no captions it would be float
    return {**_spread(lengths), "by_fives": np.bincount(fives, minlength=21).tolist()}


def _tokens(
    captions: list[str], tokenizer: PreTrainedTokenizerBase | None, limits: Sequence[int]
) -> dict[str, Any] | None:
    """Return the spread of tokens and, for each limit, the number of captions that it cuts."""
    if tokenizer is None or not captions:
        return None
    lengths = np.array([len(ids) for ids in tokenizer(captions)["input_ids"]])
    return {**_spread(lengths.tolist()), "cut": {str(limit): int((lengths > limit).sum()) for limit in limits}}


def _repeated(captions: Sequence[str]) -> dict[str, Any]:
    """Return how many captions are said of several images, of how many, and the most frequent one."""
    counts = Counter(captions)
    several = {caption: n for caption, n in counts.items() if n > 1}
    most = max(several, key=several.__getitem__, default="")
    return {
        "captions": len(several),
        "rows": sum(several.values()),
        "most_frequent": most,
        "most_frequent_rows": counts[most],
    }


def _shares(names: Iterable[str | None]) -> dict[str, int]:
    """Return {name: number of rows}, the most frequent first; "unknown" for None."""
    return dict(Counter(name or "unknown" for name in names).most_common())


def _concepts(raw: Mapping[str, Dataset], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    counts = {split: Counter(cui for cuis in rows["cuis"] for cui in cuis) for split, rows in raw.items()}
    total = sum(counts.values(), Counter[str]())
    return {
        cui: {"name": names.get(cui), **{split: found[cui] for split, found in counts.items()}}
        for cui, _ in total.most_common()
    }


def _groups_across(raw: Mapping[str, Dataset]) -> dict[str, dict[str, list[str]]]:
    """Return {article, patient or case: {split: ids}} of those in more than one split."""
    several = groups_in_several({split: rows["group"][:] for split, rows in raw.items()})
    found: dict[str, dict[str, list[str]]] = {
        group: {split: [] for split in splits} for group, splits in several.items()
    }
    for split, rows in raw.items():
        for image_id, group in zip(rows["image_id"], rows["group"], strict=True):
            if group in found:
                found[group][split].append(image_id)
    return found


@dataclass(frozen=True)
class Picture:
    """A picture that can be decoded and has a caption, with what is known of it."""

    split: str
    image_id: str
    caption: str
    group: str | None
    print: ImageInfo


def _pictures(raw: Mapping[str, Dataset], prints: Mapping[str, Sequence[ImageInfo | None]]) -> list[Picture]:
    return [
        Picture(split, image_id, clean_caption(caption), group, one)
        for split, rows in raw.items()
        for image_id, caption, group, one in zip(
            rows["image_id"], rows["caption"], rows["group"], prints[split], strict=True
        )
        if one and not one.cause and clean_caption(caption or "")
    ]


def _alike(pictures: Sequence[Picture], likeness: ImageSimilarity) -> dict[str, Any]:
    """Return the groups of pictures with the same pixels, and of those that are nearly the same."""
    found = [[pictures[i] for i in group] for group in likeness.groups()]
    groups = [
        {
            "same_pixels": len({one.print.pixels for one in group}) == 1,
            "across_splits": len({one.split for one in group}) > 1,
            "images": [
                {"split": one.split, "image_id": one.image_id, "caption": one.caption, "group": one.group,
                 "width": one.print.width, "height": one.print.height}
                for one in group
            ],
        }
        for group in found
    ]  # fmt: skip
    kinds = Counter((group["same_pixels"], group["across_splits"]) for group in groups)
    return {
        "same_pixels": {"within_a_split": kinds[True, False], "across_splits": kinds[True, True]},
        "nearly_the_same": {"within_a_split": kinds[False, False], "across_splits": kinds[False, True]},
        "groups": sorted(groups, key=lambda group: not group["across_splits"]),
    }


def _left_out_by(raw: Mapping[str, Dataset], pictures: Sequence[Picture], likeness: ImageSimilarity) -> dict[str, Any]:
    """Return {option: {split: rows}} that each option would drop by itself."""
    rank = np.array([RANK[one.split] for one in pictures], dtype=np.intp)
    leaks = likeness.leaked(rank) | leaked_groups([one.group for one in pictures], rank.tolist())
    repeated = likeness.repeated(rank.tolist())
    licenses = {
        split: sum(
            not allows_commercial_use(name)
            for name, caption in zip(rows["license"], rows["caption"], strict=True)
            if clean_caption(caption or "")
        )
        for split, rows in raw.items()
    }
    return {
        "license_filter": licenses,
        "dedupe": {split: int(repeated[rank == RANK[split]].sum()) for split in raw},
        "exclude_leaks": {split: int(leaks[rank == RANK[split]].sum()) for split in raw},
    }
