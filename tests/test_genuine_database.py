"""Proves which images of the genuine store are offered: by the live database, the nightly copy, and by files alone.

Expected lists are those of genuinedisks, checked here against the rows that SQLite reads. Not for: the disks themselves;
see test_genuine.
"""

import hashlib
import json
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bytewise
import genuinedisks
import makedatabase
import need
from genuine import GenuineStore
from genuinedisks import ABORTED, DISKS, PARTS, UNCLAIMED, Key
from lab import Lab, Scope
from ledger import mounts_below
from processes import Argument, wait_until

SITUATIONS = ["live", "nightly", "none"]
GROUP, NOBODY = 994, 65534
"""Of everything in the store, and somebody who is neither root nor its owner."""

# When the nightly copy was made, at 03:02, C: of 0302 had no row yet, and SYSVOL of 0302 was waiting for it. What is
# newer than its newest row is judged by its files, as everything is without a database; so SYSVOL of 0304 counts.
LATE_PART: Key = ("0302", "SYSVOL")
OFFERED_PARTS: dict[str, list[Key]] = {
    "live": PARTS,
    "nightly": [*(part for part in PARTS if part != LATE_PART), UNCLAIMED],
    "none": [*PARTS, UNCLAIMED],
}
WITHHELD: dict[str, list[Key]] = {"live": [*ABORTED, UNCLAIMED], "nightly": [*ABORTED, LATE_PART], "none": ABORTED}


@pytest.fixture(scope="module")
def writable(lab: Lab, genuine: GenuineStore) -> Iterator[Path]:
    with lab.scope("writable-store") as scope:
        yield genuinedisks.writable_copy(scope, genuine)


@dataclass(frozen=True, slots=True)
class Asked:
    """A store, and how it is asked about."""

    store: Path
    options: tuple[Argument, ...]
    database: Path | None
    """What synthfs is to go by."""


@pytest.fixture(params=["read-only", "writable"])
def store(request: pytest.FixtureRequest, genuine: GenuineStore) -> Path:
    if request.param == "read-only":
        return genuine.root
    found: Path = request.getfixturevalue("writable")
    return found


@pytest.fixture(params=SITUATIONS)
def situation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def asked(store: Path, situation: str, genuine: GenuineStore, scope: Scope) -> Asked:
    match situation:
        case "live":
            database = _live_copy(genuine, scope)
            return Asked(store, ("--database", database), database)
        case "nightly":
            return Asked(store, (), store / "urbackup" / "backup_server.db")
        case _:
            assert mounts_below(store / "urbackup") == []
            scope.mount("tmpfs", store / "urbackup", fstype="tmpfs")
            return Asked(store, (), None)


class TestTheLists:
    """The lists of genuinedisks are what SQLite reads in the databases, of what is there."""

    def test_live(self, genuine: GenuineStore, scope: Scope) -> None:
        """All 25 images have a row; the disks and their parts, and nothing else, are complete."""
        rows = _rows(_live_copy(genuine, scope))
        assert {key for key, complete in rows.items() if complete} == {*DISKS, *PARTS}
        assert {key for key, complete in rows.items() if not complete} == {*ABORTED, UNCLAIMED}
        assert len(rows) == 25
        assert set(rows) == {_key(file) for file in genuine.root.glob("gpthost/*/*.raw")}

    def test_nightly(self, genuine: GenuineStore, scope: Scope) -> None:
        """It ends in the middle of the run of 03:02."""
        copy = scope.path("db") / "backup_server.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{genuine.nightly}{suffix}", f"{copy}{suffix}")
        rows = _rows(copy)
        assert max(stamp for stamp, _ in rows) == "0302"
        assert {key for key, complete in rows.items() if not complete} == {("0256", "_mnt_linuxdata"), LATE_PART}
        assert {key for key, complete in rows.items() if complete} == {
            key for key in (*DISKS, *PARTS) if key[0] in ("0254", "0256")
        }

    def test_files(self, genuine: GenuineStore) -> None:
        """What has a `.sync` beside it is what the lists offer without a database."""
        synced = {file.name for file in genuine.root.glob("gpthost/*/*.raw.sync")}
        assert synced == {f"{genuinedisks.stem(key)}.raw.sync" for key in (*DISKS, *OFFERED_PARTS["none"])}


@pytest.mark.parametrize("reader", ["root", "member"])
def test_offered(asked: Asked, situation: str, reader: str, scope: Scope) -> None:
    """Exactly the right images are offered, to root and to an unprivileged member of the group, and no file is touched."""
    watched = [asked.store / "urbackup", *([asked.database.parent] if asked.database else [])]
    before = [_state(directory) for directory in watched]
    argv: list[Argument] = ["list", asked.store, "--all", "--json", *asked.options]
    told = json.loads(_as(reader, scope, argv))
    assert told["database"] == (str(asked.database) if asked.database else None)
    assert [disk["image"] for disk in told["disks"]] == [genuinedisks.name(disk) for disk in DISKS]
    assert {part["image"] for part in told["parts"]} == {genuinedisks.name(part) for part in OFFERED_PARTS[situation]}
    assert {one["name"] for one in told["not_offered"]} == {genuinedisks.name(image) for image in WITHHELD[situation]}
    assert len(told["disks"]) + len(told["parts"]) + len(told["not_offered"]) == 25
    assert not any(note["warning"] for disk in told["disks"] for note in disk["notes"])
    assert [_state(directory) for directory in watched] == before


def test_mounted(asked: Asked, scope: Scope) -> None:
    """The mount shows the offered disks and no others, each also with a new identity, and no file is touched."""
    before = _state(asked.store / "urbackup")
    mounted = scope.synthfs_mount(asked.store, *asked.options)
    expected = sorted(f"{genuinedisks.stem(disk)}.vhd" for disk in DISKS)
    assert [name for name in bytewise.names(scope, mounted) if not name.startswith((".", "README"))] == ["gpthost"]
    assert bytewise.names(scope, mounted / "gpthost") == [*expected, "new-identity"]
    assert bytewise.names(scope, mounted / "gpthost" / "new-identity") == expected
    assert _state(asked.store / "urbackup") == before


@pytest.mark.parametrize("image", [("0304", "C"), ("0256", "_mnt_linuxdata"), UNCLAIMED, ("0312", "_dev_loop3")])
def test_withheld(genuine: GenuineStore, image: Key, scope: Scope) -> None:
    """An image that the live database calls incomplete is neither shown nor materialized; one line names it and says why."""
    options: list[Argument] = ["--database", genuine.database]
    verbs: list[list[Argument]] = [["show"], ["materialize", "--dry-run", "-o", scope.path()]]
    for verb in verbs:
        done = scope.synthfs(*verb, genuine.root / genuinedisks.name(image), *options, check=False)
        assert (done.returncode, done.stdout) == (3, "")
        (line,) = done.stderr.splitlines()
        assert genuinedisks.name(image) in line
        assert "incomplete" in line


def test_member_mounts(genuine: GenuineStore, scope: Scope) -> None:
    """An unprivileged member of the store's group mounts the read-only store, and reads the source disk's tables there."""
    need.fuse()
    need.tool("unshare")
    target = scope.path("served")
    target.chmod(0o777)
    program, added = _synthfs_of_member(scope)
    mount = [*program, "mount", "--daemon", genuine.root, target, "--database", _live_copy(genuine, scope)]
    file = target / "gpthost" / f"{genuinedisks.stem(('0254', 'C'))}.vhd"
    # In a mount namespace of its own, with the /dev/fuse that everybody may use on a machine with udev.
    device = scope.path("device") / "fuse"
    steps: list[list[Argument]] = [
        ["mknod", "--mode=666", device, "c", "10", "229"],
        ["mount", "--bind", device, "/dev/fuse"],
        mount,
        [*_member("ls"), target / "gpthost"],
        ["echo"],
        [*_member("sfdisk"), "--dump", file],
        [*program, "umount", target],
    ]
    script = "\n".join(shlex.join(map(str, step)) for step in steps)
    shown, _, dumped = scope.run(["unshare", "--mount", "sh", "-ec", script], env=added).stdout.partition("\n\n")
    assert shown.split() == sorted([*(f"{genuinedisks.stem(disk)}.vhd" for disk in DISKS), "new-identity"])
    recorded = (genuine.source(0).records / "diskA.sfdisk-d.txt").read_text()
    assert dumped.replace(str(file), "diskA_gpt.img") == recorded


@pytest.mark.parametrize("reader", ["root", "member"])
def test_running_server(genuine: GenuineStore, reader: str, scope: Scope) -> None:
    """Beside a running server's database no file appears or changes, and the list is that of the live database."""
    database = _live_copy(genuine, scope)
    ready = scope.path("server") / "ready"
    scope.start([shutil.which("python3") or "python3", "-c", makedatabase.SERVER, database, ready])
    assert wait_until(ready.exists, 10.0), scope.logs()
    before = _state(database.parent)
    assert sorted(name for name in before if name) == [f"backup_server.db{suffix}" for suffix in ("", "-shm", "-wal")]
    told = json.loads(_as(reader, scope, ["list", genuine.root, "--json", "--database", database]))
    assert told["database"] == str(database)
    assert [disk["image"] for disk in told["disks"]] == [genuinedisks.name(disk) for disk in DISKS]
    assert _state(database.parent) == before


def _live_copy(genuine: GenuineStore, scope: Scope) -> Path:
    """The live database in a directory that everybody may read and root alone may write."""
    copy = scope.path("live") / "backup_server.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{genuine.database}{suffix}", f"{copy}{suffix}")
        Path(f"{copy}{suffix}").chmod(0o644)
    return copy


def _rows(database: Path) -> dict[Key, bool]:
    """Stamp and letter of the client's images -> whether complete."""
    connection = sqlite3.connect(database)
    try:
        statement = "SELECT path, complete FROM backup_images WHERE path LIKE '%/gpthost/%'"
        rows: list[tuple[str, int]] = connection.execute(statement).fetchall()
    finally:
        connection.close()
    return {_key(Path(path)): complete == 1 for path, complete in rows}


def _key(raw: Path) -> Key:
    """Of `Image_<letter>_261123-<stamp>.raw`."""
    letter, _, moment = raw.stem.removeprefix("Image_").rpartition("_")
    return moment.removeprefix("261123-"), letter


def _state(directory: Path) -> dict[str, Any]:
    """Everything about a directory and what is in it that a careless reader would change."""
    found: dict[str, Any] = {"": (directory.stat().st_mtime_ns, directory.stat().st_ctime_ns)}
    for file in directory.iterdir():
        about = file.stat()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        times = about.st_mtime_ns, about.st_ctime_ns
        found[file.name] = about.st_ino, about.st_size, times, about.st_mode, about.st_uid, digest
    return found


def _member(program: Argument) -> list[Argument]:
    """Run a program as nobody, in the group of the store."""
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={GROUP}", "--clear-groups", program]


def _as(reader: str, scope: Scope, argv: list[Argument]) -> str:
    if reader == "root":
        return scope.synthfs(*argv).stdout
    program, added = _synthfs_of_member(scope)
    return scope.run([*program, *argv], env=added).stdout


def _synthfs_of_member(scope: Scope) -> tuple[list[Argument], dict[str, str]]:
    need.tool("setpriv")
    python, added = scope.python_for_all()
    # A Python that was built with its library shared would look for it where others may not look.
    library = Path(python).parent.parent / "lib"
    return [*_member(python), "-m", "synthfs"], {**added, "LD_LIBRARY_PATH": str(library), "HOME": "/nonexistent"}

