"""Time medcap's training: the trainer of scripts/train.py with the recipe of the original project."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import TrainerCallback

from medcap.modeling.feature_store import FeatureCache
from medcap.recipe import read_recipe
from medcap.training.caption_metrics import CaptionMetrics

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "blip-base-rocov2" / "seed-6-epochs.yaml"


def train_script() -> ModuleType:
    """Import scripts/train.py as a module."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StepTimer(TrainerCallback):
    """Measure the seconds from one step's end to the next: loading, forward, backward and optimizer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


class MedcapLoop:
    """medcap's trainer with the LoRA and batch of the original project, in the precision of the device."""

    def __init__(self, base: Path, data: Path, out: Path) -> None:
        self.script, self.timer, self.out = train_script(), StepTimer(), out
        argv = ["--config", RECIPE, "--data_dir", data, "--model_name_or_path", base, "--output_dir", out / "run"]
        argv += ["--train_fraction", 1, "--num_train_epochs", 1, "--eval_strategy", "no", "--save_strategy", "no"]
        argv += ["--precision", "auto", "--max_grad_norm", 1, "--train_sampling_strategy", "group_by_length"]
        argv += ["--max_caption_tokens", 128, "--disable_tqdm", "true"]
        self.recipe = read_recipe(list(map(str, argv)))
        self.adapted = self.script.make_model(self.recipe, self.script.resolve_precision(self.recipe))
        self.data = self.script.load_checked_splits(self.recipe)
        self.count = 0

    def new_cache(self) -> FeatureCache:
        """Open an empty cache."""
        self.count += 1
        model = replace(self.recipe.model, feature_cache=str(self.out / f"features-{self.count}"))
        self.recipe = replace(self.recipe, model=model)
        cache = self.script.open_feature_cache(self.recipe, self.data, self.adapted)
        assert cache is not None
        return cache

    def epoch(self, cache: FeatureCache | None) -> list[float]:
        """Train one epoch and return the seconds of every step."""
        self.timer.seconds = []
        # without METEOR, whose Java process would use the same cores
        scores = CaptionMetrics(self.adapted.processor.tokenizer, self.data["valid"]["caption"])
        captions = self.script.tokenize_captions(self.recipe, self.data, self.adapted.family)
        trainer = self.script.make_trainer(
            self.recipe, self.data, captions, self.adapted, scores, cache, self.script.write_sample_sheet
        )
        trainer.add_callback(self.timer)
        trainer.train()
        if cache is not None:
            cache.flush()
        return self.timer.seconds
