"""`medcap caption` writes a JSON line per image; a file that cannot be captioned costs no other caption."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from medcap import captioning
from medcap.captioning import caption_files
from medcap.cli import main
from medcap.data.dicom import NoImageError
from medcap.inference import Captioner


@pytest.fixture
def caption(tiny_base, capsys):
    """Return a function that runs `medcap caption` and returns status, records on stdout, and stderr."""

    def run(*arguments):
        status = 0
        try:
            main(["caption", *map(str, arguments), "--model", str(tiny_base), "--num_beams", "1",
                  "--max_new_tokens", "5"])  # fmt: skip
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def save(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("L", (50, 40), 40 * number).save(folder / name)
    return folder


def test_line_per_image_in_the_order_of_names(caption, tmp_path):
    save(tmp_path, "one.png")
    save(tmp_path / "folder", "two.png", "three.jpg")
    status, records, _ = caption(tmp_path / "one.png", tmp_path / "folder")
    assert status == 0
    assert [Path(record["image"]).name for record in records] == ["one.png", "three.jpg", "two.png"]
    assert all(set(record) == {"image", "caption"} for record in records)


@pytest.mark.parametrize("to_file", [False, True])
def test_unreadable_image_is_a_record_and_the_status_is_1(caption, tmp_path, to_file):
    images = save(tmp_path / "images", "a.png", "c.png")
    (images / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    out = tmp_path / "captions.jsonl"
    status, records, err = caption(images, *(["--out", out] if to_file else []))
    if to_file:
        records = [json.loads(line) for line in out.read_text().splitlines()]
    assert status == 1
    assert [sorted(record) for record in records] == [["caption", "image"], ["error", "image"], ["caption", "image"]]
    assert records[1]["error"].startswith("cannot read image")
    place = f", see the errors in {out}" if to_file else ""
    first = records[1]["error"]
    assert err.splitlines()[-1] == f"medcap: error: 1 of 3 images have no caption{place}; the first: {first}"


def test_frame_that_does_not_exist_is_a_record(caption, tmp_path):
    frames = [Image.new("L", (40, 40), level) for level in (0, 200)]
    frames[0].save(tmp_path / "several.tif", save_all=True, append_images=frames[1:])
    assert [set(record) for record in caption(tmp_path, "--frame", 1)[1]] == [{"image", "caption"}]
    status, records, _ = caption(tmp_path, "--frame", 2)
    assert status == 1
    assert "no frame 2: it has 2, counted from 0" in records[0]["error"]


def test_image_that_fails_costs_no_other_caption(caption, tmp_path, monkeypatch):
    images, original = save(tmp_path / "images", *"0.png 1.png 2.png 3.png 4.png".split()), Captioner.caption

    def fail_on_dark(captioner, batch):
        if any(image.getpixel((0, 0)) == (120, 120, 120) for image in batch):
            raise RuntimeError("out of memory")
        return original(captioner, batch)

    monkeypatch.setattr(Captioner, "caption", fail_on_dark)
    status, records, _ = caption(images)
    assert status == 1
    assert [record.get("error") for record in records] == [None, None, None, "RuntimeError: out of memory", None]


def test_dicom_without_its_extra_is_one_line_with_the_command(caption, tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    status, records, err = caption(tmp_path)
    assert status == 1
    assert len(records) == 4
    line = err.splitlines()[-1]
    assert line.startswith("medcap: error: 4 of 4 images have no caption; the first: cannot read image")
    assert "DICOM files need pydicom: pip install" in line
    assert err.count("pydicom") == 1


def test_dicom_file_that_is_no_image_is_skipped(caption, tmp_path, monkeypatch, caplog):
    save(tmp_path, "a.png", "report.png")

    def read(file, *_):
        if file.name == "report.png":
            raise ValueError("cannot read image report") from NoImageError()
        return Image.open(file)

    monkeypatch.setattr(captioning, "read_image", read)
    status, records, _ = caption(tmp_path)
    assert (status, len(records)) == (0, 1)
    assert "cannot read image report. Skipped" in caplog.text
    status, records, err = caption(tmp_path / "report.png")
    assert (status, records) == (1, [])
    assert err.endswith("none of the files is an image\n")


def test_control_characters_of_a_file_name_are_escaped(caption, tmp_path):
    images = save(tmp_path / "images", "\x1b[31m\u202ered \u00fc.png")
    os.rename(images / "\x1b[31m\u202ered \u00fc.png", os.fsencode(images) + b"/\x1b[31m\xe2\x80\xaered \xff.png")
    out = tmp_path / "captions.jsonl"
    assert caption(images, "--out", out)[0] == 0
    text = out.read_text()
    assert "\\u001b[31m\\u202ered \\udcff.png" in text
    assert os.path.exists(json.loads(text)["image"])


def test_repeated_file_is_captioned_twice(tmp_path):
    save(tmp_path, "a.png")

    class Counter:
        def caption(self, images):
            return [f"{len(images)} images"] * len(images)

    files = [tmp_path / "a.png"] * 3
    captions = [record["caption"] for record in caption_files(Counter(), files, batch_size=2)]
    assert captions == ["2 images", "2 images", "1 images"]


def test_window_of_dicom_is_an_error_for_another_image(caption, tmp_path):
    save(tmp_path, "a.png")
    status, records, _ = caption(tmp_path / "a.png", "--window=-600,1500")
    assert status == 1
    assert "a.png: a window applies to DICOM files" in records[0]["error"]


def test_invalid_window_is_a_wrong_command(caption, tmp_path):
    status, records, err = caption(tmp_path, "--window", "lungs")
    assert (status, records) == (2, [])
    assert "window 'lungs': it can be a name, three names" in err
