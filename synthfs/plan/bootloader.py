"""Boot loaders behind the boot record: what of one is not in the backup.

UrBackup saves the first 63 sectors behind a boot record that GRUB or VeraCrypt wrote, and nothing like it on disks with a GPT.

Not for: whether a disk boots (`synthfs boot` shows that). Units: bytes.
"""

import struct

from synthfs.formats import mbr
from synthfs.plan.layout import Layout

_BLOCK_LIST = struct.Struct("<QHH")


def grub_core(layout: Layout) -> tuple[int, int] | None:
    """Start and end of what GRUB 2 loads first, where a part of it is not among the captured tables; None otherwise.

    The boot record names the first sector of it (offset 92, 64 bits), which lists the others (12 bytes each, from offset 500
    downwards: first sector, count, segment; the count 0 ends the list). All count sectors of 512 bytes.
    Source: GRUB's `boot/i386/pc/boot.S` and `diskboot.S`.
    """
    code = layout.record.boot_code if layout.record else b""
    first = int.from_bytes(code[92:100], "little")
    if b"GRUB" not in code or not 0 < first <= layout.length // mbr.SIZE:
        return None
    start, end = first * mbr.SIZE, (first + 1) * mbr.SIZE
    at, saved = layout.extra or (0, b"")
    sector = saved[start - at : end - at] if start >= at else b""
    if len(sector) < mbr.SIZE:
        return start, end
    for entry in range(500, 0, -12):
        first, count, _ = _BLOCK_LIST.unpack_from(sector, entry)
        if not count:
            break
        end = max(end, min(first + count, layout.length // mbr.SIZE) * mbr.SIZE)
    return None if end <= at + len(saved) else (start, end)
