"""The tables of a disk: which partitions it has, and every byte that is none of theirs.

A `Layout` is rebuilt from what UrBackup captured (`captured`), or made up for a volume that has no usable one
(`generated`). The captured bytes are kept wherever they are sound; what the capture lacks (a backup GPT, checksums) is
made fresh. Nothing is taken on trust: an `.mbr` comes from the backed-up machine, so overlaps, wrong checksums and places
outside the disk are FormatErrors here, and no later module has to look again.

A GPT tells how long its disk is. A boot record does not: such a disk ends at the first whole MiB behind its last partition,
since virtual machines and clouds want whole MiB (qemu with `cache=none`, KubeVirt, Azure).

Not for: volumes and images (`plan/disk`). Units: bytes; LBAs in logical sectors of the disk.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal
from uuid import UUID

from synthfs import identity
from synthfs.errors import FormatError
from synthfs.formats import bootsector, gpt, mbr
from synthfs.model import VOLUME_OFFSET, Note
from synthfs.units import MiB, TiB, align_up
from synthfs.urbackup.mbrfile import CapturedGpt, MbrFile

MAX_LENGTH = 8192 * TiB
"""No disk is longer; a table that says so is wrong, and the sums below stay far from 2^63."""

MIN_GENERATED = 256 * MiB
"""Windows makes no GPT on less than 128 MB; twice that is safe."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A used entry of the table: [start, start + length) of the disk. `number` is its slot, counted from 1.

    `guid` is None on MBR disks. `container` says what the partition is if it is no place for a volume: volumes lie
    somewhere inside it, and UrBackup does not save where.
    """

    number: int
    start: int
    length: int
    type: str
    label: str
    guid: UUID | None
    container: str | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


    @property
    def body(self) -> int:
        """Where it begins to be anything else than a table: an extended partition begins with a boot record of its own."""
        return self.start + min(mbr.SIZE, self.length) if self.container == EXTENDED else self.start


EXTENDED, LVM = "an extended partition", "an LVM physical volume"
_MBR_CONTAINERS = dict.fromkeys(mbr.EXTENDED, EXTENDED) | {
    mbr.LVM: LVM,
    mbr.LDM: "a part of a dynamic disk",
}
_GPT_CONTAINERS = {
    gpt.LINUX_LVM: LVM,
    gpt.LDM_METADATA: "the catalogue of a dynamic disk",
    gpt.LDM_DATA: "a part of a dynamic disk",
}


@dataclass(frozen=True, slots=True)
class Gpt:
    """Both copies of a GPT: `backup` differs from `primary` in its LBAs alone."""

    primary: gpt.Header
    backup: gpt.Header
    entries: tuple[gpt.Entry, ...]


@dataclass(frozen=True)
class Layout:
    """A disk without its volumes. `tables` are bytes at their offsets, apart from each other and from all partitions.

    `disk_id` is what groups images of one disk: GPT disk GUID or MBR signature, None where that is zero. `made_up` marks
    one that no disk ever had. `scheme` is "none" for a disk without a table, whose one "partition" is its volume.
    `extended` are the boot records of logical drives, with their offsets.
    """

    scheme: Literal["GPT", "MBR", "none", "as imaged"]
    disk_id: str | None
    sector_size: int
    length: int
    partitions: tuple[Partition, ...]
    record: mbr.MasterBootRecord | None
    gpt: Gpt | None = None
    extra: tuple[int, bytes] | None = None
    notes: tuple[Note, ...] = ()
    made_up: bool = False
    extended: tuple[tuple[int, bytes], ...] = ()

    @property
    def tables(self) -> list[tuple[str, int, bytes]]:
        """Every table with its name and offset."""
        found = [("boot record", 0, self.record.pack())] if self.record else []
        if self.gpt:
            entries = gpt.pack_entries(self.gpt.entries)
            for which, header in (("GPT", self.gpt.primary), ("backup GPT", self.gpt.backup)):
                found.append((f"{which} header", header.own_lba * self.sector_size, header.pack()))
                found.append((f"{which} entries", header.entries_lba * self.sector_size, entries))
        if self.extra:
            found.append(("boot loader", *self.extra))
        found += [("extended boot record", offset, raw) for offset, raw in self.extended]
        return found

    @cached_property
    def digest(self) -> bytes:
        """Stands for all bytes of the tables, and for the disk's length where they do not tell it.

        Kept, since thousands of disks may share one layout.
        """
        parts: list[int | bytes] = [part for _, offset, data in self.tables for part in (offset, data)]
        # Version 0.1.0 ended such a disk with its last partition: one of the same bytes keeps the edition that it had.
        if not self.gpt and self.length != max(partition.end for partition in self.partitions):
            parts.append(self.length)
        return identity.digest("layout", *parts)


def captured(sidecar: MbrFile, sector_size: int = mbr.SIZE) -> Layout:
    """The layout of the disk that `sidecar` was read from. Raises FormatError where no sound one can be made.

    `sector_size` is that of a disk with a boot record alone, which does not name it. A GPT does.
    """
    return checked(_captured_gpt(sidecar) if sidecar.primary else _captured_mbr(sidecar, sector_size))


def _captured_mbr(sidecar: MbrFile, sector_size: int) -> Layout:
    record = mbr.parse(sidecar.boot_record)
    if any(entry.type == mbr.PROTECTIVE for entry in record.entries):
        raise FormatError("the boot record announces a GPT that was not captured")
    if any(entry.status not in (0, mbr.ACTIVE) for entry in record.entries):
        raise FormatError("the first sector of the disk is no boot record: a status is neither 00 nor 80")
    partitions = tuple(
        Partition(
            number,
            entry.first_lba * sector_size,
            entry.sectors * sector_size,
            "extended" if entry.extended else f"type {entry.type:02x}",
            "",
            None,
            _MBR_CONTAINERS.get(entry.type),
        )
        for number, entry in enumerate(record.entries, 1)
        if entry.used
    )
    if not partitions:
        raise FormatError("the boot record has no partition")
    length = align_up(max(partition.end for partition in partitions), MiB)
    disk_id = f"{record.signature:08x}" if record.signature else None
    notes = [_LENGTH_UNKNOWN]
    extra: tuple[int, bytes] | None = None
    if sidecar.extra:
        first = min(partition.start for partition in partitions)
        if mbr.SIZE <= sidecar.extra_position <= first - len(sidecar.extra):
            extra = (sidecar.extra_position, sidecar.extra)
        else:
            notes.append(Note("captured boot loader sectors lie inside a partition and were left out", warning=True))
    empty = tuple((p.start, _EMPTY_RECORD) for p in partitions if p.container == EXTENDED)
    return Layout("MBR", disk_id, sector_size, length, partitions, record, None, extra, tuple(notes), extended=empty)


_LENGTH_UNKNOWN = Note("the original disk's length is not recorded: this one ends at a whole MiB behind its last partition")

_EMPTY_RECORD = mbr.MasterBootRecord((mbr.Entry(),) * 4).pack()
"""An extended boot record without a logical drive. GNU parted refuses a whole disk where there is none at all."""


def unpartitioned(volume_length: int, boot: bytes) -> Layout:
    """A disk without a partition table, such as some sticks: its volume begins at its first byte.

    `volume_length` is that of the image, `boot` the beginning of the volume.
    """
    found = bootsector.parse(boot)
    sector_size = found.sector_size if found and found.sector_size == 4096 else mbr.SIZE
    length = align_up(max(volume_length, bootsector.partition_length(boot, volume_length)), sector_size)
    volume = Partition(1, 0, length, "volume without a partition table", "", None)
    return Layout("none", None, sector_size, align_up(length, MiB), (volume,), None, notes=(_NO_TABLE, _LENGTH_UNKNOWN))


_NO_TABLE = Note("the disk has no partition table: its volume begins at its first sector")


def _captured_gpt(sidecar: MbrFile) -> Layout:
    assert sidecar.primary is not None
    sector_size = sidecar.primary.header_position
    if sector_size not in (512, 4096):
        raise FormatError(f"GPT header at offset {sector_size}: logical sectors of 512 and 4096 bytes are known")
    table, notes = _both_copies(sidecar.primary, sidecar.backup, sector_size)
    header = table.primary
    try:
        record = mbr.parse(sidecar.boot_record)
    except FormatError as error:
        record = mbr.protective(header.other_lba + 1)
        notes.append(Note(f"protective boot record made anew: {error}"))
    partitions = tuple(
        Partition(
            number,
            entry.first_lba * sector_size,
            (entry.end_lba - entry.first_lba) * sector_size,
            gpt.TYPE_NAMES.get(entry.type, str(entry.type)),
            entry.name,
            entry.guid,
            _GPT_CONTAINERS.get(entry.type),
        )
        for number, entry in enumerate(table.entries, 1)
        if entry.used
    )
    disk_id = str(header.disk_guid) if header.disk_guid.int else None
    length = (header.other_lba + 1) * sector_size
    return Layout("GPT", disk_id, sector_size, length, partitions, record, table, None, tuple(notes))


def _both_copies(first: CapturedGpt, second: CapturedGpt | None, sector_size: int) -> tuple[Gpt, list[Note]]:
    """Both GPT copies from whichever of the two captured ones is sound; the primary one is preferred."""
    backup: tuple[gpt.Header, tuple[gpt.Entry, ...]] | None = None
    if second and second.header_position != first.header_position:
        try:
            backup = _sound(second, sector_size)
        except FormatError as error:
            notes = [Note(f"captured backup GPT not usable and made anew: {error}")]
        else:
            notes = []
    else:
        notes = [Note("backup GPT was not captured and is made from the primary one")]
    try:
        primary, entries = _sound(first, sector_size)
    except FormatError as error:
        if not backup:
            raise
        header, entries = backup
        text = f"tables taken from the backup GPT, the primary one is not usable: {error}"
        return Gpt(gpt.twin(header, 2), header, entries), [Note(text, warning=True)]
    if backup and gpt.twin(backup[0], primary.entries_lba) == primary:
        return Gpt(primary, backup[0], entries), notes
    if backup:
        notes.append(Note("captured backup GPT differs from the primary one and was made anew", warning=True))
    before_header = primary.other_lba - align_up(primary.entries_length, sector_size) // sector_size
    return Gpt(primary, gpt.twin(primary, before_header), entries), notes


def _sound(copy: CapturedGpt, sector_size: int) -> tuple[gpt.Header, tuple[gpt.Entry, ...]]:
    """One captured copy, if its checksums hold and it lies where it says that it lies."""
    header = gpt.parse_header(copy.header)
    if len(copy.header) != sector_size or header.own_lba * sector_size != copy.header_position:
        raise FormatError(f"GPT header of {len(copy.header)} bytes says LBA {header.own_lba}, found at {copy.header_position}")
    first, last = sorted((header.own_lba, header.other_lba))
    if first != 1 or last * sector_size <= header.entries_length or last * sector_size > MAX_LENGTH:
        raise FormatError(f"GPT says that its two copies are at LBA {first} and {last}; they begin at 1 and end the disk")
    return header, gpt.parse_entries(header, copy.table)


def generated(
    volume_length: int,
    kind: UUID,
    label: str,
    disk_guid: UUID,
    partition_guid: UUID,
    sector_size: int = 512,
    start: int = VOLUME_OFFSET,
) -> Layout:
    """A GPT disk with one partition for a volume of `volume_length` bytes.

    The partition starts at 512 KiB, where the volume starts in a `.raw` file as well: disk offset and file offset agree,
    so every file system can share the data, whatever its block size. Another `start`, a multiple of the sector size, is for
    a volume that tells where it began. Raises FormatError for a start inside the tables, or further than any disk reaches.
    """
    volume_length = align_up(volume_length, sector_size)
    entry_count = 128
    table = entry_count * gpt.ENTRY_SIZE // sector_size
    length = max(align_up(start + volume_length + (table + 1) * sector_size, MiB), MIN_GENERATED)
    if length > MAX_LENGTH:
        raise FormatError(f"no disk reaches to {length}")
    last = length // sector_size - 1
    name = label.encode("utf-16-le", "replace")[:70].ljust(72, b"\0")
    first = start // sector_size
    entry = gpt.Entry(kind, partition_guid, first, first + volume_length // sector_size, 0, name)
    nothing = UUID(int=0)
    entries = (entry, *[gpt.Entry(nothing, nothing, 0, 1)] * (entry_count - 1))
    rest = bytes(sector_size - gpt.HEADER_SIZE)
    blank = gpt.Header(1, last, table + 2, last - table - 1, disk_guid, 2, entry_count, gpt.ENTRY_SIZE, 0, rest=rest)
    primary = gpt.with_entries(blank, gpt.pack_entries(entries))
    both = Gpt(primary, gpt.twin(primary, last - table), entries)
    partition = Partition(1, start, volume_length, gpt.TYPE_NAMES[kind], label, partition_guid)
    record = mbr.protective(length // sector_size)
    return checked(Layout("GPT", str(disk_guid), sector_size, length, (partition,), record, both, made_up=True))


def as_imaged(length: int, sector_size: int) -> Layout:
    """A disk that was imaged as a whole, tables and all: its one "partition" is the disk."""
    return Layout("as imaged", None, sector_size, length, (Partition(1, 0, length, "whole disk", "", None),), None)


def with_gpt(layout: Layout, disk_guid: UUID, entries: tuple[gpt.Entry, ...]) -> Layout:
    """The same disk under another GUID and with other entries in the same slots; both copies get new checksums."""
    assert layout.gpt is not None
    raw = gpt.pack_entries(entries)
    primary, backup = (
        gpt.with_entries(replace(header, disk_guid=disk_guid), raw) for header in (layout.gpt.primary, layout.gpt.backup)
    )
    guids = {number: entry.guid for number, entry in enumerate(entries, 1)}
    partitions = tuple(replace(p, guid=guids[p.number]) for p in layout.partitions)
    return replace(layout, disk_id=str(disk_guid), gpt=Gpt(primary, backup, entries), partitions=partitions)


def checked(layout: Layout) -> Layout:
    """`layout` itself, if all of it lies on the disk and nothing overlaps. Raises FormatError otherwise."""
    places = [(f"the {name}", offset, len(data)) for name, offset, data in layout.tables]
    only_a_table = [p for p in layout.partitions if p.container == EXTENDED and p.length <= mbr.SIZE]
    places += [(f"partition {p.number}", p.body, p.end - p.body) for p in layout.partitions if p not in only_a_table]
    _check_apart(places, layout.length)
    return layout


def _check_apart(places: Iterable[tuple[str, int, int]], length: int) -> None:
    end, last = 0, "the start of the disk"
    for name, start, size in sorted(places, key=lambda place: place[1]):
        if size <= 0:
            raise FormatError(f"{name} ends before it starts, at offset {start}")
        if start < end:
            raise FormatError(f"{name} overlaps {last}")
        end, last = start + size, name
    if end > length:
        raise FormatError(f"{last} reaches to {end}, past the end of the disk at {length}")
