"""Reading UrBackup's database in each state that it may be found in, without leaving a trace.

Not for: judging images by it (test_complete). Source: facts/urbackup-format.md section 5; SQLite's own library writes it.
"""

import hashlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

import need
from lab import Scope
from makedatabase import BUSY, Database
from processes import wait_until
from synthfs.errors import FormatError, NotFoundError
from synthfs.host import readonly
from synthfs.model import DatabaseFacts
from synthfs.survey import survey
from synthfs.urbackup import database

NAMES = {f"pc/26030{day}-0201_Image_C/Image_C_26030{day}-0201.raw" for day in (1, 2, 3)}
NAME = min(NAMES)


def row(made: Database, name: str, *, root: str = "/media/backup", complete: int | None = 1, pending: int | None = None) -> int:
    """A row as the server has it; the server may know the store by another mount than we do."""
    values = (made.add_client(name.split("/")[0]), "2026-03-01 01:01:00", f"{root}/{name}", complete, pending)
    columns = "clientid, backuptime, path, complete, delete_pending"
    made.execute(f"INSERT INTO backup_images ({columns}) VALUES (?, ?, ?, ?, ?)", *values)
    with closing(sqlite3.connect(made.path)) as other:
        return int(other.execute("SELECT max(id) FROM backup_images").fetchone()[0])


@contextmanager
def untouched(directory: Path) -> Iterator[None]:
    """No file appears beside the database or vanishes, and none changes: neither bytes, owner nor times, the directory's
    either."""

    def look() -> dict[str, tuple[int | str, ...]]:
        found: dict[str, tuple[int | str, ...]] = {"": (directory.stat().st_mtime_ns, directory.stat().st_ctime_ns)}
        for path in sorted(directory.iterdir()):
            there = path.stat()
            about = there.st_ino, there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns, there.st_ctime_ns
            found[path.name] = (*about, hashlib.sha256(path.read_bytes()).hexdigest())
        return found

    before = look()
    yield
    assert look() == before


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Database]:
    """A database with three rows, all of them in the write-ahead log only."""
    (tmp_path / "server").mkdir()
    with Database(tmp_path / "server" / "backup_server.db") as made:
        for name in NAMES:
            row(made, name)
        yield made


def test_the_rows_are_in_the_log_alone(live: Database, tmp_path: Path) -> None:
    """The tests below are about what they say: the `.db` by itself has no row, and `immutable` sees none."""
    with closing(sqlite3.connect(f"file:{live.nightly_copy(tmp_path / 'copy')}?immutable=1", uri=True)) as there:
        assert there.execute("SELECT count(*) FROM backup_images").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["nightly copy", "dead server", "stopped server"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only mount"])
def test_a_database_that_nobody_has_open(live: Database, scope: Scope, kind: str, read_only: bool) -> None:
    """Rows that are only in the `-wal` are found; a `-shm` without a server behind it is not believed."""
    directory = scope.path("copy")
    if kind == "stopped server":
        live.checkpoint()
        (directory / "backup_server.db").write_bytes(live.path.read_bytes())
    else:
        (live.nightly_copy if kind == "nightly copy" else live.dead_copy)(directory)
    where = scope.mount(directory, options="bind,ro") if read_only else directory
    with untouched(directory):
        assert set(database.read(str(where / "backup_server.db")).rows) == NAMES
    assert ("backup_server.db-shm" in os.listdir(directory)) is (kind == "dead server")


READ = "import sys; from synthfs.urbackup import database; print(*sorted(database.read(sys.argv[1]).rows), sep='\\n')"


@pytest.mark.parametrize("kind", ["nightly copy", "dead server", "running server"])
def test_nothing_is_written_anywhere(live: Database, scope: Scope, kind: str) -> None:
    """Not even a temporary copy, which a killed command would leave: no file may grow, and there is no place for one."""
    if kind == "running server":
        live.running_server(scope)
    copied = {"nightly copy": live.nightly_copy, "dead server": live.dead_copy}
    target = copied[kind](scope.path("copy")) if kind in copied else live.path
    # What it prints goes to a file, after that.
    read, limit = READ.rsplit("; ", 1)[0], "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, -1))"
    steps = f"{read}; import resource", limit.format(0), "found = sorted(database.read(sys.argv[1]).rows)"
    limited = "; ".join((*steps, limit.format(-1), "print(*found, sep='\\n')"))
    nowhere = dict.fromkeys(("TMPDIR", "HOME", "CACHE_DIRECTORY", "STATE_DIRECTORY"), "/nonexistent")
    said = scope.run([sys.executable, "-B", "-c", limited, target], env=nowhere).stdout
    assert set(said.split()) == NAMES


KEPT = "-all,+sys_admin,+dac_read_search"
READERS: dict[str, list[str]] = {
    "root": [],
    "unit": ["setpriv", f"--bounding-set={KEPT}", "--inh-caps=-all", "--no-new-privs"],
    "member": ["setpriv", "--reuid=65534", "--regid=994", "--clear-groups"],
}
"""Who reads: root, root as the installed unit runs, and an ordinary user in the group of the files."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("owner", [0, 1234])
def test_nothing_changes_whoever_reads(scope: Scope, reader: str, owner: int) -> None:
    """Neither owner nor time of any file, beside a running server, after it was killed, and in a copy."""
    need.root()
    need.tool("setpriv")
    directory = scope.path("var")
    python, added = scope.python_for_all()
    with Database(directory / "backup_server.db") as made:
        for name in NAMES:
            row(made, name)
        server = made.running_server(scope)
        copy = made.nightly_copy(scope.path("copy"))
        for path in (*directory.iterdir(), *copy.parent.iterdir()):
            os.chown(path, owner, 994)
            path.chmod(0o640)
        for target in (made.path, copy, made.path):
            with untouched(target.parent):
                said = scope.run([*READERS[reader], python, "-c", READ, target], env=added).stdout
            assert set(said.split()) == NAMES
            if target == copy:
                server.kill()
                server.wait(10)


@pytest.mark.parametrize("closed", ["backup_server.db", "backup_server.db-wal"])
def test_a_file_that_is_closed_to_the_reader_is_named(scope: Scope, closed: str) -> None:
    """What to do differs from that about a damaged one."""
    need.root()
    directory = scope.path("var")
    python, added = scope.python_for_all()
    with Database(directory / "backup_server.db") as made:
        row(made, NAME)
        for path in directory.iterdir():
            path.chmod(0o644)
        (directory / closed).chmod(0o600)
        said = scope.run([python, "-c", READ, made.path], env=added, user="nobody", check=False).stderr
    assert f"({closed} may not be read by this user; run as root, or as a member of the group that may)" in said


def _is_beyond(number: Path, before: int) -> bool:
    return int(number.read_bytes()) > before


class TestARunningServer:
    def test_is_seen_and_read_in_place(self, live: Database, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows come from where they are, without a copy, and nothing changes."""
        live.running_server(scope)
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        with untouched(live.path.parent):
            assert set(database.read(str(live.path)).rows) == NAMES

    def test_sees_each_new_row(self, live: Database, scope: Scope) -> None:
        """Rows that the server commits between two readings are in the second one."""
        live.running_server(scope)
        assert set(database.read(str(live.path)).rows) == NAMES
        row(live, "pc/260304-0201_Image_C/Image_C_260304-0201.raw")
        assert len(database.read(str(live.path)).rows) == 4

    @pytest.mark.parametrize("cleanly", [False, True], ids=["killed", "stopped"])
    def test_may_end_while_it_is_read(
        self, live: Database, scope: Scope, monkeypatch: pytest.MonkeyPatch, cleanly: bool
    ) -> None:
        """A server may end between our look at its lock and our reading: no file appears, whichever way it went."""
        server = live.running_server(scope)
        live.close()
        run = readonly.run
        left: list[list[str]] = []

        def late(work: Callable[[], object], seconds: float) -> object:
            server.kill()
            assert wait_until(lambda: server.poll() is not None, 5.0)
            if cleanly and not left:  # the last connection to close empties and removes the log
                closed = "sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM backup_images').fetchone()"
                scope.run([sys.executable, "-c", f"import sqlite3, sys; {closed}", live.path])
            left.append(sorted(os.listdir(live.path.parent)))
            return run(work, seconds)

        monkeypatch.setattr(readonly, "run", late)
        assert set(database.read(str(live.path)).rows) == NAMES
        assert sorted(os.listdir(live.path.parent)) == left[0]

    @pytest.mark.parametrize("reads", [100, pytest.param(3000, marks=pytest.mark.slow)])
    def test_is_never_seen_torn_or_late(self, live: Database, scope: Scope, reads: int) -> None:
        """Beside a server that writes and moves its log all the time, is killed, and starts again: each reading is of one
        moment, and of none before it began. The database is sound afterwards."""
        live.execute("UPDATE backup_images SET synctime = 0")
        live.close()
        number = scope.path("number") / "committed"
        number.write_bytes(b"%08d" % 0)
        seen = set[int]()
        for turn in range(reads):
            if turn % 25 == 0:
                server = scope.start([sys.executable, "-c", BUSY, live.path, number])
                before = int(number.read_bytes())
                assert wait_until(partial(_is_beyond, number, before), 30.0), scope.logs()
            if turn % 25 == 20:  # the last readings of each server are of what it left
                server.kill()
                server.wait(10)
            least = int(number.read_bytes())
            found = database.read(str(live.path))
            (told,) = found.clients
            assert {row.backuptime for row in found.rows.values()} == {int(told)}
            assert len(found.rows) == 100 + int(told) % 50
            assert all(row.associated == (row.name,) for row in found.rows.values())
            assert int(told) >= least
            seen.add(int(told))
        assert len(seen) > reads // 10
        with closing(sqlite3.connect(live.path)) as after:
            assert after.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_under_a_name_that_a_uri_would_garble(self, scope: Scope, tmp_path: Path) -> None:
        """Blanks, question marks, percent and number signs in the path are just a name."""
        directory = tmp_path / "odd ?name=%41#1"
        directory.mkdir()
        with Database(directory / "backup_server.db") as made:
            row(made, NAME)
            made.running_server(scope)
            with untouched(directory):
                assert set(database.read(str(made.path)).rows) == {NAME}

    @pytest.mark.parametrize("running", [True, False])
    def test_as_an_unprivileged_reader(self, live: Database, scope: Scope, running: bool) -> None:
        """A user who may read the files, and write nothing, gets the rows too."""
        need.root()
        directory = scope.path("var")
        with Database(directory / "backup_server.db") as made:
            for name in NAMES:
                row(made, name)
            if running:
                made.running_server(scope)
            target = made.path if running else made.nightly_copy(scope.path("copy"))
            python, added = scope.python_for_all()
            with untouched(target.parent):
                said = scope.run([python, "-c", READ, target], env=added, user="nobody").stdout
        assert set(said.split()) == NAMES


class TestValues:
    def read(self, made: Database, tmp_path: Path) -> DatabaseFacts:
        return database.read(str(made.nightly_copy(tmp_path / "copy")))

    @pytest.mark.parametrize(("value", "pending"), [(None, False), (0, False), (1, True)])
    def test_delete_pending(self, live: Database, tmp_path: Path, value: int | None, pending: bool) -> None:
        """NULL, which old rows have, is 0."""
        row(live, "pc/260304-0201_Image_C/Image_C_260304-0201.raw", pending=value)
        found = self.read(live, tmp_path).rows["pc/260304-0201_Image_C/Image_C_260304-0201.raw"]
        assert (found.delete_pending, found.complete) == (pending, True)

    @pytest.mark.parametrize("value", [0, None, 2])
    def test_only_complete_is_complete(self, live: Database, tmp_path: Path, value: int | None) -> None:
        """Anything but 1 is not."""
        row(live, "pc/260304-0201_Image_C/Image_C_260304-0201.raw", complete=value)
        assert not self.read(live, tmp_path).rows["pc/260304-0201_Image_C/Image_C_260304-0201.raw"].complete

    @pytest.mark.parametrize("root", ["/media/backup", "", "/a/very/deep/mount/point", "//srv"])
    def test_paths_of_another_mount(self, live: Database, tmp_path: Path, root: str) -> None:
        """Rows are known by the end of their path, in the new layout and in the old one."""
        both = {"laptop/260304-0201_Image__dev_sda5/Image__dev_sda5_260304-0201.raw", "laptop/Image_C_260304-0201.raw"}
        for name in both:
            row(live, name, root=root)
        assert {name for name in self.read(live, tmp_path).rows if name.startswith("laptop")} == both

    @pytest.mark.parametrize(
        "root", ["C:\\urbackup", "d:", "C:/urbackup", "\\\\nas\\share", "\\\\?\\D:\\backups\\urbackup", "\\urbackup"]
    )
    def test_paths_of_a_server_on_windows(self, live: Database, tmp_path: Path, root: str) -> None:
        """Backslashes, from whichever place there, in the new layout and in the old one."""
        both = {"laptop/260304-0201_Image_D/Image_D_260304-0201.raw", "laptop/Image_C_260304-0201.raw"}
        for name in both:
            row(live, name.replace("/", "\\"), root=f"{root}\\"[:-1])
        live.execute("UPDATE backup_images SET path = replace(path, '/laptop', '\\laptop')")
        assert {name for name in self.read(live, tmp_path).rows if name.startswith("laptop")} == both

    def test_a_backslash_in_a_name_on_linux(self, live: Database, tmp_path: Path) -> None:
        """Is a character like any other, the beginning of a Windows path in a name included."""
        both = {"C:\\pc/260304-0201_Image_a\\b/Image_a\\b_260304-0201.raw", "\\\\x/Image_C_260304-0201.raw"}
        for name in both:
            row(live, name)
        assert set(self.read(live, tmp_path).rows) == both | NAMES

    def test_times_and_associations(self, live: Database, tmp_path: Path) -> None:
        """`backuptime` is UTC; a C: image has the names of its SYSVOL and ESP."""
        c, esp = (row(live, f"pc/260305-0201_Image_{x}/Image_{x}_260305-0201.raw") for x in ("C", "ESP"))
        live.associate(c, esp, 4711)
        found = self.read(live, tmp_path)
        one = found.rows["pc/260305-0201_Image_C/Image_C_260305-0201.raw"]
        assert one.backuptime == 1772326860  # date -u -d '2026-03-01 01:01:00' +%s
        assert one.associated == ("pc/260305-0201_Image_ESP/Image_ESP_260305-0201.raw",)
        assert found.clients == {"pc": 1}

    def test_one_strange_row_does_not_cost_the_others(self, live: Database, tmp_path: Path) -> None:
        """Names come from the machines: bytes that are no UTF-8, NULLs and odd times leave all other rows readable."""
        live.execute("INSERT INTO clients (name) VALUES (CAST(X'636166E9' AS TEXT))")
        path = "CAST(X'2F6D2F636166E92F3236303330312D303230315F496D6167655F432F582E726177' AS TEXT)"
        live.execute(f"INSERT INTO backup_images (path, complete, backuptime) VALUES ({path}, 1, 'yesterday')")
        live.execute("INSERT INTO backup_images (path, complete, backuptime) VALUES (NULL, 1, NULL)")
        assert set(self.read(live, tmp_path).rows) >= NAMES


BAD: dict[str, bytes] = {
    "empty": b"",
    "text": b"this is no database\n" * 500,
    "zeroes": bytes(100_000),
    "only its magic": b"SQLite format 3\0",
}


class TestWhatIsNoDatabase:
    @pytest.mark.parametrize("content", BAD.values(), ids=BAD)
    def test_is_a_format_error(self, tmp_path: Path, content: bytes) -> None:
        """One line with its path; nothing is repaired, created or left."""
        path = tmp_path / "backup_server.db"
        path.write_bytes(content)
        with untouched(tmp_path), pytest.raises(FormatError, match="backup_server"):
            database.read(str(path))

    @pytest.mark.parametrize("damage", ["truncated", "overwritten"])
    def test_neither_is_half_of_one(self, live: Database, tmp_path: Path, damage: str) -> None:
        """A copy that was broken off, or has garbage in its pages, is a FormatError, never fewer rows."""
        for day in range(100, 400):
            row(live, f"pc/260{day}-0201_Image_C/Image_C_260{day}-0201.raw")
        live.checkpoint()
        whole = live.path.read_bytes()
        copy = tmp_path / "copy" / "backup_server.db"
        copy.parent.mkdir()
        copy.write_bytes(whole[: len(whole) // 2] + (b"" if damage == "truncated" else b"\xa5" * (len(whole) // 2)))
        with untouched(copy.parent), pytest.raises(FormatError, match="backup_server"):
            database.read(str(copy))

    def test_neither_is_somebody_elses(self, tmp_path: Path) -> None:
        """A sound SQLite file without UrBackup's tables is a FormatError."""
        with closing(sqlite3.connect(tmp_path / "tables.db")) as other:
            other.execute("CREATE TABLE clients (name TEXT)")
        with untouched(tmp_path), pytest.raises(FormatError, match=r"tables\.db"):
            database.read(str(tmp_path / "tables.db"))


class TestFinding:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        """A store with one finished image, and `urbackup/` for the nightly copy."""
        raw = tmp_path / "store" / NAME
        raw.parent.mkdir(parents=True)
        with raw.open("xb") as file:
            file.truncate(513 * 1024)
        raw.with_name(f"{raw.name}.sync").touch()
        return tmp_path / "store"

    def test_the_copy_in_the_store_has_its_say(self, live: Database, store: Path) -> None:
        """Without being named, and by its rows: an image that UrBackup calls incomplete is not offered."""
        live.execute("UPDATE backup_images SET complete = 0")
        live.nightly_copy(store / "urbackup")
        with untouched(store / "urbackup"):
            catalog = survey(str(store))
        assert (catalog.disks, [each.name for each in catalog.skipped]) == ((), [NAME])
        assert catalog.database == str(store / "urbackup" / "backup_server.db")

    @pytest.mark.parametrize("named", [True, False])
    def test_another_servers_is_ignored_and_said_once(self, tmp_path: Path, store: Path, named: bool) -> None:
        """A database that shares no row with the store: one note with its path, and the files decide."""
        (store / "urbackup").mkdir()
        with Database(tmp_path / "other.db") as other:
            row(other, "elsewhere/270301-0201_Image_C/Image_C_270301-0201.raw")
        path = (tmp_path / "other.db").rename((tmp_path if named else store / "urbackup") / "backup_server.db")
        catalog = survey(str(store), str(path) if named else None)
        assert [disk.image.name for disk in catalog.disks] == [NAME]
        assert [str(path) in note.text for note in catalog.notes] == [True]
        assert catalog.database is None

    @pytest.mark.parametrize("named", [True, False])
    def test_a_broken_one_is_a_note(self, store: Path, named: bool) -> None:
        """Also where it was named: one warning with its path, and the files decide."""
        (store / "urbackup").mkdir()
        broken = store / "urbackup" / "backup_server.db"
        broken.write_bytes(BAD["text"])
        catalog = survey(str(store), str(broken) if named else None)
        assert [disk.image.name for disk in catalog.disks] == [NAME]
        assert [(note.warning, str(broken) in note.text) for note in catalog.notes] == [(True, True)]

    def test_a_named_one_may_be_its_directory(self, live: Database, store: Path, tmp_path: Path) -> None:
        """`--database /var/urbackup` means the file in it; nothing there, or something else, is said."""
        live.nightly_copy(tmp_path / "var")
        assert database.find(str(store), str(tmp_path / "var")) == ([str(tmp_path / "var" / "backup_server.db")], [])
        os.mkfifo(tmp_path / "fifo")
        for missing in ("nothing", "store", "fifo"):
            with pytest.raises(NotFoundError, match=missing):
                database.find(str(store), str(tmp_path / missing))
