"""The superblocks of ext2/3/4 and XFS: how long the file system says that it is.

    ext, at 1024, little endian                   XFS, at 0, big endian
      4  4  blocks, low half                        0  4  "XFSB"
     24  4  block size, as a power of two of 1 KiB  4  4  block size
     56  2  53 EF                                   8  8  blocks of the data section
     96  4  incompatible features; 80h: 64bit
    336  4  blocks, high half, with 64bit only

The data section of XFS holds all but a log or a realtime section on devices of their own.
Not for: NTFS, FAT and exFAT (`formats/bootsector`). BTRFS has its superblock at 64 KiB, beyond what is read of a volume.

Sources: the Linux kernel's `fs/ext4/ext4.h` (struct ext4_super_block) and `fs/xfs/libxfs/xfs_format.h` (struct xfs_dsb).
"""

import struct
from dataclasses import dataclass

_EXT_AT = 1024
_EXT_SIZE = 1024
_EXT_MAGIC = b"\x53\xef"
_64BIT = 0x80
_XFS = struct.Struct(">4sIQ")
_LARGEST_BLOCK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says of its file system: its name, and its length in bytes."""

    file_system: str
    length: int


def parse(raw: bytes) -> Superblock | None:
    """The superblock in the first 4 KiB of a volume; None for other file systems, and for a block size that none has."""
    if len(raw) >= _EXT_AT + _EXT_SIZE and raw[_EXT_AT + 56 : _EXT_AT + 58] == _EXT_MAGIC:
        return _ext(raw[_EXT_AT : _EXT_AT + _EXT_SIZE])
    if len(raw) >= _XFS.size and raw[:4] == b"XFSB":
        _, size, blocks = _XFS.unpack_from(raw)
        return Superblock("XFS", blocks * size) if 512 <= size <= _LARGEST_BLOCK and size & size - 1 == 0 else None
    return None


def _ext(raw: bytes) -> Superblock | None:
    (blocks,), (power,), (features,) = (struct.unpack_from("<I", raw, at) for at in (4, 24, 96))
    if power > 6:
        return None
    if features & _64BIT:
        (high,) = struct.unpack_from("<I", raw, 336)
        blocks |= high << 32
    return Superblock("ext", blocks * 1024 << power)
