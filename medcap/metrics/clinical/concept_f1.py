"""The data set's own concepts, looked for in captions by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from medcap.data.concepts import MODALITIES
from medcap.metrics.clinical.accuracy import micro
from medcap.metrics.clinical.facts import extract_facts

WHAT = (
    "Names of the data set's concepts matched as strings in the prediction, against the image's own concepts. No "
    "MedCAT: not comparable with the concept F1 of ImageCLEFmedical."
)


def concept_f1(
    predictions: Sequence[str], cuis: Sequence[Sequence[str]], names: Mapping[str, str]
) -> dict[str, float | str]:
    """Concepts named in `predictions` against the `cuis` of each image; `names` is {CUI: canonical name}.

    Micro-averaged `precision`, `recall`, `f1`, 0 to 1, with the counts `said` and `true`, and `what` this is. A
    concept without a name can only be missed; what the references themselves reach is about the most one can. Raises
    ValueError when predictions and concepts differ in number.
    """
    lookup = _lookup(names)
    pairs = [(concepts_in(text, lookup), set(own)) for text, own in zip(predictions, cuis, strict=True)]
    return {**micro(pairs), "what": WHAT}


def concepts_in(text: str, lookup: Mapping[tuple[str, ...], Sequence[str]]) -> set[str]:
    """The CUIs named in `text`: the longest name at each place, and the modality by its words."""
    found = {cui for cui, modality in MODALITIES.items() if modality in extract_facts(text)["modality"]}
    tokens, longest = _tokens(text), max(map(len, lookup), default=0)
    start = 0
    while start < len(tokens):
        sizes = range(min(longest, len(tokens) - start), 0, -1)
        size = next((size for size in sizes if tokens[start : start + size] in lookup), 0)
        found.update(lookup[tokens[start : start + size]] if size else ())
        start += size or 1
    return found


def _lookup(names: Mapping[str, str]) -> dict[tuple[str, ...], list[str]]:
    lookup: dict[tuple[str, ...], list[str]] = {}
    for cui, name in names.items():
        for tokens in {_tokens(synonym) for synonym in synonyms(name)} - {()}:
            lookup.setdefault(tokens, []).append(cui)
    return lookup


def synonyms(name: str) -> set[str]:
    """What a caption may call the concept `name`: without brackets and "structure of", and with commas turned round.

    "Pneumonia, Viral" gives also "Viral Pneumonia", "Structure of pelvis" also "pelvis".
    """
    bare = re.sub(r"\s*[(\[][^)\]]*[)\]]", "", name)
    core = re.sub(
        r"^(?:entire|structure of(?: the)?)\s+|\s+(?:structure|region)(?: of)?$", "", bare, flags=re.IGNORECASE
    )
    turned = " ".join(reversed(re.split(r",\s*", core)))
    return {name, bare, core, turned}


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_singular(word) for word in re.findall(r"[a-z0-9]+", text.lower()))


def _singular(word: str) -> str:
    """Rough, but the same on both sides: masses -> mass, arteries -> artery, nodules -> nodule, thrombus as it is."""
    if word.endswith("sses"):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
