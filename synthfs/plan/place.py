"""Where on its disk an imaged volume belongs.

UrBackup records a partition *number*, and not even that means one thing: a Windows client counts the partitions that
exist, a Linux client takes the number in the device's name, which is the table slot. So the number is only the first
witness. The others are the volume's length, which must fit, and what its boot sector says of its own place.

Not for: reading tables (`plan/layout`) or deciding what to do with a volume that has no place. Units: bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from synthfs.formats import bootsector
from synthfs.model import Note
from synthfs.plan.layout import EXTENDED, Layout, Partition
from synthfs.urbackup.mbrfile import WHOLE_DISK_NUMBER, MbrFile


@dataclass(frozen=True, slots=True)
class Nowhere:
    """No partition of the captured tables can hold the volume. `why` is a clause: "the image is longer than …"."""

    why: str


def locate(
    layout: Layout, sidecar: MbrFile, volume_length: int, boot: bytes
) -> tuple[Partition, tuple[Note, ...]] | Nowhere:
    """The partition that the volume was read from, with notes where the evidence was not of one mind.

    `boot` is the beginning of the volume.
    """
    if sidecar.partition_number == WHOLE_DISK_NUMBER:
        return Nowhere("the image holds a whole disk or a device without a partition number")
    if "ynamic volume" in sidecar.error:
        return Nowhere("it is a dynamic volume, and UrBackup does not save where those lie")
    named = _numbered(layout, sidecar)
    if named and named.container:
        return Nowhere(f"partition {named.number} is {named.container}, and UrBackup does not save what lies where inside it")
    if named and _is_another(sidecar, boot):
        return Nowhere(f"partition {named.number} holds something else (its id is {sidecar.serial_number:.64}), as with LVM")
    if named is None and (_has_logical_drives(layout) or (sidecar.partition_number > 4 and layout.scheme == "MBR")):
        # Nothing else is asked: its boot sector counts from its own table, and its length may be that of another partition.
        return Nowhere(f"it is logical drive {sidecar.partition_number}, and UrBackup does not save where those lie")
    fitting = [p for p in layout.partitions if not p.container and volume_length <= p.length]
    told = _told_by_boot_sector(layout, fitting, boot)
    if named in fitting and (not told or named in told):
        return named, ()
    if named in fitting and _fills(named, volume_length, layout.sector_size) and not any(
        _fills(other, volume_length, layout.sector_size) for other in told
    ):
        return named, (_doubt(named, told[0]),)
    if len(told) == 1:
        return told[0], (_disagreement(sidecar, named, told[0], "its boot sector names that place"),)
    if named in fitting:
        return named, ()
    exact = [p for p in fitting if _fills(p, volume_length, layout.sector_size)]
    if len(exact) == 1:
        return exact[0], (_disagreement(sidecar, named, exact[0], "it alone has the image's length"),)
    if named:
        return Nowhere(f"the image is longer than partition {named.number} ({volume_length} bytes against {named.length})")
    return Nowhere(f"the disk has no partition of number {sidecar.partition_number}")


def _numbered(layout: Layout, sidecar: MbrFile) -> Partition | None:
    """The partition that the recorded number means, by the rule of the client's system."""
    number = sidecar.partition_number
    if sidecar.from_linux:
        return next((p for p in layout.partitions if p.number == number), None)
    volumes = [p for p in layout.partitions if p.container != EXTENDED]
    return volumes[number - 1] if 0 < number <= len(volumes) else None


def _has_logical_drives(layout: Layout) -> bool:
    return any(p.container == EXTENDED for p in layout.partitions)


def _is_another(sidecar: MbrFile, boot: bytes) -> bool:
    """Whether the volume is no partition's, although the sidecar names one.

    For a logical volume a Linux client names the partition of the physical volume below, with the id found there.
    """
    uuid = bootsector.uuid(boot)
    return sidecar.from_linux and uuid is not None and sidecar.serial_number.lower() not in ("", str(uuid))


def _told_by_boot_sector(layout: Layout, fitting: Sequence[Partition], boot: bytes) -> list[Partition]:
    """Partitions that begin where an NTFS, FAT or exFAT volume says that it begins. Empty where it does not say."""
    found = bootsector.parse(boot)
    if found is None or found.hidden_sectors == 0:
        return []
    return [p for p in fitting if p.start == found.hidden_sectors * layout.sector_size]


def _fills(partition: Partition, volume_length: int, sector_size: int) -> bool:
    """Whether the volume takes all of the partition, or all but the last sector, as NTFS counts itself."""
    return partition.length - sector_size <= volume_length


def _doubt(believed: Partition, told: Partition) -> Note:
    text = f"volume placed in partition {believed.number}, whose number and length are right, although its boot sector names "
    return Note(f"{text}the place of partition {told.number}", warning=True)


def _disagreement(sidecar: MbrFile, named: Partition | None, believed: Partition, why: str) -> Note:
    said = f"partition {named.number}" if named else "a partition that is not there"
    text = f"volume placed in partition {believed.number}: {why}; the recorded number {sidecar.partition_number} means {said}"
    return Note(text, warning=True)
