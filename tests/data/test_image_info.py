"""Images are decoded once, and their properties are cached until a file changes."""

import functools
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

from medcap.data import image_info, workers
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
    raise AssertionError("an image was decoded again")


def test_files_zips_and_bytes_have_the_same_info(tmp_path):
    files = write_files(tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(5):
            archive.writestr(f"train/{i}.jpg", jpeg(i))
    zipped = rows_of([f"zip://train/{i}.jpg::{tmp_path / 'a.zip'}" for i in range(5)])
    stored = rows_of([{"bytes": jpeg(i), "path": None} for i in range(5)])
    assert inspect_images(files) == inspect_images(zipped) == inspect_images(stored)
    assert len({info.pixel_digest for info in inspect_images(files)}) == 5


def test_info_has_size_and_hashes():
    info = inspect_image(jpeg(0), perceptual_hash=True)
    assert (info.width, info.height, len(info.phash), len(info.pixel_digest), info.error) == (64, 48, 32, 64, "")


def test_info_does_not_depend_on_file_format():
    image = Image.open(io.BytesIO(jpeg(1))).convert("RGB")
    image.save(buffer := io.BytesIO(), "PNG")
    assert inspect_image(buffer.getvalue()) == inspect_image(jpeg(1))


def test_lossy_copy_has_a_similar_perceptual_hash():
    rng = np.random.default_rng(0)
    phantom = Image.fromarray((255 * draw(random_phantom(rng), rng, 120, 140)).astype(np.uint8))
    phantom.save(worse := io.BytesIO(), "JPEG", quality=60)
    first, second = inspect_image(phantom, True), inspect_image(worse.getvalue(), True)
    distance = np.bitwise_count(np.frombuffer(first.phash, np.uint8) ^ np.frombuffer(second.phash, np.uint8)).sum()
    assert first.pixel_digest != second.pixel_digest
    assert distance <= 16


def test_cached_images_are_not_decoded_again(tmp_path, monkeypatch):
    rows = write_files(tmp_path / "files")
    before = inspect_images(rows)
    monkeypatch.setattr(image_info, "inspect_image", refuse)
    assert inspect_images(rows) == before
    assert inspect_images(rows.select([3, 1])) == [before[3], before[1]]


def test_changed_file_is_decoded_again(tmp_path):
    rows = write_files(tmp_path / "files")
    before = inspect_images(rows)
    (tmp_path / "files" / "2.jpg").write_bytes(jpeg(99))
    after = inspect_images(rows)
    assert [i for i in range(5) if before[i] != after[i]] == [2]


def test_failure_is_not_cached(tmp_path):
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
    stored = rows_of([{"bytes": jpeg(i % 90), "path": None} for i in range(150)])
    assert inspect_images(stored, num_proc) == [inspect_image(jpeg(i % 90)) for i in range(150)]


def test_results_are_cached_after_each_block(tmp_path, monkeypatch):
    monkeypatch.setattr(image_info, "_BLOCK", 2)
    rows = write_files(tmp_path / "files")
    decoded = []

    def interrupted_at_fourth(entry, perceptual_hash):
        decoded.append(entry)
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return inspect_image(entry)

    monkeypatch.setattr(image_info, "inspect_image", interrupted_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        inspect_images(rows)
    decoded += [None]  # no interrupt
    inspect_images(rows)
    assert len(decoded) == 5 + 3  # the first block of 2 was cached


def test_threads_share_the_cache(tmp_path):
    stored = rows_of([{"bytes": jpeg(i), "path": None} for i in range(30)])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: inspect_images(stored, 1), range(4)))
    assert all(result == results[0] for result in results)


def write_many(cache, name):
    datasets.config.HF_DATASETS_CACHE = cache
    with closing(image_info._open_cache()) as cache:
        for i in range(50):
            image_info._read_cache(cache, [f"{name}{i}"], False)
            image_info._write_cache(cache, {f"{name}{i}": image_info.ImageInfo(pixel_digest=str(i))})


def test_processes_write_to_the_cache_concurrently(tmp_path):
    fork = get_context("fork")
    writers = [fork.Process(target=write_many, args=(tmp_path / "cache", name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with closing(image_info._open_cache()) as cache:
        assert len(image_info._read_cache(cache, [f"{name}{i}" for name in "abc" for i in range(50)], False)) == 150


def test_cache_is_used_by_other_processes(tmp_path):
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


def test_missing_image_has_an_error():
    rows = rows_of([{"bytes": jpeg(0), "path": None}, None, {"bytes": None, "path": None}])
    first, second, third = inspect_images(rows)
    assert [info.error for info in (first, second, third)] == ["", "there is no image", "there is no image"]
    assert inspect_image(None).error == "there is no image"


def test_pil_images_are_inspected():
    assert inspect_images(rows_of([Image.new("RGB", (3, 2))]))[0].width == 3


def test_changed_zip_has_another_key(tmp_path):
    keys = set()
    for seed in (0, 1):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x.jpg", jpeg(seed))
        keys.update(image_info._keys([{"bytes": None, "path": f"zip://x.jpg::{tmp_path / 'a.zip'}"}]))
    assert len(keys) == 2


def test_relative_path_has_its_folder_in_the_key(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(bytes(9))
        os.utime(tmp_path / name / "0.jpg", ns=(0, 0))
    keys = set()
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        keys.update(image_info._keys([{"bytes": None, "path": "0.jpg"}]))
    assert len(keys) == 2


@pytest.mark.parametrize("content", [b"not a database" * 99, None])
def test_invalid_cache_is_replaced_by_one_in_memory(tmp_path, caplog, content):
    if content:
        (tmp_path / "cache" / "medcap").mkdir(parents=True)
        name = f"image-info-{image_info._VERSION}.{image_info.PIXEL_VERSION}.sqlite"
        (tmp_path / "cache" / "medcap" / name).write_bytes(content)
    else:
        (tmp_path / "cache").touch()  # not a folder
    assert inspect_images(write_files(tmp_path / "files"))[0] == inspect_image(jpeg(0))
    assert "will be decoded again next time" in caplog.text


def test_results_are_returned_if_the_cache_is_read_only(tmp_path, caplog, monkeypatch):
    rows = write_files(tmp_path / "files")
    open_cache = image_info._open_cache

    def read_only():
        (cache := open_cache()).execute("PRAGMA query_only = 1")
        return cache

    monkeypatch.setattr(image_info, "_open_cache", read_only)
    assert inspect_images(rows)[0] == inspect_image(jpeg(0))
    assert "5 results cannot be cached: attempt to write a readonly database" in caplog.text


def test_workers_can_be_spawned(tmp_path, monkeypatch):
    start = functools.partial(workers.ProcessPoolExecutor, mp_context=get_context("spawn"))
    monkeypatch.setattr(workers, "ProcessPoolExecutor", start)
    stored = rows_of([{"bytes": jpeg(i % 7), "path": None} for i in range(70)])
    assert inspect_images(stored, 2) == [inspect_image(jpeg(i % 7)) for i in range(70)]


def test_image_that_ends_its_process_is_named(tmp_path, monkeypatch):
    """As in an audit; `multiprocessing.Pool` would wait forever."""
    load = image_info.load_image

    def load_or_die(entry):
        return os._exit(1) if entry["path"].endswith("66.jpg") else load(entry)

    monkeypatch.setattr(image_info, "load_image", load_or_die)
    start = functools.partial(workers.ProcessPoolExecutor, mp_context=get_context("fork"))
    monkeypatch.setattr(workers, "ProcessPoolExecutor", start)
    rows = write_files(tmp_path / "files", count=70)
    with pytest.raises(ValueError, match=r"^cannot read image .*66\.jpg: the process that works on it dies"):
        inspect_images(rows, num_proc=2)


def test_cores_are_counted_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert image_info._count_cores() == 1


def test_column_is_read_in_blocks(monkeypatch):
    monkeypatch.setattr(image_info, "_BLOCK", 3)
    sizes = []
    keys = image_info._keys
    monkeypatch.setattr(image_info, "_keys", lambda entries: sizes.append(len(entries)) or keys(entries))
    inspect_images(rows_of([{"bytes": jpeg(i), "path": None} for i in range(8)]))
    assert sizes == [3, 3, 2]


def test_perceptual_hash_is_computed_on_request_and_then_cached(tmp_path, monkeypatch):
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
