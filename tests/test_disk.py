"""Generated disks, for volumes whose own disk is not known, and disks that were imaged as a whole.

Not for: rebuilt disks (test_layout for their tables, test_crown for their bytes). Units: bytes.
"""

import json
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

import handmade
import need
import sparse
from handmade import GIB, KIB, MIB, Slot, ext_boot, gpt, image, mbr_sidecar, ntfs_boot, record, sidecar_bytes
from processes import run
from synthfs.errors import FormatError
from synthfs.extents import Bytes, FileRange
from synthfs.model import ImageFacts
from synthfs.plan.container import Format, fitting
from synthfs.plan.disk import Disk, assemble
from synthfs.plan.volume import Planner


def disk_of(facts: ImageFacts) -> Disk:
    return assemble(Planner().volume(facts), {})


def written(disk: Disk, path: Path) -> Path:
    """The disk as a file, with holes where its image would be."""
    sparse.create(path, disk.length)
    with path.open("r+b") as file:
        for offset, extent in disk.extent_map():
            if isinstance(extent, Bytes):
                file.seek(offset)
                file.write(extent.data)
    return path


@pytest.mark.parametrize(
    ("length", "boot"),
    [(MIB, bytes(4096)), (700 * MIB - 512, ntfs_boot(700 * MIB - 512, 2048))],
    ids=["small", "NTFS of 700 MiB"],
)
def test_sgdisk_finds_no_problem(tmp_path: Path, length: int, boot: bytes) -> None:
    """`sgdisk -v` is content, and sfdisk sees one partition from sector 1024 on that holds the volume."""
    need.tool("sgdisk", "sfdisk")
    disk = disk_of(image(length=length, boot=boot))
    file = written(disk, tmp_path / "disk")
    assert "No problems found" in run(["sgdisk", "-v", file]).stdout.decode()
    (partition,) = json.loads(run(["sfdisk", "-J", file]).stdout)["partitiontable"]["partitions"]
    assert partition["start"] == 1024
    assert length <= partition["size"] * 512 <= length + 512


@pytest.mark.parametrize("length", [512, MIB, 255 * MIB, 256 * MIB, 3 * GIB + 512])
def test_disk_and_file_offsets_agree(length: int) -> None:
    """The volume lies at 512 KiB on the disk as in its `.raw`, so that every file system can share it; from 256 MiB on."""
    disk = disk_of(image(length=length))
    ranges = [(offset, extent) for offset, extent in disk.extent_map() if isinstance(extent, FileRange)]
    assert [(offset, extent.offset, extent.length) for offset, extent in ranges] == [(512 * KIB, 512 * KIB, length)]
    assert disk.length >= max(256 * MIB, length + 512 * KIB + 33 * 512)
    assert disk.length % 512 == 0


NTFS, FAT, EXT = ntfs_boot(MIB - 512), ntfs_boot(0)[:3] + b"MSDOS5.0\0\2\1\1\0\2" + bytes(4) + b"\xf8" + bytes(488), ext_boot()
EXFAT = (b"\xeb\x76\x90EXFAT   " + bytes(97) + b"\x09").ljust(510, b"\0")
REFS, LOCKED = (b"\0\0\0ReFS\0\0\0\0" + bytes(500)), b"\xeb\x58\x90-FVE-FS-" + bytes(499) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("letter", "boot", "kind"),
    [
        *(("C", boot, handmade.BASIC) for boot in (NTFS, FAT + b"\x55\xaa", EXFAT + b"\x55\xaa", REFS, LOCKED)),
        ("ESP", FAT + b"\x55\xaa", handmade.ESP),
        *(("_dev_sda5", boot, handmade.LINUX) for boot in (EXT, bytes(4096), b"XFSB" + bytes(4092))),
    ],
)
def test_the_type_is_that_of_the_file_system(letter: str, boot: bytes, kind: UUID) -> None:
    """Basic data for what Windows reads, EFI system for an ESP, Linux for the rest."""
    layout = disk_of(image(letter=letter, boot=boot)).layout
    assert layout.gpt is not None
    assert layout.gpt.entries[0].type == kind


def test_the_identity_is_stable_and_its_own() -> None:
    """The same GUIDs each time, whatever inode and device the file has; other ones for every other image, none zero."""

    def guids(facts: ImageFacts) -> set[UUID]:
        table = disk_of(facts).layout.gpt
        assert table is not None
        return {table.primary.disk_guid, table.entries[0].guid}

    assert guids(image()) == guids(image(inode=999))
    three = [guids(facts) for facts in (image(), image(stamp="260302-0201"), image(client="pc2"))]
    assert len(set.union(*three)) == 6
    assert UUID(int=0) not in set.union(*three)


def test_the_backup_boot_sector_of_a_lone_ntfs_volume_is_there() -> None:
    """The sector that UrBackup does not save follows the last one that NTFS counts, inside the partition."""
    length = 300 * MIB - 512
    disk = disk_of(image(length=length, boot=ntfs_boot(length, 2048)))
    assert list(disk.extent_map().pieces(512 * KIB + length, 512)) == [Bytes(ntfs_boot(length, 2048)[:512])]
    assert disk.layout.partitions[0].length == length + 512


ONE = gpt(1 << 18, Slot(1, 2048, 4095))


@pytest.mark.parametrize(
    ("mbr", "length", "says"),
    [
        (None, MIB, "no .mbr"),
        (b"", MIB, ".mbr"),
        (b"\x01\x05rubbish", MIB, "version 5"),
        (sidecar_bytes(1, mbr_sidecar(record()).boot_record), MIB, "partition"),
        (sidecar_bytes(1, record((7, 2048, 2048))), MIB + 512, "longer"),
        (sidecar_bytes(-1, b"", ONE), MIB, "whole disk"),
        (sidecar_bytes(5, record((7, 2048, 4096), (5, 8192, 9999))), 100 * KIB, "logical"),
        (sidecar_bytes(2, b"", ONE), 100 * KIB, "no partition of number 2"),
    ],
)
def test_a_warning_says_why(mbr: bytes | None, length: int, says: str) -> None:
    """Whoever gets a generated disk is told so, with the reason."""
    (note,) = disk_of(image(mbr=mbr, length=length)).notes
    assert says in note.text
    assert note.warning


class TestWholeDisk:
    """Version 100: the `.raw` is the disk, without the 512 KiB before, and with 512 KiB of slack behind."""

    SIDECAR = b"\x01\x64PK\x03\x04"

    def whole(self, head: bytes, length: int) -> Disk:
        return disk_of(replace(image(mbr=self.SIDECAR, length=length), head=head))

    def test_begins_at_the_first_byte(self) -> None:
        """Byte N of an MBR disk is byte N of its file, up to the slack."""
        disk = self.whole(record((7, 2048, 4096)), 128 * MIB)
        assert list(disk.extent_map()) == [(0, FileRange(disk.image.raw, 0, 128 * MIB))]

    @pytest.mark.parametrize("slot", [1, 2], ids=["slot 1 in use", "slot 1 empty"])
    def test_a_gpt_disk_ends_with_its_backup(self, slot: int) -> None:
        """A GPT at LBA 1 is the disk's own, not a wrapper's, whatever its first slot holds."""
        copy = gpt(1 << 18, Slot(slot, 2048, 199999))
        disk = self.whole(handmade.protective(1 << 18) + copy.header + copy.table[:7168], 128 * MIB)
        assert list(disk.extent_map()) == [(0, FileRange(disk.image.raw, 0, 128 * MIB))]


class TestATruncatedImage:
    @pytest.mark.parametrize("missing", [512, 1 << 20])
    def test_is_no_volume(self, missing: int) -> None:
        """UrBackup's wrapper says how long the volume is: a shorter file is refused, and not served with zeroes."""
        whole = handmade.image(length=8 << 20)
        wrapper = bytearray(512)
        wrapper[446:458], wrapper[510:] = bytes.fromhex("80feffff07feffff00040000"), b"\x55\xaa"
        struct.pack_into("<I", wrapper, 458, (8 << 20) // 512)
        short = replace(whole, head=bytes(wrapper), raw=replace(whole.raw, size=whole.raw.size - missing))
        with pytest.raises(FormatError, match=str(missing)):
            Planner().volume(short)
        assert Planner().volume(replace(whole, head=bytes(wrapper))).length == 8 << 20


@pytest.mark.parametrize("size", [1024, 2048])
def test_sectors_of_another_size_alone_on_a_disk_are_warned_of(size: int) -> None:
    """An NTFS that counts in sectors of which there are no disks stands on a generated disk only with a warning."""
    notes = Planner().volume(image(length=64 * MIB, boot=ntfs_boot(64 * MIB, sector=size))).notes
    assert any(str(size) in note.text for note in notes if note.warning)
    plain = Planner().volume(image(length=64 * MIB, boot=ntfs_boot(64 * MIB))).notes
    assert not any("sectors of" in note.text for note in plain)


def test_a_lone_volume_of_4096_byte_sectors_is_on_a_disk_of_such() -> None:
    """At 512 KiB as well, behind tables that take fewer sectors, with its backup boot sector; no warning is needed."""
    boot = ntfs_boot(64 * MIB - 4096, sector=4096)
    volume = Planner().volume(image(length=64 * MIB - 4096, boot=boot))
    layout = volume.layout
    assert layout.gpt is not None
    assert (layout.sector_size, layout.partitions[0].start, layout.partitions[0].length) == (4096, 512 * KIB, 64 * MIB)
    assert (layout.gpt.primary.first_usable, layout.gpt.primary.entries_lba) == (6, 2)
    assert layout.gpt.backup.entries_lba == layout.length // 4096 - 5
    assert [note.text for note in volume.notes if "sectors of" in note.text] == []
    assert list(disk_of(volume.image).extent_map().pieces(512 * KIB + 64 * MIB - 4096, 4096)) == [Bytes(boot[:4096])]


@pytest.mark.parametrize(
    ("beyond", "form"),
    [(0, Format.VHD), (-1, Format.VHD), (-2047, Format.VHD), (1, Format.VHDX)],
)
def test_near_the_limit_of_a_vhd(beyond: int, form: Format) -> None:
    """A disk with an MBR whose last partition ends just before 2040 GiB is judged by the length that it is given."""
    mbr = sidecar_bytes(1, record((7, 2048, 2040 * 2**21 + beyond - 2048)))
    disk = disk_of(image(mbr=mbr, length=8 * MIB))
    assert disk.length == (2040 * GIB if form is Format.VHD else 2040 * GIB + MIB)
    assert fitting(disk, Format.VHD) is form
