"""Full fine-tuning: `adapter: none` trains the decoder, and with `train_vision` the vision encoder.

pytest tests/training/test_full.py
"""

import contextlib
import io
import json
import shutil

import pytest
import torch
import yaml
from conftest import write_recipe
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration

from medcap.cli import main
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.inference import load_captioner
from medcap.modeling.feature_cache import caching_obstacle
from medcap.modeling.load import load_base
from medcap.publish.release import build_release
from medcap.recipe import read_recipe
from medcap.training.setup import make_model

STEPS = 3  # per epoch of the trained run
KEYS = {"decoder": {"prompt": "image of"}, "vision": {"train_vision": True}}


def train(train_script, *argv):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        train_script.main([*map(str, argv)])
    return out.getvalue()


@pytest.fixture(scope="module", params=KEYS.values(), ids=KEYS)
def run(request, trained_run, train_script, tmp_path_factory):
    """The folder of the trained run's recipe without an adapter."""
    folder = tmp_path_factory.mktemp("full")
    keys = yaml.safe_load(trained_run.recipe.read_text())
    keys = {key: value for key, value in keys.items() if not key.startswith("lora_")}
    keys |= {"adapter": "none", "learning_rate": 0.002, "output_dir": str(folder / "run"), **request.param}
    printed = train(train_script, "--config", write_recipe(folder / "recipe.yaml", **keys))
    assert printed.startswith(f"{folder}/run/model: the model of checkpoint-")
    return folder / "run"


def weights(folder):
    return load_file(folder / "model.safetensors")


def is_vision(name):
    return name.startswith("vision_model.")


def test_only_the_vision_encoder_may_stay_unchanged(run, tiny_base):
    base = load_base(str(tiny_base), image_size=48)[0].state_dict()
    changed = {name: not torch.equal(weight, base[name]) for name, weight in weights(run / "model").items()}
    trains_vision = read_recipe(["--config", str(run / "recipe.yaml")]).lora.train_vision
    assert {value for name, value in changed.items() if is_vision(name)} == {trains_vision}
    assert [name for name, value in changed.items() if not is_vision(name) and not value] == []


def test_a_run_resumed_after_an_epoch_equals_the_uninterrupted_one(run, train_script, tmp_path):
    shutil.copytree(run / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    recipe = run / "recipe.yaml"
    train(train_script, "--config", recipe, "--output_dir", tmp_path, "--resume_from_checkpoint", "last")
    for name in (f"checkpoint-{2 * STEPS}", "model"):
        actual, expected = weights(tmp_path / name), weights(run / name)
        assert actual.keys() == expected.keys()
        assert [key for key, weight in expected.items() if not torch.equal(weight, actual[key])] == []


def test_the_model_is_that_of_the_best_epoch(run):
    state = json.loads((run / f"checkpoint-{2 * STEPS}" / "trainer_state.json").read_text())
    model = weights(run / "model")
    for step in (STEPS, 2 * STEPS):
        is_equal = [torch.equal(model[name], weight) for name, weight in weights(run / f"checkpoint-{step}").items()]
        assert all(is_equal) == (step == state["best_global_step"])


def test_plain_transformers_loads_it_and_captions_are_the_same(run, phantoms):
    captioner = load_captioner(str(run / "model"), precision="fp32", detokenize=False)
    rows = load_data(phantoms)["test"]
    images = [load_image(image) for image in rows["image"][:3]]
    prompt = read_recipe(["--config", str(run / "recipe.yaml")]).data.prompt
    assert (captioner.prompt, captioner.image_size, captioner.generation_config.num_beams) == (prompt, 48, 2)
    model = BlipForConditionalGeneration.from_pretrained(run / "model").eval()
    for image in images:
        inputs = captioner.processor(images=image, text=prompt or None, return_tensors="pt")
        ids = model.generate(**inputs, generation_config=captioner.generation_config)
        caption = ids[0, 1 + captioner.family.prompt_length(prompt) :]
        assert captioner.processor.decode(caption, skip_special_tokens=True).strip() == captioner.caption([image])[0]


def test_it_is_evaluated_captioned_and_published_as_a_whole_model(run, phantoms, tiny_base, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    model, image = folder / "model", tmp_path / "image.png"
    load_image(load_data(phantoms)["test"]["image"][0]).save(image)
    main(["evaluate", "--model", str(model), "--data", str(phantoms), "--out", str(folder / "eval")])
    main(["publish", str(folder), "--to", str(tmp_path / "release")])
    capsys.readouterr()
    main(["caption", str(image), "--model", str(tmp_path / "release")])
    caption = json.loads(capsys.readouterr().out)["caption"]
    assert caption == load_captioner(str(model)).caption([image])[0]
    card = ModelCard.load(tmp_path / "release" / "README.md")
    assert (card.data.library_name, card.data.tags[0]) == ("transformers", "radiology")
    trains_vision = read_recipe(["--config", str(run / "recipe.yaml")]).lora.train_vision
    assert ("but those of the vision encoder were trained" in card.text) == (not trains_vision)
    assert "adapter" not in card.text.lower().replace("`adapter` | `none`", "")
    assert "lora" not in card.text.lower().replace("`lora`", "")
    names = {path.name for path in (tmp_path / "release").iterdir()}
    assert names > {"config.json", "model.safetensors", "generation_config.json", "processor_config.json"}
    with pytest.raises(SystemExit):
        main(["publish", str(folder), "--to", str(tmp_path / "merged"), "--merge"])
    assert "run/model is a whole model: publish it without --merge" in capsys.readouterr().err


def test_the_card_of_a_base_on_the_hub_names_it_as_fine_tuned(run, tmp_path):
    release = build_release(run, tmp_path / "release", base="someone/base")
    data = ModelCard.load(release / "README.md").data
    assert (data.base_model, data["base_model_relation"]) == ("someone/base", "finetune")


def test_only_features_of_a_frozen_encoder_are_cached(tiny_base, recipe_file):
    """In bfloat16 the weights stay in float32, and their features are stored as they are used."""
    for trains_vision, obstacle in ((False, ""), (True, "modules that compute the features are trained, such as the")):
        keys = {"model_name_or_path": str(tiny_base), "adapter": "none", "train_vision": trains_vision}
        adapted = make_model(read_recipe(["--config", recipe_file(**keys)]), torch.bfloat16)
        assert caching_obstacle(adapted.family).startswith(obstacle)
        assert bool(caching_obstacle(adapted.family)) == trains_vision
        assert {weight.dtype for weight in adapted.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_features_do_not_change_the_losses(run, train_script, tmp_path, precision):
    recipe = run / "recipe.yaml"
    if read_recipe(["--config", str(recipe)]).lora.train_vision:
        return
    losses = []
    for cache in ("off", str(tmp_path / "cache")):
        out = tmp_path / ("cached" if losses else "uncached")
        train(train_script, "--config", recipe, "--output_dir", out, "--feature_cache", cache,
              "--precision", precision, "--eval_strategy", "no", "--load_best_model_at_end", "false")  # fmt: skip
        lines = (out / "checkpoint-6" / "trainer_state.json").read_text()
        losses.append([line["loss"] for line in json.loads(lines)["log_history"] if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5 if precision == "fp32" else 0.05)
    assert len(losses[0]) == 6
    assert any((tmp_path / "cache").rglob("*.bin"))


def test_keys_of_lora_with_their_defaults_are_not_saved(recipe_file):
    recipe = read_recipe(["--config", recipe_file(adapter="none", lora_r=16)])
    assert [key for key in recipe.as_dict() if key.startswith("lora_")] == []


REFUSED = {
    "rank": ({"adapter": "none", "lora_r": 8}, "lora_r has no effect without adapter: lora; set it, or remove lora_r"),
    "targets": (
        {"adapter": "none", "lora_target_modules": "text"},
        "lora_target_modules has no effect without",
    ),
    "quantized": ({"adapter": "none", "quantization": "4bit"}, "quantization 4bit freezes weights, and adapter none"),
    "vision": (
        {"train_vision": True},
        "train_vision trains all weights of the vision encoder, which needs",
    ),
    "another": ({"adapter": "dora"}, "adapter is 'dora'; expected lora, none"),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_keys_that_do_not_go_together_are_refused_when_the_recipe_is_read(refusal, keys, message):
    line = refusal(**keys)
    assert message in line
    if "train_vision" in keys:
        assert line.endswith("set lora_target_modules: text-and-vision-attention")
