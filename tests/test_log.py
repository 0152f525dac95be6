"""The log of a mount: nobody waits for it, nobody can forge a line of it, and it says what it lost.

Not for: what else is printed (test_output). Expected: what the kernel says of terminals, pipes and /dev/full, and the bytes of
the original disk. No test asserts a time; the limits are those after which something counts as stuck.
"""

import contextlib
import errno
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import need
from lab import Lab, Scope
from ledger import mounts_below
from onmount import SERVER, Sample, ask, end, read_right, start_server
from processes import Argument, Identity, wait_until
from stock import status
from synthfs.errors import SourceError
from synthfs.host import logs

PREFIX = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} synthfs\[\d+\]: ")
FAIL = """
for number in range(int(arguments[1])):
    assert failure(open, arguments[0], 'rb') == 'EIO'
answer(True)
"""
"""Opens a disk whose backup is not what it was; each time is a line in a log of level debug."""
MANY = "600"
"""Lines that are more than a pipe of 64 KiB holds, or a terminal."""


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    """Two clients that have the same disk."""
    need.fuse()
    with lab.scope("log") as scope:
        sample = Sample.make(scope)
        scope.run(["cp", "-a", sample.root / "pc", sample.root / "worse"])
        yield sample


GOOD, BAD = "pc/Image_C_260301-0201.vhd", "worse/Image_D_260301-0203.vhd"
WHOLE = "answer(len(open(arguments[0], 'rb').read(1 << 20)) == 1 << 20)"


def spoil(root: Path) -> None:
    """The second client's D: is not what it was from now on."""
    os.truncate(next(root.glob("worse/*/Image_D*.raw")), 1 << 20)


@contextlib.contextmanager
def terminal(stopped: bool, in_background: bool = False) -> Iterator[tuple[int, Callable[[], None]]]:
    """A terminal that nobody reads, and what Ctrl-S does there, or `stty tostop`."""
    master, slave = pty.openpty()

    def stop() -> None:
        if stopped:
            termios.tcflow(slave, termios.TCOOFF)
        settings = termios.tcgetattr(slave)
        settings[3] |= termios.TOSTOP if in_background else 0
        termios.tcsetattr(slave, termios.TCSANOW, settings)

    try:
        yield slave, stop
    finally:
        os.close(master)
        os.close(slave)


@contextlib.contextmanager
def pipe(reader: bool) -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe whose reader does not read, or is not there any more."""
    read, write = os.pipe()
    if not reader:
        os.close(read)
    try:
        yield write, lambda: None
    finally:
        os.close(write)
        if reader:
            os.close(read)


JOB = """
import fcntl, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(subprocess.Popen(sys.argv[1:], process_group=0).wait())
"""
"""Runs a command as a shell runs one in the background of its terminal."""

OUTLETS: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[int, Callable[[], None]]]]] = {
    "stopped terminal": lambda: terminal(stopped=True),
    "terminal that stops jobs": lambda: terminal(stopped=False, in_background=True),
    "pipe that nobody reads": lambda: pipe(reader=True),
    "pipe without a reader": lambda: pipe(reader=False),
}


@contextlib.contextmanager
def serving(scope: Scope, root: Path, stderr: int, *options: str) -> Iterator[tuple[Path, "Popen[bytes]"]]:
    """A mount in the foreground with a stderr of its own."""
    target = scope.path("served")
    argv: list[Argument] = [sys.executable, "-m", "synthfs", "mount", "--log-level", "debug", *options, root, target]
    if os.isatty(stderr):
        argv[:0] = [sys.executable, "-c", JOB]
    stdin = stderr if os.isatty(stderr) else subprocess.DEVNULL
    server = Popen(argv, stdin=stdin, stdout=stderr, stderr=stderr, env=scope.environment, start_new_session=True)
    try:
        assert wait_until(lambda: server.poll() is not None or bool(mounts_below(target)), 30)
        assert server.poll() is None
        assert ask(scope, "answer(failure(os.stat, arguments[0]))", target / BAD) is None
        spoil(root)
        yield target, server
    finally:
        if server.poll() is None:
            server.kill()
            server.wait(10)
        scope.umount(target)


class TestNobodyWaits:
    @pytest.mark.parametrize("outlet", OUTLETS)
    def test_for_stderr(self, scope: Scope, sample: Sample, outlet: str) -> None:
        """Failing reads fill what nobody takes: the others go on, refreshes too, and `umount` ends the process."""
        root = sample.copy(scope)
        with OUTLETS[outlet]() as (stderr, stop), serving(scope, root, stderr) as (target, server):
            stop()
            assert ask(scope, FAIL, target / BAD, MANY) is True
            assert ask(scope, WHOLE, target / GOOD) is True
            os.kill(status(scope, target)["pid"], signal.SIGHUP)
            assert wait_until(lambda: status(scope, target)["refreshes"] >= 1, 20)
            assert status(scope, target)["errors"] >= int(MANY)
            if outlet == "pipe without a reader":
                assert status(scope, target)["log_lines_dropped"] >= int(MANY)
                metrics = ask(scope, "answer(open(arguments[0]).read())", target / ".synthfs/metrics")
                assert int(re.findall(r"^synthfs_log_lines_dropped_total (\d+)$", metrics, re.MULTILINE)[0]) >= int(MANY)
            scope.synthfs("umount", target, timeout=40)
            assert server.wait(20) == 0

    def test_at_the_end(self, scope: Scope, sample: Sample) -> None:
        """A signal ends it while nobody takes what it still has to say."""
        root = sample.copy(scope)
        with OUTLETS["stopped terminal"]() as (stderr, stop), serving(scope, root, stderr) as (target, server):
            stop()
            assert ask(scope, FAIL, target / BAD, MANY) is True
            os.kill(status(scope, target)["pid"], signal.SIGTERM)
            assert server.wait(20) == 0
            assert not mounts_below(target)

    @pytest.mark.parametrize("place", ["/dev/full", "FIFO"])
    def test_for_a_file(self, scope: Scope, sample: Sample, place: str) -> None:
        """No space, or a FIFO whose reader sleeps: counted, and nothing else."""
        root, reader = sample.copy(scope), None
        if place == "FIFO":
            place = str(scope.path() / "fifo")
            os.mkfifo(place)
            refused = scope.synthfs("mount", root, scope.path("unread"), "--log-file", place, check=False, timeout=20)
            assert (refused.returncode, len(refused.stderr.splitlines())) == (8, 1)
            reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with serving(scope, root, 2, "--log-file", place) as (target, server):
                assert ask(scope, FAIL, target / BAD, MANY) is True
                if reader is None:
                    assert wait_until(lambda: status(scope, target)["log_lines_dropped"] >= int(MANY), 20)
                assert ask(scope, WHOLE, target / GOOD) is True
                scope.synthfs("umount", target, timeout=40)
                assert server.wait(20) == 0
        finally:
            if reader is not None:
                os.close(reader)


class TestDaemon:
    """Its log goes to the caller's stderr until it serves, where there is no /dev/log."""

    @pytest.fixture
    def chatty(self, scope: Scope) -> Path:
        """A store that is worth more than a pipe full of lines when it is mounted."""
        if os.path.exists(logs._SYSLOG):
            pytest.skip("there is a system log here")
        root = scope.path("store") / "urbackup"
        for number in range(800):
            stamp, letter = f"2603{number % 28 + 1:02}-{number:04}", "C" + "x" * 100
            directory = root / "pc" / f"{stamp}_Image_{letter}"
            directory.mkdir(parents=True)
            (directory / f"Image_{letter}_{stamp}.raw").touch()
        return root

    def chat(self, scope: Scope, store: Path, target: Path, then: str) -> "subprocess.CompletedProcess[str]":
        """`mount --daemon` of a server that logs more than a pipe holds before it does anything else."""
        source = f"""
import logging
import synthfs.fuse.mount
from synthfs.cli.main import main
from synthfs.errors import MountError
serve = synthfs.fuse.mount.serve
def serves(*arguments):
    for number in range(3000):
        logging.getLogger('synthfs').warning('line %d, which is one of very many', number)
    {then}
synthfs.fuse.mount.serve = serves
main()
"""
        return scope.run([sys.executable, "-c", source, "mount", "--daemon", store, target], check=False, timeout=25)

    def test_that_says_a_lot(self, scope: Scope, chatty: Path) -> None:
        """The parent takes it, and returns once the mount answers."""
        target = scope.path("served")
        assert self.chat(scope, chatty, target, "serve(*arguments)").returncode == 0
        assert ask(scope, "answer(os.listdir(arguments[0]))", target)
        scope.synthfs("umount", target)

    def test_that_fails_after_saying_a_lot(self, scope: Scope, chatty: Path) -> None:
        """Why it failed is told all the same, at the end of one line."""
        done = self.chat(scope, chatty, scope.path("served"), "raise MountError('this is why')")
        assert done.returncode == 9
        assert done.stderr.endswith("; this is why\n")
        assert len(done.stderr.splitlines()) == 2, "the warning of a store without disks, and the error"

    @pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
    def test_whose_parent_takes_nothing(self, scope: Scope, chatty: Path, number: int) -> None:
        """A parent that was stopped or killed keeps no daemon from serving, nor from ending."""
        target = scope.path("served")
        argv: list[Argument] = [sys.executable, SERVER, "late", "mount", "--daemon", "--log-level", "debug", chatty, target]
        report = scope.path() / "report"
        parent = scope.start(argv, env={"FAULT_SWITCH": str(report)})
        assert wait_until(lambda: report.exists() and report.read_text().endswith("}"), 20)
        parent.send_signal(number)
        assert wait_until(lambda: bool(mounts_below(target)), 20)
        try:
            assert ask(scope, "answer(os.listdir(arguments[0]))", target)
            assert status(scope, target)["disks"] == 0
        finally:
            if number == signal.SIGSTOP:
                parent.send_signal(signal.SIGCONT)
                assert parent.wait(20) == 0
        daemon = Identity.of(status(scope, target)["pid"])
        scope.synthfs("umount", target, timeout=40)
        assert daemon is None or not daemon.alive


class TestClosed:
    """Streams that the caller closed."""

    @pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
    def test_verbs(self, scope: Scope, sample: Sample, closed: str) -> None:
        """They do what they do, and say it where somebody listens."""
        command = f'exec "$@" {closed}'
        for words, code in (("list", sample.root), 0), (("list", "/nonexistent"), 3), (("no-verb",), 2):
            done = scope.run(["sh", "-c", command, "sh", sys.executable, "-m", "synthfs", *words], check=False)
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stdout + done.stderr
            assert "2>&-" not in closed or done.stderr == ""
            assert "2>&-" not in closed or code == 0 or done.stdout == "", "what is for stderr is nowhere else"

    @pytest.mark.parametrize("way", ["foreground", "--daemon"])
    def test_mount(self, scope: Scope, sample: Sample, way: str) -> None:
        """Nothing of a store and no /dev/fuse gets their numbers; it serves, and ends."""
        target = scope.path("served")
        words = ["mount", *(["--daemon"] if way != "foreground" else []), str(sample.root), str(target)]
        server = scope.start(["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-m", "synthfs", *words])
        assert wait_until(lambda: bool(mounts_below(target)), 20)
        assert read_right(scope, target / sample.D, sample.disk)
        pid = status(scope, target)["pid"]
        open_there = {Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)}
        assert [path for path in open_there if str(path) != "/dev/null" and not str(path).startswith("pipe:")] == []
        scope.synthfs("umount", target)
        assert server.wait(10) == 0


class TestLines:
    def test_cannot_be_forged(self, scope: Scope, sample: Sample) -> None:
        """Clients with such names, and a bug: each line of the log file begins with ours, and is text that can be seen."""
        root = sample.copy(scope)
        evil = "e\n2026-01-01 00:00:00,000 synthfs[1]: FORGED\x1b[31m\r\u202e\u2028\x9b\udcff"
        (root / "pc").rename(root / evil)
        (root / evil / "260301-0209_Image_\x1b\nFORGED").mkdir()
        (root / "worse").rename(root / f"{evil}2")
        file, switch = scope.path() / "log", scope.path() / "switch"
        options = "--log-level", "debug", "--log-file", file
        server, stderr = start_server(scope, "piece:open", root, scope.path("served"), switch, options)
        target = next(mount.target for mount in mounts_below(scope.directory) if mount.fstype == "fuse.synthfs")
        disks = sorted(path for path in target.glob("e*/*.vhd"))
        os.truncate(next(root.glob("*2/*/Image_C*.raw")), 1 << 20)
        source = "answer([failure(open, path) for path in arguments])"
        assert "EIO" in ask(scope, source, *disks)
        switch.touch()
        assert ask(scope, source, disks[0]) == ["EIO"]
        assert end(server) == 0
        for number, line in enumerate(file.read_text().split("\n")[:-1]):
            assert PREFIX.match(line), (number, line)
            assert line.isprintable()
        assert "synthfs[" not in stderr.read_text()
        assert re.search(r"synthfs\[\d+\]: \| ZeroDivisionError: injected into open$", file.read_text(), re.MULTILINE)
        assert all(line.isprintable() for line in stderr.read_text().split("\n"))

    def test_of_all_that_is_printed(self, scope: Scope) -> None:
        """A traceback whose text has lines of its own, arguments that do not fit, and what others print on stderr."""
        source = """
import logging, sys
from synthfs.host import logs
log = logging.getLogger('synthfs')
with logs.written('INFO', logs.Descriptor.file(sys.argv[1])) as dropped:
    try:
        raise ValueError('why\\nFORGED\\r\\x1b[31m\\nTraceback')
    except ValueError:
        log.exception('bug in %s', '\\nFORGED')
    log.warning('%d', 'no number')
    log.warning('long %s', '\\x1b' * 100_000)
    print('a\\x1b[31mb', end='\\nc\\n', file=sys.stderr)
    assert dropped() == 0
"""
        file = scope.path() / "log"
        done = scope.run([sys.executable, "-c", source, file])
        lines = file.read_text().split("\n")[:-1]
        assert [line for line in lines if not PREFIX.match(line) or not line.isprintable()] == []
        assert not any(PREFIX.sub("", line).startswith(("FORGED", "Traceback", " ")) for line in lines)
        assert max(map(len, lines)) <= logs.LONGEST
        assert done.stderr == "a\\x1b[31mb\nc\n"

    def test_that_are_dropped_are_counted(self) -> None:
        """What finds no room is said where it is missing, and none of the rest is lost or out of order."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        lines = logs.Lines(logs.Descriptor(writer))
        wanted = 20_000
        for number in range(wanted):
            lines.put(logging.INFO, f"{number} {'x' * 100}")
        assert 0 < lines.dropped < wanted
        with open(reader, "rb") as file:
            taken = [file.readline() for _ in range(4000)]
            # There is room again, long before all is read.
            lines.put(logging.INFO, "last")
            while taken[-1] != b"last\n":
                taken.append(file.readline())
            lines.close()
            os.close(writer)
        told = [int(found[1]) for line in taken if (found := re.match(rb"synthfs: (\d+) lines? of the log w", line))]
        numbers = [int(line.split()[0]) for line in taken if line[:1].isdigit()]
        assert sum(told) == lines.dropped
        assert len(numbers) + lines.dropped == wanted
        assert numbers == sorted(numbers)

    def test_after_a_full_disk(self) -> None:
        """Once there is space again, the log says how much it lost, and goes on."""
        written: list[bytes] = []

        class Disk:
            encoding = "utf-8"
            is_full = True

            def write(self, level: int, line: bytes) -> None:
                if self.is_full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written.append(line)

        disk = Disk()
        lines = logs.Lines(disk)
        for number in range(10):
            lines.put(logging.INFO, str(number))
        assert wait_until(lambda: lines.dropped == 10, 10)
        disk.is_full = False
        lines.put(logging.INFO, "again")
        lines.close()
        assert written[0] == b"again"
        assert written[1].startswith(b"synthfs: 10 lines of the log were dropped")
        assert lines.dropped == 10

    def test_to_a_system_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One datagram a line with its priority, also to one that was started anew; one that hangs keeps nobody waiting."""
        monkeypatch.setattr(logs, "_SYSLOG", str(tmp_path / "log"))

        def listening() -> socket.socket:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            channel.bind(str(tmp_path / "log"))
            channel.settimeout(20)
            return channel

        with listening() as first:
            lines = logs.Lines(logs.Syslog())
            lines.put(logging.WARNING, "a\nb")
            assert first.recv(65536) == b"<12>a\\nb\0"
        (tmp_path / "log").unlink()
        with listening() as second:
            lines.put(logging.ERROR, "c")
            assert second.recv(65536) == b"<11>c\0"
            for _ in range(20_000):
                lines.put(logging.INFO, "x" * 100)
            lines.close()
            assert lines.dropped > 0


class TestNews:
    def report(self, sample: Sample, texts: Iterator[str], caplog: pytest.LogCaptureFixture) -> list[str]:
        """What is logged at level WARNING where requests fail with such errors."""
        from synthfs.fuse.metrics import Metrics
        from synthfs.fuse.operations import Access, Operations
        from synthfs.plan.container import Format
        from synthfs.plan.garden import Gardener
        from synthfs.survey import survey

        tree: Any = Gardener([Format.VHD]).sketch(survey(str(sample.root), None), lambda: ())
        operations = Operations(tree, Access(0, 0, 0o440), Metrics())
        with caplog.at_level(logging.WARNING):
            for text in texts:
                operations.report(SourceError(text))
        return [record.getMessage() for record in caplog.records]

    @pytest.mark.parametrize("different", [10, 1001, 5000])
    def test_each_error_once(self, sample: Sample, different: int, caplog: pytest.LogCaptureFixture) -> None:
        """Also the thousand and first: clients try again and again."""
        texts = [f"{number} cannot be read" for number in range(different)]
        assert self.report(sample, iter(texts * 3), caplog) == texts

    def test_bounded(self, sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
        """Errors that are different without end neither fill the memory nor the log, which says so."""
        said = self.report(sample, (f"{number} cannot be read" for number in range(3 * logs.News.MOST)), caplog)
        assert len(said) == logs.News.MOST + 1
        assert "only counted" in said[-1]
        news = logs.News()
        for number in range(2 * logs.News.MOST):
            news.level(str(number))
        assert len(news._known) <= logs.News.MOST
