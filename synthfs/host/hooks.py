"""Whether UrBackup's hooks are in place, and whether its server could run them and wake synthfs by them.

A hook that exists but fails makes UrBackup discard the backup, and one that it cannot read does not exist for it. So each
is tried as the server's user: the owner of its directory, without that user's further groups, as the server runs.

Not for: what the hook does (`scripts/urbackup`). Source: UrBackup's `ClientMain.cpp` (runPostBackupScript).
"""

import os
import re
import subprocess
from collections.abc import Iterator

DIRECTORIES = ("/var/urbackup", "/usr/local/var/urbackup")
HOOKS = ("post_full_imagebackup", "post_incr_imagebackup")
WAKE = re.compile(rb"(?m)(?:SYNTHFS_WAKE:?-|^wake=[\"']?)([^${}\s\"']+)")
"""In a hook of ours, the file that it makes to wake `synthfs sync` up (scripts/systemd/synthfs-sync.path)."""


def check() -> Iterator[tuple[bool, str]]:
    """For each finding whether it is good, and a line with the remedy where it is not. Nothing where there is no server."""
    for directory in filter(os.path.isdir, DIRECTORIES):
        paths = [f"{directory}/{hook}" for hook in HOOKS]
        there = [path for path in paths if os.path.lexists(path)]
        if not there:
            yield True, f"no hook is in {directory}, so nothing is frozen right after a backup (scripts/urbackup has them)"
            continue
        for path in paths:
            yield _check_hook(path, os.stat(directory)) if path in there else (False, f"{path} is missing beside {there[0]}")
        for place in sorted({os.path.dirname(wake) for wake in map(_wakes_by, there) if wake}):
            if not _can(os.stat(directory), "-w", place):
                remedy = "scripts/systemd/synthfs.tmpfiles makes the usual one"
                yield False, f"{place} is not there or not writable for UrBackup's server; {remedy}"


def _check_hook(path: str, owner: os.stat_result) -> tuple[bool, str]:
    if not os.path.isfile(path):
        return False, f"{path} leads to no file, and UrBackup fails its backups for it; remove it"
    if not (_can(owner, "-r", path) and _can(owner, "-x", path)):
        return False, f"{path} must be readable and executable by user {owner.st_uid}, as whom UrBackup's server runs"
    if not _wakes_by(path):
        return True, f"{path} is in place, and is not that of synthfs"
    return True, f"{path} is in place, and runs as UrBackup's server"


def _wakes_by(path: str) -> str | None:
    """The file that a hook makes; None where it is not ours."""
    try:
        with open(path, "rb") as file:
            found = WAKE.search(file.read(4096))
    except OSError:
        return None
    return os.fsdecode(found[1]) if found else None


def _can(owner: os.stat_result, what: str, path: str) -> bool:
    """What `test` says as the owner; as this user where that cannot be tried."""
    uid, gid, groups = (owner.st_uid, owner.st_gid, ()) if os.geteuid() == 0 else (None, None, None)
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", what, path]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, user=uid, group=gid, extra_groups=groups)
    return done.returncode == 0
