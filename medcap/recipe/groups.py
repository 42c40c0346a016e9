"""The keys of a recipe that are medcap's own: data, model, adapter and generation, with defaults and ranges."""
# ruff: noqa: RUF009  `key` returns a new field at each call

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from medcap.recipe.ranges import POSITIVE, RANK, SEED, Range

DEFAULT_VIEWS = 4  # of augmented training images


def key(default: Any, text: str, allowed: Range | tuple[float, float] | None = None) -> Any:
    """Return a field with its default, its help text, and the range of its values (a tuple: ends included)."""
    return field(default=default, metadata={"help": text, "range": allowed})


@dataclass(frozen=True)
class DataArguments:
    """The data set, its layout and the selection of images."""

    data_dir: str | list[str] = key("", "folder, CSV file or Hub name of the data set, or several")
    data_weights: list[float] | None = key(None, "per data_dir: how often an epoch draws its training images (1)")
    data_format: Literal["auto", "rocov2", "imagefolder", "csv", "hub"] = key("auto", "layout of the data")
    image_column: str | None = key(None, "column of the images (file_name; Hub: image)")
    caption_column: str | None = key(None, "column of the captions (caption)")
    group_column: str | None = key(None, "patient or study: generated splits never divide a group")
    valid_fraction: float = key(0.1, "fraction for validation if there are no splits", (0, 1))
    test_fraction: float = key(0.1, "fraction for testing if there are no splits", (0, 1))
    split_seed: int = key(0, "seed of the generated splits", SEED)
    allow_outside: bool = key(False, "read image files outside the data set's folder, and links to them")
    license_filter: Literal["any", "commercial"] = key("any", "keep only images licensed for this use")
    dedupe: bool = key(False, "use only the first of near-duplicate images")
    exclude_leaks: bool = key(False, "drop training images and patients that are also in valid or test")
    train_fraction: float = key(1.0, "fraction of the training split to use", Range(0, 1, above=True))
    fraction_seed: int = key(0, "seed of train_fraction", SEED)
    max_train_samples: int | None = key(None, "maximum number of training images, by a hash of the id", (1, math.inf))
    max_eval_samples: int | None = key(None, "maximum number of validation images, likewise", (1, math.inf))
    max_broken: float = key(0.001, "stop if more than this fraction of images is unreadable", (0, 1))
    max_caption_tokens: int = key(96, "maximum caption length, special tokens included", (3, 512))
    augmentation: Literal["none", "light", "strong"] = key("none", "random changes of training images")
    augmentation_views: int | None = key(
        None,
        f"number of views of an image; 0: a new one every epoch, not cached (default: {DEFAULT_VIEWS})",
        Range(2, 64, also=0),
    )
    prompt: str = key("", "text before every caption, excluded from the loss")

    @property
    def views(self) -> int:
        """Number of views of a training image: 1 without augmentation; 0: a new one in every epoch."""
        if self.augmentation == "none":
            return 1
        return DEFAULT_VIEWS if self.augmentation_views is None else self.augmentation_views


@dataclass(frozen=True)
class ModelArguments:
    """The base model, its image size and precision, and the feature cache."""

    model_name_or_path: str = key("", "Hub name or folder of a captioner")
    model_revision: str | None = key(None, "branch, tag or commit of the base on the Hub")
    image_size: int | None = key(None, "image height and width in pixels (default: the base model's)", (16, 4096))
    quantization: Literal["none", "8bit", "4bit"] = key("none", "quantization of the frozen text decoder")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key("auto", "precision of the computation")
    model_code: Literal["fast", "plain"] = key("fast", "BLIP modules of medcap (faster) or transformers")
    feature_cache: str = key("auto", "cache of encoder features: auto, off, or a folder")
    feature_cache_gb: float | None = key(
        None,
        "maximum GB of the folder of the cache (default: no limit, but no cache above 80 % of free space)",
        (0.001, math.inf),
    )


@dataclass(frozen=True)
class LoraArguments:
    """The adapter (Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models"), or full fine-tuning."""

    adapter: Literal["lora", "none"] = key("lora", "what is trained; none: all weights but the vision encoder's")
    train_vision: bool = key(False, "adapter none: train the vision encoder too")
    lora_r: int = key(16, "rank", RANK)
    lora_alpha: float = key(32, "scaling: updates are multiplied by alpha / r", POSITIVE)
    lora_dropout: float = key(0.05, "dropout on the adapter's input, 0 to below 1", Range(0, 1, below=True))
    lora_target_modules: str = key("attention", "a role (docs/families.md) or a regex")
    lora_variant: Literal["lora", "rslora", "dora"] = key("lora", "variant of LoRA")
    lora_init: bool | str = key(True, "initialization: true, gaussian, orthogonal, olora, pissa, pissa_niter_N, mica")
    lora_rank_pattern: dict[str, Any] | None = key(None, "{regex for the ends of layer names: rank}")
    lora_alpha_pattern: dict[str, Any] | None = key(None, "likewise for alpha")
    lora_modules_to_save: list[str] | None = key(None, "modules to train completely, such as word_embeddings")
    lora_lr_ratio: float = key(1.0, "LoRA+: learning rate of B matrices divided by learning_rate", (1, 1000))


@dataclass(frozen=True)
class ScstArguments:
    """The loss, and the samples and rewards of self-critical sequence training (docs/scst.md)."""

    loss: Literal["cross_entropy", "scst"] = key("cross_entropy", "what is minimized")
    init_adapter: str | None = key(None, "folder of a trained adapter to start from")
    scst_samples: int = key(5, "captions sampled per image", (1, 64))
    scst_baseline: Literal["mean", "greedy"] = key(
        "mean", "subtracted reward: of the other samples, or of greedy search"
    )
    scst_reward: dict[str, Any] | None = key(
        None, "{cider, rouge_l, bleu_4 or facts_f1: weight}; default: cider alone"
    )
    scst_top_k: int = key(0, "sample among the most probable tokens; 0: all", Range(0, 1_000_000))
    scst_temperature: float = key(1.0, "divides the logits of samples", (0.01, 100))


@dataclass(frozen=True)
class GenerationArguments:
    """How captions are generated, named as in `transformers.GenerationConfig`."""

    num_beams: int = key(4, "number of beams; 1 is greedy search", (1, 64))
    max_new_tokens: int = key(64, "maximum number of generated tokens", (1, 511))
    no_repeat_ngram_size: int = key(0, "never repeat an n-gram of this size; 0: no limit", (0, 64))
    length_penalty: float = key(1.0, "beam search: above 0 favors long captions", (-100, 100))
    min_new_tokens: int = key(0, "minimum number of generated tokens, below max_new_tokens", (0, 510))
    rerank: Literal["none", "consensus"] = key("none", "choose among the beams by CIDEr to each other and to training")
    rerank_candidates: int | None = key(None, "number of beams to choose from (default: all)", (2, 64))
    rerank_neighbors: int = key(20, "number of similar training images", (1, 1000))
    rerank_neighbor_weight: float = key(0.5, "weight of their captions; the other beams have the rest", (0, 1))
    rerank_pool: int = key(2000, "number of training images, chosen at random, that are searched", (1, math.inf))
