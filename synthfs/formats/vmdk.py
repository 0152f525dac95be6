"""The VMDK of type monolithicFlat: a text that describes a disk, beside a file that is the bare disk.

    # Disk DescriptorFile
    version, encoding, CID (changes with the content), parentCID (ffffffff: no parent), createType
    # Extent description
    RW <sectors> FLAT "<name of the file beside it>" <first sector>
    # The Disk Data Base
    ddb.geometry.*, ddb.adapterType, ddb.virtualHWVersion, ddb.uuid

Source: VMware, Virtual Disk Format 5.0 (2011), "The Descriptor File" and "Simple Extents".
"""

import re
from uuid import UUID

from synthfs.errors import FormatError
from synthfs.units import SECTOR, TiB

MAX_DISK = 62 * TiB
"""What ESXi takes; the text itself has no limit."""

MAX_TEXT = 1024 * 1024
"""What a program may make of the text, which is 0.5 KiB here and some KiB after years of a virtual machine's changes."""

_UNSPEAKABLE = re.compile(r'["\x00-\x1f\x7f\ud800-\udfff]')

_TEXT = """\
# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={content_id:08x}
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW {sectors} FLAT "{flat}" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "8"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
ddb.uuid = "{uuid}"
"""


def descriptor(disk_length: int, flat: str, unique_id: UUID) -> bytes:
    """The text for a disk of `disk_length` bytes in the file `flat`, which lies in the same directory.

    Raises FormatError for a name that cannot stand in it; no name of `plan/names` is one.
    """
    if _UNSPEAKABLE.search(flat):
        raise FormatError(f"the text of a VMDK cannot name a file {flat!r}; choose another name")
    raw = unique_id.bytes
    uuid = " ".join(f"{byte:02x}" for byte in raw[:8]) + "-" + " ".join(f"{byte:02x}" for byte in raw[8:])
    # All ones would say that there is no content.
    content_id = int.from_bytes(raw[:4], "big") & 0x7FFFFFFF
    sectors = disk_length // SECTOR
    cylinders = max(1, sectors // (255 * 63))
    fields = {"content_id": content_id, "sectors": sectors, "flat": flat, "cylinders": cylinders, "uuid": uuid}
    return _TEXT.format_map(fields).encode()
