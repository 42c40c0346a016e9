"""BLIP with cached features as input, and faster versions of its modules with the same inputs and outputs.

The classes of a loaded model's modules are replaced in place. Weights and their names do not change, so an adapter
trained here fits the original model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipProcessor, BlipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithCrossAttentions
from transformers.models.blip.modeling_blip import BlipAttention, BlipForConditionalGenerationModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextSelfAttention

from medcap.data.captions import IGNORED
from medcap.modeling.loss import head_loss

if TYPE_CHECKING:
    from medcap.modeling.beam_cache import BeamCache


def prepare_blip(model: BlipForConditionalGeneration, processor: BlipProcessor, model_code: str = "fast") -> None:
    """Change `model` in place to accept vision encoder features and uint8 images, and to sum its loss over labels.

    `model_code` "fast" also replaces the text decoder and the attention modules; "plain" keeps those of transformers.
    """
    model.__class__ = CaptioningBlip
    model.model_code = model_code
    model.vision_model.__class__ = Uint8VisionModel
    for name in ("image_mean", "image_std"):
        values = torch.tensor(getattr(processor.image_processor, name), device=model.device)
        model.vision_model.register_buffer(name, values.reshape(3, 1, 1), persistent=False)
    if model_code == "plain":
        return
    model.text_decoder.__class__ = FastTextDecoder
    for module in model.modules():
        if type(module) is BlipTextSelfAttention:
            module.__class__ = FastTextAttention
        elif type(module) is BlipAttention:
            module.__class__ = FastVisionAttention


class CaptioningBlip(BlipForConditionalGeneration):
    """BLIP that also takes the vision encoder's features, and divides its loss as the Trainer expects."""

    model_code: str

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        interpolate_pos_encoding: bool = False,
    ) -> BlipForConditionalGenerationModelOutput:
        """Compute the loss (float32 scalar), or without `labels` the logits (B, T, vocab).

        Args:
            pixel_values: Images (B, 3, H, W), uint8 or normalized; unused with `features`.
            input_ids: Caption tokens (B, T).
            attention_mask: (B, T), 0 on padding.
            labels: (B, T), not shifted; -100 is ignored.
            features: Output of the vision encoder (B, 1 + patches, width).
            num_items_in_batch: Divisor of the summed cross-entropy; None: the number of labels.
            label_smoothing: As in `torch.nn.functional.cross_entropy`.
            interpolate_pos_encoding: As in transformers.
        """
        if features is None:
            encoded = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            features = encoded.last_hidden_state
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "encoder_hidden_states": features}
        if labels is None:
            return BlipForConditionalGenerationModelOutput(logits=self.text_decoder(**inputs, use_cache=False).logits)
        if self.model_code == "plain":
            logits = self.text_decoder(**inputs, use_cache=False).logits[:, :-1].float().flatten(0, 1)
            next_labels = labels[:, 1:].flatten()
            loss = F.cross_entropy(logits, next_labels, reduction="sum", label_smoothing=label_smoothing)
        else:
            loss = self.text_decoder(**inputs, labels=labels, label_smoothing=label_smoothing).loss
        if num_items_in_batch is None:  # the last batch of one of several processes may have no labels
            num_items_in_batch = labels[:, 1:].ne(IGNORED).sum().clamp(min=1)
        return BlipForConditionalGenerationModelOutput(loss=loss / num_items_in_batch)


# PEFT and `save_pretrained` write the class's name and module; a saved adapter must load without medcap
CaptioningBlip.__name__ = BlipForConditionalGeneration.__name__
CaptioningBlip.__module__ = BlipForConditionalGeneration.__module__


class Uint8VisionModel(BlipVisionModel):
    """Vision encoder that rescales and normalizes uint8 images on its device."""

    image_mean: torch.Tensor
    image_std: torch.Tensor

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> BaseModelOutputWithPooling:
        """Encode `pixel_values` (B, 3, H, W), uint8 or normalized floats."""
        if pixel_values.dtype == torch.uint8:
            pixel_values = (pixel_values / 255 - self.image_mean) / self.image_std
        return super().forward(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)


class FastTextDecoder(BlipTextLMHeadModel):
    """Text decoder that computes the head only where the next token has a label."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Return the logits as BlipTextLMHeadModel does; with `labels` (B, T) their summed cross-entropy (float32)."""
        if labels is None:
            return super().forward(
                input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                **kwargs,
            )
        if kwargs:
            raise TypeError(f"unexpected keyword arguments with labels: {', '.join(kwargs)}")
        hidden = self.bert(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state
        next_labels, head = labels[:, 1:], self.cls.predictions  # position t predicts token t + 1
        has_label = next_labels != IGNORED
        states = head.transform(hidden[:, :-1][has_label])
        loss = head_loss(states, head.decoder, next_labels[has_label], label_smoothing)
        return CausalLMOutputWithCrossAttentions(loss=loss)


class FastVisionAttention(BlipAttention):
    """Self-attention of the vision encoder by `scaled_dot_product_attention`, which stores no attention matrix."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Attend within `hidden_states` (B, N, width)."""
        rows, length, width = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(rows, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.projection(context.transpose(1, 2).reshape(rows, length, width)), None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Return the attention (B, heads, T, 64) of `query` to `key` and `value` (B, heads, N, 64) with additive `mask`.

    Half precision on a CPU uses the plain formula: `scaled_dot_product_attention` of torch 2.13 takes twice as long
    there, and its gradient four times (benchmarks/bench.py measures the step).
    """
    mask = None if mask is None else mask.to(query.dtype)
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    scores = scores if mask is None else scores + mask
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout) @ value


class FastTextAttention(BlipTextSelfAttention):
    """Attention of the text decoder by `attend`; during beam search by `beam_cache`."""

    beam_cache: BeamCache | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden_states` (B, T, width) to itself, or to `encoder_hidden_states` (B, N, width).

        transformers 5.24 renamed `past_key_values` to `cache`. There is no `**kwargs`: another renamed argument must
        be a TypeError, not ignored.
        """
        if self.beam_cache is not None:
            return self.beam_cache.attend(self, hidden_states), None
        past = cache if cache is not None else past_key_values
        if past is not None:  # transformers' own `generate`
            return super().forward(hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past)
        states, mask = hidden_states, attention_mask
        if encoder_hidden_states is not None:
            states, mask = encoder_hidden_states, encoder_attention_mask
        key, value = self.keys_and_values(states)
        dropout = self.dropout.p if self.training else 0.0
        context = attend(self.heads(self.query(hidden_states)), key, value, mask, dropout)
        return context.transpose(1, 2).reshape(hidden_states.shape), None

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape (B, T, width) to (B, heads, T, 64)."""
        return states.view(*states.shape[:2], self.num_attention_heads, -1).transpose(1, 2)

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, heads, T, 64) of `states` (B, T, width)."""
        return self.heads(self.key(states)), self.heads(self.value(states))


class BitDropout(nn.Dropout):
    """Dropout that draws 16 random bits per element in bfloat16 on a CPU, and is torch's elsewhere.

    torch draws a number per element, which took a fifth of a step. The dropped fraction is within 1/131,072 of `p`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero elements of `input` and scale the others by 1 / (1 - p)."""
        if not self.training or not 0 < self.p < 1 or input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        drawn = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = drawn.view(torch.int16)[: input.numel()].view(input.shape)
        kept = bits >= round(self.p * 2**16) - 2**15
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))
