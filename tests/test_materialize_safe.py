"""What a freeze promises whatever happens: whole files or none at 100 moments, on XFS after a shutdown, and for two at once.

Not for: single troubles (test_materialize_trouble), sharing (test_materialize). Expected values: the original disk, XFS
itself after a shutdown, the kernel's own read-only mounts. Units: bytes.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from lab import Lab, Scope
from makedisk import OriginalDisk
from makestore import Image, Store
from onmount import read_right
from processes import Argument, wait_until

EXISTS = TARGET_FAILED = 8


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    with lab.scope("safe") as scope:
        yield sampledisks.small_ntfs_disk(scope.path() / "original.img")


def back_up(mounted: Path, disk: OriginalDisk) -> tuple[Image, Path]:
    """An image, and a directory beside its store."""
    image = Store(mounted / "urbackup").client("pc").backup(disk, 1)
    out = mounted / "out"
    out.mkdir()
    subprocess.run(["sync", "-f", mounted], check=True)
    return image, out


def made(scope: Scope, filesystem: str) -> Path:
    return scope.btrfs() if filesystem == "btrfs" else scope.xfs()


def command(image: Image, out: Path, *options: str) -> list[Argument]:
    return [sys.executable, "-m", "synthfs", "materialize", image.raw, "-o", out, *options]


@pytest.mark.parametrize(
    ("filesystem", "times"),
    [("xfs", 10), pytest.param("btrfs", 100, marks=pytest.mark.slow), pytest.param("xfs", 100, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment(scope: Scope, disk: OriginalDisk, filesystem: str, times: int) -> None:
    """SIGKILL at that many moments leaves nothing or the whole file, and nothing else: at random times, not at system calls."""
    image, out = back_up(made(scope, filesystem), disk)
    name = f"{image.raw.stem}.vhd"
    began = time.monotonic()
    scope.run(command(image, out, "--reflink", "never"))
    whole = time.monotonic() - began
    (out / name).unlink()
    dice, left = random.Random(20260301), 0
    for number in range(times):
        child = subprocess.Popen(command(image, out, "--reflink", "never"), env=scope.environment, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.2, 1.2) * whole)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        found = [path.name for path in out.iterdir()]
        assert found in ([], [name]), number
        if found:
            left += 1
            assert read_right(scope, out / name, disk)
            (out / name).unlink()
    print(f"{filesystem}: killed {times} times, {left} whole files")


@pytest.mark.parametrize("call", ["linkat", "fsync"])
def test_power_cut(scope: Scope, disk: OriginalDisk, call: str) -> None:
    """XFS that is shut down as if the power failed: a file that has its name is whole when it comes back."""
    need.tool("strace", "xfs_io")
    file = scope.sparse(512 << 20, "xfs")
    scope.run(["mkfs.xfs", "-q", "-m", "reflink=1", file])
    device = scope.loop(file)
    mounted = scope.mount(device, scope.path("mnt"), fstype="xfs")
    image, out = back_up(mounted, disk)
    name = f"{image.raw.stem}.vhd"
    log = scope.path() / "strace.log"
    # Stopped when the link is made but not yet on disk, or, with `fsync`, when everything is.
    strace: list[Argument] = ["strace", "-f", "-o", log, "-P", out, "-e", f"trace={call}"]
    run = scope.start([*strace, "-e", f"inject={call}:signal=SIGSTOP:delay_exit=1", *command(image, out)])
    stopped = re.compile(r"^(\d+) +--- stopped by SIGSTOP ---$", re.MULTILINE)
    assert wait_until(lambda: log.exists() and bool(stopped.search(log.read_text())), 30.0)
    found = stopped.search(log.read_text())
    assert found
    if call == "fsync":
        os.kill(int(found[1]), signal.SIGCONT)
        assert run.wait(30) == 0
    else:
        pid = int(found[1])
    scope.run(["xfs_io", "-x", "-c", "shutdown", mounted])
    if call == "linkat":
        os.kill(pid, signal.SIGKILL)
        run.wait(30)
    scope.umount(mounted)
    scope.mount(device, mounted, fstype="xfs")
    left = [path.name for path in out.iterdir()]
    assert left in ([], [name])
    if call == "fsync":
        assert left == [name]
    if left:
        assert read_right(scope, out / name, disk)


@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_two_at_once(scope: Scope, disk: OriginalDisk, filesystem: str) -> None:
    """Of two runs for one name one makes the file, and the other says that it is there."""
    image, out = back_up(made(scope, filesystem), disk)
    log = scope.path() / "log"
    both = [scope.start(command(image, out, "--reflink", "never"), log=log) for _ in range(2)]
    codes = sorted(run.wait(60) for run in both)
    assert codes == [0, EXISTS], log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("synthfs:")]
    assert "exists already" in line
    assert [path.name for path in out.iterdir()] == [f"{image.raw.stem}.vhd"]
    assert read_right(scope, out / f"{image.raw.stem}.vhd", disk)


@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_full(scope: Scope, disk: OriginalDisk, filesystem: str) -> None:
    """A disk that somebody else fills up in the middle of a copy: one line, and nothing is left."""
    need.tool("strace")
    mounted = made(scope, filesystem)
    image, out = back_up(mounted, disk)
    log, trace = scope.path() / "log", scope.path() / "strace.log"
    strace: list[Argument] = ["strace", "-f", "-o", trace, "-e", "trace=pwrite64"]
    inject = ["-e", "inject=pwrite64:signal=SIGSTOP:when=2"]
    run = scope.start([*strace, *inject, *command(image, out, "--reflink", "never")], log=log)
    stopped = re.compile(r"^(\d+) +--- stopped by SIGSTOP ---$", re.MULTILINE)
    assert wait_until(lambda: trace.exists() and bool(stopped.search(trace.read_text())), 30.0), log.read_text()
    found = stopped.search(trace.read_text())
    assert found
    filler = mounted / "filler"
    for size in ("1M", "4k"):
        scope.run(["dd", "if=/dev/zero", f"of={filler}", f"bs={size}", "conv=notrunc,fsync", "oflag=append"], check=False)
    os.kill(int(found[1]), signal.SIGCONT)
    assert run.wait(30) == TARGET_FAILED, log.read_text()
    (line,) = log.read_text().splitlines()
    assert "No space left" in line
    assert list(out.iterdir()) == []
    filler.unlink()
    scope.run(["sync", "-f", mounted])
    scope.run([*command(image, out)])
    assert read_right(scope, out / f"{image.raw.stem}.vhd", disk)


def test_store_that_is_read_only(scope: Scope, disk: OriginalDisk) -> None:
    """A store that is mounted read-only is enough: its data are shared, through another mount of the same file system."""
    mounted = scope.btrfs()
    image, out = back_up(mounted, disk)
    before = {path: path.stat() for path in image.directory.iterdir()}
    bound = scope.mount(mounted / "urbackup", options="bind")
    scope.run(["mount", "-o", "remount,bind,ro", bound])
    raw = bound / image.raw.relative_to(mounted / "urbackup")
    done = json.loads(scope.synthfs("materialize", raw, "-o", out, "--json").stdout)
    assert done["cloned"] > 0
    assert read_right(scope, out / f"{image.raw.stem}.vhd", disk)
    after = {path: path.stat() for path in image.directory.iterdir()}
    assert {path: (at.st_mtime_ns, at.st_ctime_ns) for path, at in after.items()} == {
        path: (at.st_mtime_ns, at.st_ctime_ns) for path, at in before.items()
    }


class TestWithoutNamelessFiles:
    """A draft has a temporary name where there is no O_TMPFILE."""

    def test_left_over(self, scope: Scope, disk: OriginalDisk) -> None:
        """On ntfs-3g, what a killed run leaves is removed by the next, and what others are at is not."""
        need.fuse()
        need.tool("strace", "mkntfs", "ntfs-3g")
        image, _ = back_up(scope.path("plain"), disk)
        file = scope.sparse(256 << 20, "ntfs")
        scope.run(["mkntfs", "-q", "-F", "-f", file])
        out = scope.mount(scope.loop(file), scope.path("ntfs"), fstype="ntfs-3g")
        argv = command(image, out, "--reflink", "auto")
        strace: list[Argument] = ["strace", "-f", "-o", "/dev/null", "-e", "inject=pwrite64:signal=SIGKILL:when=2"]
        scope.run([*strace, *argv], check=False)
        (left,) = out.iterdir()
        assert re.fullmatch(r"\.synthfs-\d+-[0-9a-f]+", left.name)
        alive = out / f".synthfs-{os.getpid()}-01234567"
        alive.write_text("of a process that is there")
        (out / ".synthfs-notes").write_text("of somebody else")
        name = f"{image.raw.stem}.vhd"
        for options in ([], ["--force"]):
            scope.run([*argv, *options])
            assert sorted(path.name for path in out.iterdir()) == sorted([alive.name, ".synthfs-notes", name])
            assert read_right(scope, out / name, disk)
        done = scope.run(argv, check=False)
        assert (done.returncode, "exists already" in done.stderr) == (EXISTS, True)

    def test_without_links(self, scope: Scope, disk: OriginalDisk) -> None:
        """Where there are no hard links either, the name is given by renaming, which never replaces a file."""
        need.tool("strace")
        image, out = back_up(scope.btrfs(), disk)
        name, log = f"{image.raw.stem}.vhd", scope.path() / "strace.log"
        strace: list[Argument] = ["strace", "-f", "-o", log, "-P", out, "-e", "trace=openat,linkat,renameat2,unlinkat"]
        # The second time that the directory is opened is for the nameless file.
        strace += ["-e", "inject=openat:error=EOPNOTSUPP:when=2", "-e", "inject=linkat:error=EPERM"]
        scope.run([*strace, *command(image, out)])
        assert "RENAME_NOREPLACE" in log.read_text()
        assert [path.name for path in out.iterdir()] == [name]
        assert read_right(scope, out / name, disk)
        (out / name).unlink()
        # Somebody else makes a file of that name at the last moment.
        script = f"sleep 0.2; while ! ls -A {out} | grep -q synthfs; do :; done; echo precious > {out / name}"
        other = scope.start(["sh", "-c", script])
        strace[-1] = "inject=linkat:error=EPERM:delay_enter=2000000"
        done = scope.run([*strace, *command(image, out)], check=False)
        other.wait(10)
        assert (done.returncode, (out / name).read_text()) == (EXISTS, "precious\n")
        assert [path.name for path in out.iterdir()] == [name]


def test_dry_run_says_what_goes_where(scope: Scope, disk: OriginalDisk) -> None:
    """Every extent of the file is named once, in order, with what becomes of it; the new space is that of the real run."""
    image, out = back_up(scope.btrfs(), disk)
    planned = json.loads(scope.synthfs("materialize", image.raw, "-o", out, "--dry-run", "--json").stdout)
    lines = scope.synthfs("materialize", image.raw, "-o", out, "--dry-run").stdout.splitlines()
    steps = planned["steps"]
    assert [(int(line.split()[0]), int(line.split()[1]), line.split()[2]) for line in lines] == [
        (step["offset"], step["length"], step["do"]) for step in steps
    ]
    end = 0
    for step in steps:
        assert step["offset"] == end
        end += step["length"]
    assert end == planned["length"] == disk.length + 512
    clone = max((step for step in steps if step["do"] == "clone"), key=lambda step: step["length"])
    # The volume begins 512 KiB into its image, and at its partition's place on the disk.
    assert clone["offset"] - clone["source_offset"] == disk.partition(1).start - 512 * 1024
    assert clone["source"].endswith(image.raw.name)
    done = json.loads(scope.synthfs("materialize", image.raw, "-o", out, "--json").stdout)
    assert done["steps"] == steps
    scope.run(["sync", "-f", out])
    usage = scope.run(["btrfs", "filesystem", "du", "--raw", out / f"{image.raw.stem}.vhd"]).stdout.splitlines()[-1].split()
    assert done["new_space"] == int(usage[1])
    assert planned["new_space"] == done["new_space"]
