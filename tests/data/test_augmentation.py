"""Augmentation keeps left and right and everything within the border. pytest tests/data/test_augmentation.py"""

import hashlib
import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from medcap.data.augmentation import STRENGTHS, Augmentation, Strength, augmented, border_color, moved, tone_curve
from medcap.data.images import image_digest, to_tensor, with_pixel_values

CORNERS = {"red": (0, 0), "lime": (0, 1), "blue": (1, 0), "yellow": (1, 1)}  # bottom?, right?
NONE = Strength(**dict.fromkeys(Strength.__annotations__, 0.0))
DIGESTS = [hashlib.blake2b(bytes([number]), digest_size=16).digest() for number in range(60)]


def marked(width, height, side=8):
    """Return a dark image with a square of another color in each corner."""
    image = Image.new("RGB", (width, height), (20, 20, 20))
    for color, (bottom, right) in CORNERS.items():
        image.paste(Image.new("RGB", (side, side), color), (right * (width - side), bottom * (height - side)))
    return image


def squares(image):
    """Return for each color of `marked` the pixels that have it, and their mean position (y, x) in the frame."""
    pixels = np.asarray(image, dtype=float)
    found = {}
    for color in CORNERS:
        target = np.array(Image.new("RGB", (1, 1), color).getpixel((0, 0)))
        places = np.argwhere(np.abs(pixels - target).max(2) < 110)
        found[color] = len(places), *(places.mean(0) / pixels.shape[:2])
    return found


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(64, 64), (96, 48), (40, 90)])
def test_markers_stay_on_their_side_and_visible_in_every_draw(strength, size):
    """No draw mirrors or turns an image, and none cuts a corner off."""
    image, augmentation = marked(*size), Augmentation(strength, 0, seed=3)
    for digest in DIGESTS:
        for color, (count, y, x) in squares(augmentation(image, augmentation.view(digest))).items():
            bottom, right = CORNERS[color]
            assert count >= 0.25 * 64
            assert (y > 0.5, x > 0.5) == (bottom, right)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_nothing_leaves_the_frame(strength):
    """The weight of a white image on black, which was padded by one pixel, is that of its shrunk area."""
    image = Image.new("RGB", (98, 62), "black")
    image.paste("white", (1, 1, 97, 61))
    largest, random = STRENGTHS[strength], np.random.default_rng(0)
    for _ in range(100):
        pixels = np.asarray(moved(image, largest, random))[..., 0] / 255
        assert max(pixels[0].max(), pixels[-1].max(), pixels[:, 0].max(), pixels[:, -1].max()) < 0.6
        turn = np.radians(largest.rotation)
        smallest = 62 / (98 * np.sin(turn) + 62 * np.cos(turn)) * (1 - largest.shrink)
        assert pixels.sum() > 0.98 * 96 * 60 * smallest**2


def test_without_changes_the_image_is_the_same():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert np.array_equal(augmented(image, NONE, b"seed"), image)


@pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
def test_tones_keep_their_order_and_are_not_clipped(strength):
    random = np.random.default_rng(0)
    for _ in range(100):
        curve = np.array(tone_curve(strength, random))
        steps = np.diff(curve)
        assert steps.min() >= 0
        assert len(set(curve)) > 170
        assert curve[0] >= 0
        assert curve[255] <= 255
        assert curve[255] - curve[0] >= 255 * (1 - strength.brightness) - 1


def test_gray_images_stay_gray_and_the_frame_has_the_color_of_the_border():
    gray = Image.new("RGB", (40, 40), (90, 90, 90))
    pixels = np.asarray(augmented(gray, STRENGTHS["strong"], b"seed"))
    assert (pixels == pixels[..., :1]).all()
    assert border_color(marked(64, 64)) == (20, 20, 20)


def view_of(augmentation, digest, image):
    return np.asarray(augmentation(image, augmentation.view(digest)))


def test_pixels_depend_on_image_seed_and_epoch_alone():
    image, digest, other = marked(64, 64), *DIGESTS[:2]
    first = view_of(Augmentation("light", 0, seed=1, epoch=2), digest, image)
    assert np.array_equal(first, view_of(Augmentation("light", 0, seed=1, epoch=2), digest, image))
    for changed in (
        view_of(Augmentation("light", 0, seed=1, epoch=3), digest, image),
        view_of(Augmentation("light", 0, seed=2, epoch=2), digest, image),
        view_of(Augmentation("strong", 0, seed=1, epoch=2), digest, image),
        view_of(Augmentation("light", 0, seed=1, epoch=2), other, image),
    ):
        assert not np.array_equal(first, changed)


def test_views_take_turns_over_the_epochs():
    """Each image has all of its views in V epochs; each epoch has images of every view."""
    numbers = [[Augmentation("light", 4, 0, epoch).view(digest).number for digest in DIGESTS] for epoch in range(8)]
    assert all(sorted(column) == [0, 1, 2, 3] for column in zip(*numbers[:4], strict=True))
    assert numbers[:4] == numbers[4:]
    assert all(set(epoch) == {0, 1, 2, 3} for epoch in numbers)
    endless = [Augmentation("light", 0, 0, epoch).view(DIGESTS[0]) for epoch in range(8)]
    assert [view.number for view in endless] == list(range(1, 9))
    assert len({view.digest for view in endless}) == 8


@pytest.fixture
def rows():
    """Four PNG images."""
    images = []
    for seed in range(4):
        stream = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(stream, "png")
        images.append({"bytes": stream.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image(decode=False))


def test_cached_views_equal_uncached_views(rows):
    """The cache is asked for the digest of a view, which for the unchanged one is the image's own."""
    augmentation, stored = Augmentation("strong", 2, seed=0), {}
    uncached = with_pixel_values(rows, to_tensor, None, augmentation)
    cached = with_pixel_values(rows, to_tensor, stored.get, augmentation)
    for augmentation.epoch in range(4):
        for row, plain in zip(cached, uncached, strict=True):
            if augmentation.epoch < 2:
                assert torch.equal(row["pixel_values"], plain["pixel_values"])
                stored[row["digest"]] = row["pixel_values"]
            assert torch.equal(stored[row["digest"]], plain["pixel_values"])
            assert (row["pixel_values"] is None) == (augmentation.epoch >= 2)
    assert len(stored) == 8
    evaluated = with_pixel_values(rows, to_tensor, stored.get)
    assert all(row["pixel_values"] is None for row in evaluated)
    assert {image_digest(row["image"]) for row in rows} < stored.keys()
