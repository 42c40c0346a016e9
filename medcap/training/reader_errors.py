"""What breaks while images are read, said in one line that names what is at fault."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GO_ON = "then the same command goes on from the last checkpoint"


@contextmanager
def reader_errors() -> Iterator[None]:
    """Raise in one line, as OSError, what the processes that read images died of, or could not read.

    torch hands on the error of such a process with its traceback as the message, and of one that was killed says so
    among much else.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        sys.stderr.write("\n")  # below the progress bar
        if killed := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
            raise OSError(
                f"process {killed[1]}, which reads images, was killed; the kernel does that when memory is short: "
                f"lower dataloader_num_workers or the batch size, {GO_ON}"
            ) from error
        if found := re.search(r"image_id .*: cannot read image .*", text):
            raise OSError(f"{found[0]}: it could be read when the run began; mend it, {GO_ON}") from error
        raise
