"""Backup files: opened read-only, known again by fingerprint, read exactly or not at all.

A file that changed, shrank or vanished is a SourceError, never other bytes and never fewer. Nothing here can write.

Not for: deciding which bytes are wanted (`engines/read`). Units: bytes.
"""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from synthfs.errors import NotFoundError, SourceError
from synthfs.extents import Source

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A name that leads elsewhere or blocks (symlink, FIFO, device) must neither be followed nor waited for."""

ZFS_MAGIC = 0x2FC12FC1

PROMPT = 0.004
"""A read that takes less has not waited for a disk that turns, and holds nobody up for long."""

RECENT = 1.0
"""For how long the last read tells what the next one is like."""


class OpenSource:
    """A backup file held open. Its descriptor goes on working when the file is deleted underneath."""

    __slots__ = ("_is_prompt", "_nowait", "fd", "source", "used")

    def __init__(self, source: Source) -> None:
        """Raises SourceError where the file at `source.path` is not there or not the one that `source` describes."""
        self.source = source
        self._nowait = True
        self._is_prompt = False
        with _reported(source):
            self.fd = os.open(source.path, _FLAGS)
        try:
            found = os.fstat(self.fd)
            if (found.st_dev, found.st_ino) != (source.device, source.inode):
                raise SourceError(f"{source.path} was replaced by another file; the backup that was listed is gone")
            self.check()
        except BaseException:
            os.close(self.fd)
            raise

    def check(self) -> None:
        """Raises SourceError if the open file is not what it was: by inode, size and time of modification.

        It follows every read, for the price of one fstat: bytes that were read before are those of the backup. That is 0.7 of
        the 3 µs that a read of 4 KiB takes here, and nothing cheaper is as sure: a watch (inotify) tells of a change only
        when it is asked, by another system call, and says nothing of what is written through a mapping.

        Not by device, which BTRFS sets to 0 once a subvolume is deleted, and not by ctime, which deletion changes.
        """
        try:
            found = os.fstat(self.fd)
        except OSError as error:
            raise _unreadable(self.source, error) from error
        if found.st_mtime_ns != self.source.mtime_ns or found.st_size != self.source.size or found.st_ino != self.source.inode:
            raise SourceError(f"{self.source.path} was changed while it was in use; nothing more is read from it")
        self.used = time.monotonic()

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fills `into` if that takes no waiting. False: it would block, or may.

        ZFS cannot tell. There, a read is thought to take no waiting if the last one did not, a moment ago: going through a
        thread made cached data two to three times slower (`scripts/bench zfs`). So a disk that is slow holds others up for
        one access at a time, and one that sleeps does not, since it was idle before.
        """
        if not self._nowait:
            if not self._is_prompt or time.monotonic() > self.used + RECENT:
                return False
            self.read(offset, into)
            return True
        try:
            filled = os.preadv(self.fd, (into,), offset, os.RWF_NOWAIT) == len(into)
        except BlockingIOError:
            return False
        except OSError as error:
            # ZFS cannot; whatever else went wrong, the read that may block meets it again and reports it.
            self._nowait = error.errno != errno.EOPNOTSUPP
            return False
        if filled:
            self.check()
        return filled

    def read(self, offset: int, into: memoryview) -> None:
        """Fills `into`, however long that takes. Raises SourceError where it cannot be filled."""
        began = time.monotonic()
        done = 0
        while done < len(into):
            with _reported(self.source):
                count = os.preadv(self.fd, (into[done:],), offset + done)
            if count == 0:
                raise SourceError(f"{self.source.path} ends at {offset + done}, before the {self.source.size} bytes it had")
            done += count
        self.check()
        self._is_prompt = self.used - began < PROMPT

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Offset and length of everything in [offset, offset + length) that is no hole."""
        end = offset + length
        while offset < end:
            with _reported(self.source):
                try:
                    start = os.lseek(self.fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # a hole to the end of the file
                        return
                    raise
                if start >= end:
                    return
                offset = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            yield start, offset - start

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more; BTRFS says so of a deleted subvolume by device 0."""
        found = os.fstat(self.fd)
        return found.st_nlink == 0 or found.st_dev == 0

    @property
    def on_zfs(self) -> bool:
        return file_system_magic(self.fd) == ZFS_MAGIC

    def close(self) -> None:
        # Whoever still reads from it gets an error, not the file that has the number next.
        fd, self.fd = self.fd, -1
        os.close(fd)


@contextmanager
def _reported(source: Source) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{source.path} is gone: UrBackup has deleted the backup") from error
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: OSError) -> SourceError:
    return SourceError(f"{source.path} cannot be read: {error.strerror}")


def open_regular(path: str) -> int:
    """A descriptor of the regular file at `path`. Raises SourceError for anything else, without touching it."""
    try:
        # Some devices act when they are merely opened, so that what it is has to be known before, and checked after.
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise SourceError(f"{path} is {'a symbolic link' if stat.S_ISLNK(mode) else 'no regular file'}")
        fd = os.open(path, _FLAGS)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError(f"{path} is no regular file")
    return fd


def source_at(path: str, name: str | None = None) -> Source:
    """The regular file at `path`, as it is now. Raises NotFoundError where there is nothing, SourceError for anything else."""
    if not os.path.lexists(path):
        raise NotFoundError(f"{path} does not exist")
    fd = open_regular(path)
    found = os.fstat(fd)
    os.close(fd)
    return Source(name or path, path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def read_small(path: str, limit: int) -> tuple[bytes, os.stat_result] | None:
    """All of a small file, and what it was before it was read; None where there is none.

    Raises SourceError if it is longer than `limit` or unreadable.
    """
    if not os.path.lexists(path):
        return None
    fd = open_regular(path)
    try:
        found, raw = os.fstat(fd), os.pread(fd, limit + 1, 0)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(raw) > limit:
        raise SourceError(f"{path} is longer than {limit} bytes and was not read")
    return raw, found


def real_directory(path: str) -> str:
    """The absolute path of a directory with all symbolic links resolved. Raises NotFoundError where there is none."""
    real = os.path.realpath(path)
    try:
        if not stat.S_ISDIR(os.stat(real).st_mode):
            raise NotFoundError(f"{path} is no directory")
    except OSError as error:
        raise NotFoundError(f"{path} cannot be opened: {error.strerror}") from error
    return real


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


_libc = ctypes.CDLL(None, use_errno=True)


def file_system_magic(fd: int) -> int:
    """The number that tells file systems apart (statfs(2)); 0 where the kernel does not say."""
    result = _Statfs()
    return int(result.f_type) if _libc.fstatfs(fd, ctypes.byref(result)) == 0 else 0
