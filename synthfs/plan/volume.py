"""One image at its place: which bytes of its `.raw` are the volume, and where on which disk they were.

The place is worked out from the image's `.mbr`, its length and its boot sector (`plan/place`). A volume whose place is not
known is alone on a generated disk. A boot record does not say how long the sectors are that it counts in; file systems do, or
their lengths (`SectorSizes`).

Not for: whole disks (`plan/disk`), choosing between images (`plan/siblings`). Units: bytes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from uuid import UUID

from synthfs import identity
from synthfs.errors import FormatError
from synthfs.extents import Bytes, Extent, FileRange
from synthfs.formats import bootsector, gpt, mbr
from synthfs.model import VOLUME_OFFSET, ImageFacts, Note, Packed
from synthfs.plan import layout as layouts
from synthfs.plan import lengths
from synthfs.plan.layout import EXTENDED, Layout, Partition
from synthfs.plan.place import NotPlaced, Placed, Witness, locate, numbered
from synthfs.units import MiB
from synthfs.urbackup import mbrfile, rawfile
from synthfs.urbackup.mbrfile import MbrFile


@dataclass(frozen=True, slots=True)
class Origin:
    """What the `.mbr` of an image says of where it was taken: the disk's layout, its device, and a partition number.

    `named` is what that number means in the layout, None where it means nothing. `device` is what the client called the disk
    at that moment, `recorded_id` the id that it found on the volume.
    """

    layout: Layout
    device: str
    number: int
    named: Partition | None
    from_linux: bool = False
    recorded_id: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """An image and the place that it was taken from: `length` bytes from `offset` in its `.raw` are the volume.

    `disputed`: the evidence about its place contradicts itself. `otherwise` is what to believe if another volume has this
    place by a better `witness`. A volume that is `alone`, on a generated disk, has no place, for the reason that is given
    there, and still an `origin` where its `.mbr` is of use. `logical` is the number of a logical drive, counted from 1.
    """

    image: ImageFacts
    layout: Layout
    partition: Partition
    length: int
    notes: tuple[Note, ...] = ()
    offset: int = VOLUME_OFFSET
    disputed: bool = False
    otherwise: Placed | NotPlaced | None = None
    witness: Witness = Witness.CONFIRMED
    origin: Origin | None = None
    alone: str = ""
    logical: int | None = None

    @property
    def device(self) -> str:
        return self.origin.device if self.origin else ""

    @property
    def disk_key(self) -> tuple[object, ...] | None:
        """What images of one disk share; None where the disk has no identity."""
        layout = self.origin.layout if self.origin and (self.logical or not self.alone) else None
        return (self.image.client, layout.scheme, layout.disk_id) if layout and layout.disk_id else None

    @property
    def key(self) -> tuple[object, ...] | None:
        """What images of the same partition, or logical drive, of the same disk share; None where the disk has no identity."""
        if self.logical:
            return (*drives, self.logical) if (drives := self.drives_key) else None
        return None if self.alone else self.key_of(self.partition)

    def key_of(self, partition: Partition) -> tuple[object, ...] | None:
        """The key of another partition of this volume's disk."""
        disk = self.disk_key
        return (*disk, partition.start, partition.length, partition.guid) if disk else None

    @property
    def drives_key(self) -> tuple[object, ...] | None:
        """What images of logical drives of one extended partition share, and those of the disk that it is on."""
        disk = self.disk_key
        extended = [p for p in self.origin.layout.partitions if p.container == EXTENDED] if self.origin else []
        return (*disk, "logical", *((p.start, p.length) for p in extended)) if disk and extended else None

    @property
    def whole_disk(self) -> bool:
        return self.offset == 0

    @property
    def all_notes(self) -> tuple[Note, ...]:
        """Those about its place, and what is wrong with its length."""
        return self.notes if self.whole_disk else (*self.notes, *lengths.notes_of_volume(self.image.boot, self.length))

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


class Planner:
    """Finds the place of volumes. Remembers what it found: most backups of a machine carry the same tables."""

    def __init__(self, images: Iterable[ImageFacts] = ()) -> None:
        """`images` are those of the same machine, which may tell what a single one does not: how long its sectors are."""
        self._sidecars: dict[Packed, MbrFile | FormatError] = {}
        self._layouts: dict[object, Layout | FormatError] = {}
        self._places: dict[object, _Place] = {}
        self._sector_sizes = SectorSizes()
        for image in images:
            sidecar = self._sidecar(image)
            if isinstance(sidecar, MbrFile) and sidecar.version == mbrfile.MBR:
                self._sector_sizes.add(sidecar, rawfile.stored_length(image.raw.size), image.boot)

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
                return lone_volume(image, length, f"{image.name}.mbr is not usable: {place}", start=_told_start(image.boot))
            case origin, NotPlaced() as nowhere:
                return replace(lone_volume(image, length, nowhere.why), origin=origin, logical=nowhere.logical)
            case origin, Placed() as placed:
                return at_place(Volume(image, origin.layout, placed.partition, length, origin=origin), placed)

    def origin(self, image: ImageFacts) -> Origin | None:
        """What the `.mbr` of an image says of where it was taken, whatever its `.raw` is; None where it is of no use."""
        sidecar = self._sidecar(image)
        if isinstance(sidecar, str) or sidecar.version == mbrfile.WHOLE_DISK:
            return None
        try:
            return self._origin(sidecar, rawfile.stored_length(image.raw.size), image.boot)
        except FormatError:
            return None

    def _place(self, sidecar: MbrFile, length: int, boot: bytes) -> "_Place":
        try:
            origin = self._origin(sidecar, length, boot)
        except FormatError as error:
            return error
        return origin, locate(origin.layout, sidecar, length, boot)

    def _origin(self, sidecar: MbrFile, length: int, boot: bytes) -> Origin:
        layout = self._layout(sidecar, length, boot)
        about = (sidecar.device, sidecar.partition_number, numbered(layout, sidecar))
        return Origin(layout, *about, sidecar.from_linux, f"{sidecar.serial_number:.64}")

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

    def _layout(self, sidecar: MbrFile, length: int, boot: bytes) -> Layout:
        if sidecar.version == mbrfile.MBR and _has_no_table(sidecar, length, boot):
            return layouts.unpartitioned(length, boot)
        sector_size = self._sector_sizes.of(sidecar, length, boot)
        key = (sidecar.boot_record, sidecar.primary, sidecar.backup, sidecar.extra_position, sidecar.extra, sector_size)
        if key not in self._layouts:
            try:
                self._layouts[key] = layouts.captured(sidecar, sector_size)
            except FormatError as error:
                self._layouts[key] = error
        found = self._layouts[key]
        if isinstance(found, FormatError):
            raise found
        return found


_Place = tuple[Origin, Placed | NotPlaced] | FormatError
"""Where the volumes of one sidecar, length and boot sector lie, or why nowhere."""


class _Told(IntEnum):
    """How a volume tells the length of its disk's sectors, the best first."""

    FILLS = 0
    """Its partition is as long as the volume in such sectors."""
    NAMES = 1
    """Its file system counts in such sectors."""
    TOO_LONG = 2
    """In sectors of 512 bytes its partition would be too small."""


class SectorSizes:
    """How long the sectors are that a boot record counts in: 512 bytes, or 4096.

    Volumes tell it, those of one boot record together. ext, XFS and btrfs do not name sectors; and NTFS may count in 4096
    on a disk of 512, where Linux made it. What fills its partition is the best evidence.
    """

    _SLACK = MiB
    """A file system may end that much before its partition, since it counts in blocks of its own."""

    def __init__(self) -> None:
        self._told: defaultdict[bytes, defaultdict[_Told, set[int]]] = defaultdict(lambda: defaultdict(set))

    def add(self, sidecar: MbrFile, length: int, boot: bytes) -> None:
        """Take down what the volume of `length` bytes that begins with `boot` tells."""
        for how, size in self._told_by(sidecar, length, boot):
            self._told[sidecar.boot_record][how].add(size)

    def of(self, sidecar: MbrFile, length: int, boot: bytes) -> int:
        """Raises FormatError where other volumes of the disk say that it is not 512, and nothing says what it is."""
        if sidecar.primary:
            return mbr.SIZE
        own = dict(self._told_by(sidecar, length, boot))
        others: Mapping[_Told, set[int]] = self._told.get(sidecar.boot_record, {})
        for how in (_Told.FILLS, _Told.NAMES):
            if size := own.get(how):
                return size
            if len(sizes := others.get(how, ())) == 1:
                return next(iter(sizes))
        if _Told.TOO_LONG not in own and others.get(_Told.TOO_LONG):
            raise FormatError("another volume of the disk is too long for sectors of 512 bytes, so it may not count in these")
        return mbr.SIZE

    def _told_by(self, sidecar: MbrFile, length: int, boot: bytes) -> Iterator[tuple[_Told, int]]:
        found, named = bootsector.parse(boot), _named_entry(sidecar)
        if named:
            length = bootsector.partition_length(boot, length)
            for size in (512, 4096):
                if 0 <= named.sectors * size - length < min(self._SLACK, named.sectors * size // 16 + 1):
                    yield _Told.FILLS, size
                    return
        if found and found.sector_size in (512, 4096):
            yield _Told.NAMES, found.sector_size
        elif named and length > named.sectors * 512:
            yield _Told.TOO_LONG, 4096


def _has_no_table(sidecar: MbrFile, length: int, boot: bytes) -> bool:
    """Whether the disk begins with the volume itself, and not with a boot record."""
    if not bootsector.same_volume(sidecar.boot_record, boot):
        return False
    # A first partition may begin with a copy of the boot record. Then the table has its place and length.
    found, named = bootsector.parse(boot), _named_entry(sidecar)
    if not found or not named or not found.hidden_sectors:
        return True
    fills = named.sectors * found.sector_size == bootsector.partition_length(boot, length)
    return not (fills and named.first_lba == found.hidden_sectors)


def _named_entry(sidecar: MbrFile) -> mbr.Entry | None:
    """The entry of the boot record that the recorded number means."""
    try:
        entries = mbr.parse(sidecar.boot_record).entries
    except FormatError:
        return None
    counted = [entry for entry in entries if sidecar.from_linux or (entry.used and not entry.extended)]
    number = sidecar.partition_number
    return counted[number - 1] if 0 < number <= len(counted) and counted[number - 1].used else None


def at_place(volume: Volume, placed: Placed) -> Volume:
    """`volume` at a place on the disk of its `.mbr`."""
    assert volume.origin is not None
    return replace(
        volume,
        layout=volume.origin.layout,
        partition=placed.partition,
        notes=placed.notes,
        disputed=placed.disputed,
        otherwise=placed.otherwise,
        witness=placed.witness,
    )


def _told_start(boot: bytes) -> int:
    """Where a volume of 4096-byte sectors began on its disk, if it tells: of such a disk, no boot record may be captured."""
    found = bootsector.parse(boot)
    known = found is not None and found.sector_size == 4096 and found.hidden_sectors < 0xFFFFFFFF
    return found.hidden_sectors * found.sector_size if found and known else 0


def _whole_disk(image: ImageFacts) -> Volume:
    """An image of a virtual machine's disk: it has its tables inside, and no wrapper around it."""
    length, sector_size = rawfile.whole_disk(image.raw.size, image.head)
    layout = layouts.as_imaged(length, sector_size)
    return Volume(image, layout, layout.partitions[0], length, offset=0)


def lone_volume(image: ImageFacts, length: int, why: str, warning: bool = True, start: int = 0) -> Volume:
    """The image as the only partition of a generated disk; `why` is the reason that its user gets to read.

    `start` is where it began on its own disk, 0 where that is not known.
    """
    boot = bootsector.parse(image.boot)
    sector_size = 4096 if boot and boot.sector_size == 4096 else 512
    # An NTFS image that ends where NTFS says it ends lacks the sector of the backup boot sector.
    room = bootsector.partition_length(image.boot, length)
    ids = [identity.guid(identity.digest("lone-volume", image.name, part)) for part in ("disk", "partition")]

    def generated(start: int) -> Layout:
        return layouts.generated(room, _type_of(image), image.letter, ids[0], ids[1], sector_size, start)

    try:
        layout = generated(start or VOLUME_OFFSET)
    except FormatError:
        layout = generated(VOLUME_OFFSET)
    notes = [Note(f"shown as a disk of its own with this volume alone: {why}", warning)]
    if boot and boot.sector_size != layout.sector_size:
        text = f"its file system has sectors of {boot.sector_size} bytes, this disk of {layout.sector_size}"
        notes.append(Note(f"{text}: Windows may not read it", warning=True))
    return Volume(image, layout, layout.partitions[0], length, tuple(notes), alone=why)


def _type_of(image: ImageFacts) -> UUID:
    if image.letter == "ESP":
        return gpt.EFI_SYSTEM
    windows = ("NTFS", "FAT", "exFAT", "ReFS", "BitLocker")
    return gpt.BASIC_DATA if bootsector.file_system(image.boot) in windows else gpt.LINUX_DATA
