"""What training and generation ask about a captioner; a subclass for each kind of model answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from medcap.data.captions import IGNORED, CaptionCollator, TokenizedCaptions, end_token_id, pad_token_id, prompt_length
from medcap.data.images import processed
from medcap.modeling.families.roles import role_targets
from medcap.modeling.sampling import TokenSampler
from medcap.recipe import RecipeError

Batch = Mapping[str, torch.Tensor]
Collator = Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]


class Family:
    """One captioner: a base model with its processor. PEFT puts an adapter into `base` in place.

    Attributes:
        model_class: Loads the base with `from_pretrained`.
        not_quantized: Modules that stay unquantized: ends of names, or regular expressions for their starts.
        usage: Name of the model card's usage code, a file in `medcap.publish.usage`.
        packages: Packages of the extra `vlm` that processors need.
        task: The Hub's name of the task.
        has_onnx: Whether `medcap publish --onnx` exports such models.
        has_partial_logits: Whether the loss needs the logits of at most `medcap.modeling.loss.ROWS` tokens at a time.
    """

    model_class: ClassVar[Any]
    not_quantized: ClassVar[list[str]]
    usage: ClassVar[str]
    packages: ClassVar[list[str]] = []
    task: ClassVar[str] = "image-to-text"
    has_onnx: ClassVar[bool] = False
    has_partial_logits: ClassVar[bool] = False

    def __init__(self, base: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.base, self.processor = base, processor
        self.is_sharded = False  # whether processes compute together, and generate until all have ended

    @staticmethod
    def check(config: PreTrainedConfig) -> str:
        """Return why a model with this config cannot be trained, after "NAME is"; "" if it can."""
        return ""

    @staticmethod
    def interpolates(config: PreTrainedConfig | None, image_size: int) -> bool:
        """Return whether `generate` of a model with this config (None: not known) needs `interpolate_pos_encoding`."""
        return False

    @staticmethod
    def load_processor(folder: str | Path) -> ProcessorMixin:
        """Load the processor from a folder with a base or an adapter."""
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)

    def prepare(self, image_size: int | None, model_code: str) -> None:
        """Set the image size in pixels (None: unchanged), and do what else the base needs after loading.

        Adapters record the size of the processor, so that size is accepted by every family.
        """
        if image_size not in (None, self.processor_size):
            raise RecipeError(f"image_size is {image_size}; images have the size of the processor: remove the key")

    # where things are

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def vision_encoder(self) -> Any:
        """The module that encodes images, without a projector."""
        return self.base.get_encoder("image")

    @property
    def targets(self) -> dict[str, str]:
        """Regular expressions for the complete names of the linear layers that `lora_target_modules` may name."""
        names = {id(module): re.escape(name) for name, module in self.base.named_modules()}
        return role_targets(names[id(self.base.get_decoder())], names[id(self.vision_encoder)])

    @property
    def image_size(self) -> int | None:
        """Height and width of the vision encoder's input in pixels; None if it depends on the image."""
        return self.processor_size

    @property
    def processor_size(self) -> int | None:
        """Height and width in pixels to which the processor resizes images; None if they are not one number."""
        size = dict(self.processor.image_processor.size)
        return int(size["height"]) if size.get("height") and size["height"] == size.get("width") else None

    # captions

    @property
    def first_token_id(self) -> int:
        """Id of the token that starts every caption in the decoder."""
        raise NotImplementedError

    @property
    def end_token_id(self) -> int:
        """Id of the token that ends every caption."""
        return end_token_id(self.tokenizer)

    @property
    def pad_token_id(self) -> int:
        """Id that fills batches of captions."""
        return pad_token_id(self.tokenizer)

    @property
    def positions(self) -> int | None:
        """Number of positions of the decoder, for prompt and caption; None if it has no limit."""
        return getattr(self.base.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def prompt_length(self, prompt: str) -> int:
        """Return the number of tokens of `prompt` that come before every caption."""
        return prompt_length(self.tokenizer, prompt)

    def check_prompt(self, prompt: str, max_new_tokens: int) -> int:
        """Return the number of tokens of a prompt. Raises RecipeError if there is no room for it and a caption."""
        tokens = self.prompt_length(prompt)
        if self.positions is not None and tokens + max_new_tokens > (room := self.positions - 1):
            raise RecipeError(
                f"prompt has {tokens:,} tokens and max_new_tokens is {max_new_tokens:,}; the text decoder has room "
                f"for {room:,} together"
            )
        return tokens

    def collator(self, max_caption_tokens: int, prompt: str = "") -> Collator:
        """Return the function that makes batches for `loss` and `generate`."""
        return CaptionCollator(self.tokenizer, self.first_token_id, max_caption_tokens, prompt)

    def tokenized(self, captions: Sequence[str], prompt: str = "") -> TokenizedCaptions:
        """Return the tokens of captions as `collator` counts them, without truncation."""
        start = 1 + self.prompt_length(prompt)
        return TokenizedCaptions.tokenize(self.tokenizer, captions, prompt, start)

    def make_generation_config(self, **settings: Any) -> GenerationConfig:
        """Return the `generation_config` to pass to every call of `generate`, for the keys of a recipe and others."""
        beams = {"length_penalty": settings.pop("length_penalty", 1.0)}
        beams["early_stopping"] = settings.pop("early_stopping", True)
        if not settings.get("min_new_tokens"):
            settings.pop("min_new_tokens", None)
        if settings.get("rerank", "none") == "none":
            settings = {name: value for name, value in settings.items() if not name.startswith("rerank")}
        return GenerationConfig(
            bos_token_id=self.first_token_id,
            decoder_start_token_id=self.first_token_id,
            eos_token_id=self.end_token_id,
            pad_token_id=self.pad_token_id,
            do_sample=False,
            **{"no_repeat_ngram_size": 0, **settings},
            **(beams if settings["num_beams"] > 1 else {}),
        )

    # images

    def pixels(self) -> Callable[[Image.Image], torch.Tensor]:
        """Return the function that makes the model's input (3, H, W) from an RGB image. It does not hold the model."""
        return partial(processed, image_processor=self.processor.image_processor)

    def feature_obstacle(self) -> str:
        """Return why features cannot stand for images; "" if they can."""
        return ""

    def feature_modules(self) -> list[nn.Module]:
        """Return the modules that compute features, other than the vision encoder."""
        return []

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features (B, N, width) of images, as `loss` and `generate` take them."""
        raise NotImplementedError

    def feature_shape(self) -> tuple[int, int]:
        """Return the shape of the features of one image."""
        with torch.inference_mode():
            pixels = self.pixels()(Image.new("RGB", (8, 8)))[None].to(self.base.device)
            return tuple(self.encode(pixels).shape[1:])  # type: ignore[return-value]

    def vectors(self, batch: Batch, features: torch.Tensor | None) -> torch.Tensor:
        """Return one vector (B, width) for each image: the mean of its features."""
        assert features is not None
        return features.mean(1)

    # loss and generation

    def inputs(self, batch: Batch, features: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments of the model for the logits of a batch, from features if there are any."""
        raise NotImplementedError

    def loss(
        self, model: nn.Module, batch: Batch, features: torch.Tensor | None, labels: Any, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the summed cross-entropy of the next tokens, divided by `labels` (float32 scalar).

        Args:
            model: The base, with or without an adapter or wrapper.
            batch: From `collator`.
            features: From `encode`; None: `batch` has images.
            labels: The divisor; None: the number of labels in `batch`.
            smoothing: Label smoothing, as in `torch.nn.functional.cross_entropy`.
        """
        logits = model(**self.inputs(batch, features)).logits[:, :-1]  # of all positions, or of the last ones
        targets = batch["labels"][:, -logits.shape[1] :]
        has_label = targets != IGNORED
        loss = F.cross_entropy(
            logits[has_label].float(), targets[has_label], reduction="sum", label_smoothing=smoothing
        )
        return loss / (has_label.sum().clamp(min=1) if labels is None else labels)

    def generate(
        self, batch: Batch, features: torch.Tensor | None, generation_config: GenerationConfig, prompt: str = "",
        sampler: TokenSampler | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Return the ids (B, T) int64 of captions, without what comes before them: caption, end token, padding.

        A `sampler` draws the tokens; the config must then be that of greedy search.
        """
        raise NotImplementedError


def accepts(module: nn.Module | type[nn.Module], name: str) -> bool:
    """Return whether the `forward` of a module has a parameter `name`."""
    return name in inspect.signature(module.forward).parameters
