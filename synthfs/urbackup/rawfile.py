"""The wrapper around the volume in a `.raw` file, and how long the volume is.

    0         a boot record that UrBackup makes up: one active entry of type 07 from LBA 1024, its sectors modulo 2^32
    512       zeroes; from 2.5.33 on, for volumes above 2 TiB, a GPT of one entry whose last LBA is one past the end
    524288    the volume, byte for byte, to the end of the file

The file is 512 KiB longer than the volume, except that 2.5.33 enlarges those whose volume ends above 2 TiB by up to
1 MiB + 1024 bytes. Nothing else in the wrapper says anything about the disk: its signature is rolled anew each time.
Source: UrBackup's `ImageBackup.cpp` (dev 90da741 and branch 2.5.x), `writeMBR` and the lines around `drivesize`.
"""

import struct

from synthfs.errors import FormatError
from synthfs.model import VOLUME_OFFSET
from synthfs.units import SECTOR, MiB, TiB, align_down

_GPT_AT = 512
_ENTRY_AT = 1024
_ENTRY_AT_WRAPPER = 446
_WRAPPER_ENTRY = bytes.fromhex("80 fe ff ff 07 fe ff ff 00 04 00 00")
_SECTORS_AT = _ENTRY_AT_WRAPPER + len(_WRAPPER_ENTRY)
_MAX_SLACK = VOLUME_OFFSET + MiB + 1024


def volume_length(size: int, head: bytes) -> int:
    """Bytes of the volume in a `.raw` file of `size` bytes that begins with `head`, whose last zeroes may be cut off.

    Raises FormatError for a file that holds no volume, or whose wrapper contradicts its length.
    """
    rest = size - VOLUME_OFFSET
    if rest < SECTOR:
        raise FormatError(f".raw holds no volume: it has {size} bytes, and a volume begins at {VOLUME_OFFSET}")
    if head[_GPT_AT : _GPT_AT + 8] == b"EFI PART":
        first, end = struct.unpack_from("<QQ", head.ljust(_ENTRY_AT + 48, b"\0"), _ENTRY_AT + 32)
        length = (end - first) * 512
        if not 0 < length <= rest:
            raise FormatError(f".raw says that its volume has {length} bytes, but has room for {rest}")
        return int(length)
    if (said := _said_by_wrapper(head)) is None:
        return align_down(rest, 512)
    if size > 2 * TiB:
        return said if said + VOLUME_OFFSET <= size and _enlarged(said) == size else align_down(rest, 512)
    if rest < said:
        raise FormatError(f".raw ends early: {said - rest} of the {said} bytes of its volume are missing")
    return align_down(rest, 512)


def stored_length(size: int) -> int:
    """Bytes that a `.raw` file of `size` bytes has behind its wrapper, which are those of its volume up to 2 TiB."""
    return align_down(max(size - VOLUME_OFFSET, 0), 512)


def _said_by_wrapper(head: bytes) -> int | None:
    """The length of the volume by the boot record that UrBackup made up, modulo 2 TiB; None where there is none."""
    if head[510:512] != b"\x55\xaa" or head[_ENTRY_AT_WRAPPER : _ENTRY_AT_WRAPPER + 12] != _WRAPPER_ENTRY:
        return None
    (sectors,) = struct.unpack_from("<I", head, _SECTORS_AT)
    return int(sectors) * 512


def whole_disk(size: int, head: bytes) -> tuple[int, int]:
    """Length and logical sector size of the disk in a `.raw` file that was imaged as a whole (version 100).

    It begins at offset 0, without a wrapper, and 512 KiB of slack follow it. Raises FormatError where nothing is left.
    """
    sector_size = next((each for each in (512, 4096) if head[each : each + 8] == b"EFI PART"), None)
    if sector_size:
        (last,) = struct.unpack_from("<Q", head.ljust(2 * sector_size, b"\0"), sector_size + 32)
        # A GPT knows better how long the slack is, if it was not left behind when the virtual disk was enlarged.
        if size - _MAX_SLACK <= (last + 1) * sector_size <= size:
            return int(last + 1) * sector_size, sector_size
    length = align_down(size - VOLUME_OFFSET, sector_size or 512)
    if length <= 0:
        raise FormatError(f".raw has only {size} bytes; a disk and {VOLUME_OFFSET} bytes of slack were expected")
    return length, sector_size or 512


def _enlarged(length: int) -> int:
    """The file size that 2.5.33 gives a volume of `length` bytes ending above 2 TiB."""
    end = length + VOLUME_OFFSET
    return align_down(end, MiB) + MiB + 1024
