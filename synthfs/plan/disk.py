"""One disk: the tables that UrBackup captured, and in each partition the image that belongs there.

A backup is one partition. Its `.mbr` shows the whole disk that the partition was on, so the other partitions are known,
and often imaged too, as files of their own. A `Disk` puts them back together:

    layout (plan/layout)     boot record │ GPT │    1     │   2    │        3        │ backup GPT
    contents                                     ESP image  zeroes    the image itself

`assemble` makes the disk of one volume (`plan/volume`), given those that other images of the same disk offer for its
partitions.

Not for: choosing between images (`plan/siblings`), containers (`plan/container`). Units: bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from synthfs import identity
from synthfs.errors import UnsupportedError
from synthfs.extents import Bytes, Extent, ExtentMap, Source
from synthfs.model import ImageFacts, Note
from synthfs.plan.bootloader import grub_core
from synthfs.plan.layout import EXTENDED, Layout, Partition
from synthfs.plan.volume import Planner, Volume, lone_volume

FAR = 24 * 3600
"""Images taken further apart than this, in seconds, are not one state of the machine, and said to be so."""


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
    device: str = ""
    """What the client called the disk, where only that tells it from others of the machine; empty otherwise."""
    unknown: bool = False
    """Whether UrBackup's database should know its image, and does not."""

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


def volume_only(image: ImageFacts, note: Note | None = None) -> Disk:
    """The volume of `image` alone, on a generated disk, with a `note` on the image.

    Raises UnsupportedError for an image of a whole disk.
    """
    volume = Planner().volume(image)
    if volume.whole_disk:
        raise UnsupportedError(f"{image.name} holds a whole disk, from which no volume can be taken alone")
    notes = (note,) if note else ()
    return assemble(lone_volume(image, volume.length, "it was asked for", warning=False), {}, notes=notes)


def assemble(
    volume: Volume,
    siblings: Mapping[int, tuple[Volume, int]],
    absent: Mapping[int, str] | None = None,
    notes: Sequence[Note] = (),
    device: str = "",
) -> Disk:
    """The disk of `volume`, with `siblings` (volume and age in seconds, by partition number) in its other partitions.

    `absent` says more of partitions that no sibling is for, by their number: a clause such as "NAME is not used, since …".
    `device` is what tells the disk from others of the machine, see `Disk`.
    """
    contents: list[Content] = []
    for partition in volume.layout.partitions:
        if partition == volume.partition:
            contents.append(Content(partition, volume))
        else:
            sibling = siblings.get(partition.number)
            contents.append(Content(partition, *sibling) if sibling else _zeroes(partition)[0])
    notes = (*volume.layout.notes, *volume.all_notes, *notes, *_notes(volume, contents, absent or {}))
    return Disk(volume.image, volume.layout, tuple(contents), notes, _edition(volume, contents), device)


def _notes(volume: Volume, contents: Sequence[Content], absent: Mapping[int, str]) -> Iterator[Note]:
    for content in contents:
        partition = content.partition
        if not content.volume:
            clause = absent.get(partition.number)
            yield _absent(partition, clause) if clause else _zeroes(partition)[1]
        elif abs(content.age) > FAR:
            days = f"{abs(content.age) / 86400:.1f} days {'older' if content.age < 0 else 'newer'}"
            yield Note(f"partition {partition.number} is from {content.volume.image.name}, {days}", warning=True)
        if content.volume and content.volume is not volume:
            for note in content.volume.all_notes:
                yield Note(f"partition {partition.number}: {note.text}", note.warning)
    yield from _boot_loader(volume.layout, contents)


def _absent(partition: Partition, clause: str) -> Note:
    if partition.container:
        return Note(f"{_what(partition)} {_holds(partition)}; {clause}", warning=True)
    return Note(f"{_what(partition)} is zero, since no image is sure to be of it: {clause}", warning=True)


@lru_cache(maxsize=1024)
def _zeroes(partition: Partition) -> tuple[Content, Note]:
    """What a partition holds that no image is of, and what is said of it. Kept: thousands of disks share them."""
    if partition.container:
        note = Note(f"{_what(partition)} {_holds(partition)}", warning=True)
    else:
        note = Note(f"{_what(partition)} is zero: it was not imaged")
    return Content(partition, None), note


def _what(partition: Partition) -> str:
    return f"partition {partition.number} ({partition.label or partition.type})"


def _holds(partition: Partition) -> str:
    but = " but for an empty table of logical drives" if partition.container == EXTENDED else ""
    return f"is zero{but}: it is {partition.container}, which UrBackup does not save"


def _boot_loader(layout: Layout, contents: Iterable[Content]) -> Iterator[Note]:
    """Whether all of GRUB is on the disk: UrBackup saves the first 63 sectors behind the boot record, or none at all."""
    core = grub_core(layout)
    if core and not any(c.volume and c.partition.start <= core[0] and core[1] <= c.partition.end for c in contents):
        text = "GRUB lies in part where UrBackup saves nothing, so the disk does not boot by itself: install GRUB anew"
        yield Note(text, warning=True)


def _edition(volume: Volume, contents: Sequence[Content]) -> bytes:
    """A hash over everything that the disk's bytes come from; never a device number, never the place of the store."""
    parts: list[bytes | str | int] = [volume.image.name, volume.layout.digest]
    for content in contents:
        if content.volume:
            raw = content.volume.image.raw
            parts += [content.partition.start, content.volume.offset, content.volume.length]
            parts += [raw.name, raw.size, raw.mtime_ns]
    return identity.digest("edition", *parts)
