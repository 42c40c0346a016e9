"""Phantoms: a synthetic data set with known facts, and the tiny base model for it."""

from pathlib import Path

TINY_BASE = Path(__file__).with_name("tiny_base")  # made by scripts/make_tiny_base.py
