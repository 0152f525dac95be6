"""Checks the tables of a disk and what the volumes say of themselves: signatures, checksums, bounds, overlaps, places.

It believes nothing that was worked out before: it reads the tables back from the disk's bytes, which may lie in an image
(a disk imaged as a whole), and says of each thing that is wrong which one it is. `check_sidecar` looks at what UrBackup
captured in an `.mbr`, of which a disk uses only what is sound.

Not for: hashes and whole volumes (`engines/verify`). Units: bytes; LBAs in logical sectors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from synthfs.errors import FormatError
from synthfs.formats import bootsector, gpt, mbr
from synthfs.formats.bootsector import BootSector
from synthfs.model import Fault, Finding
from synthfs.units import align_up
from synthfs.urbackup import mbrfile
from synthfs.urbackup.mbrfile import CapturedGpt

Read = Callable[[int, int], bytes]
"""The `length` bytes from `offset` on, or fewer where the disk ends before."""



class Place(NamedTuple):
    """Something at [start, start + length) of a disk. `gap` is the distance of a logical drive from the record in front of it,
    from which its boot sector may count."""

    name: str
    start: int
    length: int
    gap: int = 0


RECORD = "boot record"
_MOST_LOGICAL = 128
"""A chain of more is a circle."""

_BOOT = 4096


def check_disk(
    length: int, sector_size: int, read: Read, *, moved: bool = False, has_table: bool = True
) -> Iterator[Finding]:
    """What is wrong with a disk of `length` bytes. `moved`: its volumes are known to lie elsewhere than they once did.

    A disk that has no table begins with its volume.
    """
    if not has_table:
        yield from _check_volume(Place("volume", 0, length), sector_size, read, moved)
        return
    try:
        record = mbr.parse(read(0, mbr.SIZE))
    except FormatError as error:
        yield _bad(RECORD, str(error), 0)
        record = None
    has_gpt = read(sector_size, len(gpt.SIGNATURE)) == gpt.SIGNATURE
    announced = record is not None and any(entry.type == mbr.PROTECTIVE for entry in record.entries)
    if record and has_gpt and not announced:
        yield _bad(RECORD, "has no entry of type ee, so that nothing keeps old programs off the GPT", 446)
    places: list[Place] = []
    if has_gpt or announced:
        yield from _check_gpt(length, sector_size, read, places)
    elif record:
        yield from _check_record(record, sector_size, read, places)
    yield from _check_apart(places, length)
    for place in places:
        if place.name.startswith("partition") and place.start + place.length <= length:
            yield from _check_volume(place, sector_size, read, moved)


def _check_record(record: mbr.MasterBootRecord, sector_size: int, read: Read, places: list[Place]) -> Iterator[Finding]:
    places.append(Place(RECORD, 0, mbr.SIZE))
    for number, entry in enumerate(record.entries, 1):
        at = 446 + 16 * (number - 1)
        if entry.status not in (0, mbr.ACTIVE):
            yield _bad(RECORD, f"entry {number} has status {entry.status:02x}, and only 00 and 80 mean anything", at)
        start, length = entry.first_lba * sector_size, entry.sectors * sector_size
        if entry.used and entry.extended:
            yield from _check_logical_drives(f"partition {number}", start, length, sector_size, read, places)
        elif entry.used:
            places.append(Place(f"partition {number}", start, length))
    if sum(entry.status == mbr.ACTIVE for entry in record.entries) > 1:
        yield _bad(RECORD, "more than one partition is active, and no BIOS boots that", 446)


def _check_logical_drives(
    name: str, start: int, length: int, sector_size: int, read: Read, places: list[Place]
) -> Iterator[Finding]:
    """The chain of records in the extended partition called `name`. Adds them and the drives to `places`."""
    at, before = start, len(places)
    for number in range(5, 5 + _MOST_LOGICAL):
        try:
            first, following, *_ = mbr.parse(read(at, mbr.SIZE)).entries
        except FormatError as error:
            yield _bad(f"{name}: extended boot record", str(error), at)
            break
        places.append(Place(f"{name}: extended boot record", at, mbr.SIZE))
        if first.used:
            gap = first.first_lba * sector_size
            places.append(Place(f"partition {number}", at + gap, first.sectors * sector_size, gap))
        if not following.used:
            break
        at = start + following.first_lba * sector_size
    for place in places[before:]:
        if not start <= place.start <= place.start + place.length <= start + length:
            yield _bad(place.name, f"lies outside {name}", place.start)


def _check_gpt(length: int, sector_size: int, read: Read, places: list[Place]) -> Iterator[Finding]:
    """Both copies of a GPT. Adds tables and partitions to `places`."""
    places.append(Place(RECORD, 0, sector_size))
    last = length // sector_size - 1
    sound: list[tuple[str, gpt.Header, tuple[gpt.Entry, ...]]] = []
    for name, lba in (("GPT", 1), ("backup GPT", last)):
        try:
            header, entries = _read_copy(name, lba, sector_size, read)
        except FormatError as error:
            yield _bad(name, str(error), lba * sector_size)
            continue
        yield from _check_header(name, header, last, sector_size)
        places.append(Place(f"{name} header", lba * sector_size, sector_size))
        places.append(Place(f"{name} entries", header.entries_lba * sector_size, header.entries_length))
        sound.append((name, header, entries))
    if len(sound) == 2:
        (_, first, entries), (_, second, others) = sound
        if entries != others or gpt.twin(second, first.entries_lba) != first:
            yield _bad("backup GPT", "is sound, but another table than the first one", last * sector_size)
    for _, header, entries in sound[:1]:
        used = [(number, entry) for number, entry in enumerate(entries, 1) if entry.used]
        for number, entry in used:
            start, end = entry.first_lba * sector_size, entry.end_lba * sector_size
            if not header.first_usable <= entry.first_lba < entry.end_lba <= header.last_usable + 1:
                usable = f"{header.first_usable} to {header.last_usable}"
                yield _bad(f"partition {number}", f"lies outside the LBAs that the GPT calls usable ({usable})", start)
            places.append(Place(f"partition {number}", start, end - start))
        guids = [entry.guid for _, entry in used]
        for number, entry in used:
            if guids.count(entry.guid) > 1:
                yield _bad(f"partition {number}", f"has a GUID that another one has, too: {entry.guid}", sector_size)


def _read_copy(name: str, lba: int, sector_size: int, read: Read) -> tuple[gpt.Header, tuple[gpt.Entry, ...]]:
    header = gpt.parse_header(read(lba * sector_size, sector_size))
    if header.own_lba != lba:
        raise FormatError(f"{name} header at LBA {lba} says that it is at LBA {header.own_lba}")
    return header, gpt.parse_entries(header, read(header.entries_lba * sector_size, header.entries_length))


def _check_header(name: str, header: gpt.Header, last: int, sector_size: int) -> Iterator[Finding]:
    other = last if header.own_lba == 1 else 1
    if header.other_lba != other:
        yield _bad(f"{name} header", f"has the other copy at LBA {header.other_lba}, and it belongs at {other}", None)
    if any(header.rest[header.header_size - 92 :]):
        at = header.own_lba * sector_size
        yield _bad(f"{name} header", "has something behind its end, where the specification wants zeroes", at)
    table = align_up(header.entries_length, sector_size) // sector_size
    lowest, highest = (header.entries_lba + table, last - 1) if header.own_lba == 1 else (2, header.entries_lba - 1)
    if not lowest <= header.first_usable <= header.last_usable + 1 <= highest + 1:
        usable = f"{header.first_usable} to {header.last_usable}"
        yield _bad(f"{name} header", f"calls LBAs usable that are not all free for partitions: {usable}", None)


def _check_apart(places: Iterable[Place], length: int) -> Iterator[Finding]:
    """Nothing overlaps, and all lies on the disk."""
    end, last = 0, "the start of the disk"
    for name, start, size, _ in sorted(places, key=lambda place: place.start):
        if start < end:
            yield _bad(name, f"overlaps {last}", start)
        if start + size > length:
            yield _bad(name, f"reaches to {start + size}, past the end of the disk at {length}", start)
        if start + size > end:
            end, last = start + size, name


def _check_volume(place: Place, sector_size: int, read: Read, moved: bool) -> Iterator[Finding]:
    name, start, length, gap = place
    raw = read(start, min(_BOOT, length))
    boot = bootsector.parse(raw)
    if boot is None:
        return
    if boot.length > length:
        text = f"its {boot.file_system} says that it has {boot.length} bytes, and the partition has {length}"
        yield _bad(name, text, start)
    if boot.sector_size != sector_size:
        text = f"its {boot.file_system} has sectors of {boot.sector_size} bytes, the disk of {sector_size}"
        yield Finding(Fault.NOTE, name, text, start)
    first = start // sector_size % (1 << 32 if boot.file_system != "exFAT" else 1 << 64)
    if boot.hidden_sectors not in (0, first, gap // sector_size) and not moved:
        text = f"its {boot.file_system} says that it begins at LBA {boot.hidden_sectors}, and the partition begins at {first}"
        yield Finding(Fault.NOTE, name, f"{text}: Windows may not boot from it", start)
    if boot.file_system == "NTFS":
        yield from _check_twin(name, boot, start, length, raw, read)


def _check_twin(name: str, boot: BootSector, start: int, length: int, raw: bytes, read: Read) -> Iterator[Finding]:
    at = start + boot.length
    if boot.length + boot.sector_size <= length and read(at, boot.sector_size) != raw[: boot.sector_size]:
        yield Finding(Fault.NOTE, name, "the copy of the NTFS boot sector behind its end differs; chkdsk mends that", at)


def check_sidecar(raw: bytes) -> Iterator[Finding]:
    """What of the tables in an `.mbr` is not sound. Offsets are those of the original disk.

    Only a GPT has checksums: nothing tells whether a bit of a boot record is the right one.
    """
    try:
        sidecar = mbrfile.parse(raw)
    except FormatError as error:
        yield _bad(".mbr", str(error), None)
        return
    if sidecar.primary is None:
        return
    copies = [(".mbr: GPT", sidecar.primary)]
    if sidecar.backup and sidecar.backup.header_position != sidecar.primary.header_position:
        copies.append((".mbr: backup GPT", sidecar.backup))
    headers = []
    for name, copy in copies:
        try:
            headers.append(_check_captured(copy))
        except FormatError as error:
            yield _bad(name, str(error), copy.header_position)
    if len(headers) == 2:
        first, second = headers
        turned = gpt.twin(second, first.entries_lba)
        if turned != first and replace(turned, rest=first.rest) == first:
            yield _bad(".mbr: GPT", "what is behind the header's end differs between the two copies", None)


def _check_captured(copy: CapturedGpt) -> gpt.Header:
    header = gpt.parse_header(copy.header)
    gpt.parse_entries(header, copy.table)
    return header


def _bad(where: str, text: str, offset: int | None) -> Finding:
    return Finding(Fault.BAD_INPUT, where, text, offset)
