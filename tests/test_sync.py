"""`synthfs sync` on BTRFS: what it freezes, what it leaves, what it says, and how long it takes when nothing is to be done.

Not for: what could do harm (test_sync_pruning), the rules themselves (test_sync_plan).
Expected values: the original disk, the files that are there. Units: bytes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from freezer import Freezer, named
from lab import Lab, Scope
from makedatabase import Database
from makedisk import OriginalDisk
from onmount import read_right
from processes import Argument, wait_until

EXISTS, PARTIAL, NOT_FOUND, UNSUPPORTED = 8, 1, 3, 5


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    with lab.scope("sync") as scope:
        yield sampledisks.two_volume_disk(scope.path() / "original.img")


@pytest.fixture(scope="module")
def mounted(lab: Lab) -> Iterator[Path]:
    """A BTRFS for all tests of this module: each has a directory of its own in it."""
    with lab.scope("sync-btrfs") as scope:
        yield scope.btrfs(2 << 30)


@pytest.fixture
def freezer(scope: Scope, mounted: Path, disk: OriginalDisk) -> Freezer:
    return Freezer.make(scope, mounted, disk)


class TestFreezing:
    def test_newest_of_each_client(self, freezer: Freezer) -> None:
        """Each client's newest disk is frozen, byte for byte; a second run does nothing and says so in one line."""
        for client, day in (("pc", 1), ("pc", 2), ("laptop", 1)):
            freezer.backup(client, day, layout="auto")
        freezer.backup("laptop", 2, layout="auto", complete=False)
        done = freezer.sync()
        assert freezer.files() == [f"laptop/{named(1)}", f"pc/{named(2)}"]
        (line,) = done.stderr.splitlines()
        assert line.endswith("2 made, 0 removed, 0 kept, 0 failed")
        for place in freezer.files():
            assert whole_disk(freezer, place)
        before = freezer.snapshot()
        (line,) = freezer.sync().stderr.splitlines()
        assert line == f"{freezer.frozen}: 0 made, 0 removed, 2 kept, 0 failed"
        assert freezer.snapshot() == before

    def test_succession(self, freezer: Freezer) -> None:
        """The next backup's disk takes the place of the last one, which UrBackup may have deleted by then."""
        first = freezer.backup("pc", 1)
        freezer.sync()
        freezer.delete(first)
        freezer.backup("pc", 2)
        assert freezer.counts() == (1, 1, 0, 0)
        assert freezer.files() == [f"pc/{named(2)}"]

    def test_keep(self, freezer: Freezer) -> None:
        """--keep 2 keeps the two newest."""
        for day in (1, 2, 3):
            freezer.backup("pc", day)
        assert freezer.counts("--keep", "2") == (2, 0, 0, 0)
        freezer.backup("pc", 4)
        assert freezer.counts("--keep", "2") == (1, 1, 1, 0)
        assert freezer.files() == [f"pc/{named(day)}" for day in (3, 4)]

    def test_client(self, freezer: Freezer) -> None:
        """--client looks after the clients that match, and leaves the files of the others."""
        for client in ("pc-1", "pc-2", "mac"):
            freezer.backup(client, 1)
        freezer.sync()
        for client in ("pc-1", "pc-2", "mac"):
            freezer.backup(client, 2)
        assert freezer.counts("--client", "pc-*") == (2, 2, 0, 0)
        done = freezer.sync("--client", "cp-*", check=False)
        assert (done.returncode, done.stdout) == (3, "")
        assert "'cp-*'" in done.stderr.splitlines()[-1]
        assert freezer.files() == [f"mac/{named(1)}", f"pc-1/{named(2)}", f"pc-2/{named(2)}"]

    def test_dry_run(self, freezer: Freezer) -> None:
        """--dry-run says what would be, and changes neither the directory nor what is remembered."""
        freezer.backup("pc", 1)
        (line,) = freezer.sync("--dry-run").stderr.splitlines()
        assert "would be 1 made, 0 removed" in line
        assert sorted(path.name for path in freezer.home.iterdir()) == ["frozen", "urbackup"]
        freezer.sync()
        freezer.backup("pc", 2)
        before, record = freezer.snapshot(), freezer.record.read_bytes()
        assert freezer.counts("--dry-run") == (1, 1, 0, 0)
        assert freezer.sync("--dry-run").stdout == f"remove pc/{named(1)}\nmake   pc/{named(2)}\n"
        assert (freezer.snapshot(), freezer.record.read_bytes()) == (before, record)
        assert freezer.counts() == (1, 1, 0, 0)

    def test_json(self, freezer: Freezer) -> None:
        """--json has the counts and the places, and why a file was made anew, on stdout alone."""
        freezer.backup("pc", 1)
        counts = {"made": 1, "removed": 0, "kept": 0, "failed": 0}
        files = {"made": [f"pc/{named(1)}"], "removed": [], "failed": []}
        assert freezer.summary() == {"directory": str(freezer.frozen), **counts, "files": files, "made_anew": {}}
        freezer.backup("pc", 1, "D", 3)
        assert freezer.summary()["made_anew"] == {f"pc/{named(1)}": "1 more of its partitions has an image now"}

    def test_only_a_better_edition(self, freezer: Freezer) -> None:
        """A frozen disk is made anew when D: joins it, and not when D: is deleted again."""
        freezer.backup("pc", 1)
        freezer.sync()
        poor = freezer.snapshot()
        d = freezer.backup("pc", 1, "D", 3)
        assert freezer.counts() == (1, 0, 0, 0)
        rich = freezer.snapshot()
        assert rich.keys() == poor.keys()
        assert rich != poor
        assert read_right(freezer.scope, freezer.frozen / "pc" / named(1), freezer.disk)
        freezer.delete(d)
        assert freezer.counts() == (0, 0, 1, 0)
        assert freezer.snapshot() == rich

    def test_a_disk_that_cannot_be_made(self, freezer: Freezer) -> None:
        """One that fails is named, the rest is made, its predecessor stays, and the run ends with an error."""
        freezer.backup("pc", 1)
        freezer.sync()
        freezer.backup("pc", 2)
        freezer.backup("mac", 1)
        freezer.scope.run(["chattr", "+i", freezer.frozen / "pc"])
        try:
            done = freezer.sync(check=False)
        finally:
            freezer.scope.run(["chattr", "-i", freezer.frozen / "pc"])
        assert done.returncode == PARTIAL
        assert [line for line in done.stderr.splitlines() if named(2) in line] != []
        assert freezer.files() == [f"mac/{named(1)}", f"pc/{named(1)}"]
        assert freezer.counts() == (1, 1, 1, 0)


class TestContainers:
    @pytest.mark.parametrize(("form", "suffix"), [("vhdx", ".vhdx"), ("vhd-dynamic", ".dynamic.vhd"), ("raw", ".img")])
    def test_other_formats(self, freezer: Freezer, form: str, suffix: str) -> None:
        """--format makes another container, which qemu reads as the disk; a second run finds nothing to do."""
        need.tool("qemu-img")
        freezer.backup("pc", 1)
        freezer.backup("pc", 1, "D", 3)
        assert freezer.counts("--format", form) == (1, 0, 0, 0)
        (place,) = freezer.files()
        assert place == f"pc/Image_C_260301-0201{suffix}"
        driver = {"vhdx": "vhdx", "vhd-dynamic": "vpc", "raw": "raw"}[form]
        compare: list[Argument] = ["qemu-img", "compare", "-f", driver, "-F", "raw", freezer.frozen / place, freezer.disk.path]
        assert "Images are identical" in freezer.scope.run(compare).stdout
        assert freezer.counts("--format", form) == (0, 0, 1, 0)

    def test_names(self, freezer: Freezer) -> None:
        """Clients that differ in case have a folder each, for good. What 0.1.0 made under shorter tags is not made again, and
        what is new is put beside it, also when nothing of it is left.
        """
        for client in ("pc", "PC", "lab:3"):
            freezer.backup(client, 1)
        assert freezer.counts() == (3, 0, 0, 0)
        folders = {place.rpartition("~")[0]: place.partition("/")[0] for place in freezer.files()}
        assert folders.keys() == {"pc", "PC", "lab_3"}
        old, before = f"lab_3~9623417a/{named(1)}".replace(".vhd", "~01234567.vhd"), f"{folders['lab_3']}/{named(1)}"
        (freezer.frozen / old).parent.mkdir()
        (freezer.frozen / before).rename(freezer.frozen / old)
        (freezer.frozen / before).parent.rmdir()
        record = json.loads(freezer.record.read_text())
        assert record.pop("folders").keys() == {"pc", "PC", "lab:3"}
        for one in record["files"]:
            one.pop("rules")
            one["place"] = old if one["client"] == "lab:3" else one["place"]
        freezer.record.write_text(json.dumps(record))
        there = freezer.snapshot()
        assert freezer.counts() == (0, 0, 3, 0)
        assert freezer.snapshot() == there
        # Nothing but the record of the folder is left of it.
        (freezer.frozen / old).unlink()
        for image in (image for image in freezer.images if image.client == "lab:3"):
            freezer.delete(image)
        freezer.sync()
        freezer.backup("lab:3", 2)
        assert freezer.summary()["files"]["made"] == [f"lab_3~9623417a/{named(2)}"]

    def test_change_of_format(self, freezer: Freezer) -> None:
        """Another --format than before: the disks are made in it, and then those in the old one are removed."""
        for day in (1, 2):
            freezer.backup("pc", day)
        assert freezer.counts("--keep", "2") == (2, 0, 0, 0)
        assert freezer.counts("--keep", "2", "--format", "raw") == (2, 2, 0, 0)
        assert freezer.files() == [f"pc/Image_C_26030{day}-0201.img" for day in (1, 2)]
        freezer.backup("pc", 3)
        assert freezer.counts("--keep", "2", "--format", "raw") == (1, 1, 1, 0)

    def test_vmdk(self, freezer: Freezer) -> None:
        """A VMDK would be two files for a disk: that is refused in one line."""
        freezer.backup("pc", 1)
        done = freezer.sync("--format", "vmdk", check=False)
        assert (done.returncode, len(done.stderr.splitlines()), freezer.files()) == (UNSUPPORTED, 1, [])


class TestPlaces:
    @pytest.mark.parametrize("place", [".", "pc", "pc/sub", "urbackup_tmp_files"])
    def test_inside_the_store(self, freezer: Freezer, place: str) -> None:
        """A directory inside the store is refused, by whatever path: UrBackup's clean-up would delete backups for it."""
        freezer.backup("pc", 1)
        inside = freezer.store / place
        inside.mkdir(parents=True, exist_ok=True)
        (freezer.home / "link").symlink_to(inside)
        for to in (inside, freezer.home / "link"):
            done = freezer.sync(to=to, check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (EXISTS, 1), done.stderr
        assert list(freezer.store.rglob("*.vhd")) == []

    def test_link_into_the_store(self, freezer: Freezer) -> None:
        """A client's folder that is a link into the store is refused, and the disks of the others are made."""
        for client in ("pc", "mac"):
            freezer.backup(client, 1)
        (freezer.frozen / "pc").symlink_to(freezer.store / "pc")
        done = freezer.sync(check=False)
        assert (done.returncode, "UrBackup's storage" in done.stderr) == (PARTIAL, True)
        assert list(freezer.store.rglob("*.vhd")) == []
        assert freezer.files() == [f"mac/{named(1)}"]

    def test_folder_of_a_client(self, freezer: Freezer) -> None:
        """A client's folder for a store is a mistake, and its images are no clients."""
        freezer.backup("pc", 1)
        done = freezer.scope.synthfs("sync", freezer.store / "pc", "--to", freezer.frozen, check=False, env=freezer.environment)
        assert (done.returncode, "name the one above it" in done.stderr) == (NOT_FOUND, True)
        assert freezer.files() == []

    def test_no_directory(self, freezer: Freezer) -> None:
        """A directory that is not there is one line: it may be a file system that is not mounted."""
        freezer.backup("pc", 1)
        done = freezer.sync(to=freezer.home / "absent", check=False)
        assert (done.returncode, "mkdir -p" in done.stderr) == (EXISTS, True)

    def test_another_file_system(self, freezer: Freezer) -> None:
        """Nothing is copied: where data cannot be shared the disk fails, with the reason."""
        freezer.backup("pc", 1)
        done = freezer.sync(to=freezer.scope.ext4(), check=False)
        assert done.returncode == PARTIAL
        assert "file system" in done.stderr

    def test_min_free(self, scope: Scope) -> None:
        """Below --min-free nothing is made; what is outdated makes room for it, oldest first, and what is not stays."""
        disk = sampledisks.large_disk(scope.path() / "original.img", data=64 << 20)
        small = Freezer.make(scope, scope.btrfs(1 << 30), disk)
        first = small.backup("pc", 1)
        small.backup("mac", 1)
        small.sync()
        # From now on, its blocks are there for the frozen disk alone.
        small.delete(first)
        small.backup("pc", 2)
        before = small.snapshot()
        done = small.sync("--min-free", "95%", "--client", "mac", check=False)
        assert (done.returncode, small.snapshot()) == (0, before)
        scope.run(["sync", "-f", small.home])
        found = os.statvfs(small.home)
        now, wanted = found.f_bavail / found.f_blocks, (64 << 20) / (1 << 30)
        done = small.sync("--min-free", f"{(now + wanted) * 100:.1f}%")
        assert named(1) in done.stderr.splitlines()[0]
        assert small.files() == [f"mac/{named(1)}", f"pc/{named(2)}"]
        small.backup("pc", 3)
        done = small.sync("--min-free", "99%", check=False)
        assert (done.returncode, "less than 99%" in done.stderr) == (PARTIAL, True)
        assert small.files() == [f"mac/{named(1)}", f"pc/{named(2)}"], "it would not have been enough"

    @pytest.mark.parametrize("text", ["-1%", "100%", "much", "nan", ""])
    def test_min_free_is_a_percentage(self, freezer: Freezer, text: str) -> None:
        """Anything else is one line."""
        done = freezer.sync("--min-free", text, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (EXISTS, 1), done.stderr


class TestTogether:
    def test_two_runs_at_once(self, freezer: Freezer) -> None:
        """Of two runs for one directory one works, and the other says that it does not."""
        freezer.backup("pc", 1)
        first = started(freezer, "--wait", "60")
        stop(first.pid)
        second = freezer.sync(check=False)
        subprocess.run(["kill", "-CONT", str(first.pid)], check=True)
        assert (second.returncode, len(second.stderr.splitlines())) == (EXISTS, 1)
        assert "another run" in second.stderr
        assert first.wait(30) == 0
        assert freezer.files() == [f"pc/{named(1)}"]

    def test_waits_for_the_rest_of_the_disk(self, scope: Scope, mounted: Path) -> None:
        """Until UrBackup has recorded SYSVOL beside C:, nothing is frozen; then the disk is, with both of them."""
        freezer = Freezer.make(scope, mounted, sampledisks.mbr_disk(scope.path() / "original.img"), 2)
        c, sysvol = freezer.backup("pc", 1), freezer.backup("pc", 1, "SYSVOL", 1)
        with Database(scope.path("var") / "backup_server.db") as database:
            row = database.add(c)
            other = database.add(sysvol, complete=False)
            log = scope.path() / "log"
            run = started(freezer, "--wait", "60", "--database", database.path, log=log)
            assert wait_until(lambda: "waiting, 60 seconds at most" in log.read_text(), 20.0)
            time.sleep(3)
            assert (run.poll(), freezer.files()) == (None, [])
            database.execute("UPDATE backup_images SET complete = 1 WHERE id = ?", other)
            database.associate(row, other)
            assert run.wait(30) == 0
        assert read_right(scope, freezer.frozen / "pc" / named(1), freezer.disk)

    def test_waits_no_longer_than_asked(self, scope: Scope, mounted: Path) -> None:
        """A SYSVOL that is never recorded delays the disk, and does not prevent it."""
        freezer = Freezer.make(scope, mounted, sampledisks.mbr_disk(scope.path() / "original.img"), 2)
        with Database(scope.path("var") / "backup_server.db") as database:
            database.add(freezer.backup("pc", 1))
            database.add(freezer.backup("pc", 1, "SYSVOL", 1), complete=False)
            began = time.monotonic()
            assert freezer.counts("--wait", "3", "--database", database.path) == (1, 0, 0, 0)
        assert 3 < time.monotonic() - began < 30


@pytest.mark.parametrize("keep", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_thousand_images(freezer: Freezer, keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 images are frozen, and a second run finds nothing to do; the times are printed."""
    freezer.backup("pc-000", 1)
    for client in range(100):
        for day in range(1, 11):
            again(freezer, f"pc-{client:03}", day)
    times = []
    for expected in ((100 * keep, 0, 0, 0), (0, 0, 100 * keep, 0), (0, 0, 100 * keep, 0)):
        began = time.monotonic()
        assert freezer.counts("--keep", str(keep)) == expected
        times.append(round(time.monotonic() - began, 2))
    with capsys.disabled():
        print(f"\n1,000 images, --keep {keep}: frozen in {times[0]} s, again with nothing to do {times[1]} and {times[2]} s")
    assert len(freezer.files()) == 100 * keep


def again(freezer: Freezer, client: str, day: int) -> None:
    """Another backup with the bytes of the first, sharing its blocks."""
    first = freezer.store / "pc-000" / "260301-0201_Image_C"
    new = freezer.store / client / f"2603{day:02}-0201_Image_C"
    if new == first:
        return
    new.mkdir(parents=True)
    for file in first.iterdir():
        to = new / file.name.replace("260301-0201", f"2603{day:02}-0201")
        if file.suffix == ".raw":
            freezer.scope.run(["cp", "--reflink=always", "-p", file, to])
        else:
            shutil.copy2(file, to)


def whole_disk(freezer: Freezer, place: str) -> bool:
    """Whether a frozen file has the bytes of C:, and is a disk of the original's length; D: is not in it."""
    start, length = freezer.disk.partition(1).start, freezer.disk.ntfs_length(1)
    ours, original = freezer.frozen / place, freezer.disk.path
    compare: list[Argument] = ["cmp", f"--ignore-initial={start}", f"--bytes={length}", ours, original]
    same = freezer.scope.run(compare, check=False).returncode == 0
    return same and ours.stat().st_size == freezer.disk.length + 512


def started(freezer: Freezer, *options: Argument, log: Path | None = None) -> "subprocess.Popen[bytes]":
    argv: list[Argument] = [sys.executable, "-m", "synthfs", "sync", freezer.store, "--to", freezer.frozen, "--min-free", "0%"]
    return freezer.scope.start([*argv, *options], env=freezer.environment, log=log)


def stop(pid: int) -> None:
    """Stops a run once it has taken the lock."""
    locks = Path("/proc/locks")
    assert wait_until(lambda: f" {pid} " in locks.read_text(), 20.0, pause=0.0)
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
