"""A push is complete or raises an error, and never changes a repository that was not made by medcap.

The client is huggingface_hub; the server is hub_server.py.
"""

import logging
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import (
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
    hf_hub_download,
    parse_eval_result_entries,
)
from safetensors.torch import save_file

import medcap.hub
from medcap.publish import hub_client
from medcap.publish.card import TAGS
from medcap.publish.hub_client import MEDCAP_TAG, Destination, HubUnreachableError, check_access, push_release

TOKEN, READER = "oidc-my-own-token-12345", "hf_" + "R" * 34  # the first is not in the usual format
REPO = "someone/captions"
PRIVATE, PUBLIC = Destination(REPO), Destination(REPO, private=False)


@pytest.fixture
def hub(hub, monkeypatch):
    """A Hub with a write token in the environment."""
    hub.reset()
    hub.add_token(TOKEN)
    hub.add_token(READER, role="read")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds passed to time.sleep, which returns at once."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def make_release(folder, weights=0.0, **files):
    folder.mkdir()
    save_file({"lora_A.weight": torch.full((20, 30), weights)}, folder / "adapter_model.safetensors")
    for name in ("adapter_config.json", "generation_config.json", "processor_config.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\ntags: [lora, medcap]\n---\n# Captions\n")
    for name, content in files.items():
        (folder / name.replace("_csv", ".csv")).write_text(content)
    return folder


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release", predictions_csv="ID,Caption\n")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def repository(hub):
    return hub.repositories["model", REPO]


def test_push_is_one_commit_in_a_private_repository(hub, release):
    assert push_release(release, PRIVATE) == f"{hub.url}/{REPO}"
    assert repository(hub).private
    assert repository(hub).files() == files(release)
    assert len(repository(hub).log("main")) == 2  # the initial commit and this one


def test_push_of_a_revision_does_not_change_main(hub, release):
    assert push_release(release, PRIVATE, revision="epoch-1") == f"{hub.url}/{REPO}/tree/epoch-1"
    assert repository(hub).files("epoch-1") == files(release)
    assert repository(hub).files("main") == {}


def test_existing_files_are_not_uploaded_again(hub, release):
    push_release(release, PRIVATE, revision="epoch-1")
    hub.requests.clear()
    push_release(release, PRIVATE, revision="epoch-1")
    assert not any("PUT" in request or "/commit/" in request for request in hub.requests)


def test_push_deletes_files_of_an_earlier_release_only(hub, release, tmp_path):
    push_release(release, PRIVATE)
    repository(hub).commit("main", "by hand", {"figure.png": b"png"})
    push_release(newer := make_release(tmp_path / "newer", weights=1.0), PRIVATE)
    assert repository(hub).files() == {**files(newer), "figure.png": b"png"}


def test_other_repository_needs_overwrite(hub, release):
    hub.add_repository(REPO, {"model.safetensors": b"precious", "README.md": b"# Mine"}, private=True)
    before = repository(hub).branches.copy()
    for call in (lambda: push_release(release, PRIVATE, revision="epoch-1"), lambda: check_access(PRIVATE)):
        with pytest.raises(OSError, match="contains README.md and was not made by medcap; .* with --overwrite"):
            call()
    assert repository(hub).branches == before
    push_release(release, Destination(REPO, overwrite=True))
    assert repository(hub).files() == files(release)


def test_cards_have_the_tag_that_marks_repositories():
    assert MEDCAP_TAG in TAGS


def test_private_push_to_public_repository_raises(hub, release):
    hub.add_repository(REPO)
    with pytest.raises(
        OSError, match="the repository exists and is public; use another name, or publish with --public"
    ):
        push_release(release, PRIVATE)
    assert repository(hub).files() == {}
    push_release(release, PUBLIC)
    assert repository(hub).files() == files(release)


def test_public_push_of_main_makes_repository_public(hub, release):
    push_release(release, PRIVATE)
    push_release(release, PUBLIC, revision="epoch-1")
    assert repository(hub).private
    push_release(release, PUBLIC)
    assert not repository(hub).private


def test_extra_file_raises_before_any_request(hub, release):
    (release / "scan.png").touch()
    with pytest.raises(ValueError, match=r"scan\.png is not part of a release"):
        push_release(release, PRIVATE)
    assert hub.requests == []


# one fault per test, for each request of a push
FAULTS = {
    "connection dropped during a PUT": ("drop", "PUT /lfs/", {}),
    "connection dropped during a commit": ("drop", "POST .*/commit/", {}),
    "response to a commit lost": ("lost", "POST .*/commit/", {}),
    "response to create_repo lost": ("lost", "POST /api/repos/create", {}),
    "response to create_branch lost": ("lost", "POST .*/branch/", {}),
    "500 for a PUT": (500, "PUT /lfs/", {}),
    "500 for the check of the card": (500, "validate-yaml", {}),
    "503 for a commit": (503, "POST .*/commit/", {}),
    "429 for a commit": (429, "POST .*/commit/", {"headers": {"Retry-After": "7"}}),
    "409 for a concurrent commit": (409, "POST .*/commit/", {}),
    "412 for a concurrent commit": (412, "POST .*/commit/", {}),
    "request timeout": ("late", "POST .*/commit/", {"seconds": 0.4}),
    "upload with another checksum": ("sha", "PUT /lfs/", {}),
    "preupload claims a file exists": ("sha", "POST .*/preupload/", {}),
    "listed checksum differs": ("sha", "GET .*/tree/", {"times": 3}),  # before, during and after the upload
}


@pytest.mark.parametrize(("kind", "where", "options"), FAULTS.values(), ids=FAULTS)
def test_transient_fault_is_retried(kind, where, options, hub, release, pauses, monkeypatch):
    monkeypatch.setattr(medcap.hub, "REQUEST_TIMEOUT", 0.15 if kind == "late" else 10.0)
    hub.fail(kind, where, **options)
    push_release(release, PRIVATE, revision="epoch-1")
    assert hub.failed == options.get("times", 1)
    assert pauses != []  # the step was retried
    assert repository(hub).files("epoch-1") == files(release)
    if kind == 429:
        assert max(pauses) >= 7  # Retry-After


@pytest.mark.parametrize("status", [401, 403])
def test_refused_token_is_not_retried_and_gives_advice(status, hub, release, pauses):
    hub.fail(status, "POST .*/commit/", times=None)
    with pytest.raises(OSError, match=f"{REPO} was not pushed: .*; set HF_TOKEN, or log in with `hf auth login`"):
        push_release(release, PRIVATE)
    assert (hub.failed, pauses) == (1, [])


def test_permanent_failure_raises_after_max_attempts(hub, release, pauses):
    hub.fail(503, "POST .*/commit/", times=None)
    with pytest.raises(HubUnreachableError, match=f"^{REPO} was not pushed: .*503") as raised:
        push_release(release, PRIVATE)
    assert "\n" not in str(raised.value)
    assert hub.failed == hub_client.MAX_ATTEMPTS
    assert len(pauses) == hub_client.MAX_ATTEMPTS - 1
    assert all(0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses[:6]))
    hub.faults.clear()
    push_release(release, PRIVATE)
    assert repository(hub).files() == files(release)


def test_concurrent_commits_are_explained(hub, release, pauses):
    hub.fail(412, "POST .*/commit/", times=None, message="A commit has happened since. Please refresh and try again.")
    with pytest.raises(HubUnreachableError, match="because another process changed the repository at the same time: "):
        push_release(release, PRIVATE)
    assert len(pauses) == hub_client.MAX_ATTEMPTS - 1


def test_unreachable_hub_raises(hub, release, monkeypatch):
    monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(hub_client, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(HubUnreachableError, match=f"{REPO} was not pushed: "):
        push_release(release, PRIVATE)


def test_retries_stop_after_max_seconds(hub, release, monkeypatch, pauses):
    hub.fail(503, "POST .*/commit/", times=None)
    monkeypatch.setattr(medcap.hub, "MAX_RETRY_SECONDS", -1.0)
    with pytest.raises(HubUnreachableError):
        push_release(release, PRIVATE)
    assert (hub.failed, pauses) == (1, [])


def test_write_token_passes(hub):
    assert check_access(Destination("captions")) == REPO  # in the user's own namespace
    assert repository(hub).private
    assert check_access(PRIVATE) == REPO


BAD_TOKENS = {
    "none": (None, "there is no token; set HF_TOKEN, or log in with `hf auth login`"),
    "read-only": (READER, "the token of someone is read-only; set HF_TOKEN"),
    "unknown": ("hf_" + "U" * 34, "Invalid user token.*; set HF_TOKEN"),
    "of another user": ("hf_" + "S" * 34, "You don't have the rights to write to someone/captions.*; set HF_TOKEN"),
    "fine-grained, read-only": ("hf_" + "F" * 34, "the token of someone is read-only"),
}


@pytest.mark.parametrize(("token", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_token_without_write_permission_raises(token, message, hub, monkeypatch, pauses):
    hub.add_token("hf_" + "S" * 34, name="somebody-else")
    hub.add_token("hf_" + "F" * 34, role="fineGrained", permissions=["repo.content.read"])
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=f"{REPO} cannot be pushed to: .*{message}") as raised:
        check_access(PRIVATE)
    assert not isinstance(raised.value, HubUnreachableError)
    assert "\n" not in str(raised.value)
    assert pauses == []
    assert hub.repositories == {}


def test_fine_grained_write_token_passes(hub, monkeypatch):
    hub.add_token("hf_" + "G" * 34, role="fineGrained", permissions=["repo.content.read", "repo.write"])
    monkeypatch.setenv("HF_TOKEN", "hf_" + "G" * 34)
    assert check_access(PRIVATE) == REPO


QUOTING_REQUESTS = [
    (500, "whoami"), (403, "repos/create"), (401, "GET /api/models/"), (500, "validate-yaml"), (403, "preupload"),
    (503, "PUT /lfs"), (401, "/commit/"), (409, "/branch/"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "where"), QUOTING_REQUESTS)
def test_token_is_removed_from_errors(status, where, hub, release, monkeypatch, capfd, caplog):
    monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", 2)
    caplog.set_level(logging.DEBUG, "medcap")
    message = f"denied: Bearer {TOKEN} and {READER}"
    hub.fail(status, where, times=None, message=message, headers={"X-Request-Id": TOKEN})
    with pytest.raises(OSError, match=REPO) as raised:
        check_and_push(release)
    assert raised.value.__cause__ is None  # no token in the traceback of --debug either
    assert raised.value.__suppress_context__
    assert "(token)" in str(raised.value) or where == "/branch/"
    for text in (str(raised.value), caplog.text, *capfd.readouterr()):
        assert TOKEN not in text
        assert READER not in text


def check_and_push(release):
    check_access(PRIVATE)
    push_release(release, PRIVATE, revision="epoch-1")


def test_error_without_message_names_its_type(hub, release):
    hub.fail(409, "repos/create", times=None)  # the response has no "url", which the client needs
    with pytest.raises(OSError, match="was not pushed: KeyError: 'url'$"):
        push_release(release, PRIVATE)


def test_eval_results_are_read_by_huggingface_hub(hub, release, tmp_path):
    entry = EvalResultEntry("eltorio/ROCOv2-radiology", task_id="cider", value=0.4, notes="metrics:coco|n:2")
    (release / ".eval_results").mkdir()
    (release / ".eval_results" / "rocov2.yaml").write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry])))
    push_release(release, PRIVATE)
    downloaded = hf_hub_download(REPO, ".eval_results/rocov2.yaml", cache_dir=tmp_path / "cache")
    assert parse_eval_result_entries(yaml.safe_load(Path(downloaded).read_text())) == [entry]
    push_release(make_release(tmp_path / "without"), PRIVATE)
    assert ".eval_results/rocov2.yaml" not in repository(hub).files()  # scores of an earlier release are deleted
