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

Not for: opening, reading or hashing anything. Units: bytes.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
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


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ExtentMap:
    """Extents in order of their offset. `starts[i]` is the offset of `extents[i]`; `length` is the sum of all lengths."""

    extents: tuple[Extent, ...]
    starts: tuple[int, ...] = field(compare=False)
    length: int = field(compare=False)

    def __init__(self, extents: Iterable[Extent]) -> None:
        row = tuple(_joined(extents))
        *starts, end = accumulate((extent.length for extent in row), initial=0)
        for name, value in (("extents", row), ("starts", tuple(starts)), ("length", end)):
            object.__setattr__(self, name, value)

    @classmethod
    def placed(cls, length: int, pieces: Iterable[tuple[int, Extent]]) -> "ExtentMap":
        """A map of `length` bytes with each extent at its offset and zeroes in between.

        Raises ValueError where two pieces overlap or one reaches past the end: a plan that does so is wrong.
        """
        row: list[Extent] = []
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
        """Every extent with its offset in the map."""
        return zip(self.starts, self.extents, strict=True)

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
            yield extent if take == extent.length else _cut(extent, skip, take)
            offset += take
            index += 1

    def around(self, offset: int) -> tuple[int, Extent]:
        """The whole extent that holds the byte at `offset`, which has to be one of the map, and where it begins."""
        index = bisect_right(self.starts, offset) - 1
        return self.starts[index], self.extents[index]

    def sources(self) -> list[Source]:
        """Every file that the map takes bytes from, once each, in order of first use."""
        return list(dict.fromkeys(e.source for e in self.extents if isinstance(e, FileRange)))


def _cut(extent: Extent, skip: int, length: int) -> Extent:
    match extent:
        case Zero():
            return Zero(length)
        case Bytes(data):
            return Bytes(data[skip : skip + length])
        case FileRange(source, offset):
            return FileRange(source, offset + skip, length)


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same bytes in as few extents as possible (rule 2)."""
    last: Extent | None = None
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
