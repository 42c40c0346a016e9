"""The local Hub server works with huggingface_hub and datasets.

test_epoch_releases.py uses it with transformers and peft.
"""

import hashlib
import json
from pathlib import Path

import httpx2
import pandas as pd
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

TOKEN, READER, STRANGER = "hf_" + "W" * 34, "hf_" + "R" * 34, "hf_" + "S" * 34
REPO = "someone/captions"


@pytest.fixture
def hub(hub):
    hub.reset()
    hub.add_token(TOKEN)
    hub.add_token(READER, role="read")
    hub.add_token(STRANGER, name="somebody-else")
    return hub


@pytest.fixture
def api(hub):
    return HfApi(token=TOKEN)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags: [medcap]\nlicense: other\n---\n# Captions\n")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "sub" / "empty.txt").touch()
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_uploaded_folder_is_downloaded_unchanged(hub, api, folder, tmp_path):
    assert api.create_repo(REPO, private=True) == f"{hub.url}/{REPO}"
    commit = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="first")
    assert hub.repositories["model", REPO].files() == contents(folder)
    assert hub.lfs.keys() == {hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()}
    snapshot = snapshot_download(REPO, cache_dir=tmp_path / "cache", token=TOKEN)
    assert {**contents(folder), ".gitattributes": b""}.keys() == {
        str(path.relative_to(snapshot)) for path in Path(snapshot).rglob("*") if path.is_file()
    }
    assert all((Path(snapshot) / name).read_bytes() == content for name, content in contents(folder).items())
    assert api.model_info(REPO).sha == commit.oid
    assert api.model_info(REPO).tags == ["medcap"]
    assert api.verify_repo_checksums(REPO, local_dir=folder).mismatches == []
    assert [line.title for line in api.list_repo_commits(REPO)] == ["first", "initial commit"]


def test_branches_and_tags(hub, api, folder):
    api.create_repo(REPO)
    api.create_branch(REPO, branch="epoch-1")
    api.create_branch(REPO, branch="epoch-1", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="epoch-1")
    api.upload_folder(repo_id=REPO, folder_path=folder, revision="epoch-1")
    (folder / "sub" / "empty.txt").write_text("changed")
    second = api.upload_folder(repo_id=REPO, folder_path=folder, revision="epoch-1", delete_patterns="README.md")
    api.create_tag(REPO, tag="v1", revision="epoch-1")
    references = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit == second.oid for ref in references.branches} == {
        "main": False, "epoch-1": True,
    }  # fmt: skip
    assert [(ref.name, ref.target_commit) for ref in references.tags] == [("v1", second.oid)]
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert set(api.list_repo_files(REPO, revision="v1")) == {*contents(folder), ".gitattributes"}
    assert {entry.path for entry in api.list_repo_tree(REPO, revision="v1")} >= {"sub", "README.md"}
    api.delete_branch(REPO, branch="epoch-1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="epoch-1")


def test_unchanged_files_are_not_uploaded_again(hub, api, folder):
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert not any("PUT" in request or "/commit/" in request for request in hub.requests)


def test_access_without_permission_raises(hub, api, folder):
    api.create_repo(REPO, private=True)
    for token, status in ((False, 401), (STRANGER, 404)):
        with pytest.raises(RepositoryNotFoundError, match=str(status)):
            api.model_info(REPO, token=token)
    assert api.model_info(REPO, token=READER).private
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_folder(repo_id=REPO, folder_path=folder, token=READER)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("someone/other", token=STRANGER)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_unknown")
    assert [api.whoami(token)["auth"]["accessToken"]["role"] for token in (TOKEN, READER)] == ["write", "read"]


def test_owner_makes_repository_public(hub, api):
    api.create_repo(REPO, private=True)
    api.update_repo_settings(REPO, private=False)
    assert api.model_info(REPO, token=False).private is False


def test_upload_with_wrong_sha256_or_size_is_refused(hub, api):
    api.create_repo(REPO)
    oid = hashlib.sha256(b"promised").hexdigest()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    batch = f"{hub.url}/{REPO}.git/info/lfs/objects/batch"
    response = httpx2.post(batch, json={"objects": [{"oid": oid, "size": 8}]}, headers=headers).json()
    url = response["objects"][0]["actions"]["upload"]["href"]
    assert [httpx2.put(url, content=content).status_code for content in (b"promises", b"short")] == [400, 403]
    assert httpx2.put(url.split("?")[0], content=b"promised").status_code == 403
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": oid, "size": 8}}
    commit = httpx2.post(f"{hub.url}/api/models/{REPO}/commit/main", content=json.dumps(line), headers=headers)
    assert commit.status_code == 400
    assert hub.lfs == {}


def test_resolve_returns_etag_commit_and_ranges(hub, api):
    repository = hub.add_repository(REPO, {"a.txt": b"0123456789", "b.safetensors": b"weights"})
    url = f"{hub.url}/{REPO}/resolve/main"
    head = httpx2.head(f"{url}/b.safetensors")
    assert head.headers["ETag"] == f'"{hashlib.sha256(b"weights").hexdigest()}"'
    assert head.headers["X-Repo-Commit"] == repository.branches["main"]
    assert (head.headers["Content-Length"], head.content) == ("7", b"")
    part = httpx2.get(f"{url}/a.txt", headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"345", "bytes 3-5/10")
    assert httpx2.get(f"{url}/a.txt", headers={"Range": "bytes=10-"}).status_code == 416
    assert httpx2.get(f"{url}/none").headers["X-Error-Code"] == "EntryNotFound"


def test_interrupted_download_is_resumed(hub, api, tmp_path, monkeypatch):
    hub.add_repository(REPO, {"a.txt": b"0123456789"})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("lost", "GET .*resolve")
    path = Path(hf_hub_download(REPO, "a.txt", cache_dir=tmp_path))
    assert (path.read_bytes(), hub.failed) == (b"0123456789", 1)


def test_card_with_invalid_yaml_is_refused(hub, api, folder):
    api.create_repo(REPO)
    (folder / "README.md").write_text("---\ntags: [medcap\n---\n")
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        api.upload_folder(repo_id=REPO, folder_path=folder)


def test_datasets_loads_from_the_server(hub, tmp_path):
    pd.DataFrame({"caption": ["a cyst", "a mass"]}).to_parquet(tmp_path / "rows.parquet")
    hub.add_repository("someone/data", {"data/train-0.parquet": (tmp_path / "rows.parquet").read_bytes()}, "dataset")
    assert load_dataset("someone/data", split="train", cache_dir=tmp_path)["caption"][:] == ["a cyst", "a mass"]
    assert any("GET /datasets/someone/data/resolve/" in request for request in hub.requests)
