"""The fast modules compute the logits, losses, gradients and captions of transformers' BLIP."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, DynamicCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from medcap.modeling import loss
from medcap.modeling.blip_fast import BitDropout, attend
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.modeling.loss import head_loss

SIZE, PADDING = 32, 3


@pytest.fixture(scope="module")
def plain(tiny_base):
    """The tiny base as transformers loads it."""
    return BlipForConditionalGeneration.from_pretrained(tiny_base).eval()


def batch_of(model, rows=3, length=9):
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.text_config.vocab_size, (rows, length), generator=random)
    mask = torch.ones_like(ids)
    mask[1, -PADDING:] = 0
    pixels = torch.randn(rows, 3, SIZE, SIZE, generator=random)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def labels_of(batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    return labels


def test_logits_equal_transformers(plain, loaded):
    batch = batch_of(plain)
    with torch.no_grad():
        logits, expected = loaded[0](**batch).logits, plain(**batch).logits
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


def test_loss_and_gradient_equal_transformers(plain, blip):
    batch = batch_of(plain)
    results = []
    for model in (plain, blip[0]):
        weight = model.text_decoder.bert.encoder.layer[0].crossattention.self.value.weight
        mean = model(**batch, labels=labels_of(batch)).loss
        results.append((mean.detach(), *torch.autograd.grad(mean, [weight])))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


def test_the_fast_loss_returns_no_logits(loaded):
    batch = batch_of(loaded[0])
    assert loaded[0](**batch, labels=labels_of(batch)).logits is None


@pytest.mark.parametrize("level", [0, 128, 255])
def test_uint8_images_are_normalized_once(loaded, level):
    model, processor = loaded
    images = torch.full((1, 3, SIZE, SIZE), level, dtype=torch.uint8)
    pixels = processor.image_processor(images=images[0].permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
    assert -1.8 < pixels.mean() < 2.2
    with torch.no_grad():
        torch.testing.assert_close(
            model.vision_model(images).last_hidden_state, model.vision_model(pixels).last_hidden_state, atol=1e-4,
            rtol=1e-5,
        )  # fmt: skip


def test_features_give_the_logits_of_their_images(loaded):
    batch = batch_of(loaded[0])
    with torch.no_grad():
        features = loaded[0].vision_model(batch["pixel_values"]).last_hidden_state
        assert torch.equal(
            loaded[0](**{**batch, "pixel_values": None}, features=features).logits, loaded[0](**batch).logits
        )


@pytest.mark.parametrize("model_code", ["fast", "plain"])
def test_model_generate_returns_the_captions_of_transformers(plain, tiny_base, model_code):
    model, _ = load_base(str(tiny_base), model_code=model_code)
    config = family_of(plain).make_generation_config(num_beams=3, max_new_tokens=8)
    arguments = {"pixel_values": batch_of(plain)["pixel_values"], "generation_config": config}
    assert torch.equal(model.eval().generate(**arguments), plain.generate(**arguments))


def test_plain_and_fast_code_have_the_same_loss_gradient_and_captions(tiny_base):
    results = []
    for model_code in ("fast", "plain"):
        model, processor = load_base(str(tiny_base), model_code=model_code)
        batch, family = batch_of(model.eval()), family_of(model, processor)
        features = model.vision_model(batch.pop("pixel_values")).last_hidden_state
        weight = model.text_decoder.bert.encoder.layer[0].crossattention.self.value.weight
        labels = {"labels": labels_of(batch), "num_items_in_batch": 7, "label_smoothing": 0.1}
        computed = model(**batch, features=features, **labels).loss
        gradient = torch.autograd.grad(computed, [weight])[0]
        captions = [
            family.generate({}, features, family.make_generation_config(num_beams=beams, max_new_tokens=8), "an image")
            for beams in (1, 3)
        ]
        results.append((computed.detach(), gradient, [ids.tolist() for ids in captions]))
    fast, plain_code = results
    torch.testing.assert_close(fast[:2], plain_code[:2], atol=1e-5, rtol=1e-4)
    assert fast[2] == plain_code[2]
    assert type(model.text_decoder) is BlipTextLMHeadModel


def test_the_loss_is_divided_by_the_given_number_of_labels(loaded):
    batch = batch_of(loaded[0])
    labels = labels_of(batch)
    with torch.no_grad():
        mean, summed = (loaded[0](**batch, labels=labels, num_items_in_batch=n).loss for n in (None, 1))
    assert summed.item() == pytest.approx(mean.item() * labels[:, 1:].ne(-100).sum().item(), rel=1e-6)


def test_unknown_keywords_are_errors(loaded):
    model, batch = loaded[0], batch_of(loaded[0])
    states = torch.zeros(1, 2, model.config.text_config.hidden_size)
    layer = model.text_decoder.bert.encoder.layer[0]
    vision = model.vision_model.encoder.layers[0].self_attn
    for call in (
        lambda: model(**batch, surprise=1),
        lambda: model.vision_model(batch["pixel_values"], surprise=1),
        lambda: model.text_decoder(batch["input_ids"], labels=labels_of(batch), surprise=1),
        lambda: layer.attention.self(states, surprise=1),
        lambda: vision(states, surprise=1),
    ):
        with pytest.raises(TypeError, match="surprise|unexpected"):
            call()


def test_attention_uses_the_cache_under_both_names(loaded):
    """transformers 5.24 renamed `past_key_values` to `cache`."""
    attention = loaded[0].text_decoder.bert.encoder.layer[0].attention.self
    states = torch.randn(1, 3, loaded[0].config.text_config.hidden_size)
    with torch.no_grad():
        expected = attention(states)[0][:, -1:]
        for name in ("past_key_values", "cache"):
            past = DynamicCache()
            attention(states[:, :2], **{name: past})
            torch.testing.assert_close(attention(states[:, 2:], **{name: past})[0], expected, atol=1e-5, rtol=1e-4)


def test_logits_at_another_size_equal_interpolate_pos_encoding(plain, tiny_base):
    resized, _ = load_base(str(tiny_base), image_size=48)
    batch = {**batch_of(plain), "pixel_values": torch.randn(3, 3, 48, 48)}
    with torch.no_grad():
        expected = plain(**batch, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(resized.eval()(**batch).logits, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [4, 1000])
@pytest.mark.parametrize("trained", [(), ("weight",), ("weight", "bias")], ids=["frozen", "weight", "head"])
def test_head_loss_equals_torchs_cross_entropy(monkeypatch, smoothing, rows, trained):
    monkeypatch.setattr(loss, "ROWS", rows)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50)
    for name, weight in head.named_parameters():
        weight.requires_grad_(name in trained)
    labels, hidden = torch.randint(50, (11,)), torch.randn(11, 16)
    results = []
    for cross_entropy in (head_loss, torch_loss):
        leaf = hidden.clone().requires_grad_()
        summed = cross_entropy(leaf, head, labels, smoothing)
        head.zero_grad()
        (3 * summed).backward()
        results.append((summed.detach(), leaf.grad, *(getattr(head, name).grad for name in trained)))
        assert [name for name, weight in head.named_parameters() if weight.grad is not None] == [*trained]
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_without_gradients_the_loss_of_a_trainable_head_computes_none(monkeypatch):
    head, hidden, needed = torch.nn.Linear(16, 50), torch.randn(11, 16), []
    forward = loss._HeadLoss.forward
    monkeypatch.setattr(
        loss._HeadLoss, "forward", lambda ctx, *inputs: (needed.append(ctx.needs_input_grad), forward(ctx, *inputs))[1]
    )
    with torch.no_grad():
        head_loss(hidden, head, torch.zeros(11, dtype=torch.int64))
    assert needed == [(False,) * 5]


def torch_loss(hidden, head, labels, smoothing):
    return F.cross_entropy(head(hidden), labels, reduction="sum", label_smoothing=smoothing)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradient_in_bf16_are_those_in_fp32(masked):
    """On a CPU they have different formulas; they agree up to rounding."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 16) for length in (5, 7, 7)]
    mask = torch.zeros(2, 1, 5, 7).masked_fill(torch.rand(2, 1, 5, 7) < 0.3, -1e4) if masked else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (states.to(dtype).requires_grad_() for states in inputs)
        context = attend(query, key, value, mask, 0.0)
        results.append([context, *torch.autograd.grad(context.float().square().sum(), [query, key, value])])
    for exact, rounded in zip(*results, strict=True):
        assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


def test_softmax_of_bf16_scores_is_computed_in_fp32():
    """With scores 8, 0, 0, 0 the first weight is .999: in bf16 it is 1, and the gradient of all scores is 0."""
    query, key = torch.full((1, 1, 1, 1), 8.0), torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 4, 1)
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        scores = query.to(dtype).requires_grad_()
        first = attend(scores, key.to(dtype), key.to(dtype), None, 0.0)  # the weight of the first value, 1
        gradients.append(torch.autograd.grad(first, [scores])[0].item())
    weight = torch.tensor([8.0, 0, 0, 0]).softmax(0)[0].item()
    assert torch.tensor(weight).bfloat16() == 1
    assert gradients == pytest.approx([weight * (1 - weight)] * 2, rel=0.01)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_bit_dropout_drops_the_given_fraction(p):
    torch.manual_seed(0)
    ones = torch.ones(400, 1001, dtype=torch.bfloat16)  # not a multiple of the elements per random number
    dropped = BitDropout(p)(ones)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.003)
    assert kept.float().mean(1).std() < 0.03  # not in stripes
    assert kept.float().mean(0).std() < 0.03
    assert set(dropped[kept].tolist()) == {torch.tensor(1 / (1 - p)).bfloat16().item()}


def test_bit_dropout_depends_on_the_seed_only():
    dropout, ones = BitDropout(0.5), torch.ones(64, 64, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first, second = dropout(ones), dropout(ones)
    torch.manual_seed(3)
    assert torch.equal(dropout(ones), first)
    assert not torch.equal(first, second)


def test_bit_dropout_in_fp32_is_torchs_and_off_in_evaluation():
    ones = torch.ones(8, 8)
    torch.manual_seed(3)
    dropped = BitDropout(0.5)(ones)
    torch.manual_seed(3)
    assert torch.equal(dropped, torch.nn.Dropout(0.5)(ones))
    assert torch.equal(BitDropout(0.5).eval()(ones.bfloat16()), ones.bfloat16())


def test_adapters_use_bit_dropout(blip):
    adapted = add_lora(blip[0], targets="attention", r=4, alpha=8, dropout=0.1)
    kinds = {type(module) for name, module in adapted.named_modules() if name.endswith("lora_dropout.default")}
    assert kinds == {BitDropout}
