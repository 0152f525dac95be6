"""The parts of a disk's file by their names, so that a difference can be told by name: "partition 3", "backup GPT header".

Not for: finding differences (`engines/verify`). Units: bytes, from the beginning of the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from synthfs.extents import Bytes, ExtentMap, FileRange, Zero
from synthfs.plan.container import Format
from synthfs.plan.disk import Content, Disk

BESIDE = "space that belongs to no partition"
FOOTER = "footer"
STRUCTURES = "structures of the container, or tables"


@dataclass(frozen=True, slots=True)
class Part:
    """[offset, offset + length) of a file. `inside` is where that begins in a partition, None for what lies in none."""

    offset: int
    length: int
    name: str
    inside: int | None = None


def parts(disk: Disk, extents: ExtentMap, form: Format) -> Iterator[Part]:
    """What the file of `extents`, which is `disk` in such a container, consists of, from its beginning to its end."""
    return _scattered(disk, extents) if form.is_sparse else _in_order(disk, extents.length)


def partition_name(content: Content) -> str:
    partition = content.partition
    what = partition.label or partition.type
    return f"partition {partition.number} ({what})"


def _in_order(disk: Disk, length: int) -> Iterator[Part]:
    """A container that begins with the disk itself."""
    named: list[tuple[int, int, str, int | None]] = [(at, len(data), name, None) for name, at, data in disk.layout.tables]
    named += [(p.body, p.end - p.body, partition_name(c), p.body - p.start) for c in disk.contents for p in [c.partition]]
    end = 0
    for offset, amount, name, inside in sorted(named, key=lambda each: each[0]):
        if end < offset:
            yield Part(end, offset - end, BESIDE)
        yield Part(offset, amount, name, inside)
        end = offset + amount
    if end < disk.length:
        yield Part(end, disk.length - end, BESIDE)
    if disk.length < length:
        yield Part(disk.length, length - disk.length, FOOTER)


def _scattered(disk: Disk, extents: ExtentMap) -> Iterator[Part]:
    """A container that holds the disk in blocks, in an order of its own."""
    homes = {c.volume.image.raw: (c, c.volume) for c in disk.contents if c.volume}
    for offset, extent in extents:
        match extent:
            case FileRange(source, at, length):
                content, volume = homes[source]
                yield Part(offset, length, partition_name(content), at - volume.offset)
            case Bytes():
                last = offset + extent.length == extents.length
                yield Part(offset, extent.length, FOOTER if last else STRUCTURES)
            case Zero(length):
                yield Part(offset, length, "space that has to be zero")
