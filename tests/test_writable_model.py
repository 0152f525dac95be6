"""Opens, writes, reads, discards and restarts in any order, against a model of what each disk has to hold.

Not for: kills and faults (test_writable_killed, test_writable_trouble). The model is the original disk and the writes that
the mount answered. All that touches the mount is done by a child, which is given a limit. Units: bytes.
"""

import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import need
from lab import Scope
from onmount import PRELUDE, Sample, end
from writer import MIB, Writer, told

FIRST, WINDOW = 48 * MIB, 256 * 1024
"""The part of a disk that is written to and read, in C:; small, so that writes meet."""
PLACES = st.integers(0, WINDOW - 1)
DISKS = (Sample.C, Sample.D)
CHILD = """
for line in sys.stdin:
    verb, *rest = json.loads(line)
    try:
        if verb == 'open':
            found = os.open(rest[0], os.O_RDWR if rest[1] else os.O_RDONLY)
        elif verb == 'write':
            found = os.pwrite(rest[0], bytes.fromhex(rest[2]), rest[1])
        elif verb == 'read':
            found = os.pread(rest[0], rest[2], rest[1]).hex()
        elif verb == 'stat':
            found = os.stat(rest[0]).st_ino
        else:
            found = {'sync': os.fsync, 'close': os.close}[verb](rest[0])
    except OSError as error:
        found = {'errno': errno.errorcode[error.errno]}
    print(json.dumps(found), flush=True)
"""
EIO = {"errno": "EIO"}


@dataclass(slots=True)
class Handle:
    """A file that the child has open; dead once the session under it was discarded."""

    disk: str
    fd: int
    writable: bool
    dead: bool = False


@dataclass(slots=True)
class Bench:
    """A mount, and a child that works on it."""

    writer: Writer
    target: Path
    original: bytes
    child: "subprocess.Popen[str]" = field(init=False)

    def hands(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PRELUDE + CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def let_go(self) -> None:
        self.child.kill()
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe
            pipe.close()
        self.child.wait(10)

    def do(self, *words: Any) -> Any:
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(json.dumps(words) + "\n")
        self.child.stdin.flush()
        assert select.select([self.child.stdout], [], [], 20)[0], f"{words} is not answered"
        return json.loads(self.child.stdout.readline())

    def restart(self) -> None:
        self.let_go()
        assert end(self.writer.scope.server(self.target)) == 0
        self.writer.mount("--refresh", "0", target=self.target)
        self.hands()


class Disks(RuleBasedStateMachine):
    """What a person can do to two disks that are one: each has what was written to it, and nothing of the other."""

    bench: ClassVar[Bench]
    handles = Bundle("handles")

    @initialize()
    def begin(self) -> None:
        self.open: list[Handle] = []
        self.restarts_left = 1
        self.holds = {disk: bytearray(self.bench.original) for disk in DISKS}
        self.written: set[str] = set()
        self.inodes: dict[str, list[int]] = {disk: [self.stat(disk)] for disk in DISKS}

    def stat(self, disk: str) -> int:
        return int(self.bench.do("stat", str(self.bench.target / disk)))

    @rule(target=handles, disk=st.sampled_from(DISKS), writable=st.booleans())
    def opens(self, disk: str, writable: bool) -> Handle:
        handle = Handle(disk, self.bench.do("open", str(self.bench.target / disk), writable), writable)
        self.open.append(handle)
        return handle

    @rule(handle=handles, at=PLACES, length=st.sampled_from((1, 512, 4096, 5000, 70000)), seed=st.integers(0, 255))
    def writes(self, handle: Handle, at: int, length: int, seed: int) -> None:
        if handle not in self.open or not handle.writable:
            return
        data = random.Random(seed).randbytes(min(length, WINDOW - at))
        found = self.bench.do("write", handle.fd, FIRST + at, data.hex())
        assert found == (EIO if handle.dead else len(data))
        if not handle.dead:
            self.holds[handle.disk][at : at + len(data)] = data
            self.written.add(handle.disk)

    @rule(handle=handles, at=PLACES, length=st.integers(1, 70000))
    def reads(self, handle: Handle, at: int, length: int) -> None:
        if handle not in self.open:
            return
        found = self.bench.do("read", handle.fd, FIRST + at, min(length, WINDOW - at))
        assert found == (EIO if handle.dead else self.holds[handle.disk][at : at + length].hex())

    @rule(handle=handles)
    def syncs(self, handle: Handle) -> None:
        if handle in self.open:
            assert self.bench.do("sync", handle.fd) == (EIO if handle.dead else None)

    @rule(handle=consumes(handles))
    def closes(self, handle: Handle) -> None:
        if handle in self.open:
            self.open.remove(handle)
            assert self.bench.do("close", handle.fd) == (EIO if handle.dead else None)

    @rule(disk=st.sampled_from(DISKS), force=st.booleans())
    def discards(self, disk: str, force: bool) -> None:
        answer = told(self.bench.writer, do="discard", path=disk, force=force)
        users = [handle for handle in self.open if handle.disk == disk and not handle.dead]
        if disk not in self.written:
            assert answer["code"] == 3
        elif users and not force:
            assert answer["code"] == 10
        else:
            assert answer == {"done": True}
            self.written.remove(disk)
            self.holds[disk] = bytearray(self.bench.original)
            self.inodes[disk].append(self.stat(disk))
            for handle in users:
                handle.dead = True

    @precondition(lambda self: self.restarts_left)  # they take by far the most time
    @rule()
    def restarts(self) -> None:
        self.restarts_left -= 1
        self.open.clear()
        self.bench.restart()

    @invariant()
    def has_its_inode(self) -> None:
        for disk, inodes in getattr(self, "inodes", {}).items():
            assert self.stat(disk) == inodes[-1]
            assert len(set(inodes)) == len(inodes)

    def teardown(self) -> None:
        for handle in self.open:
            self.bench.do("close", handle.fd)
        for disk in self.written:
            assert told(self.bench.writer, do="discard", path=disk, force=False) == {"done": True}


@contextmanager
def bench_of(scope: Scope) -> Iterator[Bench]:
    need.fuse()
    need.root()
    writer = Writer.make(scope)
    target = writer.mount("--refresh", "0")
    original = os.pread(os.open(writer.sample.disk.path, os.O_RDONLY | os.O_CLOEXEC), WINDOW, FIRST)
    bench = Bench(writer, target, original)
    bench.hands()
    try:
        yield bench
    finally:
        bench.let_go()


def check(scope: Scope, examples: int) -> None:
    with bench_of(scope) as bench:
        Disks.bench = bench
        how = settings(max_examples=examples, stateful_step_count=30, deadline=None, derandomize=True, database=None)
        run_state_machine_as_test(Disks, settings=how)
        assert bench.writer.scope.server(bench.target).poll() is None


def test_any_order(scope: Scope) -> None:
    """Whatever the order, each disk holds what was written to it, or is the backup's under an inode that it never had."""
    check(scope, 8)


@pytest.mark.slow
def test_any_order_for_long(scope: Scope) -> None:
    """The same with 100 orders."""
    check(scope, 100)
