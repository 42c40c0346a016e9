"""Sampling of captions whose random numbers depend on the caption alone, not on the batch or the process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList


class TokenSampler(LogitsProcessor):
    """Draws one token per row from softmax(logits / temperature) of the `top_k` most probable tokens (0: of all).

    Token t of a row is the quantile at the t-th random number of its key, so that a caption is the same in every batch
    and on every process. `generate` of transformers draws from one generator for all rows.
    """

    def __init__(self, keys: Sequence[Sequence[int]], tokens: int, temperature: float = 1.0, top_k: int = 0) -> None:
        """Draw the random numbers.

        Args:
            keys: Integers that identify each row (B), such as (seed, epoch, image, sample).
            tokens: Maximum number of tokens.
            temperature: Divides the logits.
            top_k: Number of tokens to choose from.
        """
        self.temperature, self.top_k = temperature, top_k
        drawn = [np.random.default_rng(list(key)).random(tokens) for key in keys]
        self.quantiles = torch.from_numpy(np.stack(drawn))  # (B, tokens) float64
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `choose` for the next token of `input_ids` (B, T), whose first T is that of the prompt."""
        self.start = input_ids.shape[1] if self.start is None else self.start
        return self.choose(scores, input_ids.shape[1] - self.start)

    def choose(self, logits: torch.Tensor, step: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return scores (b, vocab) of 0 for the token number `step` of the `rows` (None: all) and -inf for others."""
        probs = truncated(logits.double(), self.temperature, self.top_k).softmax(-1)
        total = probs.cumsum(-1)
        quantiles = self.quantiles[:, step].to(logits.device)
        quantiles = quantiles if rows is None else quantiles[rows]
        token = torch.searchsorted(total, quantiles[:, None] * total[:, -1:], right=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, token, 0.0)


def truncated(logits: torch.Tensor, temperature: float, top_k: int, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Return logits / temperature (n, vocab), -inf but for the `top_k` largest (0: all) and the token `kept` (n,).

    The largest logits of one pass and of another may differ by rounding; `kept` is a token that was sampled.
    """
    logits = logits / temperature
    if not 0 < top_k < logits.shape[-1]:
        return logits
    is_out = logits < logits.topk(top_k).values[:, -1:]
    if kept is not None:
        is_out = is_out.scatter(-1, kept[:, None], False)
    return logits.masked_fill(is_out, -torch.inf)


def processors(sampler: TokenSampler | None) -> LogitsProcessorList:
    """Return the `logits_processor` of `generate` for a sampler."""
    return LogitsProcessorList([] if sampler is None else [sampler])
