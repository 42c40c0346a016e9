"""Keys that a run would ignore are refused when the recipe is read. pytest tests/test_recipe_effects.py"""

import pytest

from medcap.recipe import read_recipe

TRACKIO = {"trackio_space_id": "a/b", "trackio_bucket_id": "a/b", "project": "p"}
CHECKPOINTED = {"use_reentrant": False}
# keys that a run would ignore, and what the message says
NO_EFFECT = {
    "generation off": ({"predict_with_generate": False}, "predict_with_generate must be true: every evaluation gen"),
    "sorting": ({"sortish_sampler": True}, "no key 'sortish_sampler'; use train_sampling_strategy: group_by_length"),
    "inputs of metrics": ({"include_for_metrics": ["loss"]}, "include_for_metrics has no effect: metrics are c"),
    "labels": ({"label_names": ["labels"]}, "label_names has no effect: the labels are the tokens of the captions; r"),
    "tokens seen": ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen has no effect: "),
    "Liger": ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config has no effect: its kernels"),
    "a cache of keys": ({"use_cache": True}, "use_cache must be false: training needs no cache"),
    "smaller batches": ({"auto_find_batch_size": True}, "auto_find_batch_size must be false: a batch that does not f"),
    "another signal handler": ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint must be false: SIGTERM writes"),
    "gathered objects": ({"eval_use_gather_object": True}, "eval_use_gather_object must be false: "),
    "a hidden nan": ({"logging_nan_inf_filter": True}, "logging_nan_inf_filter must be false: a non-finite loss st"),
    "TF32": ({"tf32": False}, "tf32 is false, but precision auto allows TF32: set precision: fp32 instead"),
    "steps of evaluations": ({"eval_steps": 5}, "eval_steps has no effect without eval_strategy: steps; set it, or "),
    "steps of checkpoints": ({"save_steps": 5}, "save_steps has no effect without save_strategy: steps; set it, or r"),
    "steps of logs": ({"logging_steps": 5, "logging_strategy": "epoch"}, "logging_steps has no effect without loggi"),
    "a delay of nothing": (
        {"eval_delay": 1, "eval_strategy": "no", "load_best_model_at_end": False},
        "eval_delay has no effect without eval_strategy: epoch or steps",
    ),
    "checkpointing": ({"gradient_checkpointing_kwargs": CHECKPOINTED}, "no effect without gradient_checkpointing: t"),
    "its new name": ({"activation_checkpointing_kwargs": CHECKPOINTED}, "no effect without gradient_checkpointing: t"),
    "a repository": ({"hub_model_id": "a/b"}, "hub_model_id has no effect without push_to_hub: true"),
    "a private one": ({"hub_private_repo": True}, "hub_private_repo has no effect without push_to_hub: true"),
    "an old one": ({"hub_overwrite": True}, "hub_overwrite has no effect without push_to_hub: true"),
    **{key: ({key: value}, f"{key} has no effect without report_to: trackio") for key, value in TRACKIO.items()},
    "size of no cache": ({"feature_cache_gb": 5, "feature_cache": "off"}, "no effect without feature_cache: auto or "),
    "greedy search": ({"length_penalty": 2, "num_beams": 1}, "length_penalty has no effect without num_beams: 2 or m"),
    "views of nothing": (
        {"augmentation_views": 4},
        "augmentation_views has no effect without augmentation: light or ",
    ),
    "neighbors of nothing": ({"rerank_neighbors": 5}, "rerank_neighbors has no effect without rerank: consensus"),
    "seed of all images": ({"fraction_seed": 5}, "fraction_seed has no effect without train_fraction below 1"),
    "projected layers": ({"optim_target_modules": ["query"]}, "no effect without optim: galore_adamw or apollo_adamw"),
    "betas of SGD": ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1 has no effect on optim sgd; remove it"),
    "arguments of AdamW": ({"optim_args": "foo=1"}, "optim_args has no effect on optim adamw_torch_fused; remove it"),
}


@pytest.mark.parametrize(("keys", "message"), NO_EFFECT.values(), ids=NO_EFFECT)
def test_a_key_without_effect_is_refused(refusal, keys, message):
    assert message in refusal(**keys)


IN_EFFECT = {
    "defaults": {"length_penalty": 1.0, "num_beams": 1, "fraction_seed": 0, "use_cache": False},
    "steps": {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": CHECKPOINTED},
    "the same": {"activation_checkpointing": True, "activation_checkpointing_kwargs": CHECKPOINTED},
    "pushes": {"push_to_hub": True, "hub_model_id": "a/b", "hub_private_repo": False, "hub_overwrite": True},
    "trackio": {"report_to": "trackio", **TRACKIO},
    "views": {"augmentation": "light", "augmentation_views": 0, "feature_cache": "off"},
    "betas": {"adam_beta1": 0.5, "adam_epsilon": 1e-6},
    "TF32": {"tf32": False, "precision": "fp32"},
    "reranking": {"rerank": "consensus", "num_beams": 4, "rerank_candidates": 4, "rerank_neighbor_weight": 0.0},
}


@pytest.mark.parametrize("keys", IN_EFFECT.values(), ids=IN_EFFECT)
def test_a_key_with_effect_is_read(recipe_file, keys):
    assert read_recipe(["--config", recipe_file(**keys)]).given >= keys.keys()


CONTRADICTIONS = {
    "no room for the end": (
        {"min_new_tokens": 9, "max_new_tokens": 9},
        "min_new_tokens is 9, must be below max_new_tokens, 9: the end of a caption is a token too",
    ),
    "one candidate": ({"rerank": "consensus", "num_beams": 1}, "chooses among beams, and num_beams is 1: set it to 2"),
    "more candidates than beams": (
        {"rerank": "consensus", "num_beams": 3, "rerank_candidates": 4},
        "rerank_candidates is 4, must be at most num_beams, 3: the candidates are beams",
    ),
    "another rerank": ({"rerank": "mbr"}, "rerank is 'mbr'; expected none, consensus"),
}


@pytest.mark.parametrize(("keys", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_of_generation_are_refused(refusal, keys, message):
    assert message in refusal(**keys)
