"""Every disk of a store: which images are offered, and which of them stand in each other's disks.

An image of C: belongs on one disk with the ESP that was imaged beside it and with D:, which has its own backup of about
the same time. Siblings of a partition are the offered images of the same client whose own `.mbr` names the same disk and
puts them at the same place. Of those, one whose place is beyond doubt goes before all others, and of these the one wins that

    1. UrBackup itself associates with the image (SYSVOL and ESP of a C:),
    2. was taken in the same snapshot group (equal `backuptime`),
    3. lies nearest in time, before or after: volumes of one run are imaged one after another.

Not for: single disks (`plan/disk`), completeness (`plan/complete`). Times in seconds.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from synthfs.errors import FormatError
from synthfs.model import DatabaseFacts, ImageFacts, ImageRow, Kind, Note, Skipped, StoreFacts
from synthfs.plan.complete import Judge, clock
from synthfs.plan.disk import Disk, Planner, Volume, assemble


@dataclass(frozen=True, slots=True)
class Part:
    """An offered SYSVOL or ESP image: it has no disk of its own, since it is part of the disks of `disk_id`."""

    image: ImageFacts
    disk_id: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a store has to offer, by client and time; `skipped` is everything else, with reasons.

    `database` is the path of the one that had its say, None where none had, and `rows` are the images that it knows.
    `settling` are images of C: whose SYSVOL or ESP UrBackup has not recorded as complete yet, as it will in a moment.
    """

    store: StoreFacts
    database: str | None
    disks: tuple[Disk, ...]
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[Note, ...]
    rows: frozenset[str] = frozenset()
    settling: tuple[str, ...] = ()


def plan(store: StoreFacts, database: DatabaseFacts | None, notes: tuple[Note, ...] = ()) -> Catalog:
    """The catalog of `store` as `database` judges it; `notes` are about the store as a whole and passed on."""
    judge, planner = Judge(database), Planner()
    volumes: list[_Dated] = []
    skipped = list(store.skipped)
    for image in store.images:
        verdict = judge.verdict(image)
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
        volumes.append(_Dated(volume, judge.row(image), clock(image.stamp)))
    shelf = _Shelf(volumes)
    disks, parts = [], []
    for dated in volumes:
        disk_id = dated.volume.layout.disk_id
        if dated.volume.image.is_system_partition and disk_id and shelf.has_main_volume(dated.volume):
            parts.append(Part(dated.volume.image, disk_id))
        else:
            disks.append(assemble(dated.volume, dict(shelf.siblings(dated))))
    return Catalog(
        store,
        database.path if database else None,
        tuple(sorted(disks, key=lambda disk: _order(disk.image))),
        tuple(sorted(parts, key=lambda part: _order(part.image))),
        tuple(sorted(skipped, key=lambda each: (each.client, each.name))),
        notes,
        frozenset(database.rows) if database else frozenset(),
        tuple(_settling(volumes, database)),
    )


def _settling(volumes: Iterable["_Dated"], database: DatabaseFacts | None) -> Iterator[str]:
    """Images of C: without an associated image, beside a row of SYSVOL or ESP of that hour that is not complete."""
    waiting: defaultdict[str, list[int]] = defaultdict(list)
    for row in database.rows.values() if database else ():
        client, _, file = row.name.partition("/")
        if not row.complete and ("Image_SYSVOL_" in file or "Image_ESP_" in file):
            waiting[client].append(row.backuptime)
    for dated in volumes:
        own, image = dated.row, dated.volume.image
        if own is None or own.associated or image.letter != "C":
            continue
        if any(0 <= own.backuptime - time <= 3600 for time in waiting[image.client]):
            yield image.name


def _order(image: ImageFacts) -> tuple[str, str, str]:
    return image.client, image.stamp, image.name


@dataclass(frozen=True, slots=True)
class _Dated:
    volume: Volume
    row: ImageRow | None
    clock: int
    """Seconds of the image's stamp on the server's own clock: good for differences only, its time zone is not known."""

    def distance(self, other: "_Dated") -> int:
        """Seconds from this image to `other`, positive where `other` is newer.

        By UrBackup's UTC times where both have a row, by their stamps of the server's clock otherwise.
        """
        if self.row and other.row:
            return other.row.backuptime - self.row.backuptime
        return other.clock - self.clock


class _Shelf:
    """The offered volumes of all disks, by the partition that they were taken from."""

    def __init__(self, volumes: Sequence[_Dated]) -> None:
        self._by_key: defaultdict[object, list[_Dated]] = defaultdict(list)
        self._main_disks: set[tuple[str, str]] = set()
        for dated in volumes:
            volume = dated.volume
            if volume.key:
                self._by_key[volume.key].append(dated)
            if volume.layout.disk_id and not volume.image.is_system_partition:
                self._main_disks.add((volume.image.client, volume.layout.disk_id))

    def has_main_volume(self, volume: Volume) -> bool:
        return (volume.image.client, volume.layout.disk_id) in self._main_disks

    def siblings(self, dated: _Dated) -> Iterator[tuple[int, tuple[Volume, int]]]:
        """For each other partition of the disk that was imaged: its number, the best image, and its age in seconds."""
        for partition in dated.volume.layout.partitions:
            candidates = self._by_key.get(dated.volume.key_of(partition), ())
            if partition != dated.volume.partition and candidates:
                best = _best(dated, candidates)
                yield partition.number, (best.volume, dated.distance(best))


def _best(dated: _Dated, candidates: Iterable[_Dated]) -> _Dated:
    associated = dated.row.associated if dated.row else ()

    def merit(other: _Dated) -> tuple[bool, bool, bool, int, str]:
        image = other.volume.image
        together = bool(dated.row and other.row and dated.row.backuptime == other.row.backuptime)
        return other.volume.disputed, image.name not in associated, not together, abs(dated.distance(other)), image.name

    return min(candidates, key=merit)
