"""A whole installation of synthfs on one small BTRFS: store, scratch directory, frozen disks, records, caches, settings.

Its records name absolute paths, so it is mounted at HOME, wherever it comes from: in a mount namespace of its own, which
nobody else sees and which ends with the processes in it. One at a time has HOME, since two copies of one BTRFS that are
mounted at once are two file systems for the kernel. Not for: what is in it (make_installation_010) and expectations.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import need
from lab import BASE, Scope
from ledger import own_directory
from onmount import ask
from processes import Argument, wait_until

HOME = Path("/var/tmp/synthfs-0.1.0")
STORE, SCRATCH, FROZEN, DISKS = (HOME / name for name in ("urbackup", "scratch", "frozen", "disks"))
MADE, SETTINGS = HOME / "made", HOME / "synthfs.toml"
IMAGE = Path(__file__).with_name("fixtures") / "0.1.0.btrfs.zst"
FACTS = IMAGE.with_name("0.1.0.json")

WHAT = """
base, *names = arguments
found = {}
for name in names or [os.path.relpath(f'{above}/{name}', base) for above, _, below in os.walk(base) for name in below]:
    with open(f'{base}/{name}', 'rb') as file:
        content = file.read()
    at = os.stat(f'{base}/{name}')
    uuid = content[-512:][68:84].hex() if content[-512:-504] == b'conectix' else None
    found[name] = {'length': len(content), 'sha256': hashlib.sha256(content).hexdigest(), 'uuid': uuid,
                   'inode': at.st_ino, 'mtime_ns': at.st_mtime_ns}
answer(found)
"""
"""All that is told of a file. `uuid` is what a differencing disk knows its parent by: the unique id in a VHD's footer."""

MARKS = """
base, found = arguments[0], {}
for above, _, below in os.walk(base):
    for name in below:
        at = os.stat(f'{above}/{name}')
        found[os.path.relpath(f'{above}/{name}', base)] = at.st_ino, at.st_mtime_ns, at.st_size
answer(found)
"""


@dataclass(slots=True)
class Installation:
    """The file system on `device`, mounted at HOME for the processes of this object alone."""

    scope: Scope
    device: str
    program: list[Argument]
    environment: dict[str, str]
    _keeper: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        own = os.readlink("/proc/self/ns/mnt")
        self._keeper = self.scope.start(["unshare", "--mount", "--propagation", "private", "sleep", "infinity"])
        assert wait_until(lambda: self._namespace() not in (None, own), 10.0), self.scope.logs()
        self.run(["mount", "-t", "btrfs", self.device, HOME])

    def _namespace(self) -> str | None:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{self._keeper.pid}/ns/mnt")
        return None

    def _inside(self, argv: list[Argument]) -> list[Argument]:
        return ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--", *argv]

    def seen(self, path: Path) -> Path:
        """Where a path of the installation is for processes outside of it."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def run(self, argv: list[Argument], check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.scope.run(self._inside(argv), check=check, env=self.environment)

    def synthfs(self, *arguments: Argument, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.run([*self.program, *arguments], check)

    @contextmanager
    def mounted(self, *options: Argument) -> Iterator[Path]:
        """The store, mounted at DISKS with the installation's settings; gives that place as it is seen from outside."""
        argv = self._inside([*self.program, "--config", SETTINGS, "mount", *options, STORE, DISKS])
        server = self.scope.start(argv, env=self.environment)
        table, line = Path(f"/proc/{self._keeper.pid}/mounts"), f" {DISKS} fuse.synthfs "
        assert wait_until(lambda: server.poll() is not None or line in table.read_text(), 20.0)
        assert server.poll() is None, self.scope.logs()
        try:
            yield self.seen(DISKS)
        finally:
            server.terminate()
            assert server.wait(15.0) == 0

    def marks(self, directory: Path) -> dict[str, list[int]]:
        """Inode, time and length of all files below `directory`: equal if nothing was touched."""
        found: dict[str, list[int]] = ask(self.scope, MARKS, self.seen(directory))
        return found

    def what(self, directory: Path, *names: str) -> dict[str, dict[str, Any]]:
        """By name, what there is to tell of files; without names, of all that are below `directory`."""
        found: dict[str, dict[str, Any]] = ask(self.scope, WHAT, self.seen(directory), *names)
        return found


@contextmanager
def installed(scope: Scope, image: Path, checkout: Path | None = None) -> Iterator[Installation]:
    """The installation in the file `image`, which is written to; its program is that of `checkout`, or the one under test."""
    need.root()
    need.loop()
    need.fuse()
    need.tool("unshare", "nsenter")
    need.kernel("btrfs")
    environment = {"CACHE_DIRECTORY": str(HOME / "cache"), "STATE_DIRECTORY": str(HOME / "state"), "TZ": "UTC"}
    if checkout:
        environment["PYTHONPATH"] = str(checkout)
    with _alone(), scope.scope("installation") as inner:
        own_directory(HOME)
        try:
            yield Installation(inner, inner.loop(image), [sys.executable, "-m", "synthfs"], environment)
        finally:
            inner.close()
            HOME.rmdir()


@contextmanager
def _alone() -> Iterator[None]:
    """Waits for another run of the tests that has HOME."""
    with (BASE / "installation.lock").open("w") as file:

        def locked() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        assert wait_until(locked, 300.0, pause=0.2), f"{HOME} is in use by another run of the tests"
        yield


def unpacked(scope: Scope) -> Path:
    """A copy of what 0.1.0 left, to be written to."""
    need.tool("zstd")
    target = scope.path("unpacked") / "0.1.0.btrfs"
    scope.run(["zstd", "-q", "-d", "--long=27", "--sparse", IMAGE, "-o", target])
    return target
