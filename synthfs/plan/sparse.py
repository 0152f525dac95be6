"""Where the blocks of a disk go in a container that leaves out what is zero.

Such a container has a table that says where in the file each block lies, so the places are free to choose. A VHDX wants
multiples of 1 MiB. A dynamic VHD takes any sector, and there a block is put where its bytes and those of the `.raw` agree
modulo the unit that the file system shares, so that nearly all of it can be cloned:

    .raw    ├────┼────┼────┼────┤            a block of a partition that begins at LBA 63, in units of 4096
    file  ▣ ├────┼────┼────┼────┤ ▣ ├────    ▣ its bitmap; then a gap, up to the next place that agrees

Blocks that agree in the same way stand in one row, each in a slot of block, bitmap and gap; a block of several partitions
goes by the one with more bytes in it. What cannot be shared is what lies across the border of two blocks.

Not for: bytes of tables (`formats/`), ids (`plan/container`). Units: bytes.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from synthfs import identity
from synthfs.extents import Blocks, ExtentMap, Source
from synthfs.model import Allocation
from synthfs.units import SECTOR, KiB

Allocations = Mapping[Source, Allocation]


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks in slots next to each other, the first slot at `at`. `runs` are their numbers, in order."""

    at: int
    slot: int
    prefix: bytes
    runs: Sequence[range]

    @property
    def count(self) -> int:
        return sum(map(len, self.runs))

    @property
    def end(self) -> int:
        return self.at + self.count * self.slot

    def blocks(self, disk: ExtentMap, size: int) -> Blocks:
        return Blocks(disk, size, array("I", chain.from_iterable(self.runs)), self.prefix, self.slot)


@dataclass(frozen=True, slots=True)
class Layout:
    """All rows of a container's file; the last one ends at `end`."""

    rows: tuple[Row, ...]
    end: int

    @property
    def digest(self) -> bytes:
        """A hash over the place of every block."""
        parts: list[int | bytes] = []
        for row in self.rows:
            numbers = array("Q", chain.from_iterable((run.start, run.stop) for run in row.runs))
            parts += [row.at, row.slot, numbers.tobytes()]
        return identity.digest("sparse-layout", *parts)


def not_zero(disk: ExtentMap, allocations: Allocations, size: int) -> list[range]:
    """The runs of those blocks of `size` bytes that are not zero throughout."""
    return disk.runs(size, {source: allocation.ranges for source, allocation in allocations.items()})


def in_runs(numbers: Iterable[int]) -> list[range]:
    """The same numbers, which are in order, as runs as long as they can be."""
    runs: list[range] = []
    start = end = -1
    for number in numbers:
        if number != end:
            if start < end:
                runs.append(range(start, end))
            start = number
        end = number + 1
    return [*runs, range(start, end)] if start < end else runs


def in_order(runs: Sequence[range], size: int, at: int) -> Layout:
    """The blocks `runs` of `size` bytes one after the other, from `at` on."""
    row = Row(at, size, b"", runs)
    return Layout((row,), row.end)


def in_agreement(
    disk: ExtentMap, allocations: Allocations, runs: Sequence[range], size: int, at: int, prefix: bytes, limit: int
) -> Layout:
    """The blocks `runs`, each behind `prefix`, where they agree with their sources; no slot begins behind `limit`.

    Large units cost gaps. Where a huge disk has no room for those, it makes do with smaller ones, and shares less.
    """
    layout = Layout((), at)
    for most in (size, 4 * KiB, SECTOR):
        layout = _in_rows(_by_agreement(disk, allocations, size, runs, most), size, at, prefix)
        if all(row.end - row.slot <= limit for row in layout.rows):
            break
    return layout


def _by_agreement(
    disk: ExtentMap, allocations: Allocations, size: int, runs: Sequence[range], most: int
) -> dict[tuple[int, int], list[range]]:
    """The runs of blocks that belong at offsets ≡ shift modulo unit, by unit and shift."""
    alike: defaultdict[tuple[int, int], list[range]] = defaultdict(list)
    for owned, start, extent in disk.owners(size):
        unit = min(allocations[extent.source].block, most)
        alike[unit, (extent.offset - start) % unit].append(owned)
    rest = list(runs)
    found = {}
    for key, owned_runs in alike.items():
        owned_runs.sort(key=lambda run: run.start)
        found[key] = list(_common(runs, owned_runs))
        rest = list(_without(rest, found[key]))
    # Tables alone, which are written: they agree with everything.
    found[SECTOR, 0] = sorted((*found.get((SECTOR, 0), ()), *rest), key=lambda run: run.start)
    return found


def _in_rows(alike: Mapping[tuple[int, int], Sequence[range]], size: int, at: int, prefix: bytes) -> Layout:
    rows = []
    for (unit, shift), runs in sorted(alike.items(), key=lambda item: item[1][0].start if item[1] else 0):
        if runs:
            at += (shift - len(prefix) - at) % unit
            rows.append(Row(at, size + max(unit, len(prefix)), prefix, runs))
            at = rows[-1].end
    return Layout(tuple(rows), at)


def _common(left: Iterable[range], right: Iterable[range]) -> Iterator[range]:
    """What two rows of runs, both in order, have in common."""
    lefts, rights = iter(left), iter(right)
    a, b = next(lefts, None), next(rights, None)
    while a is not None and b is not None:
        both = range(max(a.start, b.start), min(a.stop, b.stop))
        if both:
            yield both
        if a.stop <= b.stop:
            a = next(lefts, None)
        else:
            b = next(rights, None)


def _without(runs: Iterable[range], taken: Iterable[range]) -> Iterator[range]:
    """What of the runs is not `taken`; both in order, and everything taken lies inside a run."""
    takens = iter(taken)
    hole = next(takens, None)
    for run in runs:
        start = run.start
        while hole is not None and hole.start < run.stop:
            if start < hole.start:
                yield range(start, hole.start)
            start, hole = hole.stop, next(takens, None)
        if start < run.stop:
            yield range(start, run.stop)
