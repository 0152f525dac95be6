"""`synthfs list`: which disks a store has to offer, and with `--all` what it has not, and why."""

from typing import Annotated

import typer
from rich.table import Table

from synthfs.cli.common import Database, Json, Store, is_among, look_at, print_json, printable, say, say_notes, unreadable
from synthfs.cli.describe import Facts, catalog_facts
from synthfs.cli.terminal import out, print_table
from synthfs.errors import NotFoundError
from synthfs.units import human


def list_disks(
    store: Store,
    client: Annotated[str, typer.Option(metavar="GLOB", help="Only these clients.")] = "*",
    everything: Annotated[bool, typer.Option("--all", help="Also what is not offered, and why.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """List the disks that STORE has to offer."""
    catalog = look_at(store, database)
    facts = catalog_facts(catalog, lambda name: is_among(name, client), everything)
    if client != "*" and not any(facts.get(key) for key in ("disks", "not_offered")):
        raise NotFoundError(f"{store} offers nothing of a client {client!r}; `synthfs list {store} --all` shows what there is")
    say_notes(catalog.notes)
    if (denied := unreadable(catalog, client)) and not everything:
        say(f"warning: {denied}")
    if as_json:
        print_json(facts)
        return
    _print_disks(facts)
    if everything:
        _print_rest(facts)
    elif hidden := sum(is_among(skipped.client, client) for skipped in catalog.skipped):
        say(f"{hidden} more {'is' if hidden == 1 else 'are'} not offered; --all shows why")


def _print_disks(facts: Facts) -> None:
    if not facts["disks"]:
        say(f"{facts['store']} has no disk to offer")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("CLIENT", no_wrap=True)
    table.add_column("DISK", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("TABLE", no_wrap=True)
    table.add_column("PARTITIONS", no_wrap=True)
    for disk in facts["disks"]:
        table.add_row(
            printable(disk["client"]),
            printable(disk["name"]),
            human(disk["length"]),
            disk["scheme"],
            _imaged(disk),
        )
    print_table(table)
    for disk in facts["disks"]:
        for note in _warnings(disk):
            out.print(f"{printable(disk['client'])}, {printable(disk['name'])}: {note}", soft_wrap=True)


def _imaged(disk: Facts) -> str:
    imaged = sum(partition["content"] == "image" for partition in disk["partitions"])
    mixed = ", mixed dates" if disk["mixed"] else ""
    return f"{imaged} of {len(disk['partitions'])}{mixed}"


def _warnings(disk: Facts) -> list[str]:
    return [printable(note["text"]) for note in disk["notes"] if note["warning"]]


def _print_rest(facts: Facts) -> None:
    for part in facts["parts"]:
        out.print(f"part of disk {part['disk_id']}: {printable(part['image'])}", soft_wrap=True)
    for skipped in facts["not_offered"]:
        out.print(f"not offered: {printable(skipped['name'])}: {printable(skipped['reason'])}", soft_wrap=True)
