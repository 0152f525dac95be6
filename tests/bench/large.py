"""A store of 200 clients and 10,000 images, made of sparse files: mounting it, listing, refreshing, and reading meanwhile.

What a mount learnt is thrown away before a cold one; the page cache is warm in both. An empty store shows what the start of
Python and of its libraries takes. Refreshes are asked for by SIGHUP, and
timed by the mount itself. Reads are of 4 KiB with O_DIRECT, so that each reaches the process that serves them, out of the page
cache of the .raw; the figure is the slowest of them all. Units: seconds, milliseconds, MiB.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import manyimages
from bench.rig import Rig
from bench.row import OURS, Goal, Row
from lab import Scope
from onmount import PRELUDE
from processes import Argument, wait_until
from stock import STATUS

COLD, EMPTY = f"{OURS}, nothing remembered", f"{OURS}, an empty store"
CHANGED, QUIET = f"{OURS}, a change for each client", f"{OURS}, nobody refreshes"

_READER = """
warm = opened(arguments[0])
while os.read(warm, 1 << 20):
    pass
fd, until, dice = opened(arguments[0], os.O_DIRECT), time.monotonic() + float(arguments[1]), random.Random(1)
import mmap
page, blocks, slowest = mmap.mmap(-1, 4096), os.fstat(fd).st_size // 4096 - 1, 0.0
while time.monotonic() < until:
    at = dice.randrange(blocks) * 4096
    began = time.perf_counter()
    os.preadv(fd, [page], at)
    slowest = max(slowest, time.perf_counter() - began)
    time.sleep(0.0005)
answer(slowest)
"""


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("large store", "mkfs.xfs", "mkntfs", "mkfs.vfat", "sgdisk"):
        return
    clients, images = (4, 60) if rig.smoke else (200, 10_000)
    with rig.scope.scope("large") as scope:
        root = scope.xfs(3 << 30) / "urbackup"
        manyimages.fill(root, scope.path("original"), clients=clients, images=images)
        time.sleep(2.5)  # what was just written is read anew at each look
        large = _Large(rig, scope, root)
        yield large.mounting(f"store of {images} images")
        yield from large.serving()
        yield large.gathering()


class _Large:
    def __init__(self, rig: Rig, scope: Scope, root: Path) -> None:
        self.rig = rig
        self.scope = scope
        self.root = root
        self.target = scope.path("mounted")
        self.caches = scope.path("caches")
        self.caches.chmod(0o700)
        self._stores = {OURS: root, COLD: root, EMPTY: scope.path("empty")}
        self._memory: list[int] = []
        self._touched = 0

    def mounting(self, what: str) -> Row:
        """From the start of the command until a disk of the last client was found and its first bytes read.

        The mount goes on planning what nobody has looked at. Memory is that of the last process, when that is done.
        """
        memory = self._memory

        def prepare(name: str) -> None:
            if name == COLD:
                shutil.rmtree(self.caches)
                self.caches.mkdir(mode=0o700)
            elif not any(self.caches.iterdir()):
                self._synthfs("list", "--json", self.root)

        def mount(store: Path) -> float:
            began = time.monotonic()
            self._synthfs("mount", "--daemon", "--refresh", "0", store, self.target)
            if store == self.root:
                self._first_bytes()
            took = time.monotonic() - began
            if store == self.root:
                self._status()
                memory.append(self._resident())
            self._synthfs("umount", self.target)
            return took

        goals = (Goal("at most", 0.5), Goal("at most", 2.0, of=COLD))
        contestants: dict[str, Callable[[], float]] = {name: partial(mount, store) for name, store in self._stores.items()}
        return Row(f"{what}: mount usable", "s", contestants, "low", goals, prepare)

    def serving(self) -> Iterator[Row]:
        self._synthfs("mount", "--daemon", "--refresh", "0", self.root, self.target)
        try:
            resident = {OURS: lambda: float(self._memory[-1]), f"{OURS}, after all refreshes": lambda: float(self._resident())}
            yield Row("large store: ls -lR", "s", {OURS: self._list}, "low", (Goal("at most", 2.0),))
            refreshes: dict[str, Callable[[], float]] = {OURS: self._refresh, CHANGED: self._refresh}
            yield Row("large store: refresh", "s", refreshes, "low", (Goal("at most", 0.3),), self._prepare)
            reads = {
                OURS: lambda: self._slowest(lambda: None),
                CHANGED: lambda: self._slowest(self._change),
                QUIET: lambda: self._slowest(None),
            }
            goals = (Goal("at most", 20.0), Goal("at most", 20.0, of=CHANGED))
            yield Row("large store: slowest read beside refreshes", "ms", reads, "low", goals)
            yield Row("large store: resident memory", "MiB", resident, "low", (Goal("at most", 80),), rounds=1)
        finally:
            self._synthfs("umount", self.target)

    def gathering(self) -> Row:
        """The slowest read while the mount finds out where all of its sources have holes, of which it knew none."""
        row = Row("large store: slowest read beside looking for holes", "ms", {}, "low", (Goal("at most", 20.0),))

        def measure() -> float:
            shutil.rmtree(self.caches)
            self.caches.mkdir(mode=0o700)
            formats = ("--format", "vhd", "--format", "vhdx")
            self._synthfs("mount", "--daemon", "--refresh", "0", *formats, self.root, self.target)
            try:
                before = self._status()["pending"]
                slowest = self._slowest(None)
                row.notes.append(f"waiting for a hole map: {before} files before, {self._status()['pending']} after")
            finally:
                self._synthfs("umount", self.target)
            return slowest

        row.contestants = {OURS: measure}
        return row

    def _prepare(self, name: str) -> None:
        if name == CHANGED:
            self._change()

    def _change(self) -> None:
        """An image of each client but the first is touched, as if it had been written to: that one's are read meanwhile."""
        self._touched += 1
        for client in sorted(self.root.iterdir())[1:]:
            directories = sorted(client.iterdir())
            (raw,) = directories[1 + self._touched % (len(directories) - 1)].glob("*.raw")
            raw.touch()

    def _first_bytes(self) -> None:
        """What somebody does who came for one disk: look for its client, for the disk, and into it."""
        client = max(self.target.glob("pc*"))
        with open(max(client.glob("*.vhd")), "rb", buffering=0) as disk:
            assert len(disk.read(4096)) == 4096

    def _list(self) -> float:
        began = time.monotonic()
        with open("/dev/null", "w") as nothing:
            subprocess.run(["ls", "-lR", self.target], stdout=nothing, check=True, timeout=60)
        return time.monotonic() - began

    def _refresh(self) -> float:
        before = self._status()
        os.kill(before["pid"], signal.SIGHUP)
        assert wait_until(lambda: bool(self._status()["refreshes"] > before["refreshes"]), 30.0, 0.02)
        return float(self._status()["refresh_seconds"])

    def _status(self) -> dict[str, Any]:
        """Read here, although a mount may hang: a child for each look would take the processor from what is measured."""
        facts: dict[str, Any] = json.loads((self.target / STATUS).read_text())
        return facts

    def _slowest(self, change: Callable[[], None] | None) -> float:
        """The slowest read while one refresh follows the other, each after a `change`; None is for no refresh at all."""
        seconds = 0.3 if self.rig.smoke else 5.0
        (client, *_) = sorted(self.target.glob("pc*"))
        (disk, *_) = sorted(client.glob("*.vhd"))
        log = self.scope.path("reader") / "answer.json"
        argv: list[Argument] = [sys.executable, "-I", "-S", "-c", PRELUDE + _READER, disk, str(seconds)]
        reader = self.scope.start(argv, log=log)
        while reader.poll() is None:
            if change is None:
                time.sleep(0.05)
            else:
                change()
                self._refresh()
        return float(json.loads(log.read_text())) * 1000

    def _resident(self) -> int:
        lines = Path(f"/proc/{self._status()['pid']}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmRSS"))
        return int(line.split()[1]) // 1024

    def _synthfs(self, *arguments: Argument) -> None:
        self.scope.synthfs(*arguments, env={"CACHE_DIRECTORY": str(self.caches)}, timeout=120)
