"""Writing when things go wrong below: whoever writes hears of it, in the words of his system call, and others go on.

Not for: processes that are killed (test_writable_killed). Expected values: the original disk, the kernel's errno, XFS itself.
"""

import json
import os

import pytest

import need
from lab import Scope
from onmount import Sample, ask, end, start_server
from processes import wait_until
from writer import MIB, SPOT, Writer, same

LEFT, STEP = 40 * MIB, 16 * MIB
"""What a mount may write in a test, and how much of that it does not use: docs/operations/writable.md has it."""

FILL = """
fill = os.open(arguments[-1], os.O_WRONLY | os.O_CREAT)
for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
    while not failure(os.posix_fallocate, fill, os.fstat(fill).st_size, size):
        pass
os.fsync(fill)
"""


@pytest.fixture
def writer(scope: Scope, request: pytest.FixtureRequest) -> Writer:
    need.fuse()
    need.root()
    return Writer.make(scope, getattr(request, "param", "xfs"))


@pytest.mark.parametrize("writer", ["btrfs", "xfs"], indirect=True)
class TestFull:
    """No space is ENOSPC for whoever needs some, and harms nothing else."""

    def test_first_write(self, scope: Scope, writer: Writer) -> None:
        """Where the freeze has no space the first write is ENOSPC, nothing is left, and with space the next one succeeds."""
        target, fill = writer.mount("--min-free", "0%"), writer.scratch.parent / "fill"
        source = """
found = [failure(os.pwrite, os.open(arguments[0], os.O_RDWR), b'x', int(arguments[1])) for _ in range(2)]
os.close(fill)
os.unlink(arguments[-1])
answer([*found, failure(os.pwrite, os.open(arguments[0], os.O_RDWR), b'x', int(arguments[1]))])
"""
        assert ask(scope, FILL + source, target / Sample.C, str(SPOT), fill) == ["ENOSPC", "ENOSPC", None]
        assert writer.left() == ["vhd"]
        assert same(scope, target / Sample.D, writer.sample.disk.path)

    def test_later(self, scope: Scope, writer: Writer) -> None:
        """A write without space is ENOSPC; what was written, other disks and backups stay right, and it goes on after."""
        target, fill = writer.mount("--min-free", "0%"), writer.scratch.parent / "fill"
        model, sums = writer.model(), writer.sums()
        source = """
path, model, spot = arguments[0], os.open(arguments[1], os.O_RDWR), int(arguments[2])
fd = os.open(path, os.O_RDWR)
for there in (fd, model):
    os.pwrite(there, b'first' * 1000, spot)
os.fsync(fd)
""" + FILL + """
at, why = 0, None
while at < 48 << 20 and why is None:
    done = []
    why = failure(lambda: done.append(os.pwrite(fd, b'n' * 65536, at)))
    at += sum(done)
os.pwrite(model, b'n' * at, 0)
os.close(fill)
os.unlink(arguments[-1])
for there in (fd, model):
    os.pwrite(there, b'again' * 100, spot + 65536)
answer([why, failure(os.fsync, fd)])
"""
        found = ask(scope, source, target / Sample.C, model, str(SPOT), fill, timeout=60)
        assert found == ["ENOSPC", None]
        assert same(scope, target / Sample.C, model)
        assert same(scope, target / Sample.D, writer.sample.disk.path)
        assert writer.sums() == sums


@pytest.mark.parametrize("writer", ["btrfs", "xfs"], indirect=True)
class TestMinFree:
    """Whoever writes to disks leaves a share of the file system to UrBackup, which deletes old backups where it is full."""

    def test_all_at_once(self, scope: Scope, writer: Writer) -> None:
        """Eight writers to two disks end in ENOSPC before the share is touched; others go on; with room it goes on.

        The share lacks no more than the file system's own tables, and no more than is said stays unused. The log has it once.
        """
        ballast = writer.scratch.parent / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 32 << 20)
        scope.run(["sync", "-f", ballast])
        there = os.statvfs(writer.scratch)
        reserved = there.f_bavail * there.f_frsize - LEFT
        target = writer.mount("--min-free", f"{reserved / (there.f_blocks * there.f_frsize) * 100:.6f}%")
        source = """
root, *paths = arguments
shown, refused, written = os.statvfs(root), [], []
def write(number):
    fd, page = os.open(paths[number % 2], os.O_RDWR), random.Random(number).randbytes(1 << 20)
    for at in range((2 + 15 * (number // 2)) << 20, (17 + 15 * (number // 2)) << 20, 1 << 20):
        done = []
        if why := failure(lambda: done.append(os.pwrite(fd, page, at))):
            refused.append(why)
        written.extend(done)
threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer([shown.f_bavail * shown.f_frsize, sorted(set(refused)), sum(written), os.statvfs(root).f_bavail * shown.f_frsize])
"""
        disks = target / Sample.C, target / Sample.D
        shown, refused, written, left = ask(scope, source, target, *disks, timeout=60)
        scope.run(["sync", "-f", writer.scratch])
        found = os.statvfs(writer.scratch)
        free = found.f_bavail * found.f_frsize
        print(f"of {shown >> 20} MiB {written >> 20} were written, and {(free - reserved) / MIB:.1f} are left above the share")
        assert shown <= LEFT
        assert refused == ["ENOSPC"]
        assert left <= STEP
        assert reserved - 4 * MIB <= free <= reserved + STEP + 4 * MIB
        first = "answer(failure(os.pwrite, os.open(arguments[0], os.O_RDWR), b'x', int(arguments[1])))"
        assert ask(scope, first, target / Sample.RENEWED, str(SPOT)) == "ENOSPC"
        assert writer.left() == ["vhd", "vhd"]
        (line,) = [line for _, text in scope.logs() for line in text.splitlines() if "--min-free" in line]
        assert "make room" in line
        ballast.unlink()
        scope.run(["sync", "-f", writer.scratch])
        assert ask(scope, first, target / Sample.RENEWED, str(SPOT)) is None
        assert ask(scope, first, target / Sample.C, str(SPOT)) is None


@pytest.mark.parametrize("text", ["ten", "100%", "nan"])
def test_min_free_is_a_percentage(scope: Scope, text: str) -> None:
    """As for `sync`: anything else is one line, before anything is mounted."""
    done = scope.synthfs("mount", scope.path(), scope.path(), "--min-free", text, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (8, 1), done.stderr


class TestDisk:
    def test_fsync_that_fails(self, scope: Scope, writer: Writer) -> None:
        """A failing fsync below is EIO for the writer, and so is each later one: to ask again brings nothing back."""
        need.tool("xfs_io")
        target = writer.mount()
        source = """
fd = os.open(arguments[0], os.O_RDWR)
os.pwrite(fd, b'lost' * 4096, int(arguments[1]))
subprocess.run(['xfs_io', '-x', '-c', 'shutdown', arguments[2]], check=True)
answer([failure(os.fsync, fd), failure(os.fdatasync, fd), failure(os.pwrite, fd, b'x', 0)])
"""
        assert ask(scope, source, target / Sample.C, str(SPOT), writer.scratch.parent) == ["EIO"] * 3
        assert scope.server(target).poll() is None

    def test_backup_that_changed(self, scope: Scope, writer: Writer) -> None:
        """A backup that is not what it was cannot be written to: EIO, and nothing is left of the attempt."""
        target = writer.mount()
        source = """
fd = os.open(arguments[0], os.O_RDWR)
os.utime(arguments[1], ns=(0, os.stat(arguments[1]).st_mtime_ns + 1))
answer(failure(os.pwrite, fd, b'x', int(arguments[2])))
"""
        assert ask(scope, source, target / Sample.C, writer.sample.c.raw, str(SPOT)) == "EIO"
        assert writer.left() == []


class TestWaiting:
    def test_slow_freeze(self, scope: Scope, writer: Writer) -> None:
        """A writer waits for its limit, then gets EIO, as do all who wait with it; readers are served; it freezes once."""
        target, switch = scope.path("served"), scope.path() / "on"
        server, log = start_server(
            scope, "slow-freeze", writer.sample.root, target, switch, ["--writable", writer.scratch, "--log-level", "info"]
        )
        switch.touch()
        source = """
path, other, original, spot = arguments[0], opened(arguments[1]), opened(arguments[2]), int(arguments[3])
fd, results, slow = os.open(path, os.O_RDWR), [], []
def write():
    began = time.monotonic()
    why = failure(os.pwrite, fd, b'x' * 512, spot)
    results.append([why, time.monotonic() - began < 2.5])
writers = [threading.Thread(target=write) for _ in range(4)]
[one.start() for one in writers]
while any(one.is_alive() for one in writers):
    began = time.monotonic()
    for file in (fd, other):
        forget(file)
        assert os.pread(file, 4096, spot + 65536) == os.pread(original, 4096, spot + 65536)
    slow.append(time.monotonic() - began)
time.sleep(3)
answer([results, len(slow) > 5, failure(os.pwrite, fd, b'x' * 512, spot), os.pread(fd, 512, spot) == b'x' * 512])
"""
        found = ask(scope, source, target / Sample.C, target / Sample.D, writer.sample.disk.path, str(SPOT))
        assert found == [[["EIO", True]] * 4, True, None, True]
        assert log.read_text().count("is written to, in") == 1
        assert writer.left() == ["vhd"]
        assert end(server) == 0

    def test_bug_in_a_freeze(self, scope: Scope, writer: Writer) -> None:
        """An exception that nobody expected is EIO for the writer and a traceback in the log; afterwards all is as before."""
        target, switch = scope.path("served"), scope.path() / "on"
        server, log = start_server(scope, "bug-freeze", writer.sample.root, target, switch, ["--writable", writer.scratch])
        switch.touch()
        source = "fd = os.open(arguments[0], os.O_RDWR); answer(failure(os.pwrite, fd, b'x', int(arguments[1])))"
        assert ask(scope, source, target / Sample.C, str(SPOT)) == "EIO"
        assert wait_until(lambda: "injected into begin" in log.read_text(), 5.0)
        switch.unlink()
        assert ask(scope, source, target / Sample.C, str(SPOT)) is None
        assert json.loads((target / ".synthfs/status.json").read_text())["bugs"] == 1
        assert end(server) == 0


def test_ntfsfix(scope: Scope, writer: Writer) -> None:
    """`ntfsfix`, writing, on a loop device over the mount does what it does to a copy of the original disk, and it stays."""
    need.tool("ntfsfix")
    target, model = writer.mount(), writer.model()
    c = writer.sample.disk.partition(3)
    for file in (model, target / Sample.C):
        with scope.scope("loop") as inner:
            device = inner.loop(file, part=(c.start, c.length))
            said = inner.run(["ntfsfix", device]).stdout
            assert "NTFS partition" in said
            assert "successfully" in said
            inner.run(["blockdev", "--flushbufs", device])
    assert model.read_bytes() != writer.sample.disk.path.read_bytes()
    assert same(scope, target / Sample.C, model)
    target = writer.remount(target)
    assert same(scope, target / Sample.C, model)
    assert same(scope, target / Sample.D, writer.sample.disk.path)


