"""What the rows share: a laboratory, the clock of a process, fio, and the page cache, which is emptied and proved full.

Not for: what is compared with what. Units: bytes and seconds. Source: fincore(1), fio(1), proc(5), posix_fadvise(2).
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import MIB, Scope

_ATTEMPTS = 5


@dataclass(slots=True)
class Rig:
    """`smoke` is the run that only sees whether everything works: little data, one short round."""

    scope: Scope
    smoke: bool = False
    skipped: list[str] = field(default_factory=list)

    @property
    def data(self) -> int:
        """Bytes of random data in the volume that is read."""
        return (16 if self.smoke else 256) * MIB

    @property
    def seconds(self) -> float:
        """How long one measurement of something endless lasts."""
        return 0.2 if self.smoke else 1.0

    def skip(self, what: str, why: str) -> None:
        """Says aloud what is not measured; it stands in the report too."""
        self.skipped.append(f"{what}: {why}")
        print(f"SKIPPED {what}: {why}", file=sys.stderr, flush=True)

    def has(self, what: str, *tools: str) -> bool:
        """Whether these programs are installed; if not, `what` is skipped."""
        missing = [name for name in tools if shutil.which(name) is None]
        if missing:
            self.skip(what, f"{', '.join(missing)} is not installed")
        return not missing

    def fio(self, files: Sequence[Path], *options: str, jobs: int = 1, user: str | None = None) -> dict[str, Any]:
        """The `read` part of fio's report on all `files` read at once, buffered and synchronous; `jobs` readers a file.

        It neither drops caches itself nor gives hints unless asked to.
        """
        common = ("--ioengine=psync", "--invalidate=0", "--readonly", "--group_reporting", "--output-format=json")
        hints = () if any(option.startswith("--fadvise_hint") for option in options) else ("--fadvise_hint=0",)
        argv = ["fio", *common, *hints, *options, f"--numjobs={jobs}"]
        for file in files:
            argv += [f"--name={file.name}", f"--filename={file}"]
        done = self.scope.run(argv, timeout=300, user=user)
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        read: dict[str, Any] = job["read"]
        return read


def forget(*files: Path) -> None:
    """Nothing of these files stays in the page cache."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def warm(scope: Scope, files: Iterable[Path]) -> None:
    """Reads what of these files is not in the page cache, until fincore says that all of them is there."""
    for path in files:
        for _ in range(_ATTEMPTS):
            if is_warm(scope, (path,)):
                break
            with path.open("rb", buffering=0) as file:
                while file.read(MIB):
                    pass
        else:
            raise AssertionError(f"{path} does not stay in the page cache")


def is_warm(scope: Scope, files: Iterable[Path]) -> bool:
    """Whether fincore finds these files in the page cache. Others on the machine may empty it at any moment."""
    return all(_cached(scope, path) >= 0.999 for path in files)


def _cached(scope: Scope, path: Path) -> float:
    """How much of a file's length is in the page cache."""
    resident = int(scope.run(["fincore", "--bytes", "--raw", "--noheadings", "--output=RES", path]).stdout)
    return resident / path.stat().st_size


def read_ahead(target: Path) -> Path:
    """The file that says how far a mount is read ahead, in KiB. The kernel resets it when the mount gives its first answer."""
    device = target.stat().st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


def cpu_seconds(pids: Iterable[int]) -> float:
    """The time that these processes have run, in nanoseconds fine, with the threads that have ended."""
    # What clock_getcpuclockid(3) makes of a pid.
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids) / 1e9


def cpu_per(pids: Sequence[int], work: Callable[[], float]) -> float:
    """Microseconds of processor time for each of the operations that `work` counts."""
    before = cpu_seconds(pids)
    count = work()
    return (cpu_seconds(pids) - before) / count * 1e6
