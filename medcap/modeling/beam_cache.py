"""What a decoder looks back at while it makes captions: keys and values are made once, and never moved or copied."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from medcap.modeling.blip_fast import FastTextAttention, attend

SLOTS = 128  # tokens, of all beams of an image, that room is made for at a time


class BeamCache:
    """Keys and values of an image's picture and of all that its beams have said, for every attention of a decoder.

    Beams that change places would have all their keys and values copied, at every token (`Cache.reorder_cache`). Here
    the beams of an image are looked up as if they were positions of one caption, and `seen` (B, positions, slots) says
    what each of them descends from.
    """

    def __init__(self, decoder: nn.Module, features: torch.Tensor) -> None:
        """`features`: (B, N, width) of the images."""
        layers: Any = decoder.bert.encoder.layer  # type: ignore[union-attr]
        looks = [layer.crossattention.self for layer in layers]
        self.attentions = [*looks, *(layer.attention.self for layer in layers)]
        self.filled = 0
        self.said: dict[FastTextAttention, tuple[torch.Tensor, torch.Tensor]] = {}
        self.pictures = {look: _contiguous(look.keys_and_values(features)) for look in looks}

    def start(self, tokens: int) -> None:
        """The next tokens are the `tokens` that all beams of an image begin with, said once for all of them."""
        key, _ = next(iter(self.pictures.values()))
        self.seen = key.new_ones(len(key), tokens, tokens, dtype=torch.bool).tril()
        self.filled = tokens

    def fork(self, beams: int) -> None:
        """Let every image have `beams` beams, which all have said the tokens of the start."""
        self.seen = self.seen[:, -1:].expand(-1, beams, -1)

    def follow(self, origin: torch.Tensor, rows: torch.Tensor) -> None:
        """The next tokens go on from the beams `origin` (B, beams), those of the images `rows` alone."""
        before = self.seen.gather(1, origin[..., None].expand(-1, -1, self.filled))
        itself = torch.eye(origin.shape[1], dtype=torch.bool, device=origin.device).expand(len(origin), -1, -1)
        self.seen = torch.cat([before, itself], -1)
        self.filled += origin.shape[1]
        if len(rows) < len(origin):
            self.seen = self.seen[rows]
            for kept in (self.said, self.pictures):
                for attention, (key, value) in kept.items():
                    kept[attention] = key[rows], value[rows]

    def look(self, attention: FastTextAttention, states: torch.Tensor) -> torch.Tensor:
        """What `attention` finds for `states` (B * beams, T, width), one of beams and T being 1; in the same shape."""
        rows = len(self.seen)
        together = states.reshape(rows, -1, states.shape[-1])
        query = attention.heads(attention.query(together))
        if attention in self.pictures:
            context = attend(query, *self.pictures[attention], None, 0.0)
        else:
            key, value = self._remember(attention, together)
            context = attend(query, key, value, self._mask(query.dtype, key.shape[2]), 0.0)
        return context.transpose(1, 2).reshape(states.shape)

    def _mask(self, dtype: torch.dtype, slots: int) -> torch.Tensor:
        """(B, 1, positions, slots), to be added to scores: nobody has seen the slots that are not filled yet."""
        seen = F.pad(self.seen, (0, slots - self.filled))
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)[:, None]

    def _remember(self, attention: FastTextAttention, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, slots, 64) of all that was said, `states` (B, positions, width) included.

        Slots are added SLOTS at a time: a product of a part of them would copy that part, for every token.
        """
        made = attention.keys_and_values(states)
        said = self.said.get(attention) or (made[0][:, :, :0], made[1][:, :, :0])
        if (lacking := self.filled - said[0].shape[2]) > 0:
            more = SLOTS * math.ceil(lacking / SLOTS)
            said = F.pad(said[0], (0, 0, 0, more)), F.pad(said[1], (0, 0, 0, more))
            self.said[attention] = said
        for kept, new in zip(said, made, strict=True):
            kept[:, :, self.filled - states.shape[1] : self.filled] = new
        return said


def _contiguous(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each head's rows side by side, as they would be copied for every token otherwise."""
    return pair[0].contiguous(), pair[1].contiguous()


@contextmanager
def use_beam_cache(decoder: nn.Module, features: torch.Tensor) -> Iterator[BeamCache]:
    """Let the attentions of `decoder` look into a BeamCache for as long as this lasts."""
    memory = BeamCache(decoder, features)
    try:
        for attention in memory.attentions:
            attention.memory = memory
        yield memory
    finally:
        for attention in memory.attentions:
            attention.memory = None
