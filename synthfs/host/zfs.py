"""What has to be asked of ZFS by its tools: pools, whether block cloning is on, and how much it has saved.

`copy_file_range` between datasets shares blocks or copies them and never says which, so the pool's own counters are the
only witness. They change with the transaction group that holds the clone, hence `settle` before reading them.

Not for: sharing (`host/reflink`). Units: bytes. Source: zpoolprops(7), zfs(4), and observation on OpenZFS 2.3.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass

from synthfs.host.mounts import file_system
from synthfs.text import quoted

_TXG_SECONDS = 6.0
"""A transaction group is written out at least every 5 seconds (zfs_txg_timeout)."""

_PARAMETER = "/sys/module/zfs/parameters/zfs_bclone_enabled"


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool by its name."""

    name: str

    def why_no_cloning(self) -> str | None:
        """The reason why nothing can be cloned in this pool, with the remedy; None where it can."""
        if _property(self.name, "feature@block_cloning") in (None, "disabled"):
            remedy = f"`zpool set feature@block_cloning=enabled {quoted(self.name)}` adds it"
            return f"pool {self.name} has no block cloning; {remedy}"
        try:
            with open(_PARAMETER) as parameter:
                if parameter.read().strip() == "0":
                    return f"block cloning is switched off here (`echo 1 > {_PARAMETER}` switches it on)"
        except OSError:
            return "this version of ZFS has no block cloning; 2.2 has"
        return None

    def settle(self) -> None:
        """Waits until everything written so far is on disk: until then it can be neither cloned nor counted."""
        if _run("zpool", "sync", self.name) is None:
            time.sleep(_TXG_SECONDS)

    def saved(self) -> int:
        """Bytes that cloning saves in this pool at present; changes with everything else that happens in it."""
        return int(_property(self.name, "bclonesaved") or 0)


def pool_of(path: str) -> Pool | None:
    """The pool that `path` lies in; None for other file systems."""
    kind, source = file_system(path)
    return Pool(source.partition("/")[0]) if kind == "zfs" else None


def _property(pool: str, name: str) -> str | None:
    answer = _run("zpool", "get", "-Hp", "-o", "value", name, pool)
    return None if answer is None or answer.strip() in ("", "-") else answer.strip()


def _run(*command: str) -> str | None:
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        return None
    result = subprocess.run([program, *command[1:]], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return os.fsdecode(result.stdout) if result.returncode == 0 else None
