"""`synthfs show`: one disk as a picture of its partitions to scale, and for each where its bytes come from."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer

from synthfs.cli import picture
from synthfs.cli.common import Anyway, Database, Image, Json, VolumeOnly, answer, find_disk, hole_maps, print_json
from synthfs.cli.describe import Facts, data_of, disk_facts, extent_facts, hash_notes, note_facts, table_facts
from synthfs.cli.picture import Cell
from synthfs.cli.terminal import Styled, draw, draw_grid, draw_line, paper, print_table, stacked, styled
from synthfs.plan import container
from synthfs.plan.container import Format
from synthfs.units import human

_WIDEST = 120


def show(
    image: Image,
    extents: Annotated[bool, typer.Option("--extents", help="Also every extent of the virtual file.")] = False,
    alone: VolumeOnly = False,
    anyway: Anyway = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Show the layout of the disk that IMAGE belongs to."""
    disk = find_disk(image, database, alone, anyway)
    data = data_of(disk)
    facts = disk_facts(disk, list(Format), hole_maps(disk, Format.VHDX)) | {"tables": table_facts(disk)}
    facts["notes"] += [note_facts(note) for note in hash_notes(disk)]
    for partition in facts["partitions"]:
        if (ranges := data.get(partition["number"])) is not None:
            used = sum(length for _, length in ranges)
            partition |= {"data": used, "holes": partition["image_length"] - used}
    if extents:
        form = container.fitting(disk, Format.VHD)
        file, *_ = container.of_disk(disk, form, disk.image.stem, hole_maps(disk, form))
        facts["extents"] = extent_facts(file.extent_map())
    if as_json:
        print_json(facts)
        return
    _print_title(facts)
    _print_picture(facts, data)
    draw_grid(_parts(facts))
    answer()
    for each in facts["containers"]:
        answer(f"{each['format']}: {each['file']}, {each['length']} bytes")
    for note in facts["notes"]:
        answer(f"{'warning' if note['warning'] else 'note'}: {note['text']}")
    if extents:
        print_table(("OFFSET", "LENGTH", "BYTES FROM"), _extents(facts), right=("OFFSET", "LENGTH"))


def _print_title(facts: Facts) -> None:
    draw_line(styled((f"{facts['client']} · {facts['name']}", "bold"), (f" · {_time(facts['stamp'])}", "")))
    sectors = "" if facts["sector_size"] == 512 else f", sectors of {facts['sector_size']} bytes"
    used = sum(partition.get("data", 0) for partition in facts["partitions"])
    what = f"{facts['scheme']} {facts['disk_id'] or 'without an id'}{sectors}"
    answer(f"{human(facts['length'])}, {human(used)} of it data · {what}")


def _print_picture(facts: Facts, data: dict[int, list[picture.Range]]) -> None:
    columns, unicode = paper()
    glyphs, width = picture.UNICODE if unicode else picture.ASCII, min(columns, _WIDEST)
    cells = list(_cells(facts, data))
    draw(picture.draw(cells, width, glyphs))
    draw(styled((glyphs.legend, "dim")))
    if missing := picture.left_out(cells, width):
        draw(styled((f"{missing} small partition{' is' if missing == 1 else 's are'} not drawn", "dim")))
    answer()


def _cells(facts: Facts, data: dict[int, list[picture.Range]]) -> Iterator[Cell]:
    end = 0
    for partition in sorted(facts["partitions"], key=lambda each: each["start"]):
        if partition["start"] > end:
            yield Cell(partition["start"] - end, "")
        end = partition["start"] + partition["length"]
        title, size = f"{partition['number']} {_name(partition)}", human(partition["length"])
        yield Cell(partition["length"], title, size, data.get(partition["number"]), _style(partition))
    if facts["length"] > end:
        yield Cell(facts["length"] - end, "")


def _style(partition: Facts) -> str:
    if partition["content"] == "zero":
        return "dim"
    return picture.STYLES[(partition["number"] - 1) % len(picture.STYLES)]


def _name(partition: Facts) -> str:
    """What a person calls it: the drive's letter, or what the table calls it."""
    letter = partition.get("letter")
    return f"{letter}:" if letter and len(letter) == 1 else letter or partition["label"] or partition["type"]


def _parts(facts: Facts) -> Iterator[tuple[Styled, Styled]]:
    """For each partition what it is and where it comes from, and the same of what lies beside them."""
    for partition in facts["partitions"]:
        place = f"{human(partition['length'])} at {human(partition['start'])}"
        words = styled((_name(partition), "bold"), (" · ".join(("", *_words(partition), place)), ""))
        number = styled((str(partition["number"]), f"bold {_style(partition)}"))
        yield number, stacked(words, styled((_origin(partition), "")))
    if facts["tables"]:
        names = dict.fromkeys(one["name"].removesuffix(" header").removesuffix(" entries") for one in facts["tables"])
        size = human(sum(one["length"] for one in facts["tables"]))
        yield styled(), styled((f"{', '.join(names)} · {size} synthesized, {facts['tables'][0]['from']}", ""))


def _words(partition: Facts) -> Iterator[str]:
    """What else there is to say of it: the label, the type unless the label repeats it, and the file system."""
    label, kind, name = partition["label"], partition["type"], _name(partition)
    if label not in ("", name):
        yield label
    if kind != name and kind.lower() not in label.lower():
        yield kind
    if partition.get("file_system"):
        yield partition["file_system"]


def _origin(partition: Facts) -> str:
    if partition["content"] == "zero":
        return "zero: not imaged"
    file = partition["image"].rpartition("/")[2].removesuffix(".raw")
    used = "where its data are is not known"
    if "data" in partition:
        used = f"{human(partition['data'])} data, {human(partition['holes'])} holes"
    made = f", {human(partition['synthesized'])} synthesized" if partition["synthesized"] else ""
    return f"{file}, {_time(partition['stamp'])}: {used}{made}"


def _time(stamp: str) -> str:
    """A stamp of UrBackup's, in the server's local time, as a person writes it."""
    try:
        return datetime.strptime(stamp, "%y%m%d-%H%M").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp


def _extents(facts: Facts) -> Iterator[tuple[str, str, str]]:
    for extent in facts["extents"]:
        origin = {"zero": "zeroes", "bytes": "made in memory"}.get(extent["kind"])
        yield str(extent["offset"]), str(extent["length"]), origin or f"{extent['source']} at {extent['source_offset']}"
