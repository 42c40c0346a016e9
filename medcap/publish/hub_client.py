"""Upload of a release to the Hub, with retries and a checksum comparison afterwards.

huggingface_hub sends the requests. It retries only some of them (not whoami, create, branch, commit) and does not
verify an upload. Each step is therefore retried here, and the files on the Hub are compared with the local folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from medcap import __version__, hub, retries
from medcap.hub import HubUnreachableError, is_transient
from medcap.logs import error_line
from medcap.publish.release import FULL_FILES, RELEASE_FILES, check_release
from medcap.recipe import Recipe
from medcap.retries import MAX_ATTEMPTS

logger = logging.getLogger(__name__)

MAIN = "main"
MEDCAP_TAG = "medcap"  # tag of every card that medcap writes; marks a repository that medcap may write to
GITATTRIBUTES = ".gitattributes"  # created by the Hub in every repository

TOKEN_ADVICE = "set HF_TOKEN, or log in with `hf auth login`, to a token with write permission"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Destination:
    """A repository on the Hub. With `overwrite`, files that medcap did not write are replaced too."""

    repo_id: str
    private: bool = True
    overwrite: bool = False


def check_access(to: Destination) -> str:
    """Check before training that `to` can be pushed to; create the repository if it does not exist.

    Returns:
        The repository's full name, namespace included.

    Raises:
        OSError: There is no token, the token cannot write there, or the repository was not made by medcap.
        HubUnreachableError: The Hub did not answer; access is not known.
    """
    api = HfApi()
    try:
        _check_role(retry(api.whoami))
        return retry(lambda: _open_repository(api, to))
    except Exception as error:  # the client raises errors of many types
        raise _hub_error(f"{to.repo_id} cannot be pushed to", error) from None


def push_destination(recipe: Recipe) -> Destination | None:
    """Return the repository that the recipe pushes its epochs to, or None.

    Raises:
        OSError: The token cannot write there. An unreachable Hub is only a warning.
    """
    training = recipe.training
    if not training.push_to_hub:
        return None
    name = training.hub_model_id or Path(training.output_dir).name
    to = Destination(name, private=training.hub_private_repo is not False, overwrite=training.hub_overwrite)
    try:
        return replace(to, repo_id=check_access(to)) if training.process_index == 0 else to
    except HubUnreachableError as error:
        logger.warning("%s. Training continues; the push is retried later", error)
        return to


def push_release(release: Path, to: Destination, *, revision: str = MAIN) -> str:
    """Upload `release` to the branch `revision` in one commit, unless the branch already holds the same files.

    Repository and branch are created if they do not exist. Files of earlier releases are deleted; other files are
    deleted only with `to.overwrite`.

    Returns:
        The URL of the repository or of the branch.

    Raises:
        ValueError: The folder holds a file that must not be published.
        OSError: The Hub refuses the upload. The message contains no token.
        HubUnreachableError: The Hub is unreachable; a later attempt may succeed.
    """
    check_release(release)
    api = HfApi()
    try:
        name = retry(lambda: _open_repository(api, to))
        if revision != MAIN:
            retry(lambda: api.create_branch(name, branch=revision, exist_ok=True))
        retry(lambda: _upload(api, release, name, revision, to.overwrite))
        if revision == MAIN and not to.private:
            retry(lambda: api.update_repo_settings(name, private=False))
    except Exception as error:  # the client raises errors of many types
        # `from None`: the client's error may quote its request headers and the token
        raise _hub_error(f"{to.repo_id} was not pushed", error) from None
    return f"{api.endpoint}/{name}" + ("" if revision == MAIN else f"/tree/{revision}")


def retry(step: Callable[[], Result]) -> Result:
    """Call `step` with retries, also for minutes without a network: the work to be pushed took hours."""
    return hub.retry(step, MAX_ATTEMPTS, offline_attempts=MAX_ATTEMPTS)


def _hub_error(message: str, error: Exception) -> OSError:
    """Return the one-line error to raise, with advice where the token is the cause."""
    if isinstance(error, LocalTokenNotFoundError):
        return OSError(f"{message}: there is no token; {TOKEN_ADVICE}")
    if retries.http_status(error) in (401, 403):
        return OSError(f"{message}: {error_line(error)}; {TOKEN_ADVICE}")
    if retries.http_status(error) in (409, 412):
        message += ", because another process changed the repository at the same time"
    return (HubUnreachableError if is_transient(error) else OSError)(f"{message}: {error_line(error)}")


def _check_role(account: dict[str, Any]) -> None:
    """Raise PermissionError for a token without write permission."""
    token = account.get("auth", {}).get("accessToken", {})
    fine = token.get("fineGrained", {})
    scopes = [fine.get("global", []), *(scope.get("permissions", []) for scope in fine.get("scoped", []))]
    can_write = any("write" in permission for scope in scopes for permission in scope)
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not can_write):
        raise PermissionError(f"the token of {account.get('name')} is read-only; {TOKEN_ADVICE}")


def _open_repository(api: HfApi, to: Destination) -> str:
    """Create the repository, or check that medcap may write to the existing one; return its full name."""
    name = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
    info = api.model_info(name)
    existing = sorted({file.rfilename for file in info.siblings or []} - {GITATTRIBUTES})
    if existing and MEDCAP_TAG not in (info.tags or []) and not to.overwrite:
        raise ValueError(
            f"the repository contains {existing[0]} and was not made by medcap; use another name, or replace its "
            "contents with --overwrite (in a recipe hub_overwrite: true)"
        )
    if to.private and not info.private:
        raise ValueError(
            "the repository exists and is public; use another name, or publish with --public (in a recipe "
            "hub_private_repo: false)"
        )
    return name


def _upload(api: HfApi, release: Path, name: str, revision: str, overwrite: bool) -> None:
    """Upload `release` in one commit unless the branch already holds it, then verify the checksums."""
    if not _differences(api, release, name, revision, overwrite):
        return
    api.upload_folder(
        repo_id=name,
        folder_path=release,
        revision=revision,
        commit_message=f"Release of medcap {__version__}",
        delete_patterns="*" if overwrite else sorted(RELEASE_FILES | FULL_FILES),
    )
    if differing := _differences(api, release, name, revision, overwrite):
        raise ConnectionError(f"{differing[0]} on the Hub differs from the uploaded file")  # is retried


def _differences(api: HfApi, release: Path, name: str, revision: str, overwrite: bool) -> list[str]:
    """Return the files in which the branch differs from `release`, by size and checksum."""
    result = api.verify_repo_checksums(name, revision=revision, local_dir=release)
    remote_only = {path for path in result.missing_paths if path != GITATTRIBUTES}
    stale = remote_only if overwrite else remote_only & (RELEASE_FILES | FULL_FILES)
    return sorted({*(mismatch["path"] for mismatch in result.mismatches), *result.extra_paths, *stale})
