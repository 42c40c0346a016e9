"""Every epoch on the Hub: a release of each is written into the run, and pushed while training goes on.

The folders RUN/pushes/epoch-N are written once and are all there is to remember: what the Hub has of them is asked of
the Hub. So whoever comes later, a run that goes on or `medcap publish RUN`, pushes what lacks and no more.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medcap.evaluation.predictions import write_predictions
from medcap.io import write_json
from medcap.logs import error_line
from medcap.metrics.diversity import describe_captions
from medcap.publish.hub_client import MAIN, Destination, push_release
from medcap.publish.release import build_release
from medcap.publish.run_paths import EPOCHS, WEIGHTS, epoch_number, epoch_releases, next_release, releases
from medcap.training.caption_metrics import CaptionMetrics

logger = logging.getLogger(__name__)


class EpochPushes(TrainerCallback):
    """Writes a release after each evaluation, and pushes it in a thread; nothing that fails here stops training.

    `save(folder)` writes the adapter as it is now; `scores` holds the last evaluation, of the images `ids`.
    """

    def __init__(
        self, run: Path, to: Destination, save: Callable[[Path], None], scores: CaptionMetrics, ids: Sequence[str]
    ) -> None:
        self.run, self.to, self.save, self.scores, self.ids = run, to, save, scores, list(ids)
        self.pushed: set[str] = set()
        self.lost: list[str] = []
        self.thread: threading.Thread | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget epochs after the checkpoint, which will be trained again, and go on with pushing the others."""
        if not state.is_world_process_zero:
            return
        disable_progress_bars()  # of uploads, which would be drawn into that of training
        for folder in epoch_releases(self.run):
            if epoch_number(folder) > (state.epoch or 0):
                shutil.rmtree(folder)
        self._push_on()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the release of this epoch, before its checkpoint: whatever is gone on with has one."""
        epoch = math.ceil(state.epoch or 0)
        if not state.is_world_process_zero or epoch == 0:
            return
        try:
            self._write_release(epoch)
        except Exception as error:
            self.lost.append(f"epoch-{epoch}: {error_line(error)}")
            logger.warning("no release of epoch-%s; training goes on", self.lost[-1])
        self._push_on()

    def _write_release(self, epoch: int) -> None:
        """Make the run look as it would if it had ended now, and release that."""
        target = self.run / EPOCHS / f"epoch-{epoch}"
        if target.exists():
            return
        now = target.with_name(f"{target.name}.run")
        shutil.rmtree(now, ignore_errors=True)
        try:
            now.mkdir(parents=True)
            self.save(now / "adapter")
            for name in ("environment.json", "metrics.jsonl"):
                if (self.run / name).is_file():
                    shutil.copyfile(self.run / name, now / name)
            self._write_evaluation(now / "eval", f"epoch {epoch}")
            build_release(now, target)  # its card names no repository: there, the name alone means another epoch
        finally:
            shutil.rmtree(now, ignore_errors=True)

    def _write_evaluation(self, folder: Path, name: str) -> None:
        """The evaluation that has just been, in the files of `medcap evaluate`."""
        captions, scored = self.scores.predictions, self.scores.last
        assert scored is not None, "on_evaluate comes after compute_metrics"
        folder.mkdir()
        write_predictions(folder / "predictions.csv", dict(zip(self.ids, captions, strict=True)))
        result = {"name": name, "split": "valid", "n": len(captions), "metrics": scored.metrics}
        said = {"signature": scored.signature, "captions": describe_captions(captions)}
        write_json(folder / "metrics.json", {**result, **said})

    def _push_on(self) -> None:
        """Start a thread for what is still to be pushed; one that runs already looks for more before it ends."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._push_waiting, daemon=True)  # it must not outlive a failed run
            self.thread.start()

    def _push_waiting(self) -> None:
        try:
            while waiting := [path for path in epoch_releases(self.run) if path.name not in self.pushed]:
                push_release(waiting[0], self.to, revision=waiting[0].name)
                self.pushed.add(waiting[0].name)
        except Exception as error:
            logger.warning("%s. Training goes on, and the push is tried again later", error_line(error))

    def finish(self, release: Path) -> str:
        """Push what is left of the epochs, and `release` as main; returns its address.

        Raises OSError, one line, when the Hub does not have all of it then.
        """
        if self.thread is not None:
            self.thread.join()
        address = push_run(self.run, release, self.to, pushed=self.pushed)
        if self.lost:
            raise OSError(f"{address} has no revision of {self.lost[0]}")
        return address


def push_run(
    run: Path, release: Path, to: Destination, *, pushed: Collection[str] = (), api: HfApi | None = None
) -> str:
    """Push every epoch of `run` that is not `pushed` as its own revision, and `release` as main; returns its address.

    Raises OSError, one line that says what lacks and how to complete it.
    """
    waiting = {path.name: path for path in epoch_releases(run) if path.name not in pushed}
    waiting[MAIN] = release
    for revision, folder in list(waiting.items()):
        try:
            address = push_release(folder, to, revision=revision, api=api)
        except OSError as error:
            options = " --public" * (not to.private) + " --overwrite" * to.overwrite
            how = f"complete it with: medcap publish {run} --repo-id {to.repo_id}{options}"
            raise type(error)(f"{error}; it lacks {', '.join(waiting)}; {how}") from None
        del waiting[revision]
    return address


def run_release(run: Path, to: Destination) -> Path:
    """The release of a run's adapter for `to`: the last one that was built of it, or a new one."""
    made = releases(run)
    if made and (made[-1] / WEIGHTS).read_bytes() == (run / "adapter" / WEIGHTS).read_bytes():
        return made[-1]
    return build_release(run, next_release(run), repo_id=to.repo_id)
