"""Ready-made original disks, small and each with one property that has bitten somebody.

Not for: disks of a single test, which call makedisk.make_disk themselves. Units: bytes.
"""

from pathlib import Path

from makedisk import BASIC_DATA, ESP, LINUX, MIB, MSR, OriginalDisk, Partition, make_disk
from makevolume import SECTOR

GPT_BOOT_CODE = b"synthfs test: boot code of a protective MBR"
MBR_BOOT_CODE = b"\xfa\x33\xc0synthfs test: boot code of an MBR disk".ljust(440, b"\x90")


def gpt_disk(path: Path) -> OriginalDisk:
    """Windows on UEFI: ESP, MSR, C:, and a data partition D: behind a gap."""
    esp = Partition(1, MIB, 40 * MIB, ESP, "EFI system partition", attributes=(63,), fs="vfat", label="SYSTEM")
    msr = Partition(2, 41 * MIB, 16 * MIB, MSR, "Microsoft reserved partition", attributes=(63,))
    c = Partition(3, 57 * MIB, 64 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows")
    d = Partition(4, 125 * MIB, 32 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Daten")
    return make_disk(path, esp, msr, c, d, length=160 * MIB, boot_code=GPT_BOOT_CODE)


def mbr_disk(path: Path) -> OriginalDisk:
    """Windows on BIOS: System Reserved, active, and C:."""
    reserved = Partition(1, MIB, 24 * MIB, "7", active=True, fs="ntfs", label="System Reserved")
    c = Partition(2, 25 * MIB, 64 * MIB, "7", fs="ntfs", label="Windows")
    return make_disk(path, reserved, c, length=89 * MIB, scheme="mbr", boot_code=MBR_BOOT_CODE)


def two_volume_disk(path: Path) -> OriginalDisk:
    """C: and D: on one GPT disk, with an empty slot between them, so that slot and ordinal differ."""
    c = Partition(1, MIB, 48 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows")
    d = Partition(3, 49 * MIB, 48 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Daten")
    return make_disk(path, c, d, length=98 * MIB, identity="2B0D0000-2222-4222-8333-444455556666")


def small_ntfs_disk(path: Path) -> OriginalDisk:
    """NTFS that ends well before its partition does, as after shrinking in an odd order or growing the partition."""
    c = Partition(1, MIB, 64 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Short", fs_length=40 * MIB)
    return make_disk(path, c, length=66 * MIB, identity="5A110000-3333-4222-8333-444455556666")


def xp_disk(path: Path) -> OriginalDisk:
    """Windows XP: C: begins at sector 63, and its length is a number of cylinders: nothing is aligned to 4096."""
    cylinder = 255 * 63 * SECTOR
    start = 63 * SECTOR
    c = Partition(1, start, 8 * cylinder - start, "7", active=True, fs="ntfs", label="XP")
    return make_disk(path, c, length=8 * cylinder, scheme="mbr", identity="000063ff", boot_code=MBR_BOOT_CODE)


def extended_disk(path: Path) -> OriginalDisk:
    """A primary partition, and an extended container with two logical drives, whose tables UrBackup never saves."""
    c = Partition(1, MIB, 24 * MIB, "7", active=True, fs="ntfs", label="Windows")
    container = Partition(2, 25 * MIB, 64 * MIB, "f")
    e = Partition(5, 26 * MIB, 24 * MIB, "7", fs="ntfs", label="E")
    f = Partition(6, 51 * MIB, 24 * MIB, "7", fs="ntfs", label="F")
    return make_disk(path, c, container, e, f, length=89 * MIB, scheme="mbr", identity="e87e0001")


def linux_disk(path: Path) -> OriginalDisk:
    """A Linux machine: ESP, and an ext4 root with a name in the table, slots 1 and 5."""
    esp = Partition(1, MIB, 40 * MIB, ESP, "EFI system partition", fs="vfat", label="EFI")
    root = Partition(5, 41 * MIB, 48 * MIB, LINUX, "linux-root", fs="ext4", label="root")
    return make_disk(path, esp, root, length=90 * MIB, identity="11710000-5555-4222-8333-444455556666")


def large_disk(path: Path, *, length: int = 20 << 30, data: int = 1 << 30) -> OriginalDisk:
    """Mostly holes: one NTFS volume with `data` pseudo-random bytes written straight into it, in four pieces."""
    piece = data // 4
    volume = length - 2 * MIB
    pieces = tuple((volume // 8 * (2 * k + 1) // MIB * MIB, piece) for k in range(4))
    c = Partition(1, MIB, volume, BASIC_DATA, "Basic data partition", fs="ntfs", label="Large", data=pieces)
    return make_disk(path, c, length=length, identity="1A46E000-4444-4222-8333-444455556666")
