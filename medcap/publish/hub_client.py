"""A release to the Hub: whole or loudly not, over a network that fails, and over nobody else's work.

huggingface_hub does the requests. It tries some of them again by itself, and others (whoami, create, branch, commit)
not at all; and it takes the server's word for what has arrived. So every step here is tried again as long as that may
help, and what the Hub lists afterwards is compared with the folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from medcap import __version__
from medcap.logs import error_line
from medcap.publish.release import RELEASE_FILES, check_release
from medcap.recipe import Recipe

logger = logging.getLogger(__name__)

MAIN = "main"
MARK = "medcap"  # a tag of every card that medcap writes: a repository with it may be written to
ATTRIBUTES = ".gitattributes"  # which the Hub puts into every repository

TRIES = 8  # of each step
LONGEST = 600.0  # seconds after which a step is not tried again
SILENCE = 60.0  # seconds to wait for an answer; huggingface_hub would wait for ever
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # of another moment, or of two commits at once

Result = TypeVar("Result")


class HubUnreachableError(OSError):
    """The Hub cannot be reached, or fails: later it may do what was asked for."""


class _DiffersError(ConnectionError):
    """What the Hub lists after an upload is not what was sent."""


@dataclass(frozen=True)
class Destination:
    """A repository of the Hub: made private, or public; `overwrite` whatever it holds."""

    repo_id: str
    private: bool = True
    overwrite: bool = False


def check_access(to: Destination, api: HfApi | None = None) -> str:
    """Find out, before anything is trained for it, whether `to` can be pushed to; returns its whole name.

    The repository is made if need be. Raises OSError, one line without any token, when there is no token or one that
    may not write there, or when the repository is other work; HubUnreachableError when that cannot be told now.
    """
    api = api or HfApi()
    try:
        _check_role(patiently(api.whoami))
        return patiently(lambda: _open(api, to))
    except Exception as error:  # the client raises errors of all kinds
        raise _refusal(f"{to.repo_id} cannot be pushed to", error) from None


def push_destination(recipe: Recipe) -> Destination | None:
    """Where the recipe wants its epochs pushed to, if anywhere; OSError now when the token cannot do that then."""
    wanted = recipe.training
    if not wanted.push_to_hub:
        return None
    name = wanted.hub_model_id or Path(wanted.output_dir).name
    to = Destination(name, private=wanted.hub_private_repo is not False, overwrite=wanted.hub_overwrite)
    try:
        return dataclasses.replace(to, repo_id=check_access(to)) if wanted.process_index == 0 else to
    except HubUnreachableError as error:
        logger.warning("%s. Training goes on, and pushes when it can", error)
        return to


def push_release(release: Path, to: Destination, *, revision: str = MAIN, api: HfApi | None = None) -> str:
    """Make the branch `revision` of `to` hold `release`, by one commit if it does not yet; returns its address.

    Repository and branch are made if need be. Files of earlier releases go, others stay unless `to.overwrite`.
    Raises ValueError for what must not go out, OSError, one line without any token, when the Hub does not take it, and
    of these HubUnreachableError where trying again later may help.
    """
    check_release(release)
    api = api or HfApi()
    try:
        name = patiently(lambda: _open(api, to))
        if revision != MAIN:
            patiently(lambda: api.create_branch(name, branch=revision, exist_ok=True))
        patiently(lambda: _upload(api, release, name, revision, to.overwrite))
        if revision == MAIN and not to.private:
            patiently(lambda: api.update_repo_settings(name, private=False))
    except Exception as error:  # the client raises errors of all kinds
        # `from None`: what the client says may quote its request, and the token with it
        raise _refusal(f"{to.repo_id} was not pushed", error) from None
    return f"{api.endpoint}/{name}" + ("" if revision == MAIN else f"/tree/{revision}")


def patiently(step: Callable[[], Result]) -> Result:
    """Do `step`, again and again with growing pauses while it fails in a way that may pass."""
    started = time.monotonic()
    for attempt in range(1, TRIES + 1):
        get_session().timeout = SILENCE  # each time: the client makes itself a new session after some errors
        try:
            return step()
        except Exception as error:
            if attempt == TRIES or not _may_pass(error) or time.monotonic() - started > LONGEST:
                raise
            time.sleep(_pause(attempt, error))
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: not where the Hub understood and refused."""
    if (status := _status(error)) is not None:
        # an upload is wrapped in a RuntimeError; 400 says there that other bytes arrived than were announced
        return status in PASSING or (status == 400 and isinstance(error, RuntimeError))
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError))


def _status(error: BaseException | None) -> int | None:
    """The status of the Hub's answer that `error` is about, if it is about one."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _response(error: BaseException | None) -> Any:
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__
    return None


def _pause(attempt: int, error: Exception) -> float:
    """Seconds until the next attempt: 1, 2, 4, ... 32, each of them more or less, or as long as the Hub asks for."""
    asked = getattr(_response(error), "headers", {}).get("Retry-After", "")
    if asked.isdigit():
        return min(float(asked), 300.0) + random.random()
    return min(2.0 ** (attempt - 1), 32.0) * random.uniform(0.5, 1.5)


def _refusal(what: str, error: Exception) -> OSError:
    """The error to raise: in one line what, why, and what to do where that is known."""
    refused = isinstance(error, LocalTokenNotFoundError) or _status(error) in (401, 403)
    if refused:
        advice = "set HF_TOKEN, or log in with `hf auth login`, to a token that may write there"
        return OSError(f"{what}: {_reason(error)}; {advice}")
    return (HubUnreachableError if _may_pass(error) else OSError)(f"{what}: {error_line(error)}")


def _reason(error: Exception) -> str:
    return "there is no token" if isinstance(error, LocalTokenNotFoundError) else error_line(error)


def _check_role(account: dict[str, Any]) -> None:
    """Raise PermissionError for a token that can only read."""
    token = account.get("auth", {}).get("accessToken", {})
    fine = token.get("fineGrained", {})
    scopes = [fine.get("global", []), *(scope.get("permissions", []) for scope in fine.get("scoped", []))]
    may_write = any("write" in permission for scope in scopes for permission in scope)
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not may_write):
        raise PermissionError(
            f"the token of {account.get('name')} may only read; set HF_TOKEN, or log in with `hf auth login`, to one "
            "that may write there"
        )


def _open(api: HfApi, to: Destination) -> str:
    """Make the repository, or see that one that exists may be written to; returns its whole name."""
    name = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
    found = api.model_info(name)
    held = sorted({file.rfilename for file in found.siblings or []} - {ATTRIBUTES})
    if held and MARK not in (found.tags or []) and not to.overwrite:
        raise ValueError(
            f"the repository holds {held[0]} and no card of medcap's: it is other work; name another repository, or "
            "replace what it holds with --overwrite (in a recipe hub_overwrite: true)"
        )
    if to.private and not found.private:
        raise ValueError(
            "the repository exists and is public; name another one, or publish with --public (in a recipe "
            "hub_private_repo: false)"
        )
    return name


def _upload(api: HfApi, release: Path, name: str, revision: str, overwrite: bool) -> None:
    """One commit, unless the branch holds the release already; raises _DiffersError when it does not hold it then."""
    if not _differences(api, release, name, revision, overwrite):
        return
    api.upload_folder(
        repo_id=name,
        folder_path=release,
        revision=revision,
        commit_message=f"Release of medcap {__version__}",
        delete_patterns="*" if overwrite else sorted(RELEASE_FILES),
    )
    if wrong := _differences(api, release, name, revision, overwrite):
        raise _DiffersError(f"{wrong[0]} is not on the Hub as it was sent")


def _differences(api: HfApi, release: Path, name: str, revision: str, overwrite: bool) -> list[str]:
    """The files in which the branch is not the release, by size and checksum."""
    found = api.verify_repo_checksums(name, revision=revision, local_dir=release)
    others = {path for path in found.missing_paths if path != ATTRIBUTES}  # there and not here
    stale = others if overwrite else others & RELEASE_FILES
    return sorted({*(wrong["path"] for wrong in found.mismatches), *found.extra_paths, *stale})
