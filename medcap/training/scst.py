"""Self-critical sequence training: the policy gradient of the rewards of sampled captions.

Rennie et al., 2017, "Self-Critical Sequence Training for Image Captioning": the reward of greedy search is the
baseline. Luo, 2020, "A Better Variant of Self-Critical Sequence Training": that of the image's other samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import TrainerState, TrainingArguments

from medcap.data.captions import IGNORED
from medcap.modeling.generation import decode_captions
from medcap.modeling.sampling import TokenSampler, truncated
from medcap.recipe.groups import ScstArguments
from medcap.training.callbacks import JsonLines
from medcap.training.micro_batches import Batch, repeat_rows
from medcap.training.rewards import FIGURES, Rewards
from medcap.training.sharding import call_within
from medcap.training.trainer import CaptionTrainer, Count

IMAGES = {"pixel_values", "digests", "is_cached"}  # entries of a batch that its features replace


def advantages(rewards: torch.Tensor, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """Return rewards (B, k) minus the baseline: `greedy` (B,), or the mean reward of the image's other samples."""
    if greedy is not None:
        return rewards - greedy[:, None]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def policy_loss(
    logits: torch.Tensor, labels: torch.Tensor, advantages: torch.Tensor, temperature: float = 1.0, top_k: int = 0
) -> torch.Tensor:
    """Return minus the sum over sampled tokens of advantage times log-probability (float32 scalar).

    Args:
        logits: Of the next tokens (n, T, vocab).
        labels: The next tokens (n, T), IGNORED where none was sampled.
        advantages: Of the captions (n,).
        temperature: Of the samples.
        top_k: Of the samples.
    """
    has_label = labels != IGNORED
    tokens, weights = labels[has_label], advantages[:, None].expand_as(labels)[has_label]
    log_probs = truncated(logits[has_label].float(), temperature, top_k, tokens).log_softmax(-1)
    return -(weights * log_probs.gather(-1, tokens[:, None])[:, 0]).sum()


class ScstTrainer(CaptionTrainer):
    """A CaptionTrainer that samples captions of each training image and raises the log-probability of good ones.

    Each sample is used for one step only, so that there is no ratio of policies to clip. The loss of a step is divided
    by the sampled tokens of all its micro-batches and processes.
    """

    def __init__(self, *args: Any, scst: ScstArguments, train: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """Initialize the trainer.

        Args:
            *args: As for `CaptionTrainer`.
            scst: Keys of a recipe.
            train: Columns "image_id" and "caption" of the training data.
            **kwargs: As for `CaptionTrainer`; `data_collator` must be that of the family.
        """
        super().__init__(*args, **kwargs)
        self.scst, self.rows_per_image = scst, scst.scst_samples
        self.image_ids, self.rewards = list(train["image_id"]), Rewards(train["caption"], scst.scst_reward)
        self.greedy_config = self.family.make_generation_config(
            num_beams=1, max_new_tokens=self.generation_config.max_new_tokens
        )
        self.sums: dict[str, float] = {}  # of figures over the samples since the last log
        self.sampled: dict[str, Any] = {}  # the first image of the last micro-batch, and its samples

    @property
    def has_partial_logits(self) -> bool:
        """Whether the loss needs the logits of a part of the tokens at a time: never."""
        return False

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Count]:
        """Return the micro-batches of one step with sampled captions, and the tokens of these on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._with_samples(self._prepare_inputs(batch)) for batch in batches]
        if not batches:
            return batches, None
        tokens = torch.stack([batch["labels"].ne(IGNORED).sum() for batch in batches]).sum()
        return batches, self.accelerator.reduce(tokens, "sum") if self.args.average_tokens_across_devices else tokens

    def _with_samples(self, batch: Batch) -> Batch:
        """Return a batch of `scst_samples` rows per image: sampled captions, and "advantages" (rows,) float32."""
        k, counts = self.scst.scst_samples, batch["labels"].ne(IGNORED).any(1)  # a repeated row does not count
        with self._evaluating():
            features = self._features(batch)
            greedy = self._ids(batch, features) if self.scst.scst_baseline == "greedy" else None
            if features is not None and not self.trains_vision_encoder:
                kept = {name: values for name, values in batch.items() if name not in IMAGES}
                batch = {**kept, "features": features}
            samples = repeat_rows(batch, k)
            features = None if features is None else features.repeat_interleave(k, 0)
            ids = self._ids(samples, features, self._sampler(batch["row"].tolist()))
        rewards = self._score(ids, samples["row"].tolist(), counts.repeat_interleave(k).cpu().numpy()).view(-1, k)
        baseline = None if greedy is None else self._score(greedy, batch["row"].tolist())
        text = self.data_collator.of_ids({name: values.cpu() for name, values in samples.items()}, ids)
        text = {name: values.to(counts.device) for name, values in text.items()}
        text["labels"][~counts.repeat_interleave(k)] = IGNORED
        return {**samples, **text, "advantages": advantages(rewards, baseline).flatten().to(counts.device)}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Turn gradients and dropout off."""
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            yield
        self.model.train()

    def _sampler(self, rows: list[int]) -> TokenSampler:
        epoch = int(self.state.epoch or 0)
        keys = [(self.args.seed, epoch, row, sample) for row in rows for sample in range(self.scst.scst_samples)]
        tokens = self.greedy_config.max_new_tokens
        return TokenSampler(keys, tokens, self.scst.scst_temperature, self.scst.scst_top_k)

    def _ids(
        self, batch: Batch, features: torch.Tensor | None, sampler: TokenSampler | None = None
    ) -> list[list[int]]:
        """Return the tokens of a caption of each row with the end token, unless it was cut."""
        arguments = (batch, features, self.greedy_config, self.prompt, sampler)
        generated = call_within(self.model, self.family.generate, *arguments).tolist()
        end = self.family.end_token_id
        return [row[: row.index(end) + 1] if end in row else row for row in generated]

    def _score(self, ids: list[list[int]], rows: list[int], counts: NDArray[np.bool_] | None = None) -> torch.Tensor:
        """Return the rewards (n,) float32 of captions of the images `rows`; with `counts`, add them to the log."""
        captions = decode_captions(self.processing_class.tokenizer, ids)
        scores = self.rewards(captions, [row[-1] == self.family.end_token_id for row in ids], rows)
        rewards = torch.tensor(scores["reward"], dtype=torch.float32)
        if counts is not None:
            for name, values in {"samples": np.ones(len(rows)), **scores}.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(values[counts].sum())
            k = self.scst.scst_samples
            self.sampled = {"row": rows[0], "captions": captions[:k], "rewards": rewards[:k].tolist()}
        return rewards

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Count = None
    ) -> Any:
        """Return the policy loss divided by the tokens of the step, or of `inputs` if None (float32 scalar)."""
        features = None if self.trains_vision_encoder else self._features(inputs)
        logits = model(**self.family.inputs(inputs, features)).logits[:, :-1]  # of all positions, or of the last ones
        labels = inputs["labels"][:, -logits.shape[1] :]
        weights = inputs.get("advantages", logits.new_ones(len(labels)))  # the memory estimate has no samples
        loss = policy_loss(logits, labels, weights, self.scst.scst_temperature, self.scst.scst_top_k)
        loss = loss / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, with the mean figures of the samples of all processes since the last log if there is a loss."""
        if "loss" in logs and self.sums:
            names, device = list(self.sums), self.args.device
            sums = torch.tensor([self.sums[name] for name in names], dtype=torch.float32, device=device)
            totals = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
            samples, self.sums = max(totals.pop("samples"), 1.0), {}
            logs = {**logs, **{name: total / samples for name, total in totals.items()}}
        super().log(logs, start_time)


class RewardLog(JsonLines):
    """Writes `rewards.jsonl`: for each log line its figures, and the samples of one image with their rewards."""

    def __init__(self, run: Path, trainer: ScstTrainer) -> None:
        self.path, self.trainer = run / "rewards.jsonl", trainer
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the figures and samples for the next checkpoint."""
        if not state.is_world_process_zero or "reward" not in (logs or {}):
            return
        sampled, trainer = self.trainer.sampled, self.trainer
        texts = zip(sampled["captions"], sampled["rewards"], strict=True)
        self.lines.append({
            "step": state.global_step,
            **{name: logs[name] for name in (*FIGURES, "loss") if name in logs},
            "image_id": trainer.image_ids[sampled["row"]],
            "reference": trainer.rewards.captions[sampled["row"]],
            "samples": [{"caption": caption, "reward": reward} for caption, reward in texts],
        })  # fmt: skip

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the lines since the last checkpoint: a run that is killed repeats the others."""
        if state.is_world_process_zero:
            self.add(self.lines)
            self.lines = []

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the last lines."""
        self.on_save(args, state, control)
