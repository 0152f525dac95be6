"""The first sector of a volume: which file system it is, how long, and where on its disk it believes it lies.

    offset  size       NTFS                       FAT12/16/32                 exFAT
       3      8   "NTFS    "                  (OEM name, free)            "EXFAT   "
      11      2   bytes per sector            the same
      19      2   0                           sectors, or 0: see 32
      28      4   hidden sectors              hidden sectors
      32      4   -                           sectors
      40      8   sectors, without the last   -                           -
      64   8, 8   -                           -                           partition offset, sectors
     108      1   -                           -                           bytes per sector, as a power of two
     510      2   55 AA                       55 AA                       55 AA

Hidden sectors are the sectors of the disk before the volume: its partition's first LBA, if the formatter knew it.
NTFS keeps a copy of its boot sector right after the sectors that it counts, in the last sector of the partition. UrBackup
does not save that one.

Sources: Microsoft's FAT32 specification 1.03 and exFAT specification 1.00; the NTFS BPB as mkntfs and Windows write it.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

_BPB = struct.Struct("<H")
_HIDDEN_AND_TOTAL = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class BootSector:
    """What a boot sector says. `length` is that of the volume in bytes; 0 for values that it does not state."""

    file_system: str
    sector_size: int
    length: int
    hidden_sectors: int


def parse(raw: bytes) -> BootSector | None:
    """The boot sector at the start of `raw`, or None for anything that is no NTFS, FAT or exFAT volume."""
    if len(raw) < 512 or raw[510:512] != b"\x55\xaa":
        return None
    if raw[3:11] == b"EXFAT   ":
        offset, sectors = struct.unpack_from("<QQ", raw, 64)
        size = 1 << raw[108] if 9 <= raw[108] <= 12 else 512
        return BootSector("exFAT", size, sectors * size, offset)
    (size,) = _BPB.unpack_from(raw, 11)
    if size not in (512, 1024, 2048, 4096):
        return None
    hidden, total = _HIDDEN_AND_TOTAL.unpack_from(raw, 28)
    if raw[3:11] == b"NTFS    ":
        (sectors,) = struct.unpack_from("<Q", raw, 40)
        return BootSector("NTFS", size, sectors * size, hidden)
    if _is_fat(raw):
        (short,) = _BPB.unpack_from(raw, 19)
        return BootSector("FAT", size, (short or total) * size, hidden)
    return None


def partition_length(boot: bytes, volume_length: int) -> int:
    """Bytes of the partition that an image of `volume_length` bytes was taken of, as far as its boot sector tells.

    UrBackup images of an NTFS volume what NTFS counts, and NTFS does not count the last sector of its partition.
    """
    found = parse(boot)
    ends_early = found is not None and found.file_system == "NTFS" and found.length == volume_length
    return volume_length + found.sector_size if found and ends_early else volume_length


def same_volume(sector: bytes, boot: bytes) -> bool:
    """Whether `sector`, the first 512 bytes of a disk, is the first sector of the volume that begins with `boot`.

    A disk without a partition table begins with its volume. The two were read one after another, and between the reads a file
    system in use may have changed its own "mounted" mark (FAT32 offset 65, FAT16 offset 37) or count of used clusters (exFAT).
    """
    first, second = (bytearray(raw[:512]) for raw in (sector, boot))
    if len(first) < 512 or len(second) < 512 or parse(bytes(second)) is None:
        return False
    volatile = range(106, 113) if second[3:11] == b"EXFAT   " else () if second[3:11] == b"NTFS    " else (37, 65)
    for at in volatile:
        first[at] = second[at] = 0
    return first == second


def _is_fat(raw: bytes) -> bool:
    """FAT has no signature of its own: a jump, one or two FATs, and a media byte that DOS knows."""
    jump = raw[0] == 0xEB or raw[0] == 0xE9
    cluster = raw[13]
    return jump and cluster & cluster - 1 == 0 and cluster > 0 and raw[16] in (1, 2) and raw[21] >= 0xF0


def is_fat32(raw: bytes) -> bool:
    """Whether a FAT volume is FAT32, which has no 16-bit count of sectors per FAT (offset 22)."""
    return raw[22:24] == bytes(2)


_EXT_MAGIC_AT = 1024 + 56
_NAMED = (
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"XFSB", "XFS"),
    (_EXT_MAGIC_AT, b"\x53\xef", "ext"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"LUKS\xba\xbe", "LUKS"),
)


def file_system(raw: bytes) -> str | None:
    """The name of the file system at the start of `raw`, as far as the first 4 KiB tell; None where nothing is known."""
    if boot := parse(raw):
        return boot.file_system
    for offset, magic, name in _NAMED:
        if raw[offset : offset + len(magic)] == magic:
            return name
    return None


def volume_id(raw: bytes) -> str | None:
    """The id of the file system at the start of `raw` (4 KiB are enough), as blkid(8) prints it in UUID.

    A UUID for ext and XFS, 16 hexadecimal digits for NTFS, XXXX-XXXX for FAT and exFAT. None where it is not known.
    """
    match file_system(raw):
        case "ext" | "XFS" as system:
            at = 1024 + 104 if system == "ext" else 32
            return str(UUID(bytes=raw[at : at + 16])) if len(raw) >= at + 16 else None
        case "NTFS":
            return f"{int.from_bytes(raw[72:80], 'little'):016X}"
        case "FAT" | "exFAT" as system:
            at = 100 if system == "exFAT" else 67 if is_fat32(raw) else 39
            serial = f"{int.from_bytes(raw[at : at + 4], 'little'):08X}"
            return f"{serial[:4]}-{serial[4:]}"
    return None
