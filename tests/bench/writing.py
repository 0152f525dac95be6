"""The first write to a disk of a writable mount against `synthfs materialize` of the same image, on BTRFS.

Both freeze the disk; the mount has looked at the store before, and its writer waits for the write as well. Units: GiB, seconds.
"""

import os
import sys
import time
from collections.abc import Iterator

from bench.freezing import GIB, extents_of, sparse_image
from bench.rig import Rig
from bench.row import OURS, Goal, Row
from processes import Argument
from writer import told_at

COMMAND = "synthfs materialize"
_SPOT = GIB


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("the first write", "mkfs.btrfs", "filefrag", "mkntfs"):
        return
    gib, extents = (4, 50) if rig.smoke else (500, 20_000)
    with rig.scope.scope("writing") as scope:
        mounted = scope.btrfs(4 * GIB)
        raw = sparse_image(scope, mounted, gib, extents)
        scratch, out = mounted / "scratch", mounted / "out"
        scratch.mkdir()
        out.mkdir()
        target = scope.synthfs_mount(mounted / "urbackup", "--writable", scratch)
        (file,) = (target / "pc").glob("*.vhd")
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "materialize", raw, "-o", out / "disk.vhd"]

        def first_write() -> float:
            fd = os.open(file, os.O_RDWR)
            try:
                began = time.monotonic()
                os.pwrite(fd, b"w" * 4096, _SPOT)
                return time.monotonic() - began
            finally:
                os.close(fd)

        def command() -> float:
            began = time.monotonic()
            scope.run(argv, timeout=600)
            return time.monotonic() - began

        def prepare(name: str) -> None:
            (out / "disk.vhd").unlink(missing_ok=True)
            told_at(scratch, do="discard", path=f"pc/{file.name}", force=False)
            scope.run(["sync"])

        goal = Goal("at most", 1.2, (COMMAND,))
        title = f"first write, {gib} GiB in {extents_of(scope, raw)} extents"
        yield Row(title, "s", {OURS: first_write, COMMAND: command}, "low", (goal,), prepare)
