"""Phantoms: a synthetic data set whose truth is known, and the tiny base model that learns it."""

from pathlib import Path

TINY_BASE = Path(__file__).with_name("tiny_base")  # made by scripts/make_tiny_base.py
