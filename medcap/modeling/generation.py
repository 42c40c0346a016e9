"""Caption generation from image features, in training, evaluation and `medcap caption`."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from medcap.modeling.beam_search import beam_search
from medcap.modeling.blip import prompt_ids
from medcap.modeling.lora import base_model


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
    if blip.model_code == "fast":
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
