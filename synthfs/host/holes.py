"""Where backup files have data and where holes, found by asking the file system, and remembered between runs.

Asking costs a system call for each change between data and hole, up to a second for a large fragmented image; and containers
that leave out what is empty want to know it before they can be listed. So what was found is kept, a cache for each file, by
its size, mtime and ctime. Where a cache cannot be had, on a full disk say, this process remembers.

Holes shorter than `FINEST` are not told apart from data: no container leaves out so little, and what is called data
is read like any other byte. Never the other way round. A file in very many pieces is known more coarsely still.

Not for: what follows from it (`plan/sparse`). May be used from several threads. Units: bytes, seconds.
Source: lseek(2), SEEK_DATA; on ZFS it tells of what is on disk, so that dirty data is waited for.
"""

import os
import time
from collections.abc import Iterable
from itertools import chain
from typing import Any

from synthfs.errors import SourceError
from synthfs.extents import Source
from synthfs.host import reflink, zfs
from synthfs.host.files import OpenSource
from synthfs.host.state import Cache, purge
from synthfs.model import Allocation
from synthfs.units import KiB, MiB

FINEST = 64 * KiB
MAX_RANGES = 1_000_000
"""Of one file: a tenth of a GiB of memory. A file in more pieces is known more coarsely."""

_PURPOSE = "holes"
_KEPT = 100 * 86400.0
_SETTLED = 600
"""Seconds after which ZFS has on disk what was written; it takes a few. To wait for it costs an ordinary user 6 s a file."""

_USUAL_BLOCK = 4096
_LARGEST_BLOCK = MiB
"""A larger unit, or one that is no power of two (a small file on ZFS), is not one that containers could go by."""

_unkept: dict[str, list[Any]] = {}
"""What no cache would take, as it would be in one, by the path of the source."""


def known(source: Source) -> Allocation | None:
    """What is remembered of `source`; None where that is nothing, or the file is not the one that it was."""
    try:
        mark = _mark(source)
    except SourceError:
        return None
    match _cache(source).load() or _unkept.get(source.path):
        case [[*said], int(block), [*numbers]] if said == mark and _is_sound(block, numbers, source.size):
            return Allocation(block, tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    return None


def gather(source: Source) -> Allocation:
    """What is remembered of `source`, or else what its file system says. Raises SourceError if it is not what it was."""
    if found := known(source):
        return found
    mark = _mark(source)
    *_, ctime_ns = mark
    file = OpenSource(source)
    try:
        is_settled = time.time_ns() - ctime_ns > _SETTLED * 10**9
        if file.on_zfs and not is_settled and (pool := zfs.pool_of(source.path)):
            pool.settle()
        block = reflink.block_size(file.fd)
        if block > _LARGEST_BLOCK or block & block - 1:
            block = _USUAL_BLOCK
        found = Allocation(block, tuple(_coalesced(file.data_ranges(0, source.size))))
        file.check()
    finally:
        file.close()
    told = [mark, found.block, list(chain.from_iterable(found.ranges))]
    if _cache(source).save(told):
        _unkept.pop(source.path, None)
    else:
        _unkept[source.path] = told
    return found


def forget_old() -> None:
    """Forgets what was found long ago: most of those backups are gone, and the others can be asked again."""
    purge(_PURPOSE, _KEPT)


def _cache(source: Source) -> Cache:
    return Cache(_PURPOSE, source.path)


def _mark(source: Source) -> list[int]:
    """By what a file is known again in a cache; never by a device number, which BTRFS deals out anew at each mount."""
    try:
        found = os.stat(source.path, follow_symlinks=False)
    except OSError as error:
        raise SourceError(f"{source.path} cannot be looked at: {error.strerror}") from error
    if (found.st_ino, found.st_size, found.st_mtime_ns) != (source.inode, source.size, source.mtime_ns):
        raise SourceError(f"{source.path} is not the file that it was")
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_sound(block: int, numbers: list[Any], size: int) -> bool:
    """Whether what a cache says can be: a power of two; ranges in order, without overlaps, inside the file."""
    if not 0 < block <= _LARGEST_BLOCK or block & block - 1 or len(numbers) % 2:
        return False
    end = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if type(offset) is not int or type(length) is not int or offset < end or length <= 0:
            return False
        end = offset + length
    return end <= size


def _coalesced(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, those with less than `FINEST` in between as one; or twice that, until there are at most `MAX_RANGES`."""
    found: list[tuple[int, int]] = []
    finest = FINEST
    for each in ranges:
        _join(found, each, finest)
        while len(found) > MAX_RANGES:
            finest *= 2
            finer, found = found, []
            for one in finer:
                _join(found, one, finest)
    return found


def _join(found: list[tuple[int, int]], each: tuple[int, int], finest: int) -> None:
    """Adds a range to those that lie before it, as a part of the last one where less than `finest` is in between."""
    offset, length = each
    if found and offset - sum(found[-1]) < finest:
        start, _ = found[-1]
        found[-1] = start, offset + length - start
    else:
        found.append(each)
