"""The same disk, as others would serve it: each peer gets the original disk's bytes in the pieces that it can join.

    xmount                  head, volume and tail as three raw parts, shown as a VHD
    nbdkit + nbdfuse        the same three parts, by the split plugin, over a socket
    qemu-storage-daemon     cannot join: it exports a reflinked copy of the disk, as a FUSE file

Not for: synthfs itself (reading). Units: bytes. Source: xmount(1), nbdkit-split-plugin(1), nbdfuse(1), qemu-storage-daemon(1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rig import Rig
from lab import Scope
from processes import wait_until


@dataclass(frozen=True, slots=True)
class Pieces:
    """A disk as one file, and cut in three, so that the volume is one of the parts."""

    whole: Path
    head: Path
    volume: Path
    tail: Path


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is read: one file for each disk, where the data begin in it, and who serves it (nobody: a plain file)."""

    name: str
    files: tuple[Path, ...]
    offset: int
    backing: tuple[Path, ...]
    """The files whose page cache is behind it."""
    pids: tuple[int, ...] = ()


def peers(rig: Rig, scope: Scope, disks: Sequence[Pieces], offset: int) -> list[Contestant]:
    """Every peer that is installed, serving all `disks`, whose data begin at `offset`."""
    found = []
    kinds: list[tuple[str, tuple[str, ...], Callable[[Scope, Path, Pieces], Path]]] = [
        ("xmount", ("xmount",), _xmount),
        ("nbdkit + nbdfuse", ("nbdkit", "nbdfuse"), _nbdfuse),
        ("qemu-storage-daemon", ("qemu-storage-daemon",), _qemu),
    ]
    for name, tools, serve in kinds:
        if not rig.has(name, *tools):
            continue
        work = scope.path(name)
        files = tuple(serve(scope, _made(work / str(number)), disk) for number, disk in enumerate(disks))
        backing = tuple(disk.whole if serve is _qemu else disk.volume for disk in disks)
        found.append(Contestant(name, files, offset, backing, _pids(work)))
    return found


def _xmount(scope: Scope, work: Path, disk: Pieces) -> Path:
    target = _made(work / "mnt")
    parts = [word for piece in (disk.head, disk.volume, disk.tail) for word in ("--in", "raw", piece)]
    scope.run(["xmount", *parts, "--morph", "combine", "--out", "vhd", target])
    (file,) = (path for path in target.iterdir() if path.suffix == ".vhd")
    return file


def _nbdfuse(scope: Scope, work: Path, disk: Pieces) -> Path:
    socket, file = work / "socket", _made(work / "mnt") / "disk.img"
    scope.start(["nbdkit", "--foreground", "--readonly", "--unix", socket, "split", disk.head, disk.volume, disk.tail])
    assert wait_until(socket.exists, 10.0), scope.logs()[-1]
    scope.start(["nbdfuse", "--readonly", file, f"nbd+unix:///?socket={socket}"])
    assert wait_until(file.exists, 10.0), scope.logs()[-1]
    return file


def _qemu(scope: Scope, work: Path, disk: Pieces) -> Path:
    file = work / "disk.img"
    file.touch()
    blockdev = f"driver=file,node-name=disk,read-only=on,locking=off,filename={disk.whole}"
    export = f"type=fuse,id=export,node-name=disk,mountpoint={file}"
    scope.start(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export])
    assert wait_until(lambda: file.stat().st_size > 0, 10.0), scope.logs()[-1]
    return file


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _pids(work: Path) -> tuple[int, ...]:
    """Every process that names something below `work` on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{work}/".encode() in words:
                found.append(int(entry.name))
    return tuple(found)
