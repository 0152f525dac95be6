"""Runs verbs in this process, through the real front door: a tenth of what a process of their own takes.

Not for: what forks, mounts or waits for a terminal.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from synthfs.cli.main import run


def answer(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    return answer_to(lambda: [*map(str, words)])


def answer_to(arguments: Callable[[], list[str] | None]) -> tuple[int, str, str]:
    """The same of a command line that is yet to be made, as for `mount.synthfs`."""
    code = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return code, out.getvalue(), err.getvalue()


def is_one_line(code: int, err: str, *codes: int) -> bool:
    """Whether a failure is told as it has to be: in one line of bounded length, with one of the documented `codes`."""
    return code in codes and len(err.splitlines()) == 1 and len(err) < 6000 and "Traceback" not in err
