"""What is drawn for a person: tables and colours on stdout, signs of life on stderr.

Names come from the backed-up machines: all text is made `printable` here, and nothing in it is markup. Whoever draws nothing
does not import this: rich takes 20 ms to start with, a tenth of what a whole command takes. Not for: lines of plain text
(`cli/common`), bars (`cli/progress`).
"""

from collections.abc import Container, Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.status import Status
from rich.table import Table
from rich.text import Text

from synthfs.text import printable

Styled = Text
"""What `styled` and `stacked` make, and nobody else."""

_out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

_WIDEST = 1 << 16
"""Columns: more than two paths and some numbers can take."""


def styled(*pieces: tuple[str, str]) -> Styled:
    """One line of pieces, each a text and its style."""
    return Text.assemble(*((printable(text), style) for text, style in pieces))


def stacked(*lines: Styled) -> Styled:
    """Lines below one another."""
    return Text("\n").join(lines)


def draw(text: Styled) -> None:
    """As it is, on stdout."""
    _out.print(text)


def draw_line(text: Styled) -> None:
    """However long it is."""
    _out.print(text, soft_wrap=True)


def draw_grid(rows: Iterable[tuple[Styled, Styled]]) -> None:
    """Two columns, of which the second is folded."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    _out.print(table)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Container[str] = ()) -> None:
    """Each row on one line, however narrow the terminal: names are there to be searched for and to be copied.

    Columns whose heads are in `right` are justified there.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True, justify="right" if head in right else "left")
    for row in rows:
        table.add_row(*(styled((cell, "")) for cell in row))
    wanted = Measurement.get(_out, _out.options.update(max_width=_WIDEST), table).maximum
    wide = Console(highlight=False, markup=False, emoji=False, width=max(_out.width, wanted))
    wide.print(table, crop=False, soft_wrap=False)


def paper() -> tuple[int, bool]:
    """Columns of stdout, and whether it takes all of Unicode."""
    return _out.width, _out.encoding.startswith("utf")


def spinning(text: str) -> Status:
    """A sign of life for as long as the context lasts."""
    return err.status(styled((text, "")), spinner="line")
