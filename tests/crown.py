"""The bench of the crowning test: sample disks backed up into one store on BTRFS, mounted, and materialized on demand.

Not for: judging any of it; the tests do. Units: bytes. Source: sampledisks, makestore.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import makembr
import sampledisks
import sparse
from lab import Scope
from makedisk import BASIC_DATA, MIB, OriginalDisk, Partition, make_disk
from makestore import Image, Store, escaped
from makevolume import SECTOR

FOOTER = 512


@dataclass(frozen=True, slots=True)
class Sample:
    """How a disk is made, and which of its partitions are backed up: (number, letter, stamp)."""

    make: Callable[[Path], OriginalDisk]
    images: tuple[tuple[int, str, str], ...]
    client: makembr.Client = "windows"
    reflink: Literal["always", "auto"] = "always"
    """`auto` where the disk's partitions lie at other offsets within a block than the volume in its image."""
    capture: dict[str, Any] = field(default_factory=dict)


def _empty_partition(path: Path) -> OriginalDisk:
    """A basic data partition that is there but was never formatted or imaged, and a protective MBR with a signature."""
    c = Partition(1, MIB, 48 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows")
    empty = Partition(2, 49 * MIB, 48 * MIB, BASIC_DATA, "Basic data partition")
    signature = ((440, bytes.fromhex("78563412")),)
    return make_disk(path, c, empty, length=98 * MIB, identity="E3970000-7777-4222-8333-444455556666", gap=signature)


def _odd_sectors(path: Path) -> OriginalDisk:
    """Partitions that fill everything between the tables, and begin and end at odd sectors."""
    c = Partition(1, 34 * SECTOR, 40 * MIB + 3 * SECTOR, BASIC_DATA, "C", fs="ntfs", label="Windows")
    d = Partition(2, c.end, 66 * MIB - 33 * SECTOR - c.end, BASIC_DATA, "D", fs="ntfs", label="Daten")
    return make_disk(path, c, d, length=66 * MIB, identity="0DD00000-8888-4222-8333-444455556666")


_BOOT_MANAGER = bytes(range(1, 256)) * 124
"""As GRUB on a BIOS machine: every sector between the MBR and the first partition is used, nearly."""


def _boot_manager(path: Path) -> OriginalDisk:
    c = Partition(1, MIB, 40 * MIB, "7", active=True, fs="ntfs", label="Windows")
    d = Partition(3, 41 * MIB, 24 * MIB, "7", fs="ntfs", label="Daten")
    gap = ((SECTOR, _BOOT_MANAGER),)
    return make_disk(
        path, c, d, length=65 * MIB, scheme="mbr", identity="9e0b0007", boot_code=sampledisks.MBR_BOOT_CODE, gap=gap
    )


EVENING = "260301-0201"
SAMPLES = {
    "gpt": Sample(sampledisks.gpt_disk, ((1, "ESP", EVENING), (3, "C", EVENING), (4, "D", "260301-0207"))),
    "mbr": Sample(sampledisks.mbr_disk, ((1, "SYSVOL", EVENING), (2, "C", EVENING))),
    "two-volumes": Sample(sampledisks.two_volume_disk, ((1, "C", EVENING), (3, "D", "260301-0204"))),
    "short-ntfs": Sample(sampledisks.small_ntfs_disk, ((1, "C", EVENING),)),
    "xp": Sample(sampledisks.xp_disk, ((1, "C", EVENING),), reflink="auto"),
    "linux": Sample(sampledisks.linux_disk, ((1, "ESP", EVENING), (5, "/dev/sda5", EVENING)), client="linux"),
    "boot-manager": Sample(
        _boot_manager, ((1, "C", EVENING), (3, "D", EVENING)), capture={"extra": (SECTOR, _BOOT_MANAGER)}
    ),
    "no-backup-gpt": Sample(
        sampledisks.two_volume_disk, ((1, "C", EVENING), (3, "D", EVENING)), capture={"backup_readable": False}
    ),
    "empty-partition": Sample(_empty_partition, ((1, "C", EVENING),)),
    "odd-sectors": Sample(_odd_sectors, ((1, "C", EVENING), (2, "D", "260301-0203")), reflink="auto"),
}
"""Disks of which every byte must come back: what was not backed up is zero on them."""

FILES = [
    (name, letter) for name, sample in SAMPLES.items() for _, letter, _ in sample.images if letter not in ("ESP", "SYSVOL")
]
"""The files that the mount offers, as (sample, letter)."""


@dataclass(slots=True)
class Bench:
    """The mounted store; names are those of SAMPLES."""

    scope: Scope
    store: Store
    output: Path
    """A directory on the store's own file system."""
    disks: dict[str, OriginalDisk] = field(default_factory=dict)
    images: dict[tuple[str, str], Image] = field(default_factory=dict)
    mountpoint: Path = Path()
    _frozen: dict[tuple[str, str, bool], Path] = field(default_factory=dict)

    def file(self, name: str, letter: str, *, renewed: bool = False) -> Path:
        """The mounted file, or the one of its new identity."""
        stem = self.images[name, letter].raw.stem
        return self.mountpoint / name / ("new-identity" if renewed else ".") / f"{stem}.vhd"

    def frozen(self, name: str, letter: str, *, renewed: bool = False) -> Path:
        """The materialized file; made once."""
        key = name, letter, renewed
        if key not in self._frozen:
            target = self.output / f"{name}-{escaped(letter)}{'-renewed' if renewed else ''}.vhd"
            options = ["--reflink", SAMPLES[name].reflink, *["--new-identity"] * renewed]
            self.scope.synthfs("materialize", self.images[name, letter].raw, "-o", target, *options)
            self._frozen[key] = target
        return self._frozen[key]

    def bare(self, frozen: Path) -> Path:
        """A materialized disk without its footer, for tools that know nothing of VHD."""
        bare = frozen.with_suffix(".bare")
        if not bare.exists():
            self.scope.run(["cp", "--reflink=always", frozen, bare])
            self.scope.run(["truncate", f"--size=-{FOOTER}", bare])
        return bare

    def volume(self, source: Path, partition: Partition) -> Path:
        """The file system in a partition of a disk image, as a file of its own."""
        length = partition.fs_length or partition.length
        target = sparse.create(self.scope.path("volume") / "volume.img", length)
        sparse.copy(source, target, offset=partition.start, length=length, to=0)
        return target


def lay(lab: Scope) -> Iterator[Bench]:
    """Make, back up and mount all samples."""
    with lab.scope("crown") as scope:
        root = scope.btrfs(2048 * MIB)
        bench = Bench(scope, Store(root / "urbackup"), root / "output")
        bench.output.mkdir()
        for name, sample in SAMPLES.items():
            disk = bench.disks[name] = sample.make(scope.path(name) / "disk.img")
            client = bench.store.client(name)
            for number, letter, stamp in sample.images:
                sidecar = makembr.capture(disk, number, client=sample.client, **sample.capture)
                image = client.backup(disk, number, letter, stamp, client=sample.client, mbr=sidecar)
                bench.images[name, letter] = image
        bench.mountpoint = scope.synthfs_mount(bench.store.root)
        yield bench


def identifiers(table: dict[str, Any]) -> list[str]:
    """The disk's own and its partitions', from what `sfdisk --json` says."""
    return [str(table["id"]).lower(), *(entry["uuid"].lower() for entry in table["partitions"])]


def gpt_identity_ranges(disk: OriginalDisk, *, empty: tuple[int, ...] = ()) -> dict[str, tuple[int, int]]:
    """Where a GPT says who the disk is, in both copies, checksums included; by UEFI 2.10 section 5.3.

    `empty` are numbers of partitions whose attributes change too.
    """
    ranges: dict[str, tuple[int, int]] = {}
    for copy, header in (("primary", SECTOR), ("backup", disk.length - SECTOR)):
        ranges[f"{copy} header CRC"] = header + 16, header + 20
        ranges[f"{copy} disk GUID"] = header + 56, header + 72
        ranges[f"{copy} entries CRC"] = header + 88, header + 92
        table = int.from_bytes(disk.read(header + 72, 8), "little") * SECTOR
        for one in disk.partitions:
            entry = table + (one.number - 1) * 128
            ranges[f"{copy} GUID of partition {one.number}"] = entry + 16, entry + 32
            if one.number in empty:
                # Bits 62 (hidden) and 63 (no drive letter) of the eight bytes at 48.
                ranges[f"{copy} attributes of partition {one.number}"] = entry + 55, entry + 56
    return ranges


def is_guid(text: str) -> bool:
    return str(UUID(text)) == text and UUID(text).int != 0


def copied(disk: OriginalDisk, scope: Scope) -> OriginalDisk:
    """The disk as it is now, kept aside."""
    path = sparse.create(scope.path("copy") / "disk.img", disk.length)
    sparse.copy(disk.path, path, offset=0, length=disk.length, to=0)
    return replace(disk, path=path)
