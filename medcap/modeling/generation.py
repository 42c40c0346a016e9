"""Caption generation from image features, in training, evaluation and `medcap caption`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from medcap.modeling.beam_search import beam_search
from medcap.modeling.blip import prompt_ids
from medcap.modeling.lora import base_model

# settings beyond those of a recipe that `generate` of transformers applies, with the values that change nothing here
EXTRA_SETTINGS: dict[str, Any] = {
    "early_stopping": True,
    "min_length": 0,
    "min_new_tokens": 0,
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
# settings without effect on captions: formats and caches, sampling (do_sample is refused), ids that BLIP sets itself
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


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    features: torch.Tensor,
    generation_config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str = "",
) -> torch.Tensor:
    """Return ids (B, T) int64 for `decode_captions`: first token, prompt, caption, [SEP], padding.

    Args:
        model: From `load_blip`, with or without an adapter.
        features: Output of the vision encoder (B, 1 + patches, width).
        generation_config: From `make_generation_config`.
        tokenizer: The processor's tokenizer.
        prompt: Text that every caption continues.
    """
    blip = base_model(model)
    start = prompt_ids(blip, tokenizer, prompt, len(features))
    if blip.model_code == "fast" and not extra_settings(generation_config.to_dict()):
        return beam_search(blip.text_decoder, features, generation_config, start)
    return blip.text_decoder.generate(
        input_ids=start,
        encoder_hidden_states=features,
        encoder_attention_mask=features.new_ones(features.shape[:2], dtype=torch.long),
        generation_config=generation_config,
    )


def are_cut(ids: torch.Tensor, generation_config: GenerationConfig) -> list[bool]:
    """Return whether each caption of `ids` (B, T) was cut by `max_new_tokens`, so that it has no [SEP]."""
    return (~(ids[:, 1:] == generation_config.eos_token_id).any(1)).tolist()
