"""`accelerate launch` that ends as its processes did: with their status, and nothing below the line that says why.

    python -m medcap.launch [--config_file FILE] [--num_processes N] scripts/train.py --config RECIPE

What `medcap train` runs. accelerate's own command ends with status 1 whatever that of training is, and with a
traceback of its own whenever one of several processes fails.
"""

from __future__ import annotations

import logging
import signal
import sys
from subprocess import CalledProcessError

from accelerate.commands.launch import main as accelerate_launch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Take the words of `accelerate launch`, and end with the status of the process that failed first.

    Which one that was is not known where several are found at once: those that lost another end with 1, so a killed
    one comes before them, and a higher status. A process that was killed gives 128 and the signal's number.
    """
    logging.disable(logging.CRITICAL)  # which processes are ended because another one failed, in many lines
    try:
        accelerate_launch()
    except CalledProcessError as error:  # one process alone
        if error.returncode < 0:
            sys.stderr.write(f"medcap: error: training was ended by {signal.Signals(-error.returncode).name}\n")
        sys.exit(error.returncode if error.returncode > 0 else 128 - error.returncode)
    except ChildFailedError as error:
        status = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = [rank for rank, code in status.items() if code < 0 and code != -signal.SIGTERM]  # that: the others
        if killed:
            name = signal.Signals(-status[killed[0]]).name
            sys.stderr.write(f"medcap: error: process {killed[0]} was ended by {name}, and with it the others\n")
        sys.exit(max(*status.values(), 1))


if __name__ == "__main__":
    main()
