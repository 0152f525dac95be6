"""Containers: what is put around a bare disk so that a program takes the file for a disk of its kind.

    vhd          the disk, and a footer behind it               .vhd           up to 2040 GiB, 512-byte sectors
    vhd-dynamic  blocks that are not empty, behind a table      .dynamic.vhd   the same
    vhdx         the same, with checksums                       .vhdx          up to 64 TiB, 512 and 4096-byte sectors
    vmdk         a text that describes the bare disk beside it  .vmdk, -flat.vmdk   up to 62 TiB, 512-byte sectors
    raw          the bare disk                                  .img           any

A container is a pure wrapper: an extent map in, another one out. Its ids derive from the disk's edition, its time is the
backup's. How long a file is that leaves out what is empty, and what lies where in it, depends on the holes of its sources; so
its edition, and with it its ids and its inode, derive from those as well.

Not for: byte layouts (`formats/`), the places of blocks (`plan/sparse`). Units: bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import assert_never

from synthfs import identity
from synthfs.errors import SourceError, UnsupportedError
from synthfs.extents import Blocks, Bytes, Extent, ExtentMap
from synthfs.formats import vhd, vhdx, vmdk
from synthfs.model import Ask
from synthfs.plan import sparse
from synthfs.plan.disk import Disk
from synthfs.units import SECTOR, GiB, human


class Format(StrEnum):
    """The containers, by the names that the command line has for them."""

    VHD = "vhd"
    VHD_DYNAMIC = "vhd-dynamic"
    VHDX = "vhdx"
    VMDK = "vmdk"
    RAW = "raw"

    @property
    def suffix(self) -> str:
        """What is put behind a disk's name to make that of the file to open."""
        return _SUFFIXES[self]

    @property
    def is_sparse(self) -> bool:
        """Whether it leaves out what is empty, so that its layout depends on the holes of the sources."""
        return self in (Format.VHD_DYNAMIC, Format.VHDX)


_SUFFIXES = {
    Format.VHD: ".vhd",
    Format.VHD_DYNAMIC: ".dynamic.vhd",
    Format.VHDX: ".vhdx",
    Format.VMDK: ".vmdk",
    Format.RAW: ".img",
}


_FLAT = "-flat"
"""What the file beside a VMDK's text has in its name."""


def suffixes() -> list[str]:
    """All that a container may add to the name of a disk, longer ones first."""
    return sorted((*_SUFFIXES.values(), _FLAT + Format.VMDK.suffix), key=len, reverse=True)


def beside(name: str) -> str | None:
    """The other file of a VMDK's two, one of which is called `name`; None for a container of one file."""
    suffix = Format.VMDK.suffix
    if name.endswith(_FLAT + suffix):
        return name.removesuffix(_FLAT + suffix) + suffix
    return name.removesuffix(suffix) + _FLAT + suffix if name.endswith(suffix) else None


def longest(name: str) -> int:
    """What the length of a file of this name may become, if a program that writes to it changes that."""
    return vmdk.MAX_TEXT if name.endswith(Format.VMDK.suffix) else 2**63 - 1


@dataclass(frozen=True, slots=True)
class Outline:
    """What a listing has to know of a container: the length of the file with the disk in it, and a hash over its layout.

    `disk_length` is that of the bare disk; `layout` is empty where the disk lies in the file as it is.
    """

    form: Format
    disk_length: int
    length: int
    layout: bytes = b""

    def edition(self, disk_edition: bytes) -> bytes:
        """A hash over everything that the file's bytes come from."""
        # That of the fixed VHD is the disk's own, as it was before there were others.
        if self.form is Format.VHD:
            return disk_edition
        return identity.digest("container", self.form, disk_edition, self.layout)


@dataclass(frozen=True, slots=True)
class ContainerFile:
    """One file of a container. `extent_map` makes its map; it costs more than a listing should, so it is made at open.

    `may_resize` tells whether a program that writes to it changes its length.
    """

    name: str
    length: int
    edition: bytes
    extent_map: Callable[[], ExtentMap] = field(repr=False)
    may_resize: bool = False


def check(disk: Disk, form: Format) -> None:
    """Raises UnsupportedError where `disk` does not fit into such a container."""
    name, sector_size = disk.image.name, disk.layout.sector_size
    kind, most, sizes = _LIMITS[form]
    if sector_size not in sizes:
        raise UnsupportedError(f"{name}: a disk of {sector_size}-byte sectors does not fit into a {kind} (but a VHDX)")
    if disk.length > most:
        raise UnsupportedError(f"{name}: a disk of {human(disk.length)} does not fit into a {kind} ({most // GiB} GiB at most)")


_LIMITS = {
    Format.VHD: ("VHD", vhd.MAX_DISK, (512,)),
    Format.VHD_DYNAMIC: ("dynamic VHD", vhd.MAX_DISK, (512,)),
    Format.VHDX: ("VHDX", vhdx.MAX_DISK, (512, 4096)),
    Format.VMDK: ("VMDK", vmdk.MAX_DISK, (512,)),
    Format.RAW: ("raw image", 2**63 - 1, (512, 4096)),
}


def fitting(disk: Disk, form: Format) -> Format:
    """`form` where the disk fits into it, otherwise what holds more: VHDX, and a raw image in the end."""
    for each in (form, Format.VHDX):
        try:
            check(disk, each)
        except UnsupportedError:
            continue
        return each
    return Format.RAW


def outline(disk: Disk, form: Format, ask: Ask) -> Outline | None:
    """The outline of `disk` in such a container; None where it rests on holes that are not known yet.

    Raises UnsupportedError where the disk does not fit into it.
    """
    check(disk, form)
    if not form.is_sparse:
        footer = vhd.SIZE if form is Format.VHD else 0
        return Outline(form, disk.length, disk.length + footer)
    layout = _layout(disk, form, ask)
    if layout is None:
        return None
    footer = vhd.SIZE if form is Format.VHD_DYNAMIC else 0
    return Outline(form, disk.length, layout.end + footer, layout.digest)


def files(
    outline: Outline, stem: str, disk_edition: bytes, disk: Callable[[], Disk], ask: Ask
) -> tuple[ContainerFile, ...]:
    """The files of a container, the one to open first. `stem` is their name without what the container adds to it.

    `disk` gives the disk, whose edition is `disk_edition`, when it comes to making a map.
    """
    form, edition = outline.form, outline.edition(disk_edition)
    name = stem + form.suffix
    # Half as large as a function in a function would be, and a large store has 20,000 of them.
    extent_map = partial(_extent_map, disk, outline, edition, ask)
    if form is not Format.VMDK:
        return (ContainerFile(name, outline.length, edition, extent_map, form.is_sparse),)
    flat = stem + _FLAT + form.suffix
    text = vmdk.descriptor(outline.disk_length, flat, identity.guid(identity.digest("vmdk", edition)))
    return (
        ContainerFile(name, len(text), identity.digest("text", edition), lambda: ExtentMap([Bytes(text)]), may_resize=True),
        ContainerFile(flat, outline.length, edition, extent_map),
    )


def of_disk(disk: Disk, form: Format, stem: str, ask: Ask) -> tuple[ContainerFile, ...]:
    """The files of `disk` in such a container, where all holes are known. Raises UnsupportedError where it does not fit."""
    found = outline(disk, form, ask)
    assert found is not None, "the holes of a source are not known"
    return files(found, stem, disk.edition, lambda: disk, ask)


def of_table(
    disk: Disk, form: Format, ask: Ask, read: Callable[[int, int], bytes]
) -> tuple[ExtentMap, list[tuple[int, int]]] | None:
    """The map of a file that was made of `disk` when its sources had other holes, and what of the disk it leaves out.

    `read` gives bytes of that file, by offset and length, and fewer where it ends. Of its table alone the numbers of the
    blocks are believed: they are laid out anew, and what comes of it has to have the same table. None where it has another
    one, so that the file was not made of such a disk, or is not what it was. What is left out has to be zero, by offset and
    length in the disk. The store may be on another file system now, so that other units of it are tried as well.
    """
    geometry, entries = vhdx.Geometry(disk.length, disk.layout.sector_size), -(-disk.length // vhd.BLOCK)
    if form is Format.VHDX:
        size, at, length = geometry.block_size, vhdx.BAT_AT, geometry.bat_length
    else:
        size, at, length = vhd.BLOCK, vhd.BAT_AT, vhd.bat_length(entries)
    table = read(at, length)
    if len(table) != length:
        return None
    runs = sparse.in_runs(geometry.present(table) if form is Format.VHDX else vhd.present(table, entries))
    allocations = {source: ask(source) for source in disk.sources}
    units = [None, *(SECTOR << shift for shift in range(12))] if form is Format.VHD_DYNAMIC else [None]
    for unit in units:
        asked = {source: found and (replace(found, block=unit) if unit else found) for source, found in allocations.items()}
        layout = _layout(disk, form, asked.get, runs)
        if layout and _table(disk, form, layout) == table:
            footer = vhd.SIZE if form is Format.VHD_DYNAMIC else 0
            edition = Outline(form, disk.length, layout.end + footer, layout.digest).edition(disk.edition)
            edges = [0, *(edge * size for run in runs for edge in (run.start, run.stop)), disk.length]
            gaps = [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
            return (_vhdx if form is Format.VHDX else _dynamic_vhd)(disk, layout, edition), gaps
    return None


def _layout(disk: Disk, form: Format, ask: Ask, runs: Sequence[range] | None = None) -> sparse.Layout | None:
    """Where the blocks `runs` go, those that are not zero by default; None while something is not known about a source."""
    allocations = {}
    for source in disk.sources:
        allocation = ask(source)
        if allocation is None:
            return None
        allocations[source] = allocation
    extents, geometry = disk.extent_map(), vhdx.Geometry(disk.length, disk.layout.sector_size)
    size = geometry.block_size if form is Format.VHDX else vhd.BLOCK
    if runs is None:
        runs = sparse.not_zero(extents, allocations, size)
    if form is Format.VHDX:
        return sparse.in_order(runs, size, geometry.payload_at)
    at = vhd.BAT_AT + vhd.bat_length(-(-disk.length // vhd.BLOCK))
    return sparse.in_agreement(extents, allocations, runs, vhd.BLOCK, at, vhd.BITMAP, vhd.MAX_BLOCK_AT)


def _extent_map(of: Callable[[], Disk], outline: Outline, edition: bytes, ask: Ask) -> ExtentMap:
    form, disk = outline.form, of()
    match form:
        case Format.RAW | Format.VMDK:
            return disk.extent_map()
        case Format.VHD:
            return disk.extent_map() + ExtentMap([Bytes(_footer(disk, vhd.FIXED, edition).pack())])
        case Format.VHD_DYNAMIC | Format.VHDX:
            layout = _layout(disk, form, ask)
            if layout is None or layout.digest != outline.layout:
                raise SourceError(
                    f"{disk.image.name}: the holes of its files are not those that it was listed with; mount again"
                )
            make = _vhdx if form is Format.VHDX else _dynamic_vhd
            return make(disk, layout, edition)
        case _:
            assert_never(form)


def _table(disk: Disk, form: Format, layout: sparse.Layout) -> bytes:
    """What says where in the file each block lies."""
    if form is Format.VHDX:
        (row,) = layout.rows
        return vhdx.Geometry(disk.length, disk.layout.sector_size).pack_bat(row.runs)
    bat = vhd.empty_bat(-(-disk.length // vhd.BLOCK))
    for row in layout.rows:
        vhd.enter(bat, row.runs, row.at, row.slot)
    return vhd.pack_bat(bat)


def _footer(disk: Disk, kind: int, edition: bytes) -> vhd.Footer:
    unique_id = identity.guid(identity.digest("vhd", edition))
    data_offset = vhd.HEADER_AT if kind == vhd.DYNAMIC else vhd.NO_OFFSET
    return vhd.Footer(disk.length, unique_id, disk.image.raw.mtime_ns // 10**9, kind, data_offset)


def _dynamic_vhd(disk: Disk, layout: sparse.Layout, edition: bytes) -> ExtentMap:
    footer = Bytes(_footer(disk, vhd.DYNAMIC, edition).pack())
    extents, entries = disk.extent_map(), -(-disk.length // vhd.BLOCK)
    pieces: list[tuple[int, Extent | Blocks]] = [
        (0, footer),
        (vhd.HEADER_AT, Bytes(vhd.Header(entries).pack())),
        (vhd.BAT_AT, Bytes(_table(disk, Format.VHD_DYNAMIC, layout))),
        *((row.at, row.blocks(extents, vhd.BLOCK)) for row in layout.rows),
        (layout.end, footer),
    ]
    return ExtentMap.placed(layout.end + vhd.SIZE, pieces)


def _vhdx(disk: Disk, layout: sparse.Layout, edition: bytes) -> ExtentMap:
    ids = (identity.guid(identity.digest("vhdx", what, edition)) for what in ("disk", "file", "data"))
    geometry = vhdx.Geometry(disk.length, disk.layout.sector_size)
    (row,) = layout.rows
    tables = (*geometry.pack_front(*ids), (vhdx.BAT_AT, _table(disk, Format.VHDX, layout)))
    pieces: list[tuple[int, Extent | Blocks]] = [
        # Most of a table is zeroes up to the next place that the format has for something.
        *((at, Bytes(raw.rstrip(b"\0"))) for at, raw in tables),
        (row.at, row.blocks(disk.extent_map(), row.slot)),
    ]
    return ExtentMap.placed(layout.end, pieces)
