"""Errors of reading images during training, in one line that names the image or process at fault."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

RESUME = "then the same command resumes from the last checkpoint"


@contextmanager
def reader_errors() -> Iterator[None]:
    """Raise OSError, in one line, for a data loader worker that was killed or an image that it could not read.

    The message of torch holds the worker's whole traceback.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        sys.stderr.write("\n")  # below the progress bar
        if killed := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
            raise OSError(
                f"data loader worker {killed[1]} was killed; the kernel does that when memory is short: "
                f"lower dataloader_num_workers or the batch size, {RESUME}"
            ) from error
        if found := re.search(r"image_id .*: cannot read image .*", text):
            raise OSError(f"{found[0]}: it was readable when the run began; fix it, {RESUME}") from error
        raise
