"""What a mount shows: the same names, inodes and attributes for ever, nothing to write to, and only to whom it may.

Not for: the bytes of the disks (test_crown), how a mount begins and ends (test_mount).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import need
from lab import Lab, Scope
from ledger import mounts_below
from onmount import FOOTER, Sample, ask, end, read_right, start_server
from processes import Argument

OWNER, GROUP = 4321, 8765
"""Of the store: of no user and no group that there is."""
LISTING = """
found = {}
for directory, names, files in os.walk(arguments[0]):
    for path in [directory] + [os.path.join(directory, name) for name in files]:
        seen, name = os.lstat(path), os.path.relpath(path, arguments[0])
        facts = [seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns]
        # What .synthfs says is about the process that serves.
        if not os.path.isdir(path) and not name.startswith('.synthfs/'):
            with open(path, 'rb') as file:
                facts.append(hashlib.file_digest(file, 'sha256').hexdigest())
        found[name] = facts if not name.startswith('.synthfs/') else None
answer(found)
"""
WRITES = """
file, directory, new = arguments[0], arguments[1], arguments[1] + '/new'
answer({
    'write': failure(os.open, file, os.O_WRONLY),
    'read and write': failure(os.open, file, os.O_RDWR),
    'append': failure(os.open, file, os.O_WRONLY | os.O_APPEND),
    'O_TRUNC': failure(os.open, file, os.O_RDONLY | os.O_TRUNC),
    'create': failure(os.open, new, os.O_RDWR | os.O_CREAT),
    'O_TMPFILE': failure(os.open, directory, os.O_RDWR | os.O_TMPFILE),
    'truncate': failure(os.truncate, file, 0),
    'unlink': failure(os.unlink, file),
    'rmdir': failure(os.rmdir, directory),
    'mkdir': failure(os.mkdir, new),
    'mknod': failure(os.mknod, new),
    'symlink': failure(os.symlink, 'x', new),
    'link': failure(os.link, file, new),
    'rename': failure(os.rename, file, new),
    'chmod': failure(os.chmod, file, 0o777),
    'chown': failure(os.chown, file, 1, 1),
    'utime': failure(os.utime, file, (1, 1)),
    'setxattr': failure(os.setxattr, file, 'user.x', b'1'),
    'removexattr': failure(os.removexattr, file, 'user.x'),
    'setxattr on a directory': failure(os.setxattr, directory, 'user.x', b'1'),
})
"""


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.fuse()
    need.root()
    with lab.scope("tree") as scope:
        yield Sample.make(scope, owner=(OWNER, GROUP))


class TestStable:
    def test_after_the_store_was_mounted_anew(self, scope: Scope) -> None:
        """Names, inodes, sizes, times and bytes are the same when BTRFS has dealt out other device numbers."""
        need.tool("mkfs.btrfs", "btrfs")
        need.kernel("btrfs")
        device = scope.loop(scope.sparse(512 << 20, "store"))
        scope.run(["mkfs.btrfs", "-q", device])
        there = scope.mount(device, fstype="btrfs")
        sample = Sample.make(scope, there)
        before, device_before = listing(scope, sample.root), sample.c.raw.stat().st_dev
        # Devices without a block device get the lowest free number: a mount in between shifts all that follow.
        scope.umount(there)
        for _ in range(3):
            scope.mount("tmpfs", fstype="tmpfs")
        scope.mount(device, there, fstype="btrfs")
        assert sample.c.raw.stat().st_dev != device_before
        assert listing(scope, sample.root) == before

    def test_elsewhere(self, scope: Scope, sample: Sample) -> None:
        """A second process on another mountpoint, and the store under another path, show the same tree."""
        first, second = scope.synthfs_mount(sample.root), scope.synthfs_mount(sample.root)
        other = scope.synthfs_mount(scope.mount(sample.root, options="bind"))
        tree = ask(scope, LISTING, first)
        assert {"pc", Sample.C, Sample.D, Sample.RENEWED, "README.txt", ".synthfs/status.json"} < tree.keys()
        assert ask(scope, LISTING, second) == ask(scope, LISTING, other) == tree


class TestSketch:
    """A mount stands before all of its disks are planned."""

    def test_serves_what_is_looked_at(self, scope: Scope, sample: Sample) -> None:
        """A disk can be read while the others are being planned, and is the same file afterwards; the status waits for all."""
        target, switch = scope.path("served"), scope.path() / "on"
        switch.touch()
        server, _ = start_server(scope, "stuck-plan", sample.root, target, switch)
        source = """
root, disk, switch = arguments
directory, status = os.path.dirname(disk), root + '/.synthfs/status.json'
def seen():
    return [sorted(os.listdir(root)), sorted(os.listdir(directory)), os.stat(directory).st_ino, os.stat(disk).st_ino]
def digest(file):
    return hashlib.file_digest(file, 'sha256').hexdigest()
kept, before = open(disk, 'rb'), seen()
bytes_before = digest(open(disk, 'rb'))
looks = subprocess.Popen(['cat', status], stdout=subprocess.PIPE)
time.sleep(0.3)
waited = looks.poll() is None
os.unlink(switch)
told = json.loads(looks.communicate()[0])
answer([seen() == before, digest(open(disk, 'rb')) == bytes_before == digest(kept), waited, told['disks']])
"""
        assert ask(scope, source, target, target / Sample.C, switch) == [True, True, True, 2]
        assert read_right(scope, target / Sample.C, sample.disk)
        assert end(server) == 0

    def test_says_that_it_is_one(self, scope: Scope, sample: Sample) -> None:
        """Where planning takes longer than anybody should wait, a look at the status fails rather than telling half of it."""
        target, switch = scope.path("served"), scope.path() / "on"
        switch.touch()
        server, log = start_server(scope, "stuck-plan", sample.root, target, switch)
        status = target / ".synthfs/status.json"
        assert ask(scope, "answer(failure(open, arguments[0]))", status) == "EIO"
        assert "still being planned" in log.read_text()
        switch.unlink()
        assert ask(scope, "answer(json.load(open(arguments[0]))['disks'])", status) == 2
        assert end(server) == 0


class TestAttributes:
    def test_stat(self, scope: Scope, sample: Sample) -> None:
        """Size, times and blocks are those of a disk that is all there, and reading changes nothing."""
        target = scope.synthfs_mount(sample.root)
        source = """
def facts():
    found = os.stat(arguments[0])
    names = ('mode', 'nlink', 'size', 'blocks', 'uid', 'gid', 'atime_ns', 'mtime_ns', 'ctime_ns')
    return [getattr(found, 'st_' + name) for name in names]
before = facts()
fd = opened(arguments[0])
os.pread(fd, 1 << 20, 1 << 20)
time.sleep(1.1)
os.close(fd)
answer([before, facts()])
"""
        length = sample.disk.length + FOOTER
        moment = int(sample.c.started.timestamp()) * 10**9
        expected = [0o100440, 1, length, length // 512, 0, 0, moment, moment, moment]
        assert ask(scope, source, target / Sample.C) == [expected, expected]

    def test_inodes_are_unique(self, scope: Scope, sample: Sample) -> None:
        """No two names share an inode, and stat and readdir agree on each."""
        target = scope.synthfs_mount(sample.root)
        source = """
found = [os.stat(arguments[0]).st_ino]
def visit(directory):
    # What .synthfs holds is made anew, under a new inode, at each look.
    for entry in os.scandir(directory) if not os.fspath(directory).endswith('.synthfs') else ():
        assert entry.inode() == entry.stat().st_ino, entry
        found.append(entry.inode())
        if entry.is_dir():
            visit(entry)
visit(arguments[0])
answer(found)
"""
        inodes = ask(scope, source, target)
        # pc with C, D and new-identity (C, D), .synthfs, README.txt, the root.
        assert len(inodes) == len(set(inodes)) == 9
        assert inodes[0] == 1

    def test_statfs(self, scope: Scope, sample: Sample) -> None:
        """The file system is full: nobody plans to write to it."""
        source = "found = os.statvfs(arguments[0]); answer([found.f_bfree, found.f_bavail, found.f_namemax])"
        assert ask(scope, source, scope.synthfs_mount(sample.root)) == [0, 0, 255]


class TestReadOnly:
    def test_every_kind_of_write(self, scope: Scope, sample: Sample) -> None:
        """Whatever would change something fails with EROFS."""
        target = scope.synthfs_mount(sample.root)
        answers = ask(scope, WRITES, target / Sample.C, target / "pc")
        assert {what: why for what, why in answers.items() if why != "EROFS"} == {}

    def test_after_remount(self, scope: Scope, sample: Sample) -> None:
        """Even where root remounts it writable, nothing can be changed: the server refuses by itself."""
        target = scope.synthfs_mount(sample.root)
        before = ask(scope, LISTING, target)
        scope.run(["mount", "-i", "-o", "remount,rw", target])
        answers = ask(scope, WRITES, target / Sample.C, target / "pc")
        assert None not in answers.values(), answers
        assert {answers[word] for word in ("write", "read and write", "append", "O_TRUNC")} == {"EROFS"}
        assert ask(scope, LISTING, target) == before


class TestQuiet:
    """What the kernel can remember reaches the server once: Samba asks thousands of times."""

    def test_questions_are_asked_once(self, scope: Scope, sample: Sample) -> None:
        """Missing names, known names, attributes and xattrs reach the server once; an xattr is not supported."""
        target = scope.path("served")
        server, log = start_server(scope, "count", sample.root, target, Path("/nonexistent"))
        source = """
file, missing = arguments
answer([[failure(os.stat, missing), failure(os.getxattr, file, 'user.DOSATTRIB'), failure(os.getxattr, file,
    'security.capability'), failure(os.listxattr, file), os.stat(file).st_size] for _ in range(100)])
"""
        answers = ask(scope, source, target / Sample.C, target / "pc/desktop.ini")
        size = sample.disk.length + FOOTER
        assert {tuple(each) for each in answers} == {("ENOENT", "ENOTSUP", "ENOTSUP", "ENOTSUP", size)}
        end(server)
        seen = json.loads(log.read_text().splitlines()[-1])
        assert seen["lookup desktop.ini"] == 1
        assert seen[f"lookup {Path(Sample.C).name}"] == 1
        assert seen.get("getattr", 0) <= 1
        assert seen.get("getxattr", 0) <= 1
        assert seen.get("listxattr", 0) <= 1


class TestAccess:
    READ = "answer([failure(os.listdir, arguments[0]), failure(os.open, arguments[1], os.O_RDONLY)])"

    def test_only_me(self, scope: Scope, sample: Sample) -> None:
        """Without --allow-other another user sees nothing at all."""
        target = scope.synthfs_mount(sample.root, "--mode", "0444")
        assert scope.run(["cat", target / "README.txt"]).stdout
        file = target / "README.txt"
        commands: list[list[Argument]] = [["ls", target], ["stat", file], ["cat", file]]
        for argv in commands:
            done = scope.run(argv, user="nobody", check=False)
            assert done.returncode != 0
            assert (done.stdout, "Permission denied" in done.stderr) == ("", True)

    @pytest.mark.parametrize(
        ("options", "owner", "group", "mode", "nobody"),
        [
            ([], OWNER, GROUP, 0o440, False),
            (["--owner", "nobody"], "nobody", GROUP, 0o440, True),
            (["--group", "nogroup"], OWNER, "nogroup", 0o440, True),
            (["--owner", "nobody", "--group", "nogroup", "--mode", "0400"], "nobody", "nogroup", 0o400, True),
            (["--owner", "0", "--group", "nogroup", "--mode", "0400"], 0, "nogroup", 0o400, False),
            (["--owner", "0", "--group", "0", "--mode", "0444"], 0, 0, 0o444, True),
        ],
    )
    def test_allow_other(
        self, scope: Scope, sample: Sample, options: list[str], owner: int | str, group: int | str, mode: int, nobody: bool
    ) -> None:
        """Files belong to the store's owner and group or to whom the options name, and only those get in."""
        target = scope.synthfs_mount(sample.root, "--allow-other", *options)
        names = [target, target / "pc", target / "README.txt", target / Sample.C, target / Sample.RENEWED]
        numbers = [number_of(scope, kind, one) for kind, one in (("passwd", owner), ("group", group))]
        source = "answer([[s.st_mode, s.st_uid, s.st_gid] for s in map(os.stat, arguments)])"
        directory = mode | mode >> 2 & 0o111
        modes = [0o40000 | directory, 0o40000 | directory, *[0o100000 | mode] * 3]
        assert ask(scope, source, *names) == [[each, *numbers] for each in modes]
        commands: list[list[Argument]] = [["ls", target], ["head", "-c1", target / Sample.C], ["cat", target / "README.txt"]]
        for argv in commands:
            assert (scope.run(argv, user="nobody", check=False).returncode == 0) == nobody, argv

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            (["--owner", "no-such-user"], "no-such-user"),
            (["--group", "no-such-group"], "no-such-group"),
            (["--owner", "4294967296"], "4294967296"),
            (["--group", "4294967295"], "4294967295"),
            (["--owner", "²"], "²"),
            (["--mode", "rw"], "rw"),
            (["--mode", "0999"], "0999"),
            (["--mode", "0777"], "0777"),
            (["--mode", "010440"], "010440"),
            (["--mode", "-440"], "-440"),
        ],
    )
    def test_bad_values(self, scope: Scope, sample: Sample, options: list[str], word: str) -> None:
        """A value that makes no sense is refused with one line that names it, and nothing is mounted."""
        target = scope.path("served")
        done = scope.synthfs("mount", "--daemon", "--allow-other", *options, sample.root, target, check=False)
        assert not mounts_below(target)
        assert done.returncode == 9
        assert (len(done.stderr.splitlines()), word in done.stderr) == (1, True)


def listing(scope: Scope, root: Path) -> Any:
    """The tree of a store, mounted for this alone."""
    with scope.scope("listing") as inner:
        return ask(inner, LISTING, inner.synthfs_mount(root))


def number_of(scope: Scope, kind: str, one: int | str) -> int:
    """The uid or gid of a name, from the system's own table."""
    parse: Callable[[str], int] = lambda line: int(line.split(":")[2])  # noqa: E731  # one use, and it needs a type
    return one if isinstance(one, int) else parse(scope.run(["getent", kind, one]).stdout)
