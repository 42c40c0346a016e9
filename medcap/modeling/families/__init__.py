"""The kinds of captioner: one file for each, chosen by the `model_type` of the base's config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from medcap.modeling.families.blip import Blip
from medcap.modeling.families.blip2 import Blip2
from medcap.modeling.families.encoder_decoder import EncoderDecoder
from medcap.modeling.families.family import Family
from medcap.modeling.families.vlm import ROWS, Vlm

FAMILIES: dict[str, type[Family]] = {
    "blip": Blip,
    "vision-encoder-decoder": EncoderDecoder,
    "blip-2": Blip2,
    "instructblip": Blip2,
    **dict.fromkeys(ROWS, Vlm),
}


def kind_of(config: PreTrainedConfig | None) -> str:
    """Return the `model_type` of a config, a key of `FAMILIES` if it is a captioner's; "" if there is none."""
    return str(getattr(config, "model_type", ""))


def family_class(name: str, config: PreTrainedConfig) -> type[Family]:
    """Return the family of a base; raise ValueError, naming the base, if there is none."""
    kind = kind_of(config)
    if kind not in FAMILIES:
        raise ValueError(
            f"{name} is a {kind!r} model; medcap trains {', '.join(FAMILIES)}. For another kind, copy "
            "medcap/modeling/families/vlm.py or the file that is most like it"
        )
    if reason := FAMILIES[kind].check(config):
        raise ValueError(f"{name} is {reason}")
    return FAMILIES[kind]


def family_of(base: PreTrainedModel, processor: ProcessorMixin | Any = None) -> Family:
    """Return the family of a loaded base."""
    return FAMILIES[base.config.model_type](base, processor)
