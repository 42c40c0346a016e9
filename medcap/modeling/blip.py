"""The base: a BLIP captioner from the Hub or a folder, at the size and precision of the recipe (Li et al., 2022)."""

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

from medcap.data.detokenize import detokenize
from medcap.logs import named_errors
from medcap.modeling.blip_fast import use_fast_modules
from medcap.recipe import RecipeError

logger = logging.getLogger(__name__)

# bitsandbytes leaves these in full precision: the tower is small and sensitive, the head is tied to the embeddings
# (whole names from the start: a bare "cls" matches nothing, and the head would be quantized)
NOT_QUANTIZED = ["vision_model", "text_decoder.cls"]


def weights_sha256(model: BlipForConditionalGeneration) -> str:
    """SHA-256, hexadecimal, of all weights but an adapter's; two thirds of a second for BLIP-base."""
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
) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Load model and processor; with `image_size` pixels a side, a multiple of the patch, both are set to it.

    The weights come as `dtype`, with the modules of `medcap.modeling.blip_fast`, which also take images as uint8.
    Raises ValueError, one line, for something that is not a BLIP captioner, RecipeError for a size that its patches do
    not divide, OSError when it is not found.
    """
    check_model_name(name_or_path)
    if Path(name_or_path).is_dir():  # an adapter remembers the name: "runs/base" would be a name on the Hub elsewhere
        name_or_path = str(Path(name_or_path).resolve())
    with model_errors(name_or_path):
        try:
            config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        except OSError as error:
            raise OSError(f"no model {name_or_path!r}: no folder here, and not had from the Hub: {error}") from error
    kind = (config.architectures or [config.model_type])[0]
    if config.model_type != "blip" or kind not in ("blip", "BlipForConditionalGeneration"):
        raise ValueError(f"{name_or_path} is a {kind!r} model; medcap trains and runs 'blip' captioners")
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, dtype)
    disable_progress_bar()  # of copying weights into memory: downloads keep theirs
    with model_errors(name_or_path):
        model, info = BlipForConditionalGeneration.from_pretrained(name_or_path, output_loading_info=True, **options)
        if lacking := sorted(info["missing_keys"]):
            logger.warning(
                "%s lacks %d of its weights, %s first: they are random, and so is what it says",
                name_or_path, len(lacking), lacking[0],
            )  # fmt: skip
        for module in model.modules():
            if isinstance(module, Linear4bit):  # or the first evaluation on a CPU packs weights for inference alone
                module.support_avx512bf16_for_cpu = False
        processor = BlipProcessor.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
        if image_size is not None:
            resize_positions(model, image_size)
            processor.image_processor.size = {"height": image_size, "width": image_size}
        use_fast_modules(model, processor)
    return model, processor


def model_errors(name: str) -> AbstractContextManager[None]:
    """Name the model in whatever its files lead to when they are not what they should be: ValueError, one line."""
    return named_errors(name, RecipeError, torch.OutOfMemoryError)


def check_model_name(name: str) -> None:
    """Raise FileNotFoundError for what is neither a folder with a model or adapter nor a name for the Hub."""
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
    """Settings for "8bit" (LLM.int8) or "4bit" (NF4, QLoRA, computed in `dtype`); the tower and the head stay."""
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
    """Interpolate the vision tower's position embeddings once, for pictures of `image_size` pixels a side.

    Bicubic, `align_corners=False`: what `interpolate_pos_encoding=True` does at every call, so that an adapter trained
    on the result also fits the untouched base with that flag. Without either, BLIP takes the first rows of a grid
    made for another size: wrong positions and no error.
    """
    embeddings = model.vision_model.embeddings
    if image_size % embeddings.patch_size:
        raise RecipeError(
            f"image_size is {image_size}; it must be a multiple of the patch size, {embeddings.patch_size}"
        )
    if image_size == model.config.vision_config.image_size:
        return
    patches = (image_size // embeddings.patch_size) ** 2
    pictured = torch.empty(1, patches + 1, 1)  # only its length counts
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(
            pictured.expand(1, patches + 1, embeddings.embed_dim), image_size, image_size
        )
    embeddings.position_embedding = nn.Parameter(
        positions.clone(), requires_grad=embeddings.position_embedding.requires_grad
    )
    embeddings.image_size = model.config.vision_config.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = patches, patches + 1


def first_token_id(model: nn.Module) -> int:
    """The id that starts every caption, [DEC]: the model's, since the Hub's tokenizer does not have it."""
    return int(model.config.text_config.bos_token_id)  # type: ignore[union-attr, arg-type]


def make_generation_config(
    model: nn.Module,
    *,
    num_beams: int,
    max_new_tokens: int,
    no_repeat_ngram_size: int = 0,
    length_penalty: float = 1.0,
) -> GenerationConfig:
    """Settings to hand to every `generate(pixel_values=..., generation_config=...)`.

    BLIP generates with its text decoder's settings and never looks at its own `generation_config.json`, so what is
    saved beside an adapter has no effect unless it is passed.
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
    """What `rows` captions begin with, (rows, 1 + words) int64 on the model's device: [DEC], the words of `prompt`."""
    words = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return torch.tensor([[first_token_id(model), *words]] * rows, device=next(model.parameters()).device)


def decode_captions(
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor | Sequence[Sequence[int]],
    prompt: str = "",
    restore: bool = True,
) -> list[str]:
    """Text of generated `ids` (B, T), without [DEC], [SEP], pads and the given prompt.

    Written as captions are, or without `restore` as WordPiece leaves it: in lower case, with "x - ray" and "3. 5 cm".
    """
    given = 1 + len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    texts = [tokenizer.decode(row[given:], skip_special_tokens=True) for row in ids]
    return [detokenize(text) for text in texts] if restore else texts
