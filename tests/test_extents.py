"""The laws of the extent map, against bytes that were put together by hand.

Not for: what plans build of it, or what the engines do with it.
"""

import random
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfs.extents import Blocks, Bytes, Extent, ExtentMap, FileRange, Source, Zero

FILES = {name: random.Random(name).randbytes(64) for name in ("a.raw", "b.raw")}
SOURCES = {name: Source(name, f"/store/{name}", 1, number, 64, 0) for number, name in enumerate(FILES, 300)}
A, B = SOURCES.values()


def content(extents: list[Extent]) -> bytes:
    """The naive model: every extent's bytes, one after the other."""
    out = b""
    for extent in extents:
        match extent:
            case Zero(length):
                out += bytes(length)
            case Bytes(data):
                out += data
            case FileRange(source, offset, length):
                out += FILES[source.name][offset : offset + length]
    return out


@st.composite
def ranges(draw: st.DrawFn) -> FileRange:
    offset = draw(st.integers(0, 64))
    return FileRange(draw(st.sampled_from((A, B))), offset, draw(st.integers(0, 64 - offset)))


extents = st.one_of(st.builds(Zero, st.integers(0, 20)), st.builds(Bytes, st.binary(max_size=20)), ranges())
rows = st.lists(extents, max_size=8)
laws = settings(max_examples=150, deadline=None)


class TestTheConstructor:
    @laws
    @given(rows)
    def test_keeps_every_byte_in_its_place(self, row: list[Extent]) -> None:
        """A map's extents, laid end to end, are the bytes that it was made of."""
        made = ExtentMap(row)
        assert content([extent for _, extent in made]) == content(row)
        assert made.length == len(content(row))

    @laws
    @given(rows)
    def test_covers_its_length_without_gap_or_overlap(self, row: list[Extent]) -> None:
        """Every extent starts where the one before it ends, the first at 0, and the last ends at the map's length."""
        end = 0
        for start, extent in ExtentMap(row):
            assert start == end
            end = start + extent.length
        assert end == ExtentMap(row).length

    @laws
    @given(rows)
    def test_joins_neighbours_and_drops_what_is_empty(self, row: list[Extent]) -> None:
        """No extent is empty, and no two neighbours could be one."""
        made = ExtentMap(row).extents
        assert all(extent.length > 0 for extent in made)
        for left, right in pairwise(made):
            match left, right:
                case (Zero(), Zero()) | (Bytes(), Bytes()):
                    pytest.fail(f"{left} and {right} are two")
                case FileRange(s, o, n), FileRange(t, p, _):
                    assert (s, o + n) != (t, p)

    @laws
    @given(rows, st.data())
    def test_does_not_depend_on_how_the_bytes_were_cut(self, row: list[Extent], data: st.DataObject) -> None:
        """A map cut in two anywhere and put together again is the same map, with the same hash."""
        made = ExtentMap(row)
        cut = data.draw(st.integers(0, made.length))
        again = ExtentMap(made.pieces(0, cut)) + ExtentMap(made.pieces(cut, made.length - cut))
        assert again == made
        assert hash(again) == hash(made)
        assert again.starts == made.starts

    def test_joins_only_ranges_that_touch_in_one_file(self) -> None:
        """Ranges of two files, with a gap, or in the wrong order stay two; ranges that touch are one."""
        assert ExtentMap([FileRange(A, 0, 8), FileRange(A, 8, 8)]).extents == (FileRange(A, 0, 16),)
        for right in (FileRange(B, 8, 8), FileRange(A, 9, 8), FileRange(A, 0, 8), FileRange(A, 7, 8)):
            assert len(ExtentMap([FileRange(A, 0, 8), right]).extents) == 2

    def test_joins_across_an_empty_extent(self) -> None:
        """An empty extent between two that touch does not keep them apart."""
        assert ExtentMap([FileRange(A, 0, 8), Bytes(b""), Zero(0), FileRange(A, 8, 8)]).extents == (FileRange(A, 0, 16),)

    def test_refuses_a_negative_length(self) -> None:
        """A map with a negative extent is a plan's bug, and said so at once."""
        with pytest.raises(ValueError, match="negative"):
            ExtentMap([Zero(4), Zero(-1)])

    @pytest.mark.parametrize(("offset", "length"), [(-1, 4), (0, 65), (64, 1), (65, 0), (10, -1), (2**63, 1)])
    def test_a_range_lies_inside_its_file(self, offset: int, length: int) -> None:
        """No range can be made that leaves its file, in either direction."""
        with pytest.raises(ValueError, match="outside"):
            FileRange(A, offset, length)

    def test_is_immutable(self) -> None:
        """Rule 1: a map is immutable; nobody can change it, or what it hashes to, after it was made."""
        made = ExtentMap([Zero(4)])
        for attribute in ExtentMap.__slots__:
            with pytest.raises(AttributeError):
                setattr(made, attribute, ())


class TestPieces:
    @laws
    @given(rows, st.integers(0, 200), st.integers(0, 200))
    def test_are_the_bytes_asked_for(self, row: list[Extent], offset: int, length: int) -> None:
        """The pieces of [offset, offset + length) are those bytes of the model; what lies past the end is left out."""
        assert content(list(ExtentMap(row).pieces(offset, length))) == content(row)[offset : offset + length]

    def test_over_every_border(self) -> None:
        """Each of all possible ranges over a map with odd borders is right, and has no empty piece."""
        row: list[Extent] = [Bytes(b"x"), Zero(3), FileRange(A, 5, 7), FileRange(B, 12, 1), Bytes(b"yz"), FileRange(A, 0, 5)]
        made, model = ExtentMap(row), content(row)
        for offset in range(len(model) + 2):
            for length in range(len(model) + 3):
                pieces = list(made.pieces(offset, length))
                assert content(pieces) == model[offset : offset + length]
                assert all(piece.length > 0 for piece in pieces)

    def test_of_a_map_of_nothing(self) -> None:
        """An empty map has no pieces, wherever one asks."""
        assert [list(ExtentMap([]).pieces(offset, 10)) for offset in (0, 1)] == [[], []]

    def test_at_the_far_end_of_a_huge_map(self) -> None:
        """Offsets are not limited to 32 or 63 bits."""
        made = ExtentMap([Zero(2**65), Bytes(b"end")])
        assert list(made.pieces(2**65 - 1, 3)) == [Zero(1), Bytes(b"en")]

    def test_a_whole_extent_comes_as_it_is(self) -> None:
        """Bytes that are asked for as a whole are not copied."""
        data = Bytes(b"table")
        assert next(ExtentMap([Zero(3), data, Zero(3)]).pieces(3, 5)) is data


class TestPlaced:
    @laws
    @given(st.lists(st.tuples(st.integers(0, 12), extents), max_size=6), st.integers(0, 12), st.randoms())
    def test_puts_zeroes_in_between(self, gaps: list[tuple[int, Extent]], tail: int, dice: random.Random) -> None:
        """Each piece is at its offset, in whatever order they were given, and all the rest is zero."""
        offset, pieces, model = 0, [], b""
        for gap, extent in gaps:
            offset += gap
            pieces.append((offset, extent))
            model += bytes(gap) + content([extent])
            offset += extent.length
        # Several pieces at one offset are fine as long as all but one are empty; the order among them says nothing.
        pieces = [piece for piece in pieces if piece[1].length]
        dice.shuffle(pieces)
        made = ExtentMap.placed(offset + tail, pieces)
        assert content([extent for _, extent in made]) == model + bytes(tail)

    @pytest.mark.parametrize(
        "pieces",
        [
            [(0, Zero(8)), (7, Zero(1))],
            [(7, Bytes(b"x")), (0, FileRange(A, 0, 8))],
            [(4, Zero(4)), (4, Zero(4))],
            [(-1, Bytes(b"xx"))],
            [(15, Bytes(b"xx"))],
            [(17, Bytes(b"x"))],
            [(0, Zero(17))],
        ],
    )
    def test_refuses_overlaps_and_overruns(self, pieces: list[tuple[int, Extent]]) -> None:
        """Pieces that overlap, begin before 0 or reach past the end make no map."""
        with pytest.raises(ValueError, match="fit"):
            ExtentMap.placed(16, pieces)

    def test_takes_pieces_that_touch(self) -> None:
        """Half-open ranges: one piece may start where another ends, and the last end where the map does."""
        made = ExtentMap.placed(16, [(8, Bytes(b"right...")), (0, Bytes(b"left...."))])
        assert made.extents == (Bytes(b"left....right..."),)


def test_sources_come_once_each_in_order_of_first_use() -> None:
    """A file that two ranges use is opened once."""
    row: list[Extent] = [FileRange(B, 0, 1), Zero(1), FileRange(A, 0, 1), Zero(1), FileRange(B, 9, 1)]
    assert ExtentMap(row).sources() == [B, A]


@st.composite
def rows_of_blocks(draw: st.DrawFn) -> tuple[Blocks, bytes]:
    """Blocks, and the bytes that they stand for."""
    row = draw(st.lists(extents, max_size=5))
    inner, size = content(row), draw(st.integers(1, 24))
    numbers = draw(st.lists(st.integers(0, len(inner) // size + 1), max_size=5))
    prefix, gap = draw(st.binary(max_size=5)), draw(st.integers(0, 5))
    model = b"".join(prefix + inner[n * size : n * size + size].ljust(size, b"\0") + bytes(gap) for n in numbers)
    return Blocks(ExtentMap(row), size, array("I", numbers), prefix, len(prefix) + size + gap), model


class TestBlocks:
    """A map in which blocks of another one stand in slots is read like any other."""

    @laws
    @given(rows_of_blocks(), st.integers(0, 200), st.integers(0, 200))
    def test_are_the_bytes_that_they_stand_for(self, made: tuple[Blocks, bytes], offset: int, length: int) -> None:
        """Any range of it, between other extents."""
        blocks, inside = made
        whole, model = ExtentMap([Bytes(b"head"), blocks, Zero(3)]), b"head" + inside + bytes(3)
        assert whole.length == len(model)
        pieces = list(whole.pieces(offset, length))
        assert content(pieces) == model[offset : offset + length]
        assert all(piece.length > 0 for piece in pieces)

    @laws
    @given(rows_of_blocks())
    def test_are_walked_as_extents(self, made: tuple[Blocks, bytes]) -> None:
        """Whoever walks the map sees three kinds, without gaps, joined where they can be."""
        blocks, model = made
        walked, end = list(ExtentMap([blocks])), 0
        for offset, extent in walked:
            assert offset == end
            assert isinstance(extent, Zero | Bytes | FileRange)
            end += extent.length
        assert content([extent for _, extent in walked]) == model
        assert set(ExtentMap([blocks]).sources()) >= {e.source for _, e in walked if isinstance(e, FileRange)}
        again = ExtentMap([extent for _, extent in walked])
        assert [extent for _, extent in again] == [extent for _, extent in walked]

    @laws
    @given(rows_of_blocks())
    def test_around_is_what_holds_a_byte(self, made: tuple[Blocks, bytes]) -> None:
        """For each byte the extent that it is in, and where that begins."""
        blocks, model = made
        whole = ExtentMap([Zero(2), blocks])
        for offset in range(2, whole.length):
            start, extent = whole.around(offset)
            assert start <= offset < start + extent.length
            assert content([extent])[offset - start] == model[offset - 2]

    def test_a_million_cost_megabytes(self) -> None:
        """A map of 2 TiB in blocks is made, read and compared without anything for each of them but its number."""
        big = Source("big", "/store/big", 1, 7, 1 << 41, 0)
        disk, numbers = ExtentMap([FileRange(big, 0, 1 << 41)]), array("I", range(1 << 20))
        blocks = Blocks(disk, 1 << 21, numbers, b"\xff" * 512, (1 << 21) + 4096)
        whole = ExtentMap([Zero(512), blocks])
        assert list(whole.pieces(whole.length - 3584 - 2, 4)) == [FileRange(big, (1 << 41) - 2, 2), Zero(2)]
        assert len(whole.extents) == 2
        assert hash(whole) == hash(ExtentMap([Zero(512), blocks]))

    def test_a_block_fits_its_slot(self) -> None:
        """A slot shorter than what is in it is a plan's bug."""
        with pytest.raises(ValueError, match="does not fit"):
            Blocks(ExtentMap([]), 8, array("I"), b"xx", 9)


class TestBlocksOfAMap:
    """What a container asks of the disk that it holds."""

    @laws
    @given(rows, st.integers(1, 20), st.lists(st.integers(0, 63), max_size=6))
    def test_runs_leave_out_nothing_that_is_not_zero(self, row: list[Extent], size: int, cuts: list[int]) -> None:
        """With holes anywhere in the files, a block that is left out is one of zeroes and holes alone."""
        made = ExtentMap(row)
        data = {A: list(pairwise(sorted({*cuts, 0, 64})))[::2]}
        data[A] = [(start, end - start) for start, end in data[A]]
        runs = made.runs(size, data)
        assert all(run for run in runs)
        assert all(before.stop < after.start for before, after in pairwise(runs))
        there = {number for run in runs for number in run}
        for number in range(-(-made.length // size)):
            pieces = list(made.pieces(number * size, size))
            empty = all(isinstance(piece, Zero) or (isinstance(piece, FileRange) and _is_hole(piece, data)) for piece in pieces)
            assert (number not in there) == empty

    @laws
    @given(rows, st.integers(1, 20))
    def test_owners_are_those_with_most_bytes(self, row: list[Extent], size: int) -> None:
        """Each block that has bytes of a file has one owner, and no other range has more bytes in it."""
        made = ExtentMap(row)
        owned = {number: (start, extent) for run, start, extent in made.owners(size) for number in run}
        for number in range(-(-made.length // size)):
            first, last = number * size, number * size + size
            shares = [
                (min(start + extent.length, last) - max(start, first), start)
                for start, extent in made
                if isinstance(extent, FileRange) and start < last and start + extent.length > first
            ]
            assert (number in owned) == bool(shares)
            if shares:
                assert (max(shares)[0], owned[number][0]) in shares


def _is_hole(piece: FileRange, data: dict[Source, list[tuple[int, int]]]) -> bool:
    ranges = data.get(piece.source, [(0, piece.source.size)])
    return not any(at < piece.offset + piece.length and at + length > piece.offset for at, length in ranges)
