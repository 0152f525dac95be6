"""Original disks, as an image file: what the client's machine had before UrBackup saw it.

Not for: backups of them (makestore) or the file systems inside (makevolume). Every byte is known: what is neither a
table, a volume, nor listed as data is zero. Tables are made by sgdisk and sfdisk. Units: bytes, everywhere.
Source: sgdisk(8), sfdisk(8); UEFI 2.10 section 5 for the attribute bits.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import makevolume
import need
import sparse
from makevolume import SECTOR, SOME_FILES, Filesystem, KnownFile
from processes import run

MIB = 1 << 20
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
MSR = "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"
BASIC_DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
RECOVERY = "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: where it is, what the table says of it, and what is in it."""

    number: int
    """As in a device name: slot + 1; logical drives of an MBR disk count from 5."""
    start: int
    length: int
    type: str = BASIC_DATA
    """GPT: type GUID; MBR: type byte in hexadecimal, "7"."""
    name: str = ""
    guid: str = ""
    attributes: tuple[int, ...] = ()
    """GPT attribute bits that are set; 63 is "no drive letter"."""
    active: bool = False
    fs: Filesystem | None = None
    label: str = ""
    fs_length: int | None = None
    """Shorter than the partition: the file system was shrunk, or the partition grown."""
    files: tuple[KnownFile, ...] = SOME_FILES
    data: tuple[tuple[int, int], ...] = ()
    """(offset, length) in the partition to fill with pseudo-random bytes, over whatever the file system has there."""

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class OriginalDisk:
    """A disk image and what it was made of."""

    path: Path
    length: int
    scheme: Literal["gpt", "mbr"]
    identity: str
    """GPT: disk GUID; MBR: disk signature as eight hexadecimal digits."""
    partitions: tuple[Partition, ...]
    boot_code: bytes
    sector_size: int = SECTOR

    @property
    def served_length(self) -> int:
        """How long the disk is that is made of its backups: with an MBR it ends at a whole MiB, since no length is recorded."""
        return self.length if self.scheme == "gpt" else -(-self.length // MIB) * MIB

    def partition(self, number: int) -> Partition:
        return next(one for one in self.partitions if one.number == number)

    def ordinal(self, number: int) -> int:
        """Windows' partition number: the place among the partitions that exist, without the extended container."""
        kept = [one.number for one in self.partitions if self.scheme == "gpt" or one.type not in ("5", "f")]
        return sorted(kept).index(number) + 1

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def boot_sector(self, number: int) -> bytes:
        """The first sector of a partition."""
        return self.read(self.partition(number).start, SECTOR)

    def ntfs_length(self, number: int) -> int:
        """What NTFS calls its size; the backup boot sector follows right behind it."""
        boot = self.boot_sector(number)
        assert boot[3:7] == b"NTFS", f"partition {number} is not NTFS"
        return int.from_bytes(boot[0x28:0x30], "little") * self.sector_size


def make_disk(
    path: Path,
    *partitions: Partition,
    length: int,
    scheme: Literal["gpt", "mbr"] = "gpt",
    identity: str = "",
    boot_code: bytes = b"",
    gap: tuple[tuple[int, bytes], ...] = (),
) -> OriginalDisk:
    """Make a disk image. `gap` is data to write at disk offsets, such as a boot manager behind the MBR."""
    identity = identity or ("5EED0000-1111-4222-8333-444455556666" if scheme == "gpt" else "5eed1234")
    disk = OriginalDisk(sparse.create(path, length), length, scheme, identity, partitions, boot_code)
    if scheme == "gpt":
        _write_gpt(disk)
    else:
        _write_mbr(disk)
    with path.open("r+b") as file:
        for offset, content in ((0, boot_code), *gap):
            file.seek(offset)
            file.write(content)
    for partition in partitions:
        _write_volume(path, partition)
    return disk


def rewrite_volume(disk: OriginalDisk, number: int, **changes: object) -> OriginalDisk:
    """Another day on the same disk, in place: one volume is made anew, with changed `files`, `data` or `label`."""
    changed = replace(disk.partition(number), **changes)  # type: ignore[arg-type]  # checked by replace() at run time
    with disk.path.open("r+b") as file:
        for offset, length in sparse.data(file, changed.start, changed.length):
            file.seek(offset)
            file.write(bytes(length))
    _write_volume(disk.path, changed)
    return replace(disk, partitions=tuple(changed if one.number == number else one for one in disk.partitions))


def _write_gpt(disk: OriginalDisk) -> None:
    need.tool("sgdisk")
    argv = ["sgdisk", "--clear", f"--disk-guid={disk.identity}", "--set-alignment=1"]
    for one in disk.partitions:
        number = one.number
        guid = one.guid or f"{disk.identity[:24]}{number:012}"
        argv += [
            f"--new={number}:{one.start // SECTOR}:{one.end // SECTOR - 1}",
            f"--typecode={number}:{one.type}",
            f"--partition-guid={number}:{guid}",
            f"--change-name={number}:{one.name}",
            *(f"--attributes={number}:set:{bit}" for bit in one.attributes),
        ]
    run([*argv, disk.path])


def _write_mbr(disk: OriginalDisk) -> None:
    need.tool("sfdisk")
    lines = ["label: dos", f"label-id: 0x{disk.identity}", "unit: sectors"]
    for one in disk.partitions:
        where = f"start={one.start // SECTOR}, size={one.length // SECTOR}, type={one.type}"
        lines.append(f"{one.number} : {where}{', bootable' if one.active else ''}")
    run(["sfdisk", "--quiet", "--no-tell-kernel", disk.path], input="\n".join(lines).encode())


def _write_volume(disk: Path, partition: Partition) -> None:
    if partition.fs is not None:
        volume = sparse.create(disk.with_name(f"{disk.name}.volume"), partition.length)
        makevolume.make(
            partition.fs,
            volume,
            label=partition.label,
            start=partition.start,
            length=partition.fs_length,
            files=partition.files,
        )
        sparse.copy(volume, disk, offset=0, length=partition.length, to=partition.start)
        volume.unlink()
    for offset, length in partition.data:
        sparse.fill(disk, partition.start + offset, length, f"{partition.label}/{offset}")
