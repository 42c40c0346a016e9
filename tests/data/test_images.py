"""Images of every format become RGB as their author saw them; errors name the image."""

import io
import multiprocessing
import os
import zipfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BlipImageProcessor

from medcap.data import images, raster
from medcap.data.images import (
    ImageTransform,
    image_digest,
    index_images,
    load_image,
    read_image,
    to_rgb,
    with_pixel_values,
)

SIDE = 24


@pytest.fixture(scope="module")
def processor():
    return BlipImageProcessor(size={"height": SIDE, "width": SIDE})


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def grey(image):
    return np.asarray(to_rgb(image))[..., 0].tolist()


def palette(transparent=None):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def colour_key():
    image = Image.fromarray(np.array([[0, 90]], dtype=np.uint8))
    image.info["transparency"] = 0
    return image


DEEP = [[0, 10_240, 20_480, 40_800]]
RESCALED = [[0, 64, 128, 255]]  # value / 160
GREYS = {
    "16 bit": (np.array(DEEP, dtype="<u2"), RESCALED),
    "16 bit big-endian": (np.array(DEEP, dtype=">u2"), RESCALED),
    "32 bit": (np.array(DEEP, dtype="int32"), RESCALED),
    "negative, as in Hounsfield units": (np.array([[-1000, 0, 1000]], dtype="int32"), [[0, 128, 255]]),
    "float 0 to 1": (np.array([[0, 0.2, 1]], dtype="float32"), [[0, 51, 255]]),
    "float with nan": (np.array([[np.nan, 1, 3, np.inf]], dtype="float32"), [[0, 0, 255, 255]]),
    "all nan": (np.array([[np.nan]], dtype="float32"), [[0]]),
    "constant": (np.array([[40_000, 40_000]], dtype="<u2"), [[0, 0]]),
    "8 bit is unchanged": (np.array([[3, 200]], dtype="uint8"), [[3, 200]]),
}


@pytest.mark.parametrize(("values", "expected"), GREYS.values(), ids=GREYS)
def test_gray_of_more_than_8_bits_is_rescaled(values, expected):
    assert grey(Image.fromarray(values)) == expected


COLOURS = {
    "RGB": (Image.new("RGB", (1, 1), (9, 8, 7)), [(9, 8, 7)]),
    "1 bit": (Image.new("1", (1, 1), 1), [(255, 255, 255)]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 0, 0)), [(255, 0, 255)]),
    "opaque RGBA": (Image.new("RGBA", (1, 1), (9, 8, 7, 255)), [(9, 8, 7)]),
    "transparent is white": (Image.new("RGBA", (1, 1), (9, 8, 7, 0)), [(255, 255, 255)]),
    "half transparent": (Image.new("LA", (1, 1), (0, 128)), [(127, 127, 127)]),
    "palette": (palette(), [(10, 20, 30), (200, 100, 50)]),
    "palette with a transparent entry": (palette(transparent=0), [(255, 255, 255), (200, 100, 50)]),
    "palette with alphas": (palette(transparent=bytes([255, 0])), [(10, 20, 30), (255, 255, 255)]),
    "colour key": (colour_key(), [(255, 255, 255), (90, 90, 90)]),
}


@pytest.mark.parametrize(("image", "expected"), COLOURS.values(), ids=COLOURS)
def test_colors_are_converted_and_transparency_becomes_white(image, expected):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.asarray(rgb).reshape(-1, 3).tolist() == [list(pixel) for pixel in expected]


def test_images_are_not_flipped(processor):
    image = Image.new("RGB", (40, 40))
    image.paste("white", (0, 0, 20, 40))
    pixels = ImageTransform(processor)({"image": [image]})["pixel_values"][0]
    assert pixels[:, :, : SIDE // 3].min() > pixels[:, :, -SIDE // 3 :].max()


def test_exif_orientation_is_applied():
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 16, 4))  # stored rotated, bright at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise: bright at the right
    upright = load_image(encoded(image, exif=exif))
    assert upright.size == (8, 16)
    assert upright.getpixel((7, 8)) == (255, 255, 255)
    assert upright.getpixel((0, 8)) == (0, 0, 0)


def test_format_is_detected_by_content(tmp_path):
    path = tmp_path / "png.jpg"
    path.write_bytes(encoded(noise()))
    assert read_image(path).tobytes() == noise().tobytes()


def test_load_image_accepts_pil_bytes_paths_and_column_entries(tmp_path):
    data = encoded(Image.fromarray(np.array(DEEP, dtype="<u2")))
    path = tmp_path / "deep.png"
    path.write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "top/deep.png")
    zipped = f"zip://top/deep.png::{tmp_path / 'a.zip'}"
    entries = [data, path, str(path), zipped, Image.open(path), {"bytes": data, "path": None}]
    entries += [{"bytes": None, "path": zipped}, {"path": str(path)}, {"bytes": data, "path": "elsewhere.png"}]
    assert [np.asarray(load_image(entry))[..., 1].tolist() for entry in entries] == [RESCALED] * len(entries)


BROKEN = {
    "truncated jpeg": (encoded(noise(), "JPEG")[:-200], "truncated"),
    "truncated png": (encoded(noise())[:-200], "truncated"),
    "damaged png": (encoded(noise()).replace(b"IDAT", b"IDAX", 1), "."),
    "text": (b"404 Not Found", "not an image in a format that is read \\(AVIF, .*, TIFF, WEBP\\)"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image in a format"),
    "binary EPS": (b"\xc5\xd0\xd3\xc6" + bytes(40), "not an image in a format"),
    "TGA": (encoded(noise(), "TGA"), "not an image in a format"),
    "empty": (b"", "not an image in a format that is read \\(AVIF, .*, TIFF, WEBP\\)"),
}


@pytest.mark.parametrize(("data", "cause"), BROKEN.values(), ids=BROKEN)
def test_broken_file_raises_one_line_with_path_and_cause(tmp_path, data, cause):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^cannot read image .*broken\.png: .*{cause}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("limit", [400, 900], ids=["Pillow's error", "Pillow's warning"])
def test_decompression_bomb_raises(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"image bytes: .*1200 pixels.*decompression bomb"):
        load_image(encoded(noise()))


def test_missing_files_raise_with_path(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"nowhere\.png: No such file or directory$"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"a\.zip: There is no item named 'x\.png' in the archive$"):
        read_image(f"zip://x.png::{tmp_path / 'a.zip'}")
    with pytest.raises(ValueError, match="cannot read image bytes"):
        load_image({"bytes": None, "path": None})


def test_truncated_lazy_pil_image_raises(tmp_path):
    path = tmp_path / "lazy.png"
    path.write_bytes(encoded(noise())[:-200])
    with pytest.raises(ValueError, match=r"lazy\.png: .*truncated"):
        to_rgb(Image.open(path))


def test_index_contains_images_in_any_folder_of_a_zip(tmp_path):
    names = ["top/a.b.JPG", "top/deep er/c d.png", "top/notes.txt", "top/", "__MACOSX/top/._a.b.JPG"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    index = index_images(tmp_path / "a.zip")
    assert {"a.b", "c d"} <= set(index)
    assert "notes" not in index
    assert index["c d"] == f"zip://top/deep er/c d.png::{tmp_path / 'a.zip'}"


def test_index_with_two_images_of_same_name_raises(tmp_path):
    for name in ("x.png", "x.JPG"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="two images are named x: "):
        index_images(tmp_path)


def test_truncated_zip_raises(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match=r"a\.zip: File is not a zip file; is the download incomplete\?"):
        index_images(tmp_path / "a.zip")


@pytest.mark.parametrize("image", [Image.new("L", (40, 30), 255), noise()])
def test_pixel_values_are_the_bytes_that_the_processor_normalizes(processor, image):
    pixels = ImageTransform(processor)({"image": [image]})["pixel_values"][0]
    assert (pixels.shape, pixels.dtype) == ((3, SIDE, SIDE), torch.uint8)
    mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    expected = processor(images=[to_rgb(image)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close((pixels / 255 - mean) / deviation, expected, atol=1e-5, rtol=0)


def test_image_with_cached_features_is_not_decoded(processor, tmp_path):
    """Features are found by content; name and time of a file do not matter."""
    noise().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("L", (9, 9)).save(tmp_path / "c.png")
    features = torch.ones(4, 2)
    cache = {image_digest(str(tmp_path / "a.png")): features}
    entries = [{"bytes": None, "path": str(tmp_path / name)} for name in ("b.png", "c.png")]
    out = ImageTransform(processor, cache.get)({"image": entries})
    assert out["features"] == [features, None]
    assert out["pixel_values"][0] is None
    assert out["pixel_values"][1].shape == (3, SIDE, SIDE)
    assert out["digest"] == [image_digest(entry) for entry in entries]


def test_uncached_file_is_read_once(processor, tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    read, reads = images._read_bytes, []
    monkeypatch.setattr(images, "_read_bytes", lambda path: reads.append(path) or read(path))
    entry = {"bytes": None, "path": str(tmp_path / "a.png")}
    row = ImageTransform(processor, {}.get)({"image": [entry]})
    assert reads == [entry["path"]]
    assert torch.equal(row["pixel_values"][0], ImageTransform(processor)({"image": [entry]})["pixel_values"][0])


def test_missing_image_raises_with_its_id(processor, tmp_path):
    entry = {"bytes": None, "path": str(tmp_path / "gone.png")}
    with pytest.raises(ValueError, match=r"image_id x7: cannot read image .*gone.png: No such file"):
        ImageTransform(processor, {}.get)({"image": [entry], "image_id": ["x7"]})


def test_transform_keeps_other_columns(processor):
    batch = {"image": [noise()], "caption": ["a"], "image_id": ["x"], "cuis": [["C1"]]}
    out = ImageTransform(processor)(batch)
    assert set(out) == {"pixel_values", "caption", "image_id", "cuis"}
    assert out["cuis"] == [["C1"]]


def test_undecodable_image_raises_with_its_id(processor):
    batch = {"image": [{"bytes": b"no", "path": "train/x.jpg"}], "image_id": ["ROCO 7"]}
    with pytest.raises(ValueError, match=r"^image_id ROCO 7: cannot read image train/x\.jpg: not an image"):
        ImageTransform(processor)(batch)


def zipped_data(tmp_path, n=24):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(n):
            archive.writestr(f"{i}.png", encoded(noise(seed=i)))
    urls = [f"zip://{i}.png::{tmp_path / 'a.zip'}" for i in range(n)]
    columns = {"image_id": [str(i) for i in range(n)], "image": urls}
    features = datasets.Features(image_id=datasets.Value("string"), image=datasets.Image())
    return datasets.Dataset.from_dict(columns, features=features)


def test_forked_workers_read_a_zip_correctly(tmp_path, processor):
    data = with_pixel_values(zipped_data(tmp_path), processor)
    expected = torch.stack([row["pixel_values"] for row in data])  # opens the zip in this process, before the fork
    workers = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    actual = torch.cat([batch["pixel_values"] for batch in workers])
    assert torch.equal(expected, actual)
    assert len({tensor.sum().item() for tensor in expected}) == len(data)


@pytest.fixture
def opened(monkeypatch):
    """The zip archives that are opened while a test runs."""
    archives = []
    original = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: archives.append(original(*args)) or archives[-1])
    return archives


def test_forked_process_does_not_move_file_position_of_parent(tmp_path, opened):
    data = zipped_data(tmp_path).cast_column("image", datasets.Image(decode=False))
    first, *_, last = (entry["path"] for entry in data["image"])
    read_image(first)
    number = opened[-1].fp.fileno()
    position = os.lseek(number, 0, os.SEEK_CUR)
    child = multiprocessing.get_context("fork").Process(target=read_image, args=[last])
    child.start()
    child.join()
    assert child.exitcode == 0
    assert os.lseek(number, 0, os.SEEK_CUR) == position


def test_process_opens_a_zip_once(tmp_path, processor, opened):
    data = with_pixel_values(zipped_data(tmp_path), processor)
    opened.clear()
    assert len(data[:10]["pixel_values"]) == 10
    assert len(opened) == 1


def test_single_column_can_be_read(tmp_path, processor):
    data = with_pixel_values(zipped_data(tmp_path), processor)
    assert data["image_id"][3] == "3"


def test_zip_bomb_raises_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1001))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(ValueError, match=r"bomb.png::.*: 1,001 bytes when unpacked; at most 1,000 are read"):
        read_image(f"zip://bomb.png::{tmp_path / 'a.zip'}")


@pytest.mark.parametrize("read", [read_image, image_digest])
def test_file_of_60_gb_is_not_read(tmp_path, read):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(60 * 2**30)
    with pytest.raises(ValueError, match=r"sparse\.png: 64,424,509,440 bytes; at most 1,073,741,824 are read: make"):
        read(str(tmp_path / "sparse.png"))


def test_postscript_is_no_image_of_a_folder(tmp_path):
    for name in ("a.png", "b.eps", "c.ps", "d.wmf"):
        (tmp_path / name).touch()
    assert list(index_images(tmp_path)) == ["a"]


def test_zip_members_with_unsafe_paths_are_read_and_not_extracted(tmp_path):
    Image.new("L", (2, 2), 9).save(buffer := io.BytesIO(), "PNG")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        archive.writestr("../../climbs.png", buffer.getvalue())
        archive.writestr("/absolute.png", buffer.getvalue())
    found = index_images(tmp_path / "in" / "a.zip")
    assert sorted(found) == ["absolute", "climbs"]
    assert [np.asarray(read_image(path)).max() for path in found.values()] == [9, 9]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "in"]
