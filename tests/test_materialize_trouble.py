"""Freezing a disk while the world changes: backups deleted or changed, space running out, the process killed.

strace makes the moments exact: it stops, fails or kills the process at a chosen system call.
Not for: a freeze that nothing disturbs (test_materialize). Units: bytes.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from lab import Lab, Scope
from makedisk import OriginalDisk
from makestore import Image, Store
from onmount import read_right
from processes import Argument, wait_until

SOURCE_CHANGED, TARGET_FAILED = 6, 8
MODES = ["always", "never"]
WRITES = ("open", "openat", "openat2", "creat")


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    need.tool("strace")
    with lab.scope("trouble") as scope:
        yield sampledisks.gpt_disk(scope.path() / "original.img")


@pytest.fixture(scope="module")
def mounted(lab: Lab) -> Iterator[Path]:
    """A BTRFS for all tests of this module: each has a client of its own in it."""
    with lab.scope("trouble-btrfs") as scope:
        yield scope.btrfs(1 << 30)


def back_up(mounted: Path, disk: OriginalDisk, client: str, *, plain: bool = False) -> list[Image]:
    """ESP, C: and D: of the disk; C: is the first of the list."""
    backup = Store(mounted / "urbackup").client(client).backup
    found = [backup(disk, n, letter, layout="plain" if plain else "auto") for n, letter in ((3, "C"), (1, "SYSVOL"), (4, "D"))]
    subprocess.run(["sync", "-f", mounted], check=True)
    return found


def command(image: Image, out: Path, *options: str) -> list[Argument]:
    return [sys.executable, "-m", "synthfs", "materialize", image.raw, "-o", out, *options]


def stopped(scope: Scope, image: Image, out: Path, mode: str, call: str) -> "tuple[subprocess.Popen[bytes], int, Path]":
    """A freeze that has stopped at a system call: strace's process, the one to continue, and its log."""
    log, trace = scope.path("log") / "materialize.log", scope.path("trace") / "strace.log"
    strace: list[Argument] = ["strace", "-f", "-o", trace, "-e", f"trace={call.split(':')[0]}", "-e"]
    argv = command(image, out, "--reflink", mode)
    child = scope.start([*strace, f"inject={call}:signal=SIGSTOP", *argv], log=log)
    found: list[int] = []

    def has_stopped() -> bool:
        seen = trace.read_text(errors="replace") if trace.exists() else ""
        found.extend(int(pid) for pid in re.findall(r"^(\d+) +--- stopped by SIGSTOP ---$", seen, re.MULTILINE))
        return bool(found) or child.poll() is not None

    assert wait_until(has_stopped, 30.0), log.read_text()
    assert child.poll() is None, log.read_text()
    return child, found[0], log


def go_on(child: "subprocess.Popen[bytes]", pid: int) -> int:
    os.kill(pid, signal.SIGCONT)
    return child.wait(60)


class TestChangesUnderneath:
    @pytest.mark.parametrize(("mode", "call"), [("always", "pwrite64:when=1"), ("never", "pwrite64:when=12")])
    def test_deleted_while_in_progress(
        self, scope: Scope, mounted: Path, disk: OriginalDisk, mode: str, call: str
    ) -> None:
        """A freeze that has begun finishes, and is right, when UrBackup deletes all its subvolumes."""
        images = back_up(mounted, disk, f"deleted-{mode}")
        out = scope_out(mounted, f"out-deleted-{mode}")
        child, pid, log = stopped(scope, images[0], out, mode, call)
        assert list(out.iterdir()) == []
        for image in images:
            scope.run(["btrfs", "subvolume", "delete", "--commit-after", image.directory])
        scope.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"])
        assert go_on(child, pid) == 0, log.read_text()
        assert read_right(scope, out / f"{images[0].raw.stem}.vhd", disk)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("change", ["touched", "written", "grown"])
    def test_changed_while_in_progress(
        self, scope: Scope, mounted: Path, disk: OriginalDisk, mode: str, change: str
    ) -> None:
        """A backup that changes meanwhile is an error that names it, and nothing is published."""
        images = back_up(mounted, disk, f"{change}-{mode}", plain=True)
        out = scope_out(mounted, f"out-{change}-{mode}")
        child, pid, log = stopped(scope, images[0], out, mode, "pwrite64:when=2")
        raw = images[2].raw
        before = raw.stat()
        match change:
            case "touched":
                os.utime(raw, ns=(0, before.st_mtime_ns + 1))
            case "written":
                with raw.open("r+b") as file:
                    file.seek(1 << 20)
                    file.write(b"other bytes")
            case "grown":
                os.truncate(raw, before.st_size + 4096)
                os.utime(raw, ns=(0, before.st_mtime_ns))
        assert go_on(child, pid) == SOURCE_CHANGED
        (line,) = log.read_text().splitlines()
        assert raw.name in line
        assert list(out.iterdir()) == []


class TestSpace:
    def test_too_small(self, scope: Scope, mounted: Path, disk: OriginalDisk) -> None:
        """A disk that will not fit is refused with one line, before anything is written."""
        image = back_up(mounted, disk, "too-small")[0]
        out = scope.ext4(8 << 20)
        free = shutil.disk_usage(out).free
        done = scope.run(command(image, out, "--reflink", "auto"), check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (TARGET_FAILED, 1), done.stderr
        assert str(out) in done.stderr
        assert "free" in done.stderr
        assert [path.name for path in out.iterdir()] == ["lost+found"]
        assert shutil.disk_usage(out).free == free

    @pytest.mark.parametrize("call", ["pwrite64:error=ENOSPC:when=5", "pwrite64:error=EIO:when=2", "fsync:error=EIO:when=1"])
    def test_runs_out(self, scope: Scope, mounted: Path, disk: OriginalDisk, call: str) -> None:
        """Space that runs out, or a disk that fails, in the middle: one line, and nothing is left."""
        image = back_up(mounted, disk, f"runs-out-{call[:8]}-{call[-1]}")[0]
        out = scope.ext4()
        free = shutil.disk_usage(out).free
        strace: list[Argument] = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={call}"]
        done = scope.run([*strace, *command(image, out, "--reflink", "auto")], check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (TARGET_FAILED, 1), done.stderr
        assert f"{image.raw.stem}.vhd" in done.stderr
        assert [path.name for path in out.iterdir()] == ["lost+found"]
        assert wait_until(lambda: shutil.disk_usage(out).free == free, 5.0)


class TestPublishing:
    @pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
    def test_order(self, scope: Scope, mounted: Path, disk: OriginalDisk, filesystem: str) -> None:
        """The file is complete and on disk before it gets its name, and the name is on disk before the end."""
        place = mounted if filesystem == "btrfs" else scope.xfs()
        image = back_up(place, disk, "order")[0]
        out = scope_out(place, "out-order")
        calls = traced(scope, command(image, out), "pwrite64,ioctl,fsync,fdatasync,link,linkat,rename,renameat2")
        name = f"{image.raw.stem}.vhd"
        (last_data,) = [n for n, line in enumerate(calls) if re.match(r"(pwrite64|ioctl\(.*FICLONERANGE)", line)][-1:]
        (of_file,) = [n for n, line in enumerate(calls) if re.match(rf"fsync\(\d+<{out}/#", line)]
        (link,) = [n for n, line in enumerate(calls) if line.startswith("linkat(") and f'"{name}"' in line]
        (of_directory,) = [n for n, line in enumerate(calls) if re.match(rf"fsync\(\d+<{out}>\)", line)]
        assert last_data < of_file < link < of_directory
        assert all(calls[n].endswith("= 0") for n in (of_file, link, of_directory))

    def test_sources_are_read_only(self, scope: Scope, mounted: Path, disk: OriginalDisk) -> None:
        """Nothing in the store is opened for writing, and nothing in it is changed by name; its attributes are not copied."""
        image = back_up(mounted, disk, "read-only", plain=True)[0]
        # Samba's, from which Windows would take the file for a sparse one, and not attach it.
        os.setxattr(image.raw, "user.DOSATTRIB", b"0x220\0")
        out = scope_out(mounted, "out-read-only")
        calls = traced(scope, command(image, out), "%file,%desc")
        store = mounted / "urbackup"
        opened = [line for line in calls if line.startswith(WRITES) and f"{store}/" in line]
        assert sum(f'{image.raw.name}"' in line and "O_RDONLY" in line for line in opened) >= 2, "a scan and the freeze"
        assert [line for line in opened if re.search("O_(WRONLY|RDWR|CREAT|TRUNC)", line)] == []
        changing = r"(unlink|rename|link|symlink|mkdir|rmdir|f?chmod|[fl]?chown|f?truncate|f?utime|[fl]?setxattr|mknod)"
        assert [line for line in calls if re.match(changing, line) and str(store) in line] == []
        assert os.listxattr(out / f"{image.raw.stem}.vhd") == []

    def test_killed(self, scope: Scope, mounted: Path, disk: OriginalDisk) -> None:
        """SIGKILL at ten moments leaves nothing, or, after the last step, the whole file."""
        image = back_up(mounted, disk, "killed")[0]
        name = f"{image.raw.stem}.vhd"
        everything = traced(scope, command(image, scope_out(mounted, "out-all"), "--reflink", "never"), "pwrite64")
        writes = sum(line.startswith("pwrite64") for line in everything)
        assert writes > 10
        dice = random.Random(20260301)
        moments = [f"pwrite64:when={n}" for n in sorted(dice.sample(range(1, writes + 1), 6))]
        moments += ["ftruncate:when=1", "fsync:when=1", "linkat:when=1", "fsync:when=2"]
        whole = []
        for number, moment in enumerate(moments):
            out = scope_out(mounted, f"out-killed-{number}")
            strace: list[Argument] = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={moment}:signal=SIGKILL"]
            done = scope.run([*strace, *command(image, out, "--reflink", "never")], check=False)
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (moment, done)
            left = [path.name for path in out.iterdir()]
            assert left in ([], [name]), moment
            if left:
                whole.append(moment)
                assert read_right(scope, out / name, disk)
        assert set(whole) <= {"linkat:when=1", "fsync:when=2"}

    @pytest.mark.parametrize("call", ["pwrite64:when=3", "fsync:when=1", "linkat:when=1"])
    def test_killed_while_replacing(self, scope: Scope, mounted: Path, disk: OriginalDisk, call: str) -> None:
        """With --force, SIGKILL leaves the old file whole under its name and nothing else."""
        image = back_up(mounted, disk, f"replacing-{call[:2]}")[0]
        out = scope_out(mounted, f"out-replacing-{call[:2]}")
        target = out / f"{image.raw.stem}.vhd"
        target.write_text("precious")
        strace: list[Argument] = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL"]
        done = scope.run([*strace, *command(image, out, "--force", "--reflink", "never")], check=False)
        assert done.returncode != 0
        assert [path.name for path in out.iterdir()] == [target.name]
        assert target.read_text() == "precious"


def scope_out(mounted: Path, name: str) -> Path:
    """A directory for results, on the file system of the backups."""
    directory = mounted / name
    directory.mkdir()
    return directory


def traced(scope: Scope, argv: list[Argument], calls: str) -> list[str]:
    """The system calls of a command that succeeds, with the paths of descriptors, each without the process's number."""
    log = scope.path("trace") / "strace.log"
    scope.run(["strace", "-f", "-y", "-s", "256", "-o", log, "-e", f"trace={calls}", *argv])
    clean: Callable[[str], str] = lambda line: re.sub(r"^\d+\s+", "", line)  # noqa: E731  # one use, and it needs a type
    return [clean(line) for line in log.read_text(errors="replace").splitlines()]
