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

from bench.rig import Rig, forget, is_warm, warm
from bench.row import OURS, Goal, Row
from lab import MIB, Scope
from makedisk import BASIC_DATA, Partition, make_disk
from makestore import Store

_TOOLS = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "dgst", "-sha256"]}


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("verify", "sha256sum", "openssl", "fincore", "mkntfs"):
        return
    cores = len(os.sched_getaffinity(0))
    with rig.scope.scope("verifying") as scope:
        raw, parts = _image(scope, 32 * MIB if rig.smoke else 1024 * MIB, cores)
        read = sum(part.stat().st_size for part in parts)

        def ours() -> float:
            began = time.monotonic()
            done = scope.run([sys.executable, "-m", "synthfs", "verify", "--json", raw], timeout=600)
            seconds = time.monotonic() - began
            (line,) = done.stdout.splitlines()
            assert json.loads(line)["summary"]["data"] >= read
            return read / seconds / MIB

        def all_cores(tool: str) -> float:
            began = time.monotonic()
            running = [subprocess.Popen([*_TOOLS[tool], part], stdout=subprocess.DEVNULL) for part in parts]
            assert [process.wait(600) for process in running] == [0] * cores
            return read / (time.monotonic() - began) / MIB

        contestants: dict[str, Callable[[], float]] = {OURS: ours}
        contestants |= {f"{tool}, one a core": partial(all_cores, tool) for tool in _TOOLS}
        files = {name: [raw] if name == OURS else parts for name in contestants}
        goal = Goal("at least", 0.85, ("sha256sum, one a core",))

        def made_warm(name: str) -> None:
            warm(scope, files[name])

        def made_cold(name: str) -> None:
            forget(*files[name])

        def still_warm(name: str) -> bool:
            return is_warm(scope, files[name])

        title = f"verify, {cores} cores"
        yield Row(f"{title}, in the page cache", "MiB/s", contestants, goals=(goal,), prepare=made_warm, counts=still_warm)
        yield Row(f"{title}, cold", "MiB/s", contestants, prepare=made_cold, rounds=3)


def _image(scope: Scope, data: int, parts: int) -> tuple[Path, list[Path]]:
    """A .raw with `data` bytes of random data in its volume, and the same in as many files as there are parts."""
    volume = Partition(1, MIB, data + 64 * MIB, BASIC_DATA, fs="ntfs", data=((32 * MIB, data),))
    disk = make_disk(scope.path() / "original.img", volume, length=volume.end + MIB)
    raw = Store(scope.path("store") / "urbackup").client("pc").backup(disk, 1).raw
    made = []
    with disk.path.open("rb") as file:
        file.seek(volume.start + 32 * MIB)
        for number in range(parts):
            made.append(scope.path("part") / f"{number}")
            with made[-1].open("wb") as part:
                for _ in range(data // parts // MIB):
                    part.write(file.read(MIB))
    scope.run(["sync"])
    return raw, made
