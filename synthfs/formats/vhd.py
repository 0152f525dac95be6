"""The fixed VHD: a bare disk with a footer of 512 bytes behind it.

    offset size  footer, big endian                    fixed disk
       0    8    cookie                                "conectix"
       8    4    features                              2 (reserved, always set)
      12    4    file format version                   1.0
      16    8    data offset                           all ones
      24    4    time stamp                            seconds since 2000-01-01 UTC
      28    4    creator application                   "win "
      32    4    creator version                       10.0
      36    4    creator host system                   "Wi2k"
      40  8, 8   original size, current size           bytes of the disk
      56    4    geometry                              cylinders (2), heads (1), sectors per track (1)
      60    4    disk type                             2
      64    4    checksum                              ones' complement of the sum of all other bytes
      68   16    unique id                             a GUID, big endian
      84    1    saved state                           0
      85  427    reserved                              0

Source: Virtual Hard Disk Image Format Specification 1.0 (Microsoft, 2006). The creator is "win " because readers take the
size from the footer for the creators they know, and for others compute it from the geometry, which cannot express every
size: qemu would cut off the backup GPT.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

from synthfs.errors import FormatError
from synthfs.units import GiB

SIZE = 512
MAX_DISK = 2040 * GiB
"""No reader takes more, though the fields could say it."""

FIXED = 2
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
    data_offset: int = 0xFFFFFFFFFFFFFFFF

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
