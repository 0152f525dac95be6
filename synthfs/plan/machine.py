"""What one machine has to offer: its images at their places, and the disks that they make.

First the place of each volume (`plan/disk`), then those places corrected that other volumes contradict (`plan/claims`), then
the siblings of each volume (`plan/siblings`) and its logical drives (`plan/logical`), and for each partition that stays empty
why it does (`plan/unused`).

Not for: completeness (`plan/complete`), a store of many machines (`plan/catalog`). Times in seconds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from synthfs.errors import FormatError
from synthfs.model import ImageFacts, ImageRow, Kind, Note, Skipped
from synthfs.plan import logical
from synthfs.plan.claims import settled
from synthfs.plan.complete import Verdict, clock
from synthfs.plan.disk import Disk, assemble
from synthfs.plan.layout import EXTENDED, Layout
from synthfs.plan.siblings import Dated, Siblings
from synthfs.plan.unused import Known, Unused
from synthfs.plan.volume import Planner, Volume


@dataclass(frozen=True, slots=True)
class Part:
    """An offered SYSVOL or ESP image: it has no disk of its own, since it is part of the disks of `disk_id`."""

    image: ImageFacts
    disk_id: str


class Judged(NamedTuple):
    """An image with UrBackup's record of it, and what follows from both."""

    image: ImageFacts
    row: ImageRow | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Offer:
    """What one machine has to offer, in the order of time, and its images that are not offered."""

    disks: tuple[Disk, ...]
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...]
    settling: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """The images of one client, and when its other images began that UrBackup calls incomplete.

    `relatives` are the images of other clients of the same machine: UrBackup calls them virtual clients.
    """

    judged: tuple[Judged, ...]
    unfinished: tuple[int, ...]
    relatives: tuple[Judged, ...] = ()

    def offer(self) -> Offer:
        """What follows from both: worked out at the first call, and kept. Any thread may ask."""
        # No `cached_property`: before Python 3.12, whoever asked one machine would wait for all that are being asked.
        offer: Offer | None = self.__dict__.get("_offer")
        return offer or self.__dict__.setdefault("_offer", _offer(self))

    @property
    def newest_ns(self) -> int | None:
        """When the newest image was made that is complete, in nanoseconds since 1970 UTC; None where there is none.

        One that the database does not know counts only where it knows none.
        """
        offered = ((not verdict.unknown, image.raw.mtime_ns) for image, _, verdict in self.judged if verdict.offered)
        _, newest = max(offered, default=(False, None))
        return newest


def _offer(machine: Machine) -> Offer:
    # What it remembers is of use within one machine, and large. Another client's images prove nothing about this one's disks:
    # whoever calls himself `pc[x]` is a virtual client of `pc`, and no more than named beside an empty partition.
    planner = Planner(image for image, _, _ in machine.judged)
    volumes: list[Dated] = []
    unused: list[Known] = []
    skipped: list[Skipped] = []
    for image, row, verdict in machine.judged:
        if not verdict.offered:
            skipped.append(Skipped(image.client, image.name, verdict.reason, verdict.kind))
            unused += _known(planner, image, row, f"it is not offered: {verdict.reason}")
            continue
        try:
            volume = planner.volume(image)
        except FormatError as error:
            skipped.append(Skipped(image.client, image.name, str(error), Kind.UNUSABLE))
            unused += _known(planner, image, row, f"it is not offered: {error}")
            continue
        if verdict.note:
            volume = replace(volume, notes=(*volume.notes, verdict.note))
        volumes.append(Dated(volume, row, clock(image.stamp), verdict.unknown))
    volumes = settled(volumes, [known.dated for known in unused])
    in_database = [known.dated for known in unused if known.dated.row]
    for image, row, _ in machine.relatives:
        unused += _known(planner, image, row, f"it belongs to the client {image.client}")
    builder = _Builder(volumes, unused, in_database)
    disks, parts = [], []
    for dated in volumes:
        if dated.volume.image.is_system_partition and builder.siblings.has_main_volume(dated):
            parts.append(Part(dated.volume.image, dated.volume.layout.disk_id or ""))
        else:
            disks.append(builder.disk(dated))
    return Offer(
        tuple(sorted(disks, key=lambda disk: _order(disk.image))),
        tuple(sorted(parts, key=lambda part: _order(part.image))),
        tuple(skipped),
        tuple(_settling(volumes, machine.unfinished)),
    )


def _known(planner: Planner, image: ImageFacts, row: ImageRow | None, why: str) -> Iterator[Known]:
    """An image that is not used; one that holds no volume still has an `.mbr` that tells of which partition it is."""
    try:
        volume = planner.volume(image)
    except FormatError as error:
        origin = planner.origin(image)
        if origin is None or origin.named is None:
            return
        volume = Volume(image, origin.layout, origin.named, 0, alone=str(error), origin=origin)
    yield Known(Dated(volume, row, clock(image.stamp)), why)


class _Builder:
    """Makes the disks of one machine of its volumes."""

    def __init__(self, volumes: Sequence[Dated], unused: Iterable[Known], in_database: Iterable[Dated]) -> None:
        self.siblings = Siblings(volumes, in_database)
        self._unused = Unused((*map(Known, volumes), *unused), self.siblings.devices)
        self._logical: dict[object, tuple[Layout, logical.WithDrives | logical.Doubt]] = {}

    def disk(self, dated: Dated) -> Disk:
        """The disk of one image, with its siblings."""
        devices = self.siblings.devices
        notes = [*_on_device(dated, devices.with_table_of(dated))]
        drives, doubt = self._logical_drives(dated), ""
        siblings: dict[int, tuple[Volume, int]] = {}
        if isinstance(drives, logical.Doubt):
            doubt = drives.why
        elif drives:
            images = self.siblings.logical_drives(dated)
            moved = {4 + number: _on_drive(each, drives.layout, 4 + number) for number, each in images.items()}
            own = moved.pop(4 + dated.volume.logical) if dated.volume.logical else None
            dated = own or replace(dated, volume=replace(dated.volume, layout=drives.layout))
            siblings = {number: (each.volume, dated.distance(each)) for number, each in moved.items()}
            text = f"the places of its logical drives follow from {drives.evidence}"
            notes.append(Note(f"{text}; the numbers are taken for their order on the disk"))
        siblings |= self.siblings.of(dated)
        clauses = self._unused.clauses(dated, dated.volume.layout, siblings)
        for partition in dated.volume.layout.partitions:
            if doubt and partition.container == EXTENDED and partition.number in clauses:
                clauses[partition.number] += f" ({doubt})"
        disk = assemble(dated.volume, siblings, clauses, notes, devices.name(dated))
        return replace(disk, unknown=True) if dated.unknown else disk

    def _logical_drives(self, dated: Dated) -> logical.WithDrives | logical.Doubt | None:
        """The disk of `dated` with its logical drives; None where none was imaged. Kept: it is that of many images."""
        origin, images = dated.volume.origin, self.siblings.logical_drives(dated)
        if origin is None or not images:
            return None
        size = origin.layout.sector_size
        volumes = [(number, each.volume) for number, each in images.items()]
        # Windows records a volume's serial number, which boot sectors have as well, in another form.
        ids = [v.origin.recorded_id if v.origin and v.origin.from_linux else "" for _, v in volumes]
        drives = tuple(
            logical.Drive.of(number, v.length, v.image.boot, size, found)
            for (number, v), found in zip(volumes, ids, strict=True)
        )
        key = id(origin.layout), drives
        if key not in self._logical:
            self._logical[key] = origin.layout, logical.place(origin.layout, drives)
        found, missing = self._logical[key][1], self.siblings.drive_numbers(dated) - images.keys()
        if missing and isinstance(found, logical.Doubt):
            return logical.Doubt(f"{found.why}; of this run there is no image of logical drive {min(missing)}")
        return found


def _on_device(dated: Dated, devices: Sequence[str]) -> Iterator[Note]:
    if devices:
        text = f"several disks have the table of this one ({', '.join(devices)}); this is the one on {dated.volume.device}"
        yield Note(f"{text}, and only images of it stand in it")


def _on_drive(dated: Dated, layout: Layout, number: int) -> Dated:
    partition = next(partition for partition in layout.partitions if partition.number == number)
    return replace(dated, volume=replace(dated.volume, layout=layout, partition=partition, alone="", notes=()))


def _settling(volumes: Iterable[Dated], unfinished: Sequence[int]) -> Iterator[str]:
    """Images of C: without an associated image, beside one of SYSVOL or ESP of that hour that is not complete."""
    for dated in volumes:
        own, image = dated.row, dated.volume.image
        if own is None or own.associated or image.letter != "C":
            continue
        if any(0 <= own.backuptime - time <= 3600 for time in unfinished):
            yield image.name


def _order(image: ImageFacts) -> tuple[str, str]:
    return image.stamp, image.name
