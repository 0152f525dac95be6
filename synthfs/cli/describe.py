"""Facts of disks as plain values: what `--json` prints, and what the tables and pictures are drawn from.

Sizes and offsets are bytes, times are ISO 8601 in UTC. Not for: layout on a terminal (`cli/list`, `cli/show`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

from synthfs.errors import NotFoundError, SourceError
from synthfs.extents import Bytes, ExtentMap, FileRange, Zero
from synthfs.formats import bootsector
from synthfs.host.files import OpenSource, source_at
from synthfs.model import Ask, Note, Skipped
from synthfs.plan import container, lengths
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format
from synthfs.plan.disk import Content, Disk
from synthfs.plan.names import stems

Facts = dict[str, Any]


def catalog_facts(catalog: Catalog, wanted: Callable[[str], bool], everything: bool) -> Facts:
    """The clients that are `wanted`; `everything` adds what is not offered."""
    facts: Facts = {
        "store": catalog.store.root,
        "database": catalog.database,
        "notes": [note_facts(note) for note in catalog.notes],
        "disks": [disk_facts(disk) for disk in catalog.disks if wanted(disk.image.client)],
    }
    if everything:
        facts["parts"] = [
            {"client": part.image.client, "image": part.image.name, "disk_id": part.disk_id}
            for part in catalog.parts
            if wanted(part.image.client)
        ]
        facts["not_offered"] = [skipped_facts(skipped) for skipped in catalog.skipped if wanted(skipped.client)]
    return facts


def disk_facts(disk: Disk, formats: Iterable[Format] = (Format.VHD,), ask: Ask = lambda source: None) -> Facts:
    """All about one disk, and about its containers in `formats`."""
    image = disk.image
    return {
        "client": image.client,
        "image": image.name,
        "name": image.stem,
        "volume": image.letter,
        "stamp": image.stamp,
        "time": iso(image.raw.mtime_ns),
        "scheme": disk.layout.scheme,
        "disk_id": disk.layout.disk_id,
        "sector_size": disk.layout.sector_size,
        "length": disk.length,
        "containers": list(_containers(disk, formats, ask)),
        "mixed": disk.mixed,
        "unknown": disk.unknown,
        "partitions": [_partition_facts(content) for content in disk.contents],
        "notes": [note_facts(note) for note in disk.notes],
        "edition": disk.edition.hex(),
    }


def _containers(disk: Disk, formats: Iterable[Format], ask: Ask) -> Iterator[Facts]:
    """The files that hold the disk in each of `formats` that can; None for a length that is not known yet."""
    stem = stems([disk.image])[disk.image.name]
    for form in dict.fromkeys(container.fitting(disk, form) for form in formats):
        outline = container.outline(disk, form, ask)
        yield {"format": form, "file": stem + form.suffix, "length": outline and outline.length}


def _partition_facts(content: Content) -> Facts:
    partition, volume = content.partition, content.volume
    facts: Facts = {
        "number": partition.number,
        "start": partition.start,
        "length": partition.length,
        "type": partition.type,
        "label": partition.label,
        "guid": str(partition.guid) if partition.guid else None,
        "content": "zero",
    }
    if volume:
        facts |= {
            "content": "image",
            "image": volume.image.name,
            "letter": volume.image.letter,
            "stamp": volume.image.stamp,
            "time": iso(volume.image.raw.mtime_ns),
            "file_system": bootsector.file_system(volume.image.boot),
            "image_length": volume.length,
            "synthesized": sum(e.length for _, e in volume.extents() if isinstance(e, Bytes)),
            "age": content.age,
        }
    return facts


def table_facts(disk: Disk) -> list[Facts]:
    """What is made in memory beside the partitions; `from` says whose bytes these are."""
    origin = "made up" if disk.layout.made_up else f"after {disk.image.name.rpartition('/')[2]}.mbr"
    return [
        {"name": name, "offset": offset, "length": len(data), "from": origin} for name, offset, data in disk.layout.tables
    ]


def data_of(disk: Disk) -> dict[int, list[tuple[int, int]]]:
    """Offset and length of the data in each partition that has an image; a backup that is gone by now is left out."""
    found: dict[int, list[tuple[int, int]]] = {}
    for content in disk.contents:
        if volume := content.volume:
            with suppress(SourceError), closing(OpenSource(volume.image.raw)) as file:
                ranges = list(file.data_ranges(volume.offset, volume.length))
                found[content.partition.number] = [(at - volume.offset, length) for at, length in ranges]
    return found


def hash_notes(disk: Disk) -> Iterator[Note]:
    """Warnings about the lengths of the `.hash` files of a disk's images; about those that are there."""
    for content in disk.contents:
        if volume := content.volume:
            with suppress(NotFoundError, SourceError):
                size = source_at(f"{volume.image.raw.path}.hash").size
                which = "" if volume.image is disk.image else f"partition {content.partition.number}: "
                for note in lengths.as_notes(lengths.of_hashes(size, volume.length)):
                    yield Note(f"{which}{note.text}", note.warning)


def note_facts(note: Note) -> Facts:
    return {"text": note.text, "warning": note.warning}


def skipped_facts(skipped: Skipped) -> Facts:
    return {"client": skipped.client, "name": skipped.name, "reason": skipped.reason, "kind": skipped.kind}


def extent_facts(extents: ExtentMap) -> list[Facts]:
    """Every extent of a map, in order."""
    rows: list[Facts] = []
    for offset, extent in extents:
        row: Facts = {"offset": offset, "length": extent.length}
        match extent:
            case Zero():
                row["kind"] = "zero"
            case Bytes():
                row["kind"] = "bytes"
            case FileRange(source, at):
                row |= {"kind": "file", "source": source.name, "source_offset": at}
        rows.append(row)
    return rows


def iso(time_ns: int) -> str:
    """ISO 8601 in UTC; seconds since 1970 for the years that calendars here do not have, and file systems do."""
    try:
        return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"@{time_ns // 10**9}"
