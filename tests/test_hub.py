"""Models and data sets are loaded from the Hub with retries, and their weights are verified (SECURITY.md)."""

import os
import socket
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import close_session
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

import medcap.hub
from medcap import retries
from medcap.cli import main
from medcap.data.download import HUB_ID, download_hub
from medcap.data.load import load_data
from medcap.hub import HubUnreachableError, local_model
from medcap.inference import load_captioner
from medcap.recipe import RecipeError
from medcap.reporting.audit_page import load_tokenizer


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds passed to time.sleep, which returns at once."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def name(hub, tiny_base, request, monkeypatch, tmp_path):
    """The name of a base on the Hub that is not in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub.reset()
    name = f"someone/{abs(hash(request.node.nodeid))}"
    hub.add_repository(name, {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    return name


def test_model_on_the_hub_is_its_folder_in_the_cache(name, hub, tiny_base):
    folder = local_model(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in tiny_base.iterdir()
    }
    captioner = load_captioner(name)
    assert (captioner.base, captioner.adapter) == (name, None)
    assert captioner.model.name_or_path == name  # not a path in the cache
    assert local_model(str(tiny_base)) == tiny_base


FAULTS = {
    "503 for the repository": (503, "GET /api/models/", {}),
    "500 for the list of files": (500, "GET /api/models/.*/tree/", {}),
    "429 for the configuration": (429, "/resolve/.*/config.json", {"headers": {"Retry-After": "0.5"}, "times": 2}),
    "503 for the weights": (503, "/resolve/.*/model.safetensors", {"times": 2}),
    "504 for the bytes of the weights": (504, "GET .*/resolve/.*/model.safetensors", {}),
    "connection reset": ("drop", "GET /api/models/", {}),
    "connection reset during the weights": ("lost", "GET .*/resolve/.*/model.safetensors", {}),
    "rate limit": (429, "/resolve/.*/config.json", {"headers": {"RateLimit": '"api";r=0;t=55'}, "times": 2}),
}


@pytest.mark.parametrize(("kind", "where", "options"), FAULTS.values(), ids=FAULTS)
def test_transient_fault_is_retried(kind, where, options, name, hub, waits, caplog):
    hub.fail(kind, where, **options)
    assert (local_model(name) / "model.safetensors").is_file()
    assert hub.failed == options.get("times", 1)  # huggingface_hub repeats the first request for a file once
    assert len(waits) == 1
    if isinstance(kind, int):
        assert f"Hub: status {kind}" in caplog.text
        assert "attempt 2 of 8 follows in" in caplog.text
    if "headers" in options:
        assert waits == [55 if "RateLimit" in options["headers"] else 0.5]


@pytest.mark.parametrize("where", ["GET /api/models/", "/resolve/.*/model.safetensors", "/resolve/.*/config.json"])
def test_permanent_fault_names_the_status(where, name, hub, waits):
    hub.fail(503, where, times=None)
    with pytest.raises(
        HubUnreachableError, match="cannot be reached: status 503 Service Unavailable for http"
    ) as raised:
        load_captioner(name)
    assert "\n" not in str(raised.value)
    assert "pytorch_model.bin" not in str(raised.value)
    assert len(waits) == retries.MAX_ATTEMPTS - 1


def test_model_in_the_cache_is_used_at_once_if_the_hub_is_down(name, hub, waits):
    folder = local_model(name)
    hub.fail(503, "", times=None)
    assert local_model(name) == folder
    assert waits == []


MISSING = {
    "no repository": ("someone/nothing", None, "no such local folder, and no such repository on the Hub; a private"),
    "no namespace": ("nothere", None, "no model 'nothere': no such local folder, and no such repository on the Hub"),
    "no revision": (None, "v9", "and no such revision on the Hub: status 404 .*v9"),
}


@pytest.mark.parametrize(("model", "revision", "message"), MISSING.values(), ids=MISSING)
def test_missing_model_is_one_line_without_retries(model, revision, message, name, waits):
    with pytest.raises(FileNotFoundError, match=message) as raised:
        local_model(model or name, revision)
    assert "\n" not in str(raised.value)
    assert waits == []


def test_revision_of_a_folder_is_refused(tiny_base):
    with pytest.raises(RecipeError, match=f"--revision v2 is of a repository on the Hub, but {tiny_base} is a folder"):
        load_captioner(str(tiny_base), revision="v2")


def test_command_without_a_network_reports_the_name(name, monkeypatch, capsys, waits):
    def refuse(*args, **options):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    close_session()
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(SystemExit, match="1"):
        main(["evaluate", "--model", "nothere", "--data", "x", "--out", "y"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("medcap: error: no model 'nothere': no such local folder, and the Hub (http://127.0.0.1:")
    assert error.endswith("cannot be reached: [Errno -3] Temporary failure in name resolution")
    assert len(waits) == retries.OFFLINE_ATTEMPTS - 1


def test_offline_mode_is_not_retried(name, monkeypatch, waits):
    def refuse(*args, local_files_only=False, **options):
        raise (OfflineModeIsEnabled("offline") if not local_files_only else LocalEntryNotFoundError("nothing"))

    monkeypatch.setattr(medcap.hub, "snapshot_download", refuse)
    with pytest.raises(HubUnreachableError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        local_model(name)
    assert waits == []


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, end = content[8 : 8 + size], content[8 + size :]
    path.write_bytes({
        "truncated": content[:-100],
        "truncated header": content[:50],
        "empty": b"",
        "longer": content + b"0",
        "huge header": (1 << 60).to_bytes(8, "little") + content[8:],
        "unknown type": content[:8] + header.replace(b'"F32"', b'"Q99"', 1) + end,
        "overlap": content[:8] + header.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1) + end,
        "HTML": b"<html>503 Service Unavailable</html>" * 9,
    }[kind])  # fmt: skip


KINDS = ("truncated", "truncated header", "empty", "longer", "huge header", "unknown type", "overlap", "HTML")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_one_line_with_the_file(kind, tiny_base, tmp_path):
    for path in tiny_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "model.safetensors", kind)
    with pytest.raises(
        ValueError, match=r"model\.safetensors is incomplete or damaged \(.*\): download it again$"
    ) as raised:
        load_captioner(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_damaged_weights_of_an_adapter_are_one_line(tiny_base, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is incomplete or damaged"):
        load_captioner(str(tmp_path))


def test_downloaded_weights_have_the_checksum_of_the_hub(name, monkeypatch):
    digests = []
    monkeypatch.setattr(medcap.hub, "file_digest", lambda path: digests.append(path) or FILE_DIGEST(path))
    blob = (local_model(name) / "model.safetensors").resolve()
    local_model(name)
    assert digests == [blob]  # is remembered
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")  # has a valid header
    os.utime(blob, (1, 1))
    with pytest.raises(ValueError, match=f"model.safetensors differs from the file on the Hub: remove {blob}, and it"):
        load_captioner(name)
    blob.unlink()
    assert local_model(name)


FILE_DIGEST = medcap.hub.file_digest


def test_pickled_weights_are_downloaded_only_without_safetensors(name, hub):
    hub.repositories["model", name].commit("main", "more", {"pytorch_model.bin": b"x", "sub/model.safetensors": b"x"})
    assert not {path.name for path in local_model(name).iterdir()} & {"pytorch_model.bin", "sub"}
    repository = hub.add_repository(f"{name}-bin", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert (local_model(repository.name) / "pytorch_model.bin").is_file()


def test_tokenizer_is_loaded_without_the_weights(name, hub):
    assert load_tokenizer(name).vocab_size > 100
    assert not any("safetensors" in request for request in hub.requests)


@pytest.fixture
def data_set(name, hub, tmp_path):
    """The name of a data set on the Hub that is not in the cache."""
    rows = {"image_id": ["a"], "image": [None], "caption": ["a mass"]}
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    files = {f"data/{split}-00000-of-00001.parquet": content for split in ("train", "validation", "test")}
    hub.add_repository(f"{name}-data", files, kind="dataset")
    hub.add_repository(HUB_ID, files, kind="dataset")
    return f"{name}-data"


@pytest.mark.parametrize(("kind", "where"), [(503, "/api/datasets/"), ("drop", "/api/datasets/"), (500, "README.md")])
def test_data_set_is_loaded_with_retries(kind, where, data_set, hub, waits):
    hub.fail(kind, where, times=2)
    with pytest.raises(ValueError, match="images of train are missing"):  # all rows are read, and none has an image
        load_data(data_set, splits=["train"])
    assert hub.failed == 2
    assert waits != []


def test_data_set_of_a_hub_that_is_down_is_one_line(data_set, hub):
    hub.fail(503, "", times=None)
    with pytest.raises(OSError, match="503") as raised:
        load_data(data_set, splits=["train"])
    assert "\n" not in str(raised.value)


def test_mirror_is_downloaded_with_retries(data_set, hub, waits, tmp_path):
    hub.fail(503, "/api/datasets/")
    hub.fail(429, "GET .*/resolve/", headers={"Retry-After": "3"})
    assert [path.name for path in download_hub(tmp_path / "out", ["valid"])] == ["validation-00000-of-00001.parquet"]
    assert waits[-1] == 3
    hub.fail(503, "", times=None)
    with pytest.raises(HubUnreachableError, match=f"^{HUB_ID} was not downloaded, and the Hub .* be reached: status"):
        download_hub(tmp_path / "again", ["valid"])
