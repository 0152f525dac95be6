"""The extent map: where every byte of a virtual file comes from. This is the noun that the whole program turns on.

A virtual disk is a row of extents, each one of three kinds: zeroes, bytes made in memory (tables, footers), or a range of
a file that exists (a partition image). Plans build a map once; the engines read it, freeze it or verify it, and need to
know nothing else about the disk.

    map of a GPT disk:   Bytes       Zero    FileRange          Zero   FileRange   Zero   Bytes
                         MBR+GPT             ESP.raw                   C.raw              backup GPT

Rules, all kept by the constructor, so that no consumer has to check:
    1. A map is immutable and covers the half-open range [0, length) without gaps or overlaps.
    2. No extent is empty, and neighbours that can be one extent are one extent.
    3. Only this module turns (offset, length) into pieces.

A container that leaves out what is zero has its disk in a million blocks, in an order of its own. `Blocks` stands for them in
a map, at four bytes a block; whoever reads or walks the map still sees the three kinds and nothing else.

Not for: opening, reading or hashing anything. Units: bytes.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Source:
    """A file that bytes are taken from, and how to know it again.

    `name` is its path inside the store (`<client>/<dir>/<file>`), the same on every host; `path` is where this process
    opens it. `device`, `inode`, `size` and `mtime_ns` are its fingerprint. The device is good only for opening by path:
    BTRFS deals out device numbers anew at every mount, and an open file of a deleted subvolume reports device 0.
    """

    name: str
    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Zero:
    """`length` zero bytes that no file stores."""

    length: int


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes made in memory."""

    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes [offset, offset + length) of `source`."""

    source: Source
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.offset + self.length <= self.source.size:
            raise ValueError(f"range {self.offset}+{self.length} is outside {self.source.name} ({self.source.size} bytes)")


Extent = Zero | Bytes | FileRange


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of another map, each in a slot of its own: `numbers[k]` is the block in slot k.

        slot 0, numbers[0] = 7                    slot 1, numbers[1] = 9
        │ prefix │ block 7 of inner │ zeroes  │   │ prefix │ block 9 of inner │ zeroes  │ …

    `size` is that of a block, `slot` that of a slot. What a block has past the end of `inner` is zero.
    """

    inner: "ExtentMap"
    size: int
    numbers: "array[int]" = field(hash=False, repr=False)
    prefix: bytes
    slot: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.slot - len(self.prefix):
            raise ValueError(f"a block of {self.size} bytes does not fit into a slot of {self.slot}")

    @property
    def length(self) -> int:
        return len(self.numbers) * self.slot

    def pieces(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of [offset, offset + length), which lies inside; neighbours are not joined."""
        end = offset + length
        while offset < end:
            slot, start = divmod(offset, self.slot)
            stop = min(self.slot, start + end - offset)
            yield from self._in_slot(self.numbers[slot], start, stop)
            offset += stop - start

    def around(self, offset: int) -> tuple[int, Extent]:
        """The extent of one slot that holds the byte at `offset`, and where it begins."""
        start = offset - offset % self.slot
        for extent in self._in_slot(self.numbers[offset // self.slot], 0, self.slot):
            if offset < start + extent.length:
                return start, extent
            start += extent.length
        raise IndexError(offset)

    def _in_slot(self, number: int, start: int, stop: int) -> Iterator[Extent]:
        front = len(self.prefix)
        if start < front:
            yield Bytes(self.prefix[start:stop])
        first, last = max(start, front), min(stop, front + self.size)
        if first < last:
            at = number * self.size + first - front
            yield from self.inner.pieces(at, last - first)
            past_end = min(at + last - first - self.inner.length, last - first)
            if past_end > 0:
                yield Zero(past_end)
        if (gap := stop - max(start, front + self.size)) > 0:
            yield Zero(gap)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ExtentMap:
    """Extents in order of their offset. `starts[i]` is the offset of `extents[i]`; `length` is the sum of all lengths.

    To walk a map, iterate over it: what is in `extents` may be `Blocks`, which stand for many.
    """

    extents: tuple[Extent | Blocks, ...]
    starts: tuple[int, ...] = field(compare=False)
    length: int = field(compare=False)

    def __init__(self, extents: Iterable[Extent | Blocks]) -> None:
        row = tuple(_joined(extents))
        *starts, end = accumulate((extent.length for extent in row), initial=0)
        for name, value in (("extents", row), ("starts", tuple(starts)), ("length", end)):
            object.__setattr__(self, name, value)

    @classmethod
    def placed(cls, length: int, pieces: Iterable[tuple[int, Extent | Blocks]]) -> "ExtentMap":
        """A map of `length` bytes with each extent at its offset and zeroes in between.

        Raises ValueError where two pieces overlap or one reaches past the end: a plan that does so is wrong.
        """
        row: list[Extent | Blocks] = []
        end = 0
        for offset, extent in sorted(pieces, key=lambda piece: piece[0]):
            if offset < end or offset + extent.length > length:
                raise ValueError(f"extent at {offset}, {extent.length} bytes, does not fit between {end} and {length}")
            row += [Zero(offset - end), extent]
            end = offset + extent.length
        return cls([*row, Zero(length - end)])

    def __add__(self, other: "ExtentMap") -> "ExtentMap":
        return ExtentMap((*self.extents, *other.extents))

    def __iter__(self) -> Iterator[tuple[int, Extent]]:
        """Every extent with its offset in the map; no two neighbours could be one."""
        offset = 0
        for extent in _joined(self.pieces(0, self.length)):
            # Blocks are taken apart by `pieces`, and joined to nothing that is not one of the three kinds.
            assert not isinstance(extent, Blocks)
            yield offset, extent
            offset += extent.length

    def __repr__(self) -> str:
        return f"ExtentMap({self.length} bytes, {len(self.extents)} extents)"

    def pieces(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents that make up [offset, offset + length), cut to it; what lies past the end is left out."""
        end = min(offset + length, self.length)
        index = bisect_right(self.starts, offset) - 1
        while offset < end:
            extent = self.extents[index]
            skip = offset - self.starts[index]
            take = min(extent.length - skip, end - offset)
            if isinstance(extent, Blocks):
                yield from extent.pieces(skip, take)
            else:
                yield extent if take == extent.length else _cut(extent, skip, take)
            offset += take
            index += 1

    def around(self, offset: int) -> tuple[int, Extent]:
        """The whole extent that holds the byte at `offset`, which has to be one of the map, and where it begins."""
        index = bisect_right(self.starts, offset) - 1
        start, extent = self.starts[index], self.extents[index]
        if isinstance(extent, Blocks):
            inside, extent = extent.around(offset - start)
            start += inside
        return start, extent

    def sources(self) -> list[Source]:
        """Every file that the map takes bytes from, once each, in order of first use."""
        return list(dict.fromkeys(self._sources()))

    def _sources(self) -> Iterator[Source]:
        for extent in self.extents:
            if isinstance(extent, FileRange):
                yield extent.source
            elif isinstance(extent, Blocks):
                yield from extent.inner.sources()

    def runs(self, size: int, data: Mapping[Source, Sequence[tuple[int, int]]]) -> list[range]:
        """The numbers of those blocks of `size` bytes that are not zero throughout, in order, as runs.

        `data` has for each source the offset and length of everything in it that is no hole, in order; a source that is
        missing there has no holes.
        """
        runs: list[range] = []
        for start, end in self._not_zero(data):
            first, last = start // size, -(-end // size)
            if runs and first <= runs[-1].stop:
                runs[-1] = range(runs[-1].start, max(last, runs[-1].stop))
            else:
                runs.append(range(first, last))
        return runs

    def _not_zero(self, data: Mapping[Source, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
        """Start and end of all that is neither `Zero` nor a hole."""
        for start, extent in self:
            match extent:
                case FileRange(source, offset, length) if source in data:
                    ranges = data[source]
                    for at, count in ranges[max(bisect_right(ranges, (offset,)) - 1, 0) :]:
                        if at >= offset + length:
                            break
                        if at + count > offset:
                            yield start + max(at - offset, 0), start + min(at + count - offset, length)
                case Bytes() | FileRange():
                    yield start, start + extent.length

    def owners(self, size: int) -> Iterator[tuple[range, int, FileRange]]:
        """Runs of blocks of `size` bytes, each with the file range that most of their bytes come from, and its offset.

        Blocks without a byte from a file are left out. Runs are in no particular order.
        """
        shared: dict[int, tuple[int, int, FileRange]] = {}
        for start, extent in self:
            if not isinstance(extent, FileRange):
                continue
            end = start + extent.length
            whole = range(-(-start // size), max(end // size, -(-start // size)))
            if whole:
                yield whole, start, extent
            for number in {start // size, (end - 1) // size}:
                part = min(end, (number + 1) * size) - max(start, number * size)
                if number not in whole and part > shared.get(number, (0,))[0]:
                    shared[number] = part, start, extent
        for number, (_, start, extent) in shared.items():
            yield range(number, number + 1), start, extent


def _cut(extent: Extent, skip: int, length: int) -> Extent:
    match extent:
        case Zero():
            return Zero(length)
        case Bytes(data):
            return Bytes(data[skip : skip + length])
        case FileRange(source, offset):
            return FileRange(source, offset + skip, length)


def _joined(extents: Iterable[Extent | Blocks]) -> Iterator[Extent | Blocks]:
    """The same bytes in as few extents as possible (rule 2)."""
    last: Extent | Blocks | None = None
    for extent in extents:
        if extent.length < 0:
            raise ValueError(f"extent of negative length {extent.length}")
        if extent.length == 0:
            continue
        match last, extent:
            case None, _:
                last = extent
            case Zero(before), Zero(after):
                last = Zero(before + after)
            case Bytes(before), Bytes(after):
                last = Bytes(before + after)
            case FileRange(s, o, before), FileRange(t, p, after) if s == t and o + before == p:
                last = FileRange(s, o, before + after)
            case _:
                assert last is not None
                yield last
                last = extent
    if last is not None:
        yield last
