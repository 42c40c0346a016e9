"""`VisionEncoderDecoderModel`: any ViT-like encoder with a GPT-2-like or BERT-like decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    ProcessorMixin,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from medcap.modeling.families.family import Batch, Family, accepts
from medcap.modeling.sampling import TokenSampler, processors


class EncoderDecoder(Family):
    """An encoder and a decoder that attends to all its states by cross-attention."""

    model_class = VisionEncoderDecoderModel
    not_quantized: ClassVar = ["encoder", "enc_to_dec_proj", "lm_head", "decoder.cls", "output_projection"]
    usage = "encoder_decoder"

    @staticmethod
    def interpolates(config: PreTrainedConfig | None, image_size: int) -> bool:
        """Return whether images have another size than the encoder's, which does not interpolate on its own."""
        if config is None:
            return True
        encoder = MODEL_MAPPING.get(type(config.encoder), None)
        has_size = getattr(config.encoder, "image_size", None) == image_size
        return not has_size and (encoder is None or accepts(encoder, "interpolate_pos_encoding"))

    @staticmethod
    def load_processor(folder: str | Path) -> ProcessorMixin:
        """Load image processor and tokenizer; such models have no processor class of their own."""
        return TrOCRProcessor.from_pretrained(folder, trust_remote_code=False)

    def prepare(self, image_size: int | None, model_code: str) -> None:
        """Set the size of images; encoders interpolate their position embeddings."""
        if image_size is not None:
            set_image_size(self.processor.image_processor, image_size)

    @property
    def vision_encoder(self) -> nn.Module:
        """The encoder."""
        return self.base.encoder

    @property
    def first_token_id(self) -> int:
        """The start token, such as [CLS] or <|endoftext|>."""
        return int(self.base.config.decoder_start_token_id)

    @property
    def positions(self) -> int | None:
        """The decoder's number of positions."""
        return getattr(self.base.config.decoder, "max_position_embeddings", None)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return all states of the encoder's last layer (B, N, width)."""
        return self.base.encoder(pixel_values, **self._interpolation()).last_hidden_state

    def _interpolation(self) -> dict[str, bool]:
        """Return the argument for images of another size than the encoder's."""
        return {"interpolate_pos_encoding": True} if accepts(self.base.encoder, "interpolate_pos_encoding") else {}

    def inputs(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return features or images, and the decoder's tokens."""
        images: dict[str, Any] = {"encoder_outputs": (features,)}
        if features is None:
            images = {"pixel_values": batch["pixel_values"], **self._interpolation()}
        text = {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": batch["attention_mask"]}
        return {**images, **text, "use_cache": False}

    def generate(
        self, batch: Batch, features: torch.Tensor | None, generation_config: GenerationConfig, prompt: str = "",
        sampler: TokenSampler | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Generate captions that continue the start token and `prompt`."""
        assert features is not None
        tokens = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        start = torch.tensor([[self.first_token_id, *tokens]] * len(features), device=features.device)
        outputs = BaseModelOutput(last_hidden_state=features)
        ids = self.base.generate(
            encoder_outputs=outputs, decoder_input_ids=start, generation_config=generation_config,
            synced_gpus=self.is_sharded, logits_processor=processors(sampler),
        )  # fmt: skip
        return ids[:, start.shape[1] :]


def set_image_size(image_processor: Any, side: int) -> None:
    """Resize images to squares of `side` pixels, without cropping, which loses the borders of radiographs."""
    image_processor.size = {"height": side, "width": side}
    if hasattr(image_processor, "do_center_crop"):  # crops to another size
        image_processor.do_center_crop = False
