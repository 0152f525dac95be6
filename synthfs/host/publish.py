"""Files that appear under their name all at once, complete and on disk, or not at all.

    with Draft(directory) as draft:
        … write to draft.fd …
        draft.finish()
        draft.publish("name", replace=False)

A draft has no name (O_TMPFILE), so nothing is left of it however the process ends. Where a file system has no nameless
files, and for the moment of replacing one, it has a hidden temporary name; what a killed process leaves under such a name
is removed by the next one that makes a draft there. To finish is to fsync the file, to publish is to link it and fsync
the directory. Not for: what goes into the file. Source: open(2), rename(2), flock(2).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
from types import TracebackType
from typing import Self

from synthfs.errors import FullError, TargetError

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What kernels and file systems answer that know no nameless files (open(2), O_TMPFILE)."""

_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that know no hard links."""

_RENAME_NOREPLACE = 1
_TEMPORARY = re.compile(r"\.synthfs-(\d+)-[0-9a-f]{8}")
_libc = ctypes.CDLL(None, use_errno=True)


def _temporary_name() -> str:
    return f".synthfs-{os.getpid()}-{secrets.token_hex(4)}"


class Draft:
    """A file in the making. Raises TargetError where `directory` cannot take one."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._name: str | None = None
        try:
            self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"{directory}: {error.strerror}; name an existing directory with -o") from error
        try:
            _remove_leftovers(self._directory_fd)
            self.fd = self._nameless()
            # Tells other processes, in other containers as well, that somebody is at it; not every file system has it.
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._directory_fd)
            raise unwritable(error, f"{directory}: no file can be made here: {error.strerror}") from error

    def _nameless(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._directory, flags | os.O_TMPFILE, 0o640)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        self._name = _temporary_name()
        return os.open(self._name, flags | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._directory_fd)

    def finish(self) -> None:
        """Gets all that was written onto the disk."""
        os.fsync(self.fd)

    def publish(self, name: str, replace: bool) -> None:
        """Gives the finished file its name. Raises TargetError where it exists already, unless it may be replaced."""
        try:
            if replace:
                if self._name is None:
                    name_for_now = _temporary_name()
                    self._link(name_for_now)
                    self._name = name_for_now
                os.rename(self._name, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
                self._name = None
            elif self._name is None:
                self._link(name)
            else:
                self._rename_without_replacing(self._name, name)
                self._name = None
        except FileExistsError as error:
            raise TargetError(f"{self._directory}/{name} exists already; --force replaces it") from error
        os.fsync(self._directory_fd)

    def _link(self, name: str) -> None:
        """Links the nameless file by its descriptor, which AT_SYMLINK_FOLLOW makes possible without privileges."""
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._directory_fd, follow_symlinks=True)

    def _rename_without_replacing(self, old: str, new: str) -> None:
        """A link and not a rename where there are links: every file system refuses to link over an existing name."""
        at = self._directory_fd
        try:
            os.link(old, new, src_dir_fd=at, dst_dir_fd=at)
            os.unlink(old, dir_fd=at)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            if _libc.renameat2(at, os.fsencode(old), at, os.fsencode(new), _RENAME_NOREPLACE):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._directory_fd)
        os.close(self.fd)
        os.close(self._directory_fd)


def unwritable(error: OSError, message: str) -> TargetError:
    """What to raise, with `message`, for a write that failed: where the space ran out it is a FullError."""
    return (FullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else TargetError)(message)


def _remove_leftovers(directory_fd: int) -> None:
    """Removes drafts that a killed process left under a temporary name. Whatever is in doubt stays."""
    for name in os.listdir(directory_fd):
        matched = _TEMPORARY.fullmatch(name)
        if matched and not os.path.exists(f"/proc/{matched[1]}"):
            with contextlib.suppress(OSError):
                _remove_unlocked(directory_fd, name)


def _remove_unlocked(directory_fd: int, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid():
            os.unlink(name, dir_fd=directory_fd)
    finally:
        os.close(fd)
