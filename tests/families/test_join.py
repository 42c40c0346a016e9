"""`medcap base` joins a vision encoder and a text model; nothing of either is lost, and what is random is trained."""

import contextlib
import io

import pytest
import tiny_bases
import torch
import yaml
from conftest import write_recipe
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from medcap.cli import main
from medcap.modeling.adapter import is_trained
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"height": 32, "width": 32}


def encoder(folder, name):
    vision = {**SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.1}
    bit = {"size": {"shortest_edge": 40}, "crop_size": SQUARE}
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    model, images = {
        "vit": lambda: (ViTModel(ViTConfig(**vision)), ViTImageProcessor(size=SQUARE)),
        "clip": lambda: (
            CLIPModel(CLIPConfig(vision_config=vision, text_config={**SMALL, "vocab_size": 99})),
            CLIPImageProcessor(**bit),
        ),
        "dinov2": lambda: (Dinov2Model(Dinov2Config(**{**vision, "hidden_size": 48})), BitImageProcessor(**bit)),
        "swin": lambda: (SwinModel(swin), ViTImageProcessor(size=SQUARE)),
    }[name]()
    tiny_bases.save(folder / name, model, images)
    return folder / name


def decoder(folder, name):
    (folder / name).mkdir(exist_ok=True)
    if name == "bert":
        tokenizer = tiny_bases.tiny_tokenizer(folder / name)
        model = BertModel(BertConfig(**SMALL, vocab_size=len(tokenizer), initializer_range=0.1))
    else:
        tokenizer = tiny_bases.byte_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>", pad=None)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        gpt2 = GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.1, **ids
        )
        llama = LlamaConfig(
            vocab_size=len(tokenizer), **SMALL, max_position_embeddings=128, initializer_range=0.1, **ids
        )
        model = GPT2LMHeadModel(gpt2) if name == "gpt2" else LlamaForCausalLM(llama)
    tiny_bases.save(folder / name, model, tokenizer)
    return folder / name


def run(*argv):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main([*map(str, argv)])
            status = 0
        except SystemExit as stop:
            return stop.code, out.getvalue(), err.getvalue()
    return status, out.getvalue(), err.getvalue()


PAIRS = {  # what is random, and the embeddings of a model without a head
    ("vit", "gpt2"): ["crossattention", "ln_cross_attn"],
    ("clip", "bert"): [
        "crossattention",
        "cls.predictions.transform.LayerNorm",
        "word_embeddings",
        "cls.predictions.transform.dense",
    ],
    ("dinov2", "gpt2"): ["crossattention", "ln_cross_attn", "enc_to_dec_proj"],
    ("swin", "gpt2"): ["crossattention", "ln_cross_attn", "enc_to_dec_proj"],
    ("vit", "llama"): ["multi_modal_projector"],
    ("dinov2", "llama"): ["multi_modal_projector"],
}


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def joined(request, tmp_path_factory):
    """Folder, encoder, decoder and names of a written base."""
    folder = tmp_path_factory.mktemp("join")
    torch.manual_seed(0)
    vision, text = encoder(folder, request.param[0]), decoder(folder, request.param[1])
    status, out, _ = run("base", "--encoder", vision, "--decoder", text, "--out", folder / "base")
    assert status == 0
    return folder / "base", vision, text, PAIRS[request.param], out


def test_weights_of_both_parts_are_kept(joined):
    folder, vision, text, _, _ = joined
    family = family_of(*load_base(str(folder)))
    own, kept = AutoModel.from_pretrained(vision), family.vision_encoder
    own = {name.removeprefix("vision_model."): weight for name, weight in own.state_dict().items()}
    check_equal(own, {name.removeprefix("vision_model."): weight for name, weight in kept.state_dict().items()})
    decoder = family.base.get_decoder()
    check_equal(
        AutoModel.from_pretrained(text).state_dict(), getattr(decoder, decoder.base_model_prefix, decoder).state_dict()
    )


def check_equal(own, kept):
    """All weights are kept, except a pooler's; embeddings may have more rows."""
    shared = [name for name in kept if name in own and "pooler" not in name]
    assert len(shared) >= sum(
        "pooler" not in name for name in own if not name.startswith(("text_", "logit", "visual_"))
    )
    for name in shared:
        assert torch.equal(kept[name][: len(own[name])] if own[name].ndim else kept[name], own[name]), name


def test_untrained_modules_are_named_and_trained_by_the_recipe(joined):
    folder, _, _, names, out = joined
    recipe = yaml.safe_load((folder / "lora.yaml").read_text())
    assert recipe["lora_modules_to_save"] == names
    assert ", ".join(names) in out
    model = load_base(str(folder))[0]
    options = {"modules_to_save": names}
    adapted = add_lora(model, targets=recipe["lora_target_modules"], r=2, alpha=2, dropout=0.0, options=options)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    for name in names:
        assert any(f"{name}.modules_to_save." in key for key in trained)
    assert any("lora_A" in key for key in trained)


def test_tokens_and_images_suit_both_parts(joined):
    folder, *_ = joined
    family = family_of(*load_base(str(folder)))
    tokenizer, model = family.tokenizer, family.base
    if tokenizer.cls_token_id is not None:
        assert model.config.decoder_start_token_id == tokenizer.cls_token_id
        assert model.generation_config.eos_token_id == tokenizer.sep_token_id
    else:
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    assert dict(family.processor.image_processor.size) == SQUARE
    assert not getattr(family.processor.image_processor, "do_center_crop", False)


def test_base_is_not_taken_for_a_trained_model(joined):
    """Its recipe has settings of training; a base is used with the defaults."""
    assert not is_trained(str(joined[0]))


def test_recipe_trains_the_base(joined, train_script, phantoms, tmp_path):
    folder = joined[0]
    recipe = yaml.safe_load((folder / "lora.yaml").read_text())
    changes = {
        "data_dir": str(phantoms), "output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "precision": "fp32",
        "max_caption_tokens": 40, "max_new_tokens": 40,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_script.main(["--config", str(write_recipe(tmp_path / "recipe.yaml", **{**recipe, **changes}))])
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ("gpt2", "gpt2", "has a GPT2Config; name a vision transformer"),
        ("vit", "vit", "has a ViTConfig; name a model that generates text"),
        ("swin", "llama", "name a ViT"),
    ],
)
def test_other_models_are_one_line_and_status_2(vision, text, message, tmp_path):
    parts = [(encoder if name in ("vit", "swin") else decoder)(tmp_path, name) for name in (vision, text)]
    status, _, err = run("base", "--encoder", parts[0], "--decoder", parts[1], "--out", tmp_path / "base")
    assert status == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "base").exists()
