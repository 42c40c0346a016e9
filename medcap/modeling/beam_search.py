"""Beam search that returns the captions of transformers' `generate`, but faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, MinNewTokensLengthLogitsProcessor, NoRepeatNGramLogitsProcessor

from medcap.modeling.beam_cache import use_beam_cache
from medcap.modeling.sampling import TokenSampler

MIN_SCORE = -1e9  # of an excluded candidate, as in transformers


@torch.no_grad()
def beam_search(
    decoder: nn.Module,
    features: torch.Tensor,
    generation_config: GenerationConfig,
    prompt_ids: torch.Tensor,
    sampler: TokenSampler | None = None,
) -> torch.Tensor:
    """Return the best captions' ids (B * k, T) int64, padded on the right, for `features` (B, N, width).

    The k = `num_return_sequences` captions of an image, 1 by default, follow each other, the best one first.

    Equal to `model.generate` (transformers 5.24, `GenerationMixin._beam_search`, and `_sample` with one beam) for
    the settings of `make_generation_config`. Faster because all beams of an image share keys and values, which are
    not copied when beams are reordered, and because finished images leave the batch. Captions start with
    `prompt_ids` (B, P). With one beam, a `sampler` may draw the tokens.
    """
    search = _Search(prompt_ids, generation_config, sampler)
    with use_beam_cache(decoder, features) as cache:
        cache.start(search.prompt_length)
        logits = next_logits(decoder, prompt_ids, features, 0).repeat_interleave(search.num_beams, 0)
        cache.expand(search.num_beams)
        while True:
            beam_idx, unfinished = search.advance(logits.float())
            if len(unfinished) < len(search.rows):
                search.keep(unfinished)
            if not len(unfinished):
                return search.captions()
            cache.reorder(beam_idx, unfinished)
            ids = search.running.flatten(0, 1)
            logits = next_logits(decoder, ids[:, -1:], features, ids.shape[1] - 1)


def next_logits(decoder: nn.Module, ids: torch.Tensor, features: torch.Tensor, position: int) -> torch.Tensor:
    """Return the logits (rows, vocab) of the token after `ids` (rows, T), whose first token is at `position`."""
    positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
    return decoder(
        ids,
        position_ids=positions,
        encoder_hidden_states=features[:1],  # turns on cross-attention; its keys and values are cached
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]


class _Search:
    """The beams of unfinished images, `running` (b, beams, t), and the best finished captions of each image."""

    def __init__(
        self, prompt_ids: torch.Tensor, generation_config: GenerationConfig, sampler: TokenSampler | None = None
    ) -> None:
        self.sampler = sampler
        self.num_beams: int = generation_config.num_beams
        self.config, self.prompt_length = generation_config, prompt_ids.shape[1]
        self.max_length = self.prompt_length + generation_config.max_new_tokens
        rows, device = len(prompt_ids), prompt_ids.device
        self.processors: list[Any] = []
        if size := generation_config.no_repeat_ngram_size:
            self.processors.append(NoRepeatNGramLogitsProcessor(size))
        if least := generation_config.min_new_tokens:
            end = generation_config.eos_token_id
            self.processors.append(MinNewTokensLengthLogitsProcessor(self.prompt_length, least, end, device=device))
        self.rows = torch.arange(rows, device=device)  # image of each running row
        self.running = prompt_ids[:, None].repeat(1, self.num_beams, 1)
        self.scores = torch.full((rows, self.num_beams), MIN_SCORE, device=device)
        self.scores[:, 0] = 0  # all beams are equal at first: use one
        self.finished = prompt_ids.new_full((rows, self.num_beams, self.max_length), generation_config.pad_token_id)
        self.finished_scores = torch.full((rows, self.num_beams), MIN_SCORE, device=device)
        self.best = self.finished[:, : generation_config.num_return_sequences or 1].clone()

    def advance(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one token to the beams, given `logits` (b * beams, vocab).

        Returns:
            The previous beam that each beam continues (b, beams), and the indices of unfinished images.
        """
        log_probs = F.log_softmax(logits, dim=-1)
        for processor in self.processors:
            log_probs = processor(self.running.flatten(0, 1), log_probs)
        if self.sampler is not None:
            log_probs = self.sampler.choose(log_probs, self.running.shape[-1] - self.prompt_length, self.rows)
        vocab = log_probs.shape[-1]
        total = (log_probs.view(*self.scores.shape, vocab) + self.scores[..., None]).flatten(1)
        scores, candidates = total.topk(2 * self.num_beams)  # enough to continue, even if half of them end
        beam_idx, token = candidates // vocab, candidates % vocab
        ids = torch.cat([_select(self.running, beam_idx), token[..., None]], -1)
        ends = (token == self.config.eos_token_id) | (ids.shape[-1] >= self.max_length)
        self._finish(ids, scores, ends)
        self.scores, running = (scores + ends * MIN_SCORE).topk(self.num_beams)
        self.running = _select(ids, running)
        is_finished = (self.finished_scores > MIN_SCORE / 2).all(1) | (ids.shape[-1] >= self.max_length)
        return beam_idx.gather(1, running), (~is_finished).nonzero().flatten()

    def _finish(self, ids: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor) -> None:
        """Update the best finished captions; only the first `num_beams` candidates may finish."""
        length = ids.shape[-1] - self.prompt_length
        scores = scores / length**self.config.length_penalty if self.num_beams > 1 else scores
        may_finish = ends.clone()
        may_finish[:, self.num_beams :] = False
        ended = F.pad(ids, (0, self.max_length - ids.shape[-1]), value=self.config.pad_token_id)
        scores = torch.cat([self.finished_scores, torch.where(may_finish, scores, 2 * MIN_SCORE)], 1)
        self.finished_scores, best = scores.topk(self.num_beams)
        self.finished = _select(torch.cat([self.finished, ended], 1), best)

    def keep(self, unfinished: torch.Tensor) -> None:
        """Store the best captions of every image, and continue with the images `unfinished`."""
        self.best[self.rows] = self.finished[:, : self.best.shape[1]]
        for name in ("rows", "running", "scores", "finished", "finished_scores"):
            setattr(self, name, getattr(self, name)[unfinished])

    def captions(self) -> torch.Tensor:
        """Return the best captions of every image (B * k, T), T tokens being the longest."""
        best = self.best.flatten(0, 1)
        width = int((best != self.config.pad_token_id).any(0).nonzero().max()) + 1
        return best[:, :width]


def _select(beams: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return (b, m, t): the beams (b, k, t) at `index` (b, m)."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[-1]))
