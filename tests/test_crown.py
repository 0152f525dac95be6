"""Proves the crown: mounted bytes are materialized bytes are the bytes of the original disk.

Expected values are the original disk images and what sgdisk, sfdisk, qemu-img, vhdiinfo and ntfsfix say.
Not for: two runs and their siblings; see test_crown_runs.
"""

import json
import zlib
from collections.abc import Iterator

import pytest

import bytewise
import crown
import makembr
import need
import sampledisks
from crown import FILES, FOOTER, SAMPLES, Bench
from lab import TEXT, Lab, Scope
from makedisk import OriginalDisk
from makestore import Store
from makevolume import SECTOR

GPT_FILES = [file for file in FILES if file[0] not in ("mbr", "xp", "boot-manager")]
MBR_FILES = [file for file in FILES if file not in GPT_FILES]


@pytest.fixture(scope="module")
def bench(lab: Lab) -> Iterator[Bench]:
    need.fuse()
    yield from crown.lay(lab)


@pytest.mark.parametrize("name", SAMPLES)
def test_names(bench: Bench, name: str) -> None:
    """Every imaged volume but ESP and SYSVOL has a file of its name, once as it was and once with a new identity."""
    expected = [f"{bench.images[file].raw.stem}.vhd" for file in FILES if file[0] == name]
    client = bench.mountpoint / name
    assert bytewise.names(bench.scope, client) == sorted([*expected, "new-identity"])
    assert bytewise.names(bench.scope, client / "new-identity") == sorted(expected)


@pytest.mark.parametrize(("name", "letter"), FILES)
class TestBytes:
    """Byte for byte, on disks of which the fixture knows every byte."""

    def test_mounted_is_the_original(self, bench: Bench, name: str, letter: str) -> None:
        """The mounted file without its footer is the original disk."""
        disk, file = bench.disks[name], bench.file(name, letter)
        assert bytewise.size(bench.scope, file) == disk.served_length + FOOTER
        assert bytewise.differences(bench.scope, file, disk.path, disk.length) == []

    def test_materialized_is_the_original(self, bench: Bench, name: str, letter: str) -> None:
        """The materialized file without its footer is the original disk."""
        disk, file = bench.disks[name], bench.frozen(name, letter)
        assert file.stat().st_size == disk.served_length + FOOTER
        assert bytewise.differences(bench.scope, file, disk.path, disk.length) == []

    @pytest.mark.parametrize("renewed", [False, True])
    def test_mounted_is_materialized(self, bench: Bench, name: str, letter: str, renewed: bool) -> None:
        """Both are the same file to the last byte of the footer, with the old identity and with the new one."""
        mounted = bench.file(name, letter, renewed=renewed)
        frozen = bench.frozen(name, letter, renewed=renewed)
        length = frozen.stat().st_size
        assert bytewise.size(bench.scope, mounted) == length
        # With the old identity, all but the footer has been compared with the original, for both.
        start = 0 if renewed else bench.disks[name].served_length
        assert bytewise.differences(bench.scope, mounted, frozen, length, start=start) == []


@pytest.mark.parametrize(("name", "letter"), FILES)
class TestOtherPrograms:
    """What others say of the files."""

    @pytest.mark.parametrize("where", ["mounted", "materialized"])
    def test_size_in_the_footer(self, bench: Bench, name: str, letter: str, where: str) -> None:
        """qemu-img and vhdiinfo read a fixed VHD of exactly the original's size."""
        need.tool("qemu-img", "vhdiinfo")
        file = bench.file(name, letter) if where == "mounted" else bench.frozen(name, letter)
        info = json.loads(bench.scope.run(["qemu-img", "info", "-f", "vpc", "--output=json", file]).stdout)
        assert info["virtual-size"] == bench.disks[name].served_length
        said = bench.scope.run(["vhdiinfo", file]).stdout.replace("\t", "")
        assert "Disk type: Fixed" in said
        assert f"({bench.disks[name].served_length} bytes)" in said

    @pytest.mark.parametrize("renewed", [False, True])
    def test_tables_are_sound(self, bench: Bench, name: str, letter: str, renewed: bool) -> None:
        """`sgdisk -v` finds no problem on the bare disk of a GPT, `sfdisk --verify` none on that of an MBR."""
        bare = bench.bare(bench.frozen(name, letter, renewed=renewed))
        if bench.disks[name].scheme == "gpt":
            assert "No problems found" in bench.scope.run(["sgdisk", "-v", bare]).stdout
        else:
            assert "No errors detected." in bench.scope.run(["sfdisk", "--verify", bare]).stdout

    def test_ntfs_is_sound(self, bench: Bench, name: str, letter: str) -> None:
        """`ntfsfix -n` finds boot sector, its backup and MFT in order on every NTFS partition."""
        need.tool("ntfsfix")
        for one in bench.disks[name].partitions:
            if one.fs == "ntfs":
                said = bench.scope.run(["ntfsfix", "-n", bench.volume(bench.frozen(name, letter), one)]).stdout
                assert "Checking the alternate boot sector... OK" in said
                assert "processed successfully" in said


class TestNewIdentity:
    """What differs from the original, and only that."""

    @pytest.mark.parametrize(("name", "letter"), GPT_FILES)
    def test_gpt(self, bench: Bench, name: str, letter: str) -> None:
        """The GUIDs of disk and partitions differ in both copies, with their checksums, and nothing else."""
        disk = bench.disks[name]
        expected = crown.gpt_identity_ranges(disk, empty=(2,) if name == "empty-partition" else ())
        if any(disk.read(440, 4)):
            expected["signature of the protective MBR"] = 440, 444
        _differs_exactly(bench, name, letter, expected)
        assert ("signature of the protective MBR" in expected) == (name == "empty-partition")

    @pytest.mark.parametrize(("name", "letter"), MBR_FILES)
    def test_mbr(self, bench: Bench, name: str, letter: str) -> None:
        """The disk signature differs, and nothing else."""
        _differs_exactly(bench, name, letter, {"signature": (440, 444)})

    def test_empty_partition_is_hidden(self, bench: Bench) -> None:
        """A data partition without an image gets no drive letter, lest Windows offer to format it."""
        bare = bench.bare(bench.frozen("empty-partition", "C", renewed=True))
        table = json.loads(bench.scope.run(["sfdisk", "--json", bare]).stdout)["partitiontable"]
        assert [entry.get("attrs") for entry in table["partitions"]] == [None, "GUID:62,63"]

    @pytest.mark.parametrize(("name", "letter"), GPT_FILES)
    def test_checksums(self, bench: Bench, name: str, letter: str) -> None:
        """The CRC-32 of header and entries hold in both copies, as computed here."""
        disk, file = bench.disks[name], bench.frozen(name, letter, renewed=True)
        with file.open("rb") as raw:
            for position in (SECTOR, disk.length - SECTOR):
                raw.seek(position)
                header = raw.read(92)
                raw.seek(int.from_bytes(header[72:80], "little") * SECTOR)
                entries = raw.read(128 * 128)
                assert int.from_bytes(header[88:92], "little") == zlib.crc32(entries)
                assert int.from_bytes(header[16:20], "little") == zlib.crc32(header[:16] + bytes(4) + header[20:])

    def test_no_two_are_alike(self, bench: Bench) -> None:
        """No identifier of one file is that of another file, of an original, or of another partition."""
        found: list[str] = []
        for name, letter in FILES:
            bare = bench.bare(bench.frozen(name, letter, renewed=True))
            table = json.loads(bench.scope.run(["sfdisk", "--json", bare]).stdout)["partitiontable"]
            if bench.disks[name].scheme == "gpt":
                found += crown.identifiers(table)
                assert all(crown.is_guid(one) for one in crown.identifiers(table))
            else:
                found.append(table["id"])
                assert int(table["id"], 16) != 0
        for name in SAMPLES:
            # "no-backup-gpt" is made as "two-volumes" is.
            table = json.loads(bench.scope.run(["sfdisk", "--json", bench.disks[name].path]).stdout)["partitiontable"]
            if name != "no-backup-gpt":
                found += crown.identifiers(table) if table["label"] == "gpt" else [table["id"]]
        assert len(found) > 50
        assert sorted(found) == sorted(set(found))

    def test_footers_have_ids_of_their_own(self, bench: Bench) -> None:
        """No two VHD files share the unique id of their footers, which differencing disks bind to."""
        files = [bench.frozen(*file, renewed=renewed) for file in FILES for renewed in (False, True)]
        ids = {bench.scope.run(["tail", "-c", f"{FOOTER}", file]).stdout.encode(**TEXT)[68:84] for file in files}
        assert len(ids) == len(files)
        assert bytes(16) not in ids


def test_extended_partition(scope: Scope) -> None:
    """Of an MBR disk with logical drives all but the container comes back; there is an empty table, and a note says so."""
    disk = sampledisks.extended_disk(scope.path() / "disk.img")
    store = Store(scope.btrfs() / "urbackup")
    client = store.client("pc")
    c = client.backup(disk, 1)
    mounted = scope.synthfs_mount(store.root) / "pc"
    container = disk.partition(2)
    file, zero = mounted / f"{c.raw.stem}.vhd", scope.sparse(disk.length, "zero")
    assert bytewise.size(scope, file) == disk.served_length + FOOTER
    found = bytewise.differences(scope, file, disk.path, disk.length)
    assert bytewise.outside(found, [(container.start, container.end)]) == []
    table = bytewise.differences(scope, file, zero, disk.length, start=container.start)
    assert table == [(container.start + 510, container.start + 512)]
    notes = json.loads(scope.synthfs("show", c.raw, "--json").stdout)["notes"]
    assert any("partition 2 (extended) is zero" in note["text"] and note["warning"] for note in notes)


def test_logical_drive(scope: Scope) -> None:
    """A logical drive, whose place nobody recorded, gets a disk of its own, even if a primary has the same length."""
    disk = sampledisks.extended_disk(scope.path() / "disk.img")
    store = Store(scope.btrfs() / "urbackup")
    e, drive = store.client("pc").backup(disk, 5, "E"), disk.partition(5)
    assert drive.length == disk.partition(1).length
    own = json.loads(scope.synthfs("show", e.raw, "--json").stdout)
    (only,) = own["partitions"]
    scope.synthfs("materialize", e.raw, "-o", store.root.parent / "own.vhd", "--reflink", "auto")
    bare = scope.path("bare") / "disk.img"
    scope.run(["cp", "--sparse=always", store.root.parent / "own.vhd", bare])
    scope.run(["truncate", f"--size=-{FOOTER}", bare])
    assert "No problems found" in scope.run(["sgdisk", "-v", bare]).stdout
    with bare.open("rb") as raw:
        raw.seek(only["start"])
        assert raw.read(e.length + SECTOR) == disk.read(drive.start, e.length + SECTOR)


def test_boot_sector_decides(scope: Scope) -> None:
    """A partition number that fits no partition does no harm where the boot sector names the place."""
    disk: OriginalDisk = sampledisks.two_volume_disk(scope.path() / "disk.img")
    store = Store(scope.btrfs() / "urbackup")
    sidecar = bytearray(makembr.capture(disk, 3))
    sidecar[6:10] = (7).to_bytes(4, "little")
    store.client("pc").backup(disk, 1, "C")
    image = store.client("pc").backup(disk, 3, "D", mbr=bytes(sidecar))
    mounted = scope.synthfs_mount(store.root) / "pc" / f"{image.raw.stem}.vhd"
    assert bytewise.differences(scope, mounted, disk.path, disk.length) == []


def _differs_exactly(bench: Bench, name: str, letter: str, expected: dict[str, tuple[int, int]]) -> None:
    """Each expected range holds a difference, no other byte of the disk does; in the footer id and checksum alone."""
    disk = bench.disks[name]
    renewed = bench.frozen(name, letter, renewed=True)
    found = bytewise.differences(bench.scope, renewed, disk.path, disk.length)
    assert bytewise.outside(found, expected.values()) == []
    same = [what for what, (start, end) in expected.items() if not any(start <= a < end for a, _ in found)]
    assert same == []
    end = disk.served_length + FOOTER
    footer = bytewise.differences(bench.scope, renewed, bench.frozen(name, letter), end, start=disk.served_length)
    assert footer
    assert bytewise.outside(footer, [(disk.served_length + 64, disk.served_length + 84)]) == []
