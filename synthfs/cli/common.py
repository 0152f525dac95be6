"""What all verbs share: how they talk, what they ask for, and how a path becomes a disk.

stdout carries the answer, stderr everything that is said about it; with `--json` stdout is JSON alone. Text goes out through
`say`, `answer` and `print_json`, or through `cli/terminal` where it is drawn, and through nothing else: nothing in it acts on
a terminal or makes another line.
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from typing import Annotated, Any

import typer

from synthfs.errors import NotFoundError, TargetError
from synthfs.host import collector, holes, mounts
from synthfs.host.state import Cache
from synthfs.model import Ask, Kind, Note
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format, suffixes
from synthfs.plan.disk import Disk, volume_only
from synthfs.plan.garden import Gardener
from synthfs.plan.names import fold, owner
from synthfs.plan.renew import new_identity
from synthfs.plan.tree import NEW_IDENTITY, File, Tree, find
from synthfs.survey import survey
from synthfs.text import printable
from synthfs.units import SECTOR, GiB
from synthfs.urbackup import remembered
from synthfs.urbackup.storage import is_client, split_path

ANYWAY = "--even-if-incomplete"

_TAKEN_ANYWAY = (Kind.INCOMPLETE, Kind.FORGOTTEN)
"""What speaks against images that can be had by that option."""

_TAG = re.compile(r"~(?:[0-9a-f]{32}|[0-9a-f]{8})(?=\.[^./]*$)")
"""What a disk has behind its name while a session has that name (`plan/written`)."""


def unit_of(text: str) -> int:
    """Bytes of `512`, `4K`, `1M`; typer's error for what is no power of two from 512 to 1G."""
    found = re.fullmatch(r"(\d{1,10})([KMG]?)", str(text), re.ASCII | re.IGNORECASE)
    unit = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()] if found else 0
    if not SECTOR <= unit <= GiB or unit & unit - 1:
        raise typer.BadParameter(f"{text!r} is no power of two from 512 to 1G, such as 4K or 1M")
    return unit


def not_empty(text: str) -> str:
    """An empty word would be the present directory: a unit whose file does not set the variable has one."""
    if not text:
        raise typer.BadParameter("it is empty")
    return text


Store = Annotated[
    str, typer.Argument(metavar="STORE", callback=not_empty, help="UrBackup's backup storage: one folder per client.")
]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A .raw file of the store, or a file of a running mount.")]
Database = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="UrBackup's backup_server.db; none: go by the files alone.", show_default=False),
]
Anyway = Annotated[
    bool,
    typer.Option(ANYWAY, help="Take IMAGE even if it was broken off, has no .sync, or is not in the database."),
]
VolumeOnly = Annotated[bool, typer.Option("--volume-only", help="This volume alone, on a generated disk of its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]


def say(text: str) -> None:
    """One line on stderr. That nobody takes it is no reason to fail."""
    with suppress(OSError):
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def answer(text: str = "") -> None:
    """One line on stdout."""
    print(printable(text))


def say_bug() -> None:
    """The traceback of the exception that is being handled, in lines that none of its texts can forge."""
    for line in traceback.format_exc().rstrip("\n").split("\n"):
        say(f"| {line}")
    say("synthfs: this is a bug, please report it with the lines above")


def say_notes(notes: tuple[Note, ...]) -> None:
    for note in notes:
        say(f"{'warning' if note.warning else 'note'}: {note.text}")


@cache
def _warn_of(note: Note) -> None:
    """Once, however many disks of one store are looked for."""
    say_notes((note,))


def print_json(value: Any, indent: int | None = 2) -> None:
    """`value` on stdout, one that is a line at once. Bytes that are no UTF-8 are \\udcXX escapes (Python's surrogateescape)."""
    print(json.dumps(value, indent=indent, ensure_ascii=True), flush=indent is None)


@contextmanager
def _busy(text: str) -> Iterator[None]:
    """A sign of life on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from synthfs.cli.terminal import spinning

    with spinning(text):
        yield


def percentage(text: str) -> float:
    """The share, from 0 to less than 1, that `--min-free` was given. Raises TargetError for anything else."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise TargetError(f"--min-free {text}: a percentage from 0% to 99% is expected")
    return share


def look_at(store: str, database: str | None, anyway: str | None = None) -> Catalog:
    """The catalog of `store`; the first look at a large one takes seconds. `anyway` is an image that is offered in any case."""
    with _busy(f"looking at {store}"):
        cache = _cache(store)
        with collector.paused():
            known = remembered.unpack(cache.load())
            catalog = survey(store, database, known=known, anyway=anyway)
        if catalog.store.known.keys() != known.keys():
            cache.save(remembered.pack(catalog.store.known))
    if not catalog.store.images and is_client(catalog.store.root):
        raise NotFoundError(f"{store} is the folder of one client; name the one above it")
    return catalog


def unreadable(catalog: Catalog, clients: str = "*") -> str | None:
    """What to say of backups, or whole clients, that this user may not read, or that might be others; None without any."""
    skipped = [each for each in catalog.skipped if is_among(each.client, clients)]
    found = [each for each in skipped if each.kind is Kind.UNREADABLE]
    if found:
        example = f"{found[0].name}: {found[0].reason}"
        return f"{len(found)} cannot be read, such as {example}; run as root or as a member of the store's group"
    linked = [each for each in skipped if each.kind is Kind.LINKED]
    return f"{len(linked)} might not be what they are called, such as {linked[0].name}: {linked[0].reason}" if linked else None


def is_among(client: str, wanted: str) -> bool:
    """Whether a client is one of those that are asked for: a name as it stands, or a glob."""
    return client == wanted or fnmatchcase(client, wanted)


def look_again(before: Catalog, database: str | None, anyway: str | None = None) -> Catalog:
    """What has become of an earlier catalog; most of it is the same objects."""
    catalog = survey(before.store.root, database, before, anyway=anyway)
    # An image that is being written is known anew each time, which is not worth keeping.
    if catalog.store.known.keys() != before.store.known.keys():
        _cache(before.store.root).save(remembered.pack(catalog.store.known))
    return catalog


def _cache(store: str) -> Cache:
    return Cache(remembered.PURPOSE, os.path.realpath(store), remembered.VERSION)


def find_disk(path: str, database: str | None, alone: bool = False, anyway: bool = False) -> Disk:
    """The disk of the image at `path`, or its volume `alone` on a disk of its own.

    `anyway`: even if nothing says that the image is whole. Raises NotFoundError, with the reason, where it is there but not
    offered.
    """
    if mount := mounts.containing(path):
        disk = _in_mount(mounts.resolve(path).removeprefix(f"{mount.mountpoint}/"), mount, database)
        return volume_only(disk.image) if alone else disk
    if not os.path.exists(path):
        raise NotFoundError(f"{path} does not exist, or its folder may not be entered by this user")
    if not path.endswith(".raw"):
        raise NotFoundError(f"{path} is no .raw image, and no file of a synthfs mount; name one or the other")
    why: list[str] = []
    # In a ZFS store the folder is a link, and the path as given is right; otherwise a link may lead into a store.
    for place in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        store, name = split_path(place)
        catalog = _look_and_warn(store, database, name if anyway else None)
        if found := _named(catalog, name, alone):
            return found
        why.append(_why_not(catalog, name))
    raise NotFoundError(why[0])


def _look_and_warn(store: str, database: str | None, anyway: str | None = None) -> Catalog:
    """`look_at`, and what is wrong with the store as a whole."""
    catalog = look_at(store, database, anyway)
    for note in catalog.notes:
        if note.warning:
            _warn_of(note)
    return catalog


def hole_maps(disk: Disk, form: Format) -> Ask:
    """Where the sources of `disk` have data, found out now if `form` rests on it. Raises SourceError where that fails."""
    if not form.is_sparse:
        return lambda source: None
    with _busy("looking for holes"):
        return {source: holes.gather(source) for source in disk.sources}.get


def _named(catalog: Catalog, name: str, alone: bool) -> Disk | None:
    for disk in catalog.disks:
        if disk.image.name == name:
            return volume_only(disk.image, catalog.note_of(disk.image)) if alone else disk
    parts = (part.image for part in catalog.parts if part.image.name == name and alone)
    return next((volume_only(image, catalog.note_of(image)) for image in parts), None)


def _why_not(catalog: Catalog, name: str) -> str:
    """One line on why there is no disk for the image `name`."""
    for part in catalog.parts:
        if part.image.name == name:
            return f"{name} is a part of other disks (id {part.disk_id}); name the image of C: instead, or use --volume-only"
    for skipped in catalog.skipped:
        if skipped.name == name:
            remedy = f"; {ANYWAY} takes it all the same" if skipped.kind in _TAKEN_ANYWAY else ""
            return f"{name} is not offered: {skipped.reason}{remedy}"
    return f"{name} is no image that UrBackup's naming rules know"


def _in_mount(path: str, mount: mounts.Mount, database: str | None) -> Disk:
    sessions = {one["path"]: one for one in (mounts.status(mount) or {}).get("sessions", ())}
    catalog = _look_and_warn(mount.store, database)
    disk = _written(catalog, sessions[path]) if path in sessions else _shown(catalog, path, mount, sessions)
    return new_identity(disk) if path.split("/")[1] == NEW_IDENTITY else disk


def _shown(catalog: Catalog, path: str, mount: mounts.Mount, sessions: Container[str]) -> Disk:
    # As raw images all disks are there, whatever holes they have; a name differs only by what the container adds to it.
    tree = Gardener([Format.RAW]).grow(catalog)
    if disk := _disk_at(tree, path):
        return disk
    if (without := _TAG.sub("", path)) in sessions and (other := _disk_at(tree, without)):
        why = "is shown beside a disk that was written to and has its name"
        raise NotFoundError(f"{mount.mountpoint}/{path} {why}; name its image instead, {other.image.raw.path}")
    raise NotFoundError(f"{mount.mountpoint}/{path} is no disk, or its backup is gone from {mount.store}, or not for this user")


def _written(catalog: Catalog, session: Mapping[str, Any]) -> Disk:
    """The disk that a session began with. It is looked up by its image: where it is shown, others may be by now."""
    path, disk = session["path"], _named(catalog, session["image"], alone=False)
    if disk is None or not session["backup"]:
        remedy = f"name the image that is there now, {disk.image.raw.path}, or " if disk else ""
        raise NotFoundError(
            f"{path} was written to, and its backup is gone or makes another disk now; {remedy}use `synthfs keep`"
        )
    say(f"note: {path} was written to, and this is about its backup; `synthfs keep` keeps what was written")
    return disk


def _disk_at(tree: Tree, path: str) -> Disk | None:
    """The disk at `path` of a mount whose names may have been decided with another database, or with none."""
    client = owner(path.partition("/")[0], tree.owners.values())
    names = (node.name for node in tree.root.entries if client and tree.owners.get(fold(node.name)) == client)
    for folder in (path.partition("/")[0], *names):
        node = find(tree, f"{folder}/{_stem(path.partition('/')[2])}{Format.RAW.suffix}")
        if isinstance(node, File) and node.disk:
            return node.disk
    return None


def _stem(path: str) -> str:
    """`path` without what the container adds to it."""
    return next((path.removesuffix(suffix) for suffix in suffixes() if path.endswith(suffix)), path)
