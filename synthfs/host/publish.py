"""Files that appear under their name all at once, complete and on disk, or not at all.

    with Draft(directory) as draft:
        … write to draft.fd …
        draft.publish("name", replace=False)

A draft has no name (O_TMPFILE), so nothing is left of it however the process ends. Where a file system has no nameless
files it gets a hidden temporary name. To publish is: fsync the file, link it, fsync the directory.
Not for: what goes into the file.
"""

import contextlib
import errno
import os
import secrets
from types import TracebackType
from typing import Self

from synthfs.errors import TargetError

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What kernels and file systems answer that know no nameless files (open(2), O_TMPFILE)."""


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
            self.fd = self._nameless()
        except OSError as error:
            os.close(self._directory_fd)
            raise TargetError(f"{directory}: no file can be made here: {error.strerror}") from error

    def _nameless(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._directory, flags | os.O_TMPFILE, 0o640)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        self._name = _temporary_name()
        return os.open(self._name, flags | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=self._directory_fd)

    def publish(self, name: str, replace: bool) -> None:
        """Gives the file its name. Raises TargetError where it exists already, unless it may be replaced."""
        os.fsync(self.fd)
        try:
            if replace:
                if self._name is None:
                    name_for_now = _temporary_name()
                    self._link(name_for_now)
                    self._name = name_for_now
                os.rename(self._name, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
                self._name = None
            else:
                self._link(name)
        except FileExistsError as error:
            raise TargetError(f"{self._directory}/{name} exists already; --force replaces it") from error
        os.fsync(self._directory_fd)

    def _link(self, name: str) -> None:
        """Links the nameless file by its descriptor, which AT_SYMLINK_FOLLOW makes possible without privileges."""
        source = self._name or f"/proc/self/fd/{self.fd}"
        directory = self._directory_fd if self._name else None
        os.link(source, name, src_dir_fd=directory, dst_dir_fd=self._directory_fd, follow_symlinks=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._directory_fd)
        os.close(self.fd)
        os.close(self._directory_fd)
