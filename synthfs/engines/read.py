"""Reads from an extent map. Two colours, in one place: `try_read` never waits, `read` may.

    reader = Reader(extent_map)          # opens nothing yet
    reader.open()                        # opens and checks every file of the map
    reader.try_read(offset, buffer)      # bytes, or None: would wait, or cannot tell
    reader.read(offset, buffer)          # bytes, however long it takes

Bytes come out exactly as the map says or not at all: a short, changed or vanished file is a SourceError.

Files on ZFS are not held open while nobody reads: there, an open file makes UrBackup's deletion of the backup fail half way.
`rest` closes those that were idle; the next `read` opens them again, by path and fingerprint. Everywhere else a file stays
readable through its descriptor after it was deleted, so it stays open.

Both colours may be called from different threads at once; `rest`, `open` and `close` keep out of their way by `_lock`.
Not for: FUSE, async, errno. Units: bytes, seconds.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, assert_never

from synthfs.errors import SourceError
from synthfs.extents import Bytes, ExtentMap, FileRange, Source, Zero
from synthfs.host.files import OpenSource

IDLE = 10.0
"""Seconds without a read after which a file on ZFS is closed."""

_ZEROES = memoryview(bytes(1024 * 1024))


class _Run(NamedTuple):
    """The range of a map that was read last, as one file has it, `shift` bytes further on.

    Most reads want a part of the extent that the last one wanted: looking it up anew, and cutting it, was a third of what a
    random read of 4 KiB costs in this program.
    """

    start: int
    end: int
    file: OpenSource
    shift: int


class Reader:
    """An extent map with its files open, shared by everybody who has the virtual file open."""

    def __init__(self, extents: ExtentMap, may_rest: Callable[[OpenSource], bool] = lambda file: file.on_zfs) -> None:
        """`may_rest` tells which files are not to be held open while idle."""
        self.extents = extents
        self._may_rest = may_rest
        self._files: dict[Source, OpenSource] = {}
        self._run: _Run | None = None
        self._restless: set[Source] = set()
        self._in_use = 0
        self._retired = False
        self._lock = threading.Lock()

    def open(self) -> None:
        """Opens every file of the map. Raises SourceError, and leaves nothing open, where one is not what it was."""
        try:
            for source in self.extents.sources():
                self._open(source)
        except SourceError:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            files, self._files, self._run = self._files, {}, None
        for file in files.values():
            file.close()

    def retire(self) -> None:
        """Closes everything once no read is under way any more; for a reader that others took the place of."""
        with self._lock:
            self._retired = True
            busy = bool(self._in_use)
        if not busy:
            self.close()

    @property
    def rests(self) -> bool:
        """Whether any of its files is one to be closed while idle."""
        return bool(self._restless)

    def bytes_held(self) -> int:
        """The length of its open files that were deleted meanwhile: they take space for as long as they are open."""
        return sum(file.source.size for file in list(self._files.values()) if file.deleted)

    def rest(self, idle: float = IDLE) -> None:
        """Closes files that may rest and were not read for `idle` seconds, unless a read is under way."""
        with self._lock:
            if self._in_use:
                return
            since = time.monotonic() - idle
            tired = [source for source in self._restless & self._files.keys() if self._files[source].used <= since]
            files = [self._files.pop(source) for source in tired]
            self._run = None
        for file in files:
            file.close()

    def try_read(self, offset: int, into: memoryview) -> int | None:
        """Fills `into` from `offset` on and returns how many bytes the map had for it, or None if that could wait."""
        length = len(into)
        run = self._run
        if run and run.start <= offset and offset + length <= run.end:
            return length if run.file.try_read(offset + run.shift, into) else None
        done = 0
        for extent in self.extents.pieces(offset, length):
            length = extent.length
            match extent:
                case FileRange(source, at):
                    file = self._files.get(source)
                    if file is None or not file.try_read(at, into[done : done + length]):
                        return None
                    self._run = self._around(offset + done, file)
                case Zero():
                    _fill_with_zeroes(into[done : done + length])
                case Bytes(data):
                    into[done : done + length] = data
                case _:
                    assert_never(extent)
            done += length
        return done

    def read(self, offset: int, into: memoryview) -> int:
        """Like `try_read`, but waits. Raises SourceError where a file does not give the bytes it had."""
        done = 0
        with self._lock:
            self._in_use += 1
        try:
            for extent in self.extents.pieces(offset, len(into)):
                part = into[done : done + extent.length]
                match extent:
                    case FileRange(source, at):
                        self._open(source).read(at, part)
                    case Zero():
                        _fill_with_zeroes(part)
                    case Bytes(data):
                        part[:] = data
                    case _:
                        assert_never(extent)
                done += extent.length
        finally:
            with self._lock:
                self._in_use -= 1
                done_with = self._retired and not self._in_use
            if done_with:
                self.close()
        return done

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Offset and length of what in [offset, offset + length) may be anything but zeroes. Raises SourceError."""
        for extent in self.extents.pieces(offset, length):
            match extent:
                case FileRange(source, at):
                    for start, amount in self._open(source).data_ranges(at, extent.length):
                        yield offset + start - at, amount
                case Bytes():
                    yield offset, extent.length
                case Zero():
                    pass
                case _:
                    assert_never(extent)
            offset += extent.length

    def _around(self, offset: int, file: OpenSource) -> "_Run":
        start, extent = self.extents.around(offset)
        assert isinstance(extent, FileRange)
        return _Run(start, start + extent.length, file, extent.offset - start)

    def _open(self, source: Source) -> OpenSource:
        if file := self._files.get(source):
            return file
        file = OpenSource(source)
        with self._lock:
            known = self._files.setdefault(source, file)
        if known is not file:
            file.close()
        elif self._may_rest(file):
            self._restless.add(source)
        return known


def _fill_with_zeroes(into: memoryview) -> None:
    for at in range(0, len(into), len(_ZEROES)):
        part = into[at : at + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
