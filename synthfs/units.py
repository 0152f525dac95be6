"""Units of size and their arithmetic. Bytes everywhere, unless a name says sectors or LBA.

Not for: time, or anything a file format defines for itself.
"""

import struct
from array import array
from typing import Literal

SECTOR = 512
KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB


def align_down(value: int, unit: int) -> int:
    """The largest multiple of `unit` that is not above `value`."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


_HOST_ORDER = "little" if struct.pack("=H", 1)[0] else "big"


def packed(values: "array[int]", order: Literal["little", "big"]) -> bytes:
    """The bytes of a table of unsigned integers, each in the given order."""
    if order != _HOST_ORDER:
        values = values[:]
        values.byteswap()
    return values.tobytes()


def unpacked(raw: bytes, kind: Literal["I", "Q"], order: Literal["little", "big"]) -> "array[int]":
    """The table that `packed` made these bytes of; `kind` is "I" for 32 bits, "Q" for 64."""
    values = array(kind, raw)
    if order != _HOST_ORDER:
        values.byteswap()
    return values


def human(size: int) -> str:
    """`size` in bytes as a person reads it: `512 B`, `1.2 GiB`."""
    if size < KiB:
        return f"{size} B"
    value, names = float(size), ("KiB", "MiB", "GiB", "TiB", "PiB")
    for name in names:
        value /= 1024
        if value < 999.95 or name == names[-1]:
            break
    return f"{value:.1f}".removesuffix(".0") + f" {name}"
