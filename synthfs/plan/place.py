"""Where on its disk an imaged volume belongs.

UrBackup records a partition *number*, and not even that means one thing: a Windows client counts the partitions that
exist, a Linux client takes the number in the device's name, which is the table slot. Windows' numbers go stale as well: it
counts on after a partition was deleted, until it is restarted. So the number is only the first witness. The others are the
volume's length, which must fit, what its boot sector says of its own place, and, from Linux clients, the id of what the named
partition holds.

    the number, and the boot sector or the id confirms it      there, beyond doubt
    boot sector and number disagree                            where the boot sector says, in doubt; where the number says if
                                                               only that partition has the image's length
    the number alone                                           there
    the number alone, from Windows, and only other             an NTFS there, in doubt; any other volume where the length is,
    partitions have the image's length                         in doubt, or nowhere if there are several
    the number means no partition, or one that is too small    where the boot sector says, or in the only partition of the
                                                               image's length, in doubt
    the named partition holds something else (LVM, LUKS)       nowhere
    a logical drive, a dynamic volume, a whole disk            nowhere

A place that is not beyond doubt has an alternative, for the case that the image of another volume has that place by better
evidence: a boot sector may be stale, too, as in a partition that was made by copying another one (`plan/claims`).

Not for: reading tables (`plan/layout`), logical drives (`plan/logical`), or deciding what to do with a volume that has no
place. Units: bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from synthfs.formats import bootsector
from synthfs.model import Note
from synthfs.plan.layout import EXTENDED, LVM, Layout, Partition
from synthfs.urbackup.mbrfile import WHOLE_DISK_NUMBER, MbrFile


@dataclass(frozen=True, slots=True)
class NotPlaced:
    """No partition of the captured tables can hold the volume. `why` is a clause: "the image is longer than …".

    `logical` is the number of a logical drive, counted from 1; None for any other volume.
    """

    why: str
    logical: int | None = None


class Witness(IntEnum):
    """What a place rests on, the best first.

    CONFIRMED: the number, and a second witness. NUMBER_AGAINST_LENGTH: the number of an NTFS that has another partition's
    length. The number of a Linux client is that of the device that was read, so it counts as confirmed.
    """

    CONFIRMED = 0
    BOOT_SECTOR = 1
    NUMBER = 2
    LENGTH = 3
    NUMBER_AGAINST_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Placed:
    """The partition that a volume was read from. `disputed`: the evidence contradicts itself.

    `otherwise` is what to believe if another volume has this place by a better witness; None where nothing else can be
    believed.
    """

    partition: Partition
    notes: tuple[Note, ...] = ()
    disputed: bool = False
    otherwise: "Placed | NotPlaced | None" = None
    witness: Witness = Witness.CONFIRMED


_LVM_ID = re.compile(r"[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}")
"""How LVM writes its ids, with letters of both cases. No file system has one of that form."""

_SHORTEST_ID = len("ABCD-1234")
"""What blkid prints for FAT and exFAT; something shorter is no id."""

_HOLDERS = {"LVM2_member": "LVM", "LVM1_member": "LVM", "crypto_LUKS": "LUKS", "linux_raid_member": "RAID", "bcache": "bcache"}
"""What blkid calls a partition that holds other block devices."""


def locate(layout: Layout, sidecar: MbrFile, volume_length: int, boot: bytes) -> Placed | NotPlaced:
    """The partition that the volume was read from, with notes where the evidence contradicts itself.

    `boot` is the beginning of the volume, 4 KiB.
    """
    if layout.scheme == "none":
        return Placed(layout.partitions[0])
    if sidecar.partition_number == WHOLE_DISK_NUMBER:
        return NotPlaced("the image holds a whole disk or a device without a partition number")
    if "ynamic volume" in sidecar.error:
        return NotPlaced("it is a dynamic volume, and UrBackup does not save where those lie")
    named = numbered(layout, sidecar)
    stale_id = False
    if sidecar.from_linux and named:
        is_volume = _is_volume_of(named, sidecar, volume_length, boot)
        if isinstance(is_volume, NotPlaced):
            return is_volume
        stale_id = not is_volume
    if named and named.container and not (named.container == LVM and sidecar.from_linux):
        return NotPlaced(f"partition {named.number} is {named.container}, and UrBackup does not save what lies where inside it")
    if named is None and (logical := logical_drive(layout, sidecar)) is not None:
        # Nothing else is asked: its boot sector counts from its own table, and its length may be that of another partition.
        why = f"it is a logical drive (its number is {sidecar.partition_number}), and UrBackup does not save where those lie"
        return NotPlaced(why, max(logical, 0))
    fitting = [p for p in layout.partitions if (not p.container or p == named) and volume_length <= p.length]
    told = next(iter(_told_by_boot_sector(layout, fitting, boot)), None)
    if named not in fitting or named is None:
        return _without_number(layout, sidecar, volume_length, named, fitting, told)
    placed = _with_number(layout, sidecar, volume_length, boot, named, fitting, told)
    if stale_id and isinstance(placed, Placed):
        return replace(placed, notes=(_stale_id(sidecar, named), *placed.notes))
    return placed


def _with_number(
    layout: Layout,
    sidecar: MbrFile,
    volume_length: int,
    boot: bytes,
    named: Partition,
    fitting: Sequence[Partition],
    told: Partition | None,
) -> Placed | NotPlaced:
    """The place of a volume that fits into the partition of its number."""
    size = layout.sector_size
    if told == named:
        return Placed(named)
    if sidecar.from_linux and bootsector.volume_id(boot) is not None:
        return Placed(named, (_stale_boot_sector(named, told),) if told else ())
    by_number = Placed(named, witness=Witness.CONFIRMED if sidecar.from_linux else Witness.NUMBER)
    if told:
        by_number = replace(by_number, notes=(_stale_boot_sector(named, told),), disputed=True)
        if _fills(named, volume_length, size) and not _fills(told, volume_length, size):
            return by_number
        note = _disagreement(sidecar, named, told, "its boot sector names that place")
        return Placed(told, (note,), True, by_number, Witness.BOOT_SECTOR)
    if sidecar.from_linux:
        return by_number
    exact = [p for p in fitting if _fills(p, volume_length, size)]
    if exact and named not in exact:
        return _against_length(sidecar, boot, by_number, exact)
    by_number = replace(by_number, otherwise=NotPlaced(f"its number, {sidecar.partition_number}, means another volume's place"))
    if len(exact) != 1 and (other := _other_order(layout, sidecar, volume_length)):
        return replace(by_number, notes=(_order_unsure(named, other),), disputed=True)
    return by_number


def _against_length(
    sidecar: MbrFile, boot: bytes, by_number: Placed, exact: Sequence[Partition]
) -> Placed | NotPlaced:
    """The place of a volume from Windows that has the length of other partitions (`exact`) than that of its number.

    Windows images all but NTFS to the end of the partition. An NTFS may end before it.
    """
    named, only = by_number.partition, exact[0] if len(exact) == 1 else None
    nowhere = NotPlaced(f"its number, {sidecar.partition_number}, means a partition of another length than the image has")
    by_length = None
    if only:
        note = _disagreement(sidecar, named, only, "it alone has the image's length")
        by_length = Placed(only, (note,), True, None, Witness.LENGTH)
    by_number = replace(by_number, notes=(_other_length(named, exact),), disputed=True, witness=Witness.NUMBER_AGAINST_LENGTH)
    if bootsector.file_system(boot) == "NTFS":
        return replace(by_number, otherwise=by_length or nowhere)
    return replace(by_length, otherwise=by_number) if by_length else nowhere


def _without_number(
    layout: Layout,
    sidecar: MbrFile,
    volume_length: int,
    named: Partition | None,
    fitting: Sequence[Partition],
    told: Partition | None,
) -> Placed | NotPlaced:
    """The place of a volume whose number means no partition, or one that is too small for it."""
    nowhere = _no_room(sidecar, named, volume_length)
    if told:
        note = _disagreement(sidecar, named, told, "its boot sector names that place")
        return Placed(told, (note,), True, nowhere, Witness.BOOT_SECTOR)
    exact = [p for p in fitting if _fills(p, volume_length, layout.sector_size)]
    if len(exact) == 1:
        note = _disagreement(sidecar, named, exact[0], "it alone has the image's length")
        return Placed(exact[0], (note,), True, nowhere, Witness.LENGTH)
    return nowhere


def numbered(layout: Layout, sidecar: MbrFile) -> Partition | None:
    """The partition that the recorded number means, by the rule of the client's system."""
    number = sidecar.partition_number
    if sidecar.from_linux:
        return next((p for p in layout.partitions if p.number == number), None)
    volumes = _counted_by_windows(layout)
    return volumes[number - 1] if 0 < number <= len(volumes) else None


def logical_drive(layout: Layout, sidecar: MbrFile) -> int | None:
    """Which logical drive, counted from 1, the recorded number means; None where it can be none."""
    number = sidecar.partition_number
    if layout.scheme != "MBR" or not (number > 4 or any(p.container == EXTENDED for p in layout.partitions)):
        return None
    return number - 4 if sidecar.from_linux else number - len(_counted_by_windows(layout))


def _counted_by_windows(layout: Layout) -> list[Partition]:
    return [p for p in layout.partitions if p.container != EXTENDED]


def _is_volume_of(named: Partition, sidecar: MbrFile, volume_length: int, boot: bytes) -> bool | NotPlaced:
    """Whether the volume is what the named partition holds; False where it is, under another id.

    For a logical volume a Linux client names the partition of the physical volume below, with the id found there.
    """
    recorded, own = sidecar.serial_number, bootsector.volume_id(boot)
    holder = _HOLDERS.get(sidecar.file_system) or ("LVM" if _LVM_ID.fullmatch(recorded) else None)
    if holder and holder != bootsector.file_system(boot):
        return NotPlaced(f"partition {named.number} holds something else (its id is {recorded:.64}), as with {holder}")
    if named.container and not (own and own.lower() == recorded.lower()):
        return NotPlaced(f"partition {named.number} is {named.container}, and UrBackup does not save what lies where inside it")
    if own is None and volume_length < named.length:
        # Volumes of file systems that UrBackup does not know are imaged to the end of their device.
        return NotPlaced(f"the image is shorter than partition {named.number}, so it is of something inside it, as with LVM")
    if own is None or len(recorded) < _SHORTEST_ID or recorded.lower() == own.lower():
        return True
    # A logical volume is shorter than the partition below it, where LVM has its own data as well.
    if bootsector.partition_length(boot, volume_length) == named.length:
        return False
    return NotPlaced(f"partition {named.number} holds something else (its id is {recorded:.64}), as with LVM")


def _told_by_boot_sector(layout: Layout, fitting: Sequence[Partition], boot: bytes) -> list[Partition]:
    """The partition that begins where an NTFS, FAT or exFAT volume says that it begins. Empty where it does not say."""
    found = bootsector.parse(boot)
    if found is None or found.hidden_sectors == 0:
        return []
    return [p for p in fitting if p.start == found.hidden_sectors * layout.sector_size]


def _other_order(layout: Layout, sidecar: MbrFile, volume_length: int) -> Partition | None:
    """What the number would mean if Windows counted by place on the disk; None where that is the same, or cannot be."""
    if sidecar.from_linux:
        return None
    volumes, index = _counted_by_windows(layout), sidecar.partition_number - 1
    by_slot, by_place = volumes[index], sorted(volumes, key=lambda p: p.start)[index]
    return None if by_place == by_slot or by_place.container or volume_length > by_place.length else by_place


def _fills(partition: Partition, volume_length: int, sector_size: int) -> bool:
    """Whether the volume takes all of the partition, or all but the last sector, as NTFS counts itself."""
    return partition.length - sector_size <= volume_length


def _no_room(sidecar: MbrFile, named: Partition | None, volume_length: int) -> NotPlaced:
    if named:
        return NotPlaced(f"the image is longer than partition {named.number} ({volume_length} bytes against {named.length})")
    return NotPlaced(f"the disk has no partition of number {sidecar.partition_number}")


def _stale_id(sidecar: MbrFile, named: Partition) -> Note:
    text = f"the recorded id is {sidecar.serial_number:.64}, not that of the file system; the volume is in partition "
    return Note(f"{text}{named.number} all the same, since it fills it to the byte")


def _stale_boot_sector(believed: Partition, told: Partition) -> Note:
    text = f"volume placed in partition {believed.number}, which its number means, although its boot sector names "
    return Note(f"{text}the place of partition {told.number}", warning=True)


def _other_length(believed: Partition, others: Sequence[Partition]) -> Note:
    text = f"volume placed in partition {believed.number}, which its number means, although it has the length of partition "
    return Note(f"{text}{' or '.join(str(other.number) for other in others)}", warning=True)


def _order_unsure(believed: Partition, other: Partition) -> Note:
    text = f"volume placed in partition {believed.number} by its number alone, counted in the order of the table; "
    return Note(f"{text}counted in the order on the disk it would be partition {other.number}", warning=True)


def _disagreement(sidecar: MbrFile, named: Partition | None, believed: Partition, why: str) -> Note:
    said = f"partition {named.number}" if named else "a partition that is not there"
    text = f"volume placed in partition {believed.number}: {why}; the recorded number {sidecar.partition_number} means {said}"
    return Note(text, warning=True)
