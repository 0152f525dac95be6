"""Finds out, by trial, how each source can share blocks with a new file; and afterwards what was shared, where that is open.

    BTRFS, XFS, one ZFS dataset     FICLONERANGE: it shares or fails
    ZFS, other datasets             copy_file_range: it shares or copies, and only the pool's counters tell which

On ZFS a file has one block size, which a new file takes from the first blocks cloned into it while it is empty; all sources
with another one are copied. Every UrBackup image is a dataset of its own there, so this is the rule and not the exception.

Not for: what goes where (`plan/recipe`). Units: bytes. Source: observation on BTRFS, XFS and OpenZFS 2.3.
"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from synthfs.errors import ShareError
from synthfs.extents import Source
from synthfs.host import reflink, zfs
from synthfs.host.files import OpenSource
from synthfs.units import KiB, MiB, align_down

Files = Mapping[Source, OpenSource]

_TRIAL = 64 * MiB
_UNCOUNTED = 256 * KiB
"""Metadata of a trial's size, which is nobody's data."""

_UNLIKE = "only one of backup and new file is excluded from copy-on-write (chattr +C), and such files share nothing"


@dataclass(frozen=True, slots=True)
class Way:
    """Shares ranges of one source, in multiples of `block`. One that is not `certain` may copy instead, and not say so."""

    block: int
    share: Callable[[int, int, int, int, int], None]
    certain: bool = True


@dataclass(slots=True)
class Ways:
    """How each source can be shared, or why it cannot. `pool` is that of the new file, None where it is not on ZFS.

    `own_block` is the block in which the new file can share data with itself; None where it cannot.
    """

    by_source: dict[Source, Way] = field(default_factory=dict)
    why_not: dict[Source, str] = field(default_factory=dict)
    pool: zfs.Pool | None = None
    saved_before: int = 0
    own_block: int | None = None

    def block(self, source: Source) -> int | None:
        way = self.by_source.get(source)
        return way.block if way else None


@dataclass(frozen=True, slots=True)
class Measured:
    """Whether what was cloned is known to be shared, and what a new file takes beside that: bytes, None if unknown."""

    proven: bool
    new_space: int | None


def find(files: Files, target: int, directory: str) -> Ways:
    """Tries every source with the empty file `target`, which lies in `directory`, and leaves it empty."""
    if pool := zfs.pool_of(directory):
        return _on_zfs(files, target, pool)
    ways = Ways()
    if any(reflink.excluded_from_cow(file.fd) for file in files.values()):
        # Where the new file cannot have the flag, the trial fails and says why.
        with contextlib.suppress(ShareError):
            reflink.exclude_from_cow(target)
    for source, file in files.items():
        block = reflink.block_size(file.fd)
        if refused := _refusal(file, target, block):
            unlike = reflink.excluded_from_cow(file.fd) != reflink.excluded_from_cow(target)
            ways.why_not[source] = _UNLIKE if unlike else str(refused)
        else:
            ways.by_source[source] = Way(block, reflink.clone_range)
    if ways.by_source:
        ways.own_block = reflink.block_size(target)
    return ways


def _refusal(file: OpenSource, target: int, block: int) -> ShareError | None:
    """What FICLONERANGE answers to the first block of a source; None where it shares it."""
    try:
        reflink.clone_range(file.fd, 0, block, target, 0)
    except ShareError as error:
        return error
    finally:
        reflink.empty(target)
    return None


def _on_zfs(files: Files, target: int, pool: zfs.Pool) -> Ways:
    ways = Ways(pool=pool)
    if why := pool.why_no_cloning():
        ways.why_not = dict.fromkeys(files, why)
    if not files or ways.why_not:
        return ways
    pool.settle()
    sizes: Counter[int] = Counter()
    for source, file in files.items():
        sizes[reflink.block_size(file.fd)] += source.size
    ((block, _),) = sizes.most_common(1)
    for source, file in files.items():
        own = reflink.block_size(file.fd)
        if zfs.pool_of(source.path) != pool:
            ways.why_not[source] = f"it is in another pool than {pool.name}"
        elif own != block:
            ways.why_not[source] = f"its blocks are of {own} bytes, and the new file's of {block}, like most of its data"
        elif not _refusal(file, target, block):
            ways.by_source[source] = Way(block, reflink.clone_range)
        elif _trial(file, target, block, pool):
            ways.by_source[source] = Way(block, reflink.copy_range, certain=False)
        else:
            ways.why_not[source] = "ZFS copied a trial block instead of sharing it"
    pool.settle()  # the trials are gone again, and counted no more
    ways.saved_before = pool.saved()
    return ways


def begin(ways: Ways, files: Files, target: int, length: int) -> None:
    """Gives the empty file its length, and on ZFS the block size of what will be cloned into it.

    Growing an empty file, or one of a single block, would give it the block size of its dataset.
    """
    seeded = 0
    if ways.pool and ways.by_source:
        source, way = next(iter(ways.by_source.items()))
        seeded = _seed(files[source], target, way.block)
    os.ftruncate(target, length)
    if seeded:
        reflink.punch_hole(target, 0, min(seeded, length))


def _seed(file: OpenSource, target: int, block: int) -> int:
    """Clones the first two blocks of a source into the empty file, which thereby takes its block size for good."""
    length = align_down(min(2 * block, file.source.size), block)
    reflink.copy_range(file.fd, 0, length, target, 0)
    return length


def _trial(file: OpenSource, target: int, block: int, pool: zfs.Pool) -> bool:
    """Clones the first data of a source into the empty file, which thereby takes its block size, and asks the pool.

    What compresses to next to nothing lies in the block pointers themselves and is never counted: so the pool must have
    saved as much as the clone takes, and not merely something. Somebody else's deletion may hide that, which shows when
    the clone is gone and the figure not what it was: then a trial says nothing.
    """
    disturbed = False
    try:
        for number in range(3):
            if number:
                time.sleep(random.random())  # out of step with another process that tries the same
            pool.settle()  # the last trial is gone, and counted no more
            before, at = pool.saved(), _seed(file, target, block)
            for offset, length in _blocks_with_data(file, block):
                reflink.copy_range(file.fd, offset, length, target, at)
                at += length
            pool.settle()
            taken = reflink.allocated(target)
            shared = pool.saved() - before >= taken // 2 - _UNCOUNTED
            if shared:
                return reflink.block_size(target) == block
            reflink.empty(target)
            pool.settle()
            disturbed |= pool.saved() != before
        return disturbed or _is_busy(pool)
    finally:
        reflink.empty(target)


def _is_busy(pool: zfs.Pool) -> bool:
    """Whether others clone or delete in the pool just now: then a trial says nothing, and it is `proven` that may say no."""
    seen = set()
    for _ in range(4):
        pool.settle()
        seen.add(pool.saved())
    return len(seen) > 1


def _blocks_with_data(file: OpenSource, block: int) -> Iterator[tuple[int, int]]:
    """Offset and length of whole blocks that hold data, as far as a trial needs them."""
    left = _TRIAL
    for offset, length in file.data_ranges(0, file.source.size):
        start, end = align_down(offset, block), align_down(min(offset + length, offset + left), block)
        if start < end:
            yield start, end - start
            left -= end - start
        if left < block:
            return


def measure(ways: Ways, files: Files, target: int, cloned: Mapping[Source, int], shared: int) -> Measured:
    """Measures the finished file, for which `cloned` bytes of each source were shared.

    `shared` is what was allocated by that, which ZFS tells only of the whole pool. Its counters may be anything if others
    clone or delete meanwhile: too small a figure is no proof of the contrary, and neither that nor too large a one is used.
    """
    if ways.pool is None:
        return Measured(True, reflink.allocated(target) - shared)
    ways.pool.settle()
    taken = reflink.allocated(target)
    if not cloned:
        return Measured(True, taken)
    saved, expected = ways.pool.saved() - ways.saved_before, 0
    for source, length in cloned.items():
        # What is allocated of a file, less all of it that was not cloned: that much of it at least was shared.
        expected += max(int(reflink.allocated(files[source].fd) * 0.95) - (source.size - length), 0)
    proven = saved >= expected or all(ways.by_source[source].certain for source in cloned)
    return Measured(proven, taken - saved if expected <= saved <= taken else None)
