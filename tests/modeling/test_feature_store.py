"""Files of the feature cache: exact after a kill, with two writers, with damaged files, and on a full disk."""

import multiprocessing
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from medcap.data.images import DIGEST_BYTES
from medcap.modeling.feature_store import ENTRY_BYTES, FeatureCache, default_folder, stored_bytes, stored_caches

SHAPE = (5, 4)


def digest(number):
    return number.to_bytes(DIGEST_BYTES, "big")


def constant_features(*numbers):
    return torch.stack([torch.full(SHAPE, float(number)) for number in numbers])


def put(cache, *numbers):
    cache.put([digest(number) for number in numbers], constant_features(*numbers))


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path, SHAPE, torch.float32)


def holds(cache, *numbers):
    return all(torch.equal(cache.get(digest(number)), constant_features(number)[0]) for number in numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_stored_bit_for_bit(tmp_path, dtype):
    cache, features = FeatureCache(tmp_path, SHAPE, dtype), torch.randn(3, *SHAPE).to(dtype)
    cache.put([digest(n) for n in range(3)], features)
    cache.flush()
    assert all(torch.equal(cache.get(digest(n)), features[n]) for n in range(3))
    assert cache.get(digest(3)) is None
    assert len(cache) == 3
    assert cache.slot_bytes == 20 * dtype.itemsize


def test_get_returns_a_copy(cache):
    put(cache, 1)
    cache.flush()
    cache.get(digest(1)).zero_()
    assert holds(cache, 1)


def test_a_later_run_reads_the_features_of_an_earlier_one(cache, tmp_path):
    put(cache, 1, 2)
    cache.flush()
    later = FeatureCache(tmp_path, SHAPE, torch.float32)
    put(later, 3)
    later.flush()
    assert holds(later, 1, 2, 3)
    assert holds(cache, 1, 2, 3)


@pytest.mark.parametrize("left", [0, 1, 79, 80, 81])
def test_features_without_an_index_entry_are_ignored(cache, tmp_path, left):
    """A kill while features are written leaves any number of bytes."""
    put(cache, 1)
    cache.flush()
    (part,) = tmp_path.glob("*.bin")
    with part.open("ab") as file:
        file.write(b"x" * left)
    later = FeatureCache(tmp_path, SHAPE, torch.float32)
    put(later, 2)
    later.flush()
    assert holds(later, 1, 2)
    assert len(later) == 2


@pytest.mark.parametrize("left", range(1, ENTRY_BYTES))
def test_an_incomplete_digest_loses_only_its_image(cache, tmp_path, left):
    put(cache, 1, 2)
    cache.flush()
    (index,) = tmp_path.glob("*.idx")
    os.truncate(index, ENTRY_BYTES + left)
    later = FeatureCache(tmp_path, SHAPE, torch.float32)
    assert holds(later, 1)
    assert later.get(digest(2)) is None


def test_features_are_not_in_the_index_before_flush(cache, tmp_path):
    put(cache, 1)
    assert not list(tmp_path.glob("*.idx"))
    assert FeatureCache(tmp_path, SHAPE, torch.float32).get(digest(1)) is None


def fill(folder, first, barrier):
    cache = FeatureCache(folder, SHAPE, torch.float32)
    barrier.wait()
    for number in range(first, first + 200):
        put(cache, number)
    cache.flush()


def test_two_processes_write_to_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=fill, args=(tmp_path, first, barrier)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cache = FeatureCache(tmp_path, SHAPE, torch.float32)
    assert len(cache) == 300
    assert holds(cache, *range(300))


def test_a_pickled_copy_reads_later_features_and_writes_nothing(cache, tmp_path):
    copy = pickle.loads(pickle.dumps(cache))
    put(cache, 1)
    cache.flush()
    assert holds(copy, 1)
    put(copy, 2)
    copy.flush()
    assert cache.get(digest(2)) is None
    assert len(list(tmp_path.glob("*.bin"))) == 1


def test_a_full_disk_is_reported_once_and_frees_the_space_of_the_run(cache, tmp_path, monkeypatch, caplog):
    put(cache, 1)
    cache.flush()

    @contextmanager
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        put(cache, 2)
        put(cache, 3)
    assert [record.message.count("No space left on device") for record in caplog.records] == [1]
    assert cache.get(digest(1)) is cache.get(digest(2)) is None
    assert list(tmp_path.iterdir()) == []


def test_an_index_with_an_incomplete_entry_is_removed(cache, tmp_path, monkeypatch, caplog):
    """Later digests would belong to other features."""
    put(cache, 1)
    cache.flush()
    put(cache, 2, 3)

    def fail(descriptor):
        (index,) = tmp_path.glob("*.idx")
        if index.stat().st_size > ENTRY_BYTES:  # the second flush wrote half of its first digest
            os.truncate(index, ENTRY_BYTES + ENTRY_BYTES // 2)
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        cache.flush()
    assert caplog.text.count("No space left on device") == 1
    put(cache, 4)
    cache.flush()
    later = FeatureCache(tmp_path, SHAPE, torch.float32)
    assert len(later) == 0


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "medcap" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "medcap" / "features"


DAMAGES = {
    "a changed byte of the features": lambda part: flip(part.with_suffix(".bin"), 85),
    "a changed byte of a digest": lambda part: flip(part.with_suffix(".idx"), ENTRY_BYTES + 3),
    "a changed byte of a checksum": lambda part: flip(part.with_suffix(".idx"), ENTRY_BYTES + DIGEST_BYTES),
    "truncated features": lambda part: os.truncate(part.with_suffix(".bin"), 90),
    "no features": lambda part: part.with_suffix(".bin").unlink(),
    "a folder instead of features": lambda part: (part.with_suffix(".bin").unlink(), part.with_suffix(".bin").mkdir()),
    "empty features": lambda part: os.truncate(part.with_suffix(".bin"), 0),
    "no index": lambda part: part.with_suffix(".idx").unlink(),
    "index of other features": lambda part: part.with_suffix(".idx").write_bytes(os.urandom(2 * ENTRY_BYTES)),
}


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_features_are_never_returned_and_are_replaced(cache, tmp_path, damage):
    """The slot of image 2 begins at byte 80."""
    put(cache, 1, 2)
    cache.flush()
    damage(next(tmp_path.glob("*.idx")))
    reader = FeatureCache(tmp_path, SHAPE, torch.float32)
    assert reader.get(digest(2)) is None
    put(reader, 2)
    reader.flush()
    assert holds(reader, 2)
    assert holds(FeatureCache(tmp_path, SHAPE, torch.float32), 2)


def test_damage_while_running_is_found_and_reported_once_per_file(cache, tmp_path, caplog):
    put(cache, 1, 2)
    cache.flush()
    assert holds(cache, 1, 2)
    (part,) = tmp_path.glob("*.bin")
    os.truncate(part, 0)
    assert cache.get(digest(1)) is cache.get(digest(2)) is None
    assert caplog.messages == [f"{part} is missing or damaged; features that cannot be read are computed again"]


def test_a_cache_that_is_cleared_while_running_is_filled_again(cache, tmp_path):
    put(cache, 1, 2)
    cache.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    assert cache.get(digest(1)) is None
    put(cache, 1, 3)
    cache.flush()
    assert all(cache.get(digest(number)) is None or holds(cache, number) for number in (1, 2, 3))


def test_the_limit_counts_all_caches_of_the_folder(tmp_path, caplog):
    other = FeatureCache(tmp_path / "other", SHAPE, torch.float32)
    put(other, 1, 2)
    other.flush()
    cache = FeatureCache(tmp_path / "this", SHAPE, torch.float32, limit=5 * 80)
    for number in range(6):
        put(cache, number)
    cache.flush()
    assert stored_bytes(tmp_path) == 5 * 80
    assert holds(cache, 0, 1, 2)
    assert caplog.messages == [f"{tmp_path} has reached feature_cache_gb (4e-07 GB): no more features are cached"]


def test_stored_caches_lists_only_caches(tmp_path):
    cache = FeatureCache(tmp_path / "0123456789abcdef", SHAPE, torch.float32)
    put(cache, 1, 2)
    cache.flush()
    (tmp_path / "fedcba9876543210").mkdir()
    (tmp_path / "fedcba9876543210" / "thesis.txt").touch()
    (tmp_path / "images").mkdir()
    (found,) = stored_caches(tmp_path)
    assert (found.folder, found.images, found.size) == (cache.folder, 2, 160)
    assert "0.0 MB        2 images" in found.describe()
    assert stored_caches(tmp_path / "none") == []
