"""BLIP-2 and InstructBLIP (Li et al., 2023; Dai et al., 2023), with OPT and Flan-T5 language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.models.blip_2.modeling_blip_2 import BaseModelOutputWithVisionQformerOutputs

from medcap.data.captions import CaptionCollator
from medcap.modeling.families.chat import ChatCollator
from medcap.modeling.families.family import Batch, Collator
from medcap.modeling.families.vlm import Vlm
from medcap.modeling.sampling import TokenSampler, processors


class Blip2(Vlm):
    """A Q-Former turns an image into tokens before the prompt. Flan-T5 reads them, and its decoder has the caption."""

    not_quantized: ClassVar = ["vision_model", "qformer", "language_projection", "lm_head"]
    usage = "blip2"
    packages: ClassVar = []

    @property
    def vision_encoder(self) -> nn.Module:
        """The vision encoder, without the Q-Former."""
        return self.base.vision_model

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the language model is T5."""
        return not self.base.config.use_decoder_only_language_model

    @property
    def first_token_id(self) -> int:
        """T5's start token, or OPT's first token."""
        text = self.base.config.text_config
        return int(text.decoder_start_token_id if self.is_encoder_decoder else text.bos_token_id)

    def prompt_text(self, prompt: str) -> str:
        """Return the prompt as it is; the processor puts the image before it."""
        return prompt

    @property
    def end_token_id(self) -> int:
        """Id that ends a caption: OPT's line break, as in its own captions, or T5's end token."""
        return int(self.base.config.text_config.eos_token_id)

    def feature_obstacle(self) -> str:
        """InstructBLIP's Q-Former reads the prompt."""
        if self.base.config.model_type == "instructblip":
            return "the Q-Former of InstructBLIP reads the prompt"
        return super().feature_obstacle()

    def images(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments for images or features, which BLIP-2 expects with the outputs that led to them."""
        if features is None:
            return super().images(batch, features)
        outputs = BaseModelOutputWithVisionQformerOutputs(pooler_output=features)
        return {"pixel_values": None, "mm_encoder_outputs": {"image": outputs}}

    def collator(self, max_caption_tokens: int, prompt: str = "") -> Collator:
        """Return a `ChatCollator`, or a `T5Collator`."""
        return (T5Collator if self.is_encoder_decoder else ChatCollator)(self, max_caption_tokens, prompt)

    def inputs(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return images or features, and the tokens: T5's encoder gets the prompt, its decoder the caption."""
        if not self.is_encoder_decoder:
            return super().inputs(batch, features)
        text = {name.removeprefix("prompt_"): batch[name] for name in batch if name.startswith("prompt_")}
        caption = {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": batch["attention_mask"]}
        return {**text, **self.images(batch, features), **caption, "use_cache": False}

    def generate(
        self, batch: Batch, features: torch.Tensor | None, generation_config: GenerationConfig, prompt: str = "",
        sampler: TokenSampler | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Generate by the language model from the embeddings of prompt and image; `generate` takes no features."""
        ids, mask = batch["prompt_input_ids"], batch["prompt_attention_mask"]
        if features is None:
            features = self.base.get_image_features(**self.images(batch, None), return_dict=True).pooler_output
        embeds = self.base.get_input_embeddings()(ids)
        is_image = (ids == self.base.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
        generated = self.base.language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, generation_config=generation_config,
            synced_gpus=self.is_sharded, logits_processor=processors(sampler),
        )  # fmt: skip
        return generated[:, 1:] if self.is_encoder_decoder else generated  # without T5's start token


class T5Collator(ChatCollator):
    """As `ChatCollator`, with `input_ids`, `attention_mask` and `labels` of the decoder: start token, caption, end."""

    @property
    def room(self) -> int:
        """Maximum number of tokens of a caption: the start token counts."""
        return self.max_caption_tokens - 1

    def of_ids(self, batch: Batch, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the inputs of the decoder."""
        collator = CaptionCollator(self.family.tokenizer, self.family.first_token_id, self.max_caption_tokens)
        return collator.of_ids(batch, rows)
