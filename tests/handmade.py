"""Values made by hand, from the arithmetic of the specifications: partition tables, boot sectors, facts about images.

Not for: anything on a disk (makedisk, makestore), and none of the package's codecs: only its nouns are used here.
Units: bytes, LBAs in logical sectors. Source: UEFI 2.10 section 5; Microsoft's FAT32 specification for the BPB.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

import makembr
from makembr import GptCopy
from synthfs.extents import Source
from synthfs.model import DatabaseFacts, ImageFacts, ImageRow, Packed, Seal, StoreFacts
from synthfs.urbackup.mbrfile import CapturedGpt, MbrFile

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
HEADER = 512 * KIB
BASIC = UUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")
ESP = UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
LINUX = UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
LVM = UUID("E6D6D379-F507-44C2-A23C-238F2A3DF928")
LDM = UUID("AF9B60A0-1431-4F62-BC68-3311714A69AD")
DISK_A = UUID("aaaaaaaa-1111-4222-8333-444455556666")
DISK_B = UUID("bbbbbbbb-1111-4222-8333-444455556666")
NOBODY = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Slot:
    """A GPT entry: sectors from `first` to `last`, inclusive, as the table has them."""

    number: int
    first: int
    last: int
    type: UUID = BASIC
    name: str = ""

    @property
    def guid(self) -> UUID:
        return UUID(int=0x5107 << 112 | self.number)

    def pack(self, size: int) -> bytes:
        head = struct.pack("<16s16sQQQ", self.type.bytes_le, self.guid.bytes_le, self.first, self.last, 0)
        return (head + self.name.encode("utf-16-le")).ljust(size, b"\0")


def header(sector: int = 512, **fields: int | UUID) -> bytes:
    """One GPT header sector with a right CRC, whatever the values are."""
    body = struct.pack("<8sIII", b"EFI PART", 0x10000, 92, 0) + bytes(4)
    names = ("own", "other", "first_usable", "last_usable")
    body += struct.pack("<4Q", *(fields[name] for name in names))
    disk = fields["disk"]
    assert isinstance(disk, UUID)
    body += disk.bytes_le + struct.pack("<Q3I", *(fields[name] for name in ("at", "count", "size", "crc")))
    return (body[:16] + zlib.crc32(body).to_bytes(4, "little") + body[20:]).ljust(sector, b"\0")


def gpt(
    sectors: int,
    *slots: Slot,
    disk: UUID = DISK_A,
    sector: int = 512,
    count: int = 128,
    size: int = 128,
    lies: Mapping[str, int] = MappingProxyType({}),
) -> GptCopy:
    """Both GPT copies of a disk of `sectors`; `lies` replace fields of both headers, with right CRCs all the same."""
    by_number = {slot.number: slot for slot in slots}
    table = b"".join(by_number[n].pack(size) if n in by_number else bytes(size) for n in range(1, count + 1))
    last, room = sectors - 1, -(-count * size // sector)
    common: dict[str, int | UUID] = {"first_usable": 2 + room, "last_usable": last - room - 1, "disk": disk}
    common |= {"count": count, "size": size, "crc": zlib.crc32(table)}
    primary = header(sector, **({"own": 1, "other": last, "at": 2} | common | dict(lies)))
    backup = header(sector, **({"own": last, "other": 1, "at": last - room} | common | dict(lies)))
    return GptCopy(sector, primary, 2 * sector, table, last * sector, backup, (last - room) * sector, table)


def record(*entries: tuple[int, int, int], signature: int = 0x5EED1234, boot_code: bytes = b"") -> bytes:
    """A boot record with (type, first LBA, sectors) in its slots."""
    rows = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return boot_code.ljust(440, b"\0") + struct.pack("<I2x", signature) + rows.ljust(64, b"\0") + b"\x55\xaa"


def protective(sectors: int) -> bytes:
    return record((0xEE, 1, min(sectors - 1, 0xFFFFFFFF)), signature=0)


def gpt_sidecar(copy: GptCopy, number: int = 1, *, linux: bool = False, boot_record: bytes | None = None) -> MbrFile:
    """What a reader of the `.mbr` should have found, as a value."""
    first = CapturedGpt(copy.header_position, copy.header, copy.table_position, copy.table)
    second = CapturedGpt(copy.backup_header_position, copy.backup_header, copy.backup_table_position, copy.backup_table)
    name = f"LINUX:/dev/sda{number}" if linux else "Windows"
    raw = protective(copy.backup_header_position // copy.header_position + 1) if boot_record is None else boot_record
    return MbrFile(1, 0, number, "1", name, "NTFS", raw, first, second)


def mbr_sidecar(boot_record: bytes, number: int = 1, *, linux: bool = False) -> MbrFile:
    return MbrFile(0, 0, number, "1", f"LINUX:/dev/sda{number}" if linux else "Windows", "NTFS", boot_record)


def sidecar_bytes(number: int, boot_record: bytes, copy: GptCopy | None = None, device: int = 0) -> bytes:
    """The `.mbr` file of a Windows client."""
    return makembr.mbr_bytes(
        version=0 if copy is None else 1,
        device_number=device,
        partition_number=number,
        serial="1",
        volume_name="Windows",
        filesystem="NTFS",
        mbr_data=boot_record,
        gpt=copy,
    )


def ntfs_boot(length: int, hidden: int = 0, sector: int = 512) -> bytes:
    """The first 4 KiB of an NTFS volume of `length` bytes, its own last sector not counted."""
    raw = bytearray(4096)
    raw[:3], raw[3:11], raw[510:512] = b"\xeb\x52\x90", b"NTFS    ", b"\x55\xaa"
    struct.pack_into("<HBH", raw, 11, sector, 8, 0)
    struct.pack_into("<BHHHI", raw, 21, 0xF8, 0, 63, 255, hidden)
    struct.pack_into("<Q", raw, 40, length // sector)
    return bytes(raw)


def ext_boot() -> bytes:
    raw = bytearray(4096)
    raw[1080:1082] = b"\x53\xef"
    return bytes(raw)


def image(
    client: str = "pc",
    letter: str = "C",
    stamp: str = "260301-0201",
    *,
    mbr: bytes | None = None,
    length: int = 64 * MIB - 512,
    boot: bytes = bytes(4096),
    head: bytes = bytes(2048),
    finished: bool = True,
    seal: Seal = Seal.SEALED,
    inode: int = 257,
    name: str | None = None,
) -> ImageFacts:
    """An image of a volume of `length` bytes."""
    name = name or f"{client}/{stamp}_Image_{letter}/Image_{letter}_{stamp}.raw"
    raw = Source(name, f"/store/{name}", 42, inode, HEADER + length, 1772330460 * 10**9)
    sidecar = None if mbr is None else Packed.of(mbr)
    return ImageFacts(client, letter, stamp, raw, sidecar, None, head, boot, finished, seal)


def store(*images: ImageFacts) -> StoreFacts:
    return StoreFacts("/store", 0, 0, images, ())


def row(
    of: ImageFacts, time: int = 0, *, complete: bool = True, pending: bool = False, with_: Sequence[ImageFacts] = ()
) -> ImageRow:
    """UrBackup's row for an image; `time` in seconds UTC, `with_` are its SYSVOL and ESP."""
    return ImageRow(of.name, time, complete, pending, tuple(other.name for other in with_))


def database(*rows: ImageRow, clients: Iterable[str] = ()) -> DatabaseFacts:
    """UrBackup's database; `clients` have the numbers 1, 2, …"""
    numbers = {client: number for number, client in enumerate(clients, 1)}
    return DatabaseFacts("/var/urbackup/backup_server.db", numbers, {one.name: one for one in rows})
