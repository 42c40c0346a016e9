"""Random changes of training images that keep left and right, and everything within the image's border.

Images are never mirrored: captions state sides, side markers are letters, and a mirrored heart is a diagnosis
(dextrocardia). Nothing is cropped: a rotated or shifted image is shrunk until it fits into its frame, so that markers
at the border stay visible. Gray values keep their order, and no change of tones clips them. See docs/augmentation.md.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from medcap.data.images import DIGEST_BYTES

VERSION = 1  # increase it when the same view gets other pixels: cached features depend on it


@dataclass(frozen=True)
class Strength:
    """The maximum of each change; a view draws each one uniformly, from -maximum or 0 to maximum.

    Attributes:
        rotation: Degrees, clockwise or counterclockwise.
        shrink: Fraction by which the image is shrunk, in addition to what its rotation needs.
        shift: Fraction of width and height, within the space that rotation and shrinking leave.
        brightness: Black is raised, or white lowered, by this fraction of the gray values.
        contrast: Change of the slope at medium gray, divided by 0.5; black and white stay.
        gamma: Natural logarithm of the exponent.
        noise: Standard deviation of Gaussian noise, in levels of 255; the same for red, green and blue.
        blur: Standard deviation of the Gaussian blur, as fraction of the shorter side.
    """

    rotation: float
    shrink: float
    shift: float
    brightness: float
    contrast: float
    gamma: float
    noise: float
    blur: float


STRENGTHS = {
    "light": Strength(
        rotation=3, shrink=0.05, shift=0.03, brightness=0.05, contrast=0.1, gamma=0.1, noise=2, blur=0.001
    ),
    "strong": Strength(
        rotation=10, shrink=0.15, shift=0.1, brightness=0.15, contrast=0.3, gamma=0.3, noise=6, blur=0.003
    ),
}


class View(NamedTuple):
    """One version of an image: its number (0: unchanged), and a digest that identifies and seeds it."""

    number: int
    digest: bytes


@dataclass
class Augmentation:
    """The views of training images in each epoch: they depend on the image's content, the seed and the number alone.

    Attributes:
        strength: A key of `STRENGTHS`.
        views: Number of views of an image, of which 0 is unchanged; 0: a new, changed view in every epoch.
        seed: Of all views but 0.
        epoch: The current epoch, set before each one.
    """

    strength: str
    views: int
    seed: int
    epoch: int = 0

    def view(self, digest: bytes) -> View:
        """Return the view of this epoch of the image with this digest.

        Of V views an image has number (epoch + offset) modulo V, with an offset that depends on the image: V
        consecutive epochs show all of its views, and every epoch has about 1 / V unchanged images.
        """
        if self.views == 0:
            return self.numbered_view(digest, self.epoch + 1)
        return self.numbered_view(digest, (self.epoch + int.from_bytes(digest[:8], "big")) % self.views)

    def numbered_view(self, digest: bytes, number: int) -> View:
        """Return a view by its number."""
        if number == 0:
            return View(0, digest)
        name = f"{VERSION} {STRENGTHS[self.strength]} {self.seed} {number} ".encode()
        return View(number, hashlib.blake2b(name + digest, digest_size=DIGEST_BYTES).digest())

    def __call__(self, image: Image.Image, view: View) -> Image.Image:
        """Return a view of an RGB image, of the same size."""
        return image if view.number == 0 else augmented(image, STRENGTHS[self.strength], view.digest)


def augmented(image: Image.Image, strength: Strength, seed: bytes) -> Image.Image:
    """Return an RGB image with random changes up to `strength`, which `seed` determines."""
    random = np.random.default_rng(int.from_bytes(seed, "big"))
    image = moved(image, strength, random)
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, strength.blur) * min(image.size)))
    image = image.point(tone_curve(strength, random) * len(image.mode))
    noise = random.standard_normal((image.height, image.width, 1), np.float32) * random.uniform(0, strength.noise)
    noisy = np.asarray(image) + noise.round().astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def moved(image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    """Rotate, shrink and shift an image within its frame; the space around it gets the median color of its border."""
    (width, height), angle = image.size, math.radians(random.uniform(-strength.rotation, strength.rotation))
    cos, sin = math.cos(angle), math.sin(angle)
    box = np.array([width * cos + height * abs(sin), width * abs(sin) + height * cos])  # of the rotated image
    scale = min(width / box[0], height / box[1]) * (1 - random.uniform(0, strength.shrink))
    space = (image.size - scale * box) / 2
    shift = np.clip(random.uniform(-strength.shift, strength.shift, 2) * image.size, -space, space)
    matrix = np.array([[cos, sin], [-sin, cos]]) / scale  # from the result to the image
    center = np.array(image.size) / 2
    offset = center - matrix @ (center + shift)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=border_color(image)
    )


def border_color(image: Image.Image) -> tuple[int, ...]:
    """Return the median color of the outermost pixels."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))


def tone_curve(strength: Strength, random: np.random.Generator) -> list[int]:
    """Return the new value, 0 to 255, of each of 256 gray values: increasing, and without clipping.

    Of a value x from 0 to 1: gamma is a power; contrast c adds c x (1 - x) (2 x - 1), whose slope is 1 - c at the ends
    and 1 + c / 2 in the middle; brightness b raises black to b, or lowers white to 1 + b.
    """
    gamma, contrast, brightness = random.uniform(-1, 1, 3) * (strength.gamma, strength.contrast, strength.brightness)
    x = np.linspace(0, 1, 256) ** math.exp(gamma)
    x += contrast * x * (1 - x) * (2 * x - 1)
    return (255 * (x * (1 - abs(brightness)) + max(brightness, 0))).round().astype(int).tolist()
