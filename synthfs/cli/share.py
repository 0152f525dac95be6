"""`synthfs share`: what to put into smb.conf, and with `--check` what in it would hurt."""

import grp
import os
from typing import Annotated

import typer

from synthfs import samba
from synthfs.cli.common import Json, out, print_json
from synthfs.errors import MountError
from synthfs.host import mounts, probe


def share(
    mountpoint: Annotated[
        str | None, typer.Argument(metavar="[MOUNTPOINT]", help="A running mount.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Look at Samba's present configuration instead.")] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the share.")] = "backups",
    configuration: Annotated[
        str | None, typer.Option("--config-file", metavar="FILE", help="The smb.conf to check.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the share for smb.conf that lets Windows attach the disks of MOUNTPOINT."""
    mount = _the_mount(mountpoint)
    if not check:
        print(samba.stanza(mount.mountpoint, _group(mount.mountpoint), name), end="")
        return
    findings = list(samba.findings(samba.active_configuration(configuration), mount.mountpoint))
    if as_json:
        print_json([{"good": finding.good, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            out.print(f"{'ok' if finding.good else 'problem'}: {finding.text}", markup=False, soft_wrap=True)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


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


def _group(mountpoint: str) -> str:
    """The name of the group that may read the mount."""
    if not probe.answers(mountpoint):
        raise MountError(f"{mountpoint} does not answer; `synthfs umount {mountpoint}` clears it away")
    number = os.stat(mountpoint).st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        raise MountError(f"group {number} of {mountpoint} has no name here; mount with --group NAME") from None
