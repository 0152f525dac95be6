"""Writing to a mount: the operations that a read-only mount does not have. The first write to a disk makes it a session.

    first write ─► freeze, in a thread ─► every handle of the file is given the scratch file ─► the write, in a thread

Laws beside those of `fuse/operations`:
    1. A write is answered when it is in the scratch file, `fsync` when that is on its disk. pyfuse3 would say yes to an
       `fsync` that is not there.
    2. Reads never wait for a freeze, and a writer at most LIMIT seconds: then it gets EIO. The freeze goes on, and a later
       write finds it done.
    3. All handles of a file have one reader: they see a write at once, whoever made it. The kernel wrote it into its own
       pages, and what was in them before is what the scratch file began with.
    4. An inode whose session was discarded is never served from the backup: it may be in caches with other bytes.
    5. O_TRUNC comes in `open`, without a `setattr`. `fallocate` never comes: pyfuse3 does not know it.

Sessions are added, ended and removed on the event loop only; `version` tells whoever grows a tree that they changed.
"""

import errno
import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FlagT, FUSEError, InodeT, ModeT, RequestContext

from synthfs.engines.read import Reader
from synthfs.engines.session import Scratch, Written
from synthfs.errors import SourceError, SynthfsError
from synthfs.extents import ExtentMap
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.operations import Access, Operations, Shared, handler
from synthfs.fuse.threads import in_thread
from synthfs.host.scratch import ScratchFile
from synthfs.model import Session
from synthfs.plan.container import longest
from synthfs.plan.tree import File, Numbered, Tree, walk

log = logging.getLogger(__name__)

LIMIT = 10.0
"""Seconds that a writer waits for a freeze; one takes a fraction of a second, if the disk below is not busy."""

_WRITERS = 40
_READ_ONLY = ~0o222


@dataclass(slots=True)
class _Freeze:
    """A freeze that is under way, for all who wait for it, and until when.

    The deadline is one for all: the kernel lets one write to a file through at a time, so that waits of many would add up.
    """

    deadline: float
    done: trio.Event = field(default_factory=trio.Event)
    error: SynthfsError | None = None


class WritableOperations(Operations):
    """Serves a tree that can be written to: what is written is in `scratch`, and the backups stay what they are."""

    def __init__(self, tree: Tree, access: Access, metrics: Metrics, scratch: Scratch) -> None:
        super().__init__(tree, access, metrics)
        self.scratch = scratch
        self._freezes: dict[int, _Freeze] = {}
        self._openers: dict[int, int] = {}
        self._ended: set[int] = set()
        self._writing = trio.CapacityLimiter(_WRITERS)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Gives freezes a place to run in for as long as the mount lives."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    # -- operations

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        info = await super().open(inode, flags, ctx)
        self._openers[info.fh] = ctx.pid
        return info

    @handler
    async def release(self, fh: FileHandleT) -> None:
        self._openers.pop(fh, None)
        if written := self.scratch.get(self._handles[fh].file.inode):
            written.idle.use()
        await super().release(fh)

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        shared = self._handles[fh]
        self._check_end(shared.file, off + len(buf))
        file = await self._scratch_file(shared)
        return await in_thread(file.write, off, buf, limiter=self._writing)

    @handler
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """A change of length, where the container has one. Times are accepted and stay what they are."""
        node = self._node(inode)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise FUSEError(errno.EPERM)
        if fields.update_size:
            if not isinstance(node, File):
                raise FUSEError(errno.EISDIR)
            if attr.st_size != self._length(node):
                await self._resize(node, attr.st_size)
        return self._attributes(node)

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        reader = self._handles[fh].reader
        if isinstance(reader, ScratchFile):
            await in_thread(reader.sync, datasync, limiter=self._writing)

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Directories hold what the store and the scratch directory hold, and that is on disk already."""

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        """All that was written is in the scratch file already; whoever closes a file hears if that is gone."""
        reader = self._handles[fh].reader
        if isinstance(reader, ScratchFile):
            reader.check()

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        result = await super().statfs(ctx)
        left = await in_thread(self.scratch.reserve.left)
        result.f_bfree = result.f_bavail = left // result.f_frsize
        result.f_blocks += result.f_bfree
        return result

    @handler
    async def _refused(self, *_: Any) -> Any:
        """Disks come from backups, and go with them: no name is made, changed or removed here."""
        raise FUSEError(errno.EPERM)

    # pyfuse3 calls them with arguments that do not matter here.
    create = mknod = mkdir = unlink = rmdir = rename = link = symlink = _refused  # type: ignore[assignment]

    # -- for whoever ends sessions (`fuse/control`)

    def place(self, written: Written) -> str:
        """Where a session is shown, as a path below the mount."""
        return self.tree.places.get(written.session.inode, written.session.path)

    def openers(self) -> dict[int, set[int]]:
        """The processes that have files open, by the inodes of those."""
        found: dict[int, set[int]] = {}
        for number, shared in self._handles.items():
            found.setdefault(shared.file.inode, set()).add(self._openers[number])
        return found

    def end(self, written: Written) -> None:
        """Nobody gets anything of a session from now on."""
        written.file.end()
        self._ended.add(written.session.inode)

    def revive(self, written: Written) -> None:
        """It goes on after all, and also for those who have it open."""
        written.file.revive()
        self._ended.discard(written.session.inode)

    def is_ending(self, written: Written) -> bool:
        return written.session.inode in self._ended

    def has_backup(self, written: Written) -> bool:
        """Whether the backup that it began with is still in the store, shown or not."""
        node = self._inodes.node(written.session.inode)
        return isinstance(node, File) and node.disk is not None

    def remove(self, written: Written) -> None:
        """It is gone, and its inode with it."""
        self.scratch.remove(written)
        self.version += 1

    # -- how it is done

    def _check_flags(self, node: File, flags: int) -> None:
        if not node.edition:
            super()._check_flags(node, flags)
        elif flags & os.O_TRUNC and self._length(node):
            raise FUSEError(errno.EPERM)

    async def _acquire(self, node: File) -> Shared:
        self._refuse_ended(node.inode)
        shared = await super()._acquire(node)
        try:
            self._refuse_ended(node.inode)
            # It may have become a session while its backup was being opened.
            if written := self.scratch.get(node.inode):
                written.idle.use()
                if shared.reader is not written.file:
                    self._exchange(shared, written)
        except BaseException:
            self._let_go(shared)
            raise
        return shared

    def _refuse_ended(self, inode: int) -> None:
        if inode in self._ended:
            raise FUSEError(errno.ESTALE)

    def _shared(self, file: File) -> Shared | None:
        return self._readers.get(file.inode) if file.inode in self.scratch else super()._shared(file)

    def _opened(self, file: File) -> Reader | ScratchFile:
        if written := self.scratch.get(file.inode):
            written.file.open()
            # Before anything is written: a mount that is killed must not leave the time that it was idle before.
            written.idle.use()
            written.idle.record()
            return written.file
        return super()._opened(file)

    def _length(self, file: File) -> int:
        written = self.scratch.get(file.inode)
        return written.file.length if written else file.length

    def _attributes(self, node: Numbered) -> EntryAttributes:
        result = super()._attributes(node)
        if not isinstance(node, File) or not node.edition:
            result.st_mode = ModeT(result.st_mode & _READ_ONLY)
        elif written := self.scratch.get(node.inode):
            # Kept as long as others: the kernel forgets by itself what its own writes change, and there are no other writes.
            result.st_size, result.st_blocks = written.file.length, -(-written.file.length // 512)
            result.st_atime_ns = result.st_mtime_ns = result.st_ctime_ns = _shown_time(written)
        return result

    def _check_end(self, file: File, end: int) -> None:
        """Raises EFBIG where a file may not become so long."""
        if end > self._length(file) and (not file.may_resize or end > longest(file.name)):
            raise FUSEError(errno.EFBIG)

    async def _resize(self, node: File, length: int) -> None:
        if not node.may_resize:
            raise FUSEError(errno.EPERM)
        self._check_end(node, length)
        shared = await self._acquire(node)
        try:
            file = await self._scratch_file(shared)
            await in_thread(file.resize, length, limiter=self._writing)
        finally:
            self._let_go(shared)

    async def _scratch_file(self, shared: Shared) -> ScratchFile:
        """What to write to; the first to ask waits for the freeze, as do all who ask meanwhile."""
        if isinstance(shared.reader, ScratchFile):
            return shared.reader
        freeze = self._freezes.get(shared.file.inode)
        if freeze is None:
            freeze = self._freezes[shared.file.inode] = _Freeze(trio.current_time() + LIMIT)
            self._nursery.start_soon(self._freeze, shared.file, shared.reader.extents, freeze)
        with trio.move_on_at(freeze.deadline):
            await freeze.done.wait()
        if freeze.error:
            # Anew for each who waited: what is raised gathers the frames of all.
            raise type(freeze.error)(*freeze.error.args)
        if not isinstance(shared.reader, ScratchFile):
            raise SourceError(f"{shared.file.name} could not be made writable within {LIMIT:.0f} s; try again in a while")
        return shared.reader

    async def _freeze(self, file: File, extents: ExtentMap, freeze: _Freeze) -> None:
        try:
            session = self._session(file)
            written = await in_thread(self.scratch.begin, session, extents)
            self._begin(written)
        except SynthfsError as error:
            # Without its frames, which lead to `freeze`: a cycle.
            freeze.error = error.with_traceback(None)
        except Exception:
            self.report_bug(f"making {file.name} writable")
            freeze.error = SourceError(f"{file.name} could not be made writable")
        finally:
            del self._freezes[file.inode]
            freeze.done.set()

    def _begin(self, written: Written) -> None:
        """From now on the session is what everybody sees of its disk."""
        self.scratch.add(written)
        self.version += 1
        everybody = {id(one): one for one in (*self._handles.values(), *self._readers.values())}
        for one in everybody.values():
            if one.file.inode == written.session.inode:
                self._exchange(one, written)
        written.file.close()
        log.info("%s is written to, in %s", written.session.path, written.file.path)

    def _exchange(self, shared: Shared, written: Written) -> None:
        """Everybody with the file open goes on with the scratch file."""
        written.file.open()
        before, shared.reader = shared.reader, written.file
        if isinstance(before, Reader):
            before.retire()

    def _session(self, file: File) -> Session:
        """The session that begins with a first write. Raises SourceError where the file is not in the tree any more."""
        path = next((path for path, node in walk(self.tree.root) if isinstance(node, File) and node.inode == file.inode), None)
        if path is None or file.disk is None:
            raise SourceError(f"{file.name} is gone: UrBackup has deleted the backup, and it can be read but not written to")
        generation = self.scratch.generation(file.edition)
        return Session(
            file.edition,
            generation,
            file.inode,
            path,
            file.disk.image.name,
            file.length,
            file.mtime_ns,
            time.time_ns(),
            file.may_resize,
            file.disk.edition,
        )


def _shown_time(written: Written) -> int:
    """In whole seconds, once somebody has written: each time that it changes, the kernel drops all cached pages of the file."""
    time_ns = written.file.mtime_ns
    return time_ns if time_ns == written.session.mtime_ns else time_ns // 10**9 * 10**9
