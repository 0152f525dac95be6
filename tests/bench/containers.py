"""A disk of 2 TB as a dynamic VHD: how long it takes to be opened and read at both ends, and what memory the mount then has.

Its extents are 20,000 blocks of 4 KiB all over it, so nearly that many of the container's 2 MiB blocks are there.
Units: seconds, MiB.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.freezing import GIB, sparse_image
from bench.rig import Rig
from bench.row import OURS, Goal, Row
from onmount import ask
from processes import wait_until

_OPENED = """
began = time.monotonic()
fd = os.open(arguments[0], os.O_RDONLY)
length = os.fstat(fd).st_size
assert len(os.pread(fd, 4096, 0)) == 4096 and len(os.pread(fd, 4096, length - 4096)) == 4096
took = time.monotonic() - began
os.close(fd)
os.posix_fadvise(opened(arguments[0]), 0, 0, os.POSIX_FADV_DONTNEED)
answer(took)
"""


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("2 TB dynamic VHD", "mkfs.xfs", "mkntfs"):
        return
    gib, extents = (4, 50) if rig.smoke else (2000, 20_000)
    with rig.scope.scope("containers") as scope:
        mounted = scope.xfs(4 * GIB)
        raw = sparse_image(scope, mounted, gib, extents)
        target = scope.synthfs_mount(raw.parents[2], "--format", "vhd-dynamic")
        # It is shown once its holes are known, which the mount finds out by itself.
        assert wait_until(lambda: bool(list((target / "pc").glob("*.vhd"))), 60.0, 0.1), scope.logs()[-1]
        (file,) = (target / "pc").glob("*.vhd")
        length = file.stat().st_size

        def opened() -> float:
            return float(ask(scope, _OPENED, file))

        def memory() -> float:
            status = Path(f"/proc/{scope.server(target).pid}/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 1024

        what = f"dynamic VHD of a disk of {gib} GiB ({length / GIB:.1f} GiB long, {extents} extents)"
        yield Row(f"{what}: opened", "s", {OURS: opened}, "low", (Goal("at most", 2.0),))
        yield Row(f"{what}: most memory", "MiB", {OURS: memory}, "low", (Goal("at most", 100.0),), rounds=1)
