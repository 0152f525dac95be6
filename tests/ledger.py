"""What a run of the tests has on the machine, and how to take it down when the run is dead.

Not for: making things; `lab` does. A run owns one directory with a random name and records there what it is about to
make, so that a run that died by SIGKILL can be cleaned up by the next one. Loop devices and mounts are made only
below that directory, which is their identity; processes are known by pid and start time, or by the directory's name
in their environment. What belongs to a living run is never touched.

A ledger says what to kill and unmount, so only one that nobody else could have written is believed: in a directory that belongs
to this user and that others may not write to.
Source: proc(5) for mountinfo, losetup(8); /sys/fs/fuse/connections/N/abort in the kernel's fuse documentation.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import CommandTimeoutError, Identity, boot, marked, run, wait_until

NAME = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    target: Path
    fstype: str
    source: str
    minor: int
    """Minor device number; for FUSE it is the number of the connection."""

    def __str__(self) -> str:
        return f"mount {self.target} ({self.fstype})"


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop device in use, with the file behind it."""

    device: str
    backing: Path

    def __str__(self) -> str:
        return f"loop device {self.device} ({self.backing})"


class ForeignDirectoryError(AssertionError):
    """Somebody else could have made what lies in a directory of the tests."""


def own_directory(place: Path) -> Path:
    """Makes `place` where it is not there, and returns it with its parents resolved.

    Raises ForeignDirectoryError where it is a link or no directory, belongs to another user, or others may write to it: in
    /var/tmp anybody may have made it before.
    """
    place = place.parent.resolve() / place.name
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Others may enter: tests run commands as other users.
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o755)
    if not _is_own(os.lstat(place), stat.S_IFDIR):
        raise ForeignDirectoryError(f"{place} is not a directory that belongs to this user alone; look at it, and remove it")
    return place


def _is_own(found: os.stat_result, kind: int) -> bool:
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not found.st_mode & 0o022


class Ledger:
    """The record of one run: JSON lines, written before a thing is made and after it is gone."""

    def __init__(self, directory: Path) -> None:
        self._file = (directory / NAME).open("a", encoding="utf-8")

    def write(self, event: str, kind: str, **identity: str | int) -> None:
        self._file.write(json.dumps({"event": event, "kind": kind, **identity}) + "\n")
        self._file.flush()

    def process(self, kind: str, identity: Identity) -> None:
        self.write("made", kind, pid=identity.pid, start=identity.start, boot=identity.boot)

    def close(self) -> None:
        self._file.close()


def mounts_below(directory: Path) -> list[Mount]:
    """Mounts at or below a directory, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, source, *_) = before.split(), after.split()
        target = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if target.is_relative_to(directory):
            found.append(Mount(target, fstype, source, int(fields[2].partition(":")[2])))
    return found


def loops_below(directory: Path) -> list[Loop]:
    """Loop devices whose file lies below a directory, also when that file is deleted meanwhile."""
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        # A device may vanish while we look.
        with contextlib.suppress(OSError):
            backing = Path(entry.read_text().rstrip("\n").removesuffix(" (deleted)"))
            if backing.is_relative_to(directory):
                found.append(Loop(f"/dev/{entry.parts[3]}", backing))
    return found


def unmount(mount: Mount, limit: float = 20.0) -> None:
    """Unmount; what is busy or hangs is detached lazily, and a FUSE connection that hangs is aborted first."""

    def done(*options: str) -> bool:
        program = ["umount", "--no-canonicalize"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        argv = [*program, *options, str(mount.target)]
        with contextlib.suppress(CommandTimeoutError):
            return run(argv, timeout=limit, check=False).returncode == 0
        return False

    if wait_until(lambda: mount not in mounts_below(mount.target) or done(), 3.0, pause=0.2):
        return
    if mount.fstype.startswith("fuse"):
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{mount.minor}/abort").write_text("1")
    done("-l" if os.geteuid() == 0 else "-z")


def detach(loop: Loop) -> None:
    """Free a loop device and wait until the kernel has let go of it."""
    run(["losetup", "--detach", loop.device], timeout=20.0, check=False)
    wait_until(lambda: loop not in loops_below(loop.backing), 5.0)


def remains(directory: Path) -> list[str]:
    """What a run still has on the machine, in words."""
    found = [*_processes(directory), *mounts_below(directory), *loops_below(directory)]
    return [str(one) for one in found]


def remove(directory: Path) -> list[str]:
    """Take down everything that a run has on the machine, and its directory; returns what resisted."""
    for process in _processes(directory):
        process.terminate()
    for mount in reversed(mounts_below(directory)):
        unmount(mount)
    for loop in loops_below(directory):
        detach(loop)
    left = remains(directory)
    # Never delete through a mount that resisted.
    if not mounts_below(directory):
        shutil.rmtree(directory, ignore_errors=True)
    return left


def sweep(base: Path) -> list[str]:
    """Remove what dead runs left below `base`, an `own_directory`; returns what resisted."""
    left = []
    for directory in sorted(base.glob("*-*")):
        # Two runs that start together must not both clean: the second finds the ledger locked and moves on.
        with contextlib.suppress(OSError), open(directory / NAME, "rb", opener=_without_links) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owned = _is_own(os.lstat(directory), stat.S_IFDIR) and _is_own(os.fstat(file.fileno()), stat.S_IFREG)
            if owned and _owner_is_dead(directory):
                left += remove(directory)
    return left


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _owner_is_dead(directory: Path) -> bool:
    owner = next((identity for kind, identity in _recorded(directory) if kind == "run"), None)
    return owner is not None and not owner.alive


def _processes(directory: Path) -> list[Identity]:
    started = {identity for kind, identity in _recorded(directory) if kind == "process"}
    return [one for one in started | set(marked(directory)) if one.alive and one.pid != os.getpid()]


def _recorded(directory: Path) -> Iterator[tuple[str, Identity]]:
    """The processes in a ledger; a last line cut short by the run's death is no record."""
    with contextlib.suppress(FileNotFoundError):
        for line in (directory / NAME).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if entry["kind"] in ("run", "process"):
                    # Ledgers did not always have the boot; it is never safe to take a living run for a dead one.
                    yield entry["kind"], Identity(entry["pid"], entry["start"], entry.get("boot", boot()))
