"""A database that cannot be used: whatever it holds or lies beside it, a command goes on by the files, and one line says so.

Not for: databases that are sound (test_database). Source: SQLite's own library writes them; then they are damaged.
"""

import json
import os
import random
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lab import Scope
from makedatabase import SCHEMA, Database
from processes import wait_until
from synthfs.errors import FormatError
from synthfs.host import readonly, sqlitefile
from synthfs.survey import survey
from synthfs.urbackup import database
from test_database import NAME, row, untouched

FILES = ("", "-wal", "-shm", "-journal")
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"


def write(path: Path, *statements: str, schema: str = SCHEMA) -> Path:
    """A database that somebody made with other things in it than UrBackup's."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as made:
        made.executescript(schema)
        made.executescript(";".join((f"INSERT INTO backup_images (path, complete) VALUES ('/m/{NAME}', 1)", *statements)))
    return path


def node(path: Path, kind: str) -> None:
    """Puts something in the place of a file."""
    path.unlink(missing_ok=True)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as there:
                there.chdir(path.parent)
                made.bind(path.name)
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/zero")


def view(name: str) -> str:
    columns = ", ".join(
        f"n AS {c}" for c in ("id", "name", "path", "backuptime", "complete", "delete_pending", "img_id", "assoc_id")
    )
    return f"ALTER TABLE {name} RENAME TO other; CREATE VIEW {name} AS {ENDLESS} SELECT {columns} FROM r"


def computed(expression: str) -> str:
    """A column `name` that is computed, in two thousand rows."""
    table = f"DROP TABLE clients; CREATE TABLE clients (id INTEGER, name TEXT AS ({expression}))"
    return f"{table}; INSERT INTO clients (id) {ENDLESS} SELECT n FROM r LIMIT 2000"


MADE: dict[str, Callable[[Path], object]] = {
    "endless view clients": lambda path: write(path, view("clients")),
    "endless view backup_images": lambda path: write(path, view("backup_images")),
    "endless view assoc_images": lambda path: write(path, view("assoc_images")),
    "harmless view": lambda path: write(path, "DROP TABLE clients; CREATE VIEW Clients AS SELECT 1 AS id, 'pc' AS name"),
    "virtual table": lambda path: write(path, "DROP TABLE clients; CREATE VIRTUAL TABLE clients USING fts5(id, name)"),
    "long computed": lambda path: write(path, computed("hex(zeroblob(40000))")),
    "slow computed": lambda path: write(path, computed("printf('%.*c', 40000, 'a') LIKE '%a%a%a%a%a%a%a%b'")),
    "long text": lambda path: write(path, "INSERT INTO clients (name) VALUES (CAST(zeroblob(100000) AS TEXT))"),
    "other tables": lambda path: write(path, "DROP TABLE assoc_images"),
    "encrypted": lambda path: path.write_bytes(random.Random(1).randbytes(100_000)),
    "hot journal": lambda path: Path(f"{write(path)}-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(508)),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one finished image, and `urbackup/` for the nightly copy."""
    raw = tmp_path / "store" / NAME
    raw.parent.mkdir(parents=True)
    with raw.open("xb") as file:
        file.truncate(513 * 1024)
    raw.with_name(f"{raw.name}.sync").touch()
    (tmp_path / "store" / "urbackup").mkdir()
    return tmp_path / "store"


def is_ignored(store: Path, path: Path, named: bool) -> None:
    """The files decide, one warning has the path, and nothing is touched."""
    with untouched(path.parent):
        catalog = survey(str(store), str(path) if named else None)
    assert [disk.image.name for disk in catalog.disks] == [NAME]
    assert [(note.warning, str(path) in note.text, "\n" in note.text) for note in catalog.notes] == [(True, True, False)]
    assert catalog.database is None


@pytest.mark.parametrize("kind", MADE)
def test_is_a_warning(store: Path, kind: str) -> None:
    """Wherever it lies, named or not."""
    path = store / "urbackup" / "backup_server.db"
    MADE[kind](path)
    is_ignored(store, path, named=kind.startswith("e"))


@pytest.mark.parametrize("beside", FILES[1:])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link"])
def test_something_else_beside_it(store: Path, scope: Scope, kind: str, beside: str) -> None:
    """Nothing is opened that would keep us waiting, or that is not what SQLite makes."""
    path = write(store / "urbackup" / "backup_server.db")
    node(Path(f"{path}{beside}"), kind)
    with pytest.raises(FormatError, match=f"backup_server.db{beside} is no regular file"):
        database.read(str(path))


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory"])
def test_something_else_in_its_place(store: Path, kind: str) -> None:
    """In one of the usual places it is none, and one line says so."""
    path = store / "urbackup" / "backup_server.db"
    node(path, kind)
    catalog = survey(str(store))
    assert [disk.image.name for disk in catalog.disks] == [NAME]
    assert [(note.warning, str(path) in note.text) for note in catalog.notes] == [(True, True)]


@pytest.mark.parametrize("beside", ["-wal", "-journal"])
def test_an_empty_one_keeps_what_is_beside_it(store: Path, beside: str) -> None:
    """SQLite takes away a log that belongs to no page."""
    path = store / "urbackup" / "backup_server.db"
    path.touch()
    Path(f"{path}{beside}").write_bytes(bytes(5000))
    is_ignored(store, path, named=False)


@pytest.mark.parametrize("verb", ["list", "doctor", "show"])
def test_of_a_command(store: Path, scope: Scope, verb: str) -> None:
    """Bytes that are no UTF-8 in the schema, in a database that is named: one line, and the verb does its work."""
    path = write(store / "elsewhere" / "damaged.db")
    path.write_bytes(path.read_bytes().replace(b"TABLE backup_images", b"TABLE backup_im\xc8ges", 1))
    done = scope.synthfs(verb, store / NAME if verb == "show" else store, "--database", path, check=False)
    assert done.returncode == (1 if verb == "doctor" else 0)
    assert (done.stdout + done.stderr).count(str(path)) == 1
    assert "Traceback" not in done.stderr


def test_a_mount_goes_on(store: Path, scope: Scope) -> None:
    """A database that becomes unusable while a mount runs: what it shows is by the files then, and its log says so once."""
    path = store / "urbackup" / "backup_server.db"
    with Database(path) as made:
        row(made, NAME)
    log = scope.path("log") / "mount.log"
    mounted = scope.synthfs_mount(store, "--refresh", "0.2", "--log-file", log)
    path.write_bytes(b"no database")
    assert wait_until(lambda: log.exists() and str(path) in log.read_text(), 20.0)

    def refreshes() -> int:
        status = scope.in_child("import sys; print(open(sys.argv[1]).read())", mounted / ".synthfs" / "status.json")
        return int(json.loads(status)["refreshes"])

    before = refreshes()
    assert wait_until(lambda: refreshes() > before + 2, 20.0)
    shown = scope.in_child("import os, sys; print(*os.listdir(sys.argv[1]))", mounted / "pc").decode().split()
    assert "Image_C_260301-0201.vhd" in shown
    assert log.read_text().count(str(path)) == 1


def test_damage_at_any_place(tmp_path: Path) -> None:
    """Bytes changed at random in a database, its log, and both: rows or a FormatError, never anything else, and no trace."""
    chance = random.Random(29)
    with Database(tmp_path / "backup_server.db") as made:
        for day in range(100, 200):
            row(made, f"pc/260{day}-0201_Image_C/Image_C_260{day}-0201.raw")
        log = made.nightly_copy(tmp_path / "log")
        made.checkpoint()
        whole = made.nightly_copy(tmp_path / "whole")
    for turn in range(200):
        source = (log, whole)[turn % 2]
        target = tmp_path / "damaged" / source.name
        target.parent.mkdir(exist_ok=True)
        for beside in ("", "-wal"):
            raw = bytearray(Path(f"{source}{beside}").read_bytes())
            for _ in range(chance.choice((0, 1, 3, 30)) if raw else 0):
                place = chance.randrange(len(raw))
                # Headers of pages say most.
                raw[place if chance.random() < 0.5 else place // 4096 * 4096 + place % 120 - len(raw)] = chance.choice(
                    (0, 1, 200, 255)
                )
            Path(f"{target}{beside}").write_bytes(raw)
        with untouched(target.parent), suppress(FormatError):
            database.read(str(target))


class TestLimits:
    def test_of_time(self, tmp_path: Path) -> None:
        """What takes longer is broken off by SQLite itself."""
        path = write(tmp_path / "backup_server.db", f"INSERT INTO clients (name) {ENDLESS} SELECT n FROM r LIMIT 20000")
        with pytest.raises(TimeoutError, match="0 seconds"):
            sqlitefile.read(str(path), {"clients"}, lambda asked: asked.execute("SELECT name FROM clients").fetchall(), 0)

    def test_of_what_cannot_be_broken_off(self) -> None:
        """A thread that hangs in the kernel is left behind."""
        go_on = threading.Event()
        try:
            with pytest.raises(TimeoutError):
                readonly.run(go_on.wait, 0.1)
        finally:
            go_on.set()

    def test_of_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than any server has are not gathered."""
        path = write(tmp_path / "backup_server.db", f"INSERT INTO clients (name) {ENDLESS} SELECT n FROM r LIMIT 5000")
        monkeypatch.setattr(database, "_MAX_BYTES", 1_000_000)
        with pytest.raises(FormatError, match="more than"):
            database.read(str(path))

    def test_values_of_other_types(self, tmp_path: Path) -> None:
        """SQLite keeps any type in any column: such rows are strange, and cost none of the others."""
        strange = "INSERT INTO backup_images (path, complete, backuptime, delete_pending) VALUES"
        path = write(
            tmp_path / "backup_server.db",
            f"{strange} (X'FF2F', X'01', X'02', 'x'), (3.5, '1', 9e99, 1.5), ('/', 9e300, '9999-99-99', NULL)",
            "INSERT INTO assoc_images VALUES (X'00', 1), ('a', 'b'), (NULL, NULL), (4, 4), (4, X'04')",
            "INSERT INTO clients (name) VALUES (X'00FF'), (NULL), (1.5), ('pc'), ('pc')",
            schema=SCHEMA.replace("id INTEGER PRIMARY KEY", "id"),
        )
        found = database.read(str(path))
        assert found.rows[NAME].complete
        assert "pc" in found.clients


class TestTheReadersThread:
    def test_cannot_write(self, tmp_path: Path) -> None:
        """Neither open for writing, nor make, give away, or remove; another thread can, at the same time and afterwards."""
        there = tmp_path / "there"
        there.write_text("old")
        refused: list[str] = []

        def attempts() -> str:
            fd = os.open(there, os.O_RDONLY)
            tries: dict[str, Callable[[], object]] = {
                "write": lambda: os.open(there, os.O_WRONLY),
                "change": lambda: os.open(there, os.O_RDWR),
                "truncate": lambda: os.open(there, os.O_RDONLY | os.O_TRUNC),
                "make": lambda: os.open(tmp_path / "new", os.O_RDONLY | os.O_CREAT),
                "give": lambda: os.fchown(fd, os.geteuid(), os.getegid()),
                "mode": lambda: os.fchmod(fd, 0o600),
                "remove": lambda: os.unlink(there),
            }
            for name, attempt in tries.items():
                try:
                    attempt()
                except PermissionError:
                    refused.append(name)
            os.close(fd)
            return there.read_text()

        with untouched(tmp_path):
            assert readonly.run(attempts, 10.0) == "old"
        assert refused == ["write", "change", "truncate", "make", "give", "mode", "remove"]
        there.write_text("new")

    def test_hands_on_what_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            readonly.run(lambda: 1 // 0, 10.0)

    def test_does_nothing_without_its_filter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the kernel refuses it, or the processor is unknown."""
        called: list[int] = []
        monkeypatch.setattr(readonly, "_OPENS", {})
        with pytest.raises(OSError, match="seccomp"):
            readonly.run(lambda: called.append(1), 10.0)
        assert called == []
