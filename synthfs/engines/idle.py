"""How long a session was left alone: what `--discard-after` goes by.

Only what was seen counts. A look adds the time since the last one if nobody used the session meanwhile, by a clock that runs
while the machine does and that nobody sets, and at most `STEP`, so that a jump of that one (a virtual machine that was
stopped) is nothing either. The sum is kept in an attribute of the session's file. While no mount runs, no time passes: times
of files, and the clock on the wall, have no say.

Not for: what is done with a session (`fuse/control`). Units: seconds.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable

ATTRIBUTE = "user.synthfs.idle"

STEP = 60.0
"""What a look adds at the most; there is one every few seconds."""


class Passing:
    """The time that passes between one look and the next. `clock` tells seconds from any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def passed(self) -> float:
        before, self._last = self._last, self._clock()
        return min(max(self._last - before, 0.0), STEP)


class Idle:
    """The time for which one session was left alone, and its record, an attribute of the file at `path`."""

    def __init__(self, path: str) -> None:
        """Goes on from the record; from nothing where there is none that can be understood."""
        self._path = path
        self._was_used = False
        recorded = b""
        with contextlib.suppress(OSError):
            recorded = os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
        self._recorded = int(recorded) if re.fullmatch(rb"[0-9]{1,12}", recorded) else 0
        self.seconds = float(self._recorded)

    def use(self) -> None:
        """Somebody opened or closed it."""
        self.seconds, self._was_used = 0.0, True

    def look(self, passed: float, is_open: bool) -> None:
        """Time has `passed` since the last look."""
        self.seconds = 0.0 if is_open or self._was_used else self.seconds + passed
        self._was_used = False

    def record(self, every: float = 0.0) -> None:
        """Keeps it for the next mount, unless the record is less than `every` behind. A record that is too old goes at once.

        Where that fails it is tried again with the next look.
        """
        now = int(self.seconds)
        if now < self._recorded or now - self._recorded > every:
            with contextlib.suppress(OSError):
                os.setxattr(self._path, ATTRIBUTE, str(now).encode(), follow_symlinks=False)
                self._recorded = now
