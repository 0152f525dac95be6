"""`synthfs sessions`, `synthfs discard` and `synthfs keep`: the disks that somebody has written to."""

import os
from contextlib import suppress
from typing import Annotated, Any

import typer

from synthfs.cli.common import Json, print_json, say
from synthfs.cli.describe import iso
from synthfs.cli.materialize import check_place, freeze, target
from synthfs.cli.terminal import print_table
from synthfs.engines.materialize import Reflink, prepare
from synthfs.engines.session import source
from synthfs.errors import MountError, NotFoundError, SynthfsError, TargetError
from synthfs.extents import ExtentMap, FileRange
from synthfs.host import mounts, probe
from synthfs.host.control import Line, connected
from synthfs.plan.container import suffixes
from synthfs.plan.tree import NEW_IDENTITY
from synthfs.text import quoted
from synthfs.units import human

File = Annotated[str, typer.Argument(metavar="FILE", help="A disk of a running mount.")]
Force = Annotated[bool, typer.Option("--force", help="Also while it is open: who has it open gets errors from then on.")]


def sessions(
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="A running mount.")],
    as_json: Json = False,
) -> None:
    """List the disks of MOUNTPOINT that were written to."""
    mount = _mount(mountpoint)
    found = _status(mount)["sessions"]
    if as_json:
        print_json([one | {"began": iso(one["began_ns"]), "written": iso(one["written_ns"])} for one in found])
        return
    if not found:
        say(f"no disk of {mountpoint} was written to")
        return
    rows = []
    for one in sorted(found, key=lambda one: str(one["path"])):
        space = "not known yet" if one["own_space"] is None else human(one["own_space"])
        users = ", ".join(map(_process, one["open"])) or "-"
        # Not the disk that the session began with, but its image: later backups, or another synthfs, put it on another disk.
        is_there = os.path.lexists(f"{mount.store}/{one['image']}")
        backup = "there" if one["backup"] else "changed" if is_there else "deleted"
        times = (iso(one[key])[:16].replace("T", " ") for key in ("began_ns", "written_ns"))
        rows.append((one["path"], *times, space, backup, users))
    print_table(("DISK", "SINCE", "LAST WRITE", "OWN SPACE", "BACKUP", "OPEN IN"), rows)


def discard(file: File, force: Force = False) -> None:
    """Go back to the backup: forget all that was written to FILE.

    Afterwards FILE is the backup's disk again, under a new inode. If the backup was deleted meanwhile, FILE is gone.
    """
    mount, path = _place(file)
    scratch, has_backup = _scratch(mount), _has_backup(mount, path)
    with connected(scratch) as line:
        _ask(line, do="discard", path=path, force=force)
    say(f"{file} is {_now(file, has_backup)}")


def keep(
    file: File,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to put it.")] = ".",
    mode: Annotated[
        Reflink,
        typer.Option("--reflink", help="always: share the data or fail; auto: copy what cannot be shared; never: copy all."),
    ] = Reflink.ALWAYS,
    force: Force = False,
) -> None:
    """Make what was written to FILE a real file of its own.

    FILE is the backup's disk again then. The new file shares its blocks with the scratch file and the backup. An
    existing file is never replaced.
    """
    mount, path = _place(file)
    scratch, has_backup = _scratch(mount), _has_backup(mount, path)
    directory, name = target(output, _usual_name(path))
    check_place(directory, mount.store)
    if os.path.lexists(f"{directory}/{name}"):
        raise TargetError(f"{directory}/{name} exists already; -o names another place")
    with connected(scratch) as line:
        found = source(scratch, _ask(line, do="keep", path=path, force=force).get("scratch", ""))
        with prepare(ExtentMap([FileRange(found, 0, found.size)]), directory, mode) as prepared:
            freeze(prepared, name, force=False)
        _ask(line, do="done")
    say(f"{directory}/{name} has all that was written; {file} is {_now(file, has_backup)}")


def _has_backup(mount: mounts.Mount, path: str) -> bool:
    return any(one["path"] == path and one["backup"] for one in _status(mount)["sessions"])


def _now(file: str, has_backup: bool) -> str:
    """What a file is after its session, which had a backup or none, has ended."""
    if probe.answers(file):
        return "the disk of the backup again" if has_backup else "another disk now, of the backup that has its name"
    if has_backup:
        return "not shown there now: its backup is there, under another name, in another format, or with holes still looked for"
    return "gone, as its backup is"


def _usual_name(path: str) -> str:
    """What a materialized disk of this kind is called."""
    *above, name = path.split("/")
    suffix = next((suffix for suffix in suffixes() if name.endswith(suffix)), "")
    return f"{name.removesuffix(suffix)}.{NEW_IDENTITY}{suffix}" if NEW_IDENTITY in above else name


def _mount(mountpoint: str) -> mounts.Mount:
    if found := mounts.at(mountpoint):
        return found
    raise MountError(f"{mountpoint} is no synthfs mount")


def _place(file: str) -> tuple[mounts.Mount, str]:
    """The mount that a file lies in, and its path there."""
    mount = mounts.containing(file)
    if mount is None:
        raise NotFoundError(f"{file} lies in no synthfs mount")
    return mount, mounts.resolve(file).removeprefix(f"{mount.mountpoint}/")


def _status(mount: mounts.Mount) -> dict[str, Any]:
    if (found := mounts.status(mount)) is None:
        if mounts.is_closed(mount):
            raise MountError(f"{mount.mountpoint} is not open to this user; only root and the user who mounted it can do that")
        raise MountError(f"{mount.mountpoint} does not answer; `synthfs umount {quoted(mount.mountpoint)}` clears it away")
    return found


def _scratch(mount: mounts.Mount) -> str:
    """The scratch directory of a mount."""
    if found := _status(mount)["scratch"]:
        return str(found)
    raise MountError(f"{mount.mountpoint} is read-only; `synthfs mount --writable SCRATCH` lets disks be written to")


def _ask(line: Line, **request: Any) -> dict[str, Any]:
    """The answer of the mount. Raises the error that it tells of."""
    answer = line.ask(**request)
    if "error" in answer:
        kinds = {kind.exit_code: kind for kind in SynthfsError.__subclasses__()}
        raise kinds.get(answer.get("code", 1), SynthfsError)(answer["error"])
    return answer


def _process(number: int) -> str:
    with suppress(OSError), open(f"/proc/{number}/comm") as comm:
        return f"{comm.read().strip()} ({number})"
    return str(number)
