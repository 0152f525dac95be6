"""A terminal that somebody stopped with Ctrl-S, and forgot: nothing that is written to it gets anywhere.

Not for: what a program says when its terminal is well; a log file has that. Source: termios(3), tcflow.
"""

import os
import termios
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from processes import Argument


class Terminal:
    """A pseudo-terminal. `stop` and `resume` are Ctrl-S and Ctrl-Q; `said` is what was written to it and got through."""

    def __init__(self) -> None:
        # Nothing is echoed or translated; the second descriptor keeps a stopped terminal stopped.
        self._reader, self._writer = os.openpty()
        mode = termios.tcgetattr(self._writer)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(self._writer, termios.TCSANOW, mode)
        os.set_blocking(self._reader, False)
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in (self._reader, self._writer):
            os.close(descriptor)

    def argv(self, argv: Sequence[Argument]) -> list[Argument]:
        """The command with this terminal as its stderr; in a session of its own, as its controlling terminal as well.

        It is a dumb one: no program has a reason to send it anything but text.
        """
        return ["sh", "-c", 'TERM=dumb exec "$@" 2>"$0"', os.ttyname(self._writer), *argv]

    def stop(self) -> None:
        termios.tcflow(self._writer, termios.TCOOFF)

    def resume(self) -> None:
        termios.tcflow(self._writer, termios.TCOON)

    def said(self) -> bytes:
        """All that came through so far."""
        try:
            while part := os.read(self._reader, 65536):
                self._said += part
        except BlockingIOError:
            pass
        return self._said
