"""Disks that boot: a Linux of Debian's kernel and busybox, which says on its serial port what it sees of its disk.

Not for: backups of them (makestore). One disk begins with a BIOS, syslinux in a FAT volume that is its C:; one with UEFI,
systemd-boot in an ESP beside an NTFS C:. Units: bytes. Source: Documentation/driver-api/early-userspace/buffer-format.rst of
Linux for the archive; syslinux(1); the Boot Loader Specification.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path

import need
from makedisk import BASIC_DATA, ESP, MIB, OriginalDisk, Partition, make_disk
from processes import run

SEEN = "synthfs-test"
LINES = ("size", "first", "last", "part1", "part2")
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
for module in /modules/*; do insmod $module; done
disk=
until [ -b "$disk" ]; do for disk in /dev/sda /dev/nvme0n1; do [ -b $disk ] && break; done; done
case $disk in *n1) part=${{disk}}p ;; *) part=$disk ;; esac
size=$(blockdev --getsize64 $disk)
sum() {{ dd if=$1 bs=512 count=$2 skip=${{3:-0}} 2>/dev/null | sha256sum | cut -d ' ' -f 1; }}
say() {{ echo "{SEEN} $*"; echo "{SEEN} $*" >/dev/tty0; }}
say size $size
say first $(sum $disk 1)
say last $(sum $disk 1 $((size / 512 - 1)))
say part1 $(sum ${{part}}1 2048)
[ -b ${{part}}2 ] && say part2 $(sum ${{part}}2 2048)
# What it writes must not come near the backup.
yes scribble | dd of=$disk bs=1M count=4 iflag=fullblock seek=1 conv=fsync 2>/dev/null && say scribbled
poweroff -f
"""
MODULES = ("scsi_common", "scsi_mod", "libata", "ata_piix", "sd_mod")
"""In the order of loading: what a disk on IDE needs; NVMe is built in."""
OPTIONS = "console=tty0 console=ttyS0 quiet panic=-1"


def bios_disk(path: Path) -> OriginalDisk:
    """MBR; syslinux, kernel and all in one FAT volume."""
    code = Path("/usr/lib/syslinux/mbr/mbr.bin")
    need.tool("syslinux", "mcopy")
    c = Partition(1, MIB, 48 * MIB, "c", active=True, fs="vfat", label="BOOT")
    disk = make_disk(path, c, length=49 * MIB, scheme="mbr", boot_code=code.read_bytes()[:440])
    config = f"default linux\nlabel linux\nkernel /vmlinuz\ninitrd /initrd\nappend {OPTIONS}\n"
    _put(disk, c, {"/syslinux.cfg": config.encode(), **_system()})
    run(["syslinux", "--install", "--offset", str(c.start), path])
    return disk


def uefi_disk(path: Path) -> OriginalDisk:
    """GPT; systemd-boot, kernel and all in the ESP, and C: behind it."""
    loader = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
    need.tool("mcopy")
    esp = Partition(1, MIB, 48 * MIB, ESP, "EFI system partition", attributes=(63,), fs="vfat", label="SYSTEM")
    c = Partition(2, 49 * MIB, 32 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows")
    disk = make_disk(path, esp, c, length=82 * MIB)
    entry = f"title Linux\nlinux /vmlinuz\ninitrd /initrd\noptions {OPTIONS}\n"
    files = {"/EFI/BOOT/BOOTX64.EFI": loader.read_bytes(), "/loader/entries/linux.conf": entry.encode(), **_system()}
    _put(disk, esp, {"/loader/loader.conf": b"timeout 0\n", **files})
    return disk


def _system() -> dict[str, bytes]:
    unpacked = need.linux()
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    modules = {path.stem: path for path in (unpacked / "lib/modules").rglob("*.ko")}
    files = [(f"modules/{number}-{name}.ko", 0o100644, modules[name].read_bytes()) for number, name in enumerate(MODULES)]
    tree = [
        *((name, 0o040755, b"") for name in ("bin", "dev", "proc", "modules")),
        ("bin/busybox", 0o100755, (unpacked / "bin/busybox").read_bytes()),
        ("init", 0o100755, INIT.encode()),
        *files,
    ]
    return {"/vmlinuz": kernel.read_bytes(), "/initrd": gzip.compress(_archive(tree), 1)}


def _archive(tree: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the "newc" form."""
    whole = b""
    for number, (name, mode, content) in enumerate([*tree, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        whole += head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
    return whole


def _put(disk: OriginalDisk, partition: Partition, files: dict[str, bytes]) -> None:
    """Into the FAT volume of a partition, with the directories that the names need."""
    image = f"{disk.path}@@{partition.start}"
    made: set[str] = set()
    for name, content in files.items():
        for depth in range(2, name.count("/") + 1):
            directory = "/".join(name.split("/")[:depth])
            if directory not in made:
                run(["mmd", "-i", image, f"::{directory}"])
                made.add(directory)
        source = disk.path.with_name(f"{disk.path.name}.file")
        source.write_bytes(content)
        run(["mcopy", "-i", image, source, f"::{name}"])
        source.unlink()
