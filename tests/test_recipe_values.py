"""Values that no run can use are refused when the recipe is read, with one line that names the key and its source.

pytest tests/test_recipe_values.py
"""

import math
import random
from pathlib import Path

import pytest
from conftest import recipe_error
from transformers.trainer_utils import SchedulerType

from medcap.metrics.statistics import METRICS
from medcap.recipe import RecipeError, read_recipe
from medcap.recipe.arguments import RANGES, REPLACED
from medcap.recipe.ranges import SCORES, Range, reporters
from medcap.recipe.values import key_types

NUMBERS = {key for key, kinds in key_types().items() if {int, float} & set(kinds)} - REPLACED.keys()


def test_every_number_has_a_range():
    assert RANGES.keys() >= NUMBERS


def outside(allowed: Range) -> list[float]:
    """Return values just outside a range, and those that are no number."""
    ends = [allowed.lowest if allowed.above else allowed.lowest - 1]
    if allowed.highest < math.inf:
        ends.append(allowed.highest if allowed.below else allowed.highest + 1)
    return [*ends, -10 if allowed.lowest >= -1 else -1e9, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("key", sorted(RANGES))
def test_a_number_out_of_range_is_named(recipe_file, key):
    for value in outside(RANGES[key]):
        path = recipe_file(**{key: value})
        message = recipe_error(["--config", path])
        assert message.startswith(f"{path}: {key} is {value}")
        assert message.endswith((f"; allowed is {RANGES[key]}", "; expected an integer"))


TEXTS = {
    Range(0, 1): "0 to 1",
    Range(1): "at least 1",
    Range(0, above=True): "above 0",
    Range(0, 1, above=True): "above 0, at most 1",
    Range(0, 1, below=True): "at least 0, below 1",
    Range(1, 10**12, also=-1): "-1, or 1 to 1000000000000",
}


@pytest.mark.parametrize(("allowed", "text"), TEXTS.items(), ids=TEXTS.values())
def test_a_range_is_described(allowed, text):
    assert str(allowed) == text


def test_names_are_those_of_the_libraries():
    assert SCORES == METRICS
    assert {"none", "tensorboard", "wandb", "trackio"} <= set(reporters())


# keys, and what the message says
REFUSED = {
    "an unknown metric": ({"metric_for_best_model": "bleu4"}, "'bleu4'; did you mean 'bleu_4'? allowed are bleu_1, "),
    "another metric": ({"metric_for_best_model": "xyzzy"}, "'xyzzy'; allowed are bleu_1, "),
    "parts of an evaluation": ({"eval_do_concat_batches": False}, "eval_do_concat_batches must be true"),
    "no captions": ({"prediction_loss_only": True}, "prediction_loss_only must be false"),
    "no generation": ({"predict_with_generate": False}, "predict_with_generate must be true"),
    "kernels of other models": ({"use_liger_kernel": True}, "use_liger_kernel must be false"),
    "metrics of batches": ({"batch_eval_metrics": True}, "batch_eval_metrics must be false"),
    "fp16 on a CPU": ({"precision": "fp16"}, "precision is fp16, which needs a GPU"),
    "fp16 of the Trainer": ({"fp16": True}, "precision is fp16, which needs a GPU"),
    "reentrant": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "use_reentrant: the frozen base then gives the adapter no gradients",
    ),
    "early stopping without evaluation": (
        {"early_stopping_patience": 1, "eval_strategy": "no", "load_best_model_at_end": False},
        "early_stopping_patience counts evaluations, but eval_strategy is 'no'",
    ),
    "a schedule without its arguments": (
        {"lr_scheduler_type": "warmup_stable_decay"},
        "lr_scheduler_type warmup_stable_decay needs num_decay_steps in lr_scheduler_kwargs",
    ),
    "a schedule without one of two": (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "lr_scheduler_type cosine_with_min",
    ),
    "a schedule's unknown argument": ({"lr_scheduler_kwargs": {"cycles": 2}}, "unexpected keyword argument 'cycles'"),
    "ignored arguments": (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
        "lr_scheduler_type constant takes no arguments",
    ),
    "text for an argument": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}},
        "lr_scheduler_type cosine with lr_scheduler_kwargs {'num_cycles': 'two'}",
    ),
    "a learning rate that is no number": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": math.nan}},
        "lr_scheduler_kwargs has num_cycles nan; it must be finite",
    ),
    "a learning rate that does not decay": (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
        "lr_scheduler_type polynomial with lr_scheduler_kwargs {'lr_end': 1.0}",
    ),
    "text for a mapping": (
        {"lr_scheduler_kwargs": "num_cycles"},
        "lr_scheduler_kwargs is 'num_cycles'; expected a ma",
    ),
    "a missing file": ({"accelerator_config": "no.json"}, "is 'no.json'; expected a mapping or the path of a file"),
    "JSON that is broken": ({"lr_scheduler_kwargs": "{1"}, "lr_scheduler_kwargs is '{1'; expected a mapping"),
    "ignored warm-up": (
        {"lr_scheduler_type": "constant", "warmup_steps": 5},
        "warmup_steps is 5, but lr_scheduler_type constant has no warm-up",
    ),
    "warm-up beyond all steps": (
        {"max_steps": 10, "warmup_steps": 11},
        "warmup_steps is 11, but the run has 10 steps",
    ),
    "decay beyond all steps": (
        {"max_steps": 10, "lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 11}},
        "take 11 steps, but the run has 10",
    ),
    "a plateau of the wrong direction": (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "min"}},
        "lr_scheduler_kwargs has mode 'min', but more cider is better: mode must be 'max'",
    ),
    "a plateau without evaluation": (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no", "load_best_model_at_end": False},
        "requires an eval strategy",
    ),
    "less CIDEr": ({"greater_is_better": False}, "greater_is_better is false, but more cider is better"),
    "more loss": (
        {"metric_for_best_model": "eval_loss", "greater_is_better": True},
        "greater_is_better is true, but less loss is better",
    ),
    "no direction": ({"metric_for_best_model": "mean_words"}, "mean_words has no better direction: give greater_is_b"),
    "the best of no evaluation": ({"eval_strategy": "no"}, "load_best_model_at_end requires the save and eval"),
    "a best step that is not saved": (
        {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4},
        "load_best_model_at_end needs a checkpoint of every evaluation, but save_steps is 4 and eval_steps 2",
    ),
    "an unknown compiler": ({"torch_compile_backend": "inducto"}, "did you mean 'inductor'? allowed are "),
    "unknown strategy": ({"save_strategy": "epochs"}, "save_strategy is 'epochs'; expected no, steps, epoch"),
    "unknown sampling": ({"train_sampling_strategy": "sorted"}, "train_sampling_strategy is 'sorted'; allowed are gr"),
    "another length column": ({"length_column_name": "image"}, "length_column_name is 'image'; allowed are length"),
    "an unknown reporter": ({"report_to": "wandd"}, "report_to is 'wandd'; did you mean 'wandb'? allowed are none, "),
    "none and another": ({"report_to": ["none", "wandb"]}, "report_to lists 'none' with others"),
    "a prefetch factor without workers": (
        {"dataloader_prefetch_factor": 2},
        "dataloader_prefetch_factor is 2, but dataloader_num_workers is 0",
    ),
    "a start method without workers": (
        {"dataloader_multiprocessing_context": "spawn"},
        "dataloader_multiprocessing_context is spawn, but dataloader_num_workers is 0",
    ),
    "an optimizer that is not installed": ({"optim": "galore_adamw"}, "optim is galore_adamw: "),
    "arguments of the optimizer": ({"optim_args": "a"}, "optim is adamw_torch_fused and optim_args is a: "),
    "a long prompt": ({"prompt": "word " * 2000}, "prompt is 10,000 characters long; allowed are 1,000"),
    "a long pattern": (
        {"lora_target_modules": "x" * 1001},
        "lora_target_modules is 1,001 characters long; allowed are",
    ),
    "a prompt longer than captions": (
        {"prompt": "a " * 94},
        "prompt has 94 words, but max_caption_tokens leaves room",
    ),
    "an accelerator's unknown key": ({"accelerator_config": {"split": 1}}, "unexpected keyword argument 'split'"),
    "a line break in a number": ({"lora_r": "4\n5"}, "lora_r is '4\\n5'; expected an integer"),
    "true for a number": ({"learning_rate": True}, "learning_rate"),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_run_can_use_is_refused(refusal, keys, message):
    assert message in refusal(**keys)


def test_a_refused_value_of_a_recipe_without_required_keys_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("prompt: " + "word " * 500)
    assert "prompt is 2,499 characters long" in recipe_error(["--config", str(tmp_path / "recipe.yaml")])


def test_output_dir_must_not_be_a_file(recipe_file, tmp_path):
    (tmp_path / "run").write_text("")
    message = recipe_error(["--config", recipe_file(output_dir=str(tmp_path / "run"))])
    assert message.endswith(f"output_dir {tmp_path / 'run'} is a file; name a new folder")


SMUGGLED = {
    "other keys": ["none", "--push_to_hub", "true", "--hub_private_repo", "false"],
    "a token": ["none", "--hub_token", "hf_x"],
    "with an equals sign": ["--push_to_hub=true"],
    "one hyphen": ["-x"],
}


@pytest.mark.parametrize("key", ["report_to", "optim_target_modules", "debug"])
@pytest.mark.parametrize("values", SMUGGLED.values(), ids=SMUGGLED)
def test_a_list_cannot_set_other_keys(recipe_file, key, values):
    path = recipe_file(**{key: values})
    option = next(value for value in values if value.startswith("-"))
    assert recipe_error(["--config", path]) == (
        f"{path}: {key} lists {option!r}; a value of a list must not begin with - as an option does"
    )


def test_a_token_cannot_be_set(recipe_file):
    advice = "there is no key 'hub_token'; use `hf auth login` or the environment variable HF_TOKEN"
    assert advice in recipe_error(["--config", recipe_file(hub_token="hf_x")])
    for option in (["--hub_token", "hf_x"], ["--report_to", "none", "--hub_token=hf_x"]):
        assert recipe_error(["--config", recipe_file(), *option]).startswith(f"command line: {advice}")


DIRECTIONS = {"cider": "max", "loss": "min", "eval_bleu_4": "max"}


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("metric", "mode"), DIRECTIONS.items(), ids=DIRECTIONS)
def test_a_plateau_is_watched_in_the_direction_of_the_metric(recipe_file, metric, mode, kind):
    path = recipe_file(metric_for_best_model=metric, lr_scheduler_type=kind)
    assert read_recipe(["--config", path]).training.lr_scheduler_kwargs == {"mode": mode}


@pytest.mark.parametrize(
    "kind", [kind.value for kind in SchedulerType if "min_lr" not in kind and "stable" not in kind]
)
def test_other_schedules_need_no_arguments(recipe_file, kind):
    assert read_recipe(["--config", recipe_file(lr_scheduler_type=kind)]).training.lr_scheduler_type == kind


SUGGESTED = {
    "lr": "learning_rate", "wd": "weight_decay", "batch_size": "per_device_train_batch_size", "warmup": "warmup_steps",
    "epochs": "num_train_epochs", "beams": "num_beams", "grad_acc_steps": "gradient_accumulation_steps",
    "alpha": "lora_alpha", "lr_schedule": "lr_scheduler_type", "patience": "early_stopping_patience",
    "metric": "metric_for_best_model", "max_tokens": "max_new_tokens",
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), SUGGESTED.items(), ids=SUGGESTED)
def test_an_abbreviation_suggests_its_key(recipe_file, name, key):
    message = recipe_error(["--config", recipe_file(), f"--{name}", "1"])
    assert message == f"command line: unknown key {name!r}; did you mean {key!r}?"


BLAMED = {
    "a rule": (["--warmup_steps", "11", "--max_steps", "10"], "command line"),
    "the Trainer": (["--eval_strategy", "no", "--load_best_model_at_end"], "command line"),
    "an argument of the Trainer": (["--accelerator_config", '{"x": 1}'], "{path} and command line"),
    "a value": (["--learning_rate", "-1"], "command line"),
    "both": (["--early_stopping_patience", "1"], "{path} and command line"),
}


@pytest.mark.parametrize(("arguments", "source"), BLAMED.values(), ids=BLAMED)
def test_the_source_of_a_wrong_value_is_named(recipe_file, arguments, source):
    path = recipe_file(**({"eval_strategy": "no", "load_best_model_at_end": False} if "and" in source else {}))
    assert recipe_error(["--config", path, *arguments]).startswith(f"{source.format(path=path)}: ")


ABSURD = (
    -1, 0, 1, 2, 1.5, 1e300, -1e300, 10**40, math.nan, math.inf, True, False, "", "no", "x", "-1", "--lora_r", "\0",
    "\n", "é" * 2000, [], [[]], [None], ["x"], {}, {"x": 1}, {1: math.nan}, "{", "{}", '{"x": 1}',
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_absurd_values_are_refused_in_one_line_or_read(recipe_file, seed):
    """The oracle: RecipeError of one line that names a key, or a recipe that can be saved and read again."""
    draw = random.Random(seed)
    for _ in range(40):
        keys = {key: draw.choice(ABSURD) for key in draw.sample(sorted(key_types()), 2)}
        path = recipe_file(**keys)
        try:
            recipe = read_recipe(["--config", path])
        except RecipeError as error:
            line = str(error)
        else:
            recipe.save(Path(path))
            line = (
                f"{keys}" if read_recipe(["--config", path]).as_dict() == recipe.as_dict() else "was saved otherwise"
            )
        assert "\n" not in line
        assert any(key in line for key in keys), (keys, line)
