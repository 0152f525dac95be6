"""UrBackup's `.mbr` sidecar: the tables of the disk that an image came from, as its client sent them.

    u8   1                                     i64  GPT header position    ┐
    u8   version: 0 MBR, 1 GPT, 100 a ZIP      str  GPT header             │
    i32  device number                         i64  GPT table position     │ version 1 only
    i32  partition number                      str  GPT table              │
    str  serial number                         i64, str, i64, str:         │
    str  volume name                             the same of the backup    ┘
    str  file system name                      str  error message          ┐ may be absent
    str  the first 512 bytes of the disk       varint, str2: extra data    ┘

Integers are little endian. str is a u32 length and bytes. varint is SQLite's: big-endian groups of 7 bits, the 9th byte
with 8; str2 is a varint length and bytes. There is no magic, no checksum and no disk size.

Everything in it comes from the backed-up machine and is not to be trusted: every length is checked against what is left
of the file before it is used, and no position or number is judged here (`plan/layout` does).
Source: UrBackup's `urbackupcommon/mbrdata.h` and `common/data.cpp`, versions 2.5.x.
"""

import re
import struct
from dataclasses import dataclass

from synthfs import identity
from synthfs.errors import FormatError

MBR, GPT, WHOLE_DISK = 0, 1, 100
WHOLE_DISK_NUMBER = -1
"""The partition number of an image that is no partition."""

_LINUX = "LINUX:"
_LONGEST_NAME = 64
_NUMBERED_NAME = re.compile(r"[0-9]p$")
"""What is left of the name of a partition of a disk whose own name ends with a digit, without the number: `/dev/nvme0n1p`."""


@dataclass(frozen=True, slots=True)
class CapturedGpt:
    """One GPT copy as the client read it: `header_position` and `table_position` in bytes from the disk's start."""

    header_position: int
    header: bytes
    table_position: int
    table: bytes


@dataclass(frozen=True, slots=True)
class MbrFile:
    """The sidecar's fields. `primary` and `backup` are None for MBR disks; `backup` may be a copy of `primary`."""

    version: int
    device_number: int = 0
    partition_number: int = 0
    serial_number: str = ""
    volume_name: str = ""
    file_system: str = ""
    boot_record: bytes = b""
    primary: CapturedGpt | None = None
    backup: CapturedGpt | None = None
    error: str = ""
    extra_position: int = 0
    extra: bytes = b""

    @property
    def from_linux(self) -> bool:
        """Whether a Linux client wrote it, which numbers partitions by table slot and not by order."""
        return self.volume_name.startswith(_LINUX)

    @property
    def device(self) -> str:
        """The disk, as the client called it at that moment: `/dev/sda` on Linux, `disk 0` on Windows. No lasting identity."""
        if not self.from_linux:
            return f"disk {self.device_number}"
        name = self.volume_name.removeprefix(_LINUX).removesuffix(str(self.partition_number))
        name = name[:-1] if _NUMBERED_NAME.search(name) else name
        # A name is shown, and told apart from others, whatever its length.
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}~{identity.digest('device', name).hex()[:32]}"


class _Reader:
    """A cursor that refuses to leave its bytes. Errors name the field that was being read."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, length: int, field: str) -> bytes:
        if length > self.left:
            raise FormatError(f".mbr ends inside its {field}: {length} bytes wanted, {self.left} left")
        self._at += length
        return self._raw[self._at - length : self._at]

    def number(self, form: str, field: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form), field))
        return int(value)

    def string(self, field: str) -> bytes:
        return self.take(self.number("<I", f"length of the {field}"), field)

    def text(self, field: str) -> str:
        return self.string(field).decode("utf-8", "replace")

    def varint(self, field: str) -> int:
        value = 0
        for _ in range(8):
            byte = self.take(1, field)[0]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        return value << 8 | self.take(1, field)[0]


def parse(raw: bytes) -> MbrFile:
    """Raises FormatError where a version 0 or 1 file is cut short, or the version is not known.

    Of a version 100 file, which holds a ZIP of unknown content, only the version is read.
    """
    read = _Reader(raw)
    read.number("<B", "first byte")
    version = read.number("<B", "version")
    if version == WHOLE_DISK:
        return MbrFile(WHOLE_DISK)
    if version not in (MBR, GPT):
        raise FormatError(f".mbr has version {version}; 0, 1 and 100 are known")
    device_number = read.number("<i", "device number")
    partition_number = read.number("<i", "partition number")
    serial, volume, system = (read.text(field) for field in ("serial number", "volume name", "file system name"))
    boot_record = read.string("boot record")
    primary = _gpt(read, "GPT") if version == GPT else None
    backup = _gpt(read, "backup GPT") if version == GPT else None
    error = read.text("error message") if read.left else ""
    position = read.varint("extra data's position") if read.left else 0
    extra = read.take(read.varint("extra data's length"), "extra data") if read.left else b""
    return MbrFile(
        version,
        device_number,
        partition_number,
        serial,
        volume,
        system,
        boot_record,
        primary,
        backup,
        error,
        position,
        extra,
    )


def _gpt(read: _Reader, which: str) -> CapturedGpt:
    header_position = read.number("<q", f"{which} header position")
    header = read.string(f"{which} header")
    table_position = read.number("<q", f"{which} table position")
    return CapturedGpt(header_position, header, table_position, read.string(f"{which} table"))
