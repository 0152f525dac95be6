"""`synthfs materialize`: freeze a virtual disk into a real file that shares its data with the backup."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, assert_never

import typer

from synthfs.cli.common import (
    Anyway,
    Database,
    Image,
    Json,
    VolumeOnly,
    answer,
    find_disk,
    hole_maps,
    print_json,
    say,
    say_notes,
    unit_of,
)
from synthfs.cli.describe import note_facts
from synthfs.cli.progress import progress
from synthfs.engines.materialize import Prepared, Reflink, prepare
from synthfs.errors import TargetError
from synthfs.plan import container
from synthfs.plan.align import aligned
from synthfs.plan.container import ContainerFile, Format
from synthfs.plan.names import stems
from synthfs.plan.recipe import Clone, Copy, Hole, Repeat, Step, Write
from synthfs.plan.renew import new_identity as renewed_disk
from synthfs.units import SECTOR, human

_ALIGN = "Round the bare disk's length up to a multiple of 4K, 1M, …; a backup GPT moves to the new end."
NOT_PROVEN = "ZFS was asked to share the data, but too much else happened in the pool to prove by its figures that it did"


def materialize(
    image: Image,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to put it, outside the clients' folders.")
    ] = ".",
    form: Annotated[
        Format | None,
        typer.Option("--format", help="The container to make; vhd, or vhdx where that cannot hold it.", show_default=False),
    ] = None,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="Other disk and partition ids, to attach it beside the original.")
    ] = False,
    alone: VolumeOnly = False,
    anyway: Anyway = False,
    align: Annotated[int | None, typer.Option(parser=unit_of, metavar="SIZE", help=_ALIGN, show_default=False)] = None,
    mode: Annotated[
        Reflink,
        typer.Option("--reflink", help="always: share the data or fail; auto: copy what cannot be shared; never: copy all."),
    ] = Reflink.ALWAYS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Freeze the disk of IMAGE into a file, without a copy.

    The file shares its blocks with the backup (BTRFS, XFS, ZFS): made in a moment, taking hardly any space of its own, and
    there to stay when UrBackup deletes the backup.
    """
    began = time.monotonic()
    disk = find_disk(image, database, alone, anyway)
    suffix = ".volume" if alone else ""
    if new_identity:
        disk, suffix = renewed_disk(disk), f"{suffix}.new-identity"
    given, disk = disk, aligned(disk, align or SECTOR)
    form = form or container.fitting(disk, Format.VHD)
    container.check(disk, form)
    directory, name = target(output, stems([disk.image])[disk.image.name] + suffix + form.suffix)
    store = disk.image.raw.path.removesuffix(disk.image.name).rstrip("/")
    check_place(directory, store)
    first, *beside = container.of_disk(disk, form, name.removesuffix(form.suffix), hole_maps(disk, form))
    files = [*beside, replace(first, name=name)]
    for file in files:
        _check_target(f"{directory}/{file.name}", force)
    say_notes(tuple(note for note in disk.notes if note.warning or note not in given.notes))
    # The file to open is made last, when what it needs is there; what is told is about the one that holds the disk.
    tell = _collect if as_json else _print_steps if dry_run else _say_nothing
    (facts, proven), *_ = [
        _made(file, directory, mode, dry_run, force, began, tell if file is files[0] else _say_nothing) for file in files
    ]
    facts |= {"file": f"{directory}/{name}", "files": [f"{directory}/{file.name}" for file in files]}
    facts["disk_length"] = disk.length
    facts["notes"] = [note_facts(note) for note in disk.notes]
    if as_json:
        print_json(facts)
    else:
        _report(facts)
    if not proven:
        say(f"note: {NOT_PROVEN}")


def _made(
    file: ContainerFile,
    directory: str,
    mode: Reflink,
    dry_run: bool,
    force: bool,
    began: float,
    tell: Callable[[Iterable[Step]], dict[str, Any]],
) -> tuple[dict[str, Any], bool]:
    """Makes one file, unless it is a dry run. Returns its figures with what `tell` adds, and whether sharing is proven."""
    with prepare(file.extent_map(), directory, mode) as prepared:
        if not dry_run:
            freeze(prepared, file.name, force)
        seconds = time.monotonic() - began
        proven = dry_run or prepared.measure()
        return _facts(f"{directory}/{file.name}", prepared, dry_run, seconds) | tell(prepared.steps()), proven


def target(output: str, usual_name: str) -> tuple[str, str]:
    """Directory and name of the file to make."""
    if os.path.isdir(output):
        return os.path.realpath(output), usual_name
    directory, name = os.path.split(os.path.abspath(output))
    if output.endswith("/"):
        raise TargetError(f"{output} is no directory; make one with `mkdir -p`")
    return os.path.realpath(directory), name


def _check_target(path: str, force: bool) -> None:
    """Raises TargetError where there is something that is not to be replaced."""
    if os.path.lexists(path) and not force:
        raise TargetError(f"{path} exists already; --force replaces it, -o names another place")
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        raise TargetError(f"{path} is no regular file, and is not replaced")


def check_place(directory: str, store: str) -> None:
    """Raises TargetError inside the clients' folders: UrBackup's `remove-unknown` deletes backups that hold more files."""
    if f"{directory}/".startswith(f"{store}/") and directory != store:
        raise TargetError(f"{directory} lies in UrBackup's storage, whose clean-up deletes what it does not know; use -o")


def freeze(prepared: Prepared, name: str, force: bool) -> None:
    """Freezes, with a progress bar on a terminal."""
    with progress("percent") as bar:
        task = bar.add_task(name, total=prepared.extents.length)
        prepared.freeze(name, force, lambda done: bar.update(task, completed=done))


def _facts(path: str, prepared: Prepared, dry_run: bool, seconds: float) -> dict[str, Any]:
    """The figures of a run: bytes by what became of them, and the space that the file takes of its own, None if unknown."""
    sums = prepared.expected
    facts = {"file": path, "length": prepared.extents.length, "dry_run": dry_run, "seconds": round(seconds, 3)}
    parts = {"cloned": sums.cloned, "copied": sums.copied, "edges": sums.edges, "written": sums.written, "hole": sums.hole}
    return facts | parts | {"repeated": sums.repeated, "new_space": prepared.new_space}


def _as_json(step: Step) -> dict[str, Any]:
    facts = {"offset": step.target, "length": step.length, "do": _verb(step)}
    if isinstance(step, Clone | Copy):
        facts |= {"source": step.source.name, "source_offset": step.offset}
    return facts


def _verb(step: Step) -> str:
    match step:
        case Clone():
            return "clone"
        case Copy():
            return "copy"
        case Write():
            return "write"
        case Hole():
            return "hole"
        case Repeat():
            return "repeat"
        case _:
            assert_never(step)


def _say_nothing(steps: Iterable[Step]) -> dict[str, Any]:
    return {}


def _collect(steps: Iterable[Step]) -> dict[str, Any]:
    return {"steps": [_as_json(step) for step in steps]}


def _print_steps(steps: Iterable[Step]) -> dict[str, Any]:
    """What is to be done, extent by extent."""
    for step in steps:
        source = f" from {step.source.name} at {step.offset}" if isinstance(step, Clone | Copy) else ""
        answer(f"{step.target:>16} {step.length:>16} {_verb(step):<5}{source}")
    return {}


def _report(facts: dict[str, Any]) -> None:
    """The sums, on stderr."""
    dry_run = facts["dry_run"]
    edges = f" ({human(facts['edges'])} of it edges of blocks)" if facts["edges"] else ""
    space = facts["new_space"]
    say(
        f"{'would make' if dry_run else 'made'} {facts['file']}, {human(facts['length'])}: {human(facts['cloned'])} cloned, "
        f"{human(facts['copied'])} copied{edges}, {human(facts['written'])} written, {human(facts['hole'])} left as holes; "
        f"new space {'not known' if space is None else human(space)}; {facts['seconds']:.1f} s"
    )
