"""Looks at files that may hang: a mount whose daemon is stuck stops everybody who touches it, and SIGKILL does not help.

So the look is taken by a child that is given a limit, and left behind if it does not come back.
"""

import subprocess

LIMIT = 5.0
"""Seconds that a healthy mount has by far enough in."""


def read(path: str, limit: float = LIMIT) -> bytes | None:
    """The content of a small file; None where it cannot be read, or not within `limit` seconds."""
    return _output(("cat", "--", path), limit)


def answers(path: str, limit: float = LIMIT) -> bool:
    """Whether `stat(path)` comes back, and with success, within `limit` seconds."""
    return _output(("stat", "--format=%i", "--", path), limit) is not None


def _output(command: tuple[str, ...], limit: float) -> bytes | None:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        output, _ = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.returncode = -9  # not waited for: in an answer that never comes, even a killed process stays
        return None
    return output if child.returncode == 0 else None
