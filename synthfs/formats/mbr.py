"""The master boot record: the first 512 bytes of a PC disk.

    offset  size  field
       0     440  boot code
     440       4  disk signature, little endian (Windows tells disks apart by it; BCD refers to it)
     444       2  reserved, usually 0
     446  4 x 16  partition entries
     510       2  55 AA

    entry:  0  1  status (80: active)        4  1  type          8  4  first LBA, LE
            1  3  CHS of the first sector    5  3  CHS of last  12  4  sectors, LE

Source: UEFI specification 2.10, section 5.2. LBAs are in logical sectors of the disk, whatever their size.

An extended partition is a chain of records of the same form, without boot code: the first entry is a logical drive, counted
from the record's own sector; the second one is the next record with its drive, counted from the start of the extended
partition. UrBackup does not save them.
"""

import struct
from dataclasses import dataclass, replace

from synthfs.errors import FormatError

SIZE = 512
PROTECTIVE = 0xEE
ACTIVE = 0x80
EXTENDED = frozenset((0x05, 0x0F, 0x85))
LDM, LVM = 0x42, 0x8E

_RECORD = struct.Struct("<440sI2s64s2s")
_ENTRY = struct.Struct("<B3sB3sII")
CHS_TOO_FAR = b"\xfe\xff\xff"


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the four slots. It covers [first_lba, first_lba + sectors)."""

    type: int = 0
    first_lba: int = 0
    sectors: int = 0
    status: int = 0
    first_chs: bytes = bytes(3)
    last_chs: bytes = bytes(3)

    @property
    def used(self) -> bool:
        return self.type != 0 and self.sectors != 0

    @property
    def extended(self) -> bool:
        """A container of logical drives, no volume itself."""
        return self.type in EXTENDED


@dataclass(frozen=True, slots=True)
class MasterBootRecord:
    """A whole boot record; `parse` and `pack` are inverses for every sector that ends with 55 AA."""

    entries: tuple[Entry, Entry, Entry, Entry]
    signature: int = 0
    boot_code: bytes = bytes(440)
    reserved: bytes = bytes(2)

    def with_signature(self, signature: int) -> "MasterBootRecord":
        return replace(self, signature=signature)

    def pack(self) -> bytes:
        entries = b"".join(
            _ENTRY.pack(e.status, e.first_chs, e.type, e.last_chs, e.first_lba, e.sectors) for e in self.entries
        )
        return _RECORD.pack(self.boot_code, self.signature, self.reserved, entries, b"\x55\xaa")


def parse(raw: bytes) -> MasterBootRecord:
    """Raises FormatError for anything but 512 bytes that end with 55 AA."""
    if len(raw) != SIZE:
        raise FormatError(f"boot record has {len(raw)} bytes, not {SIZE}")
    boot_code, signature, reserved, entries, magic = _RECORD.unpack(raw)
    if magic != b"\x55\xaa":
        raise FormatError(f"boot record ends with {magic.hex(' ')}, not 55 aa")
    first, second, third, fourth = (
        Entry(kind, lba, sectors, status, first_chs, last_chs)
        for status, first_chs, kind, last_chs, lba, sectors in _ENTRY.iter_unpack(entries)
    )
    return MasterBootRecord((first, second, third, fourth), signature, boot_code, reserved)


def protective(disk_sectors: int) -> MasterBootRecord:
    """The boot record that goes before a GPT (UEFI 5.2.3): one entry of type EE over all the disk that 32 bits can name."""
    sectors = min(disk_sectors - 1, 0xFFFFFFFF)
    entry = Entry(PROTECTIVE, 1, sectors, 0, b"\x00\x02\x00", CHS_TOO_FAR)
    return MasterBootRecord((entry, Entry(), Entry(), Entry()))
