"""Image-text-to-text models with a chat template: SmolVLM, Qwen-VL, PaliGemma, Gemma 3, LLaVA and others.

An image becomes tokens of the prompt, and the caption is the answer. All differences are in the model's own processor
and in `ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medcap.data.captions import IGNORED, end_token_id
from medcap.data.images import to_tensor
from medcap.modeling.families.chat import SIZES, ChatCollator
from medcap.modeling.families.family import Batch, Collator, Family, accepts
from medcap.modeling.sampling import TokenSampler, processors


class Row(NamedTuple):
    """What is not in the processor of a model type."""

    template: str = "{image}{prompt}"  # the prompt of a processor without a chat template
    caption_type: int = 0  # token_type_id of the caption
    is_listed: bool = False  # whether the model takes the features of images as a list


ROWS = {
    "gemma3": Row(), "idefics3": Row(), "llava": Row("USER: {image}\n{prompt} ASSISTANT:", is_listed=True),
    "llava_next": Row("USER: {image}\n{prompt} ASSISTANT:"), "llava_onevision": Row(),
    "paligemma": Row(caption_type=1), "qwen2_vl": Row(), "qwen2_5_vl": Row(), "qwen3_vl": Row(), "smolvlm": Row(),
}  # fmt: skip


class Vlm(Family):
    """A chat-template model: prompt tokens with an image among them, then the caption."""

    model_class = AutoModelForImageTextToText
    # regular expressions for the start of names
    not_quantized: ClassVar = [
        r".*\.(vision_tower|vision_model|visual)", r".*\.(multi_modal_projector|connector)", "lm_head",
    ]  # fmt: skip
    usage = "vlm"
    task = "image-text-to-text"
    rows: ClassVar = ROWS
    packages: ClassVar = ["num2words", "torchvision"]  # of processors that also read videos

    def __init__(self, base: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__(base, processor)
        self.row = ROWS.get(base.config.model_type, Row())

    @property
    def first_token_id(self) -> int:
        """The tokenizer's first token; captions follow the prompt and do not start with it."""
        tokenizer = self.tokenizer
        return int(end_token_id(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

    def prompt_length(self, prompt: str) -> int:
        """Return 0: `max_caption_tokens` is about the caption alone."""
        return 0

    def prompt_text(self, prompt: str) -> str:
        """Return the text of a turn with an image and `prompt`, and the start of the answer."""
        if not self.processor.chat_template:
            return self.row.template.format(image=self.processor.image_token, prompt=prompt)
        return self.processor.apply_chat_template([_turn(prompt)], add_generation_prompt=True)

    @property
    def end_token_id(self) -> int:
        """Id of the token that ends an answer in the chat template, or the tokenizer's end token."""
        tokenizer = self.tokenizer
        if self.processor.chat_template:
            answer = {"role": "assistant", "content": [{"type": "text", "text": "."}]}
            text = self.processor.apply_chat_template([_turn("."), answer]).rpartition(".")[2]
            special = [
                i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in tokenizer.all_special_ids
            ]
            if special:
                return int(special[0])
        return super().end_token_id

    def collator(self, max_caption_tokens: int, prompt: str = "") -> Collator:
        """Return a `ChatCollator`."""
        return ChatCollator(self, max_caption_tokens, prompt)

    @property
    def image_size(self) -> int | None:
        """None if the size depends on the image."""
        return None if self.feature_obstacle() else super().image_size

    def pixels(self) -> Callable[[Image.Image], torch.Tensor]:
        """Images are uint8 of their own size where `ChatCollator` must process them with the prompt."""
        return to_tensor if self.has_own_sizes else super().pixels()

    @cached_property
    def has_own_sizes(self) -> bool:
        """Whether images of different sizes differ in the shape of their inputs."""
        images = [[Image.new("RGB", size)] for size in SIZES]
        inputs = dict(self.processor.image_processor(images, return_tensors="pt"))
        pixels = inputs.pop("pixel_values")
        is_equal = pixels.ndim == 4 and all(len({str(value) for value in values}) == 1 for values in inputs.values())
        return not (is_equal and len(pixels) == len(SIZES))

    def feature_obstacle(self) -> str:
        """Images of different sizes have different numbers of features."""
        if not accepts(self.base, "mm_encoder_outputs"):
            return f"{type(self.base).__name__} of this version of transformers takes no features"
        return "the processor splits images, or keeps their sizes" if self.has_own_sizes else ""

    def feature_modules(self) -> list[nn.Module]:
        """Return the projector."""
        base = self.base.base_model
        names = ("multi_modal_projector", "connector", "qformer", "language_projection")
        return [getattr(base, name) for name in names if hasattr(base, name)]

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the image's tokens (B, N, width) as the language model gets them, projector included."""
        features = self.base.get_image_features(pixel_values, return_dict=True).pooler_output
        return torch.stack(list(features)).view(len(pixel_values), -1, features[0].shape[-1])

    def vectors(self, batch: Batch, features: torch.Tensor | None) -> torch.Tensor:
        """Return the mean of each image's tokens."""
        if features is not None:
            return features.mean(1)
        images = self.base.get_image_features(**self.images(batch, None), return_dict=True).pooler_output
        return torch.stack([image.flatten(0, -2).mean(0) for image in images])

    def inputs(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return images or features, and the tokens; logits are computed from the first label on."""
        text = {name: values for name, values in batch.items() if f"prompt_{name}" in batch}
        first = int(batch["labels"].ne(IGNORED).int().argmax(1).min())
        kept = {"logits_to_keep": batch["labels"].shape[1] - first + 1} if accepts(self.base, "logits_to_keep") else {}
        return {**text, **self.images(batch, features), **kept, "use_cache": False}

    def images(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments of the model for the images of a batch, or for their features."""
        if features is not None:
            listed: Any = list(features) if self.row.is_listed else features
            return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=listed)}}
        own = {"labels", "row", "digests", "is_cached", "features"}
        images = (name for name in batch if not name.startswith("prompt_") and f"prompt_{name}" not in batch)
        return {name: batch[name] for name in images if name not in own}

    def generate(
        self, batch: Batch, features: torch.Tensor | None, generation_config: GenerationConfig, prompt: str = "",
        sampler: TokenSampler | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Generate the answers to the prompts of a batch of `ChatCollator`, which are padded on the left."""
        text = {name.removeprefix("prompt_"): batch[name] for name in batch if name.startswith("prompt_")}
        inputs = {**text, **self.images(batch, features)}
        ids = self.base.generate(
            **inputs, generation_config=generation_config, synced_gpus=self.is_sharded,
            logits_processor=processors(sampler),
        )  # fmt: skip
        return ids[:, text["input_ids"].shape[1] :]


def _turn(prompt: str) -> dict[str, Any]:
    text = [{"type": "text", "text": prompt}] if prompt else []
    return {"role": "user", "content": [{"type": "image"}, *text]}
