"""Asks UrBackup's database which images are complete, and which were taken together.

A server that runs keeps `backup_server.db` in WAL mode, with `-wal` and `-shm` beside it; most rows may be in the `-wal`
alone, also in the nightly copy in the store. `host/sqlitefile` reads all of them where they lie, without leaving a trace.
A database may be damaged, or somebody else's: whatever it holds, reading it ends, and takes a bounded amount of memory.

Not for: judging images (`plan/complete`).
Source: UrBackup's `server_tables.sql` and `dllmain.cpp` (db_version 66 to 68; the tables are the same).
"""

import os
import re
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from synthfs.errors import FormatError, NotFoundError
from synthfs.host import sqlitefile
from synthfs.model import DatabaseFacts, ImageRow, Note
from synthfs.units import MiB

FILE_NAME = "backup_server.db"
USUAL_PLACES = ("/var/urbackup", "/usr/local/var/urbackup", "/var/lib/urbackup/urbackup")

_IMAGES = "SELECT id, backuptime, path, complete, delete_pending FROM backup_images"
_ASSOCIATIONS = "SELECT img_id, assoc_id FROM assoc_images"
_CLIENTS = "SELECT name, id FROM clients"
_TABLES = frozenset(("backup_images", "assoc_images", "clients"))

_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\")
"""The beginning of an absolute path there: a drive, a server's name, or a device; on Linux it is a slash."""

_MAX_BYTES, _ROW_BYTES = 512 * MiB, 1000
"""Memory that rows may take, and what one of them and all that is made of it takes besides its text: half a million."""

_ROWS_AT_ONCE = 1000

_ENCODING = sys.getfilesystemencoding()
"""That of the names of files (`os.fsdecode`), with which the names are compared."""

_MAX_REASON = 200
"""Characters of what SQLite says, which may quote the database."""


def find(store: str, named: str | None) -> tuple[list[str], list[Note]]:
    """Database files to ask about `store`, best first: the one that was `named`, or those in the usual places.

    Raises NotFoundError where the named one is not there.
    """
    if named is not None:
        path = os.path.join(named, FILE_NAME) if os.path.isdir(named) else named
        if not os.path.isfile(path):
            raise NotFoundError(f"{named}: there is no UrBackup database here ({FILE_NAME})")
        return [path], []
    readable: list[str] = []
    notes: list[Note] = []
    for place in (*USUAL_PLACES, f"{store}/urbackup"):
        path = f"{place}/{FILE_NAME}"
        if os.path.isfile(path) and os.access(path, os.R_OK):
            readable.append(path)
        elif os.path.lexists(path):
            why = "cannot be read as this user" if os.path.isfile(path) else "is no file"
            notes.append(Note(f"{path} {why} and was not asked", warning=True))
    return readable, notes


def read(path: str) -> DatabaseFacts:
    """All image rows of the database at `path`. Raises FormatError where it is no readable UrBackup database."""
    try:
        clients, associations, images = sqlitefile.read(path, _TABLES, _rows)
    except (sqlite3.Error, OSError, ValueError, MemoryError, OverflowError, RuntimeError) as error:
        raise FormatError(f"{path} cannot be read as UrBackup's database ({_reason(error)})") from error
    named = [_name_in_store(str(image_path)) for _, _, image_path, _, _ in images]
    names = dict(zip((number for number, *_ in images), named, strict=True))
    associated: defaultdict[int, list[str]] = defaultdict(list)
    for number, other in associations:
        if other in names:
            associated[number].append(names[other])
    rows = (
        ImageRow(name, _seconds(time), complete == 1, pending == 1, tuple(associated.get(number, ())))
        for name, (number, time, _, complete, pending) in zip(named, images, strict=True)
    )
    return DatabaseFacts(path, clients, {row.name: row for row in rows})


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, UnicodeError):
        return "the names in it are no UTF-8"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:_MAX_REASON]


_Rows = list[tuple[Any, ...]]


def _rows(connection: sqlite3.Connection) -> tuple[dict[str, int | None], _Rows, _Rows]:
    """What is asked of the tables. Raises ValueError where that is more than any server has."""
    left = _MAX_BYTES

    def taken(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise ValueError("it holds more than the database of any server")

    def text(raw: bytes) -> str:
        taken(len(raw))
        # Client names may be any bytes, and one of them is no reason to lose the others.
        return raw.decode(_ENCODING, "surrogateescape")

    def asked(statement: str) -> Iterator[tuple[Any, ...]]:
        cursor = connection.execute(statement)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            taken(len(rows) * _ROW_BYTES + sum(len(value) for row in rows for value in row if type(value) is bytes))
            yield from rows

    connection.text_factory = text
    clients: dict[str, int | None] = {}
    for name, number in asked(_CLIENTS):
        if isinstance(name, str) and name:
            known = clients.setdefault(name, None)
            if type(number) is int and (known is None or number < known):
                clients[name] = number
    return clients, list(asked(_ASSOCIATIONS)), list(asked(_IMAGES))


def _name_in_store(path: str) -> str:
    """`<client>/<dir>/<file>` of an absolute path, which may be that of another mount; `<client>/<file>` in old stores.

    A server on Windows writes backslashes; on Linux one is a character like any other.
    """
    if _OF_WINDOWS.match(path):
        path = path.replace("\\", "/")
    *_, client, directory, file = ("", "", *path.split("/"))
    return f"{client}/{directory}/{file}" if "_Image_" in directory else f"{directory}/{file}"


def _seconds(time: object) -> int:
    """UrBackup's UTC text as seconds since 1970; 0 for anything that is none."""
    try:
        return int(datetime.fromisoformat(str(time)).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return 0
