"""What becomes of sessions: discarded, kept elsewhere, given up for their age; and what is to be told of them.

To end a session takes four steps, in this order: nobody gets anything of it any more; the scratch file goes, in a thread;
the tree shows the backup under another inode; the kernel forgets the old one, in a thread and not waited for without bound.

Verbs ask through a socket in the scratch directory (`host/control`), whose owner alone may connect:

    {"do": "discard", "path": …, "force": …}          {"done": true}
    {"do": "keep", "path": …, "force": …}             {"scratch": NAME, …}, and nobody can open the disk
    {"do": "done"} on the same connection             {"done": true}: it was copied, and is discarded. A connection that
                                                      ends instead brings the session back

Not for: writing (`fuse/writing`), copying (`cli/sessions`). Units: seconds.
"""

import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyfuse3
import trio

from synthfs.engines.idle import Passing
from synthfs.engines.session import Written
from synthfs.errors import BusyError, NotFoundError, SynthfsError
from synthfs.fuse.refresh import NOTIFY_LIMIT, Refresher
from synthfs.fuse.threads import in_thread
from synthfs.fuse.writing import WritableOperations
from synthfs.host import control, reflink, shapes
from synthfs.plan.tree import File, find

log = logging.getLogger(__name__)

_PAUSE = 2.0
"""Between looks at what the sessions take and how old they are."""

_RECORD = 3600.0
"""How much of the time that a session was idle a mount that is killed may forget, or a tenth of `max_age`."""

_MOST = 32
"""Connections at a time: each has a descriptor, which reads need too."""

_PATIENCE = 60.0
"""For a request to be there, all of it, and for an answer to be taken. To copy what `keep` keeps may take any time."""

Facts = dict[str, Any]


class Control:
    """Ends sessions of `operations`. Those that nobody had open for `max_age` are discarded; 0 keeps all."""

    def __init__(
        self, operations: WritableOperations, refresher: Refresher, listener: socket.socket, max_age: float
    ) -> None:
        """Time is what `engines/idle` counts."""
        self._operations = operations
        self._scratch = operations.scratch
        self._refresher = refresher
        self._listener = listener
        self._max_age = max_age
        self._passing = Passing()
        self._connections = 0

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Lets disks be written to, answers requests, and keeps house, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._operations.run)
            task_status.started()
            nursery.start_soon(self._keep_house)
            accepting = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
            await trio.serve_listeners(self._converse, [accepting], handler_nursery=nursery)

    async def discard(self, path: str, force: bool) -> None:
        """Ends a session for good. Raises NotFoundError without one, BusyError where it is open, unless by `force`."""
        with self._ending(path, force) as written:
            await self._discard(written)

    async def _discard(self, written: Written) -> None:
        path = self._operations.place(written)
        await in_thread(self._scratch.discard, written)
        self._operations.remove(written)
        await self._refresher.show()
        with trio.move_on_after(NOTIFY_LIMIT):
            await in_thread(_forget, written.session.inode, abandon_on_cancel=True)
        log.info("%s was discarded", path)

    @contextmanager
    def _ending(self, path: str, force: bool) -> Iterator[Written]:
        """A session that is about to go, out of everybody's reach; if it is still there at the end, it goes on."""
        written = self._named(path)
        inode = written.session.inode
        if (users := self._operations.openers().get(inode)) and not force:
            processes = ", ".join(map(str, sorted(users)))
            raise BusyError(f"{path} is open in process {processes}; close it there, or add --force, which breaks it off")
        self._operations.end(written)
        try:
            yield written
        finally:
            if inode in self._scratch:
                self._operations.revive(written)

    def _named(self, path: str) -> Written:
        node = find(self._operations.tree, path)
        written = self._scratch.get(node.inode) if isinstance(node, File) else None
        if written is None:
            what = "is no file of this mount" if node is None else "is not written to"
            raise NotFoundError(f"{path} {what}; `synthfs sessions` lists those that were written to")
        if self._operations.is_ending(written):
            raise BusyError(f"{path} is being discarded or kept by somebody else")
        return written

    async def _converse(self, stream: trio.SocketStream) -> None:
        """Answers the requests of one connection. Whatever goes wrong with it is its own affair."""
        self._connections += 1
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
                async with stream:
                    await self._answer_all(_Lines(stream))
        finally:
            self._connections -= 1

    async def _answer_all(self, lines: "_Lines") -> None:
        if self._connections > _MOST:
            return await lines.send({"error": "too many ask this mount at once; try again in a moment", "code": 1})
        while (request := await lines.next_soon()) is not None:
            try:
                answer = await self._answer(request, lines)
            except SynthfsError as error:
                answer = {"error": str(error), "code": error.exit_code}
            except (trio.BrokenResourceError, trio.TooSlowError):
                raise
            except Exception:
                log.exception("bug in answering %r, please report it", request)
                answer = {"error": "the mount failed to do it; its log has more", "code": 1}
            await lines.send(answer)
        return None

    async def _answer(self, request: Facts, lines: "_Lines") -> Facts:
        match request:
            case {"do": "discard", "path": str(path), "force": bool(force)}:
                await self.discard(path, force)
            case {"do": "keep", "path": str(path), "force": bool(force)}:
                with self._ending(path, force) as written:
                    await lines.send({"scratch": written.name, "path": path})
                    if await lines.next() != {"do": "done"}:
                        return {"error": f"{path} was not kept, and goes on", "code": 1}
                    await self._discard(written)
            case _:
                return {"error": "this mount does not know how to do that", "code": 2}
        return {"done": True}

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(_PAUSE)
            try:
                await self._look_after_sessions()
            except Exception:  # it would end the mount for everybody
                log.exception("bug in looking after sessions, please report it")

    async def _look_after_sessions(self) -> None:
        if any(find(self._operations.tree, self._operations.place(written)) is None for written in self._scratch):
            await self._refresher.show()  # one that began when its backup went
        passed, is_open = self._passing.passed(), self._operations.openers()
        for written in self._scratch:
            if written.counted_at != written.file.mtime_ns:
                await in_thread(_count, written)
            if self._max_age:
                await self._grow_old(written, passed, written.session.inode in is_open)

    async def _grow_old(self, written: Written, passed: float, is_open: bool) -> None:
        written.idle.look(passed, is_open or self._operations.is_ending(written))
        await in_thread(written.idle.record, min(_RECORD, self._max_age / 10))
        if written.idle.seconds > self._max_age:
            await self._give_up(written)

    async def _give_up(self, written: Written) -> None:
        try:
            path = self._operations.place(written)
            await self.discard(path, force=False)
            days = f"{self._max_age / 86400:g} days"
            log.warning("%s was discarded: nobody had it open for %s, which is --discard-after", path, days)
        except (BusyError, NotFoundError):
            pass  # in use, or going already: it is looked at again
        except SynthfsError as error:
            self._operations.report(error)


class _Lines:
    """JSON objects, one a line, over a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> Facts | None:
        """The next object; None at the end, and for what is none."""
        while b"\n" not in self._buffer and len(self._buffer) < control.MAX_LINE:
            part = await self._stream.receive_some(control.MAX_LINE)
            if not part:
                return None
            self._buffer += part
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            request = shapes.parse(line)
        except ValueError:
            return None
        return request if isinstance(request, dict) else None

    async def next_soon(self) -> Facts | None:
        """The next object, if it is there in time. Raises TooSlowError."""
        with trio.fail_after(_PATIENCE):
            return await self.next()

    async def send(self, answer: Facts) -> None:
        """Raises TooSlowError where nobody takes it."""
        with trio.fail_after(_PATIENCE):
            await self._stream.send_all(json.dumps(answer).encode() + b"\n")


def facts(operations: WritableOperations) -> list[Facts]:
    """Every session, for `status.json`. Sizes are bytes, times nanoseconds since 1970 UTC."""
    users = operations.openers()
    return [
        {
            "path": operations.place(written),
            "image": written.session.image,
            "scratch": written.file.path,
            "began_ns": written.session.began_ns,
            "written_ns": written.file.mtime_ns,
            "length": written.file.length,
            "own_space": written.own_space,
            "idle_seconds": int(written.idle.seconds),
            "generation": written.session.generation,
            "open": sorted(users.get(written.session.inode, ())),
            "backup": operations.has_backup(written),
        }
        for written in operations.scratch
    ]


def _count(written: Written) -> None:
    """In a thread: how much a session has of its own."""
    at = written.file.mtime_ns
    with contextlib.suppress(SynthfsError):
        written.own_space = reflink.own_space(written.file.path)
    written.counted_at = at


def _forget(inode: int) -> None:
    """Makes the kernel drop all that it has of a file. That it has nothing is normal."""
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))
