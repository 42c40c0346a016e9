"""Modules that are trained completely: the tied embeddings and head, saving, loading and merging.

pytest tests/modeling/test_trained_modules.py
"""

import pytest
import torch
from adapters import logits, randomized
from conftest import recipe_error
from peft import PeftModel
from transformers import BlipForConditionalGeneration

from medcap.modeling.load import load_base, weights_sha256
from medcap.modeling.lora import add_lora, base_model, trainable_names
from medcap.recipe import RecipeError, read_recipe
from medcap.training.setup import make_model

EMBEDDINGS, HEAD = "text_decoder.bert.embeddings.word_embeddings", "text_decoder.cls.predictions.decoder"
TIED = {EMBEDDINGS, HEAD}
SELF_ATTENTION = r"text_decoder\.bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)"


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    """The tiny base with biases of the head, as trained BLIP has them."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = load_base(str(tiny_base), model_code="plain")
    torch.manual_seed(0)
    torch.nn.init.normal_(model.text_decoder.cls.predictions.bias.data)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapt(base):
    """Return a function that adds an adapter with trained modules to the base."""

    def adapt(*names, targets="attention", **options):
        model, _ = load_base(base, **options)
        torch.manual_seed(0)
        return add_lora(model, targets=targets, r=4, alpha=8, dropout=0.0, options={"modules_to_save": list(names)})

    return adapt


def batch():
    generator = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([[192, 20, 30, 40], [192, 7, 8, 3]])
    labels = ids.masked_fill(ids == 192, -100)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, steps=3):
    """Train a few steps, as a run does; return the losses."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch(), label_smoothing=0.1).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def tied_weights(model):
    blip = base_model(model)
    return blip.get_input_embeddings().weight, blip.text_decoder.get_output_embeddings().weight


@pytest.mark.parametrize("names", [["word_embeddings"], ["decoder"], [HEAD, "embeddings.word_embeddings"]], ids=str)
def test_embeddings_and_head_are_trained_together(adapt, names):
    model = adapt(*names)
    assert {*model.peft_config["default"].modules_to_save} == TIED
    assert tied_weights(model)[0] is tied_weights(model)[1]
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name]
    assert trained == [f"base_model.model.{EMBEDDINGS}.modules_to_save.default.weight"]


def test_embeddings_learn_and_stay_tied(adapt):
    model = adapt("word_embeddings")
    before = tied_weights(model)[0].clone()
    losses = train(model)
    assert losses[-1] < losses[0]
    assert tied_weights(model)[0] is tied_weights(model)[1]
    changed = (tied_weights(model)[0] - before).abs().amax(1)
    assert changed.min() > 0  # through the head, every token has a gradient


@pytest.mark.parametrize("model_code", ["fast", "plain"])
def test_the_gradient_is_autograds(base, adapt, model_code):
    plain, _ = load_base(base, model_code="plain")
    plain.requires_grad_(False).get_input_embeddings().weight.requires_grad_(True)
    plain.train()(**batch(), label_smoothing=0.1).loss.backward()
    model = adapt("word_embeddings", model_code=model_code)  # the new adapter adds zero
    model.train()(**batch(), label_smoothing=0.1).loss.backward()
    expected = plain.get_input_embeddings().weight.grad
    torch.testing.assert_close(tied_weights(model)[0].grad, expected, atol=1e-5, rtol=1e-5)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "targets"), [("word_embeddings", "attention"), ("crossattention", SELF_ATTENTION)], ids=str
)
def test_plain_peft_loads_and_merges_it_on_the_unchanged_base(base, adapt, tmp_path, name, targets):
    model = adapt(name, targets=targets)
    unchanged = logits(model.eval())
    train(randomized(model))
    expected = logits(model)
    assert (expected - unchanged).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(BlipForConditionalGeneration.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    same, _ = load_base(base)
    assert torch.equal(logits(PeftModel.from_pretrained(same, tmp_path / "adapter").eval()), expected)


def test_the_bias_of_the_head_stays_tied(adapt):
    model = adapt("word_embeddings")
    train(model)
    head = base_model(model).text_decoder.cls.predictions
    assert torch.equal(head.decoder.bias, head.bias)


def test_the_weights_of_the_base_are_recognized(base, adapt):
    model = adapt("word_embeddings", "position_embeddings")
    train(model)
    assert weights_sha256(base_model(model)) == weights_sha256(load_base(base)[0])


def test_trained_modules_are_listed(adapt):
    lines = trainable_names(adapt("crossattention", targets=SELF_ATTENTION))
    (line,) = [line for line in lines if "crossattention" in line]
    assert line.startswith("text_decoder.bert.encoder.layer.*.crossattention: 2 layers, ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("names", "targets"),
    [(["word_embeddings", "position_embeddings", "LayerNorm"], "attention"), (["crossattention"], SELF_ATTENTION)],
    ids=str,
)
def test_a_base_in_half_precision_trains_them_in_float32(adapt, dtype, names, targets):
    model = adapt(*names, targets=targets, dtype=dtype)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    before = [weight.detach().clone() for weight in trained]
    with torch.autocast("cpu", dtype):
        train(model, steps=1)
    assert all(torch.isfinite(weight).all() for weight in trained)
    assert sum(not torch.equal(weight, old) for weight, old in zip(trained, before, strict=True)) > len(trained) / 2
    assert tied_weights(model)[0] is tied_weights(model)[1] or "word_embeddings" not in names


REFUSED = {
    "no module": ("embedding", r"has 'embedding', which is no module with weights; allowed are .*crossattention, "),
    "the end of a name": ("_embeddings", r"has '_embeddings', which is no module"),
    "a module without weights": ("dropout", r"has 'dropout', which is no module"),
    "empty": ("", r"has '', which is no module"),
    "a layer with an adapter": ("query", r"attention\.self\.query, which has an adapter"),
    "layers with adapters": ("crossattention", r"crossattention with .*, which is tied, listed too, or has"),
    "the tied embeddings and more": ("bert.embeddings", r"embeddings with .*word_embeddings, which is tied"),
    "the tied head and more": ("cls", r"text_decoder\.cls with .*decoder, which is tied"),
}


@pytest.mark.parametrize(("name", "message"), REFUSED.values(), ids=REFUSED)
def test_other_modules_are_refused(adapt, name, message):
    with pytest.raises(RecipeError, match=rf"^lora_modules_to_save .*{message}") as caught:
        adapt(name, targets=r".*attention\.self\.query")
    assert "\n" not in str(caught.value)


def test_a_role_leaves_out_trained_modules(adapt):
    adapted = adapt("crossattention", targets="attention")
    adapters = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert adapters
    assert not any("crossattention" in name for name in adapters)


def test_a_module_listed_with_its_parent_is_refused(adapt):
    with pytest.raises(RecipeError, match=r"crossattention with .*crossattention\.self\.query, which is tied, listed"):
        adapt("crossattention", "crossattention.self.query", targets=SELF_ATTENTION)


def test_a_quantized_module_is_refused(adapt):
    with pytest.raises(RecipeError, match=r"crossattention, whose weights are quantized; set quantization: none"):
        adapt("crossattention", targets=SELF_ATTENTION, quantization="4bit")


def test_the_embeddings_of_a_quantized_base_are_trained(adapt):
    losses = train(adapt("word_embeddings", quantization="4bit"))
    assert losses[-1] < losses[0]


def test_the_recipe_names_the_modules(tiny_base, recipe_file):
    path = recipe_file(model_name_or_path=str(tiny_base), lora_modules_to_save="word_embeddings")
    model = make_model(read_recipe(["--config", path]), torch.float32).model
    assert {*model.peft_config["default"].modules_to_save} == TIED


def test_an_empty_list_is_refused(recipe_file):
    path = recipe_file(lora_modules_to_save=[])
    assert recipe_error(["--config", path]) == f"{path}: lora_modules_to_save is empty; list names, or remove it"


def test_without_the_key_only_lora_is_trained(adapt):
    model = adapt()
    assert model.peft_config["default"].modules_to_save is None
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name] == []
