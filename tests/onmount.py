"""What tests do on a mount: questions asked by a child with a limit, and the one sample store that they are asked about.

Not for: expectations; those are in the tests and come from the original disk. Units: bytes and seconds.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import sampledisks
from lab import Scope
from ledger import mounts_below
from makedisk import OriginalDisk
from makestore import Image, Store
from processes import Argument, wait_until

FOOTER = 512
"""What a fixed VHD has behind the disk."""
SERVER = Path(__file__).with_name("faulty_server.py")
PRELUDE = """
import errno, hashlib, json, os, random, subprocess, sys, threading, time

def failure(call, *arguments, **named):
    "The name of the errno that a call fails with; None where it succeeds."
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]

def forget(*descriptors):
    "Nothing of these files stays in the page cache."
    for fd in descriptors:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as switch:
        switch.write('3')

def opened(path, flags=0):
    return os.open(path, os.O_RDONLY | flags)

def answer(value):
    json.dump(value, sys.stdout)
    sys.stdout.flush()

arguments = sys.argv[1:]
"""


def ask(scope: Scope, source: str, *arguments: Argument, timeout: float = 30.0) -> Any:
    """What Python source, run in a child after PRELUDE with `arguments`, says by `answer(value)`."""
    return json.loads(scope.in_child(PRELUDE + source, *arguments, timeout=timeout))


@dataclass(frozen=True, slots=True)
class Sample:
    """A store of one client `pc` with one disk: ESP, C: and D:, each imaged once."""

    root: Path
    disk: OriginalDisk
    system: Image
    c: Image
    d: Image

    C = "pc/Image_C_260301-0201.vhd"
    D = "pc/Image_D_260301-0203.vhd"
    RENEWED = "pc/new-identity/Image_C_260301-0201.vhd"

    @classmethod
    def make(
        cls,
        scope: Scope,
        where: Path | None = None,
        owner: tuple[int, int] | None = None,
        make: Callable[[Path], OriginalDisk] = sampledisks.gpt_disk,
    ) -> "Sample":
        disk = make(scope.path("original") / "original.img")
        root = (where or scope.path("store")) / "urbackup"
        client = Store(root, owner=owner).client("pc")
        system = client.backup(disk, 1, "SYSVOL")
        return cls(root, disk, system, client.backup(disk, 3, "C"), client.backup(disk, 4, "D", "260301-0203"))

    def copy(self, scope: Scope) -> Path:
        """The root of a copy that a test may spoil."""
        scope.run(["cp", "-a", "--sparse=always", self.root, scope.path("spoiled")])
        return scope.directory / sorted(path.name for path in scope.directory.glob("*-spoiled"))[-1] / self.root.name

    def raw(self, root: Path, image: Image) -> Path:
        """Where an image of this store is in a copy."""
        return root / image.raw.relative_to(self.root)


def read_right(scope: Scope, file: Path, disk: OriginalDisk, *, timeout: float = 30.0) -> bool:
    """Whether the bytes of a mounted or materialized VHD are those of the original disk, all of them, and then a footer."""
    source = """
mounted, original = (open(path, 'rb') for path in arguments[:2])
while part := original.read(1 << 20):
    if mounted.read(len(part)) != part:
        break
else:
    part = None
rest = mounted.read()
answer(part is None and len(rest) == int(arguments[2]) + 512 and not any(rest[:-512]))
"""
    return bool(ask(scope, source, file, disk.path, str(disk.served_length - disk.length), timeout=timeout))


def start_server(
    scope: Scope, fault: str, store: Path, target: Path, switch: Path, options: Sequence[Argument] = ()
) -> tuple["Popen[bytes]", Path]:
    """Serve a store with a fault; returns the process and its log. The fault shows only while `switch` exists."""
    log = scope.path("log") / "server.log"
    argv: list[Argument] = [sys.executable, SERVER, fault, "mount", *options, store, target]
    server = scope.start(argv, log=log, env={"FAULT_SWITCH": str(switch)})
    assert wait_until(lambda: server.poll() is not None or bool(mounts_below(target)), 20.0), log.read_text()
    assert server.poll() is None, log.read_text()
    return server, log


def end(server: "Popen[bytes]", limit: float = 15.0) -> int:
    """Ask a server to end, and its exit code."""
    server.terminate()
    return server.wait(limit)
