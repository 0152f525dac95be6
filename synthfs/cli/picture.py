"""Draws a disk as a bar of its partitions to scale, and in it where the backup has data and where holes.

    ┌──────────┬─────┬──────────────────────────────┐
    │1 ESP     │2    │3 C:                          │
    │34 MiB    │16 M…│64 MiB                        │
    │▓░░░░░░░░░│·····│█▒░░░░░░░░░░░░░░░░░░░░░░░░░░░░│
    └──────────┴─────┴──────────────────────────────┘

Every column of a cell stands for the same number of bytes of its partition. Cells have the width of their share, but at
least that of their number; what does not fit into the terminal any more is left out and counted. It is readable without
colours, and without Unicode. Not for: what is drawn (`cli/describe`). Units: bytes; columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synthfs.cli.terminal import Styled, stacked, styled
from synthfs.text import printable

Range = tuple[int, int]
STYLES = ("cyan", "green", "yellow", "magenta", "blue", "red")
_NARROWEST = 3


@dataclass(frozen=True, slots=True)
class Glyphs:
    """`levels` are for a column that is a hole throughout, for one of little data, of more, and of nothing else."""

    levels: str
    zero: str
    top: tuple[str, str, str]
    bottom: tuple[str, str, str]
    wall: str
    line: str
    more: str

    @property
    def legend(self) -> str:
        return f"{self.levels[-1]} data  {self.levels[0]} holes  {self.zero} zeroes, not imaged"


UNICODE = Glyphs("░▒▓█", "·", ("┌", "┬", "┐"), ("└", "┴", "┘"), "│", "─", "…")
ASCII = Glyphs("-+*#", ".", ("+", "+", "+"), ("+", "+", "+"), "|", "-", "~")


@dataclass(frozen=True, slots=True)
class Cell:
    """A partition, or a gap where `title` is empty. `data` are (offset, length) in it, None where it holds no image."""

    length: int
    title: str
    subtitle: str = ""
    data: Sequence[Range] | None = None
    style: str = "dim"


def draw(cells: Sequence[Cell], width: int, glyphs: Glyphs) -> Styled:
    """The bar, in at most `width` columns, without a newline at its end."""
    shown, columns = _fit(cells, width)
    wall = glyphs.wall
    lines = [glyphs.line * wide for wide in columns]
    top, bottom = (styled((left + middle.join(lines) + right, "")) for left, middle, right in (glyphs.top, glyphs.bottom))
    titles, sizes, filled = [(wall, "")], [(wall, "")], [(wall, "")]
    for cell, wide in zip(shown, columns, strict=True):
        titles += (_cut(cell.title, wide, glyphs), f"bold {cell.style}"), (wall, "")
        sizes += (_cut(cell.subtitle, wide, glyphs), cell.style), (wall, "")
        filled += (_fill(cell, wide, glyphs), cell.style), (wall, "")
    return stacked(top, styled(*titles), styled(*sizes), styled(*filled), bottom)


def _fit(cells: Sequence[Cell], width: int) -> tuple[list[Cell], list[int]]:
    """The cells that there is room for, without the smallest ones, and how wide each is."""
    shown = [cell for cell in cells if cell.title or cell.length * width > sum(c.length for c in cells)]
    most = max((width - 1) // (_NARROWEST + 1), 1)
    if len(shown) > most:
        kept = sorted(shown, key=lambda cell: (bool(cell.title), cell.length))[-most:]
        shown = [cell for cell in shown if any(cell is one for one in kept)]
    room = max(width - 1 - len(shown) * (_NARROWEST + 1), 0)
    whole = sum(cell.length for cell in shown) or 1
    return shown, [_NARROWEST + room * cell.length // whole for cell in shown]


def left_out(cells: Sequence[Cell], width: int) -> int:
    """How many partitions have no place in the bar."""
    shown, _ = _fit(cells, width)
    return sum(bool(cell.title) for cell in cells) - sum(bool(cell.title) for cell in shown)


def _cut(text: str, wide: int, glyphs: Glyphs) -> str:
    text = printable(text)
    return text.ljust(wide) if len(text) <= wide else text[: wide - 1] + glyphs.more


def _fill(cell: Cell, wide: int, glyphs: Glyphs) -> str:
    if cell.data is None:
        return (glyphs.zero if cell.title else " ") * wide
    steps = len(glyphs.levels) - 1
    shares = _shares(cell.data, cell.length, wide)
    # Any data at all is shown, and only a column full of them as full.
    return "".join(glyphs.levels[0 if not share else min(1 + int(share * (steps - 1)), steps)] for share in shares)


def _shares(data: Iterable[Range], length: int, columns: int) -> list[float]:
    """For each of the columns which share of its bytes is data."""
    filled = [0] * columns
    edges = [length * number // columns for number in range(columns + 1)]
    column = 0
    for offset, amount in data:
        end = offset + amount
        while column < columns and edges[column + 1] <= offset:
            column += 1
        at = column
        while at < columns and edges[at] < end:
            filled[at] += min(end, edges[at + 1]) - max(offset, edges[at])
            at += 1
    return [amount / max(edges[n + 1] - edges[n], 1) for n, amount in enumerate(filled)]
