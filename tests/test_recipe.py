"""A recipe is read exactly, or refused with a one-line error before anything is started (traps 16, 23, 24, 26, 27).

pytest tests/test_recipe.py
"""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from conftest import SMALLEST_RECIPE, recipe_error

from medcap.modeling.load import load_base
from medcap.recipe import GROUPS, REQUIRED, read_recipe
from medcap.recipe.arguments import REPLACED
from medcap.recipe.help import RARE, recipe_help
from medcap.recipe.ranges import UNUSED
from medcap.recipe.values import key_types

FILES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
RECIPES = {
    str(path.relative_to(path.parents[1])): path
    for path in FILES
    if path.parent.name != "accelerate" and path.name != "space.yaml"
}


def test_recipes_are_found():
    assert "phantom/lora.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_every_key_of_every_recipe_is_known_and_its_value_allowed(path):
    recipe = read_recipe(["--config", str(path)])
    keys = yaml.safe_load(path.read_text(encoding="utf-8")).keys()
    assert {"precision" if key in ("bf16", "fp16") else key for key in keys} <= recipe.given


def test_attn_implementation_is_an_unknown_key(recipe_file):
    assert "unknown key 'attn_implementation'" in recipe_error(["--config", recipe_file(attn_implementation="sdpa")])


def test_blip_is_loaded_with_eager_attention(tiny_base):
    assert load_base(str(tiny_base))[0].config._attn_implementation == "eager"


TYPOS = {
    "empty": ("", None),
    "one letter": ("r", None),
    "a missing letter": ("learning_rat", "learning_rate"),
    "an extra letter": ("lora_rr", "lora_r"),
    "capitals": ("Lora_Dropout", "lora_dropout"),
    "hyphens": ("max-new-tokens", "max_new_tokens"),
    "another framework's": ("num_epochs", "num_train_epochs"),
    "negated": ("no_load_best_model_at_ends", "load_best_model_at_end"),
}


@pytest.mark.parametrize(("typo", "right"), TYPOS.values(), ids=TYPOS)
def test_a_typo_in_the_file_is_refused_with_the_nearest_key(recipe_file, typo, right):
    path = recipe_file(**{typo: 1})
    message = recipe_error(["--config", path])
    assert message.startswith(f"{path}: unknown key {typo!r}; did you mean ")
    assert right is None or repr(right) in message


@pytest.mark.parametrize("arguments", [["--learning_rat", "1"], ["--learning-rat=1"], ["--no_learning_rat"]])
def test_a_typo_on_the_command_line_is_refused_with_the_nearest_key(recipe_file, arguments):
    message = recipe_error(["--config", recipe_file(), *arguments])
    assert message.startswith("command line: unknown key ")
    assert message.endswith("did you mean 'learning_rate'?")


def test_a_prefix_of_a_key_is_unknown(recipe_file):
    assert "unknown key 'learning'" in recipe_error(["--config", recipe_file(), "--learning", "1"])


STRAY = {
    "the first argument": (["stray", "--lora_r", "4"], "unexpected argument 'stray'"),
    "after a value": (["--lora_r", "4", "stray"], "unexpected argument 'stray' after --lora_r 4"),
    "after an equals sign": (["--lora_r=4", "stray"], "unexpected argument 'stray'"),
    "no value": (["--lora_r"], "--lora_r needs a value"),
    "an option for a value": (["--prompt", "--lora_r", "4"], "--prompt needs a value"),
}


@pytest.mark.parametrize(("arguments", "message"), STRAY.values(), ids=STRAY)
def test_argument_without_key_and_key_without_value_are_refused(recipe_file, arguments, message):
    config = ["--config", recipe_file()]
    extra = [*config, *arguments] if arguments[0] != "stray" else [*arguments, *config]
    assert recipe_error(extra).startswith(f"command line: {message}")


@pytest.mark.parametrize("key", REPLACED)
def test_a_removed_key_is_refused_with_its_replacement(recipe_file, key):
    advice = f"there is no key {key!r}; use {REPLACED[key]}"
    assert recipe_error(["--config", recipe_file(**{key: 1})]).endswith(advice)
    assert recipe_error(["--config", recipe_file(), f"--{key}", "1"]) == f"command line: {advice}"


@pytest.mark.parametrize("key", ["warmup_ratio", "overwrite_output_dir", "logging_dir"])
def test_removed_keys_include_those_that_transformers_5_removed(key):
    assert key in REPLACED
    assert key not in key_types()


def test_replacements_are_known_keys():
    known = key_types().keys() | {"group_by_length"}  # the latter is a value
    for key, advice in REPLACED.items():
        named = {word for word in advice.replace(":", " ").replace(",", " ").split() if "_" in word and word.islower()}
        assert named <= known, f"{key}: {named - known}"


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy", "feature_cache"])
def test_a_bare_no_is_refused(recipe_file, key):
    path = recipe_file(f"{key}: no\n")
    message = f'{path}: {key}: YAML reads a bare no or off as false; quote it: {key}: "no"'
    assert recipe_error(["--config", path]) == message


def test_a_quoted_no_is_no(recipe_file):
    path = recipe_file('save_strategy: "no"\nload_best_model_at_end: false\n')
    assert read_recipe(["--config", path]).training.save_strategy == "no"


NOT_RECIPES = {
    "empty": (b"", "a recipe is a list of `key: value` lines, got NoneType"),
    "a list": (b"- lora_r\n", "got list"),
    "a number for a key": (b"1: 2\n", "a recipe is a list"),
    "broken YAML": (b"lora_r: [1\n", "not a YAML file"),
    "a key twice": (b"lora_r: 1\nseed: 2\nlora_r: 3\n", "the key 'lora_r' is there twice; remove one"),
    "too many lines": (b"a: 1\n" * 10_001, "not a recipe: more than 10,000 lines and commas"),
    "too large": (b"#" * 2_000_001, "not a recipe: larger than 2 MB"),
    "not UTF-8": (b"prompt: \xff\n", "not a YAML file"),
}


@pytest.mark.parametrize(("content", "message"), NOT_RECIPES.values(), ids=NOT_RECIPES)
def test_file_that_is_not_a_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert str(path) in recipe_error(["--config", str(path)])
    assert message in recipe_error(["--config", str(path)])


def test_a_missing_file_is_named(tmp_path):
    error = recipe_error(["--config", str(tmp_path / "none.yaml")])
    assert "none.yaml: cannot read the recipe: No such file or directory; `medcap recipes copy` writes" in error


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_required_key_is_named(tmp_path, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in SMALLEST_RECIPE.items() if name != key}))
    assert recipe_error(["--config", str(path)]) == f"{key} is missing: write it into the recipe or give --{key}"


WRONG_VALUES = {
    "one view": (
        {"augmentation": "light", "augmentation_views": 1},
        "augmentation_views is 1; allowed is 0, or 2 to 64",
    ),
    "flips": ({"augmentation": "flip"}, "augmentation is 'flip'; "),
    "a cache of new views": (
        {"augmentation": "light", "augmentation_views": 0, "feature_cache": "c"},
        "augmentation_views is 0, a new view in every epoch, but feature_cache is c: give 2 or more views, or remove",
    ),
    "no fraction": ({"train_fraction": 0}, "train_fraction is 0.0; allowed is above 0, at most 1"),
    "more than all": ({"train_fraction": 1.5}, "train_fraction is 1.5"),
    "not a number": ({"lora_r": "many"}, "lora_r is 'many'; expected an integer"),
    "an unknown choice": ({"quantization": "2bit"}, "quantization is '2bit'; expected none, 8bit, 4bit"),
    "an unknown layout": ({"data_format": "coco"}, "data_format is 'coco'; expected auto, rocov2"),
    "an unknown license filter": ({"license_filter": "free"}, "license_filter is 'free'; expected any, commercial"),
    "neither true nor false": ({"dedupe": "perhaps"}, "dedupe is 'perhaps'; expected true or false"),
    "no fraction left to train": (
        {"valid_fraction": 0.5, "test_fraction": 0.5},
        "valid_fraction and test_fraction are 1 ",
    ),
    "a wrong schedule": ({"lr_scheduler_type": "lineal"}, "lr_scheduler_type is 'lineal'; expected linear, cosine"),
    "a list for text": ({"prompt": ["a", "b"]}, "prompt is ['a', 'b']; expected text"),
    "a mapping for a number": ({"lora_r": {"a": 1}}, "lora_r is {'a': 1}; expected an integer"),
    "a fraction for an integer": ({"lora_r": 4.5}, "lora_r is 4.5; expected an integer"),
    "text for a mapping": ({"gradient_checkpointing_kwargs": "x"}, "gradient_checkpointing_kwargs is 'x'; expected a"),
    "a list with an unknown member": ({"debug": [[1]]}, "debug is [[1]]; expected text or a list"),
    "both precisions": ({"bf16": True, "fp16": True}, "bf16 and fp16 are both true"),
    "the image column removed": ({"remove_unused_columns": True}, "remove_unused_columns must be false"),
    "the best of unsaved epochs": ({"save_strategy": "steps", "save_steps": 7}, "load_best_model_at_end"),
}


@pytest.mark.parametrize(("keys", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_named(recipe_file, keys, message):
    assert message in recipe_error(["--config", recipe_file(**keys)])


WRONG_OPTIONS = {
    "a type": (["--lora_r", "many"], "lora_r is 'many'; expected an integer"),
    "a range": (["--lora_r", "0"], "lora_r is 0; allowed is 1 to 1024"),
    "a choice": (["--precision", "fp8"], "precision is 'fp8'; expected auto, fp32, bf16, fp16"),
    "two settings of one thing": (["--bf16", "--precision", "fp32"], "bf16 and precision set the same thing"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_error_of_a_wrong_option_names_the_command_line(recipe_file, arguments, message):
    assert recipe_error(["--config", recipe_file(lora_r=4), *arguments]).startswith(f"command line: {message}")


@pytest.mark.parametrize("value", ["--lora_r=1", "a --lora_r 1", "a\n--lora_r=1"])
def test_text_sets_no_other_keys(recipe_file, value):
    recipe = read_recipe(["--config", recipe_file(prompt=value)])
    assert (recipe.data.prompt, recipe.lora.lora_r) == (value, 16)


@pytest.mark.parametrize(
    ("keys", "precision"),
    [({"bf16": True}, "bf16"), ({"fp16": False, "bf16": True}, "bf16"), ({"bf16": False}, "fp32")],
)
def test_bf16_and_fp16_set_the_precision(recipe_file, tmp_path, keys, precision):
    recipe = read_recipe(["--config", recipe_file(**keys)])
    assert recipe.model.precision == precision
    recipe.save(tmp_path / "saved.yaml")
    assert read_recipe(["--config", str(tmp_path / "saved.yaml")]).model.precision == precision


def test_recipe_is_frozen(recipe_file):
    recipe = read_recipe(["--config", recipe_file()])
    for frozen in (recipe, recipe.data, recipe.model, recipe.lora, recipe.generation, recipe.scst):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.prompt = "x"


def test_command_line_overrides_the_file(recipe_file):
    recipe = read_recipe(["--learning_rate", "3e-4", "--config", recipe_file(learning_rate=1e-4, lora_r=4)])
    assert (recipe.training.learning_rate, recipe.lora.lora_r) == (3e-4, 4)


def test_a_number_that_yaml_reads_as_text_is_converted(recipe_file):
    path = recipe_file("learning_rate: 1e-4\n")
    assert isinstance(yaml.safe_load(Path(path).read_text())["learning_rate"], str)
    assert read_recipe(["--config", path]).training.learning_rate == 1e-4


def test_null_means_the_default(recipe_file):
    assert read_recipe(["--config", recipe_file(image_size=None)]).model.image_size is None


def test_defaults_suit_captioning(recipe_file):
    training = read_recipe(["--config", recipe_file()]).training
    assert training.remove_unused_columns is False
    assert training.logging_nan_inf_filter is False
    assert training.eval_strategy == training.save_strategy == "epoch"
    assert (training.metric_for_best_model, training.greater_is_better) == ("cider", True)


SAVED_KEYS = {
    "no other keys": {},
    "text": {"prompt": "an image of", "lora_target_modules": r"text_decoder\..*\.(query|value)"},
    "text with quotes and a colon": {"prompt": "it's \"a\": b # c"},
    "text beyond ASCII": {"data_dir": "données/röntgen", "run_name": "x → y"},
    "text that looks like a number": {"run_name": "007", "prompt": "1"},
    "numbers": {"learning_rate": 2e-5, "max_train_samples": 7, "lora_dropout": 0.0, "length_penalty": -1.0},
    "booleans": {"gradient_checkpointing": True, "load_best_model_at_end": False, "greater_is_better": True},
    "an enumeration": {"lr_scheduler_type": "cosine", "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "no",
                       "load_best_model_at_end": False},
    "a dictionary": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
    "a plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5}},
    "a boolean in a dictionary": {"gradient_checkpointing": True,
                                  "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "a list": {"report_to": ["tensorboard", "wandb"]},
    "no reports": {"report_to": "none"},
    "a list of one": {"report_to": ["none"]},
    "an accelerator": {"accelerator_config": {"split_batches": True}},
    "sharding": {"fsdp": "", "fsdp_config": {"min_num_params": 0}},
}  # fmt: skip


@pytest.mark.parametrize("keys", SAVED_KEYS.values(), ids=SAVED_KEYS)
def test_a_saved_recipe_reads_as_the_same_recipe(recipe_file, tmp_path, keys):
    recipe = read_recipe(["--config", recipe_file(**keys)])
    recipe.save(tmp_path / "saved.yaml")
    again = read_recipe(["--config", str(tmp_path / "saved.yaml")])
    assert again.as_dict() == recipe.as_dict()
    assert recipe.as_dict().keys() >= {**SMALLEST_RECIPE, **keys}.keys()
    assert again.training.to_dict() == recipe.training.to_dict()


def test_a_saved_recipe_does_not_resume(recipe_file):
    recipe = read_recipe(["--config", recipe_file(), "--resume_from_checkpoint", "last"])
    assert recipe.training.resume_from_checkpoint == "last"
    assert recipe.as_dict() == read_recipe(["--config", recipe_file()]).as_dict()


ON_THE_COMMAND_LINE = {
    "equals sign": (["--lora_r=4"], {"lora_r": 4}),
    "a key that begins with no": (["--no_repeat_ngram_size", "3"], {"no_repeat_ngram_size": 3}),
    "negated": (["--no_load_best_model_at_end"], {"load_best_model_at_end": False}),
    "hyphens": (["--learning-rate", "0.5"], {"learning_rate": 0.5}),
    "a negative number": (["--length_penalty", "-1"], {"length_penalty": -1.0}),
    "no value": (["--dedupe"], {"dedupe": True}),
    "a mapping": (
        ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 2}'],
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
    ),
    "a list": (["--report_to", "tensorboard", "wandb"], {"report_to": ["tensorboard", "wandb"]}),
}


@pytest.mark.parametrize(("arguments", "keys"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE)
def test_options_are_saved(recipe_file, arguments, keys):
    saved = read_recipe(["--config", recipe_file(), *arguments]).as_dict()
    assert keys.items() <= saved.items()
    assert saved.keys() - keys.keys() == read_recipe(["--config", recipe_file()]).as_dict().keys() - keys.keys()


@pytest.mark.parametrize("option", ["-h", "--help", "--help-all"])
def test_help_is_printed_and_exits(capsys, option):
    with pytest.raises(SystemExit, match="0"):
        read_recipe([option])
    assert capsys.readouterr().out == recipe_help(every_key=option == "--help-all") + "\n"


def test_help_fits_on_two_screens_and_shows_the_keys_of_medcap():
    text = recipe_help()
    assert len(text.splitlines()) <= 70
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("usage: medcap train ")
    options = ["--config", "--accelerate", "--num_processes", "--help, --help-all", "--dry_run", "--learning_rate"]
    own = [key.name for name, group in GROUPS.items() if name != "training" for key in dataclasses.fields(group)]
    assert [
        name for name in [*options, *(f"--{key}" for key in own if key not in RARE)] if f"  {name} " not in text
    ] == []


def test_help_all_shows_every_key():
    text = recipe_help(every_key=True)
    known = key_types().keys() - REPLACED.keys() - UNUSED.keys() - {"bf16", "fp16"}
    assert [key for key in known if f"  --{key} " not in text] == []
    assert "hub_token" not in text


NOT_PUSHED = {
    "no evaluation": ('eval_strategy: "no"\nload_best_model_at_end: false\n', "eval_strategy is 'no'"),
    "steps": ("eval_strategy: steps\neval_steps: 500\nsave_strategy: steps\n", "eval_strategy is 'steps'"),
}


@pytest.mark.parametrize(("keys", "message"), NOT_PUSHED.values(), ids=NOT_PUSHED)
def test_push_to_hub_needs_evaluated_and_saved_epochs(recipe_file, keys, message):
    assert message in recipe_error(["--config", recipe_file(f"{keys}push_to_hub: true\n")])
    read_recipe(["--config", recipe_file(keys)])


SEEDS = {name: path for name, path in RECIPES.items() if "seed-" in name}
ORIGINAL = {
    "weight_decay": 0.01, "max_grad_norm": 0.0, "learning_rate": 5e-5, "warmup_steps": 0, "precision": "fp32",
    "lr_scheduler_type": "linear", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "random", "label_smoothing_factor": 0.0, "load_best_model_at_end": False,
    "early_stopping_patience": None, "train_fraction": 0.1, "max_caption_tokens": 512, "lora_r": 8, "lora_alpha": 16,
    "lora_dropout": 0.1, "num_beams": 4, "max_new_tokens": 127, "no_repeat_ngram_size": 0, "length_penalty": 1.0,
}  # fmt: skip


def test_workers_do_not_persist(recipe_file):
    """With pinned memory, as on a GPU, torch waits for persistent workers at exit, for 5 s each."""
    args = read_recipe(["--config", recipe_file(dataloader_num_workers=2)]).training
    assert args.dataloader_num_workers == 2
    assert not args.dataloader_persistent_workers


@pytest.mark.parametrize("path", SEEDS.values(), ids=SEEDS)
def test_the_seed_recipes_have_the_settings_of_the_original_project(path):
    recipe = read_recipe(["--config", str(path)])
    groups = {name: value for group in GROUPS for name, value in vars(getattr(recipe, group)).items()}
    assert {key: groups[key] for key in ORIGINAL} == ORIGINAL


def test_the_seed_recipes_differ_only_in_epochs():
    four, six = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in SEEDS.values())
    assert {key for key in four | six if four.get(key) != six.get(key)} == {"output_dir", "num_train_epochs"}


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_every_recipe_is_read_on_a_cpu_and_takes_the_precision_as_an_option(path):
    recipe = read_recipe(["--config", str(path), "--use_cpu", "true", "--precision", "auto"])
    assert recipe.model.precision == "auto"


@pytest.mark.parametrize("name", [name for name in RECIPES if "-rocov2/" in name and not re.search("seed|scst", name)])
def test_the_learning_rate_of_the_rocov2_recipes_decays_to_zero(name):
    """Without early stopping, which would end the run before the learning rate has fallen."""
    recipe = read_recipe(["--config", str(RECIPES[name])])
    assert recipe.training.early_stopping_patience is None
    epochs = 10 if "dinov2" in name else 4  # a join must first learn to read images
    assert (recipe.training.lr_scheduler_type, recipe.training.num_train_epochs) == ("cosine", epochs)
    assert recipe.generation.no_repeat_ngram_size == 0  # a third of the long references repeat a trigram
