"""`medcap caption` as a script: the same options, the same results."""

import sys
from pathlib import Path

# this folder holds an evaluate.py, which must not be taken for the package `evaluate`
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from medcap.cli import main

if __name__ == "__main__":
    main(["caption", *sys.argv[1:]])
