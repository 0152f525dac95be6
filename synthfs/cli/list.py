"""`synthfs list`: which disks a store has to offer, and with `--all` what it has not, and why."""

from typing import Annotated

import typer

from synthfs.cli.common import Database, Json, Store, answer, is_among, look_at, print_json, say, say_notes, unreadable
from synthfs.cli.describe import Facts, catalog_facts
from synthfs.cli.terminal import print_table
from synthfs.errors import NotFoundError
from synthfs.text import quoted
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
        there = f"`synthfs list {quoted(store)} --all` shows what there is"
        raise NotFoundError(f"{store} offers nothing of a client {client!r}; {there}")
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
    heads = ("CLIENT", "DISK", "SIZE", "TABLE", "PARTITIONS")
    rows = ((disk["client"], disk["name"], human(disk["length"]), disk["scheme"], _imaged(disk)) for disk in facts["disks"])
    print_table(heads, rows, right=("SIZE",))
    for disk in facts["disks"]:
        for note in _warnings(disk):
            answer(f"{disk['client']}, {disk['name']}: {note}")


def _imaged(disk: Facts) -> str:
    imaged = sum(partition["content"] == "image" for partition in disk["partitions"])
    mixed = ", mixed dates" if disk["mixed"] else ""
    return f"{imaged} of {len(disk['partitions'])}{mixed}"


def _warnings(disk: Facts) -> list[str]:
    return [note["text"] for note in disk["notes"] if note["warning"]]


def _print_rest(facts: Facts) -> None:
    for part in facts["parts"]:
        answer(f"part of disk {part['disk_id']}: {part['image']}")
    for skipped in facts["not_offered"]:
        answer(f"not offered: {skipped['name']}: {skipped['reason']}")
