"""Joins the checks to answers: what is wrong with one image, with one disk's tables, with one file.

An `Audit` collects what was found in one of them, and how much of it was looked at. Not for: choosing what is checked, or
saying it to anybody (`cli/verify`). Units: bytes, seconds.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain

from synthfs.engines.crew import Crew
from synthfs.engines.read import Reader
from synthfs.engines.verify import Bad, Progress, Range, Sample, Tally, check_hashes, check_tail, check_zero, compare
from synthfs.errors import NotFoundError, SourceError
from synthfs.extents import ExtentMap
from synthfs.host.files import OpenSource, source_at
from synthfs.host.links import Links
from synthfs.model import Fault, Finding, Skipped
from synthfs.plan import lengths
from synthfs.plan.check import check_disk, check_sidecar
from synthfs.plan.container import Format
from synthfs.plan.disk import Disk
from synthfs.plan.parts import Part, parts
from synthfs.plan.volume import Volume
from synthfs.units import human


@dataclass(slots=True)
class Audit:
    """One thing that was checked: `what` it is ("image", "tables", "file"), and its name."""

    what: str
    name: str
    findings: list[Finding] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0

    @property
    def worst(self) -> Fault | None:
        """None where all is well, and where there are notes alone."""
        order = list(Fault)
        return min((f.fault for f in self.findings if f.fault is not Fault.NOTE), key=order.index, default=None)

    def run(self, findings: Iterator[Finding]) -> "Audit":
        began = time.monotonic()
        try:
            self.findings += findings
        except SourceError as error:
            self.findings.append(Finding(Fault.UNREADABLE, self.what, str(error)))
        self.seconds = time.monotonic() - began
        return self


def check_image(crew: Crew, volume: Volume, sample: Sample, progress: Progress) -> Audit:
    """A `.raw` file against its `.hash`, and its length against that of its file system."""
    audit = Audit("image", volume.image.name)
    return audit.run(_check_image(crew, volume, audit.tally, sample, progress))


def _check_image(crew: Crew, volume: Volume, tally: Tally, sample: Sample, progress: Progress) -> Iterator[Finding]:
    raw, place = volume.image.raw, (volume.offset, volume.length)
    if not volume.whole_disk:
        yield from lengths.of_volume(volume.image.boot, volume.length)
    with closing(OpenSource(raw)) as file:
        try:
            hashes = OpenSource(source_at(f"{raw.path}.hash"))
        except NotFoundError:
            tally.unproven += volume.length
            yield Finding(Fault.CANNOT_CHECK, ".hash", "there is none: the backup was not finished, or somebody removed it")
            return
        with closing(hashes):
            links = Links(raw.path.removesuffix(f"/{raw.name}"))
            if why := links.why_not(hashes.source.path, os.fstat(hashes.fd)):
                tally.unproven += volume.length
                yield Finding(Fault.CANNOT_CHECK, ".hash", why)
                return
            yield from lengths.of_hashes(hashes.source.size, volume.length)
            for bad in check_hashes(crew, file, hashes, place, tally, sample, progress):
                yield _of_volume(volume, bad)
            if bad_tail := check_tail(file, hashes, place, tally):
                yield _of_volume(volume, bad_tail)


def not_usable(skipped: Skipped) -> Audit:
    """An image that would be offered if its `.raw` held a whole volume."""
    return Audit("image", skipped.name, [Finding(Fault.BAD_INPUT, "volume", skipped.reason)])


def _of_volume(volume: Volume, bad: Bad) -> Finding:
    offset = volume.offset + bad.offset
    if bad.why:
        return Finding(Fault.UNREADABLE, "volume", bad.why, offset, bad.length)
    text = f"{human(bad.length)} from offset {bad.offset} of the volume on have another hash than they had during the backup"
    return Finding(Fault.DIFFERS, "volume", text, offset, bad.length)


def check_tables(disk: Disk) -> Audit:
    """The tables of a disk, those that were captured, and what is to be known about how it was put together."""
    audit = Audit("tables", disk.image.name)
    return audit.run(_check_tables(disk))


def _check_tables(disk: Disk) -> Iterator[Finding]:
    for note in disk.notes:
        if note.warning:
            yield Finding(Fault.NOTE, "disk", note.text)
    if disk.image.mbr is not None:
        yield from check_sidecar(disk.image.mbr)
    reader = Reader(disk.extent_map())

    def read(offset: int, length: int) -> bytes:
        raw = bytearray(max(min(length, disk.length - offset), 0))
        reader.read(offset, memoryview(raw))
        return bytes(raw)

    with closing(reader):
        layout = disk.layout
        has_table = layout.scheme != "none"
        yield from check_disk(disk.length, layout.sector_size, read, moved=layout.made_up, has_table=has_table)


def check_file(
    crew: Crew,
    disk: Disk,
    form: Format,
    extents: ExtentMap,
    absent: Sequence[Range],
    file: OpenSource,
    sample: Sample,
    progress: Progress,
) -> Audit:
    """A file against the map that it has to be, `disk` in a container, part by part.

    What is `absent` from the file has to be zero in the disk.
    """
    audit = Audit("file", file.source.path)
    size = file.source.size
    everything = parts(disk, extents, form)
    inside = (replace(part, length=min(part.length, size - part.offset)) for part in everything if part.offset < size)
    found = _check_file(crew, extents, inside, file, audit.tally, sample, progress)
    return audit.run(chain(found, _check_absent(crew, disk, absent, audit.tally, sample, progress)))


def _check_absent(
    crew: Crew, disk: Disk, absent: Sequence[Range], tally: Tally, sample: Sample, progress: Progress
) -> Iterator[Finding]:
    with closing(Reader(disk.extent_map())) as reader:
        first = check_zero(crew, reader, absent, tally, sample, progress)
    if first is not None:
        places = parts(disk, disk.extent_map(), Format.RAW)
        name = next(part.name for part in places if part.offset <= first < part.offset + part.length)
        yield Finding(Fault.DIFFERS, name, f"the file leaves out what is not zero, first at offset {first} of the disk")


def _check_file(
    crew: Crew,
    extents: ExtentMap,
    inside: Iterable[Part],
    file: OpenSource,
    tally: Tally,
    sample: Sample,
    progress: Progress,
) -> Iterator[Finding]:
    seen: set[str] = set()
    with closing(Reader(extents)) as reader:
        reader.open()
        for part, bad in compare(crew, reader, file, inside, tally, sample, progress):
            if part.name not in seen:
                seen.add(part.name)
                yield _of_part(part, bad)
    if (size := file.source.size) != extents.length:
        text = f"the file has {size} bytes, and {extents.length} would be right"
        yield Finding(Fault.DIFFERS, "length", text, min(size, extents.length))


def _of_part(part: Part, bad: Bad) -> Finding:
    if bad.why:
        return Finding(Fault.UNREADABLE, part.name, bad.why, bad.offset, bad.length)
    place = "" if part.inside is None else f", {part.inside + bad.offset - part.offset} bytes into the partition"
    return Finding(Fault.DIFFERS, part.name, f"differs first at offset {bad.offset}{place}", bad.offset)
