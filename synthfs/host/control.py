"""The line on which a verb asks a running mount to do something: a socket in its scratch directory, for its owner alone.

One JSON object a line, a request and its answer in turns. Who may connect is who may write to the socket (mode 0600).
A socket that a killed mount left is replaced by the next, which holds the directory's lock. Its address goes through
/proc/self/fd, since a socket's path ends at 107 bytes. Not for: what is asked (`fuse/control`). Source: unix(7).
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from synthfs.errors import MountError
from synthfs.host import shapes

NAME = ".control"
MAX_LINE = 65536


@contextmanager
def listening(directory_fd: int) -> Iterator[socket.socket]:
    """The socket to accept requests on, in an open directory; who connects before anybody accepts waits."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=directory_fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{directory_fd}/{NAME}")
        finally:
            os.umask(before)
        listener.listen(16)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                os.unlink(NAME, dir_fd=directory_fd)


ANSWER = {"error?": str, "code?": int, "scratch?": str, "path?": str, "done?": bool}


class Line:
    """A connection to a mount, or to what calls itself one: its answers are bounded in length, time and shape."""

    def __init__(self, channel: socket.socket, directory: str, limit: float) -> None:
        self._channel = channel
        self._directory = directory
        self._limit = limit

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request, of the shape ANSWER. Raises MountError where there is none."""
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            answer = shapes.parse(self._line())
        except (OSError, ValueError) as error:
            raise MountError(f"the mount with the scratch directory {self._directory} ended or does not answer") from error
        if not shapes.fits(answer, ANSWER):
            raise MountError(f"what answers at {self._directory}/{NAME} is no synthfs; look at `synthfs status`")
        return dict(answer)

    def _line(self) -> bytes:
        """The next line, which ends what was received: the other side speaks only when asked. Raises OSError."""
        until, line = time.monotonic() + self._limit, b""
        while not line.endswith(b"\n") and len(line) < MAX_LINE:
            self._channel.settimeout(max(until - time.monotonic(), 0.001))
            if not (part := self._channel.recv(MAX_LINE - len(line))):
                break
            line += part
        return line


@contextmanager
def connected(directory: str, limit: float = 60.0) -> Iterator[Line]:
    """A line to the mount whose scratch directory is `directory`. Raises MountError."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"the scratch directory {directory} cannot be entered: {error.strerror}") from error
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as channel:
        channel.settimeout(limit)
        try:
            channel.connect(f"/proc/self/fd/{fd}/{NAME}")
        except PermissionError:
            raise MountError(f"{directory}/{NAME} is for the owner of the mount alone; become that user, or root") from None
        except OSError as error:
            raise MountError(f"no mount answers at {directory}/{NAME}: {error.strerror}") from error
        finally:
            os.close(fd)
        yield Line(channel, directory, limit)
