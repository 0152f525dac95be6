"""`synthfs mount` and `synthfs umount`."""

import grp
import logging
import os
import pwd
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from types import ModuleType
from typing import Annotated

import typer

from synthfs.cli import options
from synthfs.cli.common import (
    Database,
    Store,
    look_again,
    look_at,
    not_empty,
    percentage,
    say,
    say_notes,
    unreadable,
)
from synthfs.engines import session
from synthfs.errors import MountError, SynthfsError, TargetError
from synthfs.extents import Source
from synthfs.host import background, files, logs, mounts, probe
from synthfs.host.claim import Claim, refuse_running
from synthfs.host.limits import lacking
from synthfs.model import STATUS_DIRECTORY
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format
from synthfs.survey import NO_DATABASE
from synthfs.text import quoted

log = logging.getLogger(__name__)

_NOBODY_AT_ALL = 2**32 - 1
"""The number that chown(2) takes for "leave it as it is"."""

_DAY = 86400.0


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Mountpoint = Annotated[
    str, typer.Argument(metavar="MOUNTPOINT", callback=not_empty, help="An empty directory outside the store.")
]

Formats = Annotated[list[Format], typer.Option("--format", help="What to show each disk as; may be given more than once.")]
AllowOther = Annotated[
    bool, typer.Option("--allow-other/--no-allow-other", help="Let other users in, Samba's among them.", show_default=False)
]
Mode = Annotated[
    str | None, typer.Option(metavar="OCTAL", help="Their permission bits; 0440, or 0660 if writable.", show_default=False)
]
Writable = Annotated[
    str | None, typer.Option(metavar="SCRATCH", help="Let disks be written to; what is written goes there.", show_default=False)
]
MinFree = Annotated[str, typer.Option(metavar="PERCENT", help="Refuse to write to disks where less space is free.")]
DiscardAfter = Annotated[
    float,
    typer.Option(parser=options.amount, metavar="DAYS", help="Discard what was written and left alone for so long; 0: never."),
]
Refresh = Annotated[
    float, typer.Option(parser=options.amount, metavar="SECONDS", help="How often to look for new backups.")
]


def mount(
    store: Store,
    mountpoint: Mountpoint,
    daemon: Annotated[bool, typer.Option("--daemon", help="Serve in the background; return once the mount answers.")] = False,
    allow_other: AllowOther = False,
    owner: Annotated[str | None, typer.Option(metavar="USER", help="Whom the files belong to.", show_default=False)] = None,
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="Which group they belong to.", show_default=False)] = None,
    mode: Mode = None,
    writable: Writable = None,
    min_free: MinFree = "10%",
    discard_after: DiscardAfter = 0.0,
    formats: Formats = [Format.VHD],  # noqa: B006  # typer copies it
    refresh: Refresh = 60.0,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log.")] = LogLevel.WARNING,
    log_file: Annotated[str | None, typer.Option(metavar="FILE", help="Log there.", show_default=False)] = None,
    database: Database = None,
) -> None:
    """Show every backup of STORE as a disk below MOUNTPOINT.

    Stays in the foreground until it is unmounted or gets Ctrl-C. Without --allow-other only you can see the mount. With
    it, files belong to the store's own owner and group, and nobody else gets in, unless --owner, --group or --mode say so.

    With --writable, the first write to a disk makes a file in SCRATCH that shares its blocks with the backup; from then on
    the disk is that file, until `synthfs discard` or `synthfs keep`. The backup is never written to.
    """
    start(
        store,
        mountpoint,
        daemon=daemon,
        allow_other=allow_other,
        owner=owner,
        group=group,
        mode=mode,
        writable=writable,
        min_free=percentage(min_free),
        discard_after=discard_after,
        formats=formats,
        refresh=refresh,
        log_level=log_level,
        log_file=log_file,
        database=database,
    )


def start(
    store: str,
    mountpoint: str,
    *,
    daemon: bool = False,
    allow_other: bool = False,
    owner: str | None = None,
    group: str | None = None,
    mode: str | None = None,
    writable: str | None = None,
    min_free: float = 0.0,
    discard_after: float = 0.0,
    formats: Sequence[Format] = (Format.VHD,),
    refresh: float = 60.0,
    log_level: LogLevel = LogLevel.WARNING,
    log_file: str | None = None,
    database: str | None = None,
    anyway: str | None = None,
) -> None:
    """What `mount` does. `min_free` is from 0 to 1. The image called `anyway` is shown even if nothing says it is whole."""
    root, place = files.real_directory(store), mounts.resolve(mountpoint)
    _check_place(root, place)
    scratch = _scratch(writable, root, place) if writable else None
    # The daemon works in the root directory.
    database, log_file = (path if path in (None, NO_DATABASE) else os.path.abspath(path) for path in (database, log_file))
    catalog = look_at(root, database, anyway)
    say_notes(catalog.notes)
    _warn_of_nothing(catalog)
    if scratch:
        session.check(scratch, _newest(catalog))
    usual = (catalog.store.owner, catalog.store.group) if allow_other else (os.geteuid(), os.getegid())
    access = (_user(owner, usual[0]), _group(group, usual[1]), _mode(mode or ("0660" if scratch else "0440")))
    outlet = _log_outlet(log_file, daemon)

    def serve(dropped: Callable[[], int]) -> None:
        fuse = _fuse()
        who, days = fuse.Access(*access), discard_after * _DAY
        settings = fuse.Settings(place, who, allow_other, refresh, scratch, days, tuple(formats), min_free)
        if daemon or log_file:  # otherwise it was said in the same place
            for note in catalog.notes:
                log.warning("%s", note.text)
        again = partial(look_again, database=database, anyway=anyway)
        greet = partial(_greet, catalog, place, daemon)
        fuse.serve(catalog, again, settings, claim.release, greet, dropped)

    logged = partial(_logged, log_level.upper(), outlet, daemon, serve)
    # As late as possible: until the new mount stands, the share is an empty directory.
    with Claim(place, lambda: say(f"detaching the dead mount at {place}")) as claim:
        if daemon:
            _serve_in_background(logged, place, root)
        else:
            logged()


def _fuse() -> ModuleType:
    """What mounts. Not imported above: trio must not be before the fork, and other verbs do without libfuse."""
    try:
        from synthfs.fuse import mount as fuse
    except ImportError as error:
        raise MountError(f"FUSE's library cannot be used: {error}; on Debian: apt install libfuse3-3") from error
    return fuse


def try_mount(catalog: Catalog, place: str) -> None:
    """Makes a mount with nothing in it at `place` and takes it away again. Raises MountError as `mount` would."""
    root = catalog.store.root
    _check_place(root, place)
    nothing = replace(catalog, machines={})

    def serve(dropped: Callable[[], int]) -> None:
        fuse = _fuse()
        access = fuse.Access(os.geteuid(), os.getegid(), 0o400)
        settings = fuse.Settings(place, access, interval=0.0)
        fuse.serve(nothing, lambda before: before, settings, claim.release, dropped=dropped)

    with Claim(place) as claim:
        try:
            _serve_in_background(partial(_logged, "WARNING", None, True, serve), place, root)
        finally:
            if made := mounts.at(place):
                _take_away(made)


def _take_away(mount: mounts.Mount) -> None:
    """Ends a mount of nothing, also where somebody is just looking into it."""
    try:
        umount(mount.mountpoint)
    except MountError:
        mounts.detach(mount)


def _serve_in_background(serve: Callable[[], int], place: str, root: str) -> None:
    try:
        background.start(serve, lambda: _answers(place, root))
    except BaseException:
        if left := mounts.at(place):
            mounts.detach(left)
        raise


def _warn_of_nothing(catalog: Catalog) -> None:
    if catalog.is_empty:
        why = unreadable(catalog) or "is it the right place, and mounted? `synthfs list --all` has reasons"
        say(f"warning: {catalog.store.root} has no disk to offer: {why}")


def _newest(catalog: Catalog) -> Source | None:
    """The newest backup, for trials."""
    return catalog.newest.image.raw if catalog.newest else None


def _answers(place: str, root: str) -> bool:
    found = mounts.at(place)
    return found is not None and found.store == root and probe.answers(f"{place}/{STATUS_DIRECTORY}")


def _logged(level: str, outlet: logs.Outlet | None, daemon: bool, serve: Callable[[Callable[[], int]], None]) -> int:
    """Runs the server with its log. Of a daemon, what goes wrong is one line for the waiting parent."""
    with logs.written(level, outlet) as dropped:
        try:
            serve(dropped)
        except SynthfsError as error:
            if not daemon:
                raise
            say(f"synthfs: {error}")
            return error.exit_code
        except BaseException as error:
            if not daemon:
                raise
            if lack := lacking(error):
                say(f"synthfs: {lack}")
                return lack.exit_code
            log.exception("bug in the mount process, please report it")
            return 70
    return 0


def _check_place(root: str, place: str) -> None:
    """Raises MountError where mounting at `place` would do harm or make no sense."""
    if place == root or place.startswith(f"{root}/"):
        raise MountError(f"{place} lies inside the store; UrBackup's clean-up would touch the disks. Mount elsewhere")
    if root.startswith(f"{place}/"):
        raise MountError(f"{place} contains the store, which the mount would hide. Mount elsewhere")
    refuse_running(place)


def _scratch(named: str, root: str, place: str) -> str:
    """The scratch directory, resolved. Raises MountError where UrBackup would clear it away or the mount would hide it."""
    if not os.path.isdir(named):
        raise MountError(f"--writable {named} is no directory; make one with `mkdir -p {quoted(named)}`")
    scratch = os.path.realpath(named)
    if f"{scratch}/".startswith(f"{root}/"):
        raise MountError(f"{scratch} lies inside the store; UrBackup's clean-up would delete what is written. Name another")
    if f"{scratch}/".startswith(f"{place}/"):
        raise MountError(f"{scratch} lies where the mount is to be, which would hide it. Name another")
    return scratch


def _user(name: str | None, usual: int) -> int:
    if name is None:
        return usual
    try:
        return number if (number := _id(name)) is not None else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise MountError(f"--owner {name}: there is no such user") from None


def _group(name: str | None, usual: int) -> int:
    if name is None:
        return usual
    try:
        return number if (number := _id(name)) is not None else grp.getgrnam(name).gr_gid
    except KeyError:
        raise MountError(f"--group {name}: there is no such group") from None


def _id(text: str) -> int | None:
    """The number that `text` is; None for a name, and for a number that is no user's or group's."""
    return int(text) if re.fullmatch("[0-9]{1,10}", text) and int(text) < _NOBODY_AT_ALL else None


def _mode(text: str) -> int:
    try:
        bits = int(text, 8)
    except ValueError:
        raise MountError(f"--mode {text}: permission bits are octal, like 0440") from None
    if bits & ~0o666:
        raise MountError(f"--mode {text}: only read and write bits make sense, like 0440")
    return bits


def _log_outlet(file: str | None, daemon: bool) -> logs.Outlet | None:
    """Where the log goes; None for stderr."""
    if file:
        try:
            return logs.Descriptor.file(file)
        except OSError as error:
            raise TargetError(f"--log-file {file}: {error.strerror}") from error
    return logs.Syslog() if daemon and logs.Syslog.is_there() else None


def _greet(catalog: Catalog, place: str, daemon: bool) -> None:
    for skipped in catalog.skipped:
        log.info("not offered: %s: %s", skipped.name, skipped.reason)
    if not daemon:
        disks = len(catalog.disks)
        what = "1 disk of {} is" if disks == 1 else f"{disks} disks of {{}} are"
        end = f"Ctrl-C, or `synthfs umount {quoted(place)}`, ends the mount."
        say(f"{what.format(catalog.store.root)} at {place}. {end}")


def umount(mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="A mount, running or dead.")]) -> None:
    """End the mount at MOUNTPOINT, and wait for its process."""
    found = mounts.at(mountpoint)
    if found is None:
        raise MountError(f"{mountpoint} is no synthfs mount")
    status = mounts.status(found)
    if status is None and mounts.is_dead(found):
        say(f"nobody serves {mountpoint} any more; detaching it")
        mounts.detach(found)
    else:
        mounts.unmount(found, status["pid"] if status else None)
