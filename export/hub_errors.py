"""What huggingface_hub raises, as one line for the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from safecode_trt.errors import CheckpointError

__all__ = ["explained"]

# The base of all errors of the HTTP client: httpx in huggingface_hub 1, httpx2 in 2.
CLIENT_ERROR = cast(type[Exception], next(x for x in HfHubHTTPError.__mro__ if x.__name__ == "HTTPError"))


@contextmanager
def explained(name: str, revision: str, file: str | None) -> Iterator[None]:
    """Turns a failure to get `file`, or None for the list of files, of a model into one line.

    Raises:
        CheckpointError: huggingface_hub, its HTTP client or the disk failed.
    """
    try:
        yield
    except (CLIENT_ERROR, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise CheckpointError(_explanation(cause or error, name, revision, file)) from error


def _explanation(error: BaseException, name: str, revision: str, file: str | None) -> str:
    if isinstance(error, HfHubHTTPError):
        return _answered(error, name, revision, file)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME to one with more"
        return f"{error.filename or constants.HF_HUB_CACHE} cannot be written: {error.strerror}"
    if isinstance(error, ValueError):
        return f"{name}@{revision} is not a model's name on the hub: {error}"
    if file is None:
        return (
            f"there is no folder {name!r}, and {constants.ENDPOINT} cannot be reached ({error}); check the network, "
            "or take a model that is in the cache with --offline"
        )
    return (
        f"the download of {file} of {name} broke off ({error}); run the export again, which keeps whole files"
    )


def _answered(error: HfHubHTTPError, name: str, revision: str, file: str | None) -> str:
    hub, status = constants.ENDPOINT, error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"{name} is gated; ask for access at {hub}/{name}, and with that run: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no folder {name!r} and no such model at {hub}, or it is private; check the name, or for a "
            "private one run: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no branch, tag or commit {revision!r}; {hub}/{name}/commits/main lists them"
    if isinstance(error, EntryNotFoundError):
        return f"{name} has no {file} any more; run the export again"
    if status in (401, 403):
        return f"{hub} refuses access to {name} with this token ({status}); run: hf auth login"
    return f"{hub} answered {status} for {file or name}; try again later"
