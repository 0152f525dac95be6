"""Containers: what is put around a bare disk so that a program takes the file for a disk of its kind.

A container is a pure wrapper: an extent map in, another one out. Its ids derive from the disk's edition, its time is the
backup's. Not for: byte layouts (`formats/`). Units: bytes.
"""

from dataclasses import dataclass

from synthfs import identity
from synthfs.errors import UnsupportedError
from synthfs.extents import Bytes, ExtentMap
from synthfs.formats import vhd
from synthfs.plan.disk import Disk
from synthfs.units import human


@dataclass(frozen=True, slots=True)
class FixedVhd:
    """A fixed VHD of `disk`: the disk and 512 bytes of footer."""

    disk: Disk

    suffix = ".vhd"
    may_resize = False
    """Whether a program that writes to it changes its length: a footer at the end of a file stays where it is."""

    @property
    def length(self) -> int:
        return self.disk.length + vhd.SIZE

    def extent_map(self) -> ExtentMap:
        unique_id = identity.guid(identity.digest("vhd", self.disk.edition))
        footer = vhd.Footer(self.disk.length, unique_id, self.disk.image.raw.mtime_ns // 10**9)
        return self.disk.extent_map() + ExtentMap([Bytes(footer.pack())])


Container = FixedVhd


def wrap(disk: Disk) -> Container:
    """The container that shows `disk` to Windows. Raises UnsupportedError where none here can hold it."""
    if disk.layout.sector_size != 512:
        raise UnsupportedError(f"{disk.image.name}: a disk of {disk.layout.sector_size}-byte sectors does not fit into a VHD")
    if disk.length > vhd.MAX_DISK:
        raise UnsupportedError(f"{disk.image.name}: a disk of {human(disk.length)} does not fit into a VHD (2040 GiB)")
    return FixedVhd(disk)
