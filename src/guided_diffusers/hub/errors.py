"""Errors of the Hub as one clear line each.

The client raises many kinds, with addresses and request numbers over several lines, and diffusers wraps
them in others ("not fully cached locally"). What went wrong is in the chain of causes; it is said here in
one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet", "requests", "urllib3", "socket", "ssl")
_CLIENT = ("huggingface_hub", *_TRANSPORTS)


class HubError(OSError):
    """The Hub could not do what was asked; the message is one line, `__cause__` is the client's own error."""


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub's client, inside, into a HubError of one line; others pass as they are.

    Args:
        repo_id: The repository that is talked about.
        revision: The revision that was asked for.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        line = explanation(error, repo_id, revision)
        if line is None:
            raise
        raise HubError(line) from error


def explanation(error: BaseException, repo_id: str, revision: str | None = None) -> str | None:
    """What went wrong at the Hub, in one line; None if the error's causes have nothing to do with it."""
    chain = list(_causes(error))
    for one in chain:
        if (line := _known(one, repo_id, revision)) is not None:
            return line
    for one in chain:
        if _from(one, _TRANSPORTS) or isinstance(one, ConnectionError | TimeoutError):
            return f"the Hub at {constants.ENDPOINT} does not answer ({_first_line(one)}): check the network"
    for one in chain:
        if isinstance(one, LocalEntryNotFoundError):
            return f"{repo_id}: {_first_line(one)}"
        if _from(one, _CLIENT):
            return f"{repo_id}: {_first_line(one)}"
    return None


def _known(error: BaseException, repo_id: str, revision: str | None) -> str | None:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} cannot be reached: the client is offline (HF_HUB_OFFLINE is set)"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token: log in with `hf auth login`, set HF_TOKEN, or give token="
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no folder here, and no name of a repository: {_first_line(error)}"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated, and the token has not been granted access to it"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo_id}, or it is private and the token may not see it"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}"
    if isinstance(error, EntryNotFoundError) and status is not None:
        return f"{repo_id} does not have a file that is needed: {_first_line(error)}"
    if status == 401:
        return f"the Hub refuses the token: it is wrong or expired, or none was given for {repo_id}"
    if status == 403:
        return f"the token may not do this to {repo_id}: {_server_message(error)}"
    if status == 412:
        return f"somebody else pushed to {repo_id} at the same time: push again"
    if status is not None:
        return f"{repo_id}: the Hub answers {status}: {_server_message(error)}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _from(error: BaseException, libraries: tuple[str, ...]) -> bool:
    """Whether one of the libraries defines the error or raised it; the client raises bare RuntimeErrors."""
    places = [kind.__module__ for kind in type(error).__mro__]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        places.append(trace.tb_frame.f_globals.get("__name__", ""))
    return any(place.split(".")[0] in libraries for place in places)


def _server_message(error: BaseException) -> str:
    return getattr(error, "server_message", None) or _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
