"""How far a long work has come: a bar on stderr where that is a terminal, and nothing elsewhere.

Apart from `cli/terminal`, since to import bars takes as long as all that is drawn. Not for: what is done meanwhile.
"""

import sys

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from synthfs.cli.terminal import Styled, err, styled

_FIGURES: dict[str, list[type[ProgressColumn]]] = {
    "percent": [TaskProgressColumn],
    "count": [MofNCompleteColumn],
    "speed": [TransferSpeedColumn],
    "": [],
}


class _Description(TextColumn):
    def render(self, task: Task) -> Styled:
        return styled((task.description, ""))


def progress(figure: str = "") -> Progress:
    """A bar with its description, one of `percent`, `count` and `speed`, and the time that is left."""
    tty = sys.stderr.isatty()
    columns = [_Description(""), BarColumn(), *(kind() for kind in _FIGURES[figure]), TimeRemainingColumn()]
    # Its own redirection would send what is meant for a pipe to the terminal.
    return Progress(*columns, console=err, transient=True, disable=not tty, redirect_stdout=tty and sys.stdout.isatty())
