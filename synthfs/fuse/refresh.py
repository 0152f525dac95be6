"""Keeps a mount's tree up to date with its store, while it is served.

    a sketch was mounted ─► plan the rest, in a thread ─► the same as below
    interval or SIGHUP ─► scan and plan, in a thread ─► swap the tree, on the event loop ─► notify the kernel, in a thread
    files that wait for hole maps ─► gather some of those, in a thread ─► the same

One at a time, scans first; a signal during a scan causes one more scan after it. Two laws, both learnt the hard way:

    - The kernel is notified from a worker thread only, under no lock that a handler takes, and not waited for without
      bound: from the event loop, a notification deadlocks in the kernel against a read of the same inode.
    - A scan that fails changes nothing, and one that finds an empty directory in the store's place has failed: a store that
      is not there for a moment is no store without backups.

A negative look-up is remembered by the kernel for as long as a positive one, so every name that comes, goes or leads
elsewhere is notified, and no other.
"""

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyfuse3
import trio

from synthfs.errors import NotFoundError, SynthfsError
from synthfs.extents import Source
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.operations import Operations
from synthfs.fuse.threads import in_thread
from synthfs.host import collector
from synthfs.plan.catalog import Catalog
from synthfs.plan.tree import Tree, changes

log = logging.getLogger(__name__)

NOTIFY_LIMIT = 30.0

_GATHER_AT_ONCE = 2.0
"""Seconds after which hole maps found so far are made use of."""


class Refresher:
    """Scans by `survey`, which is given the last catalog, makes trees by `grow`, and gives them to `operations`."""

    def __init__(
        self,
        operations: Operations,
        survey: Callable[[Catalog], Catalog],
        grow: Callable[[Catalog], Tree],
        metrics: Metrics,
        interval: float,
        catalog: Catalog,
        done: Callable[[], None] = lambda: None,
        gather: Callable[[Source], object] = lambda source: None,
    ) -> None:
        """`interval` is in seconds; 0 means that only a signal causes a scan. `catalog` is what is shown now. `done` is called
        after a scan that was asked for. `gather` finds out what a tree wants to know of a source.
        """
        self._operations = operations
        self._survey = survey
        self._grow = grow
        self._metrics = metrics
        self._interval = interval
        self._done = done
        self._wanted = trio.Event()
        self._catalog = catalog
        self._showing = trio.Lock()
        self._gather = gather
        self._given_up: set[Source] = set()

    def request(self) -> None:
        """Causes a scan at once, or another one after that which is under way."""
        self._wanted.set()

    async def run(self) -> None:
        next_scan = trio.current_time() + (self._interval or float("inf"))
        while True:
            wanting = [source for source in self._operations.tree.wanting if source not in self._given_up]
            with trio.move_on_at(trio.current_time() if wanting else next_scan):
                await self._wanted.wait()
            asked = self._wanted.is_set()
            if asked or trio.current_time() >= next_scan:
                self._wanted = trio.Event()
                await self.refresh()
                next_scan = trio.current_time() + (self._interval or float("inf"))
            elif wanting:
                await in_thread(self._gather_some, wanting)
                await self._succeeds(self.show)
            # Asked for again meanwhile: then it is not done yet.
            if asked and not self._wanted.is_set():
                self._done()

    async def refresh(self) -> None:
        """One scan, and everything that follows from it."""
        began = time.monotonic()
        if await self._succeeds(self._look_and_show):
            self._given_up.clear()
            self._metrics.refreshes += 1
            self._metrics.refresh_seconds = time.monotonic() - began

    async def _look_and_show(self) -> None:
        await self.show(await in_thread(self._look))

    async def complete(self) -> bool:
        """Shows all that a sketch left out. Returns whether nothing is left out any more."""
        return not self._operations.tree.is_sketch or await self._succeeds(self.show)

    async def _succeeds(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether `work` went well. If not, that is counted and reported, and what is shown is what was shown before."""
        try:
            await work()
        except SynthfsError as error:
            self._metrics.failed_refreshes += 1
            self._operations.report(error)
        except Exception:  # it would end the mount for everybody
            self._metrics.failed_refreshes += 1
            log.exception("bug in a refresh, please report it")
        else:
            return True
        return False

    async def show(self, catalog: Catalog | None = None) -> Tree:
        """Shows the tree of `catalog`, or of the last one where it is only the sessions that changed."""
        async with self._showing:
            catalog, version = catalog or self._catalog, None
            while version != self._operations.version:  # somebody looked into a bud, or a session began or ended meanwhile
                version = self._operations.version
                tree, changed = await in_thread(self._grown, catalog)
            # Not before: a catalog that no tree could be grown of is not shown, and is not what the next one follows.
            machines, self._catalog = [*self._catalog.machines.values()], catalog
            # Also where no name changed: a store that was mounted anew has its files under other numbers. At once: what
            # changed is what it was only until somebody else is served.
            nodes = [*self._operations.tree.root.entries]
            if tree is not self._operations.tree:
                self._operations.replace(tree)
            await in_thread(_let_go, machines)
            if changed:
                with trio.move_on_after(NOTIFY_LIMIT):
                    await in_thread(_notify, changed, abandon_on_cancel=True)
            await in_thread(_let_go, nodes)
        return tree

    def _gather_some(self, wanting: Sequence[Source]) -> None:
        end = time.monotonic() + _GATHER_AT_ONCE
        for source in wanting:
            try:
                self._gather(source)
            except SynthfsError as error:
                log.info("%s", error)
            except Exception:
                log.exception("bug in looking for holes, please report it")
            # What is in vain now would be so again, until a scan knows more.
            self._given_up.add(source)
            if time.monotonic() > end:
                break

    def _grown(self, catalog: Catalog) -> tuple[Tree, list[tuple[int, str]]]:
        with collector.paused():
            tree = self._grow(catalog)
            return tree, changes(self._operations.tree, tree) if tree is not self._operations.tree else []

    def _look(self) -> Catalog:
        with collector.paused():
            catalog = self._survey(self._catalog)
        if not catalog.store.images and catalog.store.identity != self._catalog.store.identity:
            raise NotFoundError(f"{catalog.store.root} is empty and not the file system it was, as if it were unmounted")
        for note in catalog.notes:
            if note not in self._catalog.notes:
                log.warning("%s", note.text)
        return catalog


def _let_go(parts: list[Any]) -> None:
    """Frees what is not needed any more, part by part: all at once would be one step of the interpreter, of 15 ms."""
    while parts:
        parts.pop()


def _notify(changed: Sequence[tuple[int, str]]) -> None:
    """Makes the kernel forget names, and the times of their directories. That it did not know one of them is normal."""
    for directory, name in changed:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(pyfuse3.InodeT(directory), pyfuse3.FileNameT(os.fsencode(name)))
    for directory in {directory for directory, _ in changed}:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(directory), attr_only=True)
