"""`synthfs materialize`: freeze a virtual disk into a real file that shares its data with the backup."""

import os
import sys
import time
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from synthfs.cli.common import Database, Image, Json, VolumeOnly, err, find_disk, print_json, say
from synthfs.engines.materialize import Prepared, Reflink, prepare
from synthfs.errors import TargetError
from synthfs.plan.container import wrap
from synthfs.plan.disk import Disk
from synthfs.plan.names import windows_name
from synthfs.plan.recipe import Totals
from synthfs.plan.renew import new_identity as renewed_disk
from synthfs.units import human


class Format(StrEnum):
    VHD = "vhd"


def materialize(
    image: Image,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to put it, outside the clients' folders.")
    ] = ".",
    form: Annotated[Format, typer.Option("--format", help="The container to make.")] = Format.VHD,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="Other disk and partition ids, to attach it beside the original.")
    ] = False,
    alone: VolumeOnly = False,
    mode: Annotated[
        Reflink,
        typer.Option("--reflink", help="always: share the data or fail; auto: copy what cannot be shared; never: copy all."),
    ] = Reflink.ALWAYS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Freeze the disk of IMAGE into a real file, without copying its data.

    The file shares its blocks with the backup (BTRFS, XFS): made in a moment, taking hardly any space of its own, and
    there to stay when UrBackup deletes the backup.
    """
    began = time.monotonic()
    disk = find_disk(image, database, alone)
    suffix = ".volume" if alone else ""
    if new_identity:
        disk, suffix = renewed_disk(disk), f"{suffix}.new-identity"
    container = wrap(disk)
    directory, name = _target(output, windows_name(disk.image.stem) + suffix + container.suffix)
    _check_place(directory, disk)
    if os.path.lexists(f"{directory}/{name}") and not force:
        raise TargetError(f"{directory}/{name} exists already; --force replaces it, -o names another place")
    with prepare(container.extent_map(), directory, mode) as prepared:
        done = prepared.expected if dry_run else _freeze(prepared, name, force)
        proven = dry_run or prepared.proven()
    _report(f"{directory}/{name}", container.length, done, time.monotonic() - began, dry_run, as_json)
    if not proven:
        say("note: ZFS was asked to share the data, but too much else happened in the pool to prove by its figures that it did")


def _target(output: str, usual_name: str) -> tuple[str, str]:
    """Directory and name of the file to make."""
    if os.path.isdir(output):
        return os.path.realpath(output), usual_name
    directory, name = os.path.split(os.path.abspath(output))
    return os.path.realpath(directory), name


def _check_place(directory: str, disk: Disk) -> None:
    """Raises TargetError inside the client's folders: UrBackup's `remove-unknown` deletes backups that hold more files."""
    store = disk.image.raw.path.removesuffix(disk.image.name).rstrip("/")
    if f"{directory}/".startswith(f"{store}/") and directory != store:
        raise TargetError(f"{directory} lies in UrBackup's storage, whose clean-up deletes what it does not know; use -o")


def _freeze(prepared: Prepared, name: str, force: bool) -> Totals:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=prepared.extents.length)
        return prepared.freeze(name, force, lambda done: progress.update(task, completed=done))


def _report(path: str, length: int, done: Totals, seconds: float, dry_run: bool, as_json: bool) -> None:
    if as_json:
        facts = {"file": path, "length": length, "dry_run": dry_run, "seconds": round(seconds, 3)}
        parts = {"cloned": done.cloned, "copied": done.copied, "edges": done.edges, "written": done.written, "hole": done.hole}
        print_json(facts | parts)
        return
    edges = f" ({human(done.edges)} of it edges of blocks)" if done.edges else ""
    say(
        f"{'would make' if dry_run else 'made'} {path}, {human(length)}: {human(done.cloned)} cloned, "
        f"{human(done.copied)} copied{edges}, {human(done.written)} written, {human(done.hole)} left as holes; "
        f"{seconds:.1f} s"
    )
