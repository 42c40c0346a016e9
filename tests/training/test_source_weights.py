"""Weights of several data sets: which images an epoch draws, whatever the number of processes, and refused recipes.

pytest tests/training/test_source_weights.py
"""

import contextlib
import io
import itertools
import json
from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from conftest import write_recipe
from torch.utils.data import BatchSampler

from medcap.phantom.dataset import write_phantom
from medcap.recipe import RecipeError, read_recipe
from medcap.training.rows import SourceSampler
from medcap.training.run_folder import describe, environment_changes
from medcap.training.setup import images_per_epoch, load_splits
from medcap.training.trainer import CaptionTrainer

SOURCES = [range(10), range(10, 14)]


def epoch(number, *weights, seed=0):
    sampler = SourceSampler(SOURCES, weights, seed)
    sampler.set_epoch(number)
    rows = list(sampler)
    assert len(rows) == len(sampler)
    return rows


def test_an_epoch_draws_each_row_as_often_as_its_weight():
    counts = Counter(epoch(3, 2, 3))
    assert counts == {**dict.fromkeys(range(10), 2), **dict.fromkeys(range(10, 14), 3)}


def test_a_half_is_drawn_in_turn():
    drawn = [[row for row in epoch(number, 0.5, 1) if row < 10] for number in range(4)]
    assert [len(rows) for rows in drawn] == [5] * 4
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(10))
    assert set(drawn[0]) != set(drawn[2])


def test_no_row_is_drawn_again_before_all_others_of_its_source():
    seen = Counter(row for number in range(5) for row in epoch(number, 1.3, 0.7))
    assert {seen[row] for row in range(10)} <= {6, 7}  # 65 draws of 10 rows
    assert {seen[row] for row in range(10, 14)} <= {3, 4}  # 15 draws of 4 rows


def test_a_source_is_never_left_out():
    assert sum(row >= 10 for row in epoch(0, 1, 0.01)) == 1


def test_the_order_is_random_and_depends_only_on_seed_and_epoch():
    orders = [tuple(epoch(number, 1, 2, seed=seed)) for number, seed in ((0, 0), (1, 0), (0, 1))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(epoch(0, 1, 2))
    first = orders[0][:9]
    assert min(first) < 10 <= max(first)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_rows_of_one_process(processes):
    def batches(size):
        return BatchSampler(SourceSampler(SOURCES, [2, 1], 0), size, drop_last=False)

    shards = [list(BatchSamplerShard(batches(2), processes, rank)) for rank in range(processes)]
    steps = [sorted(itertools.chain(*step)) for step in zip(*shards, strict=True)]
    for step, alone in zip(steps, map(sorted, batches(2 * processes)), strict=True):
        assert not Counter(alone) - Counter(step)  # the last step is filled up by accelerate


REFUSED = {
    "weights of one": ({"data_weights": [2]}, "data_weights has no effect on one data set"),
    "two weights of one": ({"data_dir": ["a"], "data_weights": [2, 1]}, "data_weights has no effect on one data set"),
    "too few": ({"data_dir": ["a", "b"], "data_weights": [2]}, "data_weights has 1 numbers for the 2 data sets"),
    "zero": ({"data_dir": ["a", "b"], "data_weights": [0, 1]}, "data_weights has 0; allowed is above 0 and at"),
    "nan": ({"data_dir": ["a", "b"], "data_weights": [float("nan"), 1]}, "data_weights has nan; allowed is above 0"),
    "text": ({"data_dir": ["a", "b"], "data_weights": ["x", 1]}, "data_weights is ['x', 1]; expected a list"),
    "twice": ({"data_dir": ["a/", "./a"]}, "data_dir lists a twice: list it once"),
    "blank": ({"data_dir": ["a", " "]}, "with a blank name"),
    "sorted": (
        {"data_dir": ["a", "b"], "data_weights": [2, 1], "train_sampling_strategy": "group_by_length"},
        "train_sampling_strategy is group_by_length: set it to random",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_when_the_recipe_is_read(refusal, case):
    keys, message = REFUSED[case]
    assert message in refusal(**keys)


def test_an_empty_list_is_no_data_set(recipe_file):
    with pytest.raises(RecipeError, match="data_dir is missing"):
        read_recipe(["--config", recipe_file(data_dir=[])])


def test_both_keys_are_lists_on_the_command_line(recipe_file):
    recipe = read_recipe(["--config", recipe_file(), "--data_dir", "a", "b", "--data_weights", "2", "0.5"])
    assert recipe.data.data_dir == ["a", "b"]
    assert recipe.data.data_weights == [2.0, 0.5]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two data sets of phantoms with 8 and 6 training images; read-only."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, train in enumerate((8, 6)):
        write_phantom(folder / f"part{seed}", train=train, valid=2, test=2, seed=seed)
    return [str(folder / "part0"), str(folder / "part1")]


def keys_of(pair, tiny_base, folder):
    return {
        "data_dir": pair, "data_weights": [2, 0.5], "model_name_or_path": str(tiny_base), "use_cpu": True,
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 2, "num_beams": 1,
        "max_new_tokens": 4, "precision": "fp32", "lora_r": 2, "feature_cache": "off",
    }  # fmt: skip


def test_a_source_without_training_images_has_no_weight(recipe_file, pair, tmp_path):
    write_phantom(tmp_path / "rest", train=2, valid=2, test=2, seed=5)
    (tmp_path / "rest" / "train_captions.csv").unlink()
    path = recipe_file(data_dir=[pair[0], str(tmp_path / "rest")], data_weights=[1, 2])
    recipe = read_recipe(["--config", path])
    with pytest.raises(RecipeError, match="data_weights draws from rest, which has no training images"):
        images_per_epoch(recipe, load_splits(recipe)["train"])


def test_a_run_draws_by_weight_and_plans_its_steps(train_script, tiny_base, pair, tmp_path, monkeypatch):
    recipe = str(write_recipe(tmp_path / "recipe.yaml", **keys_of(pair, tiny_base, tmp_path / "run")))
    drawn, labels = [], []
    step = CaptionTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        drawn.extend(inputs["row"].tolist())
        labels.append((inputs["labels"] != -100).any(1).sum().item())
        return step(self, model, inputs, *args, **kwargs)

    with contextlib.redirect_stdout(io.StringIO()) as plan, contextlib.redirect_stderr(io.StringIO()):
        train_script.main(["--config", recipe, "--dry_run"])
        monkeypatch.setattr(CaptionTrainer, "training_step", training_step)
        train_script.main(["--config", recipe])
    assert "steps: 10 of 4 captions, 5 per epoch" in plan.getvalue()
    assert f"14 training and 4 validation images from {pair[0]} (rocov2) and {pair[1]} (rocov2)" in plan.getvalue()
    assert labels == [4, 4, 4, 4, 3] * 2  # round(2 * 8) + round(0.5 * 6) = 19 rows
    counts = Counter(drawn)
    assert {row: counts[row] for row in range(14)} == {**dict.fromkeys(range(8), 4), **dict.fromkeys(range(8, 14), 1)}
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    sources = environment["data"]["train"]["sources"]
    assert [(part["name"], part["rows"]) for part in sources] == [("part0", 8), ("part1", 6)]


def test_another_order_of_the_sources_is_a_change(recipe_file, pair):
    def described(paths):
        data = load_splits(read_recipe(["--config", recipe_file(data_dir=paths)]))
        return {"data": describe(data), "precision": "fp32", "processes": 1, "base": ""}

    before = described(pair)
    assert environment_changes(before, described(pair)) == []
    changes = environment_changes(before, described(pair[::-1]))
    assert changes[0] == "the sources of the train split are others, or in another order"
