"""Sees to it that stdin, stdout and stderr are there: a caller may have closed them.

Otherwise the next files that are opened, such as /dev/fuse or a backup, would get their numbers, and be read from and
written to by whoever means the streams. Not for: what is written there.
"""

import os
import sys


def complete() -> None:
    """Opens /dev/null, or something as empty, in place of every standard stream that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(_nothing(), True)  # gets the lowest number that is free, which is this one
    # Python has None in place of those that it found closed.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", errors="backslashreplace", closefd=False)


def _nothing() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return os.open("/", os.O_RDONLY)  # below chroot(2) without a /dev: can be neither read nor written
