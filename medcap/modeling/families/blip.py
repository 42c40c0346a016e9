"""BLIP captioners (Li et al., 2022): loading, LoRA targets, loss and generation, by medcap's faster modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig, PreTrainedConfig

from medcap.data.images import resized
from medcap.modeling.beam_search import beam_search
from medcap.modeling.blip_fast import CaptioningBlip, prepare_blip
from medcap.modeling.families.family import Batch, Family
from medcap.modeling.generation import extra_settings
from medcap.modeling.positions import resize_positions
from medcap.modeling.sampling import TokenSampler, processors

_LAYER = r"text_decoder\.bert\.encoder\.layer\.\d+\."
_ATTENTION = r"(attention|crossattention)\.(self\.(query|key|value)|output\.dense)"
_VISION_ATTENTION = r"vision_model\.encoder\.layers\.\d+\.self_attn\.(qkv|projection)"
# PEFT matches the ends of names in a list: ["attention.self.query"] would adapt the self-attention only, and
# "all-linear" also the head, which is tied to the embeddings.
TARGETS = {
    "query-key": _LAYER + r"(attention|crossattention)\.self\.(query|key)",
    "query-value": _LAYER + r"(attention|crossattention)\.self\.(query|value)",
    "attention": _LAYER + _ATTENTION,
    "text": _LAYER + rf"({_ATTENTION}|intermediate\.dense|output\.dense)",
    "text-and-vision-attention": rf"{_LAYER}{_ATTENTION}|{_VISION_ATTENTION}",
    "all-linear": r"(text_decoder\.bert|vision_model)\.encoder\..*",
}


class Blip(Family):
    """BLIP: captions attend to all features of the vision encoder by cross-attention."""

    model_class = BlipForConditionalGeneration
    # The vision encoder is small and sensitive; the head is tied to the embeddings. A bare "cls" would match nothing.
    not_quantized: ClassVar = ["vision_model", "text_decoder.cls"]
    usage = "blip"
    has_onnx = True

    @staticmethod
    def check(config: PreTrainedConfig) -> str:
        """Refuse BLIP models for retrieval and for questions."""
        kind = (config.architectures or ["BlipForConditionalGeneration"])[0]
        wrong = kind not in ("blip", "BlipForConditionalGeneration")
        return f"a {kind!r} model; of the BLIP models, BlipForConditionalGeneration is supported" if wrong else ""

    @staticmethod
    def interpolates(config: PreTrainedConfig | None, image_size: int) -> bool:
        """Return whether images have another size than the position embeddings."""
        return config is None or config.vision_config.image_size != image_size

    @staticmethod
    def load_processor(folder: Any) -> BlipProcessor:
        """Load a BlipProcessor."""
        return BlipProcessor.from_pretrained(folder, trust_remote_code=False)

    def prepare(self, image_size: int | None, model_code: str) -> None:
        """Resize the position embeddings, and replace the modules (see `medcap.modeling.blip_fast`)."""
        if image_size is not None:
            resize_positions(self.base, image_size)
            self.processor.image_processor.size = {"height": image_size, "width": image_size}
        if not isinstance(self.base, CaptioningBlip):
            prepare_blip(self.base, self.processor, model_code)

    @property
    def has_partial_logits(self) -> bool:  # type: ignore[override]
        """Whether the loss is that of `head_loss`."""
        return self.base.model_code == "fast"

    @property
    def vision_encoder(self) -> nn.Module:
        """The vision encoder."""
        return self.base.vision_model

    @property
    def targets(self) -> dict[str, str]:
        """TARGETS."""
        return TARGETS

    @property
    def first_token_id(self) -> int:
        """Id of [DEC], which starts every caption; BLIP's tokenizer does not have it."""
        return int(self.base.config.text_config.bos_token_id)

    @property
    def end_token_id(self) -> int:
        """Id of [SEP]."""
        return self.base.config.text_config.sep_token_id

    @property
    def pad_token_id(self) -> int:
        """Id of [PAD]."""
        return int(self.base.config.text_config.pad_token_id)

    def pixels(self) -> Callable[[Image.Image], torch.Tensor]:
        """Images are resized uint8: the vision encoder normalizes them on its device."""
        return partial(resized, image_processor=self.processor.image_processor)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return all states of the vision encoder's last layer (B, 1 + patches, width)."""
        return self.base.vision_model(pixel_values).last_hidden_state

    def feature_shape(self) -> tuple[int, int]:
        """Return (1 + patches, width)."""
        vision = self.base.config.vision_config
        return 1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size

    def inputs(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return features or images, and the tokens."""
        images = {"pixel_values": batch["pixel_values"]} if features is None else {"features": features}
        return {**images, "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def loss(
        self, model: nn.Module, batch: Batch, features: torch.Tensor | None, labels: Any, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Compute the loss inside the model, without all logits in memory."""
        inputs = {**self.inputs(batch, features), "labels": batch["labels"]}
        return model(**inputs, num_items_in_batch=labels, label_smoothing=smoothing).loss

    def generate(
        self, batch: Batch, features: torch.Tensor | None, generation_config: GenerationConfig, prompt: str = "",
        sampler: TokenSampler | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Generate by medcap's beam search if it knows all settings, else by the text decoder's `generate`."""
        assert features is not None
        start = self.start_ids(prompt, len(features))
        can_search = not self.is_sharded and not extra_settings(generation_config.to_dict())
        if self.base.model_code == "fast" and can_search:
            ids = beam_search(self.base.text_decoder, features, generation_config, start, sampler)
        else:
            mask = features.new_ones(features.shape[:2], dtype=torch.long)
            states = {"encoder_hidden_states": features, "encoder_attention_mask": mask}
            ids = self.base.text_decoder.generate(
                input_ids=start, **states, generation_config=generation_config, synced_gpus=self.is_sharded,
                logits_processor=processors(sampler),
            )  # fmt: skip
        return ids[:, start.shape[1] :]

    def start_ids(self, prompt: str, rows: int) -> torch.Tensor:
        """Return `rows` times [DEC] and the tokens of `prompt`: (rows, 1 + tokens)."""
        tokens = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        return torch.tensor([[self.first_token_id, *tokens]] * rows, device=self.base.device)
