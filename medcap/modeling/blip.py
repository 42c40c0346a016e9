"""Loading BLIP captioners (Li et al., 2022) at an image size and precision, and their generation settings."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
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

from medcap.data import detokenize as detokenization
from medcap.data.captions import prompt_length
from medcap.logs import named_errors
from medcap.modeling.blip_fast import prepare_blip
from medcap.recipe import RecipeError

logger = logging.getLogger(__name__)

# bitsandbytes keeps these in full precision: the vision encoder is small and sensitive, the head is tied to the
# embeddings (names must be complete: a bare "cls" matches nothing, and the head would be quantized)
NOT_QUANTIZED = ["vision_model", "text_decoder.cls"]


def weights_sha256(model: BlipForConditionalGeneration) -> str:
    """Return the SHA-256 (hexadecimal) of all weights except an adapter's; takes 0.7 s for BLIP-base."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        model_code: "fast": the modules of `medcap.modeling.blip_fast`; "plain": transformers' own.

    Returns:
        The model, which also takes uint8 images and features, and the processor.

    Raises:
        ValueError: It is not a BLIP captioner.
        RecipeError: `image_size` is not a multiple of the patch size.
        OSError: It was not found.
    """
    check_model_name(name_or_path)
    if Path(name_or_path).is_dir():  # saved in an adapter, "runs/base" could be a Hub name
        name_or_path = str(Path(name_or_path).resolve())
    with model_errors(name_or_path):
        try:
            config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        except OSError as error:
            raise OSError(f"no model {name_or_path!r}: no such folder, and not on the Hub: {error}") from error
    kind = (config.architectures or [config.model_type])[0]
    if config.model_type != "blip" or kind not in ("blip", "BlipForConditionalGeneration"):
        raise ValueError(f"{name_or_path} is a {kind!r} model; medcap trains and runs 'blip' captioners")
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, dtype)
    disable_progress_bar()  # of loading weights; downloads keep theirs
    with model_errors(name_or_path):
        model, info = BlipForConditionalGeneration.from_pretrained(name_or_path, output_loading_info=True, **options)
        if lacking := sorted(info["missing_keys"]):
            logger.warning(
                "%s lacks %d weights (first: %s); they are initialized at random, and captions will be meaningless",
                name_or_path, len(lacking), lacking[0],
            )  # fmt: skip
        for module in model.modules():
            if isinstance(module, Linear4bit):  # or the first evaluation on a CPU repacks weights for inference only
                module.support_avx512bf16_for_cpu = False
        processor = BlipProcessor.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        if image_size is not None:
            resize_positions(model, image_size)
            processor.image_processor.size = {"height": image_size, "width": image_size}
        prepare_blip(model, processor, model_code)
    return model, processor


def model_errors(name: str) -> AbstractContextManager[None]:
    """Turn errors from unexpected files of a model into a one-line ValueError that names it."""
    return named_errors(name, RecipeError, torch.OutOfMemoryError)


def check_model_name(name: str) -> None:
    """Raise FileNotFoundError unless `name` is a folder with a model or adapter, or a valid Hub name."""
    place = Path(name)
    if place.is_dir():
        if not any((place / file).is_file() for file in ("config.json", "adapter_config.json")):
            advice = f"; did you mean {place / 'adapter'}?" if (place / "adapter").is_dir() else ""
            raise FileNotFoundError(f"{name} holds no model, neither config.json nor adapter_config.json{advice}")
    elif (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        or name.startswith(".")
        or (place.parent != Path() and place.parent.is_dir())
    ):
        raise FileNotFoundError(f"no model at {name!r}: no such folder, and the Hub's names are NAMESPACE/NAME")


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings for "8bit" (LLM.int8) or "4bit" (NF4, QLoRA, computed in `dtype`); vision encoder and head stay."""
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
    """Interpolate the vision encoder's position embeddings for images of `image_size` pixels a side.

    Bicubic, `align_corners=False`, as `interpolate_pos_encoding=True` does at every call: an adapter trained on the
    result also fits the original base with that flag. Without either, BLIP silently uses the first rows of the larger
    grid, which are wrong positions.
    """
    embeddings = model.vision_model.embeddings
    if image_size % embeddings.patch_size:
        raise RecipeError(
            f"image_size is {image_size}; it must be a multiple of the patch size, {embeddings.patch_size}"
        )
    if image_size == model.config.vision_config.image_size:
        return
    patches = (image_size // embeddings.patch_size) ** 2
    states = torch.empty(1, patches + 1, 1)  # only its length is used
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(
            states.expand(1, patches + 1, embeddings.embed_dim), image_size, image_size
        )
    embeddings.position_embedding = nn.Parameter(
        positions.clone(), requires_grad=embeddings.position_embedding.requires_grad
    )
    embeddings.image_size = model.config.vision_config.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = patches, patches + 1


def first_token_id(model: nn.Module) -> int:
    """Return the id of [DEC], which starts every caption; the Hub's tokenizer does not have it."""
    return int(model.config.text_config.bos_token_id)  # type: ignore[union-attr, arg-type]


def make_generation_config(
    model: nn.Module,
    *,
    num_beams: int,
    max_new_tokens: int,
    no_repeat_ngram_size: int = 0,
    length_penalty: float = 1.0,
) -> GenerationConfig:
    """Make the `generation_config` to pass to every call of `generate`.

    BLIP uses its text decoder's settings and ignores its own `generation_config.json`: a file saved with an adapter
    has no effect unless it is passed.
    """
    text: Any = model.config.text_config  # type: ignore[union-attr]
    beams = {"length_penalty": length_penalty, "early_stopping": True} if num_beams > 1 else {}
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.sep_token_id,
        pad_token_id=text.pad_token_id,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        do_sample=False,
        **beams,
    )


def prompt_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, rows: int) -> torch.Tensor:
    """Return [DEC] and the tokens of `prompt`, `rows` times: (rows, 1 + tokens) int64 on the model's device."""
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return torch.tensor([[first_token_id(model), *tokens]] * rows, device=next(model.parameters()).device)


def decode_captions(
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor | Sequence[Sequence[int]],
    prompt: str = "",
    detokenize: bool = True,
) -> list[str]:
    """Return the text of generated `ids` (B, T), without special tokens, padding and the prompt.

    Without `detokenize` it is WordPiece's: lower case, with "x - ray" and "3. 5 cm".
    """
    start = 1 + prompt_length(tokenizer, prompt)
    texts = [tokenizer.decode(row[start:], skip_special_tokens=True) for row in ids]
    return [detokenization.detokenize(text) for text in texts] if detokenize else texts
