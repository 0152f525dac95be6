"""The laws of the recipe that freezes a map: what is cloned, copied, written and left out.

Not for: doing it (engines/materialize). Units: bytes.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfs.extents import Bytes, Extent, ExtentMap, FileRange, Source, Zero
from synthfs.plan.recipe import Clone, Copy, Hole, Repeat, Step, Write, cook, summary

BLOCK = 8
"""Small, so that hypothesis meets every border; nothing in a recipe depends on the block's size."""
A, B = (Source(name, f"/store/{name}", 1, number, 256, 0) for number, name in enumerate(("a.raw", "b.raw"), 300))
CONTENT = {source: random.Random(source.name).randbytes(256) for source in (A, B)}
laws = settings(max_examples=150, deadline=None)


@st.composite
def ranges(draw: st.DrawFn) -> FileRange:
    offset = draw(st.integers(0, 255))
    return FileRange(draw(st.sampled_from((A, B))), offset, draw(st.integers(1, 256 - offset)))


extents = st.one_of(st.builds(Zero, st.integers(1, 30)), st.builds(Bytes, st.binary(min_size=1, max_size=30)), ranges())
maps = st.builds(ExtentMap, st.lists(extents, max_size=8))
blocks = st.sampled_from((None, 1, BLOCK))


def content(step: Step | Extent) -> bytes:
    match step:
        case Zero(length) | Hole(_, length):
            return bytes(length)
        case Bytes(data) | Write(_, data):
            return data
        case FileRange(source, offset, length) | Clone(_, source, offset, length) | Copy(_, source, offset, length, _):
            return CONTENT[source][offset : offset + length]
        case Repeat():
            raise AssertionError("a file that is not said to share with itself repeats nothing")


@laws
@given(maps, blocks, blocks)
def test_the_steps_make_the_map_byte_by_byte(made: ExtentMap, a: int | None, b: int | None) -> None:
    """Done in order, the steps cover the file exactly once, and every byte is the map's."""
    end, out = 0, b""
    for step in cook(made, {A: a, B: b}.__getitem__):
        assert step.target == end
        assert step.length > 0
        end += step.length
        out += content(step)
    assert out == b"".join(content(extent) for _, extent in made)


@laws
@given(maps)
def test_clones_are_whole_blocks_on_both_sides(made: ExtentMap) -> None:
    """A clone begins and ends at a block of its source, and of the target."""
    for step in cook(made, lambda _: BLOCK):
        if isinstance(step, Clone):
            assert [n % BLOCK for n in (step.target, step.offset, step.length)] == [0, 0, 0]


@laws
@given(maps)
def test_every_block_that_can_be_shared_is(made: ExtentMap) -> None:
    """Of an extent that agrees with the target modulo the block, all whole blocks are cloned; edges are under two blocks."""
    steps = list(cook(made, lambda _: BLOCK))
    for start, extent in made:
        if not isinstance(extent, FileRange):
            continue
        mine = [step for step in steps if start <= step.target < start + extent.length]
        cloned = sum(step.length for step in mine if isinstance(step, Clone))
        edges = sum(step.length for step in mine if isinstance(step, Copy) and step.edge)
        if (start - extent.offset) % BLOCK:
            assert mine == [Copy(start, extent.source, extent.offset, extent.length, edge=False)]
        else:
            inside = range(extent.offset, extent.offset + extent.length)
            whole = [n for n in range(0, 256, BLOCK) if n in inside and n + BLOCK - 1 in inside]
            assert cloned == BLOCK * len(whole)
            assert edges == extent.length - cloned < 2 * BLOCK


@laws
@given(maps, blocks)
def test_unshared_is_what_sharing_was_hoped_for(made: ExtentMap, block: int | None) -> None:
    """Nothing is reported as unshared exactly if every file range agrees with its place modulo the block."""
    agree = [block is not None and (at - e.offset) % block == 0 for at, e in made if isinstance(e, FileRange)]
    left = [step for step in cook(made, lambda _: block) if isinstance(step, Copy) and not step.edge]
    assert len(left) == agree.count(False)
    assert not any(step.edge for step in left)


@laws
@given(maps, blocks)
def test_totals_add_up_to_the_file(made: ExtentMap, block: int | None) -> None:
    """Every byte is counted once, under what becomes of it; zeroes stay holes and tables are written."""
    sums = summary(cook(made, lambda _: block), BLOCK).totals
    kinds = {kind: sum(e.length for e in made.extents if isinstance(e, kind)) for kind in (Zero, Bytes, FileRange)}
    assert (sums.hole, sums.written, sums.cloned + sums.copied) == (kinds[Zero], kinds[Bytes], kinds[FileRange])
    assert 0 <= sums.edges <= sums.copied
    if block is None:
        assert (sums.cloned, sums.edges) == (0, 0)


@pytest.mark.parametrize(
    ("offset", "length", "copied"),
    [(0, 24, 0), (0, 25, 1), (3, 21, 5), (3, 22, 6), (3, 12, 12), (1, 7, 7), (1, 14, 14), (0, 8, 0), (1, 22, 14)],
)
def test_a_range_is_cut_into_head_blocks_and_tail(offset: int, length: int, copied: int) -> None:
    """Head and tail are what lies before the first and behind the last whole block; without one, all is an edge."""
    made = ExtentMap([Zero(offset), FileRange(A, offset, length)]) if offset else ExtentMap([FileRange(A, 0, length)])
    sums = summary(cook(made, lambda _: BLOCK), BLOCK).totals
    assert (sums.cloned, sums.copied, sums.edges) == (length - copied, copied, copied)


@laws
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from((b"bitmap", b"other.")), ranges()), max_size=12), st.booleans())
def test_repeats_are_of_blocks_written_before(parts: list[tuple[int, bytes, FileRange]], aligned: bool) -> None:
    """Done in order in a real array of bytes, with repeats copied from where they say, the steps make the map."""
    row: list[Extent] = []
    for gap, data, taken in parts:
        length = sum(extent.length for extent in row)
        row += [Zero((-length - len(data)) % BLOCK if aligned else gap), Bytes(data), taken]
    made = ExtentMap(row)
    file = bytearray(made.length)
    for step in cook(made, lambda _: None, own_block=BLOCK):
        if isinstance(step, Repeat):
            assert (step.length, step.target % BLOCK, step.first % BLOCK) == (BLOCK, 0, 0)
            assert step.first < step.target
            file[step.target : step.target + BLOCK] = file[step.first : step.first + BLOCK]
        else:
            file[step.target : step.target + step.length] = content(step)
    assert bytes(file) == b"".join(content(extent) for _, extent in made)


def test_what_is_the_same_is_written_once() -> None:
    """Of three blocks that are alike, one is written, and two are shared with it."""
    row = [part for _ in range(3) for part in (Zero(BLOCK - 6), Bytes(b"bitmap"), FileRange(A, 0, BLOCK))]
    steps = list(cook(ExtentMap(row), lambda _: BLOCK, own_block=BLOCK))
    assert [type(step) for step in steps] == [Hole, Write, Clone, Repeat, Clone, Repeat, Clone]
    assert summary(steps, BLOCK).totals.repeated == 2 * BLOCK
