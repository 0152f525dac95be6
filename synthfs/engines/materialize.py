"""Freezes an extent map into a real file that shares its data with the backup: no bytes are copied that can be cloned.

    prepare   opens every source, finds out by trial what can be shared, cooks the recipe, checks the space
    freeze    does the steps into a nameless file, checks that no source changed meanwhile, publishes

Everything that can fail for a reason that is known beforehand fails in `prepare`, when nothing was written yet.
The sources are opened read-only. Not for: which ranges go where (`plan/recipe`). Units: bytes, seconds.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from synthfs.engines import sharing
from synthfs.engines.sharing import Ways
from synthfs.errors import FullError, ShareError, TargetError
from synthfs.extents import ExtentMap, Source
from synthfs.host import reflink
from synthfs.host.files import OpenSource
from synthfs.host.publish import Draft, unwritable
from synthfs.plan.recipe import Clone, Copy, Hole, Repeat, Step, Totals, Write, cook, leave_holes, summary
from synthfs.units import GiB, MiB, human

_CLONE_AT_ONCE = 8 * GiB
_COPY_AT_ONCE = MiB
_SLIGHT = MiB
"""A range of up to this size is copied without asking, as edges are: where a block of a dynamic VHD is of two partitions that
agree with different places, it is the smaller part, at most half the block.
"""
Progress = Callable[[int], None]
Told = Callable[[os.stat_result], None]


class Reflink(StrEnum):
    """What to do about data that could be shared. The words are those of `cp --reflink`."""

    ALWAYS = "always"
    AUTO = "auto"
    NEVER = "never"


@dataclass(slots=True)
class Prepared:
    """A freeze that can begin: the recipe, open sources, a nameless target. `why_copied` explains copies, by source."""

    extents: ExtentMap
    steps: Callable[[], Iterator[Step]]
    """Makes the recipe: each time anew, since that of a large dynamic VHD has millions of steps."""

    expected: Totals
    directory: str
    why_copied: dict[Source, str]
    new_space: int | None
    """Bytes that the file will take beside what it shares; after `measure`, those that it does take, None if unknown."""

    _ways: Ways = field(repr=False)
    _files: dict[Source, OpenSource] = field(repr=False)
    _draft: Draft = field(repr=False)
    _cloned: Counter[Source] = field(repr=False)
    _shared: int = 0

    @property
    def fd(self) -> int:
        """The nameless file's descriptor, for what else is to be known about it before it has a name."""
        return self._draft.fd

    def freeze(
        self, name: str, overwrite: bool, progress: Progress = lambda done: None, about_to_publish: Told = lambda made: None
    ) -> None:
        """Makes the file and publishes it as `name`, about which it tells the caller when all but the name is there.

        Raises SourceError if a backup changed, TargetError if `name` exists or the space ran out; then nothing is left.
        """
        target, shared = self._draft.fd, 0
        try:
            sharing.begin(self._ways, self._files, target, self.extents.length)
            for step in self.steps():
                shared += self._do(step, target)
                progress(step.target + step.length)
            for file in self._files.values():
                file.check()
            if os.fstat(target).st_size != self.extents.length:
                raise TargetError(f"{self.directory}/{name} came out at the wrong length; nothing was published")
            self._draft.finish()
            about_to_publish(os.fstat(target))
            self._draft.publish(name, overwrite)
            self._shared = shared
        except OSError as error:
            message = f"{self.directory}/{name} cannot be written: {error.strerror}; nothing was left of it"
            raise unwritable(error, message) from error

    def measure(self) -> bool:
        """Measures `new_space` of the frozen file. False: on ZFS too much else happened in the pool to tell what is shared."""
        measured = sharing.measure(self._ways, self._files, self._draft.fd, self._cloned, self._shared)
        self.new_space = measured.new_space
        return measured.proven

    def _do(self, step: Step, target: int) -> int:
        """Does one step. Returns how much more is allocated for the file that it shares with a backup."""
        match step:
            case Hole():
                pass
            case Write(at, data):
                _write(target, data, at)
            case Copy():
                self._copy(step, target)
            case Clone():
                before = reflink.allocated(target)
                file, way = self._files[step.source], self._ways.by_source[step.source]
                for skip in range(0, step.length, _CLONE_AT_ONCE):
                    length = min(_CLONE_AT_ONCE, step.length - skip)
                    way.share(file.fd, step.offset + skip, length, target, step.target + skip)
                return reflink.allocated(target) - before
            case Repeat(at, first, length):
                before = reflink.allocated(target)
                reflink.clone_range(target, first, length, target, at)
                return reflink.allocated(target) - before
            case _:
                assert_never(step)
        return 0

    def _copy(self, step: Copy, target: int) -> None:
        file = self._files[step.source]
        buffer = memoryview(bytearray(min(_COPY_AT_ONCE, step.length)))
        for done in range(0, step.length, _COPY_AT_ONCE):
            piece = buffer[: min(_COPY_AT_ONCE, step.length - done)]
            file.read(step.offset + done, piece)
            _write(target, piece, step.target + done)


@contextmanager
def prepare(extents: ExtentMap, directory: str, mode: Reflink) -> Iterator[Prepared]:
    """Gets everything ready for a freeze into `directory`, and lets go of it at the end.

    Raises SourceError for a backup that is not what it was, TargetError where nothing can be written or the space is
    short, ShareError where `mode` asks for sharing and more cannot be shared than edges of blocks and slight ranges.
    """
    with ExitStack() as stack:
        files: dict[Source, OpenSource] = {}
        for source in extents.sources():
            files[source] = OpenSource(source)
            stack.callback(files[source].close)
        draft = stack.enter_context(Draft(directory))
        ways = sharing.find({} if mode is Reflink.NEVER else files, draft.fd, directory)
        why = dict(ways.why_not)

        def noted() -> Iterator[Step]:
            for step in cook(extents, ways.block, ways.own_block):
                if isinstance(step, Copy) and not step.edge and step.length > _SLIGHT and (block := ways.block(step.source)):
                    why.setdefault(step.source, _misaligned(step, block))
                yield step

        def steps() -> Iterator[Step]:
            return leave_holes(noted(), lambda source, offset, length: files[source].data_ranges(offset, length))

        found = summary(steps(), reflink.block_size(draft.fd))
        if mode is Reflink.ALWAYS and why:
            raise ShareError(_cannot_share(why, another_place=bool(ways.why_not)))
        _check_space(directory, found.new_space)
        yield Prepared(extents, steps, found.totals, directory, why, found.new_space, ways, files, draft, found.cloned)


def can_share_into(directory: str, source: Source) -> None:
    """Tries whether a file in `directory` could share data with `source`; nothing is left of the trial.

    Raises ShareError where it cannot, SourceError or TargetError where one of the two cannot be opened.
    """
    file = OpenSource(source)
    try:
        with Draft(directory) as draft:
            ways = sharing.find({source: file}, draft.fd, directory)
    finally:
        file.close()
    if source in ways.why_not:
        raise ShareError(ways.why_not[source])


def _misaligned(copy: Copy, block: int) -> str:
    return (
        f"its data begin at {copy.offset} in the backup and belong at {copy.target} on the disk, "
        f"and blocks of {block} bytes can only be shared where both agree"
    )


def _cannot_share(why: dict[Source, str], another_place: bool) -> str:
    """The reasons, and what would help: `another_place` for the file, or another container, or another disk."""
    names: dict[str, list[str]] = {}
    for source, reason in why.items():
        names.setdefault(reason, []).append(source.name)
    reasons = "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())
    there = "Choose a directory on the backups' own file system with -o (sync: --to)"
    other = "Take --format vhd-dynamic, which agrees with any place, or the volume with --volume-only"
    return f"{reasons}. {there if another_place else other}, or allow a copy with `materialize --reflink auto`"


def _check_space(directory: str, needed: int) -> None:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise FullError(f"{directory} has {human(free)} free, and {human(needed)} are to be written")


def _write(target: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, at)
        view, at = view[count:], at + count

