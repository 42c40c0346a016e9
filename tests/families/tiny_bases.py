"""Tiny untrained bases of every family, saved as ordinary checkpoints with their processors."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import CACHE, WORDS, tiny_tokenizer
from no_video import NoVideoProcessor, install
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BitImageProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    Dinov2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GPT2Config,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from medcap.modeling.families import Family, family_of
from medcap.modeling.load import load_base

install()

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8, "initializer_range": 0.1}
SQUARE = {"height": 32, "width": 32}
CHAT = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_tokenizer(
    *special: str, bos: str = "<s>", eos: str = "</s>", pad: str | None = "<pad>"
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer like that of GPT-2, which knows WORDS and `special` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = [token for token in dict.fromkeys((pad, bos, eos, "<|turn|>", "<|end|>", *special)) if token]
    texts = [f"{word} {word}" for word in (*WORDS.split(), *string.ascii_letters)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=named, initial_alphabet=alphabet, show_progress=False),
    )
    extra = {"additional_special_tokens": [token for token in named if token not in (pad, bos, eos)]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, **extra)


def vit_gpt2(folder: Path) -> None:
    """Write ViT and GPT-2; one token is start, end and padding, as in nlpconnect/vit-gpt2-image-captioning."""
    tokenizer = byte_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>", pad=None)
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, is_decoder=True,
        add_cross_attention=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = tokenizer.eos_token_id
    save(folder, VisionEncoderDecoderModel(config), TrOCRProcessor(ViTImageProcessor(size=SQUARE), tokenizer))


def dinov2_bert(folder: Path) -> None:
    """Write DINOv2 and BERT with another width."""
    tokenizer = tiny_tokenizer(folder)
    vision = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=48, patch_size=8,
        initializer_range=0.1,
    )  # fmt: skip
    decoder = BertConfig(
        **SHAPE, vocab_size=len(tokenizer), max_position_embeddings=128, is_decoder=True, add_cross_attention=True,
        initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    config.decoder_start_token_id, config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    config.eos_token_id = tokenizer.sep_token_id
    images = BitImageProcessor(size=SQUARE, do_center_crop=False)
    save(folder, VisionEncoderDecoderModel(config), TrOCRProcessor(images, tokenizer))


def _blip2_parts(language: str, tokenizer: PreTrainedTokenizerFast) -> dict:
    opt = {
        "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.1,
        "dropout": 0.0, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    t5 = {
        "model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2,
        "num_heads": 2, "dropout_rate": 0.0, "decoder_start_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    qformer = {
        **SHAPE, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "initializer_range": 0.1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return {
        "vision_config": VISION, "qformer_config": qformer, "text_config": {"opt": opt, "t5": t5}[language],
        "num_query_tokens": 4, "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }  # fmt: skip


def _let_images_differ(model: PreTrainedModel) -> None:
    """Scale the weights through which images reach the language model; else its inputs are nearly the same for all."""
    with torch.no_grad():
        model.query_tokens.normal_()
        model.language_projection.weight *= 3
        for name, weight in model.qformer.named_parameters():
            if "crossattention" in name:
                weight *= 8


def blip2(folder: Path, language: str) -> None:
    """Write BLIP-2 with OPT or T5."""
    tokenizer = byte_tokenizer("<image>")
    model = Blip2ForConditionalGeneration(Blip2Config(**_blip2_parts(language, tokenizer)))
    _let_images_differ(model)
    save(folder, model, Blip2Processor(BlipImageProcessor(size=SQUARE), tokenizer, num_query_tokens=4))


def instructblip(folder: Path) -> None:
    """Write InstructBLIP with OPT."""
    tokenizer = byte_tokenizer("<image>")
    model = InstructBlipForConditionalGeneration(InstructBlipConfig(**_blip2_parts("opt", tokenizer)))
    _let_images_differ(model)
    images = BlipImageProcessor(size=SQUARE)
    save(folder, model, InstructBlipProcessor(images, tokenizer, byte_tokenizer("<image>"), num_query_tokens=4))


def _text(tokenizer: PreTrainedTokenizerFast, **more: object) -> dict:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        **SHAPE, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
        "max_position_embeddings": 512, **ids, **more,
    }  # fmt: skip


def llava(folder: Path) -> None:
    """Write LLaVA with CLIP and Llama."""
    tokenizer = byte_tokenizer("<image>")
    config = LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config={**_text(tokenizer), "model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessor(size=SQUARE, do_center_crop=False)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    save(folder, LlavaForConditionalGeneration(config), processor)


def paligemma(folder: Path) -> None:
    """Write PaliGemma, whose processor has no chat template."""
    tokenizer = byte_tokenizer("<image>", bos="<bos>", eos="<eos>")
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    images = SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32},
        text_config={**_text(processor.tokenizer), "model_type": "gemma"},
        image_token_index=tokenizer.image_token_id, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    save(folder, PaliGemmaForConditionalGeneration(config), processor)


def gemma3(folder: Path) -> None:
    """Write Gemma 3, which MedGemma is."""
    tokens = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft>"}
    tokenizer = byte_tokenizer(*tokens.values(), bos="<bos>", eos="<eos>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=tokens,
    )  # fmt: skip
    config = Gemma3Config(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**_text(tokenizer), "query_pre_attn_scalar": 16, "sliding_window": 64},
        mm_tokens_per_image=4, boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=4, chat_template=CHAT.replace("IMAGE", "<boi>")
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # zeros, which gives all images the same features
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()
    save(folder, model, processor)


def smolvlm(folder: Path) -> None:
    """Write SmolVLM, which splits images."""
    tokens = {"fake_image_token": "<fake>", "image_token": "<image>", "global_image_token": "<global-img>"}
    splits = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_tokenizer(*tokens.values(), *splits)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={**tokens, "end_of_utterance_token": "<|end|>"},
    )  # fmt: skip
    config = SmolVLMConfig(
        vision_config={**VISION, "model_type": "smolvlm_vision"},
        text_config={**_text(tokenizer), "model_type": "llama"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = CHAT.replace("IMAGE", "<image>")
    processor = SmolVLMProcessor(images, tokenizer, NoVideoProcessor(), image_seq_len=4, chat_template=template)
    save(folder, SmolVLMForConditionalGeneration(config), processor)


def qwen2_5_vl(folder: Path) -> None:
    """Write Qwen2.5-VL, whose images keep their shape."""
    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    marks = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = byte_tokenizer(*tokens.values(), *marks.values())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>",
        extra_special_tokens={**tokens, **marks},
    )  # fmt: skip
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in {**tokens, **marks}.items()}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32, "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }  # fmt: skip
    text = {
        **_text(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
    images = Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )

    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2_5_VLProcessor(images, tokenizer, NoVideoProcessor(), chat_template=template)
    save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def save(folder: Path, model: PreTrainedModel, processor: object) -> None:
    """Save a checkpoint as it would be on the Hub."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "vit-gpt2": vit_gpt2,
    "dinov2-bert": dinov2_bert,
    "blip2-opt": lambda folder: blip2(folder, "opt"),
    "blip2-t5": lambda folder: blip2(folder, "t5"),
    "instructblip": instructblip,
    "llava": llava,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl,
}


@functools.cache
def base(name: str) -> Path:
    """Write the base `name` once per session and return its folder; read-only."""
    folder = Path(CACHE.name) / "bases" / name
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    MAKERS[name](folder)
    return folder


@functools.cache
def loaded(name: str) -> Family:
    """Return the loaded base `name`; read-only."""
    family = family_of(*load_base(str(base(name))))
    family.base.eval()
    return family
