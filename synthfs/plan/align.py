"""A disk with its end rounded up, for programs that want whole blocks: qemu with `cache=none`, KubeVirt, Azure.

Zeroes are added behind the end, and a backup GPT moves to the new one. No partition changes, and nothing is ever cut. It is
another disk by its bytes, hence by its edition.

Not for: tables as they were captured (`plan/layout`), and the lengths of files, which containers decide. Units: bytes.
"""

from dataclasses import replace

from synthfs import identity
from synthfs.errors import FormatError, UnsupportedError
from synthfs.formats import mbr
from synthfs.model import Note
from synthfs.plan.disk import Disk
from synthfs.plan.layout import Layout, checked
from synthfs.units import align_up


def aligned(disk: Disk, unit: int) -> Disk:
    """`disk` with the next length that is a multiple of `unit`, a power of two; `disk` itself where it has such a one.

    Raises UnsupportedError for an image of a whole disk, whose tables are part of the image; also where it has no GPT, since
    others keep something at the end of a disk, too (dynamic disks, software RAID). The same where a backup GPT cannot be
    moved, since its entries lie apart from its header and would come to lie on a partition.
    """
    length = align_up(disk.length, max(unit, disk.layout.sector_size))
    if length == disk.length:
        return disk
    if disk.layout.scheme == "as imaged":
        what = f"holds a whole disk with its own tables, of {disk.length} bytes"
        raise UnsupportedError(f"{disk.image.name} {what}, which cannot be rounded up to {length}")
    text = f"the disk ends with {length - disk.length} bytes of zeroes more, which make it {length} bytes long"
    moved = "; its backup GPT lies at the new end" if disk.layout.gpt else ""
    try:
        layout = lengthened(disk.layout, length)
    except FormatError as error:
        raise UnsupportedError(f"{disk.image.name}: its end cannot be rounded up to {length}: {error}") from error
    edition = identity.digest("aligned", disk.edition, length)
    return replace(disk, layout=layout, notes=(*disk.notes, Note(f"{text}{moved}")), edition=edition)


def lengthened(layout: Layout, length: int) -> Layout:
    """The same disk, `length` bytes long: a multiple of its sectors, and no less than it has.

    The backup GPT moves to the new end, and what is usable grows by as much, as with `sgdisk --move-second-header`. Raises
    FormatError where it would then lie on a partition: its entries need not lie right before its header.
    """
    if layout.gpt is None:
        return replace(layout, length=length)
    last, more = length // layout.sector_size - 1, (length - layout.length) // layout.sector_size
    primary, backup = layout.gpt.primary, layout.gpt.backup
    usable = primary.last_usable + more
    primary = replace(primary, other_lba=last, last_usable=usable)
    backup = replace(backup, own_lba=last, last_usable=usable, entries_lba=backup.entries_lba + more)
    record = layout.record and _protecting(layout.record, last + 1 - more, last + 1)
    return checked(replace(layout, length=length, record=record, gpt=replace(layout.gpt, primary=primary, backup=backup)))


def _protecting(record: mbr.MasterBootRecord, before: int, after: int) -> mbr.MasterBootRecord:
    """A boot record whose protective entry ended a disk of `before` sectors, for one of `after`; any other as it is."""
    (whole, *_) = mbr.protective(after).entries
    first, second, third, fourth = (
        replace(entry, sectors=min(after - entry.first_lba, whole.sectors), last_chs=whole.last_chs)
        if entry.type == mbr.PROTECTIVE and entry.first_lba + entry.sectors == before
        else entry
        for entry in record.entries
    )
    return replace(record, entries=(first, second, third, fourth))
