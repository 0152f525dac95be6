"""`synthfs show`: one disk's layout, as a picture of its partitions to scale and a table of where each comes from."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from synthfs.cli.common import Database, Image, Json, VolumeOnly, find_disk, out, print_json, printable
from synthfs.cli.describe import Facts, disk_facts, extent_facts
from synthfs.plan.container import wrap
from synthfs.units import human

_STYLES = ("cyan", "green", "yellow", "magenta", "blue")
_NARROWEST = 5


def show(
    image: Image,
    extents: Annotated[bool, typer.Option("--extents", help="Also every extent of the virtual file.")] = False,
    alone: VolumeOnly = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Show the layout of the disk that IMAGE belongs to."""
    disk = find_disk(image, database, alone)
    facts = disk_facts(disk)
    if extents:
        facts["extents"] = extent_facts(wrap(disk).extent_map())
    if as_json:
        print_json(facts)
        return
    title = f"{facts['client']} · {facts['name']} · {human(facts['length'])} · {facts['scheme']} {facts['disk_id'] or ''}"
    out.print(printable(title), style="bold", soft_wrap=True)
    out.print(_picture(facts, min(out.width, 100)))
    out.print(_partitions(facts))
    for container in facts["containers"]:
        out.print(f"{container['format']}: {printable(container['file'])}, {container['length']} bytes")
    if facts["not_mounted"]:
        out.print(f"warning: not shown in a mount: {printable(facts['not_mounted'])}")
    for note in facts["notes"]:
        out.print(f"{'warning' if note['warning'] else 'note'}: {printable(note['text'])}")
    if extents:
        out.print(_extents(facts))


def _picture(facts: Facts, width: int) -> Text:
    """The disk as one bar: a cell for each partition, as wide as its share, but wide enough for its number."""
    partitions = facts["partitions"]
    room = max(width - len(partitions) * (_NARROWEST + 1) - 1, 0)
    whole = sum(partition["length"] for partition in partitions) or 1
    top, bar, bottom = Text("┌"), Text("│"), Text("└")
    for index, partition in enumerate(partitions):
        cell = _NARROWEST + room * partition["length"] // whole
        zero = partition["content"] == "zero"
        label = f"{partition['number']} {human(partition['length'])}"
        label = (label if len(label) <= cell else str(partition["number"])).center(cell, "·" if zero else " ")
        last = index == len(partitions) - 1
        top.append("─" * cell + ("┐" if last else "┬"))
        bar.append(label, style="dim" if zero else f"reverse {_STYLES[index % len(_STYLES)]}").append("│")
        bottom.append("─" * cell + ("┘" if last else "┴"))
    return Text("\n").join((top, bar, bottom))


def _partitions(facts: Facts) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (("#", True), ("START", True), ("SIZE", True), ("TYPE", False), ("LABEL", False), ("FROM", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "FROM")
    for partition in facts["partitions"]:
        origin = "zero: not imaged"
        if partition["content"] == "image":
            system = f" ({partition['file_system']})" if partition["file_system"] else ""
            origin = f"{partition['image'].rpartition('/')[2]}{system}"
        table.add_row(
            str(partition["number"]),
            human(partition["start"]),
            human(partition["length"]),
            partition["type"],
            printable(partition["label"]),
            printable(origin),
        )
    return table


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
