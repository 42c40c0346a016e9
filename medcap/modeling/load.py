"""Load the base of any family at an image size and precision."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from medcap.extras import install_command
from medcap.hub import local_model
from medcap.logs import named_errors
from medcap.modeling.families import Family, family_class
from medcap.recipe import RecipeError

logger = logging.getLogger(__name__)


def weights_sha256(model: PreTrainedModel) -> str:
    """Return the SHA-256 (hexadecimal) of all weights except an adapter's; takes 0.7 s for BLIP-base."""
    digest = hashlib.sha256()
    base = {
        re.sub(r"\.(base_layer|original_module)\b", "", name): weight
        for name, weight in model.state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }
    update_digest(digest, base)
    return digest.hexdigest()


def update_digest(digest: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Add names and values of `weights` to a hash."""
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def load_base(
    name_or_path: str,
    *,
    image_size: int | None = None,
    quantization: str = "none",
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    model_code: str = "fast",
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a captioner and its processor.

    Args:
        name_or_path: Hub name or folder.
        image_size: Height and width in pixels, where the family allows it; None: the model's.
        quantization: "none", "8bit" or "4bit".
        revision: Branch, tag or commit on the Hub.
        dtype: Of the weights.
        model_code: "fast" for the modules of `medcap.modeling.blip_fast`, "plain" for those of transformers.

    Raises:
        ValueError: No family has such a model, it does not allow `image_size`, or its processor needs a package that
            is not installed.
        OSError: It was not found.
    """
    check_model_name(name_or_path)
    if Path(name_or_path).is_dir():  # a relative path in an adapter, such as "runs/base", could be a Hub name
        name_or_path = str(Path(name_or_path).resolve())
    with model_errors(name_or_path):
        folder = local_model(name_or_path, revision)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = family_class(name_or_path, config)
    options: dict[str, Any] = {"dtype": dtype}
    if quantization != "none":
        options["quantization_config"] = quantization_config(quantization, dtype, family.not_quantized)
    disable_progress_bar()  # of loading weights; downloads still have one
    with model_errors(name_or_path):
        model, info = family.model_class.from_pretrained(folder, output_loading_info=True, **options)
        model.name_or_path = model.config.name_or_path = name_or_path  # is recorded by an adapter
        if lacking := sorted(info["missing_keys"]):
            logger.warning(
                "%s lacks %d weights (first: %s); they are initialized at random, and captions will be meaningless",
                name_or_path, len(lacking), lacking[0],
            )  # fmt: skip
        for module in model.modules():
            if isinstance(module, Linear4bit):  # else evaluation on a CPU repacks weights for inference only
                module.support_avx512bf16_for_cpu = False
        processor = _load_processor(name_or_path, folder, family)
        family(model, processor).prepare(image_size, model_code)
    return model, processor


def _load_processor(name: str, folder: str | Path, family: type[Family]) -> ProcessorMixin:
    """Load the processor; raise RecipeError if it needs a package that is not installed."""
    try:
        return family.load_processor(folder)
    except (ImportError, ValueError) as error:
        for package in family.packages:
            if package in str(error) and find_spec(package) is None:
                advice = f"{package}, which is not installed: {install_command('vlm')}"
                raise RecipeError(f"the processor of {name} needs {advice}") from None
        raise


def model_errors(name: str) -> AbstractContextManager[None]:
    """Turn errors from unexpected files of a model into a one-line ValueError that names it."""
    return named_errors(name, RecipeError, torch.OutOfMemoryError)


def check_model_name(name: str) -> str:
    """Return `name`; raise FileNotFoundError unless it is a folder with a model or adapter, or a valid Hub name."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            known = [path / part for part in ("adapter", "model") if (path / part).is_dir()]
            advice = f"; did you mean {known[0]}?" if known else ""
            raise FileNotFoundError(f"{name} holds no model: no config.json or adapter_config.json{advice}")
        return name
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)
    if not is_hub_name or (path.parent != Path() and path.parent.is_dir()):
        raise FileNotFoundError(f"no model at {name!r}: not a folder, and not a Hub name (NAMESPACE/NAME)")
    return name


def quantization_config(quantization: str, dtype: torch.dtype, not_quantized: list[str]) -> BitsAndBytesConfig:
    """Make the settings of "8bit" (LLM.int8) or "4bit" (QLoRA's NF4, computed in `dtype`)."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=not_quantized)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=not_quantized,
    )
