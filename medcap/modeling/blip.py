"""Loading BLIP captioners (Li et al., 2022) at an image size and precision, and their generation settings."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from medcap.data import detokenize as detokenizer
from medcap.data.captions import prompt_length
from medcap.hub import local_model
from medcap.logs import named_errors
from medcap.modeling.blip_fast import prepare_blip
from medcap.recipe import RecipeError

logger = logging.getLogger(__name__)

# The vision encoder is small and sensitive; the head is tied to the embeddings. A bare "cls" would match nothing.
NOT_QUANTIZED = ["vision_model", "text_decoder.cls"]


def weights_sha256(model: BlipForConditionalGeneration) -> str:
    """Return the SHA-256 (hexadecimal) of all weights except an adapter's; takes 0.7 s for BLIP-base."""
    digest = hashlib.sha256()
    base = {n.replace(".base_layer", ""): weight for n, weight in model.state_dict().items() if "lora_" not in n}
    update_digest(digest, base)
    return digest.hexdigest()


def update_digest(digest: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Add names and values of `weights` to a hash."""
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def load_blip(
    name_or_path: str,
    *,
    image_size: int | None = None,
    quantization: str = "none",
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    model_code: str = "fast",
) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Load a BLIP captioner and its processor.

    Args:
        name_or_path: Hub name or folder.
        image_size: Height and width in pixels, a multiple of the patch size; None: the model's.
        quantization: "none", "8bit" or "4bit".
        revision: Branch, tag or commit on the Hub.
        dtype: Of the weights.
        model_code: "fast" for the modules of `medcap.modeling.blip_fast`, "plain" for those of transformers.

    Raises:
        ValueError: It is not a BLIP captioner, or `image_size` is not a multiple of the patch size.
        OSError: It was not found.
    """
    check_model_name(name_or_path)
    if Path(name_or_path).is_dir():  # a relative path in an adapter, such as "runs/base", could be a Hub name
        name_or_path = str(Path(name_or_path).resolve())
    with model_errors(name_or_path):
        folder = local_model(name_or_path, revision)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = (config.architectures or [config.model_type])[0]
    if config.model_type != "blip" or kind not in ("blip", "BlipForConditionalGeneration"):
        raise ValueError(f"{name_or_path} is a {kind!r} model; medcap trains and runs 'blip' captioners")
    options: dict[str, Any] = {"dtype": dtype}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, dtype)
    disable_progress_bar()  # of loading weights; downloads still have one
    with model_errors(name_or_path):
        model, info = BlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **options)
        model.name_or_path = model.config.name_or_path = name_or_path  # is recorded by an adapter
        if lacking := sorted(info["missing_keys"]):
            logger.warning(
                "%s lacks %d weights (first: %s); they are initialized at random, and captions will be meaningless",
                name_or_path, len(lacking), lacking[0],
            )  # fmt: skip
        for module in model.modules():
            if isinstance(module, Linear4bit):  # else evaluation on a CPU repacks weights for inference only
                module.support_avx512bf16_for_cpu = False
        processor = BlipProcessor.from_pretrained(folder, trust_remote_code=False)
        if image_size is not None:
            resize_positions(model, image_size)
            processor.image_processor.size = {"height": image_size, "width": image_size}
        prepare_blip(model, processor, model_code)
    return model, processor


def model_errors(name: str) -> AbstractContextManager[None]:
    """Turn errors from unexpected files of a model into a one-line ValueError that names it."""
    return named_errors(name, RecipeError, torch.OutOfMemoryError)


def check_model_name(name: str) -> str:
    """Return `name`; raise FileNotFoundError unless it is a folder with a model or adapter, or a valid Hub name."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            advice = f"; did you mean {path / 'adapter'}?" if (path / "adapter").is_dir() else ""
            raise FileNotFoundError(f"{name} holds no model: no config.json or adapter_config.json{advice}")
        return name
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)
    if not is_hub_name or (path.parent != Path() and path.parent.is_dir()):
        raise FileNotFoundError(f"no model at {name!r}: not a folder, and not a Hub name (NAMESPACE/NAME)")
    return name


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Make the settings of "8bit" (LLM.int8) or "4bit" (QLoRA's NF4, computed in `dtype`)."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )


def resize_positions(model: BlipForConditionalGeneration, image_size: int) -> None:
    """Interpolate the vision encoder's position embeddings for images of `image_size` x `image_size` pixels.

    The result equals `interpolate_pos_encoding=True` at every call, so an adapter also fits the original base with
    that flag. With neither, BLIP silently uses the first rows of the larger grid, which are wrong positions.
    """
    embeddings = model.vision_model.embeddings
    patch_size, old = embeddings.patch_size, embeddings.position_embedding
    if image_size % patch_size:
        raise RecipeError(f"image_size is {image_size}; it must be a multiple of the patch size, {patch_size}")
    if image_size == model.config.vision_config.image_size:
        return
    patches = (image_size // patch_size) ** 2
    states = torch.empty(1, patches + 1, embeddings.embed_dim)  # only its shape is used
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(states, image_size, image_size).clone()
    embeddings.position_embedding = nn.Parameter(positions, requires_grad=old.requires_grad)
    embeddings.image_size = model.config.vision_config.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = patches, patches + 1


def first_token_id(model: nn.Module) -> int:
    """Return the id of [DEC], which starts every caption; BLIP's tokenizer does not have it."""
    return int(model.config.text_config.bos_token_id)  # type: ignore[union-attr, arg-type]


def make_generation_config(
    model: nn.Module,
    *,
    num_beams: int,
    max_new_tokens: int,
    no_repeat_ngram_size: int = 0,
    length_penalty: float = 1.0,
    **more: Any,
) -> GenerationConfig:
    """Make the `generation_config` to pass to every call of `generate`; `more` are other settings of it.

    BLIP uses its text decoder's settings and ignores a `generation_config.json` that is not passed.
    """
    text: Any = model.config.text_config  # type: ignore[union-attr]
    beams = {"length_penalty": length_penalty, "early_stopping": more.pop("early_stopping", True)}
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.sep_token_id,
        pad_token_id=text.pad_token_id,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        do_sample=False,
        **(beams if num_beams > 1 else {}),
        **more,
    )


def prompt_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, rows: int) -> torch.Tensor:
    """Return `rows` times [DEC] and the tokens of `prompt`, (rows, 1 + tokens) int64 on the model's device."""
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return torch.tensor([[first_token_id(model), *tokens]] * rows, device=next(model.parameters()).device)


def check_prompt(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> int:
    """Return the number of tokens of a prompt. Raises RecipeError if the decoder has no room for it and a caption."""
    tokens = prompt_length(tokenizer, prompt)
    room = int(model.config.text_config.max_position_embeddings) - 1  # type: ignore[union-attr, arg-type]
    if tokens + max_new_tokens > room:
        raise RecipeError(
            f"prompt has {tokens:,} tokens and max_new_tokens is {max_new_tokens:,}; the text decoder has room for "
            f"{room:,} together"
        )
    return tokens


def decode_captions(
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor | Sequence[Sequence[int]],
    prompt: str = "",
    detokenize: bool = True,
) -> list[str]:
    """Return the text of generated `ids` (B, T), without the prompt and special tokens.

    Without `detokenize` it is in lower case, with "x - ray" and "3. 5 cm".
    """
    start = 1 + prompt_length(tokenizer, prompt)
    texts = [tokenizer.decode(row[start:], skip_special_tokens=True) for row in ids]
    return [detokenizer.detokenize(text) for text in texts] if detokenize else texts
