"""Compares what is stored with what it has to be: a volume with the hashes of its chunks, a file with an extent map.

    check_hashes   every complete chunk of a volume against its 32 bytes in `.hash`
    check_tail     the incomplete chunk behind them
    compare        every byte of a file against the map that it was made from

Holes are not read: they are zeroes by definition. A chunk in a hole has to have the hash of zeroes, which is computed once,
and a hole in both the file and the backup is equal. Everything else is read, by all cores.

A chunk that cannot be read is a finding, and the rest is read nevertheless; a file that changed or vanished ends it all
as a SourceError. Not for: what the parts of a disk are called (`plan/parts`). Units: bytes.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from synthfs.engines.crew import Crew
from synthfs.engines.read import Reader
from synthfs.errors import SourceError
from synthfs.extents import Bytes
from synthfs.host.files import OpenSource
from synthfs.plan.parts import Part
from synthfs.units import MiB
from synthfs.urbackup.hashfile import CHUNK, ENTRY, ZERO_CHUNK, covers

_CHUNKS_AT_ONCE = 16
"""8 MiB: with several workers on one disk, each still reads a long run."""

_ENTRIES_AT_ONCE = 4096
_COMPARED_AT_ONCE = MiB

Range = tuple[int, int]
"""Offset and length."""

Progress = Callable[[int], None]
"""Is told how many more bytes were read."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A range that is not what it has to be. `why` is the error where it could not be read."""

    offset: int
    length: int
    why: str | None = None


@dataclass(slots=True)
class Tally:
    """What was looked at, in bytes.

    `data` was read, `holes` did not have to be. `left_out` was not looked at: it is no part of the sample, or behind the
    first difference in a part of a file. For `unproven` there is no hash, or none that says anything.
    """

    data: int = 0
    holes: int = 0
    left_out: int = 0
    unproven: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A share of the data, from 0 to 1, in pieces that `seed` chooses."""

    share: float
    seed: int

    def chooser(self) -> Callable[[], bool]:
        dice = random.Random(self.seed)
        return lambda: dice.random() < self.share


EVERYTHING = Sample(1.0, 0)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """`count` chunks of a volume from the one of number `first` on, all of them in holes or none."""

    first: int
    count: int
    hole: bool


def check_hashes(
    crew: Crew, file: OpenSource, hashes: OpenSource, volume: Range, tally: Tally, sample: Sample, progress: Progress
) -> Iterator[Bad]:
    """The complete chunks of `volume` whose SHA-256 is not that of `hashes`, at offsets of the volume, neighbours joined.

    Raises SourceError where one of the two files changed. What has no entry is not looked at, but tallied as unproven.
    """
    start, length = volume
    hashed = min(length // CHUNK, hashes.source.size // ENTRY) * CHUNK
    tally.unproven += length - hashed

    def work(job: _Chunks) -> list[Bad]:
        entries = crew.buffer(0, job.count * ENTRY)
        hashes.read(job.first * ENTRY, memoryview(entries))
        chunks = zip(range(job.first, job.first + job.count), range(0, len(entries), ENTRY), strict=True)
        if job.hole:
            whole = ZERO_CHUNK * job.count
            found = [] if entries == whole else [at for at, e in chunks if entries[e : e + ENTRY] != ZERO_CHUNK]
            return [Bad(at * CHUNK, CHUNK) for at in found]
        buffer, bad = crew.buffer(1, CHUNK), []
        for at, entry in chunks:
            try:
                file.read(start + at * CHUNK, memoryview(buffer))
            except SourceError as error:
                file.check()
                bad.append(Bad(at * CHUNK, CHUNK, str(error)))
            else:
                if sha256(buffer).digest() != entries[entry : entry + ENTRY]:
                    bad.append(Bad(at * CHUNK, CHUNK))
        return bad

    def results() -> Iterator[Bad]:
        for job, bad in crew.do(_chosen(_runs(file, start, hashed), sample, tally), work):
            if job.hole:
                tally.holes += job.count * CHUNK
            else:
                tally.data += job.count * CHUNK
                progress(job.count * CHUNK)
            yield from bad

    yield from _joined(results())


def check_tail(file: OpenSource, hashes: OpenSource, volume: Range, tally: Tally) -> Bad | None:
    """The incomplete chunk at the end of `volume`, if it contradicts its entry. Raises SourceError.

    To be called after `check_hashes`, whose tally it corrects by what the entry proves.
    """
    start, length = volume
    complete = length // CHUNK
    tail, entry = bytearray(length - complete * CHUNK), bytearray(ENTRY)
    if not tail or hashes.source.size < (complete + 1) * ENTRY:
        return None
    hashes.read(complete * ENTRY, memoryview(entry))
    try:
        file.read(start + complete * CHUNK, memoryview(tail))
    except SourceError as error:
        file.check()
        return Bad(complete * CHUNK, len(tail), str(error))
    tally.data += len(tail)
    proven = covers(bytes(tail), bytes(entry))
    # What no client sends is zero, and right if it is.
    tally.unproven -= len(tail) if proven is None or not any(tail[proven:]) else proven
    return Bad(complete * CHUNK, len(tail)) if proven is None else None


def _runs(file: OpenSource, start: int, length: int) -> Iterator[_Chunks]:
    """The complete chunks of a volume of `length` bytes, in runs of those that are wholly in holes and those that are not."""
    end = length // CHUNK
    done = 0
    for offset, amount in file.data_ranges(start, end * CHUNK):
        first = max((offset - start) // CHUNK, done)
        last = (offset - start + amount - 1) // CHUNK + 1
        if done < first:
            yield _Chunks(done, first - done, hole=True)
        if first < last:
            yield _Chunks(first, last - first, hole=False)
            done = last
    if done < end:
        yield _Chunks(done, end - done, hole=True)


def _chosen(runs: Iterable[_Chunks], sample: Sample, tally: Tally) -> Iterator[_Chunks]:
    """The same chunks in jobs; of a sample those that it chose, and the holes, which cost nothing."""
    chosen = sample.chooser()
    for run in runs:
        step = _ENTRIES_AT_ONCE if run.hole else _CHUNKS_AT_ONCE if sample.share == 1 else 1
        for skip in range(0, run.count, step):
            job = _Chunks(run.first + skip, min(step, run.count - skip), run.hole)
            if run.hole or chosen():
                yield job
            else:
                tally.left_out += job.count * CHUNK


def _joined(bad: Iterable[Bad]) -> Iterator[Bad]:
    last: Bad | None = None
    for each in bad:
        if last and last.offset + last.length == each.offset and (last.why is None) == (each.why is None):
            last = replace(last, length=last.length + each.length)
            continue
        if last:
            yield last
        last = each
    if last:
        yield last


@dataclass(frozen=True, slots=True)
class _Piece:
    part: Part
    offset: int
    length: int


def compare(
    crew: Crew,
    reader: Reader,
    file: OpenSource,
    parts: Iterable[Part],
    tally: Tally,
    sample: Sample,
    progress: Progress,
) -> Iterator[tuple[Part, Bad]]:
    """Those of the `parts` in which `file` is not what `reader` says, each with the place where it differs first.

    All of the parts have to lie in the file. Pieces made in memory belong to every sample.
    Raises SourceError where a backup changed, or the file did.
    """
    different: set[Part] = set()
    chosen = sample.chooser()

    def pieces() -> Iterator[_Piece]:
        for part in parts:
            data = _either(reader.data(part.offset, part.length), file.data_ranges(part.offset, part.length))
            tally.holes += part.length
            for offset, amount in data:
                tally.holes -= amount
                for skip in range(0, amount, _COMPARED_AT_ONCE):
                    piece = _Piece(part, offset + skip, min(_COMPARED_AT_ONCE, amount - skip))
                    if part not in different and (_made_in_memory(reader, piece.offset, piece.length) or chosen()):
                        yield piece
                    else:
                        tally.left_out += piece.length

    def work(piece: _Piece) -> Bad | None:
        ours, theirs = crew.buffer(0, piece.length), crew.buffer(1, piece.length)
        reader.read(piece.offset, memoryview(ours))
        try:
            file.read(piece.offset, memoryview(theirs))
        except SourceError as error:
            file.check()
            return Bad(piece.offset, piece.length, str(error))
        if ours == theirs:
            return None
        first = _first_difference(ours, theirs)
        return Bad(piece.offset + first, piece.length - first)

    for piece, bad in crew.do(pieces(), work):
        tally.data += piece.length
        progress(piece.length)
        if bad and piece.part not in different:
            different.add(piece.part)
            yield piece.part, bad


def check_zero(
    crew: Crew, reader: Reader, ranges: Iterable[Range], tally: Tally, sample: Sample, progress: Progress
) -> int | None:
    """The first offset at which `reader` has no zero in any of `ranges`. Bytes made in memory belong to every sample."""
    first: int | None = None
    chosen = sample.chooser()

    def pieces() -> Iterator[Range]:
        for offset, length in (data for each in ranges for data in reader.data(*each)):
            for skip in range(0, length, _COMPARED_AT_ONCE):
                at, amount = offset + skip, min(_COMPARED_AT_ONCE, length - skip)
                if first is None and (_made_in_memory(reader, at, amount) or chosen()):
                    yield at, amount
                else:
                    tally.left_out += amount

    def work(piece: Range) -> int | None:
        offset, length = piece
        ours, zeroes = crew.buffer(0, length), bytearray(length)
        reader.read(offset, memoryview(ours))
        return None if ours == zeroes else offset + _first_difference(ours, zeroes)

    for (_, length), found in crew.do(pieces(), work):
        tally.data += length
        progress(length)
        first = found if first is None else first
    return first


def _made_in_memory(reader: Reader, offset: int, length: int) -> bool:
    return any(isinstance(extent, Bytes) for extent in reader.extents.pieces(offset, length))


def _either(ours: Iterable[Range], theirs: Iterable[Range]) -> Iterator[Range]:
    """The union of two rows of ranges, each in order."""
    begin = end = 0
    for offset, length in heapq.merge(ours, theirs):
        if offset > end:
            if end > begin:
                yield begin, end - begin
            begin = offset
        end = max(end, offset + length)
    if end > begin:
        yield begin, end - begin


def _first_difference(one: bytearray, other: bytearray) -> int:
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
