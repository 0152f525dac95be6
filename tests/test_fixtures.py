"""Proves the fixtures themselves: against the genuine store, the real tools, and the kernel.

Not for: synthfs, which nothing here imports.
"""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import makeimage
import makembr
import need
import sampledisks
from genuine import GenuineStore
from lab import Lab, LeftoverError, Scope
from ledger import NAME, ForeignDirectoryError, loops_below, mounts_below
from makedatabase import Database
from makedisk import OriginalDisk, rewrite_volume
from makestore import Image, Store, escaped
from makevolume import SECTOR
from processes import Argument, CommandTimeoutError, Identity, marked, run, wait_until

# Partition number -> where it is on the genuine source disk, from its sgdisk-p.txt, in sectors.
GENUINE_PARTITIONS = {1: (2048, 204800), 3: (239616, 2457600), 4: (2697216, 614400)}
TESTS = Path(__file__).resolve().parent


class TestAgainstTheGenuineStore:
    """What UrBackup wrote is what our writers write."""

    @pytest.mark.parametrize(
        ("letter", "number", "filesystem"),
        [
            ("C", 3, "Basic\\ data\\ partition"),
            ("SYSVOL", 1, "EFI\\ system\\ partition"),
            ("ESP", 1, "EFI\\ system\\ partition"),
            ("_mnt_linuxdata", 4, "linux-data"),
        ],
    )
    def test_every_mbr_file(self, genuine: GenuineStore, letter: str, number: int, filesystem: str) -> None:
        disk = genuine.source(0).image
        start, length = (sectors * SECTOR for sectors in GENUINE_PARTITIONS[number])
        expected = makembr.mbr_bytes(
            version=1,
            device_number=3,
            partition_number=number,
            serial=makembr.linux_uuid(disk, start, length),
            volume_name=f"LINUX:/dev/loop3p{number}",
            filesystem=filesystem,
            mbr_data=_head(disk, 512),
            gpt=makembr.GptCopy.read(disk),
        )
        files = list(genuine.root.glob(f"gpthost/*/Image_{letter}_*.mbr"))
        assert files
        for file in files:
            assert file.read_bytes() == expected, file

    def test_mbr_file_of_a_whole_disk(self, genuine: GenuineStore) -> None:
        disk = genuine.source(0).image
        (file,) = genuine.root.glob("gpthost/*/Image__dev_loop3_*.mbr")
        assert file.read_bytes() == makembr.mbr_bytes(
            version=1,
            device_number=3,
            partition_number=-1,
            serial="11111111-2222-3333-4444-5555aaaa0001",
            volume_name="LINUX:/dev/loop3",
            filesystem="gpt",
            mbr_data=_head(disk, 512),
            gpt=makembr.GptCopy.read(disk),
        )

    @pytest.mark.parametrize("letter", ["C", "SYSVOL"])
    def test_hash_file(self, genuine: GenuineStore, letter: str) -> None:
        """All complete chunks; the tail depends on the way of transfer."""
        raw = genuine.image("0254", letter)
        chunks = (raw.stat().st_size - makeimage.HEADER) // makeimage.CHUNK
        theirs = raw.with_name(f"{raw.name}.hash").read_bytes()
        ours = makeimage.hash_bytes(raw, block=4096)
        assert chunks > 100
        assert ours[: chunks * 32] == theirs[: chunks * 32]
        assert len(ours) == len(theirs)

    def test_fake_mbr(self, genuine: GenuineStore) -> None:
        raw = genuine.image("0254", "C")
        header = _head(raw, makeimage.HEADER)
        signature = int.from_bytes(header[440:444], "little")
        assert hashlib.sha256(makeimage.BOOT_CODE).hexdigest() == makeimage.BOOT_CODE_SHA256
        length = raw.stat().st_size - makeimage.HEADER
        assert header == makeimage.fake_mbr(length, signature).ljust(makeimage.HEADER, b"\0")

    def test_schema(self, genuine: GenuineStore, scope: Scope) -> None:
        """Our tables have the columns of the real ones, in their order."""
        theirs = scope.path("db") / "backup_server.db"
        for suffix in ("", "-wal"):
            theirs.with_name(f"{theirs.name}{suffix}").write_bytes(
                genuine.database.with_name(f"{genuine.database.name}{suffix}").read_bytes()
            )
        with Database(scope.path("ours") / "backup_server.db") as ours:
            for table in ("clients", "backup_images", "assoc_images", "misc"):
                assert _columns(ours.path, table) == _columns(theirs, table) != []


class TestDisks:
    """The original disks are what Windows' own tools, or those that stand for them, take for healthy."""

    @pytest.mark.parametrize(
        "make",
        [sampledisks.gpt_disk, sampledisks.two_volume_disk, sampledisks.small_ntfs_disk, sampledisks.linux_disk],
    )
    def test_sgdisk_finds_no_problem(self, scope: Scope, make: Callable[[Path], OriginalDisk]) -> None:
        disk = make(scope.path() / "disk.img")
        assert "No problems found" in scope.run(["sgdisk", "-v", disk.path]).stdout
        _table_is_as_specified(disk, scope)

    @pytest.mark.parametrize("make", [sampledisks.mbr_disk, sampledisks.xp_disk, sampledisks.extended_disk])
    def test_sfdisk_reads_the_mbr(self, scope: Scope, make: Callable[[Path], OriginalDisk]) -> None:
        disk = make(scope.path() / "disk.img")
        scope.run(["sfdisk", "--verify", disk.path])
        _table_is_as_specified(disk, scope)
        assert disk.read(0, 440).rstrip(b"\0") == disk.boot_code.rstrip(b"\0")

    def test_ntfs_backup_boot_sector(self, scope: Scope) -> None:
        """It is a copy of sector 0, right behind what NTFS calls its size, one sector before the partition's end."""
        disk = sampledisks.mbr_disk(scope.path() / "disk.img")
        for one in disk.partitions:
            assert disk.ntfs_length(one.number) == one.length - SECTOR
            assert disk.read(one.end - SECTOR, SECTOR) == disk.boot_sector(one.number)
            assert int.from_bytes(disk.boot_sector(one.number)[28:32], "little") == one.start // SECTOR

    def test_ntfs_smaller_than_its_partition(self, scope: Scope) -> None:
        disk = sampledisks.small_ntfs_disk(scope.path() / "disk.img")
        (one,) = disk.partitions
        end = disk.ntfs_length(1)
        assert end == (one.fs_length or 0) - SECTOR < one.length - SECTOR
        assert disk.read(one.start + end, SECTOR) == disk.boot_sector(1)
        assert not any(disk.read(one.start + end + SECTOR, one.length - end - SECTOR))

    def test_files_are_in_the_volumes(self, scope: Scope) -> None:
        """The kernel's (or ntfs-3g's) reading of the volumes has every file with its content."""
        need.tool("ntfscat", "mtype")
        disk = sampledisks.gpt_disk(scope.path() / "disk.img")
        for number in (1, 3):
            one = disk.partition(number)
            volume = scope.path() / "volume.img"
            scope.run(["dd", f"if={disk.path}", f"of={volume}", "bs=1M", f"skip={one.start >> 20}",
                       f"count={one.length >> 20}", "conv=sparse"])  # fmt: skip
            for known in one.files:
                if one.fs == "ntfs":
                    argv: list[Argument] = ["ntfscat", "-f", volume, known.name]
                else:
                    argv = ["mtype", "-i", volume, f"::{known.name}"]
                assert hashlib.sha256(run(argv).stdout).hexdigest() == known.sha256, known


class TestStore:
    """The store has UrBackup's shapes."""

    def test_image_on_btrfs(self, scope: Scope) -> None:
        disk = sampledisks.gpt_disk(scope.path() / "disk.img")
        store = Store(scope.btrfs() / "urbackup")
        image = store.client("pc").backup(disk, 3)
        assert image.raw == store.root / "pc/260301-0201_Image_C/Image_C_260301-0201.raw"
        assert image.raw.stat().st_size == image.length + makeimage.HEADER == disk.ntfs_length(3) + makeimage.HEADER
        assert _holds_the_volume(image.raw, disk, 3)
        assert "ro=true" in scope.run(["btrfs", "property", "get", "-ts", image.directory, "ro"]).stdout
        assert _suffixes(image) == {".mbr", ".hash", ".cbitmap", ".bitmap", ".sync"}
        # The header's 1023 sectors of zeroes are no hole.
        with image.raw.open("rb") as raw:
            assert os.lseek(raw.fileno(), 0, os.SEEK_HOLE) >= makeimage.HEADER
        assert int.from_bytes(image.sidecar(".mbr").read_bytes()[6:10], "little") == 3

    def test_incremental_is_a_snapshot(self, scope: Scope) -> None:
        disk = sampledisks.two_volume_disk(scope.path() / "disk.img")
        client = Store(scope.btrfs()).client("pc")
        first = client.backup(disk, 3, "D")
        before = first.raw.read_bytes()
        changed = rewrite_volume(disk, 3, label="Neu", files=())
        second = client.backup(changed, 3, "D", "260302-0201", parent=first)
        assert second.incremental == 1
        assert sorted(file.name for file in second.directory.iterdir())[0] == "Image_D_260302-0201.raw"
        assert first.raw.read_bytes() == before
        assert _holds_the_volume(second.raw, changed, 3)
        assert not _holds_the_volume(first.raw, changed, 3)

    def test_other_shapes(self, scope: Scope) -> None:
        """ZFS' symlink, a bare client directory, an aborted backup, a Linux device, names left out."""
        disk = sampledisks.linux_disk(scope.path() / "disk.img")
        store = Store(scope.path("store"), owner=(999, 994))
        client = store.client("host")
        link = client.backup(disk, 1, "ESP", layout="symlink", client="linux")
        assert (client.directory / "260301-0201_Image_ESP").is_symlink()
        assert link.raw.stat().st_uid == 999
        bare = client.backup(disk, 5, "/dev/sda5", layout="client", client="linux")
        assert bare.raw == client.directory / "Image__dev_sda5_260301-0201.raw"
        assert b"LINUX:/dev/sda5" in bare.sidecar(".mbr").read_bytes()
        aborted = client.backup(disk, 5, "/dev/sda5", "260302-0201", complete=False, client="linux")
        assert not _suffixes(aborted) & {".sync", ".hash"}
        without = client.backup(disk, 1, "SYSVOL", client="linux", without=(".mbr", ".sync"))
        assert _suffixes(without) == {".hash", ".cbitmap", ".bitmap"}
        store.delete(link)
        assert not link.raw.exists()

    def test_mbr_files_of_a_windows_client(self, scope: Scope) -> None:
        """Decimal volume serial, label, file system, and the ordinal where a slot is empty."""
        gpt = sampledisks.gpt_disk(scope.path() / "disk.img")
        serial = int(scope.run(["blkid", "-p", "-o", "value", "-s", "UUID", "-O", f"{1 << 20}", gpt.path])
                     .stdout.strip().replace("-", ""), 16)  # fmt: skip
        assert _strings(makembr.capture(gpt, 1)) == [f"{serial}", "SYSTEM", "FAT32"]
        two = sampledisks.two_volume_disk(scope.path() / "disk.img")
        sidecar = makembr.capture(two, 3, device_number=2)
        assert struct.unpack_from("<BBii", sidecar) == (1, 1, 2, 2)
        serial = int.from_bytes(two.boot_sector(3)[0x48:0x4C], "little")
        assert _strings(sidecar) == [f"{serial}", "Daten", "NTFS"]
        fallback = makembr.capture(two, 3, backup_readable=False)
        assert len(fallback) == len(sidecar)
        assert fallback.count(b"EFI PART" + sidecar[sidecar.index(b"EFI PART") + 8 :][:504]) == 2

    def test_names_are_escaped(self) -> None:
        assert [escaped(name) for name in ("C", "C:", "D:\\", "/dev/sda5", "SYSVOL", "/")] == [
            "C", "C", "D", "_dev_sda5", "SYSVOL", "_",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("value", "expected"), [(512, "8400"), (32256, "81fc00"), (127, "7f"), (128, "8100"), (0, "00")]
    )
    def test_varint(self, value: int, expected: str) -> None:
        """The facts' own examples, and the edges of one byte."""
        assert makembr._varint(value).hex() == expected

    def test_mbr_file_has_the_length_of_the_worked_example(self) -> None:
        made = makembr.mbr_bytes(
            version=0, device_number=0, partition_number=2, serial="1234567890", volume_name="OS", filesystem="NTFS",
            mbr_data=bytes(512), extra=(512, bytes(32256)),
        )  # fmt: skip
        assert len(made) == 32819


class TestDatabase:
    """The database is in each state that a reader may meet."""

    def test_rows_only_in_the_log(self, scope: Scope) -> None:
        disk = sampledisks.xp_disk(scope.path() / "disk.img")
        image = Store(scope.path("store")).client("xp").backup(disk, 1)
        with Database(scope.path("var") / "backup_server.db") as database:
            row = database.add(image)
            copy = database.nightly_copy(scope.path("nightly"))
            dead = database.dead_copy(scope.path("dead"))
        assert sorted(file.name for file in copy.parent.iterdir()) == ["backup_server.db", "backup_server.db-wal"]
        assert dead.with_name(f"{dead.name}-shm").exists()
        alone = scope.path("alone") / "backup_server.db"
        alone.write_bytes(copy.read_bytes())
        assert _query(alone, "SELECT * FROM backup_images") == []
        assert _query(copy, "SELECT id, complete, letter, delete_pending FROM backup_images") == [(row, 1, "C:", None)]

    def test_running_server_keeps_the_log(self, scope: Scope) -> None:
        with Database(scope.path("var") / "backup_server.db") as database:
            server = database.running_server(scope)
            database.add_client("pc")
        assert server.poll() is None
        for suffix in ("-wal", "-shm"):
            assert database.path.with_name(f"{database.path.name}{suffix}").stat().st_size > 0
        assert _query(database.path, "SELECT name FROM clients") == [("pc",)]


class TestLab:
    """What the laboratory promises."""

    def test_scope_takes_everything_down(self, lab: Lab) -> None:
        made: list[Scope] = []

        def fail() -> None:
            with lab.scope("inner") as inner:
                made.append(inner)
                assert os.path.ismount(inner.ext4())
                inner.start(["sleep", "1000"])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        (inner,) = made
        assert [*mounts_below(inner.directory), *loops_below(inner.directory)] == []
        assert list(marked(lab.directory)) == []
        assert not inner.directory.exists()

    def test_command_that_hangs_is_killed_and_named(self, scope: Scope) -> None:
        with pytest.raises(CommandTimeoutError, match="sleep 1000"):
            scope.run(["sleep", "1000"], timeout=0.2)

    def test_daemon_that_keeps_the_output_open_does_not_hang(self, scope: Scope) -> None:
        assert scope.run(["sh", "-c", "sleep 3 & echo started"], timeout=2).stdout == "started\n"

    def test_leftover_fails_the_run(self, tmp_path: Path) -> None:
        laboratory = Lab(tmp_path)
        orphan = laboratory.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]).stdout
        with pytest.raises(LeftoverError, match=orphan.strip()):
            laboratory.close()
        assert Identity.of(int(orphan)) is None
        assert not list(tmp_path.iterdir())

    def test_killed_run_is_cleaned_by_the_next(self, tmp_path: Path, lab: Lab) -> None:
        """Loop device, mount and process of a run that got SIGKILL go; those of a living run stay."""
        need.loop()
        script = (
            "import lab, sys, time, pathlib\n"
            "one = lab.Lab(pathlib.Path(sys.argv[1]))\n"
            "mounted = one.ext4(64 << 20)\n"
            "child = one.start(['sleep', '1000'])\n"
            "print(one.directory, child.pid, flush=True)\n"
            "time.sleep(1000)\n"
        )
        argv: list[Argument] = [sys.executable, "-c", script, tmp_path]
        doomed = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)})
        with doomed:
            assert doomed.stdout is not None
            directory, pid = doomed.stdout.readline().split()
            assert len(mounts_below(Path(directory))) == len(loops_below(Path(directory))) == 1
            with Lab(tmp_path):
                assert mounts_below(Path(directory)), "a living run was touched"
            doomed.send_signal(signal.SIGKILL)
        with Lab(tmp_path) as successor:
            assert successor.resisted == []
            assert [*mounts_below(Path(directory)), *loops_below(Path(directory))] == []
            assert wait_until(lambda: Identity.of(int(pid)) is None, 2.0)
            assert not Path(directory).exists()

    @pytest.mark.parametrize("how", ["others may write", "of another user", "a link", "a file"])
    def test_ledger_that_others_could_have_written(self, scope: Scope, tmp_path: Path, how: str) -> None:
        """In a directory that somebody else may have made no ledger is believed: what it names lives, and the run fails."""
        need.root()
        victim = scope.start(["sleep", "1000"])
        who = Identity.of(victim.pid)
        assert who is not None
        base = tmp_path / "base"
        planted = base / "1-x"
        planted.mkdir(parents=True)
        (planted / NAME).write_text(_of_a_dead_run(who))
        if how == "others may write":
            base.chmod(0o1777)
        elif how == "of another user":
            shutil.chown(base, "nobody")
        else:
            base.rename(tmp_path / "elsewhere")
            base.symlink_to("elsewhere") if how == "a link" else base.touch()
        with pytest.raises(ForeignDirectoryError, match="base"):
            Lab(base)
        assert who.alive

    @pytest.mark.parametrize("what", ["directory", "ledger", "link"])
    def test_foreign_ledger_in_an_own_directory(self, scope: Scope, tmp_path: Path, what: str) -> None:
        """Nor is one believed that belongs to somebody else, or is a link; it stays where it is."""
        need.root()
        victim = scope.start(["sleep", "1000"])
        who = Identity.of(victim.pid)
        assert who is not None
        planted = tmp_path / "1-x"
        planted.mkdir()
        (planted / NAME).write_text(_of_a_dead_run(who))
        if what == "link":
            (planted / NAME).rename(tmp_path / "target")
            (planted / NAME).symlink_to(tmp_path / "target")
        else:
            shutil.chown(planted if what == "directory" else planted / NAME, "nobody")
        with Lab(tmp_path):
            assert who.alive
            assert planted.exists()

    def test_process_of_another_boot(self, scope: Scope) -> None:
        """A pid and a start time that come again after a reboot are another process."""
        found = Identity.of(scope.start(["sleep", "1000"]).pid)
        assert found is not None
        assert not replace(found, boot="another").alive

    def test_nothing_outside_is_mounted(self, scope: Scope, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not below"):
            scope.mount("tmpfs", tmp_path, fstype="tmpfs")


def _of_a_dead_run(victim: Identity) -> str:
    """The ledger of a run that is dead and has started `victim`."""
    dead = {"event": "made", "kind": "run", "pid": victim.pid, "start": victim.start + 1}
    return "".join(json.dumps(line) + "\n" for line in (dead, {**dead, "kind": "process", "start": victim.start}))


def _table_is_as_specified(disk: OriginalDisk, scope: Scope) -> None:
    table = json.loads(scope.run(["sfdisk", "--json", disk.path]).stdout)["partitiontable"]
    assert table["id"].removeprefix("0x").lower() == disk.identity.lower()
    found = [(entry["start"] * SECTOR, entry["size"] * SECTOR, entry["type"].lower()) for entry in table["partitions"]]
    assert found == [(one.start, one.length, one.type.lower()) for one in disk.partitions]


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _holds_the_volume(raw: Path, disk: OriginalDisk, number: int) -> bool:
    content = raw.read_bytes()[makeimage.HEADER :]
    return content == disk.read(disk.partition(number).start, len(content))


def _strings(sidecar: bytes) -> list[str]:
    """Fields 5 to 7: serial number, volume name, file system."""
    found, offset = [], 10
    for _ in range(3):
        (length,) = struct.unpack_from("<I", sidecar, offset)
        found.append(sidecar[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return found


def _suffixes(image: Image) -> set[str]:
    """Of the sidecars that are there."""
    return {file.suffix for file in image.directory.iterdir() if file.name.startswith(f"{image.raw.name}.")}


def _query(database: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def _columns(database: Path, table: str) -> list[object]:
    return [row[1] for row in _query(database, f"PRAGMA table_info({table})")]
