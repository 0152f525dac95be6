"""The GUID partition table: header and entries, at the start of a disk and again at its end.

    header, one logical sector                          entry, usually 128 bytes
     0  8  "EFI PART"         40  8  first usable LBA     0  16  type GUID, zero: unused
     8  4  revision 1.0       48  8  last usable LBA     16  16  unique GUID
    12  4  header size, 92    56 16  disk GUID           32   8  first LBA
    16  4  CRC-32 of header   72  8  LBA of the entries  40   8  last LBA, inclusive
    20  4  reserved           80  4  number of entries   48   8  attributes
    24  8  own LBA            84  4  size of an entry    56  72  name, UTF-16LE
    32  8  LBA of the other   88  4  CRC-32 of entries

All little endian, GUIDs in the mixed-endian form of Windows. Source: UEFI specification 2.10, section 5.3.
Inclusive LBAs end here: an `Entry` covers the half-open [first_lba, end_lba). LBAs are in logical sectors.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from uuid import UUID

from synthfs.errors import FormatError

SIGNATURE = b"EFI PART"
REVISION = 0x00010000
ENTRY_SIZE = 128
MAX_ENTRIES = 1024
"""More than any partitioner makes (128 is the rule, some write 256); a header that claims more is not believed."""

HIDDEN = 1 << 62
NO_DRIVE_LETTER = 1 << 63
"""Attributes of basic data partitions that Windows gives meaning to (PARTITION_INFORMATION_GPT)."""

BASIC_DATA = UUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")
EFI_SYSTEM = UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
MICROSOFT_RESERVED = UUID("E3C9E316-0B5C-4DB8-817D-F92DF00215AE")
WINDOWS_RECOVERY = UUID("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC")
LINUX_DATA = UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
LINUX_LVM = UUID("E6D6D379-F507-44C2-A23C-238F2A3DF928")
LDM_METADATA = UUID("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3")
LDM_DATA = UUID("AF9B60A0-1431-4F62-BC68-3311714A69AD")

TYPE_NAMES = {
    BASIC_DATA: "basic data",
    EFI_SYSTEM: "EFI system",
    MICROSOFT_RESERVED: "Microsoft reserved",
    WINDOWS_RECOVERY: "Windows recovery",
    LINUX_DATA: "Linux data",
    UUID("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"): "Linux swap",
    LINUX_LVM: "Linux LVM",
    UUID("A19D880F-05FC-4D3B-A006-743F0F84911E"): "Linux RAID",
    UUID("21686148-6449-6E6F-744E-656564454649"): "BIOS boot",
    LDM_METADATA: "LDM metadata",
    LDM_DATA: "LDM data",
}

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
HEADER_SIZE = _HEADER.size
_CRC_AT = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One partition: [first_lba, end_lba). `tail` is what entries larger than 128 bytes hold beyond the name."""

    type: UUID
    guid: UUID
    first_lba: int
    end_lba: int
    attributes: int = 0
    raw_name: bytes = bytes(72)
    tail: bytes = b""

    @property
    def used(self) -> bool:
        return self.type.int != 0

    @property
    def name(self) -> str:
        return self.raw_name.decode("utf-16-le", "replace").partition("\0")[0]

    def pack(self) -> bytes:
        last = (self.end_lba - 1) % (1 << 64)
        fields = (self.type.bytes_le, self.guid.bytes_le, self.first_lba, last, self.attributes, self.raw_name)
        return _ENTRY.pack(*fields) + self.tail


@dataclass(frozen=True, slots=True)
class Header:
    """One of the two headers. `rest` is everything after the 92 known bytes of its sector, kept as it was."""

    own_lba: int
    other_lba: int
    first_usable: int
    last_usable: int
    disk_guid: UUID
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int
    header_size: int = _HEADER.size
    revision: int = REVISION
    reserved: int = 0
    rest: bytes = bytes(512 - _HEADER.size)

    @property
    def entries_length(self) -> int:
        """Bytes that the entry array takes."""
        return self.entry_count * self.entry_size

    def pack(self) -> bytes:
        """One logical sector, with its CRC made fresh."""
        raw = bytearray(self._fields(crc=0) + self.rest)
        crc = zlib.crc32(raw[: self.header_size])
        raw[_CRC_AT : _CRC_AT + 4] = crc.to_bytes(4, "little")
        return bytes(raw)

    def _fields(self, crc: int) -> bytes:
        return _HEADER.pack(
            SIGNATURE,
            self.revision,
            self.header_size,
            crc,
            self.reserved,
            self.own_lba,
            self.other_lba,
            self.first_usable,
            self.last_usable,
            self.disk_guid.bytes_le,
            self.entries_lba,
            self.entry_count,
            self.entry_size,
            self.entries_crc,
        )


def parse_header(raw: bytes) -> Header:
    """A header sector. Raises FormatError for a wrong signature, size, CRC, or numbers that no table has."""
    if len(raw) < _HEADER.size:
        raise FormatError(f"GPT header has only {len(raw)} bytes")
    (magic, revision, size, crc, reserved, own, other, first, last, disk, at, count, entry_size, entries_crc) = (
        _HEADER.unpack_from(raw)
    )
    if magic != SIGNATURE:
        raise FormatError(f"GPT header begins with {magic!r}, not {SIGNATURE!r}")
    if not _HEADER.size <= size <= len(raw):
        raise FormatError(f"GPT header claims to be {size} bytes long, in a sector of {len(raw)}")
    blank = raw[:_CRC_AT] + bytes(4) + raw[_CRC_AT + 4 : size]
    if zlib.crc32(blank) != crc:
        raise FormatError(f"GPT header has CRC {crc:08x}, its bytes give {zlib.crc32(blank):08x}")
    if entry_size < ENTRY_SIZE or entry_size % 8 or entry_size > 4096 or not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"GPT header claims {count} entries of {entry_size} bytes")
    rest = raw[_HEADER.size :]
    guid = UUID(bytes_le=disk)
    return Header(own, other, first, last, guid, at, count, entry_size, entries_crc, size, revision, reserved, rest)


def parse_entries(header: Header, raw: bytes) -> tuple[Entry, ...]:
    """All entries, unused ones too. Raises FormatError when the array is too short or its CRC is not the header's."""
    raw = raw[: header.entries_length]
    if len(raw) < header.entries_length:
        raise FormatError(f"GPT entries have {len(raw)} bytes, the header says {header.entries_length}")
    if zlib.crc32(raw) != header.entries_crc:
        raise FormatError(f"GPT entries have CRC {zlib.crc32(raw):08x}, the header says {header.entries_crc:08x}")
    return tuple(_parse_entries(header.entry_size, raw))


def _parse_entries(entry_size: int, raw: bytes) -> Iterator[Entry]:
    blank = bytes(entry_size)
    unused = Entry(UUID(int=0), UUID(int=0), 0, 1, tail=blank[_ENTRY.size :])
    for at in range(0, len(raw), entry_size):
        if raw[at : at + entry_size] == blank:
            yield unused
            continue
        kind, unique, first, last, attributes, name = _ENTRY.unpack_from(raw, at)
        tail = raw[at + _ENTRY.size : at + entry_size]
        yield Entry(UUID(bytes_le=kind), UUID(bytes_le=unique), first, (last + 1) % (1 << 64), attributes, name, tail)


def pack_entries(entries: tuple[Entry, ...]) -> bytes:
    # Most of a table is one and the same unused entry.
    return b"".join(run[0].pack() * len(run) for run in (list(same) for _, same in groupby(entries, key=id)))


def with_entries(header: Header, raw: bytes) -> Header:
    """The header of an entry array whose bytes are `raw`."""
    return replace(header, entries_crc=zlib.crc32(raw))


def twin(header: Header, entries_lba: int) -> Header:
    """The other copy of `header`: the two LBAs swapped, its entries at `entries_lba`."""
    return replace(header, own_lba=header.other_lba, other_lba=header.own_lba, entries_lba=entries_lba)
