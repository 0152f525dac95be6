"""Puts a server into the background: forks, and returns in the parent only once the server serves, or has failed.

The fork comes before any thread or event loop exists; `serve` runs in the child alone. Also keeps what is said on stderr for
somebody who can make more of it. Units: seconds.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from synthfs.errors import MountError

LIMIT = 30.0

_MOST_CAPTURED = 65536
"""Bytes of stderr that are looked at."""

_LAST_WORDS = 8192
"""Bytes of what the child wrote to stderr that are told where it fails: the last ones."""

_PAUSE = 0.005
"""Between looks whether the server is ready; half of it is waited for nothing, and a look takes 0.3 ms of a processor."""

_ENDING = signal.SIGTERM, signal.SIGHUP


def start(serve: Callable[[], int], is_ready: Callable[[], bool], limit: float = LIMIT) -> int:
    """Forks a child that runs `serve` and exits with what it returns. Returns the child's id once `is_ready()`.

    Raises MountError, with what the child wrote to stderr, if it ends before that or takes longer than `limit`; then no
    child is left. Nor is one when this process is told to end meanwhile, which raises SystemExit: whoever tells it so must
    not find a mount afterwards.
    """
    report, child_report = os.pipe()
    # The child waits for nobody who does not read, and whoever reads does not wait for what the child leaves behind.
    os.set_blocking(report, False)
    os.set_blocking(child_report, False)
    words = b""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(report)
            _become_server(child_report)
            code = serve()
        finally:
            # Whatever happened: what follows is for the parent to do.
            os._exit(code)
    before = [(number, signal.signal(number, _leave)) for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    os.close(child_report)
    try:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            has_ended = bool(os.waitpid(child, os.WNOHANG)[0])
            words = (words + _read(report))[-_LAST_WORDS:]
            if has_ended:
                child = 0
                raise MountError(_told(words) or "the mount process ended without saying why")
            if is_ready():
                return child
            time.sleep(_PAUSE)
        raise MountError(f"the mount did not answer within {limit:.0f} seconds; its process was ended")
    except BaseException:  # Ctrl-C among them
        if child:
            _end(child)
        raise
    finally:
        os.close(report)
        for number, handler in before:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Keeps what this process and its children write to stderr; gives a function that returns it, and so takes it over.

    What nobody asked for is written to stderr at the end.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield lambda: ""
        return
    file, taken = os.memfd_create("stderr"), 0

    def rest() -> bytes:
        nonlocal taken
        text = os.pread(file, _MOST_CAPTURED, taken)
        taken += len(text)
        return text

    os.dup2(file, 2)
    try:
        yield lambda: rest().decode("utf-8", "replace")
    finally:
        os.dup2(stderr, 2)
        if rest_of_it := rest():
            with suppress(OSError):
                os.write(2, rest_of_it)
        os.close(file)
        os.close(stderr)


def _become_server(report: int) -> None:
    """A session of its own, no terminal, and stderr to the parent for as long as that listens."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(report, 2)
    os.close(report)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # lives as long as the process


def _read(report: int) -> bytes:
    """What has been written there by now."""
    words = b""
    with suppress(BlockingIOError):
        while part := os.read(report, 65536):
            words = (words + part)[-_LAST_WORDS:]
    return words


def _told(words: bytes) -> str:
    lines = os.fsdecode(words).strip().split("\n")
    return "; ".join(line.removeprefix("| ").removeprefix("synthfs: ") for line in lines)


def _end(child: int) -> None:
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        os.kill(child, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.05)
