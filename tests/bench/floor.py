"""FUSE itself: what is left when a server does nothing. A goal that this server misses is one that no server can meet here.

`floor.c` answers every read out of memory, in C, with libfuse's own threads. Where its figure and a goal are compared, the
machine and the kernel are judged, and what is missing between it and synthfs is what synthfs could still gain.

Where the backing file is cold, it reads it, with one `pread` and no check.
Units: bytes. Not for: peers, which read the disk.
"""

from pathlib import Path

from bench.peers import Contestant
from bench.rig import Rig, read_ahead
from bench.row import FLOOR
from lab import Scope
from processes import Argument, wait_until

_SOURCE = Path(__file__).with_name("floor.c")


def floor(rig: Rig, scope: Scope, count: int, length: int, offset: int) -> list[Contestant]:
    """Files of `length` bytes, each from a server of its own; nobody where that cannot be compiled."""
    if (server := build(rig, scope)) is None:
        return []
    files, pids = zip(*(serve(scope, server, scope.path("floor-mounted"), length) for _ in range(count)), strict=True)
    return [Contestant(FLOOR, files, offset, (), pids)]


def build(rig: Rig, scope: Scope) -> Path | None:
    """The server's program."""
    if not rig.has(FLOOR, "gcc", "pkg-config"):
        return None
    server = scope.path("floor") / "floor"
    flags = scope.run(["pkg-config", "--cflags", "--libs", "fuse3"]).stdout.split()
    scope.run(["gcc", "-O2", "-o", server, _SOURCE, *flags])
    return server


def serve(scope: Scope, server: Path, target: Path, length: int, *source: Argument) -> tuple[Path, int]:
    """Starts a server; its file, and its process. `source` is a file to read from, and how much further on in it."""
    process = scope.start([server, str(length), target, *source])
    file = target / "disk"
    assert wait_until(file.exists, 10.0), scope.logs()[-1]
    read_ahead(target).write_text("1024")
    return file, process.pid

