"""A store, a scratch directory beside it on the same file system, and mounts of the two that can be written to.

Not for: expectations; those are in the tests. A `model` is a copy of the original disk that gets the same writes from the
kernel alone. Units: bytes.
"""

import hashlib
import json
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import Scope
from makedisk import BASIC_DATA, ESP, MSR, OriginalDisk, Partition, make_disk
from makevolume import KnownFile
from onmount import FOOTER, Sample, ask, end
from processes import Argument
from sampledisks import GPT_BOOT_CODE

MIB = 1 << 20
_FEW = (KnownFile("resident.txt", 217), KnownFile("odd.bin", 70_001))
SPOT = 48 * MIB + 4096
"""A place in C: that its file system does not use."""


def small_disk(path: Path) -> OriginalDisk:
    """ESP, MSR, C: and D: as on a Windows machine, of 64 MiB: tests compare all of it again and again."""
    esp = Partition(1, MIB, 34 * MIB, ESP, "EFI system partition", fs="vfat", label="SYSTEM", files=_FEW)
    msr = Partition(2, 35 * MIB, 4 * MIB, MSR, "Microsoft reserved partition")
    c = Partition(3, 39 * MIB, 12 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows", files=_FEW)
    d = Partition(4, 53 * MIB, 8 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Daten", files=_FEW)
    return make_disk(path, esp, msr, c, d, length=64 * MIB, boot_code=GPT_BOOT_CODE)


@dataclass(frozen=True, slots=True)
class Writer:
    """One store that can be written to."""

    scope: Scope
    sample: Sample
    scratch: Path

    @classmethod
    def make(cls, scope: Scope, filesystem: str = "btrfs") -> "Writer":
        mounted = scope.btrfs() if filesystem == "btrfs" else scope.xfs()
        scratch = mounted / "scratch"
        scratch.mkdir(mode=0o700)
        return cls(scope, Sample.make(scope, mounted, make=small_disk), scratch)

    def mount(self, *options: Argument, target: Path | None = None) -> Path:
        return self.scope.synthfs_mount(self.sample.root, "--writable", self.scratch, *options, target=target)

    def remount(self, target: Path, *options: Argument) -> Path:
        assert end(self.scope.server(target)) == 0
        return self.mount(*options, target=target)

    def sums(self) -> dict[str, str]:
        """The SHA-256 of every image."""
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.sample.root.rglob("*.raw"))}

    def model(self) -> Path:
        """A copy of the original disk, to be written to."""
        copy = self.scope.path("model") / "disk.img"
        shutil.copyfile(self.sample.disk.path, copy)
        return copy

    def left(self) -> list[str]:
        """What is in the scratch directory, by kind: suffixes of what belongs to a session, whole names of the rest."""
        names = sorted(path.name for path in self.scratch.iterdir() if path.name != ".control")
        return [name.rpartition(".")[2] if name.startswith("Image_") else name for name in names]

    def sessions(self, target: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scope.synthfs("sessions", target, "--json").stdout)
        return found


def same(scope: Scope, file: Path, model: Path) -> bool:
    """Whether the disk in a mounted file is that of the model, past the kernel's cache and through it."""
    source = """
wanted, answers = open(arguments[1], 'rb').read(), []
for flags in (os.O_DIRECT, 0):
    fd = opened(arguments[0], flags)
    length = os.fstat(fd).st_size
    buffer = mmap.mmap(-1, 1 << 20)
    found = bytearray()
    while len(found) < length:
        found += buffer[:os.preadv(fd, (buffer,), len(found))]
    answers.append(found[:len(wanted)] == wanted and len(found) == len(wanted) + int(arguments[2]))
answer(answers)
"""
    return bool(ask(scope, f"import mmap\n{source}", file, model, str(FOOTER)) == [True, True])


def told(writer: Writer, **request: Any) -> Any:
    """The answer of the mount to a request, without the start of a program for it."""
    return told_at(writer.scratch, **request)


def told_at(scratch: Path, **request: Any) -> Any:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(scratch / ".control"))
        line.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(line.recv(65536) or b"{}")
