"""Every disk of a store: which images are offered, and which of them stand in each other's disks.

An image of C: belongs on one disk with the ESP that was imaged beside it and with D:, which has its own backup of about
the same time. Siblings of a partition are the offered images of the same client whose own `.mbr` names the same disk and
puts them at the same place. Of those, one whose place is beyond doubt goes before all others, and of these the one wins that

    1. UrBackup itself associates with the image (SYSVOL and ESP of a C:),
    2. was taken in the same snapshot group (equal `backuptime`),
    3. lies nearest in time, before or after: volumes of one run are imaged one after another.

Machines have nothing to do with each other: each is planned by itself, when somebody first asks what it offers, and one about
which nothing new is known stays as it was. In a store that is looked at every minute, that is nearly all of them; and of
10,000 images that a mount begins to show, nobody has to wait for more than those of the machine that he looks at.

Not for: single disks (`plan/disk`), completeness (`plan/complete`). Times in seconds.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from synthfs.errors import FormatError
from synthfs.model import DatabaseFacts, ImageFacts, ImageRow, Kind, Note, Skipped, StoreFacts
from synthfs.plan.complete import Judge, Verdict, clock
from synthfs.plan.disk import Disk, Planner, Volume, assemble
from synthfs.plan.layout import Layout, Partition
from synthfs.plan.nearest import Timeline


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
    """The images of one client, and when its other images began that UrBackup calls incomplete."""

    judged: tuple[Judged, ...]
    unfinished: tuple[int, ...]

    def offer(self) -> Offer:
        """What follows from both: worked out at the first call, and kept. Any thread may ask."""
        # No `cached_property`: before Python 3.12, whoever asked one machine would wait for all that are being asked.
        offer: Offer | None = self.__dict__.get("_offer")
        return offer or self.__dict__.setdefault("_offer", _offer(self.judged, self.unfinished))

    @property
    def newest_ns(self) -> int | None:
        """When the newest image was made that is complete, in nanoseconds since 1970 UTC; None where there is none."""
        return max((image.raw.mtime_ns for image, _, verdict in self.judged if verdict.offered), default=None)


@dataclass(frozen=True)
class Catalog:
    """What a store has to offer, by client and time; `skipped` is everything else, with reasons.

    `database` is the path of the one that had its say, None where none had, and `rows` are the images that it knows.
    `machines` are the clients. What is gathered from all of them is worked out at the first look, and kept.
    """

    store: StoreFacts
    database: str | None
    notes: tuple[Note, ...]
    rows: frozenset[str]
    machines: Mapping[str, Machine] = field(repr=False)

    @cached_property
    def disks(self) -> tuple[Disk, ...]:
        return tuple(disk for machine in self.machines.values() for disk in machine.offer().disks)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for machine in self.machines.values() for part in machine.offer().parts)

    @cached_property
    def skipped(self) -> tuple[Skipped, ...]:
        skipped = [*self.store.skipped, *(each for machine in self.machines.values() for each in machine.offer().skipped)]
        return tuple(sorted(skipped, key=lambda each: (each.client, each.name)))

    @cached_property
    def settling(self) -> tuple[str, ...]:
        """Images of C: whose SYSVOL or ESP UrBackup has not recorded as complete yet, as it will in a moment."""
        return tuple(name for machine in self.machines.values() for name in machine.offer().settling)

    @property
    def is_empty(self) -> bool:
        """Whether there is no disk. It takes no more than the first machine that has one."""
        return not any(machine.offer().disks for machine in self.machines.values())


def plan(
    store: StoreFacts, database: DatabaseFacts | None, notes: tuple[Note, ...] = (), before: Catalog | None = None
) -> Catalog:
    """The catalog of `store` as `database` judges it; `notes` are about the store as a whole and passed on.

    `before` is an earlier catalog. It spares work and changes nothing.
    """
    judge = Judge(database)
    judged: defaultdict[str, list[Judged]] = defaultdict(list)
    for image in store.images:
        judged[image.client].append(Judged(image, row := judge.row(image), judge.verdict(image, row)))
    unfinished = _unfinished(database)
    machines: dict[str, Machine] = {}
    for client in sorted(judged):
        basis = tuple(judged[client]), tuple(unfinished.get(client, ()))
        known = before.machines.get(client) if before else None
        machines[client] = known if known and (known.judged, known.unfinished) == basis else Machine(*basis)
    rows = frozenset(database.rows) if database else frozenset[str]()
    return Catalog(store, database.path if database else None, notes, rows, machines)


def _offer(judged: tuple[Judged, ...], unfinished: tuple[int, ...]) -> Offer:
    # What it remembers is of use within one machine, and large.
    planner = Planner()
    volumes: list[_Dated] = []
    skipped: list[Skipped] = []
    for image, row, verdict in judged:
        if not verdict.offered:
            skipped.append(Skipped(image.client, image.name, verdict.reason, verdict.kind))
            continue
        try:
            volume = planner.volume(image)
        except FormatError as error:
            skipped.append(Skipped(image.client, image.name, str(error), Kind.UNUSABLE))
            continue
        if verdict.note:
            volume = replace(volume, notes=(*volume.notes, verdict.note))
        volumes.append(_Dated(volume, row, clock(image.stamp)))
    shelf = _Shelf(volumes)
    disks, parts = [], []
    for dated in volumes:
        disk_id = dated.volume.layout.disk_id
        if dated.volume.image.is_system_partition and disk_id and shelf.has_main_volume(disk_id):
            parts.append(Part(dated.volume.image, disk_id))
        else:
            disks.append(assemble(dated.volume, dict(shelf.siblings(dated))))
    return Offer(
        tuple(sorted(disks, key=lambda disk: _order(disk.image))),
        tuple(sorted(parts, key=lambda part: _order(part.image))),
        tuple(skipped),
        tuple(_settling(volumes, unfinished)),
    )


def _unfinished(database: DatabaseFacts | None) -> Mapping[str, list[int]]:
    """By client, when the images of SYSVOL and ESP began that UrBackup calls incomplete."""
    waiting: defaultdict[str, list[int]] = defaultdict(list)
    for row in database.rows.values() if database else ():
        if not row.complete and ("Image_SYSVOL_" in row.name or "Image_ESP_" in row.name):
            client, _, file = row.name.partition("/")
            if "Image_SYSVOL_" in file or "Image_ESP_" in file:
                waiting[client].append(row.backuptime)
    return waiting


def _settling(volumes: Iterable["_Dated"], unfinished: Sequence[int]) -> Iterator[str]:
    """Images of C: without an associated image, beside one of SYSVOL or ESP of that hour that is not complete."""
    for dated in volumes:
        own, image = dated.row, dated.volume.image
        if own is None or own.associated or image.letter != "C":
            continue
        if any(0 <= own.backuptime - time <= 3600 for time in unfinished):
            yield image.name


def _order(image: ImageFacts) -> tuple[str, str]:
    return image.stamp, image.name


@dataclass(frozen=True, slots=True)
class _Dated:
    volume: Volume
    row: ImageRow | None
    clock: int
    """Seconds of the image's stamp on the server's own clock: good for differences only, its time zone is not known."""

    @property
    def name(self) -> str:
        return self.volume.image.name

    def distance(self, other: "_Dated") -> int:
        """Seconds from this image to `other`, positive where `other` is newer.

        By UrBackup's UTC times where both have a row, by their stamps of the server's clock otherwise.
        """
        if self.row and other.row:
            return other.row.backuptime - self.row.backuptime
        return other.clock - self.clock


class _Shelf:
    """The offered volumes of all disks of a client, by the partition that they were taken from."""

    def __init__(self, volumes: Sequence[_Dated]) -> None:
        by_key: defaultdict[object, list[_Dated]] = defaultdict(list)
        self._main_disks: set[str] = set()
        for dated in volumes:
            volume = dated.volume
            if volume.key:
                by_key[volume.key].append(dated)
            if volume.layout.disk_id and not volume.image.is_system_partition:
                self._main_disks.add(volume.layout.disk_id)
        self._rivals = {key: _Rivals(_most_certain(volumes)) for key, volumes in by_key.items()}
        self._tables: dict[int, tuple[Layout, list[tuple[Partition, _Rivals]]]] = {}

    def has_main_volume(self, disk_id: str) -> bool:
        return disk_id in self._main_disks

    def siblings(self, dated: _Dated) -> Iterator[tuple[int, tuple[Volume, int]]]:
        """For each other partition of the disk that was imaged: its number, the best image, and its age in seconds."""
        for partition, rivals in self._imaged(dated.volume):
            if partition != dated.volume.partition:
                best = rivals.best_for(dated)
                yield partition.number, (best.volume, dated.distance(best))

    def _imaged(self, volume: Volume) -> list[tuple[Partition, "_Rivals"]]:
        """The partitions of the volume's disk that were imaged, with their images. One layout is that of many images."""
        layout = volume.layout
        if id(layout) not in self._tables:
            keys = ((partition, volume.key_of(partition)) for partition in layout.partitions)
            self._tables[id(layout)] = layout, [(each, self._rivals[key]) for each, key in keys if key in self._rivals]
        return self._tables[id(layout)][1]


def _most_certain(volumes: Sequence[_Dated]) -> Sequence[_Dated]:
    """Those whose place is beyond doubt, if there are any."""
    return [dated for dated in volumes if not dated.volume.disputed] or volumes


class _Rivals:
    """Images of one partition, each as sure of its place as the others."""

    def __init__(self, volumes: Sequence[_Dated]) -> None:
        self._by_name = {each.name: each for each in volumes}
        self._by_clock = Timeline((each.clock, each.name, each) for each in volumes)
        self._recorded = Timeline((each.row.backuptime, each.name, each) for each in volumes if each.row)
        self._unrecorded = Timeline((each.clock, each.name, each) for each in volumes if not each.row)

    def best_for(self, dated: _Dated) -> _Dated:
        if not dated.row:
            nearest = [self._by_clock.nearest(dated.clock)]
        elif associated := [self._by_name[name] for name in dated.row.associated if name in self._by_name]:
            return min(associated, key=lambda other: _associated_merit(dated, other))
        elif together := self._recorded.at(dated.row.backuptime):
            return together
        else:
            nearest = [self._recorded.nearest(dated.row.backuptime), self._unrecorded.nearest(dated.clock)]
        _, _, best = min(filter(None, nearest), key=lambda found: found[:2])
        return best


def _associated_merit(dated: _Dated, other: _Dated) -> tuple[bool, int, str]:
    together = bool(dated.row and other.row and dated.row.backuptime == other.row.backuptime)
    return not together, abs(dated.distance(other)), other.name
