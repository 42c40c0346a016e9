"""What medcap's speed is measured with: run as `python benchmarks/bench.py`."""
