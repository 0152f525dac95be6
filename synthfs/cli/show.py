"""`synthfs show`: one disk as a picture of its partitions to scale, and for each where its bytes come from."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from synthfs.cli import picture
from synthfs.cli.common import Database, Image, Json, VolumeOnly, find_disk, hole_maps, print_json, printable
from synthfs.cli.describe import Facts, data_of, disk_facts, extent_facts, hash_notes, note_facts, table_facts
from synthfs.cli.picture import Cell
from synthfs.cli.terminal import out
from synthfs.plan import container
from synthfs.plan.container import Format
from synthfs.units import human

_WIDEST = 120


def show(
    image: Image,
    extents: Annotated[bool, typer.Option("--extents", help="Also every extent of the virtual file.")] = False,
    alone: VolumeOnly = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Show the layout of the disk that IMAGE belongs to."""
    disk = find_disk(image, database, alone)
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
    out.print(_parts(facts))
    out.print()
    for each in facts["containers"]:
        out.print(f"{each['format']}: {printable(each['file'])}, {each['length']} bytes")
    for note in facts["notes"]:
        out.print(f"{'warning' if note['warning'] else 'note'}: {printable(note['text'])}")
    if extents:
        out.print(_extents(facts))


def _print_title(facts: Facts) -> None:
    title = Text(printable(f"{facts['client']} · {facts['name']}"), style="bold")
    out.print(title.append(f" · {_time(facts['stamp'])}", style="not bold"), soft_wrap=True)
    sectors = "" if facts["sector_size"] == 512 else f", sectors of {facts['sector_size']} bytes"
    used = sum(partition.get("data", 0) for partition in facts["partitions"])
    what = f"{facts['scheme']} {facts['disk_id'] or 'without an id'}{sectors}"
    out.print(f"{human(facts['length'])}, {human(used)} of it data · {what}", soft_wrap=True)


def _print_picture(facts: Facts, data: dict[int, list[picture.Range]]) -> None:
    glyphs = picture.UNICODE if out.encoding.startswith("utf") else picture.ASCII
    width = min(out.width, _WIDEST)
    cells = list(_cells(facts, data))
    out.print(picture.draw(cells, width, glyphs))
    out.print(glyphs.legend, style="dim")
    if missing := picture.left_out(cells, width):
        out.print(f"{missing} small partition{' is' if missing == 1 else 's are'} not drawn", style="dim")
    out.print()


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


def _parts(facts: Facts) -> Table:
    """For each partition what it is and where it comes from, and the same of what lies beside them."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for partition in facts["partitions"]:
        text = Text(printable(_name(partition)), style="bold")
        place = f"{human(partition['length'])} at {human(partition['start'])}"
        text.append(printable(" · ".join(("", *_words(partition), place))), style="not bold")
        text.append(f"\n{printable(_origin(partition))}", style="not bold")
        table.add_row(Text(str(partition["number"]), style=f"bold {_style(partition)}"), text)
    if facts["tables"]:
        names = dict.fromkeys(one["name"].removesuffix(" header").removesuffix(" entries") for one in facts["tables"])
        size = human(sum(one["length"] for one in facts["tables"]))
        table.add_row("", Text(printable(f"{', '.join(names)} · {size} synthesized, {facts['tables'][0]['from']}")))
    return table


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


def _extents(facts: Facts) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("OFFSET", justify="right")
    table.add_column("LENGTH", justify="right")
    table.add_column("BYTES FROM", overflow="fold")
    for extent in facts["extents"]:
        origin = {"zero": "zeroes", "bytes": "made in memory"}.get(extent["kind"])
        origin = origin or f"{extent['source']} at {extent['source_offset']}"
        table.add_row(str(extent["offset"]), str(extent["length"]), printable(origin))
    return table
