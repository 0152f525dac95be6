"""Logical drives: where they lay in an extended partition, if that follows from their images.

UrBackup saves the boot record, which has the extended partition, and none of the records inside it, which have the drives.
What is known of a drive is its number, its length, and what its boot sector says of its place: the sectors before it, counted
from the start of the disk (mkntfs), or from the record in front of it (Windows: 63 or 2048).

    extended partition   │ record │ gap │   drive 1   │ record │ gap │   drive 2   │
                         └── hidden sectors of drive 1 ─┘

The places of all drives follow where there is no room for another drive, that nobody imaged, and

    1. each boot sector names a place from the start of the disk, in the order of the numbers; or
    2. the drives, in that order and each behind its gap, end exactly where the extended partition does. Each begins right
       behind its gap, or at the next whole MiB. A drive that names no gap has that of Windows, of MS-DOS, or of Debian.

Either way the numbers have to be those of 1 to n without one missing, of n different volumes, all from one run. Where anything
is in doubt, or more than one chain is possible, no drive is placed.

Not for: choosing the images (`plan/siblings`). Units: bytes, but for hidden sectors. Source: Microsoft, "Disk Concepts and
Troubleshooting" (Windows 2000 resource kit), for the chain of records.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from synthfs.formats import bootsector, mbr
from synthfs.plan.layout import EXTENDED, Layout, Partition
from synthfs.units import MiB, align_up

_MOST = 60
"""More drives than Windows has letters for; a chain of thousands comes from nobody's disk."""


@dataclass(frozen=True, slots=True)
class Drive:
    """What the image of a logical drive tells: `length` of its partition, `hidden` sectors by its boot sector (0: unknown).

    `id` is that of its file system, empty where it is not known.
    """

    number: int
    length: int
    hidden: int
    type: int
    id: str = ""

    @classmethod
    def of(cls, number: int, volume_length: int, boot: bytes, sector_size: int, recorded_id: str = "") -> "Drive":
        """From the image of drive `number` (counted from 1), whose volume begins with `boot`."""
        found = bootsector.parse(boot)
        length = bootsector.partition_length(boot, volume_length)
        hidden = found.hidden_sectors if found else 0
        return cls(number, align_up(length, sector_size), hidden, _type(boot), bootsector.volume_id(boot) or recorded_id)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the places of the drives do not follow; a clause."""

    why: str


@dataclass(frozen=True, slots=True)
class WithDrives:
    """A layout with logical drives, numbered from 5, in place of its extended partition, and what their places follow from."""

    layout: Layout
    evidence: str


def place(layout: Layout, drives: Sequence[Drive]) -> WithDrives | Doubt:
    """`layout` with its logical drives. `drives`, at least one, are in the order of their numbers."""
    extended = [p for p in layout.partitions if p.container == EXTENDED]
    if len(extended) != 1:
        return Doubt(f"the disk has {len(extended)} extended partitions")
    if [drive.number for drive in drives] != list(range(1, len(drives) + 1)):
        missing = next(n for n in range(1, len(drives) + 2) if n not in {drive.number for drive in drives})
        return Doubt(f"there is no image of logical drive {missing}")
    ids = [drive.id for drive in drives if drive.id]
    if len(set(ids)) < len(ids):
        return Doubt("one of them was imaged under two numbers")
    if len(drives) > _MOST:
        return Doubt(f"there are {len(drives)} of them")
    found = {chain.places: chain for chain in _chains(layout, extended[0], drives)}
    if len(found) != 1:
        why = "several orders are possible" if found else "they do not fill it, and their boot sectors do not tell"
        return Doubt(f"their places in partition {extended[0].number} do not follow: {why}")
    (chain,) = found.values()
    return WithDrives(_with_drives(layout, extended[0], drives, chain), chain.evidence)


@dataclass(frozen=True, slots=True)
class _Chain:
    """Offset of the record and of the drive itself, for each drive."""

    places: tuple[tuple[int, int], ...]
    evidence: str


def _chains(layout: Layout, extended: Partition, drives: Sequence[Drive]) -> Iterator[_Chain]:
    """All chains that the evidence allows; two of them may be the same."""
    if places := _named_places(layout.sector_size, extended, drives):
        yield _Chain(places, "the places that their boot sectors name")
    size = layout.sector_size
    # Windows and sfdisk; MS-DOS; and the installer of Debian, which begins the extended partition two sectors before its drive.
    for default, units in ((MiB, (size, MiB)), (63 * size, (size,)), (2 * size, (MiB,))):
        for unit in units:
            if places := _filling_places(layout.sector_size, extended, drives, default, unit):
                yield _Chain(places, "their numbers, boot sectors and lengths, with which they fill the extended partition")


def _named_places(size: int, extended: Partition, drives: Sequence[Drive]) -> tuple[tuple[int, int], ...]:
    """By boot sectors that count from the start of the disk; empty where they do not, or where there is room for one more.

    The next drive begins at the next whole MiB that leaves one for its record: less than two MiB behind the last one.
    """
    places: list[tuple[int, int]] = []
    at = extended.start
    for drive in drives:
        start = drive.hidden * size
        if not at + size <= start < at + 2 * MiB:
            return ()
        # The first record is where the extended partition begins. The others lie as far before their drive as those of Windows.
        places.append((max(at, start - MiB) if places else at, start))
        at = start + drive.length
    return tuple(places) if 0 <= extended.end - at < MiB else ()


def _filling_places(
    size: int, extended: Partition, drives: Sequence[Drive], default: int, unit: int
) -> tuple[tuple[int, int], ...]:
    """One drive behind another, each from a multiple of `unit` on; empty where they do not fill the extended partition.

    `default` is the gap for drives that name none; that of Windows leads from a whole MiB to a whole MiB.
    """
    places: list[tuple[int, int]] = []
    at = extended.start
    for drive in drives:
        from_disk = drive.hidden * size == align_up(at + default, unit)
        gap = default if from_disk or not drive.hidden else drive.hidden * size
        start = align_up(at + gap, unit)
        if gap == MiB and (start % MiB or extended.start % MiB):
            return ()
        # The record lies before its drive by the gap that the boot sector names, and right behind the last drive otherwise.
        places.append((at if not drive.hidden or from_disk or not places else start - gap, start))
        at = start + drive.length
    return tuple(places) if at == extended.end else ()


def _with_drives(layout: Layout, extended: Partition, drives: Sequence[Drive], chain: _Chain) -> Layout:
    size = layout.sector_size
    partitions = [p for p in layout.partitions if p != extended]
    records: list[tuple[int, bytes]] = []
    after = mbr.Entry()
    for drive, (record, start) in reversed(list(zip(drives, chain.places, strict=True))):
        own = _entry(drive.type, start - record, drive.length, size)
        records.insert(0, (record, mbr.MasterBootRecord((own, after, mbr.Entry(), mbr.Entry())).pack()))
        after = _entry(0x05, record - extended.start, start + drive.length - record, size)
    for drive, (_, start) in zip(drives, chain.places, strict=True):
        partitions.append(Partition(4 + drive.number, start, drive.length, f"type {drive.type:02x}, logical", "", None))
    return replace(layout, partitions=tuple(partitions), extended=tuple(records))


def _entry(kind: int, start: int, length: int, sector_size: int) -> mbr.Entry:
    return mbr.Entry(kind, start // sector_size, length // sector_size, 0, mbr.CHS_TOO_FAR, mbr.CHS_TOO_FAR)


def _type(boot: bytes) -> int:
    """The type of partition that goes with the file system."""
    match bootsector.file_system(boot):
        case "NTFS" | "exFAT" | "ReFS" | "BitLocker":
            return 0x07
        case "FAT":
            return 0x0C if bootsector.is_fat32(boot) else 0x0E
        case "swap":
            return 0x82
        case _:
            return 0x83
