"""Images that could be of a partition and are not used for it, with the reason.

A partition without an image is zero. That it was not imaged is true only where no image of the machine can be of it. So all
images are asked that name the partition in any way: by its GUID, its place, its number, or its length. Those of a virtual
client are among them (`pc[data]` is a second client of the machine `pc`), and those that are not offered.

Where an image has nothing but a number or a place in common with the partition, it is named only if its disk may have become
this one: not if both were imaged in turn, or in one run from two devices, and not if the same volume is on this disk elsewhere.

Not for: the choice of what is used (`plan/siblings`). Units: bytes; times in seconds.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from synthfs.formats import bootsector
from synthfs.plan.layout import EXTENDED, Layout, Partition
from synthfs.plan.siblings import ONE_RUN, Dated, Devices, Key, Series
from synthfs.plan.volume import Volume

_MOST = 3
"""So many images are named; the others say no more."""

_MOST_LETTERS = 16


@dataclass(frozen=True, slots=True)
class Known:
    """An image of the machine. `why` is a clause where it cannot be used whatever its place is, empty otherwise."""

    dated: Dated
    why: str = ""


class Unused:
    """All images of one machine, by what they tell of the partition that they were taken from."""

    def __init__(self, images: Collection[Known], devices: Devices) -> None:
        self._devices = devices
        self._why: dict[str, str] = {}
        self._by: defaultdict[Key, list[Dated]] = defaultdict(list)
        self._series: dict[Key, Sequence[Series]] = {}
        self._tables: dict[Key, tuple[Layout, Sequence[tuple[bool, Series]]]] = {}
        by_disk: defaultdict[object, list[Dated]] = defaultdict(list)
        for known in images:
            if origin := known.dated.volume.origin:
                by_disk[origin.layout.disk_id].append(known.dated)
        self._disks = {disk: Series(each) for disk, each in by_disk.items()}
        self._times = {disk: range(min(e.clock for e in each), max(e.clock for e in each)) for disk, each in by_disk.items()}
        for known in images:
            if known.why:
                self._why[known.dated.name] = known.why
            for key in _told_by(known.dated):
                self._by[key].append(known.dated)

    def clauses(self, dated: Dated, layout: Layout, used: Mapping[int, tuple[Volume, int]]) -> dict[int, str]:
        """For each partition of the disk of `dated` that is not `used` and that some image could be of: which, and why not.

        `layout` is that of the disk; the keys of both are numbers of partitions.
        """
        found: dict[int, str] = {}
        letters = {dated.letter, *(volume.image.letter for volume, _ in used.values())}
        for partition in layout.partitions:
            if partition.number not in used and partition != dated.volume.partition:
                images = sorted(self._could_be(dated, layout, partition, letters), key=dated.nearness)[:_MOST]
                if images and partition.container:
                    found[partition.number] = f"volumes that lay in it: {', '.join(each.name for each in images)}"
                elif images:
                    reasons = (f"{each.name} is not used, since {self._reason(dated, partition, each)}" for each in images)
                    found[partition.number] = "; ".join(reasons)
        return found

    def _could_be(self, dated: Dated, layout: Layout, partition: Partition, used: Container[str]) -> Collection[Dated]:
        """Of each volume that could be that of a partition, the image nearest in time. `used` are letters on the disk."""
        by_letter: dict[str, Dated] = {}
        for is_weak, series in self._that_tell(layout, partition):
            near = series.nearest(dated)
            if near is None or (is_weak and not self._may_be(dated, layout, near, used)):
                continue
            if partition.container and near.volume.device != dated.volume.device and self._devices.name(dated):
                continue
            known = by_letter.get(near.letter, near)
            if dated.nearness(near) <= dated.nearness(known):
                by_letter[near.letter] = near
        return by_letter.values()

    def _that_tell(self, layout: Layout, partition: Partition) -> Sequence[tuple[bool, Series]]:
        """The images that tell something of a partition, and whether that is weak. One layout is that of many images."""
        table = id(layout), partition.number
        if table not in self._tables:
            found = [(key[0] in _WEAK, series) for key in _tells(layout, partition) for series in self._with(key)]
            self._tables[table] = layout, found
        return self._tables[table][1]

    def _may_be(self, dated: Dated, layout: Layout, other: Dated, used: Container[str]) -> bool:
        """Whether an image may be of the disk of `dated` although it names another one, or none."""
        if other.letter in used or other.volume.image.client != dated.volume.image.client:
            return False
        origin = other.volume.origin
        if origin is None or origin.layout.disk_id == layout.disk_id:
            return True
        nearest = self._disks[layout.disk_id].nearest(other) if layout.disk_id in self._disks else None
        if nearest and abs(nearest.distance(other)) <= ONE_RUN:
            return nearest.volume.device == other.volume.device
        mine, theirs = self._times.get(layout.disk_id, range(0)), self._times[origin.layout.disk_id]
        return mine.stop < theirs.start or theirs.stop < mine.start

    def _with(self, key: Key) -> Sequence[Series]:
        """All images that tell `key`, by letter. Kept: it is asked for by each disk with such a partition."""
        if key not in self._series:
            by_letter: defaultdict[str, list[Dated]] = defaultdict(list)
            for each in self._by.get(key, ()):
                # A hostile client may have as many volumes as images.
                by_letter[each.letter if each.letter in by_letter or len(by_letter) < _MOST_LETTERS else ""].append(each)
            self._series[key] = [Series(images) for images in by_letter.values()]
        return self._series[key]

    def _reason(self, dated: Dated, partition: Partition, other: Dated) -> str:
        if why := self._why.get(other.name):
            return why
        volume = other.volume
        if volume.alone:
            return volume.alone
        here, there = dated.volume.layout, volume.layout
        if here.disk_id is None or there.disk_id is None:
            return "disks without an id cannot be told from each other"
        if here.disk_id != there.disk_id:
            kind = "GUID" if there.scheme == "GPT" else "signature"
            return f"its disk has another {kind}, {there.disk_id}"
        if (volume.partition.start, volume.partition.length) != (partition.start, partition.length):
            return "the partition had another place or length then"
        if volume.partition.guid != partition.guid:
            return "the partition had another GUID then"
        if other.unknown and not dated.unknown:
            return "it is unknown to UrBackup's database, which knows another image of this partition"
        if volume.device != dated.volume.device:
            return f"it is of the disk on {volume.device}, which has the same table"
        return f"{volume.device} was another disk then"


def _told_by(dated: Dated) -> Iterator[Key]:
    """All that an image tells of its partition, in the words of `_tells`."""
    volume, origin = dated.volume, dated.volume.origin
    if volume.whole_disk:
        return
    partition = volume.partition if not volume.alone else origin.named if origin else None
    if partition and origin:
        yield from _by_table(origin.layout, partition)
    if volume.logical and origin:
        for extended in origin.layout.partitions:
            if extended.container == EXTENDED:
                yield from _by_table(origin.layout, extended)
    if volume.alone and not volume.logical:
        # Nothing but the image itself tells where it was: its length, and the place that its boot sector names.
        disk = origin.layout.disk_id if origin else None
        yield ("length", disk, bootsector.partition_length(volume.image.boot, volume.length))
        if (boot := bootsector.parse(volume.image.boot)) and boot.hidden_sectors:
            yield ("any start", boot.hidden_sectors * boot.sector_size)


def _tells(layout: Layout, partition: Partition) -> Iterator[Key]:
    """What an image may tell that could be of a partition."""
    yield from _by_table(layout, partition)
    if not partition.container:
        yield ("length", None, partition.length)
        yield ("length", layout.disk_id, partition.length)


def _by_table(layout: Layout, partition: Partition) -> Iterator[Key]:
    if partition.guid and partition.guid.int:
        yield ("guid", partition.guid)
    if layout.disk_id:
        yield ("start", layout.disk_id, partition.start)
        yield ("number", layout.disk_id, partition.number)
    yield ("place", partition.start, partition.length)
    if not partition.container:
        yield ("any start", partition.start)
        yield ("any number", partition.number)


_WEAK = ("number", "place", "any start", "any number")
"""What is no evidence by itself: most disks have a partition of that number, and disks of one make are divided alike."""


def machine_of(client: str) -> str:
    """The name of the machine that a client is of: `pc` for the virtual client `pc[data]`."""
    return client.partition("[")[0] if client.endswith("]") else client
