"""Reads UrBackup's database without leaving a trace: which images are complete, and which were taken together.

A server that runs keeps `backup_server.db` in WAL mode, with `-wal` and `-shm` beside it. It is opened through SQLite,
read-only, for short statements. SQLite would make a `-shm` where there is none, and without one most rows may be in the
`-wal` alone: so a database that no process holds open (the nightly copy in the store, the disk of a dead server, a
read-only mount) is copied with its `-wal` to a private directory and read there. `immutable` would not see the `-wal`.
A server that stops in the middle is kept from tidying up by a shared lock like that of any reader: it leaves `-wal` and
`-shm` as they are, and SQLite has nothing to make anew.

Not for: judging images (`plan/complete`).
Source: UrBackup's `server_tables.sql` and `dllmain.cpp` (db_version 66 to 68; the tables are the same).
"""

import fcntl
import os
import shutil
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from synthfs.errors import FormatError, NotFoundError
from synthfs.model import DatabaseFacts, ImageRow, Note

FILE_NAME = "backup_server.db"
USUAL_PLACES = ("/var/urbackup", "/usr/local/var/urbackup", "/var/lib/urbackup/urbackup")

_SHM_DMS_BYTE = 128
"""The byte of the `-shm` file on which every connection holds a shared lock (SQLite's os_unix.c, UNIX_SHM_DMS)."""

_SHARED_BYTES = 0x40000002, 510
"""Start and length of the range of the database file that every reader locks (os.h, SHARED_FIRST and SHARED_SIZE)."""

_IMAGES = "SELECT id, backuptime, path, complete, delete_pending FROM backup_images"
_ASSOCIATIONS = "SELECT img_id, assoc_id FROM assoc_images"
_CLIENTS = "SELECT name, id FROM clients ORDER BY id DESC"


def find(store: str, named: str | None) -> tuple[list[str], list[Note]]:
    """Database files to ask about `store`, best first: the one that was `named`, or those in the usual places.

    Raises NotFoundError where the named one is not there.
    """
    if named is not None:
        path = os.path.join(named, FILE_NAME) if os.path.isdir(named) else named
        if not os.path.isfile(path):
            raise NotFoundError(f"{named}: there is no UrBackup database here ({FILE_NAME})")
        return [path], []
    places = (*USUAL_PLACES, f"{store}/urbackup")
    found = [path for place in places if os.path.isfile(path := f"{place}/{FILE_NAME}")]
    readable = [path for path in found if os.access(path, os.R_OK)]
    notes = [Note(f"{path} cannot be read as this user and was not asked", True) for path in found if path not in readable]
    return readable, notes


def read(path: str) -> DatabaseFacts:
    """All image rows of the database at `path`. Raises FormatError where it is no readable UrBackup database."""
    try:
        with _opened(path) as connection:
            # Of two rows of one name the older one comes last, and stays.
            clients = {name: number for name, number in connection.execute(_CLIENTS) if isinstance(name, str) and name}
            associations = connection.execute(_ASSOCIATIONS).fetchall()
            images = connection.execute(_IMAGES).fetchall()
    except (sqlite3.Error, OSError) as error:
        raise FormatError(f"{path} cannot be read as UrBackup's database: {error}") from error
    names = {number: _name_in_store(str(image_path)) for number, _, image_path, _, _ in images}
    associated: defaultdict[int, list[str]] = defaultdict(list)
    for number, other in associations:
        if other in names:
            associated[number].append(names[other])
    rows = (
        ImageRow(names[number], _seconds(time), complete == 1, pending == 1, tuple(associated[number]))
        for number, time, _, complete, pending in images
    )
    return DatabaseFacts(path, clients, {row.name: row for row in rows})


def _name_in_store(path: str) -> str:
    """`<client>/<dir>/<file>` of an absolute path, which may be that of another mount; `<client>/<file>` in old stores."""
    *_, client, directory, file = ("", "", *path.split("/"))
    return f"{client}/{directory}/{file}" if "_Image_" in directory else f"{directory}/{file}"


def _seconds(time: object) -> int:
    """UrBackup's UTC text as seconds since 1970; 0 for anything that is none."""
    try:
        return int(datetime.fromisoformat(str(time)).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return 0


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    with ExitStack() as stack:
        stack.enter_context(_kept_open(path))
        if _in_use(path):
            uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=10)
        else:
            private = Path(stack.enter_context(TemporaryDirectory(prefix="synthfs-database-")))
            shutil.copyfile(path, private / FILE_NAME)
            if os.path.isfile(f"{path}-wal"):
                shutil.copyfile(f"{path}-wal", private / f"{FILE_NAME}-wal")
            connection = sqlite3.connect(private / FILE_NAME)
        stack.enter_context(closing(connection))
        # Client names may be any bytes, and one of them is no reason to lose the others.
        connection.text_factory = os.fsdecode
        yield connection


@contextmanager
def _kept_open(path: str) -> Iterator[None]:
    """Holds the lock of a reader on the database, so that no closing server removes the files beside it meanwhile.

    Where somebody holds it exclusively the reading goes on without: SQLite then waits or fails by itself.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, *_SHARED_BYTES))
        yield
    finally:
        os.close(fd)


def _in_use(path: str) -> bool:
    """Whether a process has the database open: it then holds a lock on a known byte of the `-shm` file."""
    try:
        fd = os.open(f"{path}-shm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (answer, *_) = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _lock(fcntl.F_WRLCK, _SHM_DMS_BYTE, 1)))
    finally:
        os.close(fd)
    return bool(answer != fcntl.F_UNLCK)


_FLOCK = struct.Struct("hhqqi4x")


def _lock(kind: int, start: int, length: int) -> bytes:
    """A struct flock (fcntl(2)) for Linux with 64-bit offsets."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
