"""What a process keeps between its runs: JSON records below the directories that systemd and XDG name.

    records     what was done, like what `sync` froze: small, in the state directory, on disk before `save` returns
    caches      what was found out about a store: may be large, in the cache directory, may be lost at any time

One that is missing, foreign-owned or garbled is normal, and the same as none: everything that is kept can be found out
again. A cache is sealed by a digest besides, since bytes that a mount shows may come out of it: what a failing disk made of
it is refused as a whole. Its reader still checks types and lengths, and asks the store whether what it says still holds.

Not for: what is in a record, or what it is good for.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from synthfs.errors import TargetError
from synthfs.host import shapes

MAX_CACHE = 256 * 1024 * 1024
"""Bytes of the longest cache that is written or read; 10,000 images and their holes take a tenth of it."""

_CACHE = b"synthfs cache 1 "


def directory() -> str:
    """Where records are kept: $STATE_DIRECTORY, /var/lib/synthfs for root, ~/.local/state/synthfs for others."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.partition(":")[0]
    if os.geteuid() == 0:
        return "/var/lib/synthfs"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "synthfs")


def path_for(purpose: str, key: str) -> str:
    """The file of the record about `key`, which may be any text."""
    return f"{directory()}/{purpose}-{_short(key)}.json"


def _short(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def load(path: str) -> dict[str, Any]:
    """The record at `path`; an empty one where there is none that can be trusted."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CACHE:
                return {}
            record = shapes.parse(file.read(found.st_size))
    except (OSError, ValueError):
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


def cache_directory() -> str:
    """Where caches are kept: $CACHE_DIRECTORY, /var/cache/synthfs for root, ~/.cache/synthfs for others."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return given.partition(":")[0]
    if os.geteuid() == 0:
        return "/var/cache/synthfs"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "synthfs")


@dataclass(frozen=True, slots=True)
class Cache:
    """What was found out for a `purpose` about `key`, any text (the path of a store).

    `version` is that of the contents' form, to be raised with each change of it.
    """

    purpose: str
    key: str
    version: int = 1

    @property
    def path(self) -> str:
        return f"{cache_directory()}/{self.purpose}-{_short(self.key)}.cache"

    def load(self) -> list[Any]:
        """The values that were saved last, as JSON has them; none where nothing was saved, or nothing that can be trusted."""
        try:
            with contextlib.closing(_Private(os.path.dirname(self.path))) as place:
                seal, _, body = place.read(os.path.basename(self.path), MAX_CACHE).partition(b"\n")
            # The seal covers whose cache it is: one that was renamed is another's.
            return [json.loads(line) for line in body.splitlines()] if seal == self._seal(body) else []
        except (OSError, ValueError, RecursionError, MemoryError):
            return []

    def save(self, values: Iterable[Any]) -> bool:
        """Keeps `values`, of JSON's types, in place of what was there. False: they could not be kept, which is no harm.

        Each is encoded by itself: while one is, no other thread of the process runs.
        """
        try:
            body = b"".join(json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in values)
            parts = (self._seal(body), b"\n", body)
            if sum(map(len, parts)) > MAX_CACHE:
                return False
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with contextlib.closing(_Private(os.path.dirname(self.path))) as place:
                place.replace(os.path.basename(self.path), parts)
        except OSError:
            return False
        return True

    def _seal(self, body: bytes) -> bytes:
        state = blake2b(digest_size=32)
        for part in (self.purpose.encode(), self.key.encode("utf-8", "surrogateescape"), b"%d" % self.version, body):
            state.update(b"%d " % len(part))
            state.update(part)
        return _CACHE + state.hexdigest().encode()


def purge(purpose: str, age: float) -> None:
    """Removes the caches of a purpose that are older than `age` seconds."""
    with contextlib.suppress(OSError), os.scandir(cache_directory()) as entries:
        for entry in entries:
            if entry.name.startswith(f"{purpose}-") and entry.name.endswith(".cache"):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - age:
                        os.unlink(entry.path)


class _Private:
    """A directory that nobody else can write to, held open. Raises OSError where it is not there or not such a one."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check(os.fstat(self._fd), path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._fd)

    def read(self, name: str, limit: int) -> bytes:
        """All of a file that nobody else can have written."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(name, flags, dir_fd=self._fd), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            self._check(found, name)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                raise OSError(f"{name} is no file of at most {limit} bytes")
            return file.read(found.st_size)

    def replace(self, name: str, parts: tuple[bytes, ...]) -> None:
        """Puts a file of `parts` in the place of `name`, at once or not at all; a crash of the machine may garble it."""
        draft = f"{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=self._fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(draft, flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.writelines(parts)
            os.replace(draft, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=self._fd)
            raise

    @staticmethod
    def _check(found: os.stat_result, name: str) -> None:
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{name} is another user's, or others may write to it")


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
