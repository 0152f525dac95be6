"""`synthfs verify` against as many `sha256sum` as there are cores, each on its part of the same bytes.

The part of the time in which the program starts and looks at the store is in ours, as it is in a user's. `openssl` is shown
beside it, since it uses what the processor has for SHA-256 as Python's hashlib does, and many a `sha256sum` does not.
Units: bytes and seconds.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.rig import Rig, forget
from bench.row import OURS, Goal, Row
from lab import MIB, Scope
from makedisk import BASIC_DATA, Partition, make_disk
from makestore import Store

_CORES = len(os.sched_getaffinity(0))
_EACH = "one a core"
_TOOLS = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "dgst", "-sha256"]}


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("verify", "sha256sum", "openssl", "mkntfs"):
        return
    with rig.scope.scope("verifying") as scope:
        data = 32 * MIB if rig.smoke else 1024 * MIB
        # In a file system in memory: others on the machine may empty the page cache at any moment.
        memory = scope.mount("tmpfs", fstype="tmpfs", options=f"size={3 * data + 256 * MIB}")
        title, goal = f"verify, {_CORES} cores", Goal("at least", 0.85, (f"sha256sum, {_EACH}",))
        yield Row(f"{title}, in memory", "MiB/s", _contestants(scope, *_image(scope, memory, data)), goals=(goal,))
        scope.umount(memory)
        raw, parts = _image(scope, scope.path("disk"), data)
        contestants = _contestants(scope, raw, parts)
        yield Row(f"{title}, cold", "MiB/s", contestants, prepare=lambda name: forget(raw, *parts), rounds=3)


def _contestants(scope: Scope, raw: Path, parts: list[Path]) -> dict[str, Callable[[], float]]:
    data = sum(part.stat().st_size for part in parts)

    def ours() -> float:
        began = time.monotonic()
        done = scope.run([sys.executable, "-m", "synthfs", "verify", "--json", raw], timeout=600)
        seconds = time.monotonic() - began
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["summary"]["data"] >= data
        return data / seconds / MIB

    def each(tool: str) -> float:
        began = time.monotonic()
        running = [subprocess.Popen([*_TOOLS[tool], part], stdout=subprocess.DEVNULL) for part in parts]
        assert [process.wait(600) for process in running] == [0] * len(parts)
        return data / (time.monotonic() - began) / MIB

    return {OURS: ours, **{f"{tool}, {_EACH}": partial(each, tool) for tool in _TOOLS}}


def _image(scope: Scope, directory: Path, data: int) -> tuple[Path, list[Path]]:
    """A .raw with `data` bytes of random data in its volume, and the same in as many files as there are cores."""
    volume = Partition(1, MIB, data + 64 * MIB, BASIC_DATA, fs="ntfs", data=((32 * MIB, data),))
    disk = make_disk(directory / "original.img", volume, length=volume.end + MIB)
    raw = Store(directory / "urbackup").client("pc").backup(disk, 1, layout="plain").raw
    made = []
    with disk.path.open("rb") as file:
        file.seek(volume.start + 32 * MIB)
        for number in range(_CORES):
            made.append(directory / f"{number}")
            with made[-1].open("wb") as part:
                for _ in range(data // _CORES // MIB):
                    part.write(file.read(MIB))
    disk.path.unlink()
    scope.run(["sync"])
    return raw, made
