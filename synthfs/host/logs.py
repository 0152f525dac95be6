"""The log of a mount, written by threads of its own: nobody who serves a request ever waits for a terminal or a disk.

    logging, and what is printed on stderr ─► Lines: bounded, never waits ─► a thread ─► Descriptor or Syslog, may wait

What finds no room is dropped and counted, and so is what cannot be written; the log says how many once there is room again.
Each line is `printable` and begins with our prefix, so that no name can forge one; those of a traceback go on with `| `.

To be started after a fork. Not for: what is logged. Units: seconds, characters.
Source: RFC 3164 for /dev/log, as syslog(3) writes it.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Protocol

from synthfs.text import printable

log = logging.getLogger(__name__)

LONGEST = 8000
"""Of one line. A path has 4096 bytes at most."""

ROOM = 1 << 20
"""Of all lines that wait, each with the 100 that it takes beside its text."""

PATIENCE = 2.0
"""Seconds that the end waits for what is not written yet."""

_PAUSE = 0.02
"""Before another attempt at what could not be written without waiting."""

_SYSLOG = "/dev/log"
_USER = 1 << 3
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Outlet(Protocol):
    """Where lines go. May wait for as long as it likes."""

    encoding: str

    def write(self, level: int, line: bytes) -> None:
        """Raises OSError where the line cannot be written."""


class Descriptor:
    """An open file, terminal or pipe."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self._fd = fd
        self.encoding = encoding

    @classmethod
    def file(cls, path: str) -> "Descriptor":
        """A file that is appended to. Raises OSError; also for a pipe that nobody reads, which would be waited for."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o666)
        return cls(fd)

    def write(self, level: int, line: bytes) -> None:
        rest = memoryview(line + b"\n")
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody made it so, which holds for all who have this terminal
                watch = select.poll()
                watch.register(self._fd, select.POLLOUT)
                watch.poll()
                time.sleep(_PAUSE)


class Syslog:
    """The system's log. Looked for anew where it went away."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @staticmethod
    def is_there() -> bool:
        return os.path.exists(_SYSLOG)

    def write(self, level: int, line: bytes) -> None:
        message = b"<%d>%s\0" % (_USER | _PRIORITIES.get(level, 5), line)
        if self._socket:
            with contextlib.suppress(OSError):
                return self._socket.sendall(message)
            self._socket.close()
        self._socket = _connected()
        self._socket.sendall(message)
        return None


def _connected() -> socket.socket:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        channel = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            channel.connect(_SYSLOG)
            return channel
        except OSError as error:
            channel.close()
            failed = error
    raise failed


class Lines:
    """Takes lines at any time from any thread, and writes them to `outlet` in a thread of its own."""

    def __init__(self, outlet: Outlet, prefix: Callable[[], str] = lambda: "synthfs: ") -> None:
        self.dropped = 0
        """Lines that found no room, or could not be written."""
        self._outlet = outlet
        self._prefix = prefix
        # Each with its level, and for how many dropped ones it stands.
        self._waiting: deque[tuple[int, str, int]] = deque()
        self._length = 0
        self._is_full = False
        self._can_write = True
        self._untold = 0
        self._is_closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="synthfs-log", daemon=True)
        self._thread.start()

    def put(self, level: int, line: str) -> None:
        """Never waits. The line is made printable."""
        line = printable(line[:LONGEST])[:LONGEST]
        with self._changed:
            self._is_full = self._length > (ROOM // 2 if self._is_full else ROOM)
            if self._is_full or self._is_closed:
                self._drop()
                return
            self._tell_dropped()
            self._append(level, line)

    def close(self) -> None:
        """Waits until all is written, but no longer than PATIENCE; what is left then is lost with the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(PATIENCE)

    def _append(self, level: int, line: str, stands_for: int = 0) -> None:
        self._waiting.append((level, line, stands_for))
        self._length += len(line) + 100
        self._changed.notify()

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _tell_dropped(self) -> None:
        if self._untold and self._can_write:
            what = "1 line of the log was" if self._untold == 1 else f"{self._untold} lines of the log were"
            text = f"{self._prefix()}{what} dropped here, since nobody took them in time"
            self._append(logging.WARNING, text, self._untold)
            self._untold = 0

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            level, line, stands_for = taken
            try:
                self._outlet.write(level, line.encode(self._outlet.encoding, "backslashreplace"))
                self._can_write = True
            except OSError:
                # Nobody is there, or no space is: the next line tries it again.
                self._can_write = False
                with self._changed:
                    self._untold += stands_for
                    if not stands_for:
                        self._drop()

    def _next(self) -> tuple[int, str, int] | None:
        """Waits for a line; None at the end."""
        with self._changed:
            if not self._waiting:
                self._tell_dropped()
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            taken = self._waiting.popleft()
            self._length -= len(taken[1]) + 100
            return taken


class _Handler(logging.Handler):
    """What is logged, line by line."""

    def __init__(self, lines: Lines, prefix: Callable[[], str]) -> None:
        super().__init__()
        self._lines = lines
        self._prefix = prefix
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # the arguments do not fit: a bug, and no reason to fail whatever was being done
            text = f"{record.msg!r} with {record.args!r}"
        self._lines.put(record.levelno, f"{self._prefix()}{text}")
        if record.exc_info:
            for line in self._formatter.formatException(record.exc_info).split("\n"):
                self._lines.put(record.levelno, f"{self._prefix()}| {line}")


@contextmanager
def written(level: str, outlet: Outlet | None) -> Iterator[Callable[[], int]]:
    """Until the context ends, the log goes to `outlet`, or to stderr, and what anybody prints on stderr goes to stderr.

    The latter is also what libfuse and fusermount3 print: their lines begin with `| `, since names may be in them. `level` is
    one of logging's names. Yields what tells how many lines were dropped. What cannot be written at the end is given up.
    """
    when = logging.Formatter() if isinstance(outlet, Descriptor) else None

    def prefix() -> str:
        moment = f"{when.formatTime(logging.makeLogRecord({}))} " if when else ""
        return f"{moment}synthfs[{os.getpid()}]: "

    # A terminal can be set to stop jobs in the background that write to it, all of their threads.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    encoding, before, stderr_fd = sys.stderr.encoding or "utf-8", sys.stderr, os.dup(2)
    stderr = Lines(Descriptor(stderr_fd, encoding), lambda: f"synthfs[{os.getpid()}]: ")
    lines = Lines(outlet, prefix) if outlet else stderr
    handler, root = _Handler(lines, prefix), logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    try:
        with _read_by(stderr, encoding, "") as said, _read_by(stderr, encoding, "| ") as foreign:
            os.dup2(foreign, 2)
            sys.stderr = os.fdopen(os.dup(said), "w", buffering=1, encoding=encoding, errors="backslashreplace")
            try:
                yield lambda: sum(each.dropped for each in {stderr, lines})
            finally:
                sys.stderr.close()
                sys.stderr = before
                os.dup2(stderr_fd, 2)
    finally:
        root.removeHandler(handler)
        for each in {stderr, lines}:
            each.close()


@contextmanager
def _read_by(lines: Lines, encoding: str, mark: str) -> Iterator[int]:
    """A descriptor. Until the context ends, a thread gives what is written there to `lines`, each with `mark` before it."""

    def read_all() -> None:
        with os.fdopen(read, "rb") as file:
            while line := file.readline(LONGEST):
                lines.put(logging.WARNING, mark + line.removesuffix(b"\n").decode(encoding, "surrogateescape"))

    read, write = os.pipe()
    thread = Thread(target=read_all, name="synthfs-stderr", daemon=True)
    thread.start()
    try:
        yield write
    finally:
        os.close(write)
        thread.join(PATIENCE)


class News:
    """Tells new errors from repeated ones, in a bounded amount of memory: who meets an error will try again and again."""

    MOST = 16384
    INTERVAL = 3600.0

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._since = time.monotonic()
        self._is_told = False

    def level(self, text: str, at_first: int = logging.WARNING) -> int:
        """At which level to log `text`: `at_first`, or DEBUG where it was logged before.

        Of more than MOST different ones, those beyond are on DEBUG until INTERVAL is over; then all are new again.
        """
        if hash(text) in self._known:
            return logging.DEBUG
        if len(self._known) >= self.MOST:
            if time.monotonic() - self._since < self.INTERVAL:
                if not self._is_told:
                    log.warning("%d different errors were logged; those beyond are only counted, for up to an hour", self.MOST)
                    self._is_told = True
                return logging.DEBUG
            self._known.clear()
            self._since, self._is_told = time.monotonic(), False
        self._known.add(hash(text))
        return at_first
