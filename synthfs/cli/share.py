"""`synthfs share`: what to put into smb.conf, and with `--check` what in it would hurt."""

import grp
import os
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from synthfs import samba
from synthfs.cli.common import Json, answer, print_json, say
from synthfs.errors import MountError, SynthfsError
from synthfs.host import mounts, probe
from synthfs.samba import Finding
from synthfs.text import quoted

_MOST = 1000
"""How many real files of a share are looked at."""


def share(
    mountpoint: Annotated[
        str | None, typer.Argument(metavar="[MOUNTPOINT]", help="A running mount.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Look at Samba's present configuration instead.")] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the share.")] = "backups",
    configuration: Annotated[
        str | None, typer.Option("--config-file", metavar="FILE", help="The smb.conf to check.", show_default=False)
    ] = None,
    writable: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Let this user (or @GROUP) write to disks; may be repeated.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the share for Samba, or check what is there.

    What is printed belongs into smb.conf, and lets Windows attach the disks of MOUNTPOINT.
    """
    mount = _the_mount(mountpoint)
    if not check:
        if writable and not mounts.is_writable(mount):
            raise MountError(f"{mount.mountpoint} is read-only; `synthfs mount --writable SCRATCH` lets disks be written to")
        admission = mounts.admission(mount)
        stanza = samba.stanza(mount.mountpoint, _group(mount, admission), name, writable or ())
        if as_json:
            print_json({"mountpoint": mount.mountpoint, "share": name, "stanza": stanza})
        else:
            for line in stanza.rstrip("\n").split("\n"):
                answer(line)
        for problem in samba.problems_of(stanza, mount.mountpoint, admission):
            say(f"warning: {problem}")
        if not admission.is_open:
            raise SynthfsError(samba.closed(mount.mountpoint, admission.user))
        return
    active = samba.active_configuration(configuration)
    findings = [
        *samba.findings(active, mount.mountpoint, mounts.is_writable(mount), mounts.admission(mount)),
        *_sparse_files(active, mount.mountpoint),
    ]
    if as_json:
        print_json([{"good": finding.good, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            answer(f"{'ok' if finding.good else 'problem'}: {finding.text}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _sparse_files(active: str, mountpoint: str) -> Iterator[Finding]:
    """Materialized disks of the shares that Samba would call sparse, since a client or a copy has marked them so."""
    for path in samba.share_paths(active, mountpoint):
        for file in islice(_disk_files(path), _MOST):
            if samba.is_flagged_sparse(file):
                cure = f"remove the mark with `setfattr -x user.DOSATTRIB {quoted(file)}`"
                yield Finding(False, f"{file} is marked as sparse, and Windows does not attach it; {cure}")


def _disk_files(directory: str) -> Iterator[str]:
    """Every .vhd file below `directory` that is no file of a mount of ours: those have no attributes to be marked with."""
    for here, names, files in os.walk(directory):
        names[:] = [name for name in names if not mounts.at(f"{here}/{name}")]
        yield from (f"{here}/{name}" for name in files if name.lower().endswith(".vhd"))


def _the_mount(named: str | None) -> mounts.Mount:
    if named is not None:
        found = mounts.at(named)
        if found is None:
            raise MountError(f"{named} is no synthfs mount")
        return found
    running = mounts.table()
    if len(running) != 1:
        places = ", ".join(mount.mountpoint for mount in running) or "there is none"
        raise MountError(f"name the mount that is to be shared: {places}")
    return running[0]


def _group(mount: mounts.Mount, admission: mounts.Admission) -> str:
    """The name of the group that may read the mount, or of the one that could if it were open to others."""
    place = mount.mountpoint
    if mounts.is_dead(mount):
        raise MountError(f"{place} does not answer; `synthfs umount {quoted(place)}` clears it away")
    found = admission.files if admission.is_open else probe.permissions(mount.store)
    if found is None:
        raise MountError(f"{place if admission.is_open else mount.store} does not say which group it belongs to")
    try:
        return grp.getgrgid(found.group).gr_name
    except KeyError:
        raise MountError(f"group {found.group} of {place} has no name here; mount with --group NAME") from None
