"""Writes the `.mbr` sidecar as an UrBackup client does: the table of a disk and the place of one volume in it.

Not for: reading one; this file shares nothing with the package. Units: positions are bytes.
Source: facts/urbackup-format.md section 2.2 (field numbers below are its own) and the genuine files, which this
reproduces byte for byte. One thing is known from those alone: a Linux client stores names as `blkid -o export` prints
them, so a blank in a PARTLABEL is `\\ `.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from makedisk import OriginalDisk
from processes import run

Client = Literal["windows", "linux"]
_VOLUME_SERIAL = {b"NTFS    ": 0x48, b"MSDOS5.0": 0x43, b"mkfs.fat": 0x43, b"SYSLINUX": 0x43}


@dataclass(frozen=True, slots=True)
class GptCopy:
    """Both copies of a GPT with their positions on the disk."""

    header_position: int
    header: bytes
    table_position: int
    table: bytes
    backup_header_position: int
    backup_header: bytes
    backup_table_position: int
    backup_table: bytes

    @classmethod
    def read(cls, disk: Path, *, sector_size: int = 512, backup_readable: bool = True) -> "GptCopy":
        """Read it from a disk image; a client that cannot read the backup stores the primary twice."""
        with disk.open("rb") as file:

            def sectors(position: int) -> tuple[int, bytes, int, bytes]:
                file.seek(position)
                header = file.read(sector_size)
                table_lba, entries, entry_length = struct.unpack_from("<QII", header, 72)
                file.seek(table_lba * sector_size)
                return position, header, table_lba * sector_size, file.read(entries * entry_length)

            primary = sectors(sector_size)
            (backup_lba,) = struct.unpack_from("<Q", primary[1], 32)
            return cls(*primary, *(sectors(backup_lba * sector_size) if backup_readable else primary))


def mbr_bytes(
    *,
    version: int,
    device_number: int,
    partition_number: int,
    serial: str,
    volume_name: str,
    filesystem: str,
    mbr_data: bytes,
    gpt: GptCopy | None = None,
    message: str = "",
    extra: tuple[int, bytes] | None = None,
) -> bytes:
    """The whole file, from the values of its fields."""
    out = struct.pack("<BBii", 1, version, device_number, partition_number)  # 1-4
    out += _str(serial.encode()) + _str(volume_name.encode()) + _str(filesystem.encode()) + _str(mbr_data)  # 5-8
    if gpt is not None:
        for position, content in (
            (gpt.header_position, gpt.header),  # 9, 10
            (gpt.table_position, gpt.table),  # 11, 12
            (gpt.backup_header_position, gpt.backup_header),  # 13, 14
            (gpt.backup_table_position, gpt.backup_table),  # 15, 16
        ):
            out += struct.pack("<q", position) + _str(content)
    out += _str(message.encode())  # 17
    if extra is not None:
        position, content = extra
        out += _varint(position) + _varint(len(content)) + content  # 18, 19
    return out


def capture(
    disk: OriginalDisk,
    number: int,
    *,
    client: Client = "windows",
    device: str = "/dev/sda",
    device_number: int = 0,
    backup_readable: bool = True,
    extra: tuple[int, bytes] | None = None,
    message: str = "",
) -> bytes:
    """What a client of this kind would send for one volume of a disk."""
    partition = disk.partition(number)
    if client == "windows":
        boot = disk.boot_sector(number)
        offset = _VOLUME_SERIAL[boot[3:11]]
        place, serial = disk.ordinal(number), str(int.from_bytes(boot[offset : offset + 4], "little"))
        name, filesystem = partition.label, {"ntfs": "NTFS", "vfat": "FAT32"}[partition.fs or ""]
    else:
        place, serial = number, linux_uuid(disk.path, partition.start, partition.length)
        separator = "p" if device[-1].isdigit() else ""
        name = f"LINUX:{device}{separator}{number}"
        filesystem = partition.name.replace(" ", "\\ ") or partition.fs or ""
    return mbr_bytes(
        version=1 if disk.scheme == "gpt" else 0,
        device_number=device_number,
        partition_number=place,
        serial=serial,
        volume_name=name,
        filesystem=filesystem,
        # Windows reads whole sectors: asked for 512 bytes of a disk with larger ones, it gives nothing (section 2.4).
        mbr_data=disk.read(0, 512) if disk.sector_size == 512 else b"",
        gpt=_copies(disk, backup_readable) if disk.scheme == "gpt" else None,
        message=message,
        extra=extra,
    )


def _copies(disk: OriginalDisk, backup_readable: bool) -> GptCopy:
    return GptCopy.read(disk.path, sector_size=disk.sector_size, backup_readable=backup_readable)


def linux_uuid(disk: Path, start: int, length: int) -> str:
    """The file system UUID of a volume inside a disk image, from blkid."""
    argv = ["blkid", "--probe", "--output", "value", "--match-tag", "UUID"]
    return run([*argv, "--offset", f"{start}", "--size", f"{length}", disk]).stdout.decode().strip()


def _str(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _varint(value: int) -> bytes:
    """SQLite's: big-endian groups of seven bits, all but the last with the high bit; never nine bytes here."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))
