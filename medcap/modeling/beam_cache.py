"""Key and value cache of beam search, which copies nothing when beams are reordered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from medcap.modeling.blip_fast import FastTextAttention, attend

SLOTS = 128  # the cache grows by this many tokens of all beams of an image


class BeamCache:
    """Keys and values of the images and of the tokens of all their beams, for every attention of a decoder.

    `Cache.reorder_cache` copies the keys and values of reordered beams at every token. Here the beams of an image
    share one sequence, and `visible` (B, positions, slots) masks the tokens that are not part of a beam.
    """

    def __init__(self, decoder: nn.Module, features: torch.Tensor) -> None:
        """Compute the keys and values of `features` (B, N, width)."""
        layers: Any = decoder.bert.encoder.layer  # type: ignore[union-attr]
        cross = [layer.crossattention.self for layer in layers]
        self.attentions = [*cross, *(layer.attention.self for layer in layers)]
        self.filled = 0
        self.self_attention: dict[FastTextAttention, tuple[torch.Tensor, torch.Tensor]] = {}
        self.cross_attention = {module: _contiguous(module.keys_and_values(features)) for module in cross}

    def start(self, tokens: int) -> None:
        """Prepare for a prompt of `tokens` tokens, computed once for all beams of an image."""
        key, _ = next(iter(self.cross_attention.values()))
        self.visible = key.new_ones(len(key), tokens, tokens, dtype=torch.bool).tril()
        self.filled = tokens

    def expand(self, beams: int) -> None:
        """Let `beams` beams continue each prompt."""
        self.visible = self.visible[:, -1:].expand(-1, beams, -1)

    def reorder(self, beam_idx: torch.Tensor, rows: torch.Tensor) -> None:
        """Prepare for the next token of the beams `beam_idx` (B, beams), of the images `rows` only."""
        past = self.visible.gather(1, beam_idx[..., None].expand(-1, -1, self.filled))
        beams = beam_idx.shape[1]
        new = torch.eye(beams, dtype=torch.bool, device=beam_idx.device).expand(len(beam_idx), -1, -1)
        self.visible = torch.cat([past, new], -1)
        self.filled += beams
        if len(rows) < len(beam_idx):
            self.visible = self.visible[rows]
            for cached in (self.self_attention, self.cross_attention):
                for attention, (key, value) in cached.items():
                    cached[attention] = key[rows], value[rows]

    def attend(self, attention: FastTextAttention, states: torch.Tensor) -> torch.Tensor:
        """Return the context, in the same shape, of `states` (B * beams, T, width), where beams or T is 1."""
        rows = len(self.visible)
        joined = states.reshape(rows, -1, states.shape[-1])
        query = attention.heads(attention.query(joined))
        if attention in self.cross_attention:
            context = attend(query, *self.cross_attention[attention], None, 0.0)
        else:
            key, value = self._append(attention, joined)
            context = attend(query, key, value, self._mask(query.dtype, key.shape[2]), 0.0)
        return context.transpose(1, 2).reshape(states.shape)

    def _mask(self, dtype: torch.dtype, slots: int) -> torch.Tensor:
        """Return the additive mask (B, 1, positions, slots); empty slots are masked."""
        visible = F.pad(self.visible, (0, slots - self.filled))
        return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)[:, None]

    def _append(self, attention: FastTextAttention, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of `states` (B, positions, width) and return all (B, heads, slots, 64).

        Empty slots are returned too: a matrix product would copy a slice without them for every token.
        """
        new = attention.keys_and_values(states)
        cached = self.self_attention.get(attention) or (new[0][:, :, :0], new[1][:, :, :0])
        if (missing := self.filled - cached[0].shape[2]) > 0:
            more = SLOTS * math.ceil(missing / SLOTS)
            cached = F.pad(cached[0], (0, 0, 0, more)), F.pad(cached[1], (0, 0, 0, more))
            self.self_attention[attention] = cached
        for slots, values in zip(cached, new, strict=True):
            slots[:, :, self.filled - states.shape[1] : self.filled] = values
        return cached


def _contiguous(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the rows of each head adjacent, which prevents a copy for every token."""
    return pair[0].contiguous(), pair[1].contiguous()


@contextmanager
def use_beam_cache(decoder: nn.Module, features: torch.Tensor) -> Iterator[BeamCache]:
    """Let the attentions of `decoder` use a BeamCache inside the context."""
    cache = BeamCache(decoder, features)
    try:
        for attention in cache.attentions:
            attention.beam_cache = cache
        yield cache
    finally:
        for attention in cache.attentions:
            attention.beam_cache = None
