"""Audit a data set: counts, lengths, broken files, duplicates, leaks across splits and licenses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from medcap import __version__
from medcap.data.captions import clean_caption
from medcap.data.concepts import modality_in_words, modality_of, region_of
from medcap.data.duplicates import ImageSimilarity, leaked_groups
from medcap.data.image_info import NO_IMAGE, ImageInfo, inspect_images
from medcap.data.licenses import allows_commercial_use, groups_in_several
from medcap.data.selection import RANK
from medcap.data.sources import SOURCE, rows_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITS = (32, 64, 96, 128)  # values of max_caption_tokens for which truncated captions are counted

Infos = Mapping[str, Sequence[ImageInfo]]  # of each row of each split


def audit(
    raw: Mapping[str, Dataset],
    concept_names: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Sequence[int] = LIMITS,
    num_proc: int | None = None,
) -> dict[str, Any]:
    """Return the audit of raw splits as a JSON object.

    Every image is decoded once, with a progress bar on stderr. Run time grows linearly with the number of images.

    Args:
        raw: {split: rows} with the columns of `FEATURES`; None for a missing image.
        concept_names: {CUI: name}.
        tokenizer: Counts tokens, [CLS] and [SEP] included; default: tokens are not counted.
        limits: Values of `max_caption_tokens`.
        num_proc: Number of processes that decode images; default: one per core.

    Returns:
        `splits` (per split the keys of `_audit_split`), `concepts` ({CUI: {name, split: n}}, most frequent first),
        `similar_images` (groups of duplicate and near-duplicate images), `groups_across_splits` (articles, patients or
        cases in more than one split) and `dropped_by` (how many rows each option of `Selection` would drop).
    """
    infos = {split: inspect_images(rows, num_proc, perceptual_hash=True) for split, rows in raw.items()}
    images, usable_infos = _usable_images(raw, infos)
    similarity = ImageSimilarity.of(
        [info.phash for info in usable_infos],
        [info.pixel_digest for info in usable_infos],
        [image["group"] for image in images],
    )
    return {
        "medcap": __version__,
        "splits": {split: _audit_split(rows, infos[split], tokenizer, limits) for split, rows in raw.items()},
        "concepts": _count_concepts(raw, concept_names),
        "similar_images": _similar_images(images, usable_infos, similarity),
        "groups_across_splits": _groups_across_splits(raw),
        "dropped_by": _dropped_by(raw, images, similarity),
    }


def _audit_split(
    rows: Dataset,
    infos: Sequence[ImageInfo],
    tokenizer: PreTrainedTokenizerBase | None,
    limits: Sequence[int],
) -> dict[str, Any]:
    """Return the part of the audit that concerns one split only."""
    ids, all_captions = rows["image_id"][:], [clean_caption(caption or "") for caption in rows["caption"]]
    captions = [caption for caption in all_captions if caption]
    groups = [group for group in rows["group"] if group]
    return {
        "rows": len(ids),
        "sources": {source: len(numbers) for source, numbers in rows_by_source(rows).items() if source},
        "blank_captions": [i for i, caption in zip(ids, all_captions, strict=True) if not caption],
        "missing_images": [i for i, info in zip(ids, infos, strict=True) if info.error == NO_IMAGE],
        "broken_images": {
            i: info.error for i, info in zip(ids, infos, strict=True) if info.error not in ("", NO_IMAGE)
        },
        "pixels": {
            "width": _statistics([info.width for info in infos if not info.error]),
            "height": _statistics([info.height for info in infos if not info.error]),
        },
        "words": _count_words(captions),
        "tokens": _token_statistics(captions, tokenizer, limits),
        "repeated_captions": _repeated_captions(captions),
        "modality_by_concepts": _count(map(modality_of, rows["manual_cuis"])),
        "modality_by_text": _count(map(modality_in_words, all_captions)),
        "region_by_concepts": _count(map(region_of, rows["manual_cuis"])),
        "licenses": _count(rows["license"]),
        "groups": {"rows": len(groups), "distinct": len(set(groups))},
    }


def _statistics(numbers: Sequence[int]) -> dict[str, float]:
    """Return n, min, median, mean, 95th percentile and max; only n = 0 without numbers."""
    if not numbers:
        return {"n": 0}
    values = np.asarray(numbers)
    return {
        "n": len(values),
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 3),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
    }


def _count_words(captions: Sequence[str]) -> dict[str, Any]:
    """Return the statistics of words per caption, and a histogram with bins 0 to 4, 5 to 9, ..., 100 or more."""
    lengths = [len(caption.split()) for caption in captions]
    bins = np.minimum(np.array(lengths, int), 100) // 5  # int: an empty array would be float
    return {**_statistics(lengths), "histogram": np.bincount(bins, minlength=21).tolist()}


def _token_statistics(
    captions: list[str], tokenizer: PreTrainedTokenizerBase | None, limits: Sequence[int]
) -> dict[str, Any] | None:
    """Return `_statistics` of tokens per caption, [CLS] and [SEP] included, and how many are above each limit.

    None without tokenizer or captions.
    """
    if tokenizer is None or not captions:
        return None
    lengths = np.array([len(ids) for ids in tokenizer(captions)["input_ids"]])
    return {
        **_statistics(lengths.tolist()),
        "truncated": {str(limit): int((lengths > limit).sum()) for limit in limits},
    }


def _repeated_captions(captions: Sequence[str]) -> dict[str, int | str]:
    """Return how many captions belong to several images, to how many, and the most frequent one."""
    counts = Counter(captions)
    repeated = {caption: n for caption, n in counts.items() if n > 1}
    most_frequent = max(repeated, key=repeated.__getitem__, default="")
    return {
        "captions": len(repeated),
        "rows": sum(repeated.values()),
        "most_frequent": most_frequent,
        "most_frequent_rows": counts[most_frequent],
    }


def _count(names: Iterable[str | None]) -> dict[str, int]:
    """Return {name: number of rows}, the most frequent first; "unknown" for None."""
    return dict(Counter(name or "unknown" for name in names).most_common())


def _count_concepts(raw: Mapping[str, Dataset], names: Mapping[str, str]) -> dict[str, dict[str, str | int | None]]:
    counts = {split: Counter(cui for cuis in rows["cuis"] for cui in cuis) for split, rows in raw.items()}
    total = sum(counts.values(), Counter[str]())
    return {
        cui: {"name": names.get(cui), **{split: counter[cui] for split, counter in counts.items()}}
        for cui, _ in total.most_common()
    }


def _groups_across_splits(raw: Mapping[str, Dataset]) -> dict[str, dict[str, list[str]]]:
    """Return {article, patient or case: {split: ids}} of those in more than one split."""
    groups = groups_in_several({split: rows["group"][:] for split, rows in raw.items()})
    ids: dict[str, dict[str, list[str]]] = {group: {split: [] for split in splits} for group, splits in groups.items()}
    for split, rows in raw.items():
        for image_id, group in zip(rows["image_id"], rows["group"], strict=True):
            if group in ids:
                ids[group][split].append(image_id)
    return ids


def _usable_images(raw: Mapping[str, Dataset], infos: Infos) -> tuple[list[dict[str, Any]], list[ImageInfo]]:
    """Return the description and ImageInfo of the images that can be decoded and have a caption."""
    images, usable_infos = [], []
    for split, rows in raw.items():
        sources = rows[SOURCE] if SOURCE in rows.column_names else [""] * len(rows)
        columns = zip(rows["image_id"], rows["caption"], rows["group"], sources, infos[split], strict=True)
        for image_id, text, group, source, info in columns:
            if not info.error and (caption := clean_caption(text or "")):
                image = {"split": split, "image_id": image_id, "caption": caption, "group": group}
                if source:
                    image[SOURCE] = source
                images.append({**image, "width": info.width, "height": info.height})
                usable_infos.append(info)
    return images, usable_infos


def _similar_images(
    images: Sequence[dict[str, Any]], infos: Sequence[ImageInfo], similarity: ImageSimilarity
) -> dict[str, Any]:
    """Return the groups of images with the same pixels (duplicates) and of near-duplicates."""
    groups = [
        {
            "same_pixels": len({infos[i].pixel_digest for i in group}) == 1,
            "across_splits": len({images[i]["split"] for i in group}) > 1,
            "across_sources": len({images[i].get(SOURCE) for i in group}) > 1,
            "images": [images[i] for i in group],
        }
        for group in similarity.groups()
    ]
    counts = Counter((group["same_pixels"], group["across_splits"]) for group in groups)
    return {
        "same_pixels": {"within_a_split": counts[True, False], "across_splits": counts[True, True]},
        "near_duplicates": {"within_a_split": counts[False, False], "across_splits": counts[False, True]},
        "across_sources": sum(group["across_sources"] for group in groups),
        "groups": sorted(groups, key=lambda group: not group["across_splits"]),
    }


def _dropped_by(
    raw: Mapping[str, Dataset], images: Sequence[dict[str, Any]], similarity: ImageSimilarity
) -> dict[str, dict[str, int]]:
    """Return {option: {split: rows}} that each option alone would drop."""
    rank = np.array([RANK[image["split"]] for image in images], dtype=np.intp)
    leaks = similarity.leaked(rank) | leaked_groups([image["group"] for image in images], rank.tolist())
    duplicates = similarity.duplicates(rank.tolist())
    not_commercial = {
        split: sum(
            not allows_commercial_use(name)
            for name, caption in zip(rows["license"], rows["caption"], strict=True)
            if clean_caption(caption or "")
        )
        for split, rows in raw.items()
    }
    return {
        "license_filter": not_commercial,
        "dedupe": {split: int(duplicates[rank == RANK[split]].sum()) for split in raw},
        "exclude_leaks": {split: int(leaks[rank == RANK[split]].sum()) for split in raw},
    }
