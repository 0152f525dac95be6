"""`synthfs doctor`: whether everything that synthfs needs is there, each finding with what to do about it."""

import os
import shutil
from collections.abc import Iterator
from typing import Annotated

import typer

from synthfs import samba
from synthfs.cli.common import Database, Json, Store, look_at, print_json, unreadable
from synthfs.cli.terminal import out
from synthfs.engines.materialize import can_share_into
from synthfs.errors import NotFoundError, ShareError, SourceError, TargetError
from synthfs.host import hooks, mounts
from synthfs.plan.catalog import Catalog
from synthfs.samba import Finding
from synthfs.units import human

_FULL = 0.95
"""UrBackup starts deleting backups when its storage fills up; its usual limit is 95 %."""


def doctor(
    store: Store,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Where materialized disks are to go.", show_default=False)
    ] = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Check all that mounting, sharing and freezing needs."""
    catalog = look_at(store, database)
    root = catalog.store.root
    findings = [*_fuse(), *_store(catalog), *_freezing(catalog, to), *_space(root), *_samba(root), *_hooks()]
    if as_json:
        print_json([{"good": finding.good, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            out.print(f"{'ok' if finding.good else 'problem'}: {finding.text}", soft_wrap=True)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _fuse() -> Iterator[Finding]:
    if not os.path.exists("/dev/fuse"):
        yield Finding(False, "/dev/fuse is missing; load the kernel module with `modprobe fuse`")
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        yield Finding(False, "/dev/fuse may not be opened by this user; on most systems its mode is 0666")
    else:
        yield Finding(True, "FUSE is there")
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None:
            yield Finding(False, "fusermount3 is missing, without which only root can mount (apt install fuse3)")
        if not mounts.users_may_allow_other():
            yield Finding(False, "/etc/fuse.conf lacks `user_allow_other`, which Samba's access to this user's mount needs")


def _store(catalog: Catalog) -> Iterator[Finding]:
    yield Finding(bool(catalog.disks), f"{len(catalog.disks)} disks can be shown from {catalog.store.root}")
    if denied := unreadable(catalog):
        yield Finding(False, denied)
    if catalog.database:
        yield Finding(True, f"UrBackup's database is readable: {catalog.database}")
    else:
        yield Finding(False, "no UrBackup database was found, so backups are judged by their files; --database names it")
    for note in catalog.notes:
        yield Finding(not note.warning, note.text)


def _freezing(catalog: Catalog, to: str | None) -> Iterator[Finding]:
    if not catalog.disks:
        return
    directory = to or catalog.store.root
    try:
        can_share_into(directory, max(catalog.disks, key=lambda disk: disk.image.stamp).image.raw)
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
        yield from samba.findings(configuration, mount.mountpoint, mounts.is_writable(mount))


def _hooks() -> Iterator[Finding]:
    for good, text in hooks.check():
        yield Finding(good, text)
