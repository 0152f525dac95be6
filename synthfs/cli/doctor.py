"""`synthfs doctor`: whether everything that synthfs needs is there, each finding with what to do about it."""

import os
import signal
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from synthfs import samba
from synthfs.cli import mount as mount_verb
from synthfs.cli.common import Database, Json, Store, answer, look_at, print_json, unreadable
from synthfs.engines.materialize import can_share_into
from synthfs.errors import MountError, NotFoundError, ShareError, SourceError, TargetError
from synthfs.host import apparmor, hooks, mounts
from synthfs.plan.catalog import Catalog
from synthfs.samba import Finding
from synthfs.survey import NO_DATABASE
from synthfs.text import quoted
from synthfs.units import human

_FULL = 0.95
"""UrBackup starts deleting backups when its storage fills up; its usual limit is 95 %."""


def doctor(
    store: Store,
    mountpoint: Annotated[
        str | None,
        typer.Argument(metavar="[MOUNTPOINT]", help="Where the disks are to be mounted: try it there.", show_default=False),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Where materialized disks are to go.", show_default=False)
    ] = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Check all that mounting, sharing and freezing needs.

    A mount with nothing in it is made and taken away again, at MOUNTPOINT or in a temporary directory.
    """
    # A trial is not to be left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    catalog = look_at(store, database)
    root = catalog.store.root
    findings = [*_mounting(catalog, mountpoint), *_store(catalog, database == NO_DATABASE), *_freezing(catalog, to)]
    findings += [*_space(root), *_samba(root), *_hooks()]
    if as_json:
        print_json([{"good": finding.good, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            answer(f"{'ok' if finding.good else 'problem'}: {finding.text}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _mounting(catalog: Catalog, mountpoint: str | None) -> Iterator[Finding]:
    """Whether a mount can be made: a true one tells, since it rests on more than can be looked at."""
    place = mounts.resolve(mountpoint) if mountpoint else None
    try:
        yield Finding(True, _tried(catalog, place))
    except MountError as error:
        yield Finding(False, str(error))
    if os.geteuid() == 0:
        return
    if place is None and (allowed := apparmor.places()):
        where = f"AppArmor's profile lets fusermount3 mount below {', '.join(allowed)} only"
        yield Finding(True, f"{where}; `synthfs doctor STORE MOUNTPOINT` tries a place")
    if not mounts.users_may_allow_other():
        yield Finding(False, "/etc/fuse.conf lacks `user_allow_other`, which Samba's access to this user's mount needs")


def _tried(catalog: Catalog, place: str | None) -> str:
    """What came of a trial at `place`, or in a temporary directory. Raises MountError."""
    if place is None:
        with TemporaryDirectory(prefix="synthfs-doctor-") as trial:
            mount_verb.try_mount(catalog, trial)
        return "FUSE works: a mount was made in a temporary directory, and ended"
    if not (running := mounts.at(place)):
        mount_verb.try_mount(catalog, place)
        return f"FUSE works: a mount was made at {place}, and ended"
    if mounts.status(running) is None and not mounts.is_closed(running):
        raise MountError(f"{place} is mounted and does not answer; end it with `synthfs umount {quoted(place)}`")
    return f"FUSE works: {place} is mounted"


def _store(catalog: Catalog, is_unwanted: bool) -> Iterator[Finding]:
    yield Finding(bool(catalog.disks), f"{len(catalog.disks)} disks can be shown from {catalog.store.root}")
    if denied := unreadable(catalog):
        yield Finding(False, denied)
    if catalog.database:
        yield Finding(True, f"UrBackup's database is readable: {catalog.database}")
    elif is_unwanted:
        yield Finding(True, "backups are judged by their files, and no database was asked")
    else:
        yield Finding(False, "no database of UrBackup was asked, so backups are judged by their files; --database names it")
    for note in catalog.notes:
        yield Finding(not note.warning, note.text)


def _freezing(catalog: Catalog, to: str | None) -> Iterator[Finding]:
    if not catalog.newest:
        return
    directory = to or catalog.store.root
    try:
        can_share_into(directory, catalog.newest.image.raw)
        yield Finding(True, f"materialize can share data with files in {directory}")
    except (ShareError, SourceError, TargetError) as error:
        yield Finding(False, f"materialize cannot share data with files in {directory}: {error}")


def _space(root: str) -> Iterator[Finding]:
    found = os.statvfs(root)
    used = 1 - found.f_bavail / max(found.f_blocks, 1)
    text = f"{root} is {used:.0%} full, {human(found.f_bavail * found.f_frsize)} are free"
    yield Finding(used < _FULL, text if used < _FULL else f"{text}: UrBackup deletes old backups now, at any time")


def _samba(root: str) -> Iterator[Finding]:
    """About the mounts of this store; `share --check` looks at any."""
    running = [mount for mount in mounts.table() if mount.store == root]
    try:
        configuration = samba.active_configuration() if running else ""
    except NotFoundError as error:
        yield Finding(False, str(error))
        return
    for mount in running:
        yield from samba.findings(configuration, mount.mountpoint, mounts.is_writable(mount), mounts.admission(mount))


def _hooks() -> Iterator[Finding]:
    for good, text in hooks.check():
        yield Finding(good, text)
