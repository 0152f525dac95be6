"""How to freeze an extent map into a real file: which ranges to clone, which to copy, what to write, what to leave out.

File systems share data in whole blocks, and only where source and target agree modulo the block size. So a file range is
cut into a head up to the first block, the blocks, and a tail: head and tail are copied, the blocks cloned.

    source   ···│▒▒▒├─────┼─────┼─────┤▒▒│···          ▒ copied: less than two blocks in all
    target   ···│▒▒▒├─────┼─────┼─────┤▒▒│···          ─ cloned, if both sides agree modulo the block

What is made in memory is written. Where the same is written again and again, as a dynamic VHD does before each of its blocks,
the file shares the first of those blocks with itself.

Not for: doing it (`engines/materialize`), or knowing what a file system can do (`host/reflink`). Units: bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

from synthfs.extents import Bytes, ExtentMap, FileRange, Source, Zero
from synthfs.units import align_down, align_up


@dataclass(frozen=True, slots=True)
class Clone:
    """Share [offset, offset + length) of `source` with the target at `target`."""

    target: int
    source: Source
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy that range. `edge` is true for the part of a block that no file system could share."""

    target: int
    source: Source
    offset: int
    length: int
    edge: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Write `data`, which was made in memory."""

    target: int
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Hole:
    """Leave that range a hole: it reads as zeroes and takes no space."""

    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """Share the block of `length` bytes at `first`, which was written before, with the one at `target`."""

    target: int
    first: int
    length: int


Step = Clone | Copy | Write | Hole | Repeat

_MOST_REPEATS = 1000
"""How often a block is shared before it is written anew: each owner of a block makes the file system's look-ups slower."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes by what becomes of them; together they are the length of the file. `edges` are part of `copied`."""

    cloned: int
    copied: int
    edges: int
    written: int
    hole: int
    repeated: int = 0


def cook(extents: ExtentMap, block_size: Callable[[Source], int | None], own_block: int | None = None) -> Iterator[Step]:
    """The steps that make a file of `extents`, in order of their place in it: one by one, for they may be millions.

    `block_size` tells in which blocks a source's data can be shared; None copies all of it. `own_block` is the block in
    which the new file can share data with itself; None where it cannot.
    """
    steps = _cooked(extents, block_size)
    return _repeated(steps, own_block) if own_block else steps


def _cooked(extents: ExtentMap, block_size: Callable[[Source], int | None]) -> Iterator[Step]:
    for target, extent in extents:
        match extent:
            case Zero(length):
                yield Hole(target, length)
            case Bytes(data):
                yield Write(target, data)
            case FileRange(source):
                yield from _shared(target, extent, block_size(source))
            case _:
                assert_never(extent)


def _repeated(steps: Iterable[Step], block: int) -> Iterator[Step]:
    """The same steps, with blocks that hold zeroes and then the end of a piece written before shared with that piece's."""
    written: dict[bytes, tuple[int, int]] = {}
    before: Step | None = None
    for step in steps:
        match before, step:
            case Hole(at), Write(target, data) if (
                (first := align_down(target, block)) >= at and first < target and target + len(data) == first + block
            ):
                source, times = written.get(data, (first, 0))
                if times % _MOST_REPEATS == 0:
                    source = first
                else:
                    before = Hole(at, first - at) if first > at else None
                    step = Repeat(first, source, block)
                written[data] = source, times + 1
        if before:
            yield before
        before = step
    if before:
        yield before


def _shared(target: int, extent: FileRange, block: int | None) -> Iterator[Step]:
    source, start, end = extent.source, extent.offset, extent.offset + extent.length
    if block is None or (target - start) % block:
        yield Copy(target, source, start, extent.length, edge=False)
        return
    first, last = align_up(start, block), align_down(end, block)
    if first >= last:
        yield Copy(target, source, start, extent.length, edge=True)
        return
    if start < first:
        yield Copy(target, source, start, first - start, edge=True)
    yield Clone(target + first - start, source, first, last - first)
    if last < end:
        yield Copy(target + last - start, source, last, end - last, edge=True)


def leave_holes(steps: Iterable[Step], data: Callable[[Source, int, int], Iterable[tuple[int, int]]]) -> Iterator[Step]:
    """The same steps, with what is a hole in a source a hole in the copy. `data` yields (offset, length) of what is none."""
    for step in steps:
        if not isinstance(step, Copy):
            yield step
            continue
        at, end = step.offset, step.offset + step.length
        for offset, length in data(step.source, step.offset, step.length):
            if at < offset:
                yield Hole(step.target + at - step.offset, offset - at)
            yield Copy(step.target + offset - step.offset, step.source, offset, length, step.edge)
            at = offset + length
        if at < end:
            yield Hole(step.target + at - step.offset, end - at)


class Summary:
    """What is to be known of steps as a whole, taken while they pass by: `totals`, `new_space` and `cloned`.

    `new_space` is what they take anew on a file system of blocks of `block` bytes: what is copied or written, in whole
    blocks. `cloned` is how much of each source is shared.
    """

    def __init__(self, block: int) -> None:
        self.new_space = 0
        self.cloned: Counter[Source] = Counter()
        self._block = block
        self._end = 0
        self._sums = dict.fromkeys(("copied", "edges", "written", "hole", "repeated"), 0)

    @property
    def totals(self) -> Totals:
        return Totals(cloned=self.cloned.total(), **self._sums)

    def add(self, step: Step) -> None:
        sums = self._sums
        match step:
            case Clone():
                self.cloned[step.source] += step.length
            case Copy():
                sums["copied"] += step.length
                sums["edges"] += step.length if step.edge else 0
            case Write():
                sums["written"] += step.length
            case Hole():
                sums["hole"] += step.length
            case Repeat():
                sums["repeated"] += step.length
            case _:
                assert_never(step)
        if isinstance(step, Copy | Write):
            first, end = max(align_down(step.target, self._block), self._end), align_up(step.target + step.length, self._block)
            self.new_space, self._end = self.new_space + max(end - first, 0), end


def summary(steps: Iterable[Step], block: int) -> Summary:
    """All of `steps`, summed up."""
    found = Summary(block)
    for step in steps:
        found.add(step)
    return found
