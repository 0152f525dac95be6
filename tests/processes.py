"""Processes with an identity and a time limit, for the test suite.

Not for: mounts, loop devices, or anything about synthfs itself.
Units: seconds. Source: proc(5), field 22 of /proc/PID/stat is the start time, which makes a pid unmistakable.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

MARK = "SYNTHFS_LAB"
"""Environment variable that names the laboratory a process belongs to; daemons that forked away still carry it."""

Argument = str | os.PathLike[str]


class CommandFailedError(AssertionError):
    """A command of the test bench ended otherwise than the test needs."""


class CommandTimeoutError(CommandFailedError):
    """A command did not end within its limit and was killed."""


@cache
def boot() -> str:
    """What tells this run of the kernel from any other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be confused with a later one of the same pid, in this run of the kernel or another."""

    pid: int
    start: int
    boot: str = field(default_factory=boot)

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The identity of a living process; None when there is none, or only its zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command name (field 2) may hold blanks and parentheses, so count from its last parenthesis.
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def terminate(self, grace: float = 5.0) -> bool:
        """SIGTERM, then SIGKILL after `grace`; False when the process outlived even that."""
        for number, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            if not self.alive:
                return True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if wait_until(lambda: not self.alive, limit):
                return True
        return False

    def __str__(self) -> str:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            return f"process {self.pid} ({command.strip()})"
        return f"process {self.pid}"


def marked(laboratory: Path) -> Iterator[Identity]:
    """Every living process, other than this one, that carries the mark of this laboratory."""
    wanted = f"{MARK}={laboratory}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and (found := Identity.of(int(entry.name))):
                yield found


def wait_until(condition: Callable[[], bool], limit: float, pause: float = 0.02) -> bool:
    """Poll until the condition holds; False when the limit passed first."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True


def run(
    argv: Sequence[Argument],
    *,
    timeout: float = 60.0,
    check: bool = True,
    input: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a session of its own; kill it and raise when it is not done in time.

    Output goes through files: with pipes, a daemon that keeps them open would look like a command that never ends.
    `user` gives up root, with all groups.
    """
    shown = " ".join(os.fspath(word) for word in argv)
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(input)
        stdin.seek(0)
        child = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            start_new_session=True,
            user=user,
            group=None if user is None else "nogroup",
            extra_groups=None if user is None else [],
        )
        try:
            code = _ended(child, timeout)
        except subprocess.TimeoutExpired as late:
            _kill_session(child)
            stderr.seek(0)
            message = f"not done after {timeout:g} s, killed: {shown}\n{stderr.read().decode(errors='replace')}"
            raise CommandTimeoutError(message) from late
        except BaseException:
            _kill_session(child)
            raise
        stdout.seek(0)
        stderr.seek(0)
        done = subprocess.CompletedProcess(list(argv), code, stdout.read(), stderr.read())
    if check and code != 0:
        said = (done.stdout[-2000:] + done.stderr[-4000:]).decode(errors="replace")
        raise CommandFailedError(f"exit code {code}: {shown}\n{said}")
    return done


def _ended(child: "subprocess.Popen[bytes]", timeout: float) -> int:
    """The exit code, at the moment of the end: `wait` with a limit looks every 50 ms, which shows in what is measured."""
    process = os.pidfd_open(child.pid)
    try:
        watch = select.poll()
        watch.register(process, select.POLLIN)
        watch.poll(timeout * 1000)
    finally:
        os.close(process)
    return child.wait(0)


def in_child(source: str, *arguments: Argument, timeout: float = 20.0, env: Mapping[str, str] | None = None) -> bytes:
    """Run Python source in a child with a limit; `sys.argv[1:]` are the arguments, stdout is the result."""
    return run([sys.executable, "-I", "-S", "-c", source, *arguments], timeout=timeout, env=env).stdout


def _kill_session(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    # A child stuck in the kernel on a dead mount does not even take SIGKILL: never wait for it without a limit.
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5.0)
