"""`synthfs status`: the mounts that run on this machine, and how they fare."""

from typing import Any

import typer

from synthfs.cli.common import Json, print_json, say
from synthfs.cli.terminal import print_table
from synthfs.host import mounts, probe


def status(as_json: Json = False) -> None:
    """List the running mounts. One that does not answer is an error (1)."""
    found = [_facts(mount) for mount in mounts.table()]
    if as_json:
        print_json(found)
    elif found:
        _print(found)
    else:
        say("no synthfs mount is running")
    if not all(facts["answers"] or facts["closed"] for facts in found):
        raise typer.Exit(1)


def _print(found: list[dict[str, Any]]) -> None:
    rows = []
    for facts in found:
        state = [str(facts.get(key, "-")) for key in ("pid", "disks", "open_handles", "errors")]
        if not facts["answers"]:
            state[0] = "not open to you" if facts["closed"] else "does not answer"
        rows.append((facts["mountpoint"], facts["store"], *state))
    print_table(("MOUNTPOINT", "STORE", "PROCESS", "DISKS", "OPEN", "ERRORS"), rows)
    for facts in found:
        if facts["answers"] and probe.is_missing(facts["store"]):
            say(f"warning: {facts['store']} is not there; what {facts['mountpoint']} shows cannot be opened until it is back")


def _facts(mount: mounts.Mount) -> dict[str, Any]:
    facts: dict[str, Any] = {"mountpoint": mount.mountpoint, "store": mount.store}
    told = mounts.status(mount)
    return (told or {}) | facts | {"answers": told is not None, "closed": told is None and mounts.is_closed(mount)}
