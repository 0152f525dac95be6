"""SIGKILL at each step of a freeze and a discard, and amid writes: afterwards each disk is the old one or the new one, whole.

Not for: power that fails (test_materialize_safe shows it for freezing). Expected bytes: the original disk, with the writes
that were answered. A write that was not answered may be there by blocks of 4096 bytes, as on any disk.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import Lab, Scope
from onmount import FOOTER, Sample, ask, start_server
from processes import Argument, wait_until
from writer import SPOT, Writer, same, told

BLOCK = 4096
HOST = "synthfs.host"
NEVER = "os.getcwd:1:before"
FREEZE = [
    # Step, whether there is a session afterwards, and whether the write is in it.
    ("os.setxattr:1:before", False, False),
    (f"{HOST}.reflink.clone_range:1:after", False, False),
    (f"{HOST}.reflink.clone_range:4:after", False, False),
    ("synthfs.engines.materialize._write:1:after", False, False),
    (f"{HOST}.publish.Draft.finish:1:before", False, False),
    (f"{HOST}.publish.Draft.finish:1:after", False, False),
    ("os.utime:1:after", False, False),
    (f"{HOST}.publish.Draft.publish:1:before", False, False),
    (f"{HOST}.publish.Draft._link:1:after", True, False),
    (f"{HOST}.publish.Draft.publish:1:after", True, False),
    (f"{HOST}.scratch.ScratchFile.write:1:before", True, False),
    (f"{HOST}.scratch.ScratchFile.write:1:after", True, True),
]
DISCARD = [("os.rename:1:before", True), ("os.rename:1:after", False), ("os.truncate:1:after", False)]


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Writer]:
    need.fuse()
    need.root()
    with lab.scope("killed") as scope:
        yield Writer.make(scope)


class Mounted:
    """A mount that dies at a step, where there is one, as soon as it is armed."""

    def __init__(self, scope: Scope, writer: Writer, target: Path, step: str = NEVER) -> None:
        self.switch = scope.path() / "on"
        options: list[Argument] = ["--writable", writer.scratch, "--refresh", "0"]
        self.server, self.log = start_server(scope, f"kill:{step}", writer.sample.root, target, self.switch, options)
        assert wait_until(lambda: (writer.scratch / ".control").exists(), 10.0)

    def arm(self) -> None:
        self.switch.touch()

    def dead(self) -> bool:
        return wait_until(lambda: self.server.poll() is not None, 10.0)


WRITE = "fd = os.open(arguments[0], os.O_RDWR); answer(failure(os.pwrite, fd, b'w' * 4096, int(arguments[1])) is None)"


def test_each_step_of_a_freeze(scope: Scope, shared: Writer) -> None:
    """Before the name is there: nothing, and the backup's bytes. From then on: a whole session. Never anything beside it."""
    target, model = scope.path("served"), shared.model()
    file = target / Sample.C
    with model.open("r+b") as copy:
        copy.seek(SPOT)
        copy.write(b"w" * BLOCK)
    mounted = Mounted(scope, shared, target, FREEZE[0][0])
    # What one step left is looked at in the mount that is to die at the next.
    followed_by = [*(step for step, _, _ in FREEZE[1:]), NEVER]
    for (step, begun, written), following in zip(FREEZE, followed_by, strict=True):
        mounted.arm()
        assert ask(scope, WRITE, file, str(SPOT)) is False, step
        assert mounted.dead(), step
        scope.umount(target)
        assert [name for name in shared.left() if name != "gone"] == ["vhd"] * begun, step
        mounted = Mounted(scope, shared, target, following)
        assert same(scope, file, model if written else shared.sample.disk.path), step
        assert len(json.loads((target / ".synthfs/status.json").read_text())["sessions"]) == begun, step
        if begun:
            assert told(shared, do="discard", path=Sample.C, force=False) == {"done": True}
        assert set(shared.left()) <= {"gone"}, step
    scope.umount(target)


def test_each_step_of_a_discard(scope: Scope, shared: Writer) -> None:
    """Before the rename the session is as it was; from then on it is discarded, under a new inode."""
    target, model = scope.path("served"), shared.model()
    file = target / Sample.D
    with model.open("r+b") as copy:
        copy.seek(SPOT)
        copy.write(b"w" * BLOCK)
    for step, lives in DISCARD:
        mounted = Mounted(scope, shared, target, step)
        assert ask(scope, WRITE, file, str(SPOT)) is True, step
        inode = file.stat().st_ino
        mounted.arm()
        assert told(shared, do="discard", path=Sample.D, force=False) == {}, step
        assert mounted.dead(), step
        scope.umount(target)
        mounted = Mounted(scope, shared, target)
        assert same(scope, file, model if lives else shared.sample.disk.path), step
        assert (file.stat().st_ino == inode) == lives, step
        if lives:
            assert told(shared, do="discard", path=Sample.D, force=False) == {"done": True}
        assert set(shared.left()) <= {"gone"}, step
        assert all(path.stat().st_size == 0 for path in shared.scratch.glob("*.gone")), step
        scope.umount(target)


SCRIBBLE = """
import signal
path, server, seed, most = arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3])
dice, answered, pending = random.Random(seed), [], None
fd = os.open(path, os.O_RDWR)
blocks = os.fstat(fd).st_size // 4096
# From within the first freeze to many writes later.
delay = dice.choice((dice.uniform(0, 0.05), dice.uniform(0, 0.5)))
threading.Timer(delay, lambda: os.kill(server, signal.SIGKILL)).start()
for number in range(100000):
    count = dice.choice((1, 1, 2, 7, 32))
    at = dice.randrange(blocks - count)
    pending = [at, count, number + seed * 1000000]
    data = b''.join((pending[2] * 64 + block).to_bytes(8, 'big') * 512 for block in range(count))
    if failure(os.pwrite, fd, data, at * 4096):
        break
    answered.append(pending)
    if dice.random() < 0.05 and failure(os.fsync, fd):
        break
answer([answered, pending])
"""


def stamped(number: int, block: int) -> bytes:
    return (number * 64 + block).to_bytes(8, "big") * 512


def killed_amid_writes(scope: Scope, writer: Writer, times: int) -> None:
    target = scope.path("served")
    file, sums = target / Sample.C, writer.sums()
    original = writer.sample.disk.path.read_bytes()
    expected, dice = bytearray(original), random.Random(20260301)
    begun = writes = partly = 0
    mounted = Mounted(scope, writer, target)
    for turn in range(times):
        if expected != original and dice.random() < 0.5:
            assert told(writer, do="discard", path=Sample.C, force=False) == {"done": True}
            expected = bytearray(original)
        answered, pending = ask(scope, SCRIBBLE, file, str(mounted.server.pid), str(turn), str(len(original)))
        assert mounted.dead()
        scope.umount(target)
        names = [path for path in writer.left() if path != "gone"]
        assert names == ["vhd"] if answered or expected != original else names in ([], ["vhd"]), turn
        for at, count, number in answered:
            for block in range(count):
                expected[(at + block) * BLOCK : (at + block + 1) * BLOCK] = stamped(number, block)
        mounted = Mounted(scope, writer, target)
        copy = scope.path("copy") / "disk"
        scope.run(["cp", file, copy])
        found = bytearray(copy.read_bytes()[:-FOOTER])
        copy.unlink()
        at, count, number = pending
        for block in range(count):
            place = slice((at + block) * BLOCK, (at + block + 1) * BLOCK)
            assert found[place] in (expected[place], stamped(number, block)), turn
            partly += found[place] != expected[place]
            expected[place] = found[place]
        assert found == expected, turn
        begun += bool(names)
        writes += len(answered)
    scope.umount(target)
    print(f"killed {times} times: {begun} with a session, {writes} answered writes, {partly} blocks of those that were not")
    assert writer.sums() == sums
    assert all(path.stat().st_size == 0 for path in writer.scratch.glob("*.gone"))
    assert begun > 0


@pytest.mark.parametrize("filesystem", ["btrfs"])
def test_amid_writes(scope: Scope, filesystem: str) -> None:
    """Killed 10 times at seeded moments: each write that was answered is there, nothing else is, nothing is left over."""
    need.fuse()
    need.root()
    killed_amid_writes(scope, Writer.make(scope, filesystem), 10)


@pytest.mark.slow
@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_amid_writes_often(scope: Scope, filesystem: str) -> None:
    """The same, 100 times."""
    need.fuse()
    need.root()
    killed_amid_writes(scope, Writer.make(scope, filesystem), 100)


