"""Makes UrBackup's `backup_server.db`, with rows for the images of a store, in each state that a reader may meet.

Not for: reading one with the package's code. Source: the schema is that of the genuine database (db_version 66), the
meaning of the columns facts/urbackup-format.md section 5.
"""

import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Self

from lab import Scope
from makestore import Image
from processes import wait_until

SCHEMA = """
CREATE TABLE clients (
 id INTEGER PRIMARY KEY,
 name TEXT,
 lastbackup DATE,
 lastseen DATE
, lastbackup_image DATE, bytes_used_files INTEGER, bytes_used_images INTEGER, delete_pending INTEGER, virtualmain TEXT,
 last_filebackup_issues INTEGER DEFAULT 0, os_simple TEXT, os_version_str TEXT, client_version_str TEXT,
 groupid INTEGER DEFAULT 0, file_ok INTEGER, image_ok INTEGER, alerts_state BLOB, alerts_next_check INTEGER,
 created INTEGER, uid TEXT, capa INTEGER DEFAULT 0, with_hashes INTEGER DEFAULT 0, perm_uid BLOB);
CREATE TABLE backup_images (
 id INTEGER PRIMARY KEY,
 clientid INTEGER,
 backuptime DATE DEFAULT CURRENT_TIMESTAMP,
 incremental INTEGER,
 incremental_ref INTEGER,
 path TEXT,
 complete INTEGER
, running DATE, size_bytes INTEGER, version INTEGER, letter TEXT, synctime INTEGER, archived INTEGER,
 archive_timeout INTEGER, mounttime INTEGER, delete_pending INTEGER);
CREATE TABLE assoc_images (
 img_id INTEGER REFERENCES backup_images(id) ON DELETE CASCADE,
 assoc_id INTEGER REFERENCES backup_images(id) ON DELETE CASCADE);
CREATE TABLE misc (
 id INTEGER PRIMARY KEY,
 tkey TEXT,
 tvalue TEXT
);
INSERT INTO misc (tkey, tvalue) VALUES ('db_version', '66');
"""

# Holds a read lock on the -shm as the server does all its life, and tells by a file that it does.
SERVER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1])
database.execute("SELECT count(*) FROM backup_images").fetchone()
open(sys.argv[2], "x").close()
time.sleep(3600)
"""

# A server that is busy: each transaction makes all rows say the same next number, and changes how many there are. It moves the
# log in all ways there are. The last number that was committed stands in a file.
BUSY = """
import os, random, sqlite3, sys
path, number = sys.argv[1:]
database = sqlite3.connect(path, isolation_level=None, timeout=60)
database.execute(f"PRAGMA wal_autocheckpoint = {random.choice([0, 1, 20])}")
database.execute("PRAGMA synchronous = OFF")
told = os.open(number, os.O_WRONLY)
n = database.execute("SELECT max(synctime) FROM backup_images").fetchone()[0]
while True:
    n += 1
    database.execute("BEGIN IMMEDIATE")
    database.execute("DELETE FROM backup_images WHERE id IN (SELECT id FROM backup_images ORDER BY random() LIMIT 20)")
    for i in range(database.execute("SELECT count(*) FROM backup_images").fetchone()[0], 100 + n % 50):
        name = f"{n:06}-{i:04}_Image_C/{'x' * random.randrange(100)}.raw"
        database.execute("INSERT INTO backup_images (path, complete) VALUES ('/m/pc/' || ?, 1)", (name,))
    database.execute("DELETE FROM backup_images WHERE id NOT IN (SELECT id FROM backup_images LIMIT 100 + ?)", (n % 50,))
    database.execute("UPDATE backup_images SET synctime = ?1, backuptime = datetime(?1, 'unixepoch')", (n,))
    database.execute("UPDATE clients SET name = ?", (f"{n}",))
    database.execute("DELETE FROM assoc_images")
    database.execute("INSERT INTO assoc_images SELECT id, id FROM backup_images")
    database.execute("COMMIT")
    os.pwrite(told, b"%08d" % n, 0)
    if n % 7 == 0:
        kind = random.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        database.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()
"""


class Database:
    """A database that is being written; its rows stay in the write-ahead log until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As a server that was stopped: everything is in the `.db`, and nothing beside it."""
        self._connection.close()

    def add_client(self, name: str) -> int:
        row = self._connection.execute("SELECT id FROM clients WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else self._insert("clients", {"name": name, "bytes_used_files": 0})

    def add(
        self,
        image: Image,
        *,
        complete: bool | None = None,
        delete_pending: int | None = None,
        backuptime: str | None = None,
        path: str | None = None,
    ) -> int:
        """A row for an image; `path` where the server knows the store by another mount. Returns the row's id."""
        values: dict[str, str | int | None] = {
            "clientid": self.add_client(image.client),
            "backuptime": backuptime or image.backuptime,
            "incremental": image.incremental,
            "incremental_ref": 0,
            "path": path or str(image.raw),
            "complete": int(image.complete if complete is None else complete),
            "running": image.backuptime,
            "size_bytes": image.raw.stat().st_blocks * 512,
            "version": 0,
            "letter": image.letter,
            "synctime": int(image.started.timestamp()),
            "archived": 0,
            "delete_pending": delete_pending,
        }
        return self._insert("backup_images", values)

    def associate(self, image: int, *others: int) -> None:
        """Rows of SYSVOL and ESP images belong to the row of a C: image."""
        for other in others:
            self._insert("assoc_images", {"img_id": image, "assoc_id": other})

    def execute(self, statement: str, *values: str | int | None) -> None:
        self._connection.execute(statement, values)

    def checkpoint(self) -> None:
        """Move the rows from the write-ahead log into the database."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def nightly_copy(self, directory: Path) -> Path:
        """What the server leaves in the store: `.db` and `-wal`, no `-shm`, the rows only in the `-wal`."""
        return self._copy(directory, "", "-wal")

    def dead_copy(self, directory: Path) -> Path:
        """What a server leaves that lost its power: all three files, and no lock on any."""
        return self._copy(directory, "", "-wal", "-shm")

    def running_server(self, scope: Scope) -> subprocess.Popen[bytes]:
        """A process that keeps the database open, so that `-wal` and `-shm` stay; this object may be closed then."""
        ready = scope.path("server") / "ready"
        python = shutil.which("python3") or "python3"
        server = scope.start([python, "-c", SERVER, self.path, ready])
        assert wait_until(ready.exists, 10.0), scope.logs()
        return server

    def _copy(self, directory: Path, *suffixes: str) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for suffix in suffixes:
            shutil.copyfile(f"{self.path}{suffix}", directory / f"{self.path.name}{suffix}")
        return directory / self.path.name

    def _insert(self, table: str, values: dict[str, str | int | None]) -> int:
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        done = self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(values.values()))
        return int(done.lastrowid or 0)
