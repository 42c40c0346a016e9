"""BLIP's own parts, made to do the same work sooner: what goes in and out is unchanged, to rounding.

The modules are given another class in place, so the model stays a `BlipForConditionalGeneration` with the
weights and names of the Hub's, and an adapter trained on it fits the untouched one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipProcessor, BlipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithCrossAttentions
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextSelfAttention

from medcap.modeling.loss import head_loss


def use_fast_modules(model: BlipForConditionalGeneration, processor: BlipProcessor) -> None:
    """Give the vision tower, the decoder and every attention of `model` the classes below."""
    for module in model.modules():
        if type(module) is BlipTextSelfAttention:
            module.__class__ = FastTextAttention
        elif type(module) is BlipAttention:
            module.__class__ = FastVisionAttention
    model.text_decoder.__class__ = FastTextDecoder
    model.vision_model.__class__ = FastVisionModel
    images = processor.image_processor
    for name, values in (("mean", images.image_mean), ("deviation", images.image_std)):
        values = torch.tensor(values).reshape(3, 1, 1)
        model.vision_model.register_buffer(name, values, persistent=False)


class FastVisionModel(BlipVisionModel):
    """The tower that also takes pictures as bytes, and its own output in their place."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode `pixel_values` (B, 3, H, W), as floats or as the uint8 that they are normalised from.

        Features (B, 1 + patches, width) that the tower made before come out as they are.
        """
        if pixel_values.ndim == 3:
            return BaseModelOutputWithPooling(last_hidden_state=pixel_values)
        if pixel_values.dtype == torch.uint8:
            pixel_values = (pixel_values / 255 - self.mean) / self.deviation
        return super().forward(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)


class FastTextDecoder(BlipTextLMHeadModel):
    """The decoder that, given labels, returns their loss and makes no logits but for it."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As BlipTextLMHeadModel without `labels` (B, T); with them, `loss` is their mean cross-entropy (float32).

        The head, a third of the decoder's weights, is computed only where the next token has a label.
        """
        if labels is None:
            return super().forward(
                input_ids,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                **kwargs,
            )
        hidden = self.bert(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state
        following = labels[:, 1:]  # what position t predicts is token t + 1
        wanted = following != -100
        head = self.cls.predictions
        smoothing = self.label_smoothing if self.training else 0.0
        loss = head_loss(head.transform(hidden[:, :-1][wanted]), head.decoder, following[wanted], smoothing)
        # a batch without labels, as the last of an epoch may be on one of several processes, has a loss of 0
        return CausalLMOutputWithCrossAttentions(loss=loss / wanted.sum().clamp(min=1))


class FastVisionAttention(BlipAttention):
    """Self-attention of the tower by `scaled_dot_product_attention`: no table of patches x patches is kept."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
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
    """Attention (B, heads, T, 64) from `query` to `key` and `value` (B, heads, N, 64); `mask` is added to the scores.

    By `scaled_dot_product_attention`, but for bfloat16 on a CPU: torch 2.13 takes twice as long for it there as for
    the plain formula, and for its gradient four times (benchmarks/bench.py measures the step).
    """
    mask = None if mask is None else mask.to(query.dtype)
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    scores = scores if mask is None else scores + mask
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout) @ value


class Memory(Protocol):
    """What attentions look into while captions are generated (`medcap.modeling.beam_cache`)."""

    def look(self, attention: FastTextAttention, states: torch.Tensor) -> torch.Tensor:
        """What `attention` finds for `states`, in the same shape."""


class FastTextAttention(BlipTextSelfAttention):
    """Attention of the decoder by `attend`; into `memory`, while captions are generated."""

    memory: Memory | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden_states` (B, T, width) to itself, or to the picture.

        The picture is `encoder_hidden_states` (B, N, width).
        """
        if self.memory is not None:
            return self.memory.look(self, hidden_states), None
        if past_key_values is not None:  # transformers' own `generate`
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values
            )
        states, mask = hidden_states, attention_mask
        if encoder_hidden_states is not None:
            states, mask = encoder_hidden_states, encoder_attention_mask
        key, value = self.keys_and_values(states)
        dropout = self.dropout.p if self.training else 0.0
        context = attend(self.heads(self.query(hidden_states)), key, value, mask, dropout)
        return context.transpose(1, 2).reshape(hidden_states.shape), None

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, width) as (B, heads, T, 64)."""
        return states.view(*states.shape[:2], self.num_attention_heads, -1).transpose(1, 2)

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, T, 64) of `states` (B, T, width)."""
        return self.heads(self.key(states)), self.heads(self.value(states))


class BitDropout(nn.Dropout):
    """Dropout that in bfloat16 on a CPU draws 16 bits for a decision, and not a whole random number.

    torch draws them one by one there, which took a fifth of a step. The share that is dropped is `p` to 1 in 131,072;
    the seed is torch's. In float32 and on other devices it is torch's dropout, number for number.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop elements of `input`, of any shape, and scale the others by 1 / (1 - p)."""
        if not self.training or not 0 < self.p < 1 or input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = bits >= round(self.p * 2**16) - 2**15
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))
