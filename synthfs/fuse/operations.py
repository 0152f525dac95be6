"""The FUSE operations: a protocol adapter, and nothing else. What is shown comes from a `Tree`, what is read from `Reader`s.

Laws, each of which has bitten somebody:
    1. No exception but Cancelled leaves a handler: pyfuse3's main loop, and the mount with it, would end for everyone.
    2. A read is first tried on the event loop, where it must not wait; only what would wait goes to a thread.
    3. `_buffer` is shared by all requests: between filling it and handing it back there is no `await`. A read in a thread
       brings its own.
    4. A short answer is an error. pyfuse3 would pad it, and the kernel would take the file for shorter from then on.
    5. No getxattr, listxattr or flush here: the kernel then learns ENOSYS once and never asks again. Samba asks a lot.
    6. What a stat shows never changes while the inode lives, but for disks that are written to (`fuse/writing`).

Threading: everything runs on trio's event loop, except `Reader.open`, `Reader.read` and `Bud.unfolded`.
"""

import contextlib
import errno
import functools
import itertools
import logging
import os
import stat
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, RequestContext

from synthfs.engines.read import Reader
from synthfs.errors import FullError, SynthfsError
from synthfs.fuse.inodes import Inodes
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.threads import in_thread
from synthfs.host.logs import News
from synthfs.host.scratch import ScratchFile
from synthfs.plan.tree import Bud, File, Live, Node, Numbered, Tree

log = logging.getLogger(__name__)

FOREVER = 3600.0
"""Seconds for which the kernel may keep a name or an attribute. Nothing behind one ever changes."""

MAX_READ = 1024 * 1024
"""The most that a kernel asks for in one request, unless its administrator raised fs.fuse.max_pages_limit."""

_READERS = 40
"""How many reads may wait for a disk at the same time."""

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Operations")


def handler(
    operation: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Turns whatever goes wrong in `operation` into an errno: EIO, with one line for a user's error, all of it for a bug."""

    @functools.wraps(operation)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await operation(self, *args, **kwargs)
        except FUSEError:
            raise
        except SynthfsError as error:
            self.report(error)
            raise FUSEError(errno.ENOSPC if isinstance(error, FullError) else errno.EIO) from error
        except Exception as error:
            self.metrics.errors += 1
            self.report_bug(operation.__qualname__)
            raise FUSEError(errno.EIO) from error

    return guarded


def unanswered(
    operation: Callable[Concatenate["Operations", P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, None]]:
    """For an operation whose end nobody waits for: not even a FUSEError may leave it."""

    @functools.wraps(operation)
    async def silenced(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> None:
        with contextlib.suppress(FUSEError):
            await operation(self, *args, **kwargs)

    return silenced


@dataclass(frozen=True, slots=True)
class Access:
    """Whom files and directories seem to belong to, and the permission bits of a file."""

    owner: int
    group: int
    mode: int

    @property
    def directory_mode(self) -> int:
        """Who may read a file may also list and enter directories."""
        return self.mode | (self.mode & 0o444) >> 2


@dataclass(slots=True)
class Shared:
    """One reader for everybody who has a file open, and for nobody who opens what the store has in its place by now."""

    file: File
    reader: Reader | ScratchFile
    users: int = 0


class Operations(pyfuse3.Operations):
    """Serves a tree, read-only, and after `replace` another one."""

    def __init__(self, tree: Tree, access: Access, metrics: Metrics) -> None:
        super().__init__()
        self.metrics = metrics
        self.version = 0
        """Counts what changes the tree beside the store: whoever looks into a bud, and whoever writes."""
        self._access = access
        self._inodes = Inodes(tree)
        self._readers: dict[int, Shared] = {}
        self._handles: dict[int, Shared] = {}
        self._listings: dict[int, tuple[Node, ...]] = {}
        self._numbers = itertools.count(1)
        self._buffer = memoryview(bytearray(MAX_READ))
        self._news = News()
        # Threads of their own: reads that hang on a broken disk, and looks that wait for a plan, must not keep scans and
        # watchdogs waiting, nor each other.
        self._reading = trio.CapacityLimiter(_READERS)
        self._unfolding = trio.CapacityLimiter(_READERS)
        self.greeted = trio.Event()
        """Set when the kernel has said what it can do; whoever waits for it runs after it was answered."""

    def init(self) -> None:
        self.greeted.set()

    @handler
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if name == b".":
            return self._told(self._node(parent_inode))
        if name == b"..":
            return self._told(self._node(self._inodes.parent(parent_inode)))
        node = (await self._directory(parent_inode)).get(name)
        if node is None:
            # An answer without an inode is one that the kernel remembers, and Samba asks for much that is not there.
            nothing = EntryAttributes()
            nothing.st_ino = InodeT(0)
            nothing.entry_timeout = FOREVER
            return nothing
        return self._told(node)

    @unanswered
    @handler
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._inodes.forget(inode, count)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._node(inode))

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        await self._directory(inode)
        number = next(self._numbers)
        # Shared with the tree, and with everybody else who has it open: a client may hold thousands.
        self._listings[number] = self._inodes.listing(inode)
        return FileHandleT(number)

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        for number in range(start_id, len(listing)):
            shown = self._rendered(listing[number])
            if not pyfuse3.readdir_reply(token, FileNameT(os.fsencode(shown.name)), self._attributes(shown), number + 1):
                return
            self._inodes.remember(shown)

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        node = self._node(inode)
        if not isinstance(node, File):
            raise FUSEError(errno.EISDIR)
        self._check_flags(node, flags)
        shared = await self._acquire(node)
        number = next(self._numbers)
        self._handles[number] = shared
        return FileInfo(fh=FileHandleT(number), keep_cache=True)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        began = time.perf_counter()
        shared, reader, count = self._handles[fh], None, None
        # Once more where the disk became a session meanwhile: what was there before is not what was written.
        while count is None or reader is not shared.reader:
            reader = shared.reader
            into = self._buffer[:size] if size <= MAX_READ else memoryview(bytearray(size))
            count = reader.try_read(off, into)
            if count is None:
                into = memoryview(bytearray(size))
                count = await in_thread(reader.read, off, into, limiter=self._reading)
        self.metrics.count_read(count, time.perf_counter() - began)
        return into[:count]  # type: ignore[return-value]  # pyfuse3 takes any buffer; its stub says bytes

    @handler
    async def release(self, fh: FileHandleT) -> None:
        self._let_go(self._handles.pop(fh))

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_blocks = self._inodes.blocks
        result.f_files = len(self._inodes)
        result.f_namemax = 255
        return result

    @property
    def tree(self) -> Tree:
        return self._inodes.tree

    def replace(self, tree: Tree) -> None:
        """Shows `tree` from now on. Open files go on being what they were."""
        self._inodes.replace(tree)

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    @property
    def bytes_held(self) -> int:
        """The length of deleted backup files that open handles keep readable."""
        return sum(reader.bytes_held() for reader in self._open_readers())

    def report(self, error: SynthfsError) -> None:
        """Counts an error and logs it, the first time: a client that meets it will try again and again."""
        self.metrics.errors += 1
        log.log(self._news.level(str(error)), "%s", error)

    def report_bug(self, where: str) -> None:
        """Counts the exception that is being handled and logs it, the first time."""
        self.metrics.bugs += 1
        level = self._news.level(traceback.format_exc(), logging.ERROR)
        log.log(level, "bug in %s, please report it", where, exc_info=True)

    def rest(self) -> None:
        """Lets go of files that are open but idle, where holding them would be in UrBackup's way."""
        for reader in self._open_readers():
            if reader.rests:
                reader.rest()

    def close(self) -> None:
        """Closes every file that is still open, when the mount has ended."""
        for reader in self._open_readers():
            reader.close()
        self._readers.clear()
        self._handles.clear()

    def _check_flags(self, node: File, flags: int) -> None:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
            raise FUSEError(errno.EROFS)

    async def _acquire(self, node: File) -> Shared:
        """The reader of a file, opened if nobody has it open; to be let go of."""
        shared = self._shared(node)
        if shared is None:
            opened = await in_thread(self._opened, node)
            # Somebody else may have opened the file meanwhile: then theirs is the one to share.
            shared = self._shared(node)
            if shared is None:
                shared = self._readers[node.inode] = Shared(node, opened)
            else:
                opened.close()
        shared.users += 1
        return shared

    def _let_go(self, shared: Shared) -> None:
        shared.users -= 1
        if not shared.users:
            if self._readers.get(shared.file.inode) is shared:
                del self._readers[shared.file.inode]
            shared.reader.close()

    def _opened(self, file: File) -> Reader | ScratchFile:
        reader = Reader(file.extent_map())
        reader.open()
        return reader

    def _open_readers(self) -> set[Reader | ScratchFile]:
        return {shared.reader for shared in self._handles.values()}

    def _shared(self, file: File) -> Shared | None:
        """The reader to share for `file`, unless it is one of a backup that has been put back in another place since."""
        shared = self._readers.get(file.inode)
        return shared if shared and shared.file.disk == file.disk else None

    def _node(self, inode: int) -> Numbered:
        if node := self._inodes.node(inode):
            return node
        raise FUSEError(errno.ESTALE)

    async def _directory(self, inode: int) -> Mapping[bytes, Node]:
        """What is in a directory. Who looks into a bud before anybody else waits for what is in that one."""
        while (children := self._inodes.children(inode)) is None:
            bud = self._node(inode)
            if not isinstance(bud, Bud):
                raise FUSEError(errno.ENOTDIR)
            self._inodes.unfold(bud, await in_thread(bud.unfolded, limiter=self._unfolding))
            self.version += 1
        return children

    def _rendered(self, node: Node) -> Numbered:
        return node.rendered(self._inodes.tree.root.mtime_ns) if isinstance(node, Live) else node

    def _told(self, node: Node) -> EntryAttributes:
        """The attributes of a node that the kernel is told of, and will forget one day."""
        shown = self._rendered(node)
        self._inodes.remember(shown)
        return self._attributes(shown)

    def _attributes(self, node: Numbered) -> EntryAttributes:
        result = EntryAttributes()
        result.st_ino = InodeT(node.inode)
        # What was made for one look, and what a listing begun before a refresh still holds, is not to be kept.
        result.entry_timeout = result.attr_timeout = FOREVER if self._inodes.is_present(node) else 0.0
        result.st_uid, result.st_gid = self._access.owner, self._access.group
        result.st_atime_ns = result.st_mtime_ns = result.st_ctime_ns = node.mtime_ns
        if isinstance(node, File):
            result.st_mode = pyfuse3.ModeT(stat.S_IFREG | self._access.mode)
            result.st_nlink = 1
            result.st_size = node.length
            # All of it allocated: no server may take the file for a sparse one, which Windows would not attach.
            result.st_blocks = -(-node.length // 512)
        else:
            result.st_mode = pyfuse3.ModeT(stat.S_IFDIR | self._access.directory_mode)
            result.st_nlink = 2
        return result
