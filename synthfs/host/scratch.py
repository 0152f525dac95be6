"""A file that is read and written while others have it open as well: opened at need, closed when the last one lets go.

Length and time are remembered, so that asking for them never waits. Once it is ended, all that is asked of it is a
SourceError, also what was asked before and is still under way: its bytes may go at any moment, so that what a system call
found is believed only if it had not ended by then. A write that does not fit is a FullError.

Not for: which file, and what it means (`engines/session`). Units: bytes, nanoseconds since 1970 UTC.
"""

import contextlib
import os
import stat
import threading

from synthfs.errors import SourceError
from synthfs.host.publish import unwritable
from synthfs.host.space import Reserve

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class ScratchFile:
    """`try_read` never waits; `read`, `write`, `resize` and `sync` may. All may be called from several threads at once."""

    rests = False
    """Nothing of it is to be closed while somebody has it open."""

    def __init__(self, path: str, reserve: Reserve | None = None) -> None:
        """Raises SourceError where there is no such file. What is written has to leave the `reserve`."""
        self.path = path
        self._reserve = reserve
        self._fd = -1
        self._users = 0
        self._ended = self._emptied = False
        self._failed: str | None = None
        self._lock = threading.Lock()
        try:
            found = os.lstat(path)
        except OSError as error:
            raise SourceError(f"{path} cannot be used: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{path} is no regular file")
        self.length, self.mtime_ns = found.st_size, found.st_mtime_ns

    def open(self) -> None:
        """Holds it open for one more user. Raises SourceError."""
        with self._lock:
            if self._fd < 0:
                try:
                    self._fd = os.open(self.path, _FLAGS)
                except OSError as error:
                    raise SourceError(f"{self.path} cannot be opened: {error.strerror}") from error
            self._users += 1

    def close(self) -> None:
        """Lets go of it for one user."""
        with self._lock:
            self._users -= 1
            if not self._users:
                # Whoever still reads from it gets an error, not the file that has the number next.
                fd, self._fd, self._failed = self._fd, -1, None
                os.close(fd)

    def end(self) -> None:
        """From now on there is nothing to be had of it: its bytes are about to go, and others are no substitute."""
        self._ended = True

    def revive(self) -> None:
        """It is not about to go after all."""
        self._ended = False

    def empty(self, path: str) -> None:
        """Gives the space of an ended file back, which is at `path` now; what is still being written to it is taken out again.

        Raises OSError.
        """
        self._emptied = True
        os.truncate(path, 0)

    def check(self) -> None:
        """Raises SourceError where it was ended."""
        if self._ended:
            raise SourceError(f"{self.path} was discarded or kept elsewhere while it was open; close the disk and open it anew")

    def bytes_held(self) -> int:
        return 0

    def rest(self) -> None: ...

    def try_read(self, offset: int, into: memoryview) -> int | None:
        """Fills `into` from `offset` on, up to the end of the file, if that takes no waiting; otherwise None."""
        self.check()
        wanted = max(min(len(into), self.length - offset), 0)
        try:
            count = os.preadv(self._fd, (into[:wanted],), offset, os.RWF_NOWAIT) if wanted else 0
        except OSError:
            return None  # would wait, cannot tell, or fails: `read` will see
        self.check()
        return count if count == wanted else None

    def read(self, offset: int, into: memoryview) -> int:
        """Like `try_read`, but waits. Raises SourceError, also where the file ends before the length that it has."""
        done, length = 0, self.length
        while done < len(into):
            self.check()
            try:
                count = os.preadv(self._fd, (into[done:],), offset + done)
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}") from error
            self.check()
            if not count:
                break
            done += count
        # Somebody may make it longer or shorter meanwhile; what it had before and has now was to be read.
        if done < min(len(into), min(length, self.length) - offset):
            raise SourceError(f"{self.path} ends at {offset + done}, before the {length} bytes that were written to it")
        return done

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Writes `data`, or as much of it as there is space for, and returns how much. Raises FullError, TargetError."""
        self.check()
        if self._reserve:
            self._reserve.take(offset, len(data))
        try:
            count = os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise unwritable(error, f"{self.path} cannot be written: {error.strerror}") from error
        self._look()
        return count

    def resize(self, length: int) -> None:
        """Raises FullError, TargetError."""
        self.check()
        # Before it is: what is read meanwhile may end there.
        self.length = min(length, self.length)
        try:
            os.ftruncate(self._fd, length)
        except OSError as error:
            self._look()
            raise unwritable(error, f"{self.path} cannot be made {length} bytes long: {error.strerror}") from error
        self._look()

    def sync(self, data_only: bool = False) -> None:
        """Gets all that was written onto the disk. Raises FullError, TargetError.

        The kernel tells of a failure once and then takes what it could not write for clean. So whoever has the file open
        then hears of it each time: a later success would be a lie.
        """
        self.check()
        if self._failed:
            raise SourceError(self._failed)
        try:
            (os.fdatasync if data_only else os.fsync)(self._fd)
        except OSError as error:
            self._failed = f"{self.path} did not reach its disk: {error.strerror}; what was written last may be lost"
            raise unwritable(error, self._failed) from error
        self.check()

    def _look(self) -> None:
        """After a change: takes note of what it is now. Raises SourceError where it was ended meanwhile."""
        with self._lock:
            # In here, so that of several the last one to look has seen what all of them changed.
            found = os.fstat(self._fd)
            if not self._emptied:
                self.length, self.mtime_ns = found.st_size, found.st_mtime_ns
        if self._emptied:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        self.check()
