"""`medcap evaluate` in several processes (gloo), for tests/evaluation/test_evaluation_processes.py.

    python tests/evaluation/evaluation_processes.py WORLD ARGUMENT ...

It is a separate program because it forks after the imports and before anything is computed.
"""

import os
import socket
import sys

import torch
from torch import multiprocessing

from medcap.cli import main
from medcap.evaluation import evaluate  # noqa: F401  # imported once, before the forks


def work(rank, world, port, arguments):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    main(arguments)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


processes = int(sys.argv[1])
multiprocessing.start_processes(work, (processes, free_port(), sys.argv[2:]), nprocs=processes, start_method="fork")
