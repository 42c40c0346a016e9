"""Self-critical training: the gradient, the baselines, resuming, one process or two, and the keys of a recipe.

pytest tests/training/test_scst.py
"""

import contextlib
import io
import itertools
import json
import shutil

import pytest
import torch
from conftest import write_recipe
from safetensors.torch import load_file
from torch.nn import functional as F

from medcap.data.captions import IGNORED
from medcap.recipe import read_recipe
from medcap.training.scst import advantages, policy_loss

VOCAB, LENGTH = 3, 2


def enumerated(logits, temperature, top_k):
    """Return the probability of every caption of two tokens, by plain loops; `logits` (1 + VOCAB, VOCAB)."""
    probs = []
    for first, second in itertools.product(range(VOCAB), repeat=LENGTH):
        total = torch.ones(())
        for row, token in ((0, first), (1 + first, second)):
            kept = sorted(range(VOCAB), key=lambda other: -logits[row, other].item())[: top_k or VOCAB]
            if token not in kept:
                total = total * 0
                continue
            powers = {other: (logits[row, other] / temperature).exp() for other in kept}
            total = total * powers[token] / sum(powers.values())
        probs.append(total)
    return torch.stack(probs)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 2)])
def test_expected_gradient_is_that_of_the_expected_reward(temperature, top_k):
    """Weigh the loss of each of the nine captions by its probability: the gradient is exact, without sampling."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1 + VOCAB, VOCAB, generator=generator).requires_grad_()
    rewards = torch.randn(VOCAB**LENGTH, generator=generator)
    probs = enumerated(logits, temperature, top_k)
    (expected,) = torch.autograd.grad((probs * rewards).sum(), logits)
    captions = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    possible = probs.detach() > 0
    weights = (probs.detach() * (rewards - 0.3))[possible]  # a constant baseline changes nothing
    states = torch.stack([logits[0].expand(len(captions), -1), logits[1 + captions[:, 0]]], 1)
    loss = policy_loss(states[possible], captions[possible], weights, temperature, top_k)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-gradient, expected)


def test_loss_is_cross_entropy_weighted_by_advantages_without_padding():
    generator = torch.Generator().manual_seed(1)
    logits, weights = torch.randn(2, 4, 7, generator=generator), torch.tensor([2.0, -0.5])
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, IGNORED, IGNORED]])
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED).sum(1)
    torch.testing.assert_close(policy_loss(logits, labels, weights), (weights * each).sum())


def test_baselines():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert advantages(rewards).tolist() == [[-3.0, -1.5, 4.5]]
    assert advantages(rewards, torch.tensor([2.0])).tolist() == [[-1.0, 0.0, 4.0]]


@pytest.fixture(scope="module")
def train(train_script, trained_run, tiny_base, phantoms, tmp_path_factory):
    """Return a function that trains from the adapter of `trained_run`, and returns the folder of the run."""
    features = tmp_path_factory.mktemp("scst-features")

    def run(folder, **changes):
        keys = {
            "data_dir": str(phantoms), "model_name_or_path": str(tiny_base), "output_dir": str(folder),
            "init_adapter": str(trained_run.folder / "adapter"), "loss": "scst", "scst_samples": 3,
            "scst_reward": {"rouge_l": 1.0}, "image_size": 48, "lora_target_modules": "text", "lora_r": 8,
            "lora_dropout": 0.1, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
            "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
            "num_beams": 1, "max_new_tokens": 8, "precision": "fp32", "feature_cache": str(features),
            "use_cpu": True, "disable_tqdm": True, "seed": 5, "load_best_model_at_end": False,
        }  # fmt: skip
        recipe = write_recipe(folder.with_suffix(".yaml"), **{**keys, **changes})
        with contextlib.redirect_stdout(io.StringIO()):
            train_script.main(["--config", str(recipe)])
        return folder

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("scst") / "run")


def weights_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_training_starts_from_the_adapter(train, trained_run, whole, tmp_path):
    started = train(tmp_path / "run", learning_rate=1e-30, max_steps=2)
    first, last = weights_of(trained_run.folder / "adapter"), weights_of(whole / "adapter")
    assert [
        name for name, weight in weights_of(started / "adapter").items() if not torch.equal(weight, first[name])
    ] == []
    assert any(not torch.equal(weight, first[name]) for name, weight in last.items())


def test_a_resumed_run_is_bit_for_bit_the_same(train, whole, tmp_path):
    """Also the log of rewards, without lines of the steps after the checkpoint."""
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("adapter", "checkpoint-4"))
    resumed = train(tmp_path / "run")
    expected = weights_of(whole / "adapter")
    assert [
        name for name, weight in weights_of(resumed / "adapter").items() if not torch.equal(weight, expected[name])
    ] == []
    assert (resumed / "rewards.jsonl").read_text() == (whole / "rewards.jsonl").read_text()


def test_rewards_and_samples_of_every_log_line_are_written(whole):
    lines = [json.loads(line) for line in (whole / "rewards.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["reward"] == pytest.approx(line["reward_rouge_l"])
        assert len(line["samples"]) == 3
        assert {"image_id", "reference", "sample_words", "sample_period_fraction", "reward_facts_f1"} <= line.keys()
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"eval_facts_f1", "eval_repeated_fraction", "eval_period_fraction"} <= metrics[0].keys()


def test_micro_batches_do_not_change_the_samples(train, tmp_path):
    """One of four images and two of two give the same step."""
    plain = {"lora_dropout": 0.0, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2}
    one = weights_of(train(tmp_path / "one", **plain) / "adapter")
    two = train(tmp_path / "two", per_device_train_batch_size=2, gradient_accumulation_steps=2, **plain)
    for name, weight in weights_of(two / "adapter").items():
        torch.testing.assert_close(weight, one[name], rtol=1e-3, atol=1e-6)


def test_greedy_baseline_gives_another_gradient(train, whole, tmp_path):
    greedy = train(tmp_path / "run", scst_baseline="greedy", scst_top_k=5, scst_temperature=0.8, max_steps=2)
    first, other = weights_of(whole / "checkpoint-2"), weights_of(greedy / "adapter")
    assert any(not torch.equal(weight, first[name]) for name, weight in other.items())


UNFIT = {
    "no adapter": ({"init_adapter": "nowhere"}, "nowhere is not a folder with an adapter"),
    "another rank": ({"lora_r": 4}, "has r 8, and the recipe 4: give both the same"),
    "other layers": ({"lora_target_modules": "query-key"}, "and the recipe differ in base_model.model.text_decoder"),
}


@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT)
def test_an_adapter_that_does_not_fit_is_refused(train, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "run", **changes)
    assert message in capsys.readouterr().err


REFUSED = {
    "one sample": ({"loss": "scst", "scst_samples": 1}, "scst_samples is 1, and scst_baseline mean needs others"),
    "labels": ({"loss": "scst", "label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect on loss: scst"),
    "unused": ({"scst_top_k": 5}, "scst_top_k has no effect without loss: scst; set it, or remove scst_top_k"),
    "another loss": ({"loss": "ppo"}, "loss is 'ppo'; expected cross_entropy, scst"),
    "another reward": (
        {"loss": "scst", "scst_reward": {"ciderr": 1}},
        "scst_reward has 'ciderr'; did you mean 'cider'? allowed are cider, rouge_l, bleu_4, facts_f1",
    ),
    "no weight": ({"loss": "scst", "scst_reward": {"cider": 0}}, "scst_reward is 0 for cider; allowed is above 0"),
    "no reward": ({"loss": "scst", "scst_reward": {}}, "scst_reward is empty; name rewards, or remove it"),
    "two starts": ({"init_adapter": "a", "lora_init": "pissa"}, "lora_init is pissa, but init_adapter replaces the"),
    "no adapter": ({"init_adapter": "a", "adapter": "none"}, "init_adapter has no effect without adapter: lora"),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused(refusal, keys, message):
    assert message in refusal(**keys)


def test_keys_of_samples_are_saved_only_with_the_loss(recipe_file):
    scst = read_recipe(["--config", recipe_file(loss="scst", scst_samples=4)]).as_dict()
    assert (scst["loss"], scst["scst_samples"]) == ("scst", 4)
    plain = read_recipe(["--config", recipe_file()]).as_dict()
    assert [key for key in plain if key.startswith("scst_")] == []
