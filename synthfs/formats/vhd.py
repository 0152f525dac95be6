"""The VHD: a bare disk with a footer of 512 bytes behind it, or blocks of one behind a table.

    fixed      the disk, footer
    dynamic    copy of the footer, header, block allocation table (BAT), blocks, footer

    offset size  footer, big endian                    fixed disk (dynamic)
       0    8    cookie                                "conectix"
       8    4    features                              2 (reserved, always set)
      12    4    file format version                   1.0
      16    8    data offset                           all ones (512: the header's)
      24    4    time stamp                            seconds since 2000-01-01 UTC
      28    4    creator application                   "win "
      32    4    creator version                       10.0
      36    4    creator host system                   "Wi2k"
      40  8, 8   original size, current size           bytes of the disk
      56    4    geometry                              cylinders (2), heads (1), sectors per track (1)
      60    4    disk type                             2 (3)
      64    4    checksum                              ones' complement of the sum of all other bytes
      68   16    unique id                             a GUID, big endian
      84    1    saved state                           0
      85  427    reserved                              0

    offset size  header, big endian
       0    8    cookie                                "cxsparse"
       8    8    data offset                           all ones
      16    8    table offset                          of the BAT: 1536
      24    4    header version                        1.0
      28    4    max table entries                     blocks of the disk
      32    4    block size                            2 MiB
      36    4    checksum                              as in the footer
      40  984    parent                                0: there is none

The BAT has for each block the sector in the file at which it begins, and all ones for a block that is zero and not there; what
is left of the BAT's last sector is all ones. A block is a bitmap of one sector, a bit for each sector of the block,
and the block's 2 MiB behind it; the last one has its full length, whatever is left of the disk.

Source: Virtual Hard Disk Image Format Specification 1.0 (Microsoft, 2006). The creator is "win " because readers take the
size from the footer for the creators they know, and for others compute it from the geometry, which cannot express every
size: qemu would cut off the backup GPT.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from synthfs.errors import FormatError
from synthfs.units import SECTOR, GiB, MiB, align_up, packed, unpacked

SIZE = 512
MAX_DISK = 2040 * GiB
"""No reader takes more, though the fields could say it."""

FIXED, DYNAMIC = 2, 3
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
BLOCK = 2 * MiB
ABSENT = 0xFFFFFFFF
HEADER_AT, BAT_AT = 512, 1536
BITMAP = b"\xff" * (BLOCK // SECTOR // 8)
"""That of a block that is there: it says so of each of its sectors."""

MAX_BLOCK_AT = ABSENT * SECTOR - 1
"""The BAT's entries have 32 bits, one of them taken: a block further back in the file cannot be named."""

_HEADER = struct.Struct(">8sQQIIII984s")
_HEADER_CHECKSUM_AT = 36
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
_CHECKSUM_AT = 64
_EPOCH = 946684800
_COOKIE = b"conectix"


@dataclass(frozen=True, slots=True)
class Footer:
    """`size` is that of the disk in bytes, `timestamp` in seconds since 1970 UTC."""

    size: int
    unique_id: UUID
    timestamp: int
    disk_type: int = FIXED
    data_offset: int = NO_OFFSET

    def pack(self) -> bytes:
        since_2000 = min(max(self.timestamp - _EPOCH, 0), 0xFFFFFFFF)
        raw = bytearray(
            _FOOTER.pack(
                _COOKIE,
                2,
                0x00010000,
                self.data_offset,
                since_2000,
                b"win ",
                0x000A0000,
                b"Wi2k",
                self.size,
                self.size,
                *geometry(self.size // 512),
                self.disk_type,
                0,
                self.unique_id.bytes,
                0,
                b"",
            )
        )
        raw[_CHECKSUM_AT : _CHECKSUM_AT + 4] = checksum(raw).to_bytes(4, "big")
        return bytes(raw)


def parse(raw: bytes) -> Footer:
    """Raises FormatError for a wrong length, cookie or checksum."""
    if len(raw) != SIZE:
        raise FormatError(f"VHD footer has {len(raw)} bytes, not {SIZE}")
    fields = _FOOTER.unpack(raw)
    if fields[0] != _COOKIE:
        raise FormatError(f"VHD footer begins with {fields[0]!r}, not {_COOKIE!r}")
    blank = raw[:_CHECKSUM_AT] + bytes(4) + raw[_CHECKSUM_AT + 4 :]
    if checksum(blank) != fields[14]:
        raise FormatError(f"VHD footer has checksum {fields[14]:08x}, its bytes give {checksum(blank):08x}")
    return Footer(fields[9], UUID(bytes=fields[15]), fields[4] + _EPOCH, fields[13], fields[3])


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a dynamic VHD; `entries` is the number of blocks of the disk."""

    entries: int
    bat_offset: int = BAT_AT
    block_size: int = BLOCK

    def pack(self) -> bytes:
        raw = bytearray(
            _HEADER.pack(b"cxsparse", NO_OFFSET, self.bat_offset, 0x00010000, self.entries, self.block_size, 0, b"")
        )
        raw[_HEADER_CHECKSUM_AT : _HEADER_CHECKSUM_AT + 4] = checksum(raw).to_bytes(4, "big")
        return bytes(raw)


def parse_header(raw: bytes) -> Header:
    """Raises FormatError for a wrong length, cookie or checksum, and for a differencing disk's header."""
    if len(raw) != _HEADER.size:
        raise FormatError(f"VHD header has {len(raw)} bytes, not {_HEADER.size}")
    cookie, _, bat_offset, _, entries, block_size, stated, parent = _HEADER.unpack(raw)
    if cookie != b"cxsparse":
        raise FormatError(f"VHD header begins with {cookie!r}, not b'cxsparse'")
    blank = raw[:_HEADER_CHECKSUM_AT] + bytes(4) + raw[_HEADER_CHECKSUM_AT + 4 :]
    if checksum(blank) != stated:
        raise FormatError(f"VHD header has checksum {stated:08x}, its bytes give {checksum(blank):08x}")
    if any(parent):
        raise FormatError("VHD header names a parent")
    return Header(entries, bat_offset, block_size)


def empty_bat(entries: int) -> "array[int]":
    """A table of so many blocks, none of which is there."""
    return array("I", b"\xff" * (4 * entries))


def enter(bat: "array[int]", runs: Iterable[range], at: int, slot: int) -> None:
    """Notes in `bat` that the blocks `runs` begin at `at`, one behind the other, every `slot` bytes."""
    sector, step = at // SECTOR, slot // SECTOR
    for run in runs:
        end = sector + len(run) * step
        bat[run.start : run.stop] = array("I", range(sector, end, step))
        sector = end


def pack_bat(entries: "array[int]") -> bytes:
    """The table of the sectors at which blocks begin in the file, `ABSENT` for those that are not there."""
    return packed(entries, "big").ljust(bat_length(len(entries)), b"\xff")


def present(bat: bytes, entries: int) -> Iterator[int]:
    """The numbers of the blocks that are there by a table of so many entries, which may say anything, in order."""
    return (number for number, sector in enumerate(unpacked(bat, "I", "big")[:entries]) if sector != ABSENT)


def bat_length(entries: int) -> int:
    """Bytes that a BAT of so many entries takes in the file: whole sectors."""
    return align_up(entries * 4, SECTOR)


def checksum(raw: bytes | bytearray) -> int:
    """Of a footer (or dynamic header) whose checksum field is zero."""
    return ~sum(raw) & 0xFFFFFFFF


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for a disk of `sectors`, by the specification's appendix."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track = 17
    tracks = sectors // per_track
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        per_track, heads = 63, 16
        tracks = sectors // per_track
    return tracks // heads, heads, per_track
