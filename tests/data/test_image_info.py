"""Prints tell pictures apart, are taken once, and forget nothing but what changed."""

import io
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context

import datasets
import numpy as np
import pytest
from PIL import Image

from medcap.data import image_info
from medcap.data.image_info import inspect_image, inspect_images
from medcap.data.selection import check_images
from medcap.phantom.images import draw, random_phantom


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jpeg(seed, quality=90):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return buffer.getvalue()


def rows_of(entries):
    return datasets.Dataset.from_dict({"image": entries}).cast_column("image", datasets.Image())


def write_files(folder, count=5):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    return rows_of([str(folder / f"{i}.jpg") for i in range(count)])


def refuse(_, **__):
    raise AssertionError("an image is decoded again")


def test_files_zips_and_bytes_give_the_same_prints(tmp_path):
    files = write_files(tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(5):
            archive.writestr(f"train/{i}.jpg", jpeg(i))
    zipped = rows_of([f"zip://train/{i}.jpg::{tmp_path / 'a.zip'}" for i in range(5)])
    within = rows_of([{"bytes": jpeg(i), "path": None} for i in range(5)])
    assert inspect_images(files) == inspect_images(zipped) == inspect_images(within)
    assert len({one.pixel_digest for one in inspect_images(files)}) == 5


def test_a_print_holds_size_and_hashes(tmp_path):
    one = inspect_image(jpeg(0), perceptual_hash=True)
    assert (one.width, one.height, len(one.phash), len(one.pixel_digest), one.error) == (64, 48, 32, 64, "")


def test_the_same_pixels_in_another_file_format_have_the_same_print():
    image = Image.open(io.BytesIO(jpeg(1))).convert("RGB")
    image.save(buffer := io.BytesIO(), "PNG")
    assert inspect_image(buffer.getvalue()) == inspect_image(jpeg(1))


def test_a_copy_of_another_quality_has_other_pixels_and_nearly_the_same_hash():
    rng = np.random.default_rng(0)
    phantom = Image.fromarray((255 * draw(random_phantom(rng), rng, 120, 140)).astype(np.uint8))
    phantom.save(worse := io.BytesIO(), "JPEG", quality=60)
    first, second = inspect_image(phantom, True), inspect_image(worse.getvalue(), True)
    apart = np.bitwise_count(np.frombuffer(first.phash, np.uint8) ^ np.frombuffer(second.phash, np.uint8)).sum()
    assert first.pixel_digest != second.pixel_digest
    assert apart <= 16


def test_what_is_remembered_is_not_decoded_again(tmp_path, monkeypatch):
    rows = write_files(tmp_path / "files")
    before = inspect_images(rows)
    monkeypatch.setattr(image_info, "inspect_image", refuse)
    assert inspect_images(rows) == before
    assert inspect_images(rows.select([3, 1])) == [before[3], before[1]]


def test_a_file_that_changed_is_decoded_again(tmp_path):
    rows = write_files(tmp_path / "files")
    before = inspect_images(rows)
    (tmp_path / "files" / "2.jpg").write_bytes(jpeg(99))
    after = inspect_images(rows)
    assert [i for i in range(5) if before[i] != after[i]] == [2]


def test_a_failure_is_told_and_not_remembered(tmp_path):
    rows = write_files(tmp_path / "files")
    good = (tmp_path / "files" / "2.jpg").read_bytes()
    stamp = os.stat(tmp_path / "files" / "2.jpg")
    (tmp_path / "files" / "2.jpg").write_bytes(b"x" * len(good))
    os.utime(tmp_path / "files" / "2.jpg", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "not an image" in inspect_images(rows)[2].error
    (tmp_path / "files" / "2.jpg").write_bytes(good)
    os.utime(tmp_path / "files" / "2.jpg", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not inspect_images(rows)[2].error


@pytest.mark.parametrize("num_proc", [1, 2])
def test_processes_keep_the_order(tmp_path, num_proc):
    within = rows_of([{"bytes": jpeg(i % 90), "path": None} for i in range(150)])
    assert inspect_images(within, num_proc) == [inspect_image(jpeg(i % 90)) for i in range(150)]


def test_a_block_at_a_time_is_held_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(image_info, "_BLOCK", 2)
    rows = write_files(tmp_path / "files")
    taken = []

    def until_the_fourth(entry, perceptual_hash):
        taken.append(entry)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return inspect_image(entry)

    monkeypatch.setattr(image_info, "inspect_image", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        inspect_images(rows)
    taken.clear()
    taken += [None] * 5
    inspect_images(rows)
    assert len(taken) == 5 + 3  # the first block was kept


def test_several_at_once_share_the_open_cache(tmp_path):
    within = rows_of([{"bytes": jpeg(i), "path": None} for i in range(30)])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: inspect_images(within, 1), range(4)))
    assert all(one == found[0] for one in found)


def remember_many(cache, name):
    datasets.config.HF_DATASETS_CACHE = cache
    with closing(image_info._open_cache()) as cache:
        for i in range(50):
            image_info._read_cache(cache, [f"{name}{i}"], False)
            image_info._write_cache(cache, {f"{name}{i}": image_info.ImageInfo(pixel_digest=str(i))})


def test_several_processes_write_at_once_and_none_finds_the_open_cache_locked(tmp_path):
    fork = get_context("fork")
    writers = [fork.Process(target=remember_many, args=(tmp_path / "cache", name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with closing(image_info._open_cache()) as cache:
        assert len(image_info._read_cache(cache, [f"{name}{i}" for name in "abc" for i in range(50)], False)) == 150


def test_other_processes_remember_too(tmp_path):
    write_files(tmp_path / "files")
    program = (
        "import datasets, sys; from medcap.data.image_info import inspect_images; "
        "rows = datasets.Dataset.from_dict({'image': sys.argv[1:]}).cast_column('image', datasets.Image()); "
        "print(inspect_images(rows)[0].pixel_digest)"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(tmp_path / "files" / "0.jpg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == inspect_image(jpeg(0)).pixel_digest
    assert (tmp_path / "cache" / "medcap").is_dir()


def test_a_row_without_an_image_says_so(tmp_path):
    rows = rows_of([{"bytes": jpeg(0), "path": None}, None, {"bytes": None, "path": None}])
    first, second, third = inspect_images(rows)
    assert [one.error for one in (first, second, third)] == ["", "there is no image", "there is no image"]
    assert inspect_image(None).error == "there is no image"


def test_pictures_in_open_cache_have_prints():
    assert inspect_images(rows_of([Image.new("RGB", (3, 2))]))[0].width == 3


def test_a_zip_that_was_changed_is_another(tmp_path):
    keys = set()
    for seed in (0, 1):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x.jpg", jpeg(seed))
        keys.update(image_info._keys([{"bytes": None, "path": f"zip://x.jpg::{tmp_path / 'a.zip'}"}]))
    assert len(keys) == 2


def test_a_relative_path_is_remembered_with_its_folder(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(bytes(9))
        os.utime(tmp_path / name / "0.jpg", ns=(0, 0))
    keys = set()
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        keys.update(image_info._keys([{"bytes": None, "path": "0.jpg"}]))
    assert len(keys) == 2


@pytest.mark.parametrize("content", [b"this is no sqlite file" * 99, None])
def test_a_cache_that_cannot_be_opened_costs_time_and_no_more(tmp_path, caplog, content):
    if content:
        (tmp_path / "cache" / "medcap").mkdir(parents=True)
        (tmp_path / "cache" / "medcap" / f"image-info-{image_info._VERSION}.sqlite").write_bytes(content)
    else:
        (tmp_path / "cache").touch()  # no folder
    assert inspect_images(write_files(tmp_path / "files"))[0] == inspect_image(jpeg(0))
    assert "will be decoded again next time" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_and_no_more(tmp_path, caplog, monkeypatch):
    rows = write_files(tmp_path / "files")
    open_cache = image_info._open_cache

    def read_only():
        (cache := open_cache()).execute("PRAGMA query_only = 1")
        return cache

    monkeypatch.setattr(image_info, "_open_cache", read_only)
    assert inspect_images(rows)[0] == inspect_image(jpeg(0))
    assert "5 results cannot be cached: attempt to write a readonly database" in caplog.text


def test_workers_may_be_spawned_as_on_macos(tmp_path, monkeypatch):
    monkeypatch.setattr(image_info, "Pool", get_context("spawn").Pool)
    within = rows_of([{"bytes": jpeg(i % 7), "path": None} for i in range(70)])
    assert inspect_images(within, 2) == [inspect_image(jpeg(i % 7)) for i in range(70)]


def test_cores_are_counted_where_the_system_does_not_tell_which(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert image_info._count_cores() == 1


def test_no_more_than_a_block_of_a_column_is_read_at_once(monkeypatch):
    monkeypatch.setattr(image_info, "_BLOCK", 3)
    sizes = []
    keys = image_info._keys
    monkeypatch.setattr(image_info, "_keys", lambda entries: sizes.append(len(entries)) or keys(entries))
    inspect_images(rows_of([{"bytes": jpeg(i), "path": None} for i in range(8)]))
    assert sizes == [3, 3, 2]


def test_the_perceptual_hash_is_computed_only_on_request_and_then_completes_the_cache(tmp_path, monkeypatch):
    rows = write_files(tmp_path / "files")
    import imagehash

    with monkeypatch.context() as patch:
        patch.setattr(imagehash, "phash", lambda *_, **__: pytest.fail("a perceptual hash was computed"))
        assert [info.phash for info in inspect_images(rows)] == [b""] * 5
        assert len(check_images(rows.add_column("image_id", list("abcde")))) == 5
    complete = inspect_images(rows, perceptual_hash=True)
    assert all(len(info.phash) == 32 for info in complete)
    monkeypatch.setattr(image_info, "inspect_image", refuse)
    assert inspect_images(rows, perceptual_hash=True) == complete
