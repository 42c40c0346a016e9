"""Join a pretrained vision encoder and a pretrained text model to a base that has yet to learn how they connect.

A text model with cross-attention becomes the decoder of a `VisionEncoderDecoderModel`; one without, such as a chat
model, the language model of a `LlavaForConditionalGeneration` (Liu et al. 2023, Visual Instruction Tuning).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
)

from medcap.data.captions import end_token_id, pad_token_id
from medcap.hub import local_model
from medcap.io import new_folder, write_text
from medcap.modeling.families.encoder_decoder import set_image_size
from medcap.modeling.families.family import accepts
from medcap.modeling.load import check_model_name, model_errors
from medcap.recipe import RecipeError

RECIPE_FILE = "lora.yaml"  # recipe.yaml is that of a model which medcap has trained
RECIPE = """\
# LoRA on {name}, with the modules whose weights are random.
# train     accelerate launch scripts/train.py --config {folder}/lora.yaml --data_dir DATA
# evaluate  medcap evaluate --model runs/{name}/adapter --data DATA --split test --out eval-{name}
data_dir: data
model_name_or_path: {base}
output_dir: "runs/{name}"

lora_modules_to_save: [{untrained}]
lora_target_modules: text       # all linear layers of the text model: it has never seen images
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05

num_train_epochs: 10
per_device_train_batch_size: 16
learning_rate: 5.0e-4
lr_scheduler_type: cosine
warmup_steps: 0.05              # fraction of all steps
weight_decay: 0.01
max_grad_norm: 1.0
precision: auto
seed: 0

max_caption_tokens: 96
max_new_tokens: 96
num_beams: 3
no_repeat_ngram_size: 0
metric_for_best_model: cider
"""
IMAGE_TOKEN = "<image>"
# before the chat template of a text model, whose messages are strings
FLATTEN = (
    "{% set ns = namespace(messages=[]) %}{% for message in messages %}{% set text %}{% for part in message.content %}"
    "{{ '<image>\\n' if part.type == 'image' else part.text }}{% endfor %}{% endset %}"
    "{% set ns.messages = ns.messages + [{'role': message.role, 'content': text}] %}{% endfor %}"
    "{% set messages = ns.messages %}"
)
# for a text model without a chat template
TURNS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{{ eos_token if message.role == 'assistant' }}{{ '\\n' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


class Joined(NamedTuple):
    """A base in memory.

    Attributes:
        model: The base.
        processor: Its processor, which does not crop images.
        untrained: Names of modules with random weights, or their ends, for the recipe key `lora_modules_to_save`.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    untrained: list[str]


def write_base(encoder: str, decoder: str, out: Path, image_size: int | None = None) -> Joined:
    """Join `encoder` and `decoder`, write the base to the new folder `out`, and return it.

    Args:
        encoder: Hub name or folder of a vision encoder, or of a model with one, such as CLIP.
        decoder: Hub name or folder of a text model.
        out: Folder; it does not exist or is empty.
        image_size: Height and width of images in pixels; None: those of the encoder's image processor.

    Raises:
        ValueError: One of them is no such model.
        OSError: One of them was not found, or `out` is not empty.
    """
    with new_folder(out) as part:
        joined = join(encoder, decoder, image_size)
        joined.model.save_pretrained(part)
        joined.processor.save_pretrained(part)
        write_text(
            part / RECIPE_FILE,
            RECIPE.format(base=json.dumps(str(out)), folder=out, name=out.name, untrained=", ".join(joined.untrained)),
        )
    return joined


def join(encoder: str, decoder: str, image_size: int | None = None) -> Joined:
    """Return the base of `encoder` and `decoder`; see `write_base`."""
    vision, image_processor = _load_encoder(encoder)
    size = dict(image_processor.crop_size if _is_cropped(image_processor) else image_processor.size)
    set_image_size(image_processor, image_size or size.get("height") or size["shortest_edge"])
    folder = local_model(check_model_name(decoder), None)
    with model_errors(decoder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        if model_class is None:
            raise RecipeError(f"--decoder {decoder} has a {type(config).__name__}; name a model that generates text")
        has_cross_attention = accepts(model_class, "encoder_hidden_states")
        if has_cross_attention:
            config.update({"is_decoder": True, "add_cross_attention": True})
        text, info = model_class.from_pretrained(folder, config=config, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end_token_id(tokenizer))
    if has_cross_attention:
        return _encoder_decoder(vision, text, image_processor, tokenizer, info["missing_keys"])
    return _llava(vision, text, image_processor, tokenizer)


def _load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """Load a vision encoder and its image processor."""
    folder = local_model(check_model_name(name), None)
    with model_errors(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        model_class = MODEL_MAPPING.get(type(config), None)
        if model_class is None or model_class.main_input_name != "pixel_values" or not hasattr(config, "hidden_size"):
            raise RecipeError(f"--encoder {name} has a {type(config).__name__}; name a vision transformer")
        model = model_class.from_pretrained(folder, config=config)
        return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def _is_cropped(image_processor: Any) -> bool:
    return getattr(image_processor, "do_center_crop", False)


def _encoder_decoder(
    vision: PreTrainedModel,
    text: PreTrainedModel,
    images: Any,
    tokenizer: PreTrainedTokenizerBase,
    missing: Iterable[str],
) -> Joined:
    """Return a `VisionEncoderDecoderModel`; captions start at [CLS], or at the tokenizer's first token."""
    model = VisionEncoderDecoderModel(encoder=vision, decoder=text)
    start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    end = end_token_id(tokenizer)
    _set_tokens(model, end if start is None else start, end, pad_token_id(tokenizer))
    untrained = _untrained(text, missing)
    if hasattr(model, "enc_to_dec_proj"):
        untrained.append("enc_to_dec_proj")
    return Joined(model, TrOCRProcessor(images, tokenizer), untrained)


def _set_tokens(model: PreTrainedModel, start: int, end: int, pad: int) -> None:
    ids = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    model.config.update(ids)
    model.generation_config = GenerationConfig(bos_token_id=start, **ids)


def _untrained(text: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Return the ends of the names of the modules whose weights were not in the checkpoint.

    A checkpoint without a head never predicted words: then the embeddings, which the head shares, are among them.
    """
    embeddings = text.get_input_embeddings()
    found: dict[str, None] = {}
    for key in sorted(missing):
        name = key.rpartition(".")[0]
        module = text.get_submodule(name)
        if [*module.children()] or getattr(module, "weight", None) is embeddings.weight:
            continue
        parts = name.split(".")
        blocks = [number for number, part in enumerate(parts) if part.isdigit()]
        found[parts[blocks[-1] + 1] if blocks else name] = None
        if not blocks:
            found |= {other.rpartition(".")[2]: None for other, m in text.named_modules() if m is embeddings}
    return [*found]


def _llava(vision: PreTrainedModel, text: PreTrainedModel, images: Any, tokenizer: PreTrainedTokenizerBase) -> Joined:
    """Return a `LlavaForConditionalGeneration`, whose language model reads the states of all patches."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    text.resize_token_embeddings(len(tokenizer))
    patch, side = vision.config.patch_size, images.size["height"]
    states = vision(torch.zeros(1, 3, side, side)).last_hidden_state.shape[1]
    if (others := states - (side // patch) ** 2) < 0:
        raise RecipeError(f"--encoder has {states} states for {side // patch}x{side // patch} patches; name a ViT")
    strategy = "default" if others else "full"  # without or with the first state, [CLS]
    config = LlavaConfig(
        vision_config=vision.config, text_config=text.config, vision_feature_select_strategy=strategy,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), image_seq_length=states - bool(others),
        tie_word_embeddings=text.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(text.base_model.state_dict())
    model.lm_head.load_state_dict(text.get_output_embeddings().state_dict())
    _set_tokens(model, end_token_id(tokenizer), end_token_id(tokenizer), pad_token_id(tokenizer))
    processor = LlavaProcessor(
        images, tokenizer, patch_size=patch, vision_feature_select_strategy=strategy, image_token=IMAGE_TOKEN,
        num_additional_image_tokens=others, chat_template=FLATTEN + (tokenizer.chat_template or TURNS),
    )  # fmt: skip
    return Joined(model, processor, ["multi_modal_projector"])
