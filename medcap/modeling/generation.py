"""Settings of caption generation, and the text of generated ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from medcap.data import detokenize as detokenizer

# settings beyond those of a recipe that `generate` of transformers applies, with the values that change nothing here
EXTRA_SETTINGS: dict[str, Any] = {
    "early_stopping": True,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}
# settings without effect on captions: formats and caches, sampling (do_sample is refused), ids that medcap sets itself
NO_EFFECT = frozenset({
    "transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory",
    "compile_config", "disable_compile", "prefill_chunk_size", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "temperature", "top_k", "top_p", "top_h", "min_p",
    "typical_p", "epsilon_cutoff", "eta_cutoff", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "max_matching_ngram_size",
})  # fmt: skip


def extra_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in EXTRA_SETTINGS that change captions; `beam_search` does not know them."""
    values = {name: settings.get(name) for name in EXTRA_SETTINGS}
    return {name: value for name, value in values.items() if value not in (None, EXTRA_SETTINGS[name])}


def reranks(generation_config: GenerationConfig) -> bool:
    """Return whether captions are chosen among beams (`medcap.metrics.consensus`)."""
    return getattr(generation_config, "rerank", "none") != "none"


def rerank_settings(generation_config: GenerationConfig) -> dict[str, Any]:
    """Return the settings of reranking that were given; none without it."""
    given = generation_config.to_dict() if reranks(generation_config) else {}
    return {name: value for name, value in given.items() if name.startswith("rerank") and value is not None}


def without_reranking(generation_config: GenerationConfig) -> GenerationConfig:
    """Return the settings of the best beam, which evaluations during training generate."""
    best = copy.copy(generation_config)
    best.rerank = "none"
    return best


def with_candidates(generation_config: GenerationConfig) -> GenerationConfig:
    """Return the settings for `generate` to return all candidates of each image, one after the other."""
    candidates = getattr(generation_config, "rerank_candidates", None) or generation_config.num_beams
    several = copy.copy(generation_config)
    several.num_return_sequences = candidates
    return several


def are_cut(ids: torch.Tensor, generation_config: GenerationConfig) -> list[bool]:
    """Return whether each caption of `ids` (B, T) was cut by `max_new_tokens`, so that it has no end token."""
    return (~(ids == generation_config.eos_token_id).any(1)).tolist()


def decode_captions(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor | Sequence[Sequence[int]], detokenize: bool = True
) -> list[str]:
    """Return the text of generated `ids` (B, T) without special tokens.

    Without `detokenize`, the text of a WordPiece tokenizer is in lower case, with "x - ray" and "3. 5 cm". The text of
    other tokenizers is not changed by it.
    """
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return [detokenizer.detokenize(text) for text in texts] if detokenize and loses_spaces(tokenizer) else texts


def loses_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether decoding adds spaces to a text that was encoded, as that of a WordPiece tokenizer does."""
    text = "x-ray, 3.5"
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip().lower() != text
