"""Whatever shape input has: one line and a documented exit code, no traceback, no hang, and the mount goes on serving.

Settings are in test_fstab. Not for: images and their sidecars (test_hostile, test_bad_input).
"""

import json
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fuzz_shapes
import need
from fuzz_shapes import DOCUMENTED, SESSION, STATUS
from inprocess import answer, is_one_line
from lab import Lab, Scope
from ledger import mounts_below
from onmount import Sample, ask
from processes import wait_until
from synthfs.cli.main import VERBS, verb
from synthfs.samba import is_flagged_sparse
from writer import Writer

IMPOSTOR = Path(__file__).with_name("impostor.py")


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.root()
    need.fuse()
    with lab.scope("shapes") as scope:
        yield Sample.make(scope)


def impostor(scope: Scope, content: Path | str, source: str = "/nowhere") -> Path:
    """Where something is mounted that only calls itself synthfs."""
    target = scope.path("impostor")
    scope._stack.callback(scope.umount, target)
    scope.start([sys.executable, IMPOSTOR, target, source, content])
    assert wait_until(lambda: bool(mounts_below(target)), 20.0)
    return target


@pytest.mark.parametrize("seed", range(24))
def test_any(tmp_path: Path, seed: int) -> None:
    """Settings, what mounts say of themselves, control lines, attributes and records, each spoiled in some way."""
    fuzz_shapes.check(seed, tmp_path)


STORIES: dict[str, Any] = {
    "no object": [1],
    "process that is none": {**STATUS, "pid": 10**30},
    "text for a process": {**STATUS, "pid": "1"},
    "sessions that are none": {**STATUS, "sessions": [1]},
    "number for a path": {**STATUS, "sessions": [{**SESSION, "path": 5}]},
    "NUL in a path": {**STATUS, "scratch": "/a\0b"},
    "time that is none": {**STATUS, "sessions": [{**SESSION, "began_ns": 10**40}]},
    "text that is none": {**STATUS, "sessions": [{**SESSION, "image": "\ud800"}]},
    "scratch elsewhere": {**STATUS, "scratch": "/proc/1"},
    "another place": {**STATUS, "mountpoint": ["x"], "answers": 5, "disks": 2},
}


class TestImpostor:
    def test_stories(self, scope: Scope, sample: Sample) -> None:
        """Whatever a mount that is not ours says, all verbs that ask it end as documented, and so does `umount`."""
        content = scope.path("content") / "status.json"
        content.write_text("")
        target = impostor(scope, content, source="/no%00where")
        file = target / Sample.C
        commands = (
            *(("status",), ("status", "--json"), ("sessions", target), ("share", target), ("discard", file)),
            *(("keep", file), ("show", file)),
        )
        for story, told in STORIES.items():
            content.write_text(json.dumps(told))
            for words in random.Random(story).sample(commands, 3):
                code, out, said = answer(*words)
                assert code in DOCUMENTED, (story, words, code, said)
                assert "Traceback" not in said, (story, words, said)
                if code > 1:
                    assert is_one_line(code, said, code), (story, words, said)
                if words[-1] == "--json":
                    assert str(target) in [one["mountpoint"] for one in json.loads(out)], story
        content.write_text(json.dumps({**STATUS, "pid": 1}))
        assert answer("umount", target) == (0, "", "")
        assert mounts_below(target) == []

    @pytest.mark.parametrize("kind", ["silent", "endless"])
    def test_without_end(self, scope: Scope, sample: Sample, kind: str) -> None:
        """One that never answers, or never ends to, keeps nobody and fills no memory; `status` ends with 1."""
        target = impostor(scope, kind)
        file = target / Sample.C
        looks = (("status",), ("sessions", target), ("share", target), ("doctor", sample.root))
        commands = (*looks, ("keep", file), ("show", file))
        with ThreadPoolExecutor(len(commands)) as pool:
            argv = [["prlimit", f"--as={2 << 30}", sys.executable, "-m", "synthfs", *words] for words in commands]
            runs = [pool.submit(scope.run, each, check=False) for each in argv]
            done = {words: run.result() for words, run in zip(commands, runs, strict=True)}
        for words, one in done.items():
            assert one.returncode in DOCUMENTED, (words, one.stderr)
            assert "Traceback" not in one.stderr
        status = done[("status",)]
        assert status.returncode == 1
        assert [line for line in status.stdout.splitlines() if str(target) in line and "does not answer" in line]
        # Who looked and was not answered is still in there, until the server ends.
        ended = scope.synthfs("umount", target, check=False)
        assert ended.returncode == 0 or is_one_line(ended.returncode, ended.stderr, 9), ended.stderr

    def test_name_that_is_no_text(self, scope: Scope, sample: Sample) -> None:
        """A mount whose type has bytes that are no UTF-8 is none of ours, and in nobody's way."""
        other = scope.path("other")
        scope._stack.callback(scope.umount, other)
        source = """
import ctypes, os, sys, time
fd = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd
assert ctypes.CDLL(None).mount(b"other", os.fsencode(sys.argv[1]), b"fuse.synthfs\\xff", 0, options) == 0
time.sleep(600)
"""
        scope.start([sys.executable, "-c", source, other])
        line = f" {other} ".encode()
        assert wait_until(lambda: line in Path("/proc/self/mountinfo").read_bytes(), 20.0)
        target = scope.synthfs_mount(sample.root)
        assert str(target) in [one["mountpoint"] for one in json.loads(answer("status", "--json")[1])]


def numbers() -> Iterator[tuple[str, str]]:
    """Every option of every verb that takes a number."""
    for name in VERBS:
        for parameter in verb(name).params:
            metavar = parameter.metavar or ""
            if "range" in parameter.type.name or metavar in ("SECONDS", "DAYS", "PERCENT", "SIZE", "N", "MIB"):
                yield name, parameter.opts[0]


class TestCommandLine:
    @pytest.mark.parametrize(("name", "option"), [*numbers()])
    def test_numbers(self, scope: Scope, sample: Sample, name: str, option: str) -> None:
        """What is no number, or one that no clock and no memory has, is not understood."""
        here, image = scope.path(), sample.c.raw
        places: dict[str, list[object]] = {
            "mount": [sample.root, here / "none"], "sync": [sample.root, "--to", here], "verify": [image],
            "materialize": [image, "-o", here], "boot": [image, "--serial", here / "serial"],
        }  # fmt: skip
        for number in ("nan", "inf", "-inf", "-1", "1e400", "1e300", "9" * 5000, "0x10", ""):
            code, _, said = answer(name, f"{option}={number}", *places[name])
            # Of one of them, which is a text of its own, the place to write to is said to be wrong.
            assert is_one_line(code, said, 2, 8), (number, said)
        assert list(here.iterdir()) == []

    def test_not_understood(self, sample: Sample) -> None:
        """What Typer does not understand is one line that names where there is more."""
        for words in (["--frobnicate"], ["frobnicate"], ["list"], ["list", "--frobnicate", sample.root], ["verify"]):
            code, _, said = answer(*words)
            assert is_one_line(code, said, 2), said
            assert "--help" in said

    @pytest.mark.parametrize("name", [*VERBS])
    def test_paths(self, scope: Scope, name: str) -> None:
        """A place that is none, of whatever kind, is one line in each place of a command line that takes one."""
        here = scope.path()
        (here / "loop").symlink_to("loop")
        (here / "file").touch()
        os.mkfifo(here / "pipe")
        more: dict[str, list[object]] = {
            "sync": ["--to", here / "to"], "boot": ["--serial", here / "serial"], "mount": [here / "none"]
        }  # fmt: skip
        kinds = ["a\0b", "a" * 5000, "\udcff", "a\nb", here / "loop", here / "file", here / "file" / "x", here / "pipe"]
        for kind in kinds:
            code, _, said = answer(name, kind, *more.get(name, ()))
            assert is_one_line(code, said, *DOCUMENTED - {0, 1, 70}), (kind, said)

    def test_few_descriptors(self, scope: Scope, sample: Sample) -> None:
        """With ten descriptors, three of which are taken, every verb does its work or says in a line what it lacks."""
        target, image = scope.synthfs_mount(sample.root), sample.c.raw
        file, out = target / Sample.C, scope.path("out")
        commands = (
            *(("list", sample.root), ("show", file), ("status",), ("sessions", target), ("discard", file), ("keep", file)),
            *(("share", target), ("share", target, "--check"), ("sync", sample.root, "--to", out, "--dry-run")),
            *(("materialize", image, "-o", out), ("boot", image, "--serial", out / "serial"), ("verify", image)),
            *(("mount", "--daemon", sample.root, out), ("umount", out)),
        )
        for words in commands:
            done = scope.run(["prlimit", "--nofile=10", sys.executable, "-m", "synthfs", *words], check=False)
            assert done.returncode in DOCUMENTED, (words, done.stderr)
            assert "Traceback" not in done.stderr
            if words[0] in ("mount", "umount", "show", "discard", "keep") and done.returncode:
                assert len(done.stderr.splitlines()) == 1, (words, done.stderr)
        scope.umount(out)
        assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) is None


def test_attributes_that_are_none(scope: Scope) -> None:
    """DOS attributes that are no number, or none that Samba knows, mark nothing."""
    file = scope.path() / "disk.vhd"
    file.touch()
    marks = {b"0x220\0": True, b"0x220": True, b"0x20\0": False, b"0xzz": False, b"0x": False, b"0x_2_0_0": False,
             b"0x" + b"2" * 3000: False, b"-0x200": False, b"": False, b"\0": False}  # fmt: skip
    for mark, sparse in marks.items():
        os.setxattr(file, "user.DOSATTRIB", mark)
        assert is_flagged_sparse(str(file)) == sparse, mark


def test_control_lines(scope: Scope) -> None:
    """Whatever comes over the control socket, and from however many: the mount serves, and discards when it is asked well."""
    need.root()
    need.fuse()
    writer = Writer.make(scope)
    target = writer.mount()
    ask(scope, "os.pwrite(os.open(arguments[0], os.O_RDWR), b'x', 1 << 20); answer(1)", target / Sample.C)
    dice = random.Random(16)
    honest = {"do": "discard", "path": Sample.C, "force": False}
    open_lines = []

    def line() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(str(writer.scratch / ".control"))
        made.settimeout(20)
        open_lines.append(made)
        return made

    try:
        for number in range(60):
            with line() as one:
                # All but a right request; and a last line that has no end.
                said = b"\n".join(fuzz_shapes.text({**honest, "force": 1}, dice) for _ in range(3))
                one.sendall(said if number % 2 else said + b"\n")
                one.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):  # what it did not read before it closed
                    while one.recv(65536):
                        pass
        # Half a line, and then nothing more; many of them, and more than may be at a time.
        for _ in range(200):
            line().sendall(b'{"do": "keep", "path"')
        refused = line()
        assert b"too many" in refused.recv(65536)
        assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) is None
    finally:
        for one in open_lines:
            one.close()
    assert wait_until(lambda: scope.synthfs("discard", target / Sample.C, check=False).returncode == 0, 20.0)
    log = "".join(text for _, text in scope.logs())
    assert "Traceback" not in log
    assert "bug" not in log
    scope.server(target).send_signal(signal.SIGTERM)
    assert scope.server(target).wait(20) == 0
