"""One process at a time mounts at a place: it holds a lock on the directory until its mount stands.

The lock is flock(2)'s on the directory that the mount will cover, so that it is the same however the place is spelt and
whoever comes, needs no file anywhere, and ends with the processes that hold it. Whoever may read the directory can hold
it too, and is named. A dead mount hides the directory: it is taken away under a lock on the directory above, waited for
in turn, or the second of two would take away what the first has just mounted.

Not for: which places make sense (`cli/mount`). Units: seconds.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Self

from synthfs.errors import MountError
from synthfs.host import mounts
from synthfs.text import quoted

_PATIENCE = 3.0
"""For somebody else, who is mounting there, to be done: then there is more to be said of it."""


class Claim:
    """The right to mount at a directory."""

    def __init__(self, place: str, detached: Callable[[], None] = lambda: None) -> None:
        """Takes a dead mount away first, and calls `detached`.

        Raises MountError where a mount runs at `place`, somebody else is making one, or there is no empty directory.
        """
        with _in_turn(os.path.dirname(place)):
            if old := mounts.at(place):
                if not mounts.is_dead(old):
                    raise _running(old)
                detached()
                mounts.detach(old)
            self._fd = _opened(place)
        try:
            if not _locked(self._fd):
                raise MountError(f"{place} is being mounted by {_holder(self._fd)}; see what `synthfs status` says then")
            # What was opened may have been the other's mount, and what was locked is free since that stands.
            if old := mounts.at(place):
                raise _running(old)
            if os.listdir(self._fd):
                raise MountError(f"{place} is not empty; the mount would hide what is in it")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def release(self) -> None:
        """The mount stands, and tells everybody: for all processes that hold this claim since a fork."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of it in this process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def refuse_running(place: str) -> None:
    """Raises MountError where a mount runs at `place`. A dead one is none."""
    if (old := mounts.at(place)) and not mounts.is_dead(old):
        raise _running(old)


def _running(old: mounts.Mount) -> MountError:
    end = f"`synthfs umount {quoted(old.mountpoint)}` ends it"
    return MountError(f"{old.mountpoint} is a running synthfs mount of {old.store} already; {end}")


def _opened(place: str) -> int:
    try:
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise MountError(f"{place} cannot be read: {error.strerror}") from error
        remedy = "name an empty one" if os.path.lexists(place) else f"make one with `mkdir -p {quoted(place)}`"
        raise MountError(f"{place} is no directory; {remedy}") from error


@contextlib.contextmanager
def _in_turn(directory: str) -> Iterator[None]:
    """One after another; where the directory cannot be locked, or not for long, nobody is kept waiting."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        _locked(fd)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        except OSError:
            return True  # a file system that has no locks keeps nobody out


def _holder(fd: int) -> str:
    """Who holds the lock, as /proc/locks tells (proc(5)); on BTRFS it names another device than stat(2)."""
    found = os.fstat(fd)
    here = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks") as locks:
        for line in locks:
            fields = line.split()
            if "FLOCK" in fields and here in fields:
                return f"process {fields[fields.index(here) - 1]}"
    return "another process"
