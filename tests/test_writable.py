"""Disks that are written to: what one writes is there, for everybody and after a restart, and the backup never changes.

Not for: sessions and their end (test_sessions), what is killed (test_writable_killed), Samba (test_writable_smb). Expected
bytes: the original disk, or a copy of it that the kernel alone has written the same things to.
"""

import json
from collections.abc import Iterator

import pytest

import need
from lab import Lab, Scope
from onmount import Sample, ask
from processes import CommandFailedError
from writer import SPOT, Writer, same


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Writer]:
    """One store for tests that leave it as it was: each mount has a scratch directory of its own."""
    need.fuse()
    need.root()
    with lab.scope("writable") as scope:
        yield Writer.make(scope)


@pytest.fixture
def writer(scope: Scope, shared: Writer, request: pytest.FixtureRequest) -> Writer:
    scratch = shared.scratch.with_name(f"scratch-{scope.directory.name}")
    scratch.mkdir()
    return Writer(scope, shared.sample, scratch)


@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_there_and_back(scope: Scope, filesystem: str) -> None:
    """Written, read back, through an older handle and an mmap too, after a restart, and discarded: the backup's bytes again."""
    need.fuse()
    writer = Writer.make(scope, filesystem)
    sums, model = writer.sums(), writer.model()
    target = writer.mount()
    file = target / Sample.C
    source = """
import mmap
path, model, original, spot = arguments[0], os.open(arguments[1], os.O_RDWR), opened(arguments[2]), int(arguments[3])
older = opened(path)
mapped = mmap.mmap(older, 0, prot=mmap.PROT_READ)
before = os.fstat(older)
untouched = [os.pread(older, 8192, spot), bytes(mapped[spot:spot + 8192])]
wanted = random.Random(8).randbytes(70001)
fd = os.open(path, os.O_RDWR)
for there in (fd, model):
    assert os.pwrite(there, wanted, spot) == len(wanted)
seen = [os.pread(fd, len(wanted), spot), os.pread(older, len(wanted), spot), bytes(mapped[spot:spot + len(wanted)])]
os.fsync(fd)
after = os.fstat(older)
answer([
    untouched == [os.pread(original, 8192, spot)] * 2, seen == [wanted] * 3,
    after.st_ino == before.st_ino, after.st_size == before.st_size, after.st_mtime > before.st_mtime + 1e6,
])
"""
    assert ask(scope, source, file, model, writer.sample.disk.path, str(SPOT)) == [True] * 5
    assert writer.left() == ["vhd"]
    assert same(scope, file, model)
    inode = file.stat().st_ino
    assert same(scope, target / Sample.D, writer.sample.disk.path)
    target = writer.remount(target)
    assert file.stat().st_ino == inode
    assert same(scope, file, model)
    scope.synthfs("discard", file)
    assert same(scope, file, writer.sample.disk.path)
    assert file.stat().st_ino != inode
    inode = file.stat().st_ino
    assert writer.left() == ["gone"]
    target = writer.remount(target)
    assert file.stat().st_ino == inode
    assert same(scope, file, writer.sample.disk.path)
    assert writer.sums() == sums


class TestOperations:
    def test_refusals(self, scope: Scope, writer: Writer) -> None:
        """A fixed VHD keeps its length, names stay, texts cannot be written to; times are accepted, and stay."""
        target = writer.mount()
        source = """
root, path = arguments
fd, size = os.open(path, os.O_RDWR), os.stat(path).st_size
os.utime(path, (1, 1))
answer({
    'shorter': failure(os.ftruncate, fd, size - 512), 'longer': failure(os.truncate, path, size + 512),
    'same': failure(os.truncate, path, size), 'past the end': failure(os.pwrite, fd, b'x', size),
    'across the end': failure(os.pwrite, fd, bytes(1024), size - 512),
    'append': failure(os.write, os.open(path, os.O_WRONLY | os.O_APPEND), b'x'),
    'truncated': failure(os.open, path, os.O_RDWR | os.O_TRUNC), 'text': failure(os.open, root + '/README.txt', os.O_RDWR),
    'mode': failure(os.chmod, path, 0o600), 'owner': failure(os.chown, path, 1, 1), 'times': os.stat(path).st_mtime > 1e9,
    'create': failure(os.open, path + '.new', os.O_CREAT | os.O_WRONLY), 'unlink': failure(os.unlink, path),
    'rename': failure(os.rename, path, path + '.old'), 'mkdir': failure(os.mkdir, root + '/new'),
    'rmdir': failure(os.rmdir, root + '/pc'), 'link': failure(os.link, path, path + '.2'),
    'symlink': failure(os.symlink, 'x', root + '/x'), 'mknod': failure(os.mknod, root + '/fifo'),
    'directory': failure(os.fsync, os.open(root, os.O_RDONLY)), 'modes': [oct(os.stat(p).st_mode) for p in (root, path)],
})
"""
        found = ask(scope, source, target, target / Sample.C)
        named = ("truncated", "mode", "owner", "create", "unlink", "rename", "mkdir", "rmdir", "link", "symlink", "mknod")
        expected = dict.fromkeys(("shorter", "longer", *named), "EPERM")
        expected |= dict.fromkeys(("past the end", "across the end", "append"), "EFBIG")
        assert found == expected | {
            "same": None,
            "text": "EROFS",
            "times": True,
            "directory": None,
            "modes": ["0o40550", "0o100660"],
        }
        assert writer.left() == []

    def test_mapped_writing(self, scope: Scope, writer: Writer) -> None:
        """What is written through a shared mapping, or past the cache, is in the scratch file after msync, and read by all."""
        target, model = writer.mount(), writer.model()
        source = """
import mmap
path, model, spot = arguments[0], os.open(arguments[1], os.O_RDWR), int(arguments[2])
fd, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)
older = opened(path)
os.pread(older, 65536, spot)
for there in (fd, model):
    mapped = mmap.mmap(there, 0)
    mapped[spot + 5:spot + 9000] = b'm' * 8995
    mapped.flush()
page = mmap.mmap(-1, 8192)
page.write(b'd' * 8192)
for there in (direct, model):
    os.pwrite(there, page, spot + 16384)
answer([os.pread(older, 9000, spot) == os.pread(model, 9000, spot), os.pread(older, 8192, spot + 16384) == b'd' * 8192])
"""
        assert ask(scope, source, target / Sample.C, model, str(SPOT)) == [True, True]
        assert same(scope, target / Sample.C, model)
        target = writer.remount(target)
        assert same(scope, target / Sample.C, model)

    def test_first_writers_at_once(self, scope: Scope, writer: Writer) -> None:
        """Sixteen first writers, through handles of their own, freeze once, and all is there; reads go on meanwhile."""
        target, model = writer.mount("--log-level", "info"), writer.model()
        source = """
path, model, original, spot = arguments[0], os.open(arguments[1], os.O_RDWR), opened(arguments[2]), int(arguments[3])
go, wrong = threading.Barrier(32), []
def write(number):
    fd = os.open(path, os.O_RDWR)
    go.wait()
    for there in (fd, model):
        os.pwrite(there, bytes([number]) * 4096, spot + number * 8192)
def read(number):
    fd = opened(path)
    go.wait()
    for turn in range(20):
        part = os.pread(fd, 4096, spot + number * 8192)
        if part not in (os.pread(original, 4096, spot + number * 8192), bytes([number]) * 4096):
            wrong.append(number)
threads = [threading.Thread(target=task, args=(n,)) for n in range(1, 17) for task in (write, read)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(wrong)
"""
        assert ask(scope, source, target / Sample.C, model, writer.sample.disk.path, str(SPOT)) == []
        assert writer.left() == ["vhd"]
        assert sum(text.count("is written to, in") for _, text in scope.logs()) == 1
        assert same(scope, target / Sample.C, model)


class TestGrowth:
    @pytest.mark.parametrize(("form", "driver", "suffix"), [("vhdx", "vhdx", ".vhdx"), ("vhd-dynamic", "vpc", ".dynamic.vhd")])
    def test_containers_that_grow(self, scope: Scope, writer: Writer, form: str, driver: str, suffix: str) -> None:
        """What qemu writes where the container had nothing makes it longer; the disk is that of a raw file written alike."""
        need.tool("qemu-io", "qemu-img")
        target, model = writer.mount("--format", form), writer.model()
        file = target / Sample.C.replace(".vhd", suffix)
        length = file.stat().st_size
        # In the gap between C: and D:, in C:, and in the reserved partition, all of which are mostly holes.
        commands = [word for place in ("51M", "48M", "36M") for word in ("-c", f"write -P 0x5a {place} 1M")]
        for there, its in ((file, driver), (model, "raw")):
            scope.run(["qemu-io", "-f", its, *commands, "-c", "flush", there])
        assert file.stat().st_size > length
        scope.run(["qemu-img", "compare", "-f", driver, "-F", "raw", file, model])
        target = writer.remount(target, "--format", form)
        scope.run(["qemu-img", "compare", "-f", driver, "-F", "raw", file, model])
        source = """
path, grown = arguments[0], os.stat(arguments[0]).st_size
fd, older = os.open(path, os.O_RDWR), opened(path)
sizes = []
for size in (grown + 4096, 1000, 0, grown):
    os.ftruncate(fd, size)
    sizes.append(os.fstat(older).st_size - size)
os.pwrite(fd, b'end', grown)
end, beginning = os.pread(older, 10, grown).decode(), os.pread(older, 512, 0).count(0)
answer([sizes, end, beginning, failure(os.open, path, os.O_RDWR | os.O_TRUNC)])
"""
        assert ask(scope, source, file) == [[0] * 4, "end", 512, "EPERM"]
        scope.synthfs("discard", file)
        assert file.stat().st_size == length
        scope.run(["qemu-img", "compare", "-f", driver, "-F", "raw", file, writer.sample.disk.path])


    def test_text_of_a_vmdk(self, scope: Scope, writer: Writer) -> None:
        """A program may change the text and make it longer, up to 1 MiB: more is no description of a disk."""
        target = writer.mount("--format", "vmdk")
        text = (target / Sample.C).with_suffix(".vmdk")
        source = """
most, fd = 1 << 20, os.open(arguments[0], os.O_RDWR)
before = os.fstat(fd).st_size
answer([
    failure(os.ftruncate, fd, most + 1), failure(os.pwrite, fd, b'#', most), failure(os.pwrite, fd, b'#', 1 << 40),
    os.fstat(fd).st_size - before, failure(os.pwrite, fd, b'#', most - 1), failure(os.ftruncate, fd, most),
    os.fstat(fd).st_size, failure(os.pwrite, fd, b'#', most), failure(os.ftruncate, fd, before),
])
"""
        found = ask(scope, source, text)
        assert found == ["EFBIG", "EFBIG", "EFBIG", 0, None, None, 1 << 20, "EFBIG", None]
        target = writer.remount(target, "--format", "vmdk")
        assert ask(scope, "answer(failure(os.truncate, arguments[0], (1 << 20) + 1))", text) == "EFBIG"


class TestStart:
    """What makes a mount impossible is said before there is one."""

    @pytest.mark.parametrize(
        ("place", "words"),
        [
            ("missing", "mkdir -p"),
            ("store", "inside the store"),
            ("mount", "would hide"),
            ("elsewhere", "file system of the backups"),
            ("taken", "another mount"),
            ("open", "chmod go-w"),
        ],
    )
    def test_refused(self, scope: Scope, writer: Writer, place: str, words: str) -> None:
        """One line with the remedy, and nothing mounted."""
        target = scope.path("served")
        if place == "taken":
            writer.mount()
        if place == "open":
            writer.scratch.chmod(0o777)
        (target / "inside").mkdir()
        places = {
            "missing": writer.scratch / "missing",
            "store": writer.sample.root / "pc",
            "mount": target / "inside",
            "elsewhere": scope.path("elsewhere"),
            "taken": writer.scratch,
            "open": writer.scratch,
        }
        if place != "mount":
            (target / "inside").rmdir()
        with pytest.raises(CommandFailedError) as failed:
            scope.synthfs_mount(writer.sample.root, "--writable", places[place], target=target)
        (line,) = [line for line in str(failed.value).splitlines() if line.startswith("synthfs: ")]
        assert words in line

    def test_reading_costs_nothing(self, scope: Scope, writer: Writer) -> None:
        """Reading, and opening for writing, makes no session; a mount without --writable refuses as before."""
        target = writer.mount()
        source = "fd = os.open(arguments[0], os.O_RDWR); os.pread(fd, 1 << 20, 1 << 20); os.fsync(fd); os.close(fd); answer(0)"
        ask(scope, source, target / Sample.C)
        assert writer.left() == []
        assert json.loads((target / ".synthfs/status.json").read_text())["sessions"] == []
        plain = scope.synthfs_mount(writer.sample.root)
        assert ask(scope, "answer(failure(os.open, arguments[0], os.O_RDWR))", plain / Sample.C) == "EROFS"
        refused = scope.synthfs("discard", plain / Sample.C, check=False)
        assert (refused.returncode, "--writable" in refused.stderr) == (9, True)
