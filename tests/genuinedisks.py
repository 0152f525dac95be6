"""What the genuine store must give: which image belongs in which partition of which disk, and of which stage it is.

Not for: asking synthfs; this is written down from ../shared/genuine/README.md, the rows of the live database and
source/stage*/diskA.sgdisk-p.txt. Units: bytes. All stamps are of 261123.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bytewise
import need
from bytewise import Range
from genuine import GenuineStore
from lab import Scope
from makedisk import MIB
from processes import Argument

LENGTH = 2048 * MIB
LINUX = "_mnt_linuxdata"
FOOTER = 512
HEADER = 512 * 1024
"""Before the volume in a `.raw` file."""

# Number -> (start, end, name in the records of its files).
PARTITIONS = {
    1: (1 * MIB, 101 * MIB, "p1-fat32"),
    3: (117 * MIB, 1317 * MIB, "p3-ntfs"),
    4: (1317 * MIB, 1617 * MIB, "p4-ext4"),
}
RESERVED = (101 * MIB, 117 * MIB)
"""Partition 2, which no backup has."""

BESIDE = [(0, 1 * MIB), (1617 * MIB, LENGTH)]
"""The tables, and what no partition takes."""

Key = tuple[str, str]
"""Stamp and letter of an image."""

# The disk of an image -> the images in its partitions 1, 3 and 4. assoc_images names that of partition 1 for C:; others
# are nearest by backuptime, in either direction (C: of 0302 has 468 s to the linuxdata of 0254, and 452 s to that of 0309).
DISKS: dict[Key, dict[int, Key]] = {
    ("0254", "C"): {1: ("0254", "SYSVOL"), 3: ("0254", "C"), 4: ("0254", LINUX)},
    ("0254", LINUX): {1: ("0254", "SYSVOL"), 3: ("0254", "C"), 4: ("0254", LINUX)},
    ("0256", "C"): {1: ("0256", "SYSVOL"), 3: ("0256", "C"), 4: ("0254", LINUX)},
    ("0302", "C"): {1: ("0302", "SYSVOL"), 3: ("0302", "C"), 4: ("0309", LINUX)},
    ("0307", "C"): {1: ("0307", "SYSVOL"), 3: ("0307", "C"), 4: ("0309", LINUX)},
    ("0309", "C"): {1: ("0309", "SYSVOL"), 3: ("0309", "C"), 4: ("0309", LINUX)},
    ("0309", LINUX): {1: ("0309", "SYSVOL"), 3: ("0309", "C"), 4: ("0309", LINUX)},
    ("0311", "C"): {1: ("0311", "ESP"), 3: ("0311", "C"), 4: ("0311", LINUX)},
    ("0311", LINUX): {1: ("0311", "ESP"), 3: ("0311", "C"), 4: ("0311", LINUX)},
    ("0312", "C"): {1: ("0312", "ESP"), 3: ("0312", "C"), 4: ("0312", LINUX)},
    ("0312", LINUX): {1: ("0312", "ESP"), 3: ("0312", "C"), 4: ("0312", LINUX)},
}

PARTS = [("0254", "SYSVOL"), ("0256", "SYSVOL"), ("0302", "SYSVOL"), ("0307", "SYSVOL"), ("0309", "SYSVOL"),
         ("0311", "ESP"), ("0312", "ESP")]  # fmt: skip
"""Complete images that are on the disks of others alone."""

ABORTED = [("0256", LINUX), ("0302", LINUX), ("0304", "C"), ("0305", LINUX), ("0307", LINUX), ("0312", "_dev_loop3")]
"""Neither the database nor their files call these complete."""

UNCLAIMED = ("0304", "SYSVOL")
"""Finished by its files; incomplete by the live database, since its C: was aborted."""


def stage(image: Key) -> int:
    """The state of the source disk that an image shows."""
    return {"0254": 0, "0311": 2, "0312": 2}.get(image[0], 1)


def name(image: Key) -> str:
    """An image's place in the store."""
    stamp, letter = image
    return f"gpthost/261123-{stamp}_Image_{letter}/{stem(image)}.raw"


def stem(image: Key) -> str:
    return f"Image_{image[1]}_261123-{image[0]}"


def free_blocks(raw: Path) -> tuple[int, bytes]:
    """Block length and bitmap of what the client called used, from `.cbitmap`; facts/urbackup-format.md section 1.7."""
    content = raw.with_name(f"{raw.name}.cbitmap").read_bytes()
    assert content[:8] == b"UrBBMM8C"
    (block,) = struct.unpack_from("<I", content, 8)
    return block, content[12:-32]


def in_used_blocks(found: list[Range], raw: Path, start: int) -> list[Range]:
    """Those of the ranges of a disk that touch a block which the image's client called used; the volume is at `start`."""
    block, used = free_blocks(raw)


    def touches(first: int, end: int) -> bool:
        numbers = range((first - start) // block, (end - 1 - start) // block + 1)
        return any(used[number // 8] >> number % 8 & 1 for number in numbers)

    return [one for one in found if touches(*one)]


def writable_copy(scope: Scope, genuine: GenuineStore) -> Path:
    """The store on a file system of its own that can be written; returns its root, as GenuineStore.root."""
    need.tool("mkfs.btrfs", "btrfstune")
    device = scope.run(["findmnt", "--noheadings", "--output", "SOURCE", "--target", genuine.root]).stdout.strip()
    listing = scope.run(["losetup", "--noheadings", "--list", "--output", "BACK-FILE", device.partition("[")[0]])
    image = scope.path("copy") / "store.btrfs.img"
    scope.run(["cp", "--sparse=always", listing.stdout.strip(), image])
    # The kernel would take two file systems of one UUID for the same.
    scope.run(["btrfstune", "-m", image])
    return scope.mount(scope.loop(image), fstype="btrfs") / "urbackup"


@dataclass(slots=True)
class Bench:
    """All disks of the live database: mounted from the read-only store, materialized in a writable copy."""

    scope: Scope
    genuine: GenuineStore
    writable: Path
    mountpoint: Path
    zero: Path
    """A file of holes as long as a disk."""
    _frozen: dict[Key, Path] = field(default_factory=dict)

    def mounted(self, disk: Key) -> Path:
        return self.mountpoint / "gpthost" / f"{stem(disk)}.vhd"

    def frozen(self, disk: Key) -> Path:
        """The materialized file; made once, sharing all blocks of the images."""
        if disk not in self._frozen:
            target = self.writable.parent / f"{stem(disk)}.vhd"
            options: list[Argument] = ["-o", target.parent, "--database", self.genuine.database]
            self.scope.synthfs("materialize", self.writable / name(disk), *options)
            self._frozen[disk] = target
        return self._frozen[disk]

    def differences(self, file: Path, stage: int, start: int, end: int) -> list[Range]:
        """Where a materialized disk is not the source disk of that stage."""
        source = self.genuine.source(stage).image
        return bytewise.differences(self.scope, file, source, end, start=start, data_of=(file, source))


def lay(lab: Scope, genuine: GenuineStore) -> Iterator[Bench]:
    need.fuse()
    with lab.scope("genuine-disks") as scope:
        mountpoint = scope.synthfs_mount(genuine.root, "--database", genuine.database)
        yield Bench(scope, genuine, writable_copy(scope, genuine), mountpoint, scope.sparse(LENGTH, "zero"))
