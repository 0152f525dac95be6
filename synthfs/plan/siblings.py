"""Which images stand beside each other on a disk: the choice between several images of one partition.

An image of C: belongs on one disk with the ESP that was imaged beside it and with D:, which has its own backup of about
the same time. Candidates for a partition are the offered images of the same client whose own `.mbr` names the same disk and
puts them at the same place. Of those the one is taken that

    1. UrBackup itself associates with the image (SYSVOL and ESP of a C:),
    2. was taken in the same snapshot group (equal `backuptime`),
    3. lies nearest in time, before or after: volumes of one run are imaged one after another.

Whether its place is beyond doubt decides only between images that claim one place in one run: then one of them is wrong.
So does whether UrBackup's database knows it, beside an image that it does not know. Beside one that it knows stands no other
where it knows any image of that partition, whatever became of that. Images of two volumes are of one run if each is the nearest
of its volume to the other, and they began within twelve hours.

Several disks of one machine may have equal tables, down to the ids (`dd`, or `sfdisk -d sda | sfdisk sdb`). They are told apart
by the device that the `.mbr` names. That name is no identity: Windows numbers its disks anew at each start, and Linux may swap
sda and sdb. So it counts only where it must: where one run has two devices, or, with Linux, where nothing says that a disk got
another name. Then siblings come from the same device alone, and from another run only if the disk was that device then, which
the image of its own partition tells.

Not for: places (`plan/place`), disks (`plan/disk`). Times in seconds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from synthfs.formats import bootsector
from synthfs.model import ImageRow
from synthfs.plan.layout import Layout, Partition
from synthfs.plan.nearest import Timeline
from synthfs.plan.volume import Volume

ONE_RUN = 12 * 3600
"""Images that began further apart are not of one run. Backups of most machines are a day or more apart."""

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Dated:
    """An offered volume with its time: UrBackup's record, if there is one, and the image's stamp.

    `clock` is in seconds of the server's own clock: good for differences only, its time zone is not known. `unknown`: the
    database should know the image, and does not.
    """

    volume: Volume
    row: ImageRow | None
    clock: int
    unknown: bool = False

    @property
    def name(self) -> str:
        return self.volume.image.name

    @property
    def letter(self) -> str:
        return self.volume.image.letter

    def distance(self, other: "Dated") -> int:
        """Seconds from this image to `other`, positive where `other` is newer.

        By UrBackup's UTC times where both have a row, by their stamps of the server's clock otherwise.
        """
        if self.row and other.row:
            return other.row.backuptime - self.row.backuptime
        return other.clock - self.clock

    def nearness(self, other: "Dated") -> tuple[int, str]:
        """What orders images by their distance from this one."""
        return abs(self.distance(other)), other.name


class Series:
    """Images by their time."""

    def __init__(self, images: Iterable[Dated]) -> None:
        images = tuple(images)
        self._by_clock = Timeline((each.clock, each.name, each) for each in images)
        self._recorded = Timeline((each.row.backuptime, each.name, each) for each in images if each.row)
        self._unrecorded = Timeline((each.clock, each.name, each) for each in images if not each.row)

    def nearest(self, dated: Dated) -> Dated | None:
        """The one nearest to `dated` in time, before or after; None where there are none."""
        if dated.row:
            found = [self._recorded.nearest(dated.row.backuptime), self._unrecorded.nearest(dated.clock)]
        else:
            found = [self._by_clock.nearest(dated.clock)]
        _, _, best = min(filter(None, found), key=lambda each: each[:2], default=(0, "", None))
        return best

    def at(self, backuptime: int) -> Sequence[Dated]:
        """Those of exactly that time by UrBackup's record."""
        return self._recorded.at(backuptime)


class Candidates:
    """The images of one partition, at least one."""

    def __init__(self, images: Sequence[Dated]) -> None:
        by_letter: defaultdict[str, list[Dated]] = defaultdict(list)
        for each in images:
            by_letter[each.letter].append(each)
        self.images = images
        self._by_name = {each.name: each for each in images}
        self._by_letter = {letter: Series(series) for letter, series in by_letter.items()}
        self._all = Series(images)
        unknown = any(each.unknown for each in images)
        self._known = Series(each for each in images if not each.unknown) if unknown else self._all

    def best_for(self, dated: Dated, is_one_run: Callable[[Dated, Dated], bool] = lambda one, other: False) -> Dated:
        """The one that belongs on the disk of `dated`, by the rules above; `is_one_run` tells what is of its run."""
        if row := dated.row:
            if associated := [self._by_name[name] for name in row.associated if name in self._by_name]:
                return min(associated, key=lambda other: (not _together(dated, other), *_merit(dated, other)))
            if together := self._all.at(row.backuptime):
                return min(together, key=lambda other: _merit(dated, other))
        nearest = self._all.nearest(dated)
        assert nearest is not None
        if not nearest.volume.disputed and not nearest.unknown:
            return nearest
        claims = [nearest]
        if nearest.volume.disputed:
            others = (found for series in self._by_letter.values() if (found := series.nearest(dated)))
            claims += (each for each in others if self._is_one_run(nearest, each))
        known = self._known.nearest(dated) if nearest.unknown else None
        if known and is_one_run(dated, known) and is_one_run(dated, nearest):
            claims.append(known)
        return min(claims, key=lambda other: _merit(dated, other))

    def nearest(self, letter: str, dated: Dated) -> Dated | None:
        """The image of this letter that is nearest to another one."""
        return self._by_letter[letter].nearest(dated)

    def _is_one_run(self, one: Dated, other: Dated) -> bool:
        if one is other:
            return True
        back_and_forth = ((one, other), (other, one))
        mutual = all(self._by_letter[there.letter].nearest(here) is there for here, there in back_and_forth)
        return mutual and abs(one.distance(other)) <= ONE_RUN


def _together(dated: Dated, other: Dated) -> bool:
    return bool(dated.row and other.row and dated.row.backuptime == other.row.backuptime)


def _merit(dated: Dated, other: Dated) -> tuple[bool, bool, int, str]:
    return other.volume.disputed, other.unknown, *dated.nearness(other)


class Siblings:
    """The offered volumes of all disks of a client, by the partition that they were taken from."""

    def __init__(self, volumes: Sequence[Dated], in_database: Iterable[Dated] = ()) -> None:
        """`in_database` are images that are not offered, and that UrBackup's database knows."""
        self.devices = Devices(volumes)
        self._main_disks: set[Key] = set()
        self._drives: defaultdict[Key, set[int]] = defaultdict(set)
        by_key: defaultdict[Key, list[Dated]] = defaultdict(list)
        for dated in volumes:
            volume, device = dated.volume, self.devices.name(dated)
            if key := volume.key:
                by_key[*key, device].append(dated)
            if volume.logical and volume.drives_key:
                self._drives[volume.drives_key].add(volume.logical)
            if volume.disk_key and not volume.image.is_system_partition:
                self._main_disks.add((*volume.disk_key, device))
        self._all = {key: Candidates(images) for key, images in by_key.items()}
        self._beside_known = self._all
        if any(dated.unknown for dated in volumes):
            others = {(*key, self.devices.name(dated)) for dated in in_database if (key := dated.volume.key)}
            known = {key: [each for each in images if not each.unknown] for key, images in by_key.items()}
            self._beside_known = {key: Candidates(found) for key, found in known.items() if found}
            self._beside_known |= {key: self._all[key] for key, found in known.items() if not found and key not in others}
        self._tables: dict[object, tuple[Layout, list[tuple[Partition, Candidates]]]] = {}
        self._of_same_disk: dict[object, Candidates | None] = {}

    def has_main_volume(self, dated: Dated) -> bool:
        """Whether an image of the same disk is one of more than SYSVOL or ESP."""
        key = dated.volume.disk_key
        return key is not None and (*key, self.devices.name(dated)) in self._main_disks

    def of(self, dated: Dated) -> Iterator[tuple[int, tuple[Volume, int]]]:
        """For each other partition of the disk that was imaged: its number, the best image, and its age in seconds."""
        for partition, candidates in self._imaged(dated):
            if partition != dated.volume.partition and (best := self._best(dated, candidates)):
                yield partition.number, (best.volume, dated.distance(best))

    def logical_drives(self, dated: Dated) -> dict[int, Dated]:
        """The image of each logical drive that was taken in one run with `dated`, by its number, counted from 1.

        Drives come and go, and their numbers with them: those of another run may be of other drives.
        """
        found: dict[int, Dated] = {}
        if (key := dated.volume.drives_key) is None:
            return found
        for number in sorted(self._drives[key]):
            candidates = self._candidates(dated).get((*key, number, self.devices.name(dated)))
            if number == dated.volume.logical:
                found[number] = dated
            elif candidates and (best := self._best(dated, candidates)) and self._is_one_run(dated, best):
                found[number] = best
        return found

    def drive_numbers(self, dated: Dated) -> Set[int]:
        """The numbers of all logical drives of the disk of which there is an image, whenever that was taken."""
        return self._drives.get(dated.volume.drives_key or (), set())

    def _is_one_run(self, dated: Dated, other: Dated) -> bool:
        """Whether no other image of the same volume as `dated` is nearer to `other`, and both began within twelve hours."""
        own = self._candidates(dated)[(*(dated.volume.key or ()), self.devices.name(dated))]
        return own.nearest(dated.letter, other) is dated and abs(dated.distance(other)) <= ONE_RUN

    def _candidates(self, dated: Dated) -> Mapping[Key, Candidates]:
        """The images of each partition that may stand beside `dated`."""
        return self._all if dated.unknown else self._beside_known

    def _best(self, dated: Dated, candidates: Candidates) -> Dated | None:
        best = candidates.best_for(dated, self._is_one_run)
        if not self.devices.name(dated) or self.devices.is_same_disk(dated, best):
            return best
        # Which of them are of the same disk is the same for all images of one volume.
        which = id(candidates), dated.volume.key, dated.volume.device, identity_of(dated)
        if which not in self._of_same_disk:
            left = [each for each in candidates.images if self.devices.is_same_disk(dated, each)]
            self._of_same_disk[which] = Candidates(left) if left else None
        same = self._of_same_disk[which]
        return same.best_for(dated, self._is_one_run) if same else None

    def _imaged(self, dated: Dated) -> list[tuple[Partition, Candidates]]:
        """The partitions of the volume's disk that were imaged, with their images. One layout is that of many images."""
        layout, device = dated.volume.layout, self.devices.name(dated)
        table = id(layout), device, dated.unknown
        if table not in self._tables:
            keys = ((partition, dated.volume.key_of(partition)) for partition in layout.partitions)
            found = ((each, self._candidates(dated).get((*key, device))) for each, key in keys if key)
            self._tables[table] = layout, [(each, candidates) for each, candidates in found if candidates]
        return self._tables[table][1]


class Devices:
    """Tells disks of equal tables apart, where images of different volumes have one place on several devices."""

    def __init__(self, volumes: Iterable[Dated]) -> None:
        places: defaultdict[Key, defaultdict[Key, list[Dated]]] = defaultdict(lambda: defaultdict(list))
        for dated in volumes:
            disk, place = dated.volume.disk_key, dated.volume.key
            if disk and place:
                places[disk][place].append(dated)
        self._devices: dict[Key, Sequence[str]] = {}
        self._series: dict[Key, Series] = {}
        for disk, by_place in places.items():
            if _have_several_disks(by_place.values()):
                self._devices[disk] = sorted({dated.volume.device for images in by_place.values() for dated in images})
                for place, images in by_place.items():
                    for device in self._devices[disk]:
                        self._series[*place, device] = Series(each for each in images if each.volume.device == device)

    def name(self, dated: Dated) -> str:
        """The device of an image, where its disk can be told from others by nothing else; empty otherwise."""
        return dated.volume.device if self.with_table_of(dated) else ""

    def with_table_of(self, dated: Dated) -> Sequence[str]:
        """The names of all devices that had the table of this image's disk, where they were several disks; empty otherwise."""
        if not self._devices:  # as on nearly all machines
            return ()
        key = dated.volume.disk_key
        return self._devices.get(key, ()) if key else ()

    def is_same_disk(self, dated: Dated, other: Dated) -> bool:
        """Whether this device was the disk of `dated` when `other` was taken.

        Of the images of the same partition on the same device, the one nearest to `other` tells: it has to be of one volume
        with `dated`.
        """
        place = dated.volume.key or ()
        near = self._series[(*place, dated.volume.device)].nearest(other)
        return near is None or identity_of(near) == identity_of(dated)


def _have_several_disks(places: Iterable[Sequence[Dated]]) -> bool:
    """Whether images with one table are of several disks, and not of one whose name changed. `places` has those of each place.

    Windows shows no two disks of one id at a time, and numbers its disks as it likes: only one place on two of them, in one
    run, tells. With Linux any two devices in one run do; in several runs they are one disk only if a volume was seen on both.
    """
    certain = [[each for each in images if not each.volume.disputed] for images in places]
    linux = [[each for each in images if each.volume.origin and each.volume.origin.from_linux] for images in certain]
    together = [each for images in linux for each in images]
    return any(map(_share_a_run, (*certain, together))) or not _are_linked({each.volume.device for each in together}, linux)


def _share_a_run(images: Sequence[Dated]) -> bool:
    """Whether images of different volumes, on different devices, are of one run."""
    if len({each.volume.device for each in images}) < 2:
        return False
    by_letter: defaultdict[str, list[Dated]] = defaultdict(list)
    for each in images:
        by_letter[_letter(each)].append(each)
    series = {letter: Series(found) for letter, found in by_letter.items()}
    for one, other in pairwise(sorted(images, key=lambda each: (each.clock, each.name))):
        if one.volume.device != other.volume.device and _names_of(one).isdisjoint(_names_of(other)):
            mutual = series[_letter(other)].nearest(one) is other and series[_letter(one)].nearest(other) is one
            if mutual and abs(one.distance(other)) <= ONE_RUN:
                return True
    return False


def _are_linked(devices: Set[str], places: Iterable[Iterable[Dated]]) -> bool:
    """Whether all of these names may be those of one disk: the same volume was at the same place under each."""
    groups = {device: {device} for device in devices}
    for images in places:
        seen: dict[str, str] = {}
        for each in images:
            for name in (_letter(each), _id_of(each)):
                first = groups[seen.setdefault(name, each.volume.device)] if name else groups[each.volume.device]
                if each.volume.device not in first:
                    first |= groups[each.volume.device]
                    groups |= dict.fromkeys(first, first)
    return len({id(group) for group in groups.values()}) < 2


def _letter(dated: Dated) -> str:
    """SYSVOL and ESP may be two names of one partition."""
    return "ESP" if dated.volume.image.is_system_partition else dated.letter


def _id_of(dated: Dated) -> str:
    """The id of the volume's file system; empty where it is not known."""
    origin = dated.volume.origin
    return bootsector.volume_id(dated.volume.image.boot) or (origin.recorded_id if origin and origin.from_linux else "")


def _names_of(dated: Dated) -> set[str]:
    """Under which names a volume is known again. With Linux a copy of a disk has the same id, at the same time."""
    origin = dated.volume.origin
    return {_letter(dated)} if origin and origin.from_linux else {_letter(dated), _id_of(dated)} - {""}


def identity_of(dated: Dated) -> tuple[str, str]:
    """Which volume it is: its letter, and the id of its file system."""
    return dated.letter, _id_of(dated)
