"""What a process keeps between its runs: small JSON records below the directories that systemd and XDG name.

A record that is missing, foreign-owned or garbled is normal, and the same as none: everything that is kept can be found
out again. Not for: anything that a mount shows; that derives from the store alone.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from synthfs.errors import TargetError


def directory() -> str:
    """Where records are kept: $STATE_DIRECTORY, /var/lib/synthfs for root, ~/.local/state/synthfs for others."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.partition(":")[0]
    if os.geteuid() == 0:
        return "/var/lib/synthfs"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "synthfs")


def path_for(purpose: str, key: str) -> str:
    """The file of the record about `key`, which may be any text."""
    name = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return f"{directory()}/{purpose}-{name}.json"


def load(path: str) -> dict[str, Any]:
    """The record at `path`; an empty one where there is none that can be trusted."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return {}
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def save(path: str, record: dict[str, Any]) -> None:
    """Replaces the record at `path`, at once or not at all. Raises TargetError where that is not possible."""
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(draft, "w") as file:
            file.write(json.dumps(record))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise TargetError(f"{path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Keeps a second process out while this one works on the record at `path`. Raises TargetError for the second."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"{path}.lock cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetError("another run for this directory is under way; nothing was done") from None
        yield
    finally:
        os.close(lock)
