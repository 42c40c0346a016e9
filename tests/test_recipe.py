"""A recipe means what it says, or stops the run with one line before anything is started (traps 16, 23, 24, 26, 27).

pytest tests/test_recipe.py
"""

from pathlib import Path

import pytest
import yaml

from medcap.modeling.blip import load_blip
from medcap.recipe import RANGES, REPLACED, REQUIRED, RecipeError, read_recipe, recipe_parser

SMALLEST = {"data_dir": "data", "model_name_or_path": "base", "output_dir": "run", "use_cpu": True}
RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
RECIPES = {str(path.relative_to(path.parents[1])): path for path in RECIPES if path.parent.name != "accelerate"}


@pytest.fixture
def recipe_file(tmp_path):
    def write(text="", **keys):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**SMALLEST, **keys}) + text, encoding="utf-8")
        return str(path)

    return write


def refusal(words):
    """What read_recipe says against `words`; always one line."""
    with pytest.raises(RecipeError, match=r"\w") as caught:
        read_recipe(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_there_are_recipes():
    assert "phantom/lora.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_every_key_of_every_recipe_is_known_and_its_value_allowed(path):
    recipe = read_recipe(["--config", str(path), "--use_cpu", "true"])  # bf16 is refused where there is no GPU
    assert yaml.safe_load(path.read_text(encoding="utf-8")).keys() <= recipe.given


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_no_recipe_chooses_an_attention_that_blip_does_not_have(path):
    assert "attn_implementation" not in path.read_text(encoding="utf-8")


def test_attn_implementation_is_no_key(recipe_file):
    assert "unknown key 'attn_implementation'" in refusal(["--config", recipe_file(attn_implementation="sdpa")])


def test_blip_is_loaded_with_the_attention_that_it_has(tiny_base):
    assert load_blip(str(tiny_base))[0].config._attn_implementation == "eager"


TYPOS = {
    "empty": ("", None),
    "one letter": ("r", None),
    "a letter lacks": ("learning_rat", "learning_rate"),
    "a letter more": ("lora_rr", "lora_r"),
    "capitals": ("Lora_Dropout", "lora_dropout"),
    "hyphens": ("max-new-tokens", "max_new_tokens"),
    "another framework's": ("num_epochs", "num_train_epochs"),
    "negated": ("no_load_best_model_at_ende", "load_best_model_at_end"),
}


@pytest.mark.parametrize(("typo", "right"), TYPOS.values(), ids=TYPOS)
def test_a_typo_in_the_file_stops_with_the_nearest_key(recipe_file, typo, right):
    path = recipe_file(**{typo: 1})
    said = refusal(["--config", path])
    assert said.startswith(f"{path}: unknown key {typo!r}; did you mean ")
    assert right is None or repr(right) in said


@pytest.mark.parametrize("words", [["--learning_rat", "1"], ["--learning-rat=1"], ["--no_learning_rat"]])
def test_a_typo_on_the_command_line_stops_with_the_nearest_key(recipe_file, words):
    said = refusal(["--config", recipe_file(), *words])
    assert said.startswith("command line: unknown key ")
    assert said.endswith("did you mean 'learning_rate'?")


def test_the_beginning_of_a_key_is_not_the_key(recipe_file):
    assert "unknown key 'learning'" in refusal(["--config", recipe_file(), "--learning", "1"])


def test_a_word_without_a_key_stops(recipe_file):
    assert "cannot make sense of 'stray'" in refusal(["--config", recipe_file(), "stray"])


@pytest.mark.parametrize("key", REPLACED)
def test_a_key_of_former_times_is_named_with_what_to_use(recipe_file, key):
    advice = f"there is no key {key!r}; use {REPLACED[key]}"
    assert refusal(["--config", recipe_file(**{key: 1})]).endswith(advice)
    assert refusal(["--config", recipe_file(), f"--{key}", "1"]) == f"command line: {advice}"


@pytest.mark.parametrize("key", ["warmup_ratio", "overwrite_output_dir", "logging_dir"])
def test_what_transformers_5_removed_is_among_them(key):
    assert key in REPLACED
    assert key not in {action.dest for action in recipe_parser()._actions}


def test_the_advice_names_keys_that_exist():
    known = {action.dest for action in recipe_parser()._actions} | {"group_by_length"}  # a value
    for key, advice in REPLACED.items():
        named = {word for word in advice.replace(":", " ").replace(",", " ").split() if "_" in word and word.islower()}
        assert named <= known, f"{key}: {named - known}"


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_a_bare_no_is_named(recipe_file, key):
    said = refusal(["--config", recipe_file(f"{key}: no\n")])
    assert said == f'{key}: YAML reads a bare no as false; quote it: {key}: "no"'


def test_a_quoted_no_is_no(recipe_file):
    path = recipe_file('save_strategy: "no"\nload_best_model_at_end: false\n')
    assert read_recipe(["--config", path]).training.save_strategy == "no"


NOT_RECIPES = {
    "empty": (b"", "a recipe is a list of `key: value` lines, got NoneType"),
    "a list": (b"- lora_r\n", "got list"),
    "a number for a key": (b"1: 2\n", "a recipe is a list"),
    "broken YAML": (b"lora_r: [1\n", "not a YAML file"),
    "not UTF-8": (b"prompt: \xff\n", "not a YAML file"),
}


@pytest.mark.parametrize(("content", "said"), NOT_RECIPES.values(), ids=NOT_RECIPES)
def test_what_is_no_recipe_is_named(tmp_path, content, said):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(["--config", str(path)])
    assert said in refusal(["--config", str(path)])


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    assert refusal(["--config", str(tmp_path / "none.yaml")]).endswith("none.yaml: cannot read the recipe: "
                                                                        "No such file or directory")  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_a_key_that_must_be_there_is_asked_for(tmp_path, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in SMALLEST.items() if name != key}))
    assert refusal(["--config", str(path)]) == f"{key} is missing: write it into the recipe or give --{key}"


WRONG_VALUES = {
    "no share": ({"train_fraction": 0}, "train_fraction is 0.0; allowed is above 0, at most 1"),
    "more than all": ({"train_fraction": 1.5}, "train_fraction is 1.5"),
    "not a number": ({"lora_r": "many"}, "lora_r/--lora-r: invalid int value: 'many'"),
    "not on offer": ({"quantization": "2bit"}, "2bit"),
    "no such format": ({"data_format": "coco"}, "data_format/--data-format: invalid choice: 'coco'"),
    "no such licence filter": ({"license_filter": "free"}, "license_filter/--license-filter: invalid choice: 'free'"),
    "neither yes nor no": ({"dedupe": "perhaps"}, "perhaps"),
    "nothing left to train": (
        {"valid_fraction": 0.5, "test_fraction": 0.5},
        "valid_fraction and test_fraction are 1 ",
    ),
    "a wrong schedule": ({"lr_scheduler_type": "lineal"}, "lineal"),
    "the image column would go": ({"remove_unused_columns": True}, "remove_unused_columns must be false"),
    "best of what is not saved": ({"save_strategy": "steps", "save_steps": 7}, "load_best_model_at_end"),
}


@pytest.mark.parametrize(("keys", "said"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_named(recipe_file, keys, said):
    assert said in refusal(["--config", recipe_file(**keys)])


@pytest.mark.parametrize(("key", "lowest", "highest"), [(key, *ends) for key, ends in RANGES.items()])
def test_a_value_out_of_range_is_named(recipe_file, key, lowest, highest):
    for outside in [lowest - 1, *([highest + 1] if highest != float("inf") else [])]:
        said = refusal(["--config", recipe_file(**{key: outside})])
        assert said.startswith(f"{key} is {outside}")
        assert said.endswith(f"allowed is {lowest} to {highest}")


def test_the_command_line_wins_over_the_file(recipe_file):
    recipe = read_recipe(["--learning_rate", "3e-4", "--config", recipe_file(learning_rate=1e-4, lora_r=4)])
    assert (recipe.training.learning_rate, recipe.lora.lora_r) == (3e-4, 4)


def test_a_number_that_yaml_reads_as_text_is_a_number(recipe_file):
    path = recipe_file("learning_rate: 1e-4\n")
    assert isinstance(yaml.safe_load(Path(path).read_text())["learning_rate"], str)
    assert read_recipe(["--config", path]).training.learning_rate == 1e-4


def test_null_is_the_default(recipe_file):
    assert read_recipe(["--config", recipe_file(image_size=None)]).model.image_size is None


def test_the_defaults_are_what_captioning_needs(recipe_file):
    training = read_recipe(["--config", recipe_file()]).training
    assert training.remove_unused_columns is False
    assert training.logging_nan_inf_filter is False
    assert training.eval_strategy == training.save_strategy == "epoch"
    assert (training.metric_for_best_model, training.greater_is_better) == ("cider", True)


KINDS = {
    "nothing more": {},
    "text": {"prompt": "a picture of", "lora_target_modules": r"text_decoder\..*\.(query|value)"},
    "text with quotes and a colon": {"prompt": "it's \"a\": b # c"},
    "text beyond ASCII": {"data_dir": "données/röntgen", "run_name": "x → y"},
    "text that looks like a number": {"run_name": "007", "prompt": "1"},
    "numbers": {"learning_rate": 2e-5, "max_train_samples": 7, "lora_dropout": 0.0, "length_penalty": -1.0},
    "yes and no": {"gradient_checkpointing": True, "load_best_model_at_end": False, "greater_is_better": False},
    "an enumeration": {"lr_scheduler_type": "cosine", "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "no",
                       "load_best_model_at_end": False},
    "a dictionary": {"lr_scheduler_kwargs": {"num_cycles": 2}},
    "yes or no in a dictionary": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "a list": {"label_names": ["labels"]},
    "no reports": {"report_to": "none"},
    "a list of one": {"report_to": ["none"]},
    "an accelerator": {"accelerator_config": {"split_batches": True}},
    "sharding": {"fsdp": "", "fsdp_config": {"min_num_params": 0}},
}  # fmt: skip


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_a_saved_recipe_reads_as_the_same_recipe(recipe_file, tmp_path, keys):
    recipe = read_recipe(["--config", recipe_file(**keys)])
    recipe.save(tmp_path / "saved.yaml")
    again = read_recipe(["--config", str(tmp_path / "saved.yaml")])
    assert again.as_dict() == recipe.as_dict()
    assert recipe.as_dict().keys() >= {**SMALLEST, **keys}.keys()
    assert again.training.to_dict() == recipe.training.to_dict()


def test_a_saved_recipe_does_not_say_that_a_run_was_gone_on_with(recipe_file):
    recipe = read_recipe(["--config", recipe_file(), "--resume_from_checkpoint", "last"])
    assert recipe.training.resume_from_checkpoint == "last"
    assert recipe.as_dict() == read_recipe(["--config", recipe_file()]).as_dict()


ON_THE_COMMAND_LINE = {
    "one word": (["--lora_r=4"], {"lora_r": 4}),
    "begins with no": (["--no_repeat_ngram_size", "3"], {"no_repeat_ngram_size": 3}),
    "negated": (["--no_load_best_model_at_end"], {"load_best_model_at_end": False}),
    "hyphens": (["--learning-rate", "0.5"], {"learning_rate": 0.5}),
}


@pytest.mark.parametrize(("words", "keys"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE)
def test_what_the_command_line_sets_is_saved(recipe_file, words, keys):
    saved = read_recipe(["--config", recipe_file(), *words]).as_dict()
    assert keys.items() <= saved.items()
    assert saved.keys() - keys.keys() == read_recipe(["--config", recipe_file()]).as_dict().keys() - keys.keys()


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_lists_every_key(capsys, word):
    with pytest.raises(SystemExit, match="0"):
        read_recipe([word])
    said = capsys.readouterr().out
    assert all(f"--{key}" in said for key in ("lora_r", "max_new_tokens", "learning_rate", "data_dir"))


NOT_PUSHED = {
    "no evaluation": ('eval_strategy: "no"\nload_best_model_at_end: false\n', "eval_strategy is 'no'"),
    "steps": ("eval_strategy: steps\nsave_strategy: steps\n", "eval_strategy is 'steps'"),
    "no captions": ("predict_with_generate: false\n", "predict_with_generate must be true"),
}


@pytest.mark.parametrize(("keys", "message"), NOT_PUSHED.values(), ids=NOT_PUSHED)
def test_an_epoch_is_pushed_with_its_captions_or_not_at_all(recipe_file, keys, message):
    assert message in refusal(["--config", recipe_file(f"{keys}push_to_hub: true\n")])
    read_recipe(["--config", recipe_file(keys)])
