"""Draw phantoms: synthetic radiographs, CT and MRI slices, sonograms and angiograms with known facts.

As is the convention in radiology, the patient's right is on the left of the image. Coordinates run from -1 (left, top)
to 1 (right, bottom), intensities from 0 (black) to 1 (white).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FACT_VALUES = {
    "modality": ("x-ray", "ct", "mri", "ultrasound", "angiography"),
    "side": ("left", "right"),
    "level": ("upper", "middle", "lower"),
    "finding": ("mass", "cyst", "calcification", "abscess", "hematoma"),
    "size": ("small", "large"),
}
Plane = np.ndarray  # float32: (height, width), or (1, width) and (height, 1) for coordinates
Ellipse = tuple[float, float, float, float]  # center x, center y, radius x, radius y


@dataclass(frozen=True)
class Phantom:
    """The facts of one image. `finding` is None for a normal study, whose side, level and size have no meaning."""

    modality: str
    finding: str | None
    side: str
    level: str
    size: str
    diameter_cm: float  # small: 0.6 to 1.9, large: 3.0 to 6.9


def random_phantom(rng: np.random.Generator, normal_fraction: float = 0.06) -> Phantom:
    """Return independent random facts; `normal_fraction` is the probability of a normal study."""
    size = str(rng.choice(FACT_VALUES["size"]))
    diameter = rng.uniform(0.6, 1.9) if size == "small" else rng.uniform(3.0, 6.9)
    return Phantom(
        modality=str(rng.choice(FACT_VALUES["modality"])),
        finding=None if rng.random() < normal_fraction else str(rng.choice(FACT_VALUES["finding"])),
        side=str(rng.choice(FACT_VALUES["side"])),
        level=str(rng.choice(FACT_VALUES["level"])),
        size=size,
        diameter_cm=round(float(diameter), 1),
    )


def draw(phantom: Phantom, rng: np.random.Generator, height: int = 160, width: int = 160) -> Plane:
    """Return the image of `phantom`, (height, width) float32 in 0..1, with random anatomy, exposure and noise."""
    x, y = _grid(rng, height, width)
    image = _ANATOMY[phantom.modality](x, y, rng)
    if phantom.finding is not None:
        image = _with_finding(image, x, y, phantom, rng)
    if phantom.modality == "ultrasound":
        image = _with_speckle_and_sector(image, x, y, rng)
    return _exposed(image, x, y, rng)


def _grid(rng: np.random.Generator, height: int, width: int) -> tuple[Plane, Plane]:
    """Return coordinates (1, width) and (height, 1) of a patient with random position and size."""
    scale, (dx, dy) = rng.uniform(0.94, 1.06), rng.uniform(-0.05, 0.05, 2)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(scale) + np.float32(dy)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(scale) + np.float32(dx)
    return x, y


def _disc(x: Plane, y: Plane, cx: float, cy: float, rx: float, ry: float, edge: float = 0.05) -> Plane:
    """Return the mask of an ellipse: 1 inside, 0 outside, with a soft edge of width `edge`."""
    radius = np.sqrt(((x - np.float32(cx)) / np.float32(rx)) ** 2 + ((y - np.float32(cy)) / np.float32(ry)) ** 2)
    return np.clip((1 - radius) * np.float32(min(rx, ry) / edge) + np.float32(0.5), 0, 1)


def _blend(image: Plane, mask: Plane, value: Plane | float) -> Plane:
    return image + mask * (value - image)


def _chest_radiograph(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    air = np.full(np.broadcast_shapes(x.shape, y.shape), 0.10, np.float32)
    image = _blend(air, _disc(x, y, 0, 0.1, 1.0, 1.2), 0.62)
    ribs = 0.07 * np.sin((y * 11 + np.abs(x) * 3 + np.float32(rng.uniform(0, 6))).astype(np.float32)) ** 2
    for side in (-1, 1):
        lung = _disc(x, y, side * 0.46, -0.02, 0.37, 0.78, 0.08)
        image = _blend(image, lung, 0.30 + ribs)
    image = _blend(image, _disc(x, y, 0.13, 0.42, 0.26, 0.30, 0.08), 0.66)  # the heart, on the patient's left
    spine = np.clip(1 - np.abs(x) / 0.09, 0, 1) * np.ones_like(y)
    return image + 0.12 * spine


def _ct_slice(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    image = 0.03 + 0.34 * _disc(x, y, 0, 0, 0.93, 0.88)
    image = _blend(image, _disc(x, y, 0, 0, 0.82, 0.77), 0.50)
    for cx, cy in ((-0.36, -0.1), (0.36, -0.1), (0.0, -0.42), (-0.2, 0.42), (0.24, 0.4)):
        rx, ry, value = rng.uniform(0.12, 0.26), rng.uniform(0.12, 0.26), rng.uniform(0.42, 0.60)
        image = _blend(image, _disc(x, y, cx + rng.uniform(-0.06, 0.06), cy, rx, ry), value)
    image = _blend(image, _disc(x, y, 0, 0.60, 0.13, 0.12), 0.95)  # a vertebra
    return _blend(image, _disc(x, y, 0, 0.62, 0.05, 0.05), 0.45)


def _mri_slice(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    image = 0.02 + 0.75 * _disc(x, y, 0, 0, 0.86, 0.97)
    image = _blend(image, _disc(x, y, 0, 0, 0.79, 0.90), 0.08)  # the skull gives no signal
    a, b = rng.uniform(0, 6, 2)
    folds = np.sin(13 * x + 3 * np.sin(5 * y + np.float32(a))) * np.sin(12 * y + 3 * np.sin(6 * x + np.float32(b)))
    image = _blend(image, _disc(x, y, 0, 0, 0.73, 0.84), 0.42 + 0.10 * folds.astype(np.float32))
    for side in (-1, 1):
        image = _blend(image, _disc(x, y, side * 0.10, 0.02, 0.06, 0.20), 0.12)  # the ventricles
    return image


def _sonogram(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    depth = 0.42 + 0.06 * np.sin(5 * y + np.float32(rng.uniform(0, 6))) + 0 * x
    image = depth.astype(np.float32)
    for _ in range(3):
        cx, cy, value = rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.8), rng.uniform(0.36, 0.50)
        image = _blend(image, _disc(x, y, cx, cy, rng.uniform(0.2, 0.4), rng.uniform(0.1, 0.2), 0.1), value)
    return image


def _angiogram(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    height, width = np.broadcast_shapes(x.shape, y.shape)
    canvas = Image.new("L", (width, height), 150)
    pen = ImageDraw.Draw(canvas)
    for angle in (-0.5, -0.15, 0.2, 0.5):
        _vessel(pen, rng, (0.5 + 0.05 * angle, 1.0), -np.pi / 2 + angle, 0.030, 5, (width, height))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(width / 200)), np.float32) / 255


def _vessel(pen: ImageDraw.ImageDraw, rng: np.random.Generator, start: tuple[float, float], angle: float,
            thickness: float, generations: int, size: tuple[int, int]) -> None:  # fmt: skip
    """Draw a vessel and its branches; `start` and `thickness` are fractions of the image."""
    length = rng.uniform(0.14, 0.24)
    end = (start[0] + length * np.cos(angle), start[1] + length * np.sin(angle))
    ends = [(px * size[0], py * size[1]) for px, py in (start, end)]
    pen.line(ends, fill=70, width=max(1, round(thickness * size[0])))
    if generations > 1:
        for turn in (rng.uniform(-0.6, -0.2), rng.uniform(0.2, 0.6)):
            if generations > 3 and turn > 0.35:  # fewer branches near the root
                continue
            _vessel(pen, rng, end, angle + turn, thickness * 0.72, generations - 1, size)


_ANATOMY = {
    "x-ray": _chest_radiograph,
    "ct": _ct_slice,
    "mri": _mri_slice,
    "ultrasound": _sonogram,
    "angiography": _angiogram,
}


def _with_finding(image: Plane, x: Plane, y: Plane, phantom: Phantom, rng: np.random.Generator) -> Plane:
    direction = -1 if phantom.side == "right" else 1  # the patient's right is on the left of the image
    cx = direction * 0.42 + rng.uniform(-0.07, 0.07)
    cy = {"upper": -0.48, "middle": 0.0, "lower": 0.48}[phantom.level] + rng.uniform(-0.09, 0.09)
    if phantom.size == "small":
        radius = 0.10 + 0.03 * (phantom.diameter_cm - 0.6) / 1.3
    else:
        radius = 0.20 + 0.06 * (phantom.diameter_cm - 3.0) / 3.9
    rx, ry = radius * rng.uniform(0.9, 1.15, 2)
    return _FINDING[phantom.finding or ""](image, x, y, (cx, cy, rx, ry), rng)


def _mass(image: Plane, x: Plane, y: Plane, ellipse: Ellipse, rng: np.random.Generator) -> Plane:
    return _blend(image, _disc(x, y, *ellipse), rng.uniform(0.86, 0.98))


def _cyst(image: Plane, x: Plane, y: Plane, ellipse: Ellipse, rng: np.random.Generator) -> Plane:
    return _blend(image, _disc(x, y, *ellipse), rng.uniform(0.0, 0.08))


def _calcification(image: Plane, x: Plane, y: Plane, ellipse: Ellipse, rng: np.random.Generator) -> Plane:
    cx, cy, rx, ry = ellipse
    for angle in np.arange(7) * 0.9 + rng.uniform(0, 6):
        distance = np.sqrt(rng.uniform(0.05, 1.0))
        dot = _disc(x, y, cx + rx * distance * np.cos(angle), cy + ry * distance * np.sin(angle), 0.03, 0.03, 0.03)
        image = _blend(image, dot, 1.0)
    return image


def _abscess(image: Plane, x: Plane, y: Plane, ellipse: Ellipse, rng: np.random.Generator) -> Plane:
    cx, cy, rx, ry = ellipse
    ring = _disc(x, y, cx, cy, rx * 1.1, ry * 1.1) - _disc(x, y, cx, cy, rx * 0.6, ry * 0.6)
    return _blend(_blend(image, _disc(x, y, cx, cy, rx * 0.6, ry * 0.6), 0.15), ring, rng.uniform(0.88, 1.0))


def _hematoma(image: Plane, x: Plane, y: Plane, ellipse: Ellipse, rng: np.random.Generator) -> Plane:
    cx, cy, rx, ry = ellipse
    cutout = _disc(x, y, cx - np.sign(cx) * rx * 0.75, cy, rx * 1.05, ry * 1.1)
    crescent = np.clip(_disc(x, y, cx, cy, rx * 1.2, ry * 1.5) - cutout, 0, 1)
    return _blend(image, crescent, rng.uniform(0.88, 1.0))


_FINDING = {
    "mass": _mass,
    "cyst": _cyst,
    "calcification": _calcification,
    "abscess": _abscess,
    "hematoma": _hematoma,
}


def _with_speckle_and_sector(image: Plane, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Add multiplicative speckle, and crop to the sector of a curved probe."""
    speckle = rng.standard_normal(image.shape, dtype=np.float32)
    image = image * (1 + 0.22 * speckle)
    depth = y + np.float32(1.25)
    sector = (np.abs(x) < depth * 1.05) & (np.hypot(x, depth) > 0.30) & (np.hypot(x, depth) < 2.22)
    return np.where(sector, image, np.float32(0.01))


def _exposed(image: Plane, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Apply uneven illumination, noise, contrast and exposure."""
    tilt = 1 + np.float32(rng.uniform(-0.08, 0.08)) * x + np.float32(rng.uniform(-0.08, 0.08)) * y
    grain = np.float32(rng.uniform(0.01, 0.04)) * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(image * tilt + grain, 0, 1) ** np.float32(rng.uniform(0.85, 1.2))
    return np.clip(image * np.float32(rng.uniform(0.88, 1.0)), 0, 1).astype(np.float32)
