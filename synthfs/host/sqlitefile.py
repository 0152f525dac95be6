"""Reads an SQLite database where it lies, whether a server is busy with it or not, and leaves no trace there.

SQLite does the reading, without locks and shared memory of its own: a database in WAL mode that is opened in exclusive
mode has its index of the `-wal` in memory, so that no `-shm` is needed, made or looked into. What exclusive mode takes for
granted, that nobody else changes anything, is brought about, or made sure of afterwards:

    nobody has it open      nothing is locked but the database, as by any reader. Whoever starts meanwhile changes a file:
                            then all is read once more
    a server has it open    a reader's lock on the `-shm` (below) keeps what is in the `-wal` from being overwritten, and what
                            comes later from being moved to the database. The server goes on writing to the end of the `-wal`

Both keep the last process that closes the database from tidying up the files beside it. All locks are shared ones, which
change nothing in a file and end with our descriptors. That SQLite does not write either is the kernel's business
(`host/readonly`): without locks it would.

A reader's lock, as SQLite takes it: each of four marks in the `-shm` says how far the `-wal` may be moved while somebody
holds the lock of that mark. One beyond the end of the `-wal` is of no use. Where there is no other, lock 0 keeps the `-wal`
from being moved at all, and any of the four from being overwritten.

Not for: what is in a database. Source: SQLite's walformat.html ("WAL-Index File Format", "WAL Locks"), fileformat2.html,
os_unix.c and wal.c.
"""

import errno
import fcntl
import os
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TypeVar
from urllib.parse import quote

from synthfs.host import readonly

T = TypeVar("T")

LIMIT = 30.0
"""Seconds for reading what is asked for; 100,000 rows take one."""

_PAUSE = 0.002
"""Seconds between two attempts at a lock that the server holds at the moment."""

_GRACE = 5.0
"""Seconds after which a reader that cannot be interrupted, in the kernel, is left to itself."""

_ATTEMPTS = 5
_MAX_VALUE = 64 * 1024
"""Bytes of the longest value, definitions of tables among them; what a column computes takes its square, at most."""
_STEPS = 10_000
"""Instructions of SQLite's machine between two looks at the clock."""

_BESIDE = ("", "-wal", "-shm", "-journal")

_SHARED_BYTES = 0x40000002, 510
"""Start and length of the range of the database file that every reader locks (os.h, SHARED_FIRST and SHARED_SIZE)."""

_SHM_READ_LOCK, _SHM_IN_USE = 123, 128
"""Bytes of the `-shm` file: the first of five read locks; the one on which every connection holds a shared lock."""

_SHM_HEADER = struct.Struct("=16xI80x5I")
"""Of the `-shm` file: how many frames of the `-wal` are valid (mxFrame), and the five marks (aReadMark)."""

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock (fcntl(2)) with 64-bit offsets: kind, whence, start, length, process."""

_SETTINGS = (
    "locking_mode = EXCLUSIVE",
    "mmap_size = 0",
    "temp_store = MEMORY",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "query_only = ON",
)


def read(path: str, tables: Collection[str], work: Callable[[sqlite3.Connection], T], limit: float = LIMIT) -> T:
    """What `work` makes of the `tables` of the database at `path`, as they are at one moment, within `limit` seconds.

    Of anything else in the database, views in place of tables included, nothing can be read. `work` may be called more
    than once. Raises OSError, TimeoutError among them, sqlite3.Error, or whatever else `work` raises.
    """
    real, deadline = os.path.realpath(path), time.monotonic() + limit

    def ask() -> T:
        try:
            with closing(_connected(real, tables, deadline)) as connection:
                return work(connection)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)  # not there where Python itself objects
            if code == sqlite3.SQLITE_INTERRUPT:
                raise TimeoutError(f"it could not be read within {limit:.0f} seconds") from error
            if code == sqlite3.SQLITE_AUTH:
                raise ValueError("something else is in the place of one of its tables") from error
            raise

    for _ in range(_ATTEMPTS):
        with _held(real, deadline) as is_same:
            try:
                made = readonly.run(ask, max(deadline - time.monotonic(), 0) + _GRACE)
            except TimeoutError:
                raise
            except Exception:
                if is_same() or time.monotonic() > deadline:
                    raise
            else:
                if is_same():
                    return made
    raise OSError(errno.EBUSY, "it changed each time while it was read")


def _connected(path: str, tables: Collection[str], deadline: float) -> sqlite3.Connection:
    """A connection that has begun to read. It is safe only for a thread that cannot write, and for files that are held."""
    # Without a `-wal` everything is in the database, and SQLite would try to make one.
    alone = not any(os.path.lexists(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    options = f"mode=ro&vfs=unix-none{'&immutable=1' if alone else ''}"
    connection = sqlite3.connect(f"file:{quote(os.fsencode(path))}?{options}", uri=True, isolation_level=None)
    try:
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 0)
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}").close()
        connection.execute("BEGIN").close()

        def authorize(action: int, name: str | None, _column: str | None, _database: str | None, view: str | None) -> int:
            asked = action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and name in tables)
            return sqlite3.SQLITE_OK if asked and view is None else sqlite3.SQLITE_DENY

        connection.set_authorizer(authorize)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _held(path: str, deadline: float) -> Iterator[Callable[[], bool]]:
    """Keeps the database as it is for a reader, and tells afterwards whether it was the same all the time."""
    with ExitStack() as stack:
        before = _look(path)
        database = _opened(path, stack)
        if os.fstat(database).st_size == 0:  # SQLite would take away what is beside it
            raise OSError(errno.EINVAL, "it is empty")
        with suppress(OSError):  # held exclusively by somebody, or a network's file system without locks
            _lock(database, fcntl.F_RDLCK, *_SHARED_BYTES)
        shm = None
        with suppress(FileNotFoundError, PermissionError):
            shm = _opened(f"{path}-shm", stack)
        if shm is None or not _in_use(shm):
            yield lambda: _look(path) == before
        else:
            number, mark = _lock_snapshot(shm, deadline)
            files = [about[:2] for about in before]
            # A server that was killed and started again has set the marks anew.
            yield lambda: [about[:2] for about in _look(path)] == files and _marks(shm)[1][number] == mark


def _look(path: str) -> list[tuple[int, ...]]:
    """Device, inode, size and times of the database and of each file beside it; nothing of one that is not there.

    Raises OSError where one is no regular file, since to open a FIFO would last for ever, or may not be read. The `-shm` can be
    done without, and is known by its inode alone, since a server that ends may still write to it.
    """
    found: list[tuple[int, ...]] = []
    for suffix in _BESIDE:
        try:
            about = os.lstat(f"{path}{suffix}")
        except FileNotFoundError:
            found.append(())
            continue
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, f"{os.path.basename(path)}{suffix} is no regular file")
        if suffix != "-shm" and not os.access(f"{path}{suffix}", os.R_OK, effective_ids=True):
            reason = f"{os.path.basename(path)}{suffix} may not be read by this user"
            raise OSError(errno.EACCES, f"{reason}; run as root, or as a member of the group that may")
        times = (about.st_size, about.st_mtime_ns, about.st_ctime_ns) if suffix != "-shm" else ()
        found.append((about.st_dev, about.st_ino, *times))
    return found


def _opened(path: str, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    stack.callback(os.close, fd)
    return fd


def _in_use(shm: int) -> bool:
    """Whether a process has the database open; asking takes no lock."""
    try:
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(shm, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _SHM_IN_USE, 1)))
    except OSError:
        return False
    return bool(kind != fcntl.F_UNLCK)


def _lock_snapshot(shm: int, deadline: float) -> tuple[int, int]:
    """Takes a reader's lock (see above). Returns its number and its mark.

    Raises TimeoutError where the server keeps all of them until `deadline`.
    """
    while True:
        frames, marks = _marks(shm)
        for number, mark in enumerate(marks):
            if number and mark <= frames and _try_lock(shm, number):
                if _marks(shm)[1][number] == mark:
                    return number, mark
                _unlock(shm, number)
        if _try_lock(shm, 0):
            if _try_lock(shm, len(marks) - 1):
                return 0, marks[0]
            _unlock(shm, 0)
        if time.monotonic() > deadline:
            raise TimeoutError("the server that has it open keeps it locked")
        time.sleep(_PAUSE)


def _marks(shm: int) -> tuple[int, tuple[int, ...]]:
    """The number of valid frames in the `-wal`, and the mark of each lock; zeroes where the file is too short."""
    frames, *marks = _SHM_HEADER.unpack(os.pread(shm, _SHM_HEADER.size, 0).ljust(_SHM_HEADER.size, b"\0"))
    return frames, tuple(marks)


def _try_lock(shm: int, number: int) -> bool:
    try:
        _lock(shm, fcntl.F_RDLCK, _SHM_READ_LOCK + number, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(shm: int, number: int) -> None:
    _lock(shm, fcntl.F_UNLCK, _SHM_READ_LOCK + number, 1)


def _lock(fd: int, kind: int, start: int, length: int) -> None:
    """A lock that belongs to the descriptor: no other descriptor of this process can lose it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(kind, start, length))


def _flock(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
