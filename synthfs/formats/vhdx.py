"""The VHDX: a disk in payload blocks behind a table, for disks that no VHD can hold; short where the disk is empty.

    0           "vhdxfile", creator in UTF-16LE                       file identifier, 64 KiB
    64, 128 K   "head", CRC, sequence, three GUIDs, log               two headers, 4 KiB each
    192, 256 K  "regi", CRC, count; entries of 32 bytes               two region tables, 64 KiB each
    1 MiB       the log, empty: its GUID in the headers is zero       1 MiB
    2 MiB       "metadata", entries of 32 bytes; items from 64 KiB    metadata region, 1 MiB
    3 MiB       u64 each: state in bits 0-2, offset in MiB in 20-63   block allocation table (BAT), whole MiB
    then        payload blocks, each at a multiple of 1 MiB           the last one in full, whatever is left of the disk

    header, 4096 bytes         region table, 64 KiB      metadata table, 64 KiB       item             of
     0  4 "head"                0  4 "regi"               0  8 "metadata"             file parameters  block size, flags
     4  4 CRC-32C               4  4 CRC-32C              8  2 reserved               disk size        bytes
     8  8 sequence number       8  4 entries, 2          10  2 entries, 5             disk id          GUID (SCSI page 83)
    16 16 file write GUID      12  4 reserved            12 20 reserved               logical sector   512 or 4096
    32 16 data write GUID      16 32 each: GUID 16,      32 32 each: GUID 16,         physical sector  512 or 4096
    48 16 log GUID, zero          offset 8, length 4,       offset 4, length 4,
    64  2 log version, 0          required 4                flags 4, reserved 4
    66  2 version, 1
    68  4 log length
    72  8 log offset

After every `chunk ratio` payload entries the BAT has one for a sector bitmap, which only differencing disks use: here it is
zero, not present. All little endian, GUIDs in the mixed-endian form of Windows; a CRC is that of its structure with a CRC of 0.
Source: [MS-VHDX] 2.1 to 2.6.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from synthfs.units import KiB, MiB, TiB, align_up, packed, unpacked

MAX_DISK = 64 * TiB
LOG_AT, METADATA_AT, BAT_AT = 1 * MiB, 2 * MiB, 3 * MiB

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA_TABLE = struct.Struct("<8sHH20x")
_METADATA = struct.Struct("<16sIIII")
_CRC_AT = 4

_BAT_REGION = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA_REGION = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
_LOGICAL_SECTOR = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PHYSICAL_SECTOR = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
_IS_VIRTUAL_DISK, _IS_REQUIRED = 2, 4

_STATE, _FULLY_PRESENT = 7, 6
_PER_CHUNK = 1 << 23
"""Sectors that the bitmap of one chunk stands for."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things lie in the VHDX of a disk of `length` bytes."""

    length: int
    sector_size: int

    @property
    def block_size(self) -> int:
        """The size of payload blocks: small ones leave out more, large ones keep the BAT of a huge disk at 16 MiB."""
        return 2 * MiB if self.length <= 4 * TiB else 32 * MiB

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def _chunk_ratio(self) -> int:
        """Payload entries of the BAT between two entries for sector bitmaps."""
        return _PER_CHUNK * self.sector_size // self.block_size

    @property
    def bat_length(self) -> int:
        """Bytes that the BAT takes in the file; its last entry is that of the last payload block."""
        entries = self.blocks + (self.blocks - 1) // self._chunk_ratio
        return align_up(8 * entries, MiB)

    @property
    def payload_at(self) -> int:
        """Where the first payload block lies."""
        return BAT_AT + self.bat_length

    def pack_front(self, disk_id: UUID, file_id: UUID, data_id: UUID) -> Iterator[tuple[int, bytes]]:
        """Everything before the BAT, with its offset. The ids are those of the disk, of the file, and of what is in it."""
        yield 0, b"vhdxfile" + "synthfs".encode("utf-16-le")
        for number, at in enumerate((64 * KiB, 128 * KiB)):
            yield at, _header(number, file_id, data_id)
        regions = _with_crc(self._region_table())
        yield from ((at, regions) for at in (192 * KiB, 256 * KiB))
        yield from self._metadata(disk_id)

    def pack_bat(self, numbers: Iterable[range]) -> bytes:
        """The table of a file that holds the blocks `numbers` one after the other, from `payload_at` on."""
        bat = array("Q", bytes(self.bat_length))
        ratio, step = self._chunk_ratio, self.block_size
        at = self.payload_at
        for run in numbers:
            first = run.start
            while first < run.stop:
                # Up to the next entry for a bitmap: the entries stand next to each other, and so do the blocks.
                count = min(run.stop - first, ratio - first % ratio)
                entry = first + first // ratio
                bat[entry : entry + count] = array("Q", range(at | _FULLY_PRESENT, at + count * step, step))
                first, at = first + count, at + count * step
        return packed(bat, "little")

    def present(self, bat: bytes) -> Iterator[int]:
        """The numbers of the blocks that are there by a table of `bat_length`, which may say anything, in order."""
        group = self._chunk_ratio + 1
        last = self.blocks + (self.blocks - 1) // self._chunk_ratio
        for entry, value in enumerate(unpacked(bat, "Q", "little")[:last]):
            if value & _STATE == _FULLY_PRESENT and entry % group < self._chunk_ratio:
                yield entry - entry // group

    def _region_table(self) -> bytes:
        bat = _REGION.pack(_BAT_REGION.bytes_le, BAT_AT, self.bat_length, 1)
        metadata = _REGION.pack(_METADATA_REGION.bytes_le, METADATA_AT, MiB, 1)
        return (_REGION_TABLE.pack(b"regi", 0, 2, 0) + bat + metadata).ljust(64 * KiB, b"\0")

    def _metadata(self, disk_id: UUID) -> Iterator[tuple[int, bytes]]:
        about_disk = _IS_VIRTUAL_DISK | _IS_REQUIRED
        items = (
            (_FILE_PARAMETERS, _IS_REQUIRED, struct.pack("<II", self.block_size, 0)),
            (_DISK_SIZE, about_disk, struct.pack("<Q", self.length)),
            (_DISK_ID, about_disk, disk_id.bytes_le),
            (_LOGICAL_SECTOR, about_disk, struct.pack("<I", self.sector_size)),
            # As Windows makes them; that of the original disk is not known.
            (_PHYSICAL_SECTOR, about_disk, struct.pack("<I", 4096)),
        )
        table, at, content = _METADATA_TABLE.pack(b"metadata", 0, len(items)), 64 * KiB, b""
        for name, flags, data in items:
            table += _METADATA.pack(name.bytes_le, at + len(content), len(data), flags, 0)
            content += data
        yield METADATA_AT, table
        yield METADATA_AT + at, content


def _header(sequence: int, file_id: UUID, data_id: UUID) -> bytes:
    no_log = bytes(16)
    fields = (b"head", 0, sequence, file_id.bytes_le, data_id.bytes_le, no_log, 0, 1, MiB, LOG_AT)
    return _with_crc(_HEADER.pack(*fields).ljust(4 * KiB, b"\0"))


def _with_crc(raw: bytes) -> bytes:
    """`raw` with its CRC, which is zero in it."""
    return raw[:_CRC_AT] + crc32c(raw).to_bytes(4, "little") + raw[_CRC_AT + 4 :]


def crc32c(raw: bytes) -> int:
    """CRC-32C (Castagnoli), which zlib does not have. Slow: for a few structures of some KiB."""
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_crc_of_byte, range(256)))
