"""How full a file system is, and how much of it stays free for others whatever is written.

BTRFS counts what was written, and what was removed, half a minute later. So what was taken is counted here until the file
system was synced, which is done before a write is refused, and may take a while. It would be done at each write to a nearly
full file system: therefore writes are refused while less than `_STEP` is left, and one sync allows for as much at the least.
What the file system needs for its own tables is not foreseen: that much may be taken from the share.

Not for: what is to be done about it. Units: bytes; shares are from 0 to 1. Source: statvfs(3), and observation on BTRFS.
"""

import ctypes
import math
import os
import threading
import time

from synthfs.errors import FullError
from synthfs.host import zfs

_STEP = 16 * 1024 * 1024
_BLOCK = 4096
"""What a file system gives room for at once, at the least."""

_PAUSE = 30.0
"""Seconds between syncs that are only to find out whether somebody has made room."""

_libc = ctypes.CDLL(None, use_errno=True)


def free_share(directory: str) -> float:
    """How much of the file system of `directory` is free."""
    found = os.statvfs(directory)
    return found.f_bavail / max(found.f_blocks, 1)


def space_share(path: str) -> float:
    """How much of its file system a file can occupy at most, shared blocks included; 0 if it is not there."""
    try:
        at, found = os.stat(path, follow_symlinks=False), os.statvfs(path)
    except OSError:
        return 0.0
    return at.st_blocks * 512 / max(found.f_blocks * found.f_frsize, 1)


def settle(directory: str) -> None:
    """Waits until what was removed a moment ago is counted as free."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _libc.syncfs(fd)
    finally:
        os.close(fd)
    if pool := zfs.pool_of(directory):
        pool.settle()


class Reserve:
    """A share of the file system of a directory that is kept free. All of it may be called from several threads at once."""

    def __init__(self, directory: str, fd: int, share: float) -> None:
        """`fd` is a descriptor of the directory, which is open for as long as this is used."""
        self._directory = directory
        self._fd = fd
        self._share = share
        self._lock = threading.Lock()
        self._taken = 0
        self._is_full = False
        self._synced = -_PAUSE

    def left(self) -> int:
        """How much may still be written, as far as it is counted."""
        found = os.statvfs(self._fd)
        return max(found.f_bavail - math.ceil(found.f_blocks * self._share), 0) * found.f_frsize

    def take(self, offset: int = 0, length: int = _BLOCK) -> None:
        """Asks for the space of a write. Raises FullError where that would leave less free than the share."""
        if not self._share:
            return
        wanted = -(-(offset + length) // _BLOCK) * _BLOCK - offset // _BLOCK * _BLOCK
        enough = max(wanted, _STEP)
        with self._lock:
            if self.left() - self._taken < (enough if self._is_full else wanted):
                if self._taken or time.monotonic() >= self._synced + _PAUSE:
                    _libc.syncfs(self._fd)
                    self._taken, self._synced = 0, time.monotonic()
                self._is_full = self.left() < enough
                if self._is_full:
                    raise FullError(
                        f"less than {self._share * 100:g}% of the file system of {self._directory} is free, so that nothing "
                        "more is written there; make room, or mount with a smaller --min-free"
                    )
            self._is_full = False
            self._taken += wanted
