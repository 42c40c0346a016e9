"""Caption images with a base or an adapter, from a folder or the Hub."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from medcap.data.images import ImageTransform, with_pixel_values
from medcap.hub import local_model
from medcap.metrics.consensus import Consensus
from medcap.modeling.adapter import adapter_recipe, base_of, has_adapter, image_size_of, is_trained, saved_generation
from medcap.modeling.families import Family, family_of
from medcap.modeling.feature_cache import FeatureEncoder, open_cache
from medcap.modeling.feature_store import FeatureCache
from medcap.modeling.generation import are_cut, decode_captions, reranks, with_candidates
from medcap.modeling.load import check_model_name, load_base, model_errors
from medcap.modeling.lora import base_model
from medcap.modeling.precision import allow_tf32, precision_name, resolve_dtype
from medcap.processes import in_parts
from medcap.recipe import GenerationArguments, RecipeError, check_values, generation_fault

logger = logging.getLogger(__name__)

MAX_CAPTION_TOKENS = 3  # of batches without captions


@dataclass(frozen=True)
class Captioner:
    """A model with everything that generation needs.

    Attributes:
        base: Name of the base.
        adapter: Name of the adapter, if there is one.
        prompt: Text that captions continue; it is not part of them.
        detokenize: Whether captions are detokenized (`medcap.data.detokenize`).
        recipe: The recipe of the adapter or model; empty for a base and for adapters of other programs.
        cache: Feature cache.
        consensus: Chooses captions, see `medcap.neighbors.with_consensus`; needed for `rerank: consensus`.
        processes: Processes that share the rows of `caption_dataset`, and all call it; None for this one alone.
    """

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    generation_config: GenerationConfig
    base: str
    adapter: str | None = None
    prompt: str = ""
    detokenize: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    cache: FeatureCache | None = None
    consensus: Consensus | None = None
    processes: PartialState | None = None

    @property
    def writes(self) -> bool:
        """Whether this process writes and scores the captions: the main one of `processes` does."""
        return self.processes is None or self.processes.is_main_process

    @property
    def precision(self) -> str:
        """Precision of the weights: fp32, bf16 or fp16."""
        return precision_name(self.model.dtype)

    @property
    def image_size(self) -> int | None:
        """Height and width of the model's input in pixels; None if it depends on the image."""
        return self.family.image_size

    @cached_property
    def family(self) -> Family:
        """The base, with adapter layers, and its processor."""
        return family_of(base_model(self.model), self.processor)

    def autocast(self) -> torch.autocast:
        """Return the autocast context for the precision of the weights."""
        dtype = self.model.dtype
        return torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32)

    def with_cache(self, feature_cache: str, images: int, limit_gb: float | None = None) -> Captioner:
        """Return the captioner with a cache for `images` images; arguments as `open_cache`."""
        cache = open_cache(feature_cache, self.family, self.model.dtype, images, limit_gb)
        if cache is not None:
            logger.warning(cache.describe(images))
        return replace(self, cache=cache)

    @torch.inference_mode()
    def generate(self, batch: Mapping[str, torch.Tensor]) -> tuple[list[str], list[bool]]:
        """Return the captions of a batch of `CaptionCollator`, and for each whether it reached `max_new_tokens`.

        BLIP's `pixel_values` (B, 3, H, W) are uint8, or normalized floats. With `consensus` a caption is chosen among
        the beams. Raises RecipeError if the settings ask for that and there is none.
        """
        if self.consensus is None and reranks(self.generation_config):
            raise RecipeError("rerank: consensus needs training captions: see medcap.neighbors.with_consensus")
        casting = disable_input_dtype_casting(self.model, active=self.model.dtype != torch.float32)
        with model_errors(self.adapter or self.base), self.autocast(), casting:
            batch = {name: values.to(self.model.device) for name, values in batch.items()}
            features = None if self.family.feature_obstacle() else FeatureEncoder(self.family, self.cache)(batch)
            settings = with_candidates(self.generation_config) if self.consensus else self.generation_config
            ids = self.family.generate(batch, features, settings, self.prompt).cpu()
            vectors = self.family.vectors(batch, features) if self.consensus else None
        captions = decode_captions(self.processor.tokenizer, ids, self.detokenize)
        cut = are_cut(ids, self.generation_config)
        if self.consensus is not None and vectors is not None:
            chosen = self.consensus.choose(captions, F.normalize(vectors.float(), dim=1).cpu())
            captions, cut = [captions[row] for row in chosen], [cut[row] for row in chosen]
        return captions, cut

    def caption(self, images: Sequence[Any]) -> list[str]:
        """Return the captions of images, as for `load_image`."""
        pixels = ImageTransform(self.family.pixels())({"image": list(images)})["pixel_values"]
        collator = self.family.collator(MAX_CAPTION_TOKENS, self.prompt)
        return self.generate(collator([{"pixel_values": image} for image in pixels]))[0]


def load_captioner(
    model: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    image_size: int | None = None,
    generation: dict[str, Any] | None = None,
    device: str | None = None,
    precision: str | None = None,
    detokenize: bool = True,
    model_code: str | None = None,
) -> Captioner:
    """Load a captioner, or an adapter with its base, by folder or Hub name.

    An adapter, or a model that medcap trained, determines base, revision, image size, prompt, precision and generation
    settings, unless given; what its files do not say, because PEFT alone wrote them, is that of the base or the
    default. A base that was a folder is also searched for next to the adapter.

    Args:
        model: Folder or Hub name.
        revision: Branch, tag or commit of `model` on the Hub.
        base: Base of the adapter, to replace the recorded one.
        image_size: Height and width in pixels.
        generation: Keys of `GenerationArguments` to override.
        device: "cpu", "cuda", ...; None for CUDA if available.
        precision: As in a recipe; "fp32" for a base.
        detokenize: Whether captions are detokenized.
        model_code: As in a recipe; "fast" for a base.

    Raises:
        ValueError, OSError: It is a model of no known family, was not found, or its weights are damaged.
        RecipeError: An invalid setting.
    """
    if revision and Path(model).is_dir():
        raise RecipeError(f"--revision {revision} is of a repository on the Hub, but {model} is a folder")
    base_name, saved, recipe = model, {}, {}
    with model_errors(model):
        folder = str(local_model(check_model_name(model), revision))
        adapter = folder if has_adapter(folder) else None
        if adapter:
            base_name, revision = (base, None) if base else base_of(adapter)
        if adapter or is_trained(folder):
            image_size = image_size or image_size_of(folder)
            saved, recipe = saved_generation(folder), adapter_recipe(folder)
        given = {**saved, **(generation or {})}
        length = given.pop("max_length", None)
        settings = {**vars(GenerationArguments()), **given}
        check_values({**settings, "image_size": image_size})
        prompt = str(recipe.get("prompt") or "")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        precision = precision or recipe.get("precision", "fp32")
        allow_tf32(precision, device)
        loaded, processor = load_base(
            base_name,
            image_size=image_size,
            revision=revision,
            dtype=resolve_dtype(precision, device),
            model_code=model_code or recipe.get("model_code", "fast"),
        )
        family = family_of(loaded, processor)
        if length is not None and "max_new_tokens" not in given:  # it includes [DEC] and the prompt
            settings["max_new_tokens"] = length - 1 - family.prompt_length(prompt)
            check_values(settings)
        check_generation(settings)
        family.check_prompt(prompt, settings["max_new_tokens"])
        generation_config = family.make_generation_config(**settings)
        loaded = _with_adapter(loaded, adapter) if adapter else loaded
        loaded.eval().requires_grad_(False).to(device)
    return Captioner(loaded, processor, generation_config, base_name, adapter and model, prompt, detokenize, recipe)


def check_generation(settings: Mapping[str, Any]) -> None:
    """Raise RecipeError if settings of generation contradict each other."""
    own = {name: value for name, value in settings.items() if name in vars(GenerationArguments())}
    if fault := generation_fault(GenerationArguments(**own)):
        raise RecipeError(fault)


def _with_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    """Load the adapter; missing weights are an error, because PEFT initializes them at random."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(base, adapter)


def caption_dataset(
    captioner: Captioner, dataset: Dataset, *, batch_size: int | None = None
) -> tuple[list[str], list[bool]]:
    """Caption the columns `image_id` and `image` of a data set; also return whether each caption was cut.

    `batch_size` is `default_batch_size` by default, and is halved when a batch does not fit into memory. Each of the
    captioner's `processes` captions a part of the images, and all return all captions.
    """
    size = batch_size or default_batch_size(captioner)
    pairs = in_parts(captioner.processes, dataset, size, partial(_caption_rows, captioner))
    return [caption for caption, _ in pairs], [cut for _, cut in pairs]


def _caption_rows(captioner: Captioner, dataset: Dataset, size: int) -> list[tuple[str, bool]]:
    captions: list[tuple[str, bool]] = []
    with tqdm(total=len(dataset), desc="captions", unit="image") as bar:
        while len(captions) < len(dataset):
            try:
                rest = dataset.select(range(len(captions), len(dataset)))
                for batch in image_batches(captioner, rest, size):
                    captions += zip(*captioner.generate(batch), strict=True)
                    bar.update(len(captions) - bar.n)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                tqdm.write(f"{2 * size} images at a time do not fit into memory; continuing with {size}", sys.stderr)
                torch.cuda.empty_cache()
    if captioner.cache is not None:
        captioner.cache.flush()
    return captions


def image_batches(captioner: Captioner, rows: Dataset, batch_size: int) -> DataLoader:
    """Return batches for `Captioner.generate` and `FeatureEncoder` of the images of `rows`, in order."""
    device = captioner.model.device.type
    images = with_pixel_values(
        rows.select_columns(["image_id", "image"]),
        captioner.family.pixels(),
        None if captioner.cache is None else captioner.cache.get,
    )
    return DataLoader(
        images,
        batch_size=batch_size,
        num_workers=0 if device == "cpu" else min(8, os.cpu_count() or 1),
        pin_memory=device == "cuda",
        collate_fn=captioner.family.collator(MAX_CAPTION_TOKENS, captioner.prompt),
    )


def default_batch_size(captioner: Captioner) -> int:
    """Return 16 on a CPU, and on CUDA the number of images that fit into half of the free memory.

    Most of the memory is five float32 tensors of scores (beams, vocab), and keys and values.
    """
    if captioner.model.device.type != "cuda":
        return 16
    text, beams = captioner.model.config.get_text_config(decoder=True), captioner.generation_config.num_beams
    tokens = 1024 if captioner.family.feature_obstacle() else captioner.family.feature_shape()[0]
    states = 2 * text.num_hidden_layers * text.hidden_size * captioner.model.dtype.itemsize
    image = beams * (5 * 4 * text.vocab_size + states * captioner.generation_config.max_new_tokens) + states * tokens
    return max(1, min(256, torch.cuda.mem_get_info()[0] // 2 // image))
