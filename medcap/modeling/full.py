"""Full fine-tuning: a base whose own weights are trained, without an adapter."""

from __future__ import annotations

from collections import Counter

from transformers import PreTrainedModel

from medcap.modeling.families import Family


def train_all(family: Family, vision: bool) -> PreTrainedModel:
    """Return the base with its vision encoder frozen, unless `vision`; all other weights are trained."""
    if not vision:
        family.vision_encoder.requires_grad_(False)
    return family.base


def full_summary(model: PreTrainedModel) -> str:
    """Return one line: the trainable parameters and their percentage."""
    trainable, total = sum(trained_parts(model).values()), sum(weight.numel() for weight in model.parameters())
    return f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%}), without an adapter"


def trained_parts(model: PreTrainedModel) -> Counter[str]:
    """Return the trainable parameters of each part of a model, such as "text_decoder.bert"."""
    sizes: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sizes[".".join(name.split(".")[:2])] += weight.numel()
    return sizes
