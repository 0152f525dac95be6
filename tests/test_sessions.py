"""What becomes of sessions: listed, discarded, kept, given up for their age; and what a backup's end does to them.

Not for: writing itself (test_writable). Expected values: the original disk, or a copy of it that the kernel alone has
written the same things to; `btrfs filesystem du` for space.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import need
from lab import Lab, Scope
from makestore import Store
from onmount import Sample, ask, end, start_server
from processes import Argument, wait_until
from synthfs.engines.idle import ATTRIBUTE, STEP, Idle, Passing
from synthfs.errors import SourceError
from synthfs.host.scratch import ScratchFile
from writer import MIB, SPOT, Writer, same, told

RENEWED_D = "pc/new-identity/Image_D_260301-0203.vhd"
NOT_FOUND, TARGET, MOUNT, BUSY = 3, 8, 9, 10
WRITE = """
for path in arguments[:-2]:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, arguments[-1].encode() * 1000, int(arguments[-2]))
    os.fsync(fd)
    os.close(fd)
answer(os.stat(arguments[0]).st_ino)
"""


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Writer]:
    need.fuse()
    need.root()
    with lab.scope("sessions") as scope:
        yield Writer.make(scope)


@pytest.fixture
def writer(scope: Scope, shared: Writer) -> Writer:
    """The one store, with a scratch directory of this test's own."""
    scratch = shared.scratch.with_name(f"scratch-{scope.directory.name}")
    scratch.mkdir()
    return Writer(scope, shared.sample, scratch)


def write(writer: Writer, file: Path, what: str = "w", model: Path | None = None) -> int:
    """Write to a disk, and to its model; returns the inode."""
    return int(ask(writer.scope, WRITE, file, *([model] if model else []), str(SPOT), what))


def failed(writer: Writer, *arguments: str | Path, code: int) -> str:
    """The one line that a verb fails with."""
    done = writer.scope.synthfs(*arguments, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == code, line
    return line


class TestList:
    def test_facts(self, scope: Scope, writer: Writer) -> None:
        """Which disk, since when, how much of its own as `btrfs filesystem du` counts it, open in which process."""
        target = writer.mount()
        assert (writer.sessions(target), scope.synthfs("sessions", target).stdout) == ([], "")
        file = target / Sample.RENEWED
        fd = os.open(file, os.O_RDWR)
        os.pwrite(fd, os.urandom(3 * MIB), SPOT // 4096 * 4096)
        os.fsync(fd)
        assert wait_until(lambda: writer.sessions(target)[0]["own_space"] is not None, 10.0)
        (one,) = writer.sessions(target)
        used = scope.run(["btrfs", "filesystem", "du", "--raw", one["scratch"]]).stdout.splitlines()[-1].split()
        assert one["own_space"] == int(used[1]) >= 3 * MIB
        assert (one["path"], one["open"], one["backup"]) == (Sample.RENEWED, [os.getpid()], True)
        assert one["image"].endswith("Image_C_260301-0201.raw")
        assert one["length"] == os.fstat(fd).st_size
        assert one["began"][:10] == one["written"][:10]
        os.close(fd)
        assert json.loads((target / ".synthfs/status.json").read_text())["sessions"][0]["open"] == []
        (_, row, *_) = scope.synthfs("sessions", target).stdout.splitlines()
        assert "there" in row
        assert "3 MiB" in row


class TestDiscard:
    def test_open(self, scope: Scope, writer: Writer) -> None:
        """While it is open it stays, unless forced; then every open handle gets EIO, and never the backup's bytes."""
        target = writer.mount()
        source = """
path, spot = arguments[0], int(arguments[1])
fd, older = os.open(path, os.O_RDWR), opened(path)
os.pwrite(fd, b'w' * 8192, spot)
synthfs = [arguments[2], '-m', 'synthfs', 'discard', path]
refused = subprocess.run(synthfs, capture_output=True, text=True)
still = os.pread(older, 8192, spot) == b'w' * 8192
forced = subprocess.run([*synthfs, '--force'], capture_output=True, text=True)
after = [failure(os.pread, one, 8192, at) for one in (fd, older) for at in (spot, 0, 60 << 20)]
after += [failure(os.pwrite, fd, b'x', spot), failure(os.fsync, fd), failure(os.close, older)]
again = opened(path)
answer([refused.returncode, str(os.getpid()) in refused.stderr, still, forced.returncode, after,
        os.pread(again, 8192, spot).count(b'w'), os.fstat(again).st_ino == os.fstat(fd).st_ino])
"""
        found = ask(scope, source, target / Sample.C, str(SPOT), sys.executable)
        assert found == [BUSY, True, True, 0, ["EIO"] * 9, 0, False]
        assert writer.left() == ["gone"]
        assert same(scope, target / Sample.C, writer.sample.disk.path)
        assert scope.server(target).poll() is None

    def test_in_flight(self, scope: Scope, writer: Writer) -> None:
        """What is under way while a disk is discarded by force ends in EIO: no false end of a file, and no success.

        Nothing of it is left in the scratch directory either. Each call has a disk of its own: the kernel lets one change
        of a file through at a time.
        """
        target, switch = scope.path("served"), scope.path() / "on"
        options: list[Argument] = ["--writable", writer.scratch, "--format", "vhdx"]
        calls = {"preadv": Sample.C, "pwrite": Sample.D, "fsync": Sample.RENEWED, "ftruncate": RENEWED_D}
        fault = ":".join(["held-calls", *calls])
        server, _ = start_server(scope, fault, writer.sample.root, target, switch, options)
        files = [f"{file}x" for file in calls.values()]
        assert wait_until(lambda: all((target / file).exists() for file in files), 10.0)
        source = """
import mmap
switch, *paths = arguments
direct, written, synced, cut = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths]
page = mmap.mmap(-1, 4096)
for fd in (direct, written, synced, cut):
    assert os.pwrite(fd, page, 1 << 20) == 4096
read = opened(paths[0])
forget(read)
open(switch, 'w').close()
found = {}
def call(name, *arguments):
    found[name] = 'nothing'
    found[name] = failure(lambda: arguments[0](*arguments[1:]))
threads = [threading.Thread(target=call, args=each) for each in (
    ('preadv', os.pread, read, 4096, 1 << 20), ('pwrite', os.pwrite, written, page, 1 << 20),
    ('fsync', os.fsync, synced), ('ftruncate', os.ftruncate, cut, 8 << 20))]
[each.start() for each in threads]
[each.join() for each in threads]
answer(found)
"""
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, scope, source, switch, *(target / file for file in files))
            assert wait_until(lambda: all(Path(f"{switch}.{call}").exists() for call in calls), 10.0)
            done = [pool.submit(told, writer, do="discard", path=file, force=True) for file in files]
            assert wait_until(lambda: writer.left() == ["gone"] * 4, 10.0)
            switch.unlink()
            assert asked.result() == dict.fromkeys(calls, "EIO")
            assert [each.result() for each in done] == [{"done": True}] * 4
        assert {path.stat().st_size for path in writer.scratch.glob("*.gone")} == {0}
        assert end(server) == 0

    def test_read_of_the_backup_in_flight(self, scope: Scope, writer: Writer) -> None:
        """What was asked for before a first write, and answered after it, is what was written, and EIO once that is gone."""
        target, switch = scope.path("served"), scope.path() / "on"
        options: list[Argument] = ["--writable", writer.scratch]
        server, _ = start_server(scope, "held-calls:read", writer.sample.root, target, switch, options)
        source = """
import mmap, socket
switch, scratch, kept, discarded = arguments
page, found, threads = mmap.mmap(-1, 4096), {}, []
page.write(b'w' * 4096)
def read(path, fd, into):
    found[path] = failure(os.preadv, fd, (into,), 48 << 20) or into[:4].decode()
for path in (kept, discarded):
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    open(switch, 'w').close()
    threads.append(threading.Thread(target=read, args=(path, fd, mmap.mmap(-1, 4096)), daemon=True))
    threads[-1].start()
    while not os.path.exists(switch + '.read'):
        time.sleep(0.01)
    os.unlink(switch + '.read')
    os.pwrite(fd, page, 48 << 20)
line = socket.socket(socket.AF_UNIX)
os.chdir(scratch)  # such a path may not be long
line.connect('.control')
line.sendall(json.dumps({'do': 'discard', 'path': '/'.join(discarded.split('/')[-2:]), 'force': True}).encode() + b'\\n')
done = json.loads(line.recv(4096))
os.unlink(switch)
[thread.join() for thread in threads]
answer([done, found[kept], found[discarded]])
"""
        files = [target / Sample.C, target / Sample.D]
        assert ask(scope, source, switch, writer.scratch, *files) == [{"done": True}, "wwww", "EIO"]
        assert end(server) == 0

    def test_cut_by_somebody(self, scope: Scope, writer: Writer) -> None:
        """A scratch file that lost its end gives what it has, and EIO for the rest: it is no end of the disk."""
        target = writer.mount()
        write(writer, target / Sample.C)
        (session,) = writer.scratch.glob("*.vhd")
        os.truncate(session, SPOT)
        source = """
fd, spot = opened(arguments[0], os.O_DIRECT), int(arguments[1]) // 4096 * 4096
answer([len(os.pread(fd, 4096, spot - 4096)), failure(os.pread, fd, 4096, spot), failure(os.pread, fd, 8192, spot - 4096)])
"""
        assert ask(scope, source, target / Sample.C, str(SPOT)) == [4096, "EIO", "EIO"]

    def test_again_and_again(self, scope: Scope, writer: Writer) -> None:
        """Each session that was discarded leaves another inode behind, also after a restart."""
        target = writer.mount()
        file, inodes = target / Sample.C, []
        for turn in range(3):
            inodes += [file.stat().st_ino]
            assert write(writer, file, str(turn)) == inodes[-1]
            scope.synthfs("discard", file)
            if turn == 1:
                target = writer.remount(target)
        assert len({*inodes, file.stat().st_ino}) == 4
        assert writer.left() == ["gone"]
        assert same(scope, file, writer.sample.disk.path)

    def test_the_backup_is_meant(self, scope: Scope, writer: Writer) -> None:
        """`materialize` of a disk that was written to is that of its backup, and says so."""
        target, out = writer.mount(), writer.scratch.with_name(f"out-{scope.directory.name}")
        out.mkdir()
        write(writer, target / Sample.C)
        said = scope.synthfs("materialize", target / Sample.C, "-o", out).stderr
        assert "about its backup" in said
        assert same(scope, out / Path(Sample.C).name, writer.sample.disk.path)

    def test_what_is_no_session(self, scope: Scope, writer: Writer) -> None:
        """Said in one line, with the code for what is not there."""
        target = writer.mount()
        assert "not written to" in failed(writer, "discard", target / Sample.C, code=NOT_FOUND)
        assert "not written to" in failed(writer, "discard", target / "README.txt", code=NOT_FOUND)
        assert "no file of this mount" in failed(writer, "discard", target / "pc/nothing.vhd", code=NOT_FOUND)
        assert "no synthfs mount" in failed(writer, "discard", writer.sample.c.raw, code=NOT_FOUND)
        assert "no synthfs mount" in failed(writer, "sessions", writer.scratch, code=MOUNT)

    def test_by_somebody_else(self, scope: Scope, writer: Writer) -> None:
        """Who may write to disks may not therefore discard: the socket is for the owner of the mount."""
        target = writer.mount("--allow-other", "--mode", "0666")
        write(writer, target / Sample.C)
        done = scope.synthfs("discard", target / Sample.C, check=False, user="nobody")
        assert (done.returncode, writer.left()) == (MOUNT, ["vhd"]), done.stderr

    def test_age(self, scope: Scope, writer: Writer) -> None:
        """With --discard-after, what nobody writes to goes by itself, unless it is open."""
        target = writer.mount("--discard-after", str(1 / 86400))
        fd = os.open(target / Sample.C, os.O_RDWR)
        os.pwrite(fd, b"w", SPOT)
        write(writer, target / Sample.D)
        assert wait_until(lambda: len(writer.left()) == 2 and "gone" in writer.left(), 15.0)
        assert os.pread(fd, 1, SPOT) == b"w"
        (one,) = writer.sessions(target)
        assert one["path"] == Sample.C
        os.close(fd)
        assert wait_until(lambda: writer.left() == ["gone", "gone"], 15.0)


class TestIdle:
    """Whether a session was left alone long enough for --discard-after: only time that was seen to pass counts."""

    def test_jumps(self, scope: Scope) -> None:
        """A clock that jumps adds a minute at the most, forward, and nothing back; garbled records are none."""
        path = scope.path() / "session"
        path.touch()
        now = [1000.0]
        passing = Passing(lambda: now[0])
        story = []
        for step in (2.0, 1e9, -1e9, 0.0, float("inf"), 2.0):
            now[0] += step
            story.append(passing.passed())
        assert story[:5] == [2.0, STEP, 0.0, 0.0, STEP]
        assert STEP <= 60
        idle = Idle(str(path))
        for passed, is_open in ((5.0, False), (5.0, False), (5.0, True), (7.0, False)):
            idle.look(passed, is_open)
        assert idle.seconds == 7.0
        idle.record()
        assert Idle(str(path)).seconds == 7.0
        idle.use()
        idle.look(7.0, is_open=False)
        idle.record(3600)
        assert Idle(str(path)).seconds == 0.0
        for garbled in (b"", b"x", b"-5", b"1e9", b"9" * 40, b"\xff", "\u0663".encode(), b"5\n"):
            os.setxattr(path, ATTRIBUTE, garbled)
            assert Idle(str(path)).seconds == 0.0, garbled
        path.unlink()
        idle.look(5.0, is_open=False)
        idle.record()

    def test_clock_on_the_wall(self, scope: Scope, writer: Writer) -> None:
        """A clock that jumps by years, and files with times of any century, discard nothing, before and after a restart."""
        target = writer.mount()
        write(writer, target / Sample.C)
        write(writer, target / Sample.D)
        assert end(scope.server(target)) == 0
        for file, moment in zip(sorted(writer.scratch.glob("*.vhd")), (0, 4_000_000_000), strict=True):
            os.utime(file, (moment, moment))
        switch = scope.path() / "on"
        server = self._serve(scope, writer, target, switch, days=30.0)
        for deed in (switch.touch, switch.unlink):
            deed()
            assert not wait_until(lambda: "gone" in writer.left(), 0.5)
        assert end(server) == 0
        switch.touch()
        server = self._serve(scope, writer, target, switch, days=30.0)
        assert not wait_until(lambda: "gone" in writer.left(), 0.5)
        assert end(server) == 0
        assert writer.left() == ["vhd", "vhd"]

    def test_over_restarts(self, scope: Scope, writer: Writer) -> None:
        """What was seen counts on, after an orderly end and a kill; whoever reads begins it anew, and that is in the log."""
        target, switch = scope.path("served"), scope.path() / "on"
        server = self._serve(scope, writer, target, switch, days=3 / 86400)
        write(writer, target / Sample.C)

        def idle() -> int:
            return int(json.loads((target / ".synthfs/status.json").read_text())["sessions"][0]["idle_seconds"])

        assert wait_until(lambda: idle() >= 1, 10.0)
        assert end(server) == 0
        server = self._serve(scope, writer, target, switch, days=3 / 86400)
        assert 1 <= idle() <= 2
        assert wait_until(lambda: idle() == 2, 10.0)
        server.kill()
        server.wait()
        scope.umount(target)
        server = self._serve(scope, writer, target, switch, days=3 / 86400)
        assert idle() >= 1
        fd = os.open(target / Sample.C, os.O_RDONLY)
        assert idle() == 0
        server.kill()
        server.wait()
        with contextlib.suppress(OSError):
            os.close(fd)
        scope.umount(target)
        server = self._serve(scope, writer, target, switch, days=3 / 86400)
        assert idle() == 0
        assert wait_until(lambda: writer.left() == ["gone"], 10.0)

        def warned() -> list[str]:
            return [line for _, text in scope.logs() for line in text.splitlines() if "--discard-after" in line]

        assert wait_until(lambda: len(warned()) == 1, 10.0)
        assert Sample.C in warned()[0]
        assert end(server) == 0

    def _serve(self, scope: Scope, writer: Writer, target: Path, switch: Path, days: float) -> "Popen[bytes]":
        options: list[Argument] = ["--writable", writer.scratch, "--discard-after", str(days)]
        server, _ = start_server(scope, "clock-jump", writer.sample.root, target, switch, options)
        return server


class TestKeep:
    @pytest.mark.parametrize("form", ["vhd", "vhd-dynamic", "vhdx"])
    def test_keep_is_named_as_materialize_names(self, writer: Writer, form: str) -> None:
        """What is kept of a disk with a new identity is called what `materialize --new-identity` calls it."""
        scope, out = writer.scope, writer.scratch.with_name(f"kept-{form}")
        out.mkdir()
        target = writer.mount("--format", form)
        done = scope.synthfs("materialize", writer.sample.c.raw, "-o", out, "--new-identity", "--format", form, "--json")
        made = Path(json.loads(done.stdout)["file"])
        made.unlink()
        (file,) = (target / "pc" / "new-identity").glob("Image_C_*")
        write(writer, file)
        scope.synthfs("keep", file, "-o", out)
        assert list(out.iterdir()) == [made]

    def test_kept(self, scope: Scope, writer: Writer) -> None:
        """The new file has all that was written and shares its blocks; the disk is the backup's again, under a new inode."""
        target, model = writer.mount(), writer.model()
        out = writer.scratch.with_name(f"out-{scope.directory.name}")
        out.mkdir()
        file = target / Sample.C
        inode = write(writer, file, "kept", model)
        assert "inside" not in failed(writer, "keep", file, "-o", writer.sample.root / "pc", code=TARGET)
        with file.open("rb"):
            assert "--force" in failed(writer, "keep", file, "-o", out, code=BUSY)
        (out / file.name).write_text("precious")
        assert "exists already" in failed(writer, "keep", file, "-o", out, code=TARGET)
        (out / file.name).unlink()
        scope.synthfs("keep", file, "-o", out)
        assert same(scope, out / file.name, model)
        scope.run(["sync", "-f", out])
        used = scope.run(["btrfs", "filesystem", "du", "--raw", out / file.name]).stdout.splitlines()[-1].split()
        assert int(used[1]) < MIB
        assert writer.left() == ["gone"]
        assert same(scope, file, writer.sample.disk.path)
        assert file.stat().st_ino != inode
        assert os.listxattr(out / file.name) == []

    def test_interrupted(self, scope: Scope, writer: Writer) -> None:
        """Nobody opens a disk that is being kept; if the verb is killed meanwhile, the session goes on."""
        target, model = writer.mount(), writer.model()
        inode = write(writer, target / Sample.C, "kept", model)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(writer.scratch / ".control"))
            line.sendall(json.dumps({"do": "keep", "path": Sample.C, "force": False}).encode() + b"\n")
            assert json.loads(line.recv(4096))["scratch"].endswith(".vhd")
            assert ask(scope, "answer(failure(os.open, arguments[0], os.O_RDONLY))", target / Sample.C) == "ESTALE"
            assert failed(writer, "discard", target / Sample.C, code=BUSY)
        assert wait_until(lambda: ask(scope, "answer(failure(os.open, arguments[0], 0))", target / Sample.C) is None, 5.0)
        assert (target / Sample.C).stat().st_ino == inode
        assert same(scope, target / Sample.C, model)

    def test_write_in_flight(self, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write that was under way when a keep began is an error; if the session goes on after all, its bytes are there."""
        path = scope.path() / "session"
        path.write_bytes(b"before")
        file, pwrite = ScratchFile(str(path)), os.pwrite
        file.open()

        def and_ends(*arguments: Any) -> int:
            done = pwrite(*arguments)
            file.end()
            return done

        monkeypatch.setattr(os, "pwrite", and_ends)
        with pytest.raises(SourceError, match="kept elsewhere"):
            file.write(6, b" and after")
        file.revive()
        into = memoryview(bytearray(100))
        assert (file.length, file.read(0, into), bytes(into[:16])) == (16, 16, b"before and after")
        file.close()

    def test_nonsense(self, scope: Scope, writer: Writer) -> None:
        """What is no request is answered, or hung up on, and harms nobody."""
        target = writer.mount()
        for words in (b"\n", b"[]\n", b"{}\n", b'{"do": "discard", "path": 5}\n', b"[" * 70000, b'{"do": "done"}\n'):
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(writer.scratch / ".control"))
                line.sendall(words)
                line.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    answer = line.recv(4096)
                    assert not answer or "error" in json.loads(answer)
        assert write(writer, target / Sample.C)
        scope.synthfs("discard", target / Sample.C)


class TestBackups:
    """What the store does under a session. Each test has a store of its own."""

    def test_deleted(self, scope: Scope) -> None:
        """A session outlives its backup, a restart too, in its place, under its inode; discarded, it is gone."""
        writer = Writer.make(scope)
        target, model = writer.mount(), writer.model()
        file = target / Sample.C
        inode = write(writer, file, "kept", model)
        for image in (writer.sample.c, writer.sample.d, writer.sample.system):
            Store(writer.sample.root).delete(image)
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: not (target / Sample.D).exists(), 10.0)
        for turn in range(2):
            assert file.stat().st_ino == inode
            assert same(scope, file, model)
            assert write(writer, file, f"more {turn}", model) == inode
            (one,) = writer.sessions(target)
            assert (one["backup"], [path.name for path in file.parent.iterdir()]) == (False, [file.name])
            if not turn:
                target = writer.remount(target)
        failed(writer, "materialize", file, "-o", writer.scratch, code=NOT_FOUND)
        (row,) = scope.synthfs("sessions", target).stdout.splitlines()[1:]
        assert " deleted " in row
        scope.synthfs("discard", file)
        assert not (target / "pc").exists()
        assert writer.left() == ["gone"]

    def test_another_edition(self, scope: Scope) -> None:
        """Where other backups give the disk other bytes, that disk is shown beside the session, which stays what it was."""
        writer = Writer.make(scope)
        target, model = writer.mount(), writer.model()
        file = target / Sample.C
        inode = write(writer, file, "kept", model)
        # D: from another time is another disk under the name of C:'s image.
        Store(writer.sample.root).client("pc").backup(writer.sample.disk, 4, "D", "260301-0202")
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: len([*file.parent.glob("Image_C_*~*.vhd")]) == 1, 10.0)
        for _ in range(2):
            (other,) = file.parent.glob("Image_C_*~*.vhd")
            assert file.stat().st_ino == inode != other.stat().st_ino
            assert same(scope, file, model)
            assert same(scope, other, writer.sample.disk.path)
            target = writer.remount(target)
        (row,) = scope.synthfs("sessions", target).stdout.splitlines()[1:]
        assert " changed " in row
        # Neither name is taken for that of the other's backup.
        for path in (file, other):
            assert str(writer.sample.c.raw) in failed(writer, "materialize", path, "-o", writer.scratch, code=NOT_FOUND)
        assert "another disk" in scope.synthfs("discard", file).stderr
        assert [path.name for path in file.parent.glob("Image_C_*")] == [file.name]
        assert same(scope, file, writer.sample.disk.path)

    def test_format_that_is_not_shown(self, scope: Scope) -> None:
        """A backup is there, whatever the mount shows of it; a record of before that was kept is understood as before."""
        writer = Writer.make(scope)
        target = writer.mount("--format", "vhdx")
        (file,) = (target / "pc").glob("Image_C_*.vhdx")
        write(writer, file)
        assert writer.sessions(target)[0]["backup"]
        target = writer.remount(target)
        assert writer.sessions(target)[0]["backup"]
        end(scope.server(target))
        (session,) = writer.scratch.glob("*.vhdx")
        record = json.loads(os.getxattr(session, "user.synthfs.session"))
        old = {name: fact for name, fact in record.items() if name != "disk_edition"}
        os.setxattr(session, "user.synthfs.session", json.dumps(old).encode())
        for form, found in (("vhd", False), ("vhdx", True)):
            target = writer.mount("--format", form, target=target)
            assert [one["backup"] for one in writer.sessions(target)] == [found]
            end(scope.server(target))
        os.setxattr(session, "user.synthfs.session", json.dumps(record).encode())
        target = writer.mount(target=target)
        assert "its backup is there" in scope.synthfs("discard", file).stderr
        assert not file.exists()
        # The same, and the backup really is gone.
        write(writer, target / Sample.C)
        for image in (writer.sample.c, writer.sample.d, writer.sample.system):
            Store(writer.sample.root).delete(image)
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: not (target / Sample.D).exists(), 10.0)
        assert not writer.sessions(target)[0]["backup"]

    @pytest.mark.parametrize("suffix", ["-flat.vmdk", ".vmdk"])
    def test_another_edition_of_a_vmdk(self, scope: Scope, suffix: str) -> None:
        """While a session has the name of one of a VMDK's files, another edition shows neither: a text names no other bytes."""
        writer = Writer.make(scope)
        target = writer.mount("--format", "vmdk")
        stem = (target / Sample.C).with_suffix("")
        text, flat = stem.with_name(stem.name + ".vmdk"), stem.with_name(stem.name + "-flat.vmdk")
        file = stem.with_name(stem.name + suffix)
        inode, before = file.stat().st_ino, text.stat().st_ino
        fd = os.open(file, os.O_RDWR)
        os.pwrite(fd, b"#", 0)
        os.close(fd)
        assert sorted(file.parent.glob("Image_C_*")) == [flat, text]
        Store(writer.sample.root).client("pc").backup(writer.sample.disk, 4, "D", "260301-0202")
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: [*file.parent.glob("Image_C_*")] == [file], 10.0)
        assert file.stat().st_ino == inode
        scope.synthfs("discard", file)
        assert sorted(file.parent.glob("Image_C_*")) == [flat, text]
        assert text.stat().st_ino != before
        assert f'"{flat.name}"' in text.read_text()
        assert flat.read_bytes() == writer.sample.disk.path.read_bytes()


class TestScratch:
    def test_what_is_not_ours(self, scope: Scope, writer: Writer) -> None:
        """Files that are not understood stay untouched, whatever their names, and are no sessions."""
        target = writer.mount()
        write(writer, target / Sample.C)
        (session,) = writer.scratch.glob("*.vhd")
        assert scope.server(target).poll() is None
        scope.umount(target)
        stem = session.name.rpartition(".")[0].rpartition(".")[0]
        strange = {"notes.txt": "x", "Image_C.0123456789abcdef.0.vhd": "y", f"{stem}.7.vhd": "z", f"{stem}.9.gone": "w"}
        for name, text in strange.items():
            (writer.scratch / name).write_text(text)
        damaged = writer.scratch / f"{stem}.8.vhd"
        damaged.write_text("d")
        os.setxattr(damaged, "user.synthfs.session", b'{"edition": "00", "path": "../../etc"}')
        target = writer.mount(target=target)
        assert [one["path"] for one in writer.sessions(target)] == [Sample.C]
        assert {name: (writer.scratch / name).read_text() for name in strange} == strange
        assert damaged.read_text() == "d"

    def test_half_discarded(self, scope: Scope, writer: Writer) -> None:
        """What a mount that was killed right after the rename left is emptied by the next, and was discarded."""
        target = writer.mount()
        inode = write(writer, target / Sample.C)
        scope.umount(target)
        (session,) = writer.scratch.glob("*.vhd")
        mark = session.with_name(session.name.replace(".0.vhd", ".1.gone"))
        session.rename(mark)
        target = writer.mount(target=target)
        assert (mark.stat().st_size, writer.sessions(target)) == (0, [])
        assert (target / Sample.C).stat().st_ino != inode
        assert same(scope, target / Sample.C, writer.sample.disk.path)
