"""Releases of every epoch, written into the run folder and pushed to the Hub during training.

The folders RUN/pushes/epoch-N are the only state, and every push compares a folder with the Hub first. A resumed run
or `medcap publish RUN` therefore pushes only what is missing.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medcap.evaluation.csv_files import write_predictions
from medcap.evaluation.result import EvaluationResult
from medcap.logs import error_line
from medcap.metrics.diversity import describe_captions
from medcap.metrics.signature import Signature
from medcap.modeling.adapter import trained_folder
from medcap.publish.hub_client import MAIN, Destination, push_release
from medcap.publish.release import build_release
from medcap.publish.run_paths import EPOCHS, epoch_number, epoch_releases, have_same_weights, next_release, releases
from medcap.training.caption_metrics import CaptionMetrics

logger = logging.getLogger(__name__)


class EpochReleaseCallback(TrainerCallback):
    """Write a release after each evaluation and push it in a background thread; failures never stop training.

    `save(run, gather())` writes the current adapter or model into a folder of a run; `gather` gathers the weights of
    a sharded model, and all processes call it. `scores` holds the last evaluation of the images `ids`.
    """

    def __init__(
        self, run: Path, to: Destination, gather: Callable[[], Any], save: Callable[[Path, Any], None],
        scores: CaptionMetrics, ids: Sequence[str],
    ) -> None:  # fmt: skip
        self.run, self.to, self.gather, self.save, self.scores, self.ids = run, to, gather, save, scores, list(ids)
        self.pushed: set[str] = set()
        self.failed: list[str] = []
        self.thread: threading.Thread | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove releases of epochs after the checkpoint, which are trained again, and resume the uploads."""
        if not state.is_world_process_zero:
            return
        disable_progress_bars()  # upload bars would overlap the progress bar of training
        for folder in epoch_releases(self.run):
            if epoch_number(folder) > (state.epoch or 0):
                shutil.rmtree(folder)
        self._start_upload()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the release of this epoch; this runs before its checkpoint, so every checkpoint has a release."""
        epoch, weights = math.ceil(state.epoch or 0), self.gather()
        if not state.is_world_process_zero or epoch == 0:
            return
        try:
            self._write_release(epoch, weights)
        except Exception as error:
            self.failed.append(f"epoch-{epoch}: {error_line(error)}")
            logger.warning("no release of epoch-%s; training continues", self.failed[-1])
        self._start_upload()

    def _write_release(self, epoch: int, weights: Any) -> None:
        """Write a run folder as if training had ended now, and build the release of it."""
        target = self.run / EPOCHS / f"epoch-{epoch}"
        if target.exists():
            return
        snapshot = target.with_name(f"{target.name}.run")
        shutil.rmtree(snapshot, ignore_errors=True)
        try:
            snapshot.mkdir(parents=True)
            self.save(snapshot, weights)
            for name in ("environment.json", "metrics.jsonl"):
                if (self.run / name).is_file():
                    shutil.copyfile(self.run / name, snapshot / name)
            self._write_evaluation(snapshot / "eval", f"epoch {epoch}")
            build_release(snapshot, target)  # without repo_id: on the Hub the bare name is the best epoch
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _write_evaluation(self, folder: Path, name: str) -> None:
        """Write the last evaluation in the files of `medcap evaluate`."""
        captions, scored = self.scores.predictions, self.scores.last
        assert scored is not None, "on_evaluate runs after compute_metrics"
        folder.mkdir()
        write_predictions(folder / "predictions.csv", dict(zip(self.ids, captions, strict=True)))
        result = EvaluationResult(
            name=name,
            split="valid",
            n=len(captions),
            metrics=scored.metrics,
            signature=Signature.parse(str(scored.signature)),
            captions=describe_captions(captions),
        )
        result.write(folder / "metrics.json")

    def _start_upload(self) -> None:
        """Start a thread that pushes the pending releases; a running one checks for new releases before it ends."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._upload_pending, daemon=True)  # ends with a failed run
            self.thread.start()

    def _upload_pending(self) -> None:
        try:
            while pending := [path for path in epoch_releases(self.run) if path.name not in self.pushed]:
                push_release(pending[0], self.to, revision=pending[0].name)
                self.pushed.add(pending[0].name)
        except Exception as error:
            logger.warning("%s. Training continues; the push is retried later", error_line(error))

    def finish(self, release: Path) -> str:
        """Push the pending epochs, and `release` as main; return its URL.

        Raises:
            OSError: A revision is still missing on the Hub.
        """
        if self.thread is not None:
            self.thread.join()
        url = push_run(self.run, release, self.to, pushed=self.pushed)
        if self.failed:
            raise OSError(f"{url} has no revision of {self.failed[0]}")
        return url


def push_run(run: Path, release: Path, to: Destination, *, pushed: Collection[str] = ()) -> str:
    """Push every epoch of `run` that is not in `pushed` as its own revision, and `release` as main; return its URL.

    Raises:
        OSError: A push failed; the message lists the missing revisions and the command that completes them.
    """
    pending = {path.name: path for path in epoch_releases(run) if path.name not in pushed} | {MAIN: release}
    for revision, folder in list(pending.items()):
        try:
            url = push_release(folder, to, revision=revision)
        except OSError as error:
            options = " --public" * (not to.private) + " --overwrite" * to.overwrite
            command = f"medcap publish {run} --repo-id {to.repo_id}{options}"
            raise type(error)(f"{error}; missing: {', '.join(pending)}; complete it with: {command}") from None
        del pending[revision]
    return url


def run_release(run: Path, to: Destination) -> Path:
    """Return the latest release of the run's adapter; build one for `to` if the adapter has none."""
    existing = releases(run)
    if existing and have_same_weights(existing[-1], trained_folder(run)):
        return existing[-1]
    return build_release(run, next_release(run), repo_id=to.repo_id)
