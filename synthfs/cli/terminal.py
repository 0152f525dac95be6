"""What is drawn for a person: tables and colours on stdout, progress on stderr.

Whoever draws nothing does not import this: rich takes 20 ms to start with, a tenth of what a whole command takes. Not for:
lines of plain text (`cli/common`).
"""

from rich.console import Console
from rich.measure import Measurement
from rich.status import Status
from rich.table import Table
from rich.text import Text

# Names come from the backed-up machines: nothing in them is markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

_WIDEST = 1 << 16
"""Columns: more than two paths and some numbers can take."""


def print_table(table: Table) -> None:
    """Each row on one line, however narrow the terminal: names are there to be searched for and to be copied."""
    wanted = Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum
    wide = Console(highlight=False, markup=False, emoji=False, width=max(out.width, wanted))
    wide.print(table, crop=False, soft_wrap=False)


def spinning(text: str) -> Status:
    """A sign of life for as long as the context lasts."""
    return err.status(Text(text), spinner="line")
