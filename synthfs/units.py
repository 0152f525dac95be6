"""Units of size and their arithmetic. Bytes everywhere, unless a name says sectors or LBA.

Not for: time, or anything a file format defines for itself.
"""

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
