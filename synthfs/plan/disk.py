"""One disk: the tables that UrBackup captured, and in each partition the image that belongs there.

A backup is one partition. Its `.mbr` shows the whole disk that the partition was on, so the other partitions are known,
and often imaged too, as files of their own. A `Disk` puts them back together:

    layout (plan/layout)     boot record │ GPT │    1     │   2    │        3        │ backup GPT
    contents                                     ESP image  zeroes    the image itself

`Volume` is an image together with its place, worked out once for each image. `assemble` makes the disk of one of them,
given the volumes that other images of the same disk offer for its partitions.

Not for: choosing between images (`plan/catalog`), containers (`plan/container`). Units: bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from synthfs import identity
from synthfs.errors import FormatError, UnsupportedError
from synthfs.extents import Bytes, Extent, ExtentMap, FileRange, Source
from synthfs.formats import bootsector, gpt
from synthfs.model import VOLUME_OFFSET, ImageFacts, Note, Packed
from synthfs.plan import layout as layouts
from synthfs.plan.layout import Layout, Partition
from synthfs.plan.place import Nowhere, locate
from synthfs.urbackup import mbrfile, rawfile
from synthfs.urbackup.mbrfile import MbrFile

FAR = 24 * 3600
"""Images taken further apart than this, in seconds, are not one state of the machine, and said to be so."""


@dataclass(frozen=True, slots=True)
class Volume:
    """An image and the place that it was taken from: `length` bytes from `offset` in its `.raw` are the volume."""

    image: ImageFacts
    layout: Layout
    partition: Partition
    length: int
    notes: tuple[Note, ...] = ()
    offset: int = VOLUME_OFFSET
    disputed: bool = False
    """Whether the evidence about its place was not of one mind."""

    @property
    def key(self) -> tuple[object, ...] | None:
        """What images of the same partition of the same disk share; None where the disk has no identity."""
        return self.key_of(self.partition)

    def key_of(self, partition: Partition) -> tuple[object, ...] | None:
        """The key of another partition of this volume's disk."""
        layout, p = self.layout, partition
        if layout.disk_id is None:
            return None
        return self.image.client, layout.scheme, layout.disk_id, p.start, p.length, p.guid

    @property
    def whole_disk(self) -> bool:
        return self.offset == 0

    def extents(self) -> Iterator[tuple[int, Extent]]:
        """What the volume puts on the disk, at offsets of the disk.

        An NTFS volume keeps a copy of its boot sector behind its last sector. It is not in the image; Windows and chkdsk
        look for it there.
        """
        yield self.partition.start, FileRange(self.image.raw, self.offset, self.length)
        if self.whole_disk:
            return
        boot = bootsector.parse(self.image.boot)
        if boot and boot.file_system == "NTFS" and self.length <= boot.length <= self.partition.length - boot.sector_size:
            yield self.partition.start + boot.length, Bytes(self.image.boot[: boot.sector_size])


@dataclass(frozen=True, slots=True)
class Content:
    """What a partition of a disk holds: a volume, or zeroes. `age` is its distance in seconds from the disk's image."""

    partition: Partition
    volume: Volume | None
    age: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk as it was backed up. `image` gives it its name and time; `contents` are in table order."""

    image: ImageFacts
    layout: Layout
    contents: tuple[Content, ...]
    notes: tuple[Note, ...]
    edition: bytes

    @property
    def length(self) -> int:
        return self.layout.length

    @property
    def sources(self) -> list[Source]:
        """The files that it is made of, once each."""
        return list(dict.fromkeys(content.volume.image.raw for content in self.contents if content.volume))

    @property
    def mixed(self) -> bool:
        """Whether it holds images that were taken more than a day apart."""
        return any(abs(content.age) > FAR for content in self.contents)

    def extent_map(self) -> ExtentMap:
        """Where every byte of the bare disk comes from."""
        pieces: list[tuple[int, Extent]] = [(offset, Bytes(data)) for _, offset, data in self.layout.tables]
        for content in self.contents:
            if content.volume:
                pieces += content.volume.extents()
        return ExtentMap.placed(self.length, pieces)


class Planner:
    """Finds the place of volumes. Remembers what it found: most backups of a machine carry the same tables."""

    def __init__(self) -> None:
        self._sidecars: dict[Packed, MbrFile | FormatError] = {}
        self._layouts: dict[object, Layout | FormatError] = {}
        self._places: dict[object, _Place] = {}

    def volume(self, image: ImageFacts) -> Volume:
        """The image at its place on its disk; alone on a generated disk where it has none, with a note that says why.

        Raises FormatError for a `.raw` that holds no volume.
        """
        sidecar = self._sidecar(image)
        if isinstance(sidecar, MbrFile) and sidecar.version == mbrfile.WHOLE_DISK:
            return _whole_disk(image)
        length = rawfile.volume_length(image.raw.size, image.head)
        if isinstance(sidecar, str):
            return lone_volume(image, length, sidecar)
        key = image.sidecar, length, image.boot
        if (place := self._places.get(key)) is None:
            place = self._places[key] = self._place(sidecar, length, image.boot)
        match place:
            case FormatError():
                return lone_volume(image, length, f"{image.name}.mbr is not usable: {place}")
            case Nowhere(why):
                return lone_volume(image, length, why)
            case layout, partition, notes:
                return Volume(image, layout, partition, length, notes, disputed=bool(notes))

    def _place(self, sidecar: MbrFile, length: int, boot: bytes) -> "_Place":
        try:
            layout = self._layout(sidecar)
        except FormatError as error:
            return error
        found = locate(layout, sidecar, length, boot)
        return found if isinstance(found, Nowhere) else (layout, *found)

    def _sidecar(self, image: ImageFacts) -> MbrFile | str:
        """What the image's `.mbr` says, or why it says nothing."""
        if image.mbr_problem:
            return image.mbr_problem
        if image.sidecar is None:
            return "the backup has no .mbr file, so its disk is not known"
        if (parsed := self._sidecars.get(image.sidecar)) is None:
            try:
                parsed = mbrfile.parse(image.sidecar.unpacked())
            except FormatError as error:
                parsed = error
            self._sidecars[image.sidecar] = parsed
        return f"{image.name}.mbr is not usable: {parsed}" if isinstance(parsed, FormatError) else parsed

    def _layout(self, sidecar: MbrFile) -> Layout:
        key = (sidecar.boot_record, sidecar.primary, sidecar.backup, sidecar.extra_position, sidecar.extra)
        if key not in self._layouts:
            try:
                self._layouts[key] = layouts.captured(sidecar)
            except FormatError as error:
                self._layouts[key] = error
        found = self._layouts[key]
        if isinstance(found, FormatError):
            raise found
        return found


_Place = tuple[Layout, Partition, tuple[Note, ...]] | Nowhere | FormatError
"""Where the volumes of one sidecar, length and boot sector lie, or why nowhere."""


def volume_only(image: ImageFacts) -> Disk:
    """The volume of `image` alone, on a generated disk. Raises UnsupportedError for an image of a whole disk."""
    volume = Planner().volume(image)
    if volume.whole_disk:
        raise UnsupportedError(f"{image.name} holds a whole disk, from which no volume can be taken alone")
    return assemble(lone_volume(image, volume.length, "it was asked for", warning=False), {})


def _whole_disk(image: ImageFacts) -> Volume:
    """An image of a virtual machine's disk: it has its tables inside, and no wrapper around it."""
    length, sector_size = rawfile.whole_disk(image.raw.size, image.head)
    layout = layouts.as_imaged(length, sector_size)
    return Volume(image, layout, layout.partitions[0], length, offset=0)


def lone_volume(image: ImageFacts, length: int, why: str, warning: bool = True) -> Volume:
    """The image as the only partition of a generated disk; `why` is the reason that its user gets to read."""
    boot = bootsector.parse(image.boot)
    # An NTFS image that ends where NTFS says it ends lacks the sector of the backup boot sector.
    short = boot is not None and boot.file_system == "NTFS" and boot.length == length
    room = length + boot.sector_size if boot and short else length
    seed = [identity.guid(identity.digest("lone-volume", image.name, part)) for part in ("disk", "partition")]
    layout = layouts.generated(room, _type_of(image), image.letter, *seed)
    notes = [Note(f"shown as a disk of its own with this volume alone: {why}", warning)]
    if boot and boot.sector_size != layout.sector_size:
        text = f"its file system has sectors of {boot.sector_size} bytes, this disk of {layout.sector_size}"
        notes.append(Note(f"{text}: Windows may not read it", warning=True))
    return Volume(image, layout, layout.partitions[0], length, tuple(notes))


def _type_of(image: ImageFacts) -> UUID:
    if image.letter == "ESP":
        return gpt.EFI_SYSTEM
    windows = ("NTFS", "FAT", "exFAT", "ReFS", "BitLocker")
    return gpt.BASIC_DATA if bootsector.file_system(image.boot) in windows else gpt.LINUX_DATA


def assemble(volume: Volume, siblings: Mapping[int, tuple[Volume, int]]) -> Disk:
    """The disk of `volume`, with `siblings` (volume and age in seconds, by partition number) in its other partitions."""
    contents: list[Content] = []
    for partition in volume.layout.partitions:
        if partition == volume.partition:
            contents.append(Content(partition, volume))
        else:
            sibling = siblings.get(partition.number)
            contents.append(Content(partition, *sibling) if sibling else _zeroes(partition)[0])
    notes = (*volume.layout.notes, *volume.notes, *_notes(volume, contents))
    return Disk(volume.image, volume.layout, tuple(contents), notes, _edition(volume, contents))


def _notes(volume: Volume, contents: Sequence[Content]) -> Iterator[Note]:
    for content in contents:
        partition = content.partition
        if not content.volume:
            yield _zeroes(partition)[1]
        elif abs(content.age) > FAR:
            days = f"{abs(content.age) / 86400:.1f} days {'older' if content.age < 0 else 'newer'}"
            yield Note(f"partition {partition.number} is from {content.volume.image.name}, {days}", warning=True)
        if content.volume and content.volume is not volume:
            for note in content.volume.notes:
                yield Note(f"partition {partition.number}: {note.text}", note.warning)


@lru_cache(maxsize=1024)
def _zeroes(partition: Partition) -> tuple[Content, Note]:
    """What a partition holds that no image is of, and what is said of it. Kept: thousands of disks share them."""
    what = f"partition {partition.number} ({partition.label or partition.type})"
    if partition.container:
        note = Note(f"{what} is zero: it is {partition.container}, which UrBackup does not save", warning=True)
    else:
        note = Note(f"{what} is zero: it was not imaged")
    return Content(partition, None), note


def _edition(volume: Volume, contents: Sequence[Content]) -> bytes:
    """A hash over everything that the disk's bytes come from; never a device number, never the place of the store."""
    parts: list[bytes | str | int] = [volume.image.name, volume.layout.digest]
    for content in contents:
        if content.volume:
            raw = content.volume.image.raw
            parts += [content.partition.start, content.volume.offset, content.volume.length]
            parts += [raw.name, raw.size, raw.mtime_ns]
    return identity.digest("edition", *parts)
