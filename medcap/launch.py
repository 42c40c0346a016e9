"""`accelerate launch` that ends as its processes did: with their status, and nothing below the line that says why.

    python -m medcap.launch [--config_file FILE] [--num_processes N] scripts/train.py --config RECIPE

What `medcap train` runs. accelerate's own command ends with status 1 and a traceback of its own whenever one of
several processes fails.
"""

from __future__ import annotations

import logging
import signal
import sys

from accelerate.commands.launch import main as accelerate_launch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Take the words of `accelerate launch`, and end with the status of the process that failed first."""
    logging.disable(logging.CRITICAL)  # which processes are ended because another one failed, in many lines
    try:
        accelerate_launch()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        sys.stderr.write(f"medcap: error: process {rank} was ended by {name}, and with it the others\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
