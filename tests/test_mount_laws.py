"""The laws of the mount: whatever goes wrong inside, it goes on serving; and it gives the right bytes or EIO.

Not for: the tree (test_mount_tree), or errors of the store that are seen before anybody reads (test_bad_input).
"""

import json
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from faulty_server import SLEEPY
from lab import Lab, Scope
from makeimage import HEADER
from onmount import FOOTER, Sample, ask, end, read_right, start_server
from processes import Argument, wait_until
from stock import STATUS

MIB = 1 << 20
IS_THERE = "answer(os.path.exists(arguments[0]))"
READ_ALL = "answer((os.stat(arguments[0]).st_ino, len(open(arguments[0], 'rb').read()) == os.path.getsize(arguments[0])))"


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.fuse()
    with lab.scope("laws") as scope:
        yield Sample.make(scope)


class TestBugs:
    """An exception that nobody expected is EIO for one caller and a traceback in the log, not the end of the mount."""

    @pytest.mark.parametrize(
        ("fault", "deed", "expected"),
        [
            ("bug:getattr", "os.stat(root)", "EIO"),
            ("bug:lookup", "os.stat(root + '/pc')", "EIO"),
            ("bug:opendir", "os.listdir(root)", "EIO"),
            ("bug:readdir", "os.listdir(root)", "EIO"),
            ("bug:statfs", "os.statvfs(root)", "EIO"),
            ("bug:open", "opened(file)", "EIO"),
            ("bug:read", "os.pread(opened(file, os.O_DIRECT), 1, MIB)", "EIO"),
            ("piece:open", "opened(file)", "EIO"),
            ("piece:try_read", "os.pread(opened(file), 1, MIB)", "EIO"),
            ("piece:read", "os.pread(opened(file), 1, MIB)", "EIO"),
            # Nobody waits for the answer to these.
            ("bug:releasedir", "os.listdir(root)", None),
            ("bug:release", "os.close(opened(file))", None),
            ("piece:close", "os.close(opened(file))", None),
            ("bug:forget", "(os.stat(file), drop_caches())", None),
        ],
    )
    def test_injected(self, scope: Scope, sample: Sample, fault: str, deed: str, expected: str | None) -> None:
        """The caller gets EIO, the log a traceback, and everybody else is served as before."""
        target, switch = scope.path("served"), scope.path() / "on"
        server, log = start_server(scope, fault, sample.root, target, switch)
        switch.touch()
        source = f"MIB = 1 << 20; root, file = arguments; answer(failure(lambda: {deed}))"
        assert ask(scope, source, target, target / sample.C) == expected
        assert wait_until(lambda: "injected into" in log.read_text(), 5.0)
        assert log.read_text().count("Traceback") >= 1
        switch.unlink()
        assert server.poll() is None, log.read_text()
        assert read_right(scope, target / sample.D, sample.disk)
        assert read_right(scope, target / sample.C, sample.disk)
        assert end(server) == 0


    def test_in_showing_what_was_found(self, scope: Scope, sample: Sample) -> None:
        """Where hole maps were gathered and the tree fails to grow, the mount serves what it has, and the rest later."""
        target, switch = scope.path("served"), scope.path() / "on"
        switch.touch()
        server, log = start_server(scope, "bug-grow:1", sample.root, target, switch, ("--format", "vhd", "--format", "vhdx"))
        assert wait_until(lambda: "injected into" in log.read_text(), 10.0)
        switch.unlink()
        assert read_right(scope, target / sample.C, sample.disk)
        server.send_signal(signal.SIGHUP)
        assert wait_until(lambda: ask(scope, IS_THERE, target / f"{sample.C}x"), 10.0)
        assert end(server) == 0


    def test_in_planning_what_nobody_has_looked_at(self, scope: Scope, sample: Sample) -> None:
        """Where the first whole tree fails, disks are served all the same, status tells, and a scan makes it good."""
        target, switch = scope.path("served"), scope.path() / "on"
        switch.touch()
        server, log = start_server(scope, "bug-grow:0", sample.root, target, switch)
        assert wait_until(lambda: "injected into" in log.read_text(), 10.0)
        assert read_right(scope, target / sample.C, sample.disk)
        told = "answer([json.load(open(arguments[0]))[name] for name in ('disks', 'failed_refreshes', 'refreshes')])"
        assert ask(scope, told, target / STATUS) == [0, 1, 0]
        switch.unlink()
        server.send_signal(signal.SIGHUP)
        assert wait_until(lambda: ask(scope, told, target / STATUS) == [2, 1, 1], 10.0)
        assert read_right(scope, target / sample.C, sample.disk)
        assert end(server) == 0


class TestHoleMaps:
    """They are kept in a cache, which may be lost, or never be there at all."""

    def test_that_are_lost(self, scope: Scope, sample: Sample) -> None:
        """A file that was listed can be opened, and is the one that it was."""
        caches, target = scope.path("caches"), scope.path("served")
        self._serve(scope, sample, target, caches)
        inode, _ = ask(scope, READ_ALL, target / f"{sample.C}x")
        for each in caches.glob("holes-*"):
            each.unlink()
        assert ask(scope, READ_ALL, target / f"{sample.C}x") == [inode, True]
        assert list(caches.glob("holes-*"))

    def test_that_cannot_be_kept(self, scope: Scope, sample: Sample) -> None:
        """They are found anew by each mount, and the files are there all the same."""
        blocked, target = scope.path() / "file", scope.path("served")
        blocked.touch()
        self._serve(scope, sample, target, blocked / "caches")
        _, is_whole = ask(scope, READ_ALL, target / f"{sample.C}x")
        assert is_whole

    def test_that_take_long_to_be_told(self, scope: Scope, sample: Sample) -> None:
        """The mount does not wait for them: it stands, and the files appear later."""
        target, switch = scope.path("served"), scope.path() / "on"
        switch.touch()
        server, _ = start_server(scope, "deaf-holes", sample.root, target, switch, ("--format", "vhd", "--format", "vhdx"))
        assert read_right(scope, target / sample.C, sample.disk)
        assert not ask(scope, IS_THERE, target / f"{sample.C}x")
        switch.unlink()
        assert wait_until(lambda: ask(scope, IS_THERE, target / f"{sample.C}x"), 10.0)
        assert end(server) == 0

    def _serve(self, scope: Scope, sample: Sample, target: Path, caches: Path) -> None:
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "mount", "--format", "vhdx", sample.root, target]
        scope.start(argv, env={"CACHE_DIRECTORY": str(caches)})
        assert wait_until(lambda: ask(scope, IS_THERE, target / f"{sample.C}x"), 10.0)


class TestWaiting:
    def test_slow_read_delays_nobody(self, scope: Scope, sample: Sample) -> None:
        """While one read sleeps for 5 seconds in its thread, another takes less than 50 ms, cached or not."""
        target, switch = scope.path("served"), scope.path() / "on"
        server, _ = start_server(scope, "sleep", sample.root, target, switch)
        switch.touch()
        source = """
file, raw, sleepy = arguments[0], opened(arguments[1]), int(arguments[2])
fd, took, returned = opened(file), [], []
os.sync()
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
sleeper = threading.Thread(target=lambda: returned.append(os.pread(fd, 4096, sleepy)))
sleeper.start()
time.sleep(0.3)
for number in range(60):
    offset = (58 << 20) + number * 262144
    if number % 2:
        forget(raw)
    began = time.perf_counter()
    os.pread(fd, 4096, offset)
    took.append(time.perf_counter() - began)
still = not returned
sleeper.join()
answer([took, still, len(returned[0])])
"""
        took, still_asleep, length = ask(scope, source, target / sample.C, sample.c.raw, str(SLEEPY))
        print(f"beside a read that sleeps: median {statistics.median(took) * 1000:.2f} ms, most {max(took) * 1000:.2f} ms")
        assert (still_asleep, length) == (True, 4096)
        assert statistics.median(took) < 0.05
        assert end(server) == 0

    def test_many_readers(self, scope: Scope, sample: Sample) -> None:
        """32 threads on two files, random places, odd lengths, with hits and misses mixed: every byte is right."""
        need.root()
        target = scope.path("served")
        server, log = start_server(scope, "count", sample.root, target, Path("/nonexistent"))
        source = """
c, d, original, *raws = arguments
length = os.stat(original).st_size
known, sources = opened(original), [opened(raw) for raw in raws]
files = [opened(path, flags) for path in (c, d) for flags in (0, os.O_DIRECT)]
sizes = (1, 511, 512, 4095, 4097, 65537, 131072, 1000003)
wrong, checked, stop = [], [], threading.Event()
os.sync()

def read(number):
    dice = random.Random(number)
    for _ in range(40):
        size = dice.choice(sizes)
        offset = dice.choice((dice.randrange(length), max(0, length - size), dice.randrange(1 << 20)))
        found = os.pread(dice.choice(files), size, offset)
        wanted = os.pread(known, size, offset)
        # Behind the disk comes the footer, which another test checks.
        if found[:len(wanted)] != wanted or len(found) != min(size, length + 512 - offset):
            wrong.append((offset, size))
        checked.append(len(found))

def disturb():
    while not stop.wait(0.002):
        forget(*sources, *files)

threads = [threading.Thread(target=read, args=(number,)) for number in range(32)]
disturber = threading.Thread(target=disturb)
for thread in (disturber, *threads):
    thread.start()
for thread in threads:
    thread.join()
stop.set()
disturber.join()
answer([wrong, len(checked), sum(checked)])
"""
        raws = [image.raw for image in (sample.c, sample.d, sample.system)]
        wrong, checked, total = ask(scope, source, target / sample.C, target / sample.D, sample.disk.path, *raws, timeout=90)
        assert wrong == []
        assert checked == 32 * 40
        end(server)
        seen = json.loads(log.read_text().splitlines()[-1])
        print(f"32 readers: {total} bytes in {seen['read']} requests, {seen['hit']} hits, {seen['missed']} misses")
        assert seen["hit"] > 0
        assert seen["missed"] > 0


class TestExact:
    READ = """
file, original, footer = arguments[0], opened(arguments[1]), int(arguments[2])
end = os.fstat(original).st_size
wrong = []
for flags in (0, os.O_DIRECT):
    fd = opened(file, flags)
    for border in map(int, arguments[3:]):
        for reach in (1, 7, 511, 4096, 70001):
            offset = max(0, border - reach)
            if flags == 0:
                forget(fd)
            found, wanted = os.pread(fd, 2 * reach, offset), os.pread(original, 2 * reach, offset)
            if found[:len(wanted)] != wanted or len(found) != min(2 * reach, end + footer - offset):
                wrong.append([flags, border, reach])
answer(wrong)
"""

    def test_borders(self, scope: Scope, sample: Sample) -> None:
        """Reads across every border between table, volume, gap and footer are right, cached and direct, odd and even."""
        disk = sample.disk
        volumes = [edge for part in disk.partitions for edge in (part.start, part.end)]
        ends = [part.start + disk.ntfs_length(part.number) for part in disk.partitions if part.fs == "ntfs"]
        backup_boot = [one + 512 for one in ends]
        tables = [512, 1024, 34 * 512, disk.length - 33 * 512, disk.length - 512, disk.length]
        borders = [str(one) for one in (*tables, *volumes, *ends, *backup_boot)]
        target = scope.synthfs_mount(sample.root)
        assert ask(scope, self.READ, target / sample.C, disk.path, str(FOOTER), *borders) == []

    def test_end_of_file(self, scope: Scope, sample: Sample) -> None:
        """A read that begins before the end gets what is there, one at or past it nothing."""
        target = scope.synthfs_mount(sample.root)
        source = """
answer([[len(os.pread(fd, 4096, int(arguments[1]) + past)) for past in (-4097, -4096, -513, -512, -1, 0, 1, 1 << 40)]
    for fd in (opened(arguments[0]), opened(arguments[0], os.O_DIRECT))])
"""
        expected = [4096, 4096, 513, 512, 1, 0, 0, 0]
        end_of_file = sample.disk.length + FOOTER
        assert ask(scope, source, target / sample.C, str(end_of_file)) == [expected, expected]


class TestChangedBackups:
    """A backup that is no longer what it was is EIO, never other bytes."""

    @pytest.mark.parametrize("cut", [HEADER + 20 * MIB + 1234, HEADER + 4096, 0])
    def test_truncated_while_open(self, scope: Scope, sample: Sample, cut: int) -> None:
        """What was cut off is EIO at once, the rest right or EIO, and the size stays what it was."""
        root = sample.copy(scope)
        target = scope.synthfs_mount(root)
        source = """
file, raw, original, start, cut = arguments[0], arguments[1], opened(arguments[2]), int(arguments[3]), int(arguments[4])
fd = opened(file)
os.pread(fd, 4096, start)
os.truncate(raw, cut)
forget(fd)
cut = max(0, cut - (512 << 10)) + start
wrong = []
def sweep(first):
    for offset in range(start, start + (40 << 20), 65536):
        got = []
        why = failure(lambda: got.append(os.pread(fd, 65536, offset)))
        # The kernel may give the pages before the first bad one.
        right = got and 0 < len(got[0]) <= cut - offset and os.pread(original, len(got[0]), offset) == got[0]
        if why != 'EIO' and not (first and right):
            wrong.append([first, offset, why])
sweep(True)
time.sleep(1.2)
forget(fd)
sweep(False)
answer([wrong[:9], os.fstat(fd).st_size, os.stat(file).st_size])
"""
        c = sample.disk.partition(3)
        raw = sample.raw(root, sample.c)
        found = ask(scope, source, target / sample.C, raw, sample.disk.path, str(c.start), str(cut))
        size = sample.disk.length + FOOTER
        assert found == [[], size, size]
        assert scope.server(target).poll() is None

    @pytest.mark.parametrize(
        "change",
        [
            "os.utime(raw, ns=(0, os.stat(raw).st_mtime_ns + 1))",
            "(lambda m: (os.truncate(raw, os.stat(raw).st_size + 512), os.utime(raw, ns=(m, m))))(os.stat(raw).st_mtime_ns)",
            "(subprocess.run(['cp', '-p', '--sparse=always', raw, raw + '.new'], check=True), os.rename(raw + '.new', raw))",
            "os.unlink(raw)",
            "(os.unlink(raw), os.mkfifo(raw))",
            "(os.rename(raw, raw + '.old'), os.symlink(raw + '.old', raw))",
        ],
        ids=["mtime", "size", "replaced", "gone", "fifo", "symlink"],
    )
    def test_changed_before_open(self, scope: Scope, sample: Sample, change: str) -> None:
        """A changed, replaced or vanished backup cannot be opened: EIO, one log line that names it, the others go on."""
        root = sample.copy(scope)
        target = scope.synthfs_mount(root)
        raw = sample.raw(root, sample.c)
        other = scope.synthfs_mount(sample.root)
        source = f"file, raw = arguments; {change}; answer(failure(os.open, file, os.O_RDONLY))"
        assert ask(scope, source, target / sample.C, raw) == "EIO"
        lines = [line for _, text in scope.logs() for line in text.splitlines() if raw.name in line]
        assert len(lines) == 1, lines
        assert str(raw) in lines[0]
        assert scope.server(target).poll() is None
        assert read_right(scope, other / sample.C, sample.disk)

    def test_deleted_subvolume(self, scope: Scope) -> None:
        """A backup that UrBackup deletes while somebody reads it stays readable to its end; nobody can open it anew."""
        need.root()
        sample = Sample.make(scope, scope.btrfs())
        target = scope.synthfs_mount(sample.root)
        source = """
file, original, *subvolumes = arguments
fd, known = opened(file), opened(original)
os.pread(fd, 1 << 20, 60 << 20)
for subvolume in subvolumes:
    subprocess.run(['btrfs', 'subvolume', 'delete', '--commit-after', subvolume], check=True, stdout=subprocess.DEVNULL)
drop_caches()
time.sleep(1.2)
right = all(os.pread(fd, 1 << 20, at) == os.pread(known, 1 << 20, at) for at in range(0, os.fstat(known).st_size, 1 << 20))
os.close(fd)
time.sleep(0.5)
answer([right, failure(os.open, file, os.O_RDONLY)])
"""
        deleted = [image.directory for image in (sample.c, sample.d, sample.system)]
        assert ask(scope, source, target / sample.C, sample.disk.path, *deleted) == [True, "EIO"]
        assert not sample.c.raw.exists()

    def test_resting(self, scope: Scope, sample: Sample) -> None:
        """Where open files are in UrBackup's way, an idle one is closed, opened again for a read, and EIO once gone."""
        root = sample.copy(scope)
        target = scope.path("served")
        server, log = start_server(scope, "rest", root, target, Path("/nonexistent"))
        source = """
file, original, raw, server = arguments
def held():
    links = f'/proc/{server}/fd/'
    return any(os.readlink(links + number) == raw for number in os.listdir(links) if os.path.lexists(links + number))
def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
fd, known = opened(file), opened(original)
def right():
    forget(fd)
    return os.pread(fd, 1 << 20, 60 << 20) == os.pread(known, 1 << 20, 60 << 20)
story = [right(), held(), until(lambda: not held()), right(), held(), until(lambda: not held())]
os.unlink(raw)
forget(fd)
answer([*story, failure(os.pread, fd, 1 << 20, 60 << 20)])
"""
        raw = sample.raw(root, sample.c)
        story = ask(scope, source, target / sample.C, sample.disk.path, raw, str(server.pid), timeout=60)
        assert story == [*[True] * 6, "EIO"]
        assert [str(raw) in line for line in log.read_text().splitlines() if raw.name in line] == [True]
