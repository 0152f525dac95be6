"""What may go wrong around `synthfs sync`, and loses nothing: a store that is not there, or not the one, or unreadable.

Not for: the rules themselves (test_sync_plan). Expected values: the files that were there before.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from freezer import Freezer, named
from lab import Lab, Scope
from makedatabase import Database
from makedisk import OriginalDisk
from processes import Argument
from synthfs.urbackup import storage

NOT_FOUND, EXISTS, PARTIAL = 3, 8, 1
USER = "daemon"


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    with lab.scope("pruning") as scope:
        yield sampledisks.two_volume_disk(scope.path() / "original.img")


@pytest.fixture(scope="module")
def mounted(lab: Lab) -> Iterator[Path]:
    with lab.scope("pruning-btrfs") as scope:
        yield scope.btrfs(1 << 30)


@pytest.fixture
def freezer(scope: Scope, mounted: Path, disk: OriginalDisk) -> Freezer:
    return Freezer.make(scope, mounted, disk)


@pytest.fixture
def filled(freezer: Freezer) -> Freezer:
    """Two clients with three frozen disks each, all of which would be kept."""
    for client in ("pc", "mac"):
        for day in (1, 2, 3):
            freezer.backup(client, day)
    assert freezer.counts("--keep", "3") == (6, 0, 0, 0)
    return freezer


def loses_nothing(freezer: Freezer, *options: Argument, code: int = PARTIAL, user: str | None = None) -> str:
    """A run ends with this code and leaves every file as it was; returns what it said."""
    before = freezer.snapshot()
    done = freezer.sync("--keep", "3", *options, check=False, user=user)
    assert done.returncode == code, done.stderr
    assert freezer.snapshot() == before
    return done.stderr


class TestStore:
    def test_unmounted(self, filled: Freezer) -> None:
        """A store whose file system is not mounted leaves an empty directory: nothing is removed, and it is an error."""
        filled.store.rename(filled.home / "elsewhere")
        filled.store.mkdir()
        assert "no images at all" in loses_nothing(filled)
        filled.store.rmdir()
        loses_nothing(filled, code=NOT_FOUND)
        (filled.home / "elsewhere").rename(filled.store)
        assert filled.counts("--keep", "3") == (0, 0, 6, 0)

    def test_emptied(self, filled: Freezer) -> None:
        """The very same store without any image removes nothing, unless it is told to."""
        for image in filled.store.glob("*/*_Image_C"):
            filled.scope.run(["rm", "-r", image])
        assert "--prune-anyway" in loses_nothing(filled)
        assert filled.counts("--keep", "3", "--prune-anyway") == (0, 6, 0, 0)

    def test_another_one(self, filled: Freezer) -> None:
        """Another store at the same path, with other backups of the same disks, removes nothing until that is accepted."""
        filled.store.rename(filled.home / "elsewhere")
        filled.store.mkdir()
        for day in (7, 8):
            filled.backup("pc", day)
        before = filled.snapshot()
        done = filled.sync("--keep", "1", check=False)
        assert (done.returncode, "not those of the last run" in done.stderr) == (PARTIAL, True)
        after = filled.snapshot()
        assert {place: after.get(place) for place in before} == before
        assert after.keys() - before.keys() == {f"pc/{named(8)}"}
        assert filled.sync("--keep", "1", "--prune-anyway", check=False).returncode == 0
        assert filled.files() == [f"pc/{named(8)}"]

    @pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
    def test_known_again(self, scope: Scope, filesystem: str) -> None:
        """A store is the same on another device and after a remount, and a directory that took its place on disk is not."""
        need.tool(f"mkfs.{filesystem}")
        need.kernel(filesystem)
        mkfs: list[Argument] = [f"mkfs.{filesystem}", "-q", "-f"]
        file = scope.sparse(512 << 20, filesystem)
        scope.run([*mkfs, file])
        first = scope.loop(file)
        mounted = scope.mount(first, fstype=filesystem)
        store = mounted / "urbackup"
        store.mkdir()
        before, device = identity(store), store.stat().st_dev
        scope.umount(mounted)
        second = scope.loop(file)
        scope.run(["losetup", "--detach", first])
        scope.mount(second, mounted, fstype=filesystem)
        assert identity(store) == before
        if filesystem != "btrfs":
            assert store.stat().st_dev != device
        number = store.stat().st_ino
        for _ in range(1000):
            store.rmdir()
            store.mkdir()
            assert identity(store) != before
            if store.stat().st_ino == number:
                break
        assert filesystem == "btrfs" or store.stat().st_ino == number, "the number was given to the new directory"
        scope.umount(mounted)
        scope.run([*mkfs, second])
        scope.mount(second, mounted, fstype=filesystem)
        store.mkdir()
        assert identity(store) != before

    def test_on_xfs_after_a_remount(self, scope: Scope, disk: OriginalDisk) -> None:
        """XFS on another device number than at the last run still is the store of the last run: files are removed as ever."""
        need.tool("mkfs.xfs")
        need.kernel("xfs")
        file = scope.sparse(512 << 20, "xfs")
        scope.run(["mkfs.xfs", "-q", "-m", "reflink=1", file])
        first = scope.loop(file)
        mounted = scope.mount(first, fstype="xfs")
        freezer = Freezer.make(scope, mounted, disk)
        for day in (1, 2, 3):
            freezer.backup("pc", day)
        assert freezer.counts("--keep", "3") == (3, 0, 0, 0)
        scope.umount(mounted)
        scope.mount(scope.loop(file), mounted, fstype="xfs")
        freezer.delete(freezer.images[0])
        assert freezer.counts("--keep", "3") == (0, 1, 2, 0)

    def test_unreadable_client(self, scope: Scope, freezer: Freezer) -> None:
        """Of a client whose folder may not be read nothing is removed, by an unprivileged user; of the others as ever."""
        need.root()
        for client in ("pc", "mac"):
            for day in (1, 2):
                freezer.backup(client, day)
        for path in (freezer.home, *freezer.home.rglob("*")):
            scope.run(["chown", USER, path])
        assert freezer.sync("--keep", "2", user=USER).stderr.endswith("4 made, 0 removed, 0 kept, 0 failed\n")
        for client in ("pc", "mac"):
            scope.run(["rm", "-r", freezer.store / client / "260301-0201_Image_C"])
        scope.run(["chmod", "0", freezer.store / "pc"])
        done = freezer.sync("--keep", "2", check=False, user=USER)
        assert (done.returncode, "pc could not be read in full" in done.stderr) == (PARTIAL, True)
        assert freezer.files() == [f"mac/{named(2)}", f"pc/{named(1)}", f"pc/{named(2)}"]

    def test_unreadable_image(self, scope: Scope, freezer: Freezer) -> None:
        """The same for a single image directory that fails; nothing is made in place of what cannot be read, either."""
        for day in (1, 2, 3):
            freezer.backup("pc", day)
        freezer.sync("--keep", "3")
        scope.run(["rm", "-r", freezer.store / "pc" / "260301-0201_Image_C"])
        raw = freezer.store / "pc" / "260302-0201_Image_C" / "Image_C_260302-0201.raw"
        os.link(raw, freezer.home / "second-name")
        raw.parent.chmod(0o775)  # so that others could have made that link
        assert "could not be read in full" in loses_nothing(freezer)

    def test_half_of_a_client(self, filled: Freezer) -> None:
        """Two of three backups of a client that are gone at once are too many to believe; one of three is not."""
        for day in (1, 2):
            filled.scope.run(["rm", "-r", filled.store / "pc" / f"26030{day}-0201_Image_C"])
        assert "too many to believe" in loses_nothing(filled)
        filled.scope.run(["rm", "-r", filled.store / "mac" / "260301-0201_Image_C"])
        assert filled.counts("--keep", "3") == (0, 1, 5, 0)
        assert filled.counts("--keep", "3", "--prune-anyway") == (0, 2, 3, 0)

    def test_dangling_link(self, scope: Scope, mounted: Path, disk: OriginalDisk) -> None:
        """On ZFS an image is a link to a dataset: one that is not mounted at the moment is not deleted."""
        freezer = Freezer.make(scope, mounted, disk, layout="symlink")
        for day in (1, 2, 3):
            freezer.backup("pc", day)
        freezer.sync("--keep", "3")
        dataset = (freezer.store / "pc" / "260301-0201_Image_C").resolve()
        dataset.rename(dataset.with_name("away"))
        loses_nothing(freezer, code=0)


class TestDatabase:
    def test_rows_outlive_directories(self, scope: Scope, filled: Freezer) -> None:
        """A backup whose directory is gone and whose row is there is not deleted; without the row it is."""
        with Database(scope.path("var") / "backup_server.db") as database:
            rows = [database.add(image) for image in filled.images]
            scope.run(["rm", "-r", filled.images[0].directory])
            loses_nothing(filled, "--database", str(database.path), code=0)
            database.execute("DELETE FROM backup_images WHERE id = ?", rows[0])
            assert filled.counts("--keep", "3", "--database", str(database.path)) == (0, 1, 5, 0)

    def test_of_another_server(self, scope: Scope, filled: Freezer) -> None:
        """With the database of another server, or none where there was one, nothing is removed."""
        with Database(scope.path("mine") / "backup_server.db") as mine, Database(scope.path("its") / "its.db") as its:
            for image in filled.images:
                mine.add(image)
            its.add(filled.images[0], path="/backups/other/260301-0201_Image_C/Image_C_260301-0201.raw")
            assert filled.counts("--keep", "3", "--database", str(mine.path)) == (0, 0, 6, 0)
            scope.run(["rm", "-r", filled.store / "pc" / "260301-0201_Image_C"])
            assert "another server" in loses_nothing(filled, "--database", str(its.path))
            assert "not those of the last run" in loses_nothing(filled)
            loses_nothing(filled, "--database", str(mine.path), code=0)


class TestFiles:
    @pytest.mark.parametrize("change", ["written", "touched", "grown"])
    def test_written_to(self, freezer: Freezer, change: str) -> None:
        """A frozen file that somebody works with is never removed or replaced, and that is said."""
        freezer.backup("pc", 1)
        freezer.sync()
        target = freezer.frozen / "pc" / named(1)
        if change == "written":
            with target.open("r+b") as file:
                file.seek(1 << 20)
                file.write(b"mine")
        elif change == "touched":
            os.utime(target, ns=(0, 7))
        else:
            at = target.stat().st_mtime_ns
            with target.open("ab") as file:
                file.write(b"mine")
            os.utime(target, ns=(at, at))
        content = target.stat()
        freezer.backup("pc", 1, "D", 3)
        freezer.backup("pc", 2)
        for options in ((), ("--prune-anyway",)):
            assert f"pc/{named(1)} was written to" in freezer.sync(*options).stderr
        freezer.scope.run(["rm", "-r", freezer.store / "pc" / "260301-0201_Image_C"])
        freezer.sync("--prune-anyway")
        now = target.stat()
        assert (now.st_ino, now.st_size, now.st_mtime_ns) == (content.st_ino, content.st_size, content.st_mtime_ns)

    def test_files_of_others(self, freezer: Freezer) -> None:
        """What synthfs did not make is neither replaced nor removed, whatever its name."""
        freezer.backup("pc", 1)
        (freezer.frozen / "pc").mkdir()
        for name in (named(1), "Image_C_250101-0000.vhd", "notes.txt"):
            (freezer.frozen / "pc" / name).write_text("precious")
        (freezer.frozen / "link").symlink_to(freezer.store)
        before = freezer.snapshot()
        assert "no record of it" in freezer.sync().stderr
        freezer.backup("pc", 2)
        freezer.sync("--prune-anyway")
        assert freezer.snapshot().items() > before.items()
        # Nor do they count as the newer disk for which an older one may go.
        (freezer.frozen / "pc" / named(3)).write_text("precious")
        freezer.backup("pc", 3)
        freezer.sync("--prune-anyway")
        assert f"pc/{named(2)}" in freezer.files()
        assert (freezer.frozen / "pc" / named(1)).read_text() == "precious"


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda record: b"",
    "cut": lambda record: record[: len(record) // 2],
    "no object": lambda record: b"[1, 2]",
    "no list": lambda record: json.dumps(json.loads(record) | {"files": 5}).encode(),
    "no files": lambda record: json.dumps(json.loads(record) | {"files": [5, None, {"place": "pc/x"}]}).encode(),
    "wrong types": lambda record: record.replace(b'"size": ', b'"size": "1", "was": '),
    "no store": lambda record: json.dumps(json.loads(record) | {"store": "?"}).encode(),
    "deep": lambda record: b"[" * 100_000,
}


class TestRecord:
    @pytest.mark.parametrize("kind", GARBAGE)
    def test_corrupt(self, filled: Freezer, kind: str) -> None:
        """A record that makes no sense is as good as none: everything stays, and nothing crashes."""
        filled.record.write_bytes(GARBAGE[kind](filled.record.read_bytes()))
        filled.scope.run(["rm", "-r", filled.store / "pc" / "260301-0201_Image_C"])
        loses_nothing(filled, code=PARTIAL if kind == "no store" else 0)

    def test_of_an_earlier_version(self, filled: Freezer) -> None:
        """A record as 0.1.0 wrote it, without the version of its rules, is as good as one of today, and becomes one."""
        record = json.loads(filled.record.read_bytes())
        old = [{key: fact for key, fact in each.items() if key != "rules"} for each in record["files"]]
        filled.record.write_text(json.dumps(record | {"files": old}))
        loses_nothing(filled, code=0)
        assert json.loads(filled.record.read_bytes()) == record
        assert filled.counts("--keep", "3") == (0, 0, 6, 0)

    def test_lost(self, filled: Freezer) -> None:
        """Without a record no file is known to be ours: everything stays, and the next disks are made as ever."""
        filled.record.unlink()
        filled.scope.run(["rm", "-r", filled.store / "pc" / "260301-0201_Image_C"])
        loses_nothing(filled, code=0)
        filled.backup("pc", 4)
        assert filled.counts("--keep", "1") == (1, 0, 0, 0)
        assert len(filled.files()) == 7

    def test_of_somebody_else(self, scope: Scope, filled: Freezer) -> None:
        """A record that another user planted is not believed: it could name files for us to remove."""
        need.root()
        filled.scope.run(["rm", "-r", filled.store / "pc" / "260301-0201_Image_C"])
        scope.run(["chown", USER, filled.record])
        loses_nothing(filled, code=0)

    def test_killed_between_publishing_and_recording(self, freezer: Freezer) -> None:
        """A run that is killed when a file just got its name knows it for its own the next time."""
        need.tool("strace")
        freezer.backup("pc", 1)
        (freezer.frozen / "pc").mkdir()
        assert killed(freezer, "fsync") in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert freezer.files() == [f"pc/{named(1)}"]
        assert freezer.counts() == (0, 0, 1, 0)
        freezer.backup("pc", 2)
        assert freezer.counts() == (1, 1, 0, 0)

    def test_killed_while_replacing(self, freezer: Freezer) -> None:
        """The same with a better edition in place of an older one; no temporary name is left by the run after."""
        need.tool("strace")
        freezer.backup("pc", 1)
        freezer.sync()
        freezer.backup("pc", 1, "D", 3)
        left = []
        for call in ("linkat", "renameat", "fsync"):
            assert killed(freezer, call) in (-signal.SIGKILL, 128 + signal.SIGKILL), call
            left.append(len(freezer.files()))
        assert left == [1, 2, 1], "killed before the last step, there is a temporary name"
        assert freezer.counts() == (0, 0, 1, 0)
        assert freezer.files() == [f"pc/{named(1)}"]
        freezer.backup("pc", 2)
        assert freezer.counts() == (1, 1, 0, 0)


def identity(store: Path) -> str:
    return storage.scan(str(store)).identity


def killed(freezer: Freezer, call: str) -> int:
    """The exit code of a run that is killed when it is about to do the first such system call with the client's folder."""
    strace: list[Argument] = ["strace", "-f", "-o", "/dev/null", "-P", freezer.frozen / "pc"]
    strace += ["-e", f"inject={call}:signal=SIGKILL"]
    return freezer.scope.run([*strace, *command(freezer)], env=freezer.environment, check=False).returncode


def command(freezer: Freezer) -> list[Argument]:
    return [sys.executable, "-m", "synthfs", "sync", freezer.store, "--to", freezer.frozen, "--wait", "0", "--min-free", "0%"]
