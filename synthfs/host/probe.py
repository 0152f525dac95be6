"""Looks at files that may hang: a mount whose daemon is stuck stops everybody who touches it, and SIGKILL does not help.

So the look is taken by a child that is given a limit, and left behind if it does not come back. Units: seconds.
"""

import errno
import os
import re
import subprocess
from dataclasses import dataclass

LIMIT = 5.0
"""Seconds that a healthy mount has by far enough in."""

MOST = 16 << 20
"""Bytes of the longest file that is read: what a mount tells of ten thousand sessions."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Owner and group by number; `mode` are the permission bits."""

    user: int
    group: int
    mode: int


def read(path: str, limit: float = LIMIT) -> bytes | None:
    """The content of a small file; None where it cannot be read, not within `limit` seconds, or is longer than MOST."""
    content = _output(("head", f"--bytes={MOST + 1}", "--", path), limit)
    return content if content is not None and len(content) <= MOST else None


def answers(path: str, limit: float = LIMIT) -> bool:
    """Whether `stat(path)` comes back, and with success, within `limit` seconds."""
    return _output(("stat", "--format=%i", "--", path), limit) is not None


def permissions(path: str, limit: float = LIMIT) -> Permissions | None:
    """Whom a file belongs to, and what it allows; None where that cannot be told, or not within `limit` seconds."""
    told = _output(("stat", "--format=%u %g %a", "--", path), limit)
    found = re.fullmatch(rb"(\d+) (\d+) ([0-7]+)\n", told or b"")
    return Permissions(int(found[1]), int(found[2]), int(found[3], 8)) if found else None


def is_disconnected(path: str, limit: float = LIMIT) -> bool:
    """Whether `path` lies in a mount that nobody serves any more. One that is slow, stuck or not for us is none."""
    return _fails(path, errno.ENOTCONN, limit)


def is_denied(path: str, limit: float = LIMIT) -> bool:
    """Whether this user may not look at `path`."""
    return _fails(path, errno.EACCES, limit)


def is_missing(path: str, limit: float = LIMIT) -> bool:
    """Whether there is nothing at `path`, which is not said of what this user may not look at."""
    return _fails(path, errno.ENOENT, limit)


def _fails(path: str, number: int, limit: float) -> bool:
    """Whether `stat(path)` fails with the errno `number`."""
    ended = _run(("stat", "--format=%i", "--", path), limit)
    return ended is not None and os.strerror(number).encode() in ended[1]


def _output(command: tuple[str, ...], limit: float) -> bytes | None:
    ended = _run(command, limit)
    return ended[0] if ended and not ended[1] else None


def _run(command: tuple[str, ...], limit: float) -> tuple[bytes, bytes] | None:
    """What the child wrote to stdout and stderr; None where it did not end in time."""
    pipe = subprocess.PIPE
    plain = {**os.environ, "LC_ALL": "C"}
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, env=plain)
    try:
        return child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        for end in (child.stdout, child.stderr):
            if end:
                end.close()
        child.returncode = -9  # not waited for: in an answer that never comes, even a killed process stays
        return None
