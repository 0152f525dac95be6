"""`synthfs status`: the mounts that run on this machine, and how they fare."""

import json
from typing import Any

from rich.table import Table

from synthfs.cli.common import Json, out, print_json, printable, say
from synthfs.host import mounts, probe
from synthfs.model import STATUS, STATUS_DIRECTORY


def status(as_json: Json = False) -> None:
    """List the running mounts."""
    found = [_facts(mount) for mount in mounts.table()]
    if as_json:
        print_json(found)
        return
    if not found:
        say("no synthfs mount is running")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("MOUNTPOINT", "STORE", "PROCESS", "DISKS", "OPEN", "ERRORS"):
        table.add_column(name, overflow="fold")
    for facts in found:
        state = [str(facts.get(key, "-")) for key in ("pid", "disks", "open_handles", "errors")]
        if not facts["answers"]:
            state[0] = "does not answer"
        table.add_row(printable(facts["mountpoint"]), printable(facts["store"]), *state)
    out.print(table)


def _facts(mount: mounts.Mount) -> dict[str, Any]:
    facts: dict[str, Any] = {"mountpoint": mount.mountpoint, "store": mount.store, "answers": False}
    told = probe.read(f"{mount.mountpoint}/{STATUS_DIRECTORY}/{STATUS}")
    return facts | json.loads(told) | {"answers": True} if told else facts
