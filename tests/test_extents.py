"""The laws of the extent map, against bytes that were put together by hand.

Not for: what plans build of it, or what the engines do with it.
"""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfs.extents import Bytes, Extent, ExtentMap, FileRange, Source, Zero

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
