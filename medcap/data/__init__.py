"""Data sets: reading, selection, images, captions, audit and download."""

SPLITS = ("train", "valid", "test")
