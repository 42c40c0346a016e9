"""Speed measurements of `python benchmarks/bench.py`."""
