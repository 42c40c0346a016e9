"""Stand in for the video processors of transformers, which need torchvision; images need none."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transformers import processing_utils

try:
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError:  # transformers before 5.23
    from transformers.video_processing_utils import BaseVideoProcessor as VideoProcessorMixin


class NoVideoProcessor(VideoProcessorMixin):
    """A video processor that is never called."""

    num_frames, fps, max_frames = 8, 1, 8

    def __init__(self, **kwargs: Any) -> None:
        self.model_input_names: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a processor is saved with."""
        return {"video_processor_type": "NoVideoProcessor"}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoVideoProcessor:
        """Return a new one."""
        return cls()


def install() -> None:
    """Let `AutoProcessor` load processors with video where torchvision is missing."""
    processing_utils.transformers_module.VideoProcessorMixin = VideoProcessorMixin
    # `from transformers.models.auto import ...` gives a stand-in that only raises errors
    import_module(
        "transformers.models.auto.video_processing_auto"
    ).AutoVideoProcessor.from_pretrained = NoVideoProcessor.from_pretrained
