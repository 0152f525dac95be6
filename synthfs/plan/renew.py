"""A disk's second identity: the same disk with another signature or other GUIDs, to be attached beside the original.

Windows keeps a disk offline whose signature or GUIDs it sees twice, and a read-only one it cannot mend. So every disk is
also offered with identifiers of its own: derived from the original ones and the backup's name, hence the same each time
and different from those of every other file. Such a disk is for reading; it does not boot, since the boot configuration
inside names the old identifiers.

What changes: on MBR disks exactly the signature; on GPT disks the disk GUID and the unique GUID of every used entry, in both
copies. A protective boot record's signature stays 0 if it is 0. Basic data partitions that hold no image get the hidden and
no-drive-letter attributes, so that Windows does not offer to format them. Nothing inside a partition changes.
"""

from dataclasses import replace

from synthfs import identity
from synthfs.errors import UnsupportedError
from synthfs.formats import gpt
from synthfs.plan.disk import Disk
from synthfs.plan.layout import Layout, with_gpt

PURPOSE = "new-identity"


def can_renew(disk: Disk) -> bool:
    """Whether the identifiers are ours to change: in an image of a whole disk they are part of the image."""
    return disk.layout.record is not None


def new_identity(disk: Disk) -> Disk:
    """`disk` with identifiers of its own, and an edition of its own. Raises UnsupportedError where it cannot have any."""
    if not can_renew(disk):
        raise UnsupportedError(f"{disk.image.name} holds a whole disk with its own tables, which cannot get another identity")
    layout = _renewed_gpt(disk) if disk.layout.gpt else disk.layout
    if layout.record and (layout.record.signature or not layout.gpt):
        signature = identity.signature(_seed(disk, "signature", layout.record.signature))
        record = layout.record.with_signature(signature)
        layout = replace(layout, record=record, disk_id=layout.disk_id if layout.gpt else f"{signature:08x}")
    partitions = {partition.number: partition for partition in layout.partitions}
    contents = tuple(replace(content, partition=partitions[content.partition.number]) for content in disk.contents)
    return replace(disk, layout=layout, contents=contents, edition=edition(disk))


def edition(disk: Disk) -> bytes:
    """The edition of `new_identity(disk)`, without making it."""
    return identity.digest(PURPOSE, disk.edition)


def _renewed_gpt(disk: Disk) -> Layout:
    assert disk.layout.gpt is not None
    empty = {content.partition.number for content in disk.contents if not content.volume}
    entries = tuple(
        _renewed_entry(disk, number, entry, number in empty) if entry.used else entry
        for number, entry in enumerate(disk.layout.gpt.entries, 1)
    )
    disk_guid = identity.guid(_seed(disk, "disk", disk.layout.gpt.primary.disk_guid.bytes))
    return with_gpt(disk.layout, disk_guid, entries)


def _renewed_entry(disk: Disk, number: int, entry: gpt.Entry, empty: bool) -> gpt.Entry:
    guid = identity.guid(_seed(disk, "partition", number, entry.guid.bytes))
    hide = gpt.HIDDEN | gpt.NO_DRIVE_LETTER if empty and entry.type == gpt.BASIC_DATA else 0
    return replace(entry, guid=guid, attributes=entry.attributes | hide)


def _seed(disk: Disk, *what: bytes | str | int) -> bytes:
    return identity.digest(PURPOSE, disk.image.name, *what)
