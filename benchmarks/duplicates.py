"""Measure how far perceptual hashes of copies, of neighbouring slices and of different images are apart.

The numbers are in docs/own-data.md and calibrate `medcap.data.duplicates.MAX_DISTANCE`. Run it with PYTHONPATH=. in
the root of the project: python benchmarks/duplicates.py
"""

import io
import itertools
from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcap.data.image_info import HASH_SIZE
from medcap.phantom.images import draw, random_phantom

CASES = 20  # volumes, and phantoms
STEPS = (1, 2, 5, 10)  # mm between two slices


def perceptual_hash(image: Image.Image) -> NDArray[np.bool_]:
    """Return the bits (16, 16)."""
    return imagehash.phash(image, hash_size=HASH_SIZE).hash


def distances(pairs: Iterator[tuple[Image.Image, Image.Image]]) -> str:
    """Return minimum, median and maximum of the Hamming distances, in bits of 256."""
    bits = [int((perceptual_hash(first) != perceptual_hash(second)).sum()) for first, second in pairs]
    return f"{min(bits):4} {int(np.median(bits)):4} {max(bits):4}"


def phantoms() -> list[Image.Image]:
    """Return different images of the synthetic data set."""
    rng = np.random.default_rng(0)
    return [Image.fromarray((255 * draw(random_phantom(rng), rng)).astype(np.uint8)) for _ in range(CASES)]


def copies(image: Image.Image) -> Iterator[Image.Image]:
    """Yield copies of other sizes and JPEG qualities."""
    for scale, quality in itertools.product((0.33, 0.6, 1.7), (40, 60, 90)):
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=quality)
        yield Image.open(file).convert("RGB")


class Volume:
    """A random volume: a body with 40 ellipsoids in it, and noise; lengths are in mm."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.centers = rng.uniform((-110, -70, -60), (110, 70, 60), (40, 3))
        self.radii, self.values = rng.uniform(8, 45, (40, 3)), rng.uniform(-0.4, 0.5, 40)

    def slice_at(self, z: float) -> Image.Image:
        """Return the axial slice at `z`, 256 x 256 pixels of 1.2 mm."""
        y, x = np.mgrid[-128:128, -128:128] * 1.2
        plane = 0.4 * ((x / 140) ** 2 + (y / 95) ** 2 < 1)
        for (cx, cy, cz), (rx, ry, rz), value in zip(self.centers, self.radii, self.values, strict=True):
            inside = 1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2 - ((z - cz) / rz) ** 2
            plane = plane + value * np.clip(8 * inside, 0, 1)  # a soft edge
        plane = np.clip(plane + self.rng.normal(0, 0.02, plane.shape), 0, 1)
        return Image.fromarray((255 * plane).astype(np.uint8))


def main() -> None:
    """Print a table."""
    images, volumes = phantoms(), [Volume(seed) for seed in range(CASES)]
    slices = [volume.slice_at(0) for volume in volumes]
    print("min median max bits")
    print(distances((image, copy) for image in images for copy in copies(image)), "copies of phantoms")
    print(distances((image, copy) for image in slices for copy in copies(image)), "copies of slices")
    for step in STEPS:
        pairs = ((volume.slice_at(z), volume.slice_at(z + step)) for volume in volumes for z in (-20, 0, 20))
        print(distances(pairs), f"slices of one volume, {step} mm apart")
    print(distances(itertools.combinations(images, 2)), "different phantoms")
    print(distances(itertools.combinations(slices, 2)), "slices of different volumes")


if __name__ == "__main__":
    main()
