"""Captions by beam search: those of transformers' `generate`, with every image's work done once and no more."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, NoRepeatNGramLogitsProcessor

from medcap.modeling.beam_cache import use_beam_cache

NEVER = -1e9  # the score of what must not be chosen, as in transformers


@torch.no_grad()
def generate_ids(
    decoder: nn.Module, features: torch.Tensor, settings: GenerationConfig, given: torch.Tensor
) -> torch.Tensor:
    """Ids (B, T) int64 of the captions of `features` (B, N, width), beginning with `given` (B, P), padded behind.

    What `model.generate(pixel_values=..., generation_config=settings)` gives (transformers 5.23,
    `GenerationMixin._beam_search`, and with one beam `_sample` without sampling), for what medcap sets: beams that
    stop early, `length_penalty`, `no_repeat_ngram_size`, `max_new_tokens`. It is done sooner because keys and values
    are made once for all beams of an image and never copied when beams change, and because an image whose beams are
    finished leaves the batch.
    """
    search = _Search(given, settings)
    with use_beam_cache(decoder, features) as memory:
        memory.start(search.prompt)
        logits = next_logits(decoder, given, features, 0).repeat_interleave(search.beams, 0)
        memory.fork(search.beams)
        while True:
            origin, staying = search.advance(logits.float())
            if len(staying) < len(search.rows) or search.done:
                search.leave(staying)
            if search.done:
                return search.captions()
            memory.follow(origin, staying)
            ids = search.open.flatten(0, 1)
            logits = next_logits(decoder, ids[:, -1:], features, ids.shape[1] - 1)


def next_logits(decoder: nn.Module, ids: torch.Tensor, features: torch.Tensor, position: int) -> torch.Tensor:
    """Logits (rows, vocabulary) of what comes behind `ids` (rows, T), which begin at `position`."""
    positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
    return decoder(
        ids,
        position_ids=positions,
        encoder_hidden_states=features[:1],  # only that it is there: keys and values are made already
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]


class _Search:
    """Beams of the images that are not finished: `open` (b, beams, t), and the best finished captions of each."""

    def __init__(self, given: torch.Tensor, settings: GenerationConfig) -> None:
        self.beams: int = settings.num_beams
        self.settings, self.prompt = settings, given.shape[1]
        self.length = self.prompt + settings.max_new_tokens
        self.ngrams: Any = None
        if settings.no_repeat_ngram_size:
            self.ngrams = NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size)
        rows, device = len(given), given.device
        self.rows = torch.arange(rows, device=device)  # which image each open row is
        self.open = given[:, None].repeat(1, self.beams, 1)
        self.scores = torch.full((rows, self.beams), NEVER, device=device)
        self.scores[:, 0] = 0  # the beams are alike as yet: one of them is taken
        self.finished = given.new_full((rows, self.beams, self.length), settings.pad_token_id)
        self.finished_scores = torch.full((rows, self.beams), NEVER, device=device)
        self.best = self.finished[:, 0].clone()

    @property
    def done(self) -> bool:
        return len(self.rows) == 0

    def advance(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengthen the beams by a token, from `logits` (b * beams, vocabulary).

        Returns (b, beams) which of its image's beams each new one goes on from, and the rows that stay.
        """
        likelihood = F.log_softmax(logits, dim=-1)
        if self.ngrams is not None:
            likelihood = self.ngrams(self.open.flatten(0, 1), likelihood)
        words = likelihood.shape[-1]
        total = (likelihood.view(*self.scores.shape, words) + self.scores[..., None]).flatten(1)
        scores, chosen = total.topk(2 * self.beams)  # as many that go on as beams, also if each could end
        origin, token = chosen // words, chosen % words
        longer = torch.cat([_of(self.open, origin), token[..., None]], -1)
        ends = (token == self.settings.eos_token_id) | (longer.shape[-1] >= self.length)
        self._finish(longer, scores, ends)
        self.scores, going = (scores + ends * NEVER).topk(self.beams)
        self.open = _of(longer, going)
        full = (self.finished_scores > NEVER / 2).all(1) | (longer.shape[-1] >= self.length)
        return origin.gather(1, going), (~full).nonzero().flatten()

    def _finish(self, longer: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor) -> None:
        """Keep the best finished captions; only what stands among the first `beams` candidates may end."""
        said = longer.shape[-1] - self.prompt
        scores = scores / said**self.settings.length_penalty if self.beams > 1 else scores
        may = ends.clone()
        may[:, self.beams :] = False
        ended = F.pad(longer, (0, self.length - longer.shape[-1]), value=self.settings.pad_token_id)
        scores = torch.cat([self.finished_scores, torch.where(may, scores, 2 * NEVER)], 1)
        self.finished_scores, kept = scores.topk(self.beams)
        self.finished = _of(torch.cat([self.finished, ended], 1), kept)

    def leave(self, staying: torch.Tensor) -> None:
        """Write down the best caption of every row, and go on with `staying` alone."""
        self.best[self.rows] = self.finished[:, 0]
        for name in ("rows", "open", "scores", "finished", "finished_scores"):
            setattr(self, name, getattr(self, name)[staying])

    def captions(self) -> torch.Tensor:
        """The best caption of every image (B, T), no wider than the longest."""
        width = int((self.best != self.settings.pad_token_id).any(0).nonzero().max()) + 1
        return self.best[:, :width]


def _of(beams: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Beams (b, k, t) that `index` (b, m) names."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[-1]))
