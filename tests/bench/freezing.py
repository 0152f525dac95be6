"""`synthfs materialize` against `cp --reflink=always` of the same .raw file, on BTRFS, and the proof that no data was copied.

Units: GiB, seconds. Source of the figures: the clock, `btrfs filesystem du`, filefrag.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sampledisks
from bench.rig import Rig
from bench.row import OURS, Goal, Row
from lab import Scope
from makestore import Store
from processes import Argument

GIB = 1 << 30
CP, FLUSHED = "cp --reflink", "cp --reflink, flushed"
START = f"{OURS}, its start alone"


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("materialize", "mkfs.btrfs", "filefrag", "mkntfs"):
        return
    gib, extents = (4, 50) if rig.smoke else (500, 20_000)
    with rig.scope.scope("freezing") as scope:
        mounted = scope.btrfs(4 * GIB)
        raw = sparse_image(scope, mounted, gib, extents)
        out = mounted / "out"
        out.mkdir()
        commands: dict[str, list[Argument]] = {
            OURS: [sys.executable, "-m", "synthfs", "materialize", raw, "--force", "-o", out / OURS],
            START: [sys.executable, "-m", "synthfs", "materialize", mounted / "nothing.raw"],
            CP: ["cp", "--reflink=always", raw, out / CP],
            # materialize returns when the file is safely on disk.
            FLUSHED: ["sh", "-c", 'cp --reflink=always "$1" "$2" && sync "$2"', "sh", raw, out / FLUSHED],
        }

        def timed(name: str) -> float:
            began = time.monotonic()
            scope.run(commands[name], timeout=600, check=name != START)
            return time.monotonic() - began

        def prepare(name: str) -> None:
            (out / name).unlink(missing_ok=True)
            scope.run(["sync"])

        contestants = {name: lambda name=name: timed(name) for name in commands}
        goals = (Goal("at most", 1.2, (CP,)), Goal("at most", 1.2, (FLUSHED,)))
        row = Row(f"materialize, {gib} GiB in {extents_of(scope, raw)} extents", "s", contestants, "low", goals, prepare)
        yield row
        scope.run(["sync"])
        row.notes += [_own_space(scope, out / name) for name in (OURS, CP, FLUSHED)]


def sparse_image(scope: Scope, mounted: Path, gib: int, extents: int) -> Path:
    """The .raw of a disk of `gib` GiB, with `extents` separate blocks written into it."""
    disk = sampledisks.large_disk(scope.path() / "original.img", length=gib * GIB, data=1 << 20)
    without = (".hash", ".cbitmap", ".bitmap")
    image = Store(mounted / "urbackup").client("pc").backup(disk, 1, layout="plain", without=without)
    image.sidecar(".sync").touch()
    with image.raw.open("r+b") as file:
        for number in range(extents):
            file.seek(GIB + number * (image.length - 2 * GIB) // extents // 4096 * 4096)
            file.write(os.urandom(4096))
    scope.run(["sync"])
    return image.raw


def extents_of(scope: Scope, path: Path) -> int:
    # By -v: without it, neighbours on the device count as one even where the file has a hole between them.
    listed = scope.run(["filefrag", "-v", path]).stdout.splitlines()
    return len([line for line in listed if line.split(":")[0].strip().isdigit()])


def _own_space(scope: Scope, path: Path) -> str:
    words = scope.run(["btrfs", "filesystem", "du", "--raw", path]).stdout.splitlines()[-1].split()
    return f"{path.name}: {int(words[0]) / GIB:.2f} GiB of data, of which {int(words[1])} bytes are its own"
