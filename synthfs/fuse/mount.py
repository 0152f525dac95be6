"""Mounts the disks of a store and serves them until the mount is ended, by others or by a signal.

One exit stack owns the mount's life: things die in reverse order of birth, however the end comes.

    Operations ── FUSE session ── event loop: pyfuse3's workers, signals, refresh, housekeeping, supervision

Not for: what is shown (`plan/tree`), what an operation does (`fuse/operations`).
"""

import json
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from threading import Event

import pyfuse3
import trio

from synthfs import __version__
from synthfs.engines.session import Scratch
from synthfs.errors import MountError
from synthfs.extents import Source
from synthfs.fuse.control import Control, facts
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.operations import Access, Operations
from synthfs.fuse.polling import look_before_sleeping
from synthfs.fuse.refresh import Refresher
from synthfs.fuse.supervision import Supervision
from synthfs.fuse.threads import in_thread
from synthfs.fuse.writing import WritableOperations
from synthfs.host import apparmor, background, holes
from synthfs.host.control import listening
from synthfs.host.mounts import encode_source, raise_read_ahead, users_may_allow_other
from synthfs.model import STATUS, Allocation
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format
from synthfs.plan.garden import Gardener
from synthfs.plan.tree import METRICS, Live, Tree
from synthfs.plan.written import with_sessions

log = logging.getLogger(__name__)

_SWITCH = 0.001
"""Seconds for which a thread that plans keeps the interpreter from the event loop, each time that a read needs it: at
Python's 5 ms, reads beside a refresh take up to 20 ms, at this one 9, and the refresh takes no longer (10,000 images).
"""

_AT_FIRST = 3.0
"""Seconds in which hole maps are taken from the cache for the first whole tree. An image in 40,000 pieces takes 0.2 of one,
so that a large store would keep everybody waiting for minutes; what is left appears soon after.
"""

_PATIENCE = 3.0
"""Seconds for which a look into `.synthfs` waits for the first whole tree; those who look by themselves allow 5."""

_HOUSEKEEPING = 2.0
"""Seconds between looks for files to let go of; a fraction of what counts as idle."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to mount. `interval` is the time between scans of the store, in seconds; 0 scans on SIGHUP only.

    `formats` are the containers in which each disk is shown.

    With `scratch`, a directory, disks can be written to, while `min_free` of its file system, from 0 to 1, is free; sessions
    that are left alone for `max_age` seconds are discarded, unless that is 0.
    """

    mountpoint: str
    access: Access
    allow_other: bool = False
    interval: float = 60.0
    scratch: str | None = None
    max_age: float = 0.0
    formats: tuple[Format, ...] = (Format.VHD,)
    min_free: float = 0.0


def serve(
    catalog: Catalog,
    survey: Callable[[Catalog], Catalog],
    settings: Settings,
    standing: Callable[[], None] = lambda: None,
    mounted: Callable[[], None] = lambda: None,
    dropped: Callable[[], int] = lambda: 0,
) -> None:
    """Mounts what `catalog` offers, later what `survey` makes of the last one, and returns when the mount has ended.

    SIGINT and SIGTERM end it, SIGHUP causes a scan. `standing` is called once it is in the mount table, `mounted` once all
    disks are planned. `dropped` tells how many lines the log has lost. Raises MountError where it cannot be made.
    """
    _allow_many_open_files()
    sys.setswitchinterval(_SWITCH)
    holes.forget_old()
    with ExitStack() as stack:
        metrics = Metrics()
        scratch = stack.enter_context(Scratch(settings.scratch, settings.min_free)) if settings.scratch else None
        # Before there is a mount: whoever sees it may ask.
        listener = stack.enter_context(listening(scratch.fd)) if scratch else None
        live = (
            Live(STATUS, lambda: _status(operations, catalog, settings, dropped())),
            Live(METRICS, lambda: operations.metrics.text(operations.open_handles, operations.bytes_held, dropped())),
        )

        trees = _Trees(settings.formats, live, scratch, metrics)
        operations = (
            WritableOperations(trees.first(catalog), settings.access, metrics, scratch)
            if scratch
            else Operations(trees.first(catalog), settings.access, metrics)
        )
        stack.callback(operations.close)
        with background.captured_stderr() as captured:
            try:
                pyfuse3.init(operations, settings.mountpoint, _options(catalog.store.root, settings))
            except RuntimeError as error:
                why = _why(settings.allow_other, captured()) or error
                raise MountError(f"{settings.mountpoint} cannot be mounted: {why}") from error
        stack.callback(pyfuse3.close, unmount=True)
        standing()
        look_before_sleeping()
        supervision = Supervision(settings.mountpoint, lambda: f"{metrics.disks} disks of {catalog.store.root}")
        reloaded = supervision.reloaded
        refresher = Refresher(operations, survey, trees.grow, metrics, settings.interval, catalog, reloaded, holes.gather)
        control = (
            Control(operations, refresher, listener, settings.max_age)
            if isinstance(operations, WritableOperations) and listener
            else None
        )
        trio.run(_main, operations, refresher, supervision, control, settings.mountpoint, mounted)


class _Trees:
    """The trees of one mount, one after another, and what its metrics say of them."""

    def __init__(self, formats: Sequence[Format], live: Sequence[Live], scratch: Scratch | None, metrics: Metrics) -> None:
        self._live = live
        self._scratch = scratch
        self._metrics = metrics
        self._gardener = Gardener(formats, live, self._ask, holes.gather)
        self._last: tuple[Catalog, Tree] | None = None
        self._tried = Event()
        self._until = time.monotonic() + _AT_FIRST
        self._left_out: tuple[str, ...] = ()

    def first(self, catalog: Catalog) -> Tree:
        """What is shown while the mount begins to stand: a sketch."""
        # A session may be of any disk: where there can be one, all disks are planned first.
        return self.grow(catalog) if self._scratch else self._told(self._gardener.sketch(catalog, self._counted))

    def grow(self, catalog: Catalog) -> Tree:
        """All that there is to show."""
        try:
            if not self._last or self._last[1].pending or _shown_of(self._last[0]) != _shown_of(catalog):
                self._last = catalog, self._gardener.grow(catalog)
            tree = self._last[1]
            self._metrics.disks = len(catalog.disks)
            self._metrics.pending = tree.pending
            self._metrics.skipped = dict(Counter(skipped.kind for skipped in catalog.skipped))
        finally:
            self._tried.set()
        return self._told(with_sessions(tree, self._scratch.facts(), catalog.disks) if self._scratch else tree)

    def _told(self, tree: Tree) -> Tree:
        """The same tree, once the log has what is missing in it."""
        if tree.left_out != self._left_out:
            self._left_out = tree.left_out
            for name in tree.left_out:
                log.warning("%s of synthfs is left out of the mount: a client has that name", name)
        return tree

    def _counted(self) -> Sequence[Live]:
        """The files of `.synthfs`, once they can tell how many disks there are, or that nobody could find out."""
        if not self._tried.wait(_PATIENCE):
            raise MountError("the disks of the store are still being planned; look again in a moment")
        return self._live

    def _ask(self, source: Source) -> Allocation | None:
        return holes.known(source) if self._last or time.monotonic() < self._until else None


def _shown_of(catalog: Catalog) -> tuple[object, ...]:
    """What a tree is made of."""
    return catalog.machines, catalog.clients


def _options(store: str, settings: Settings) -> set[str]:
    options = {"nosuid", "nodev", "default_permissions", f"fsname={encode_source(store)}", "subtype=synthfs"}
    options |= set() if settings.scratch else {"ro"}
    return options | {"allow_other"} if settings.allow_other else options


async def _main(
    operations: Operations,
    refresher: Refresher,
    supervision: Supervision,
    control: Control | None,
    mountpoint: str,
    mounted: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, refresher, supervision)
        if control:
            await nursery.start(control.run)
        nursery.start_soon(_refresh, refresher, mounted)
        nursery.start_soon(_keep_house, operations)
        nursery.start_soon(supervision.run)
        nursery.start_soon(_read_far_ahead, operations, mountpoint)
        await pyfuse3.main()
        supervision.stopping()
        nursery.cancel_scope.cancel()


async def _obey_signals(refresher: Refresher, supervision: Supervision, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                supervision.reloading()
                refresher.request()
            else:
                log.info("ending on %s", signal.Signals(number).name)
                pyfuse3.terminate()


async def _refresh(refresher: Refresher, mounted: Callable[[], None]) -> None:
    if await refresher.complete():
        mounted()
    await refresher.run()


async def _read_far_ahead(operations: Operations, mountpoint: str) -> None:
    await operations.greeted.wait()
    if not await in_thread(raise_read_ahead, mountpoint, abandon_on_cancel=True):
        log.debug("%s is read ahead as far as the kernel does by default", mountpoint)


async def _keep_house(operations: Operations) -> None:
    while True:
        await trio.sleep(_HOUSEKEEPING)
        operations.rest()


def _status(operations: Operations, catalog: Catalog, settings: Settings, dropped: int) -> str:
    """`status.json`: which process serves what, and how it fares."""
    status = {
        "version": __version__,
        "pid": os.getpid(),
        "store": catalog.store.root,
        "database": catalog.database,
        "mountpoint": settings.mountpoint,
        "scratch": settings.scratch,
        "sessions": facts(operations) if isinstance(operations, WritableOperations) else [],
        "open_handles": operations.open_handles,
        "deleted_bytes_held": operations.bytes_held,
        "log_lines_dropped": dropped,
        **asdict(operations.metrics),
    }
    return json.dumps(status, indent=2) + "\n"


def _allow_many_open_files() -> None:
    """Every open disk holds its images open; the usual soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _why(allow_other: bool, printed: str) -> str | None:
    """The likely reason for a refused mount, with what to do. `printed` is what libfuse and fusermount3 wrote to stderr."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing; load the kernel module with `modprobe fuse` (in a container: pass the device in)"
    if allow_other and os.geteuid() != 0 and not users_may_allow_other():
        return "--allow-other as an ordinary user needs the line `user_allow_other` in /etc/fuse.conf"
    lines = printed.strip().splitlines()
    known = (f"{line}; {cure()}" for line in lines for sign, cure in _CURES.items() if sign in line)
    return next(known, None) or "; ".join(lines) or None


def _not_permitted() -> str:
    if os.geteuid() == 0:
        return "this root may not mount (a container needs CAP_SYS_ADMIN)"
    return "fusermount3 is not setuid root here, or may not be (no_new_privs); ask root, or reinstall the package fuse3"


_CURES: dict[str, Callable[[], str]] = {
    "fusermount3: mount failed: Permission denied": apparmor.refusal,
    "mount failed: Permission denied": lambda: "in a container, its AppArmor profile may forbid it (apparmor=unconfined)",
    "mount failed: Operation not permitted": _not_permitted,
    "failed to open /dev/fuse": lambda: "this user may not open it; on most systems its mode is 0666",
    "failed to exec fusermount3": lambda: "without it only root can mount (apt install fuse3)",
}
"""What to do, by what libfuse and fusermount3 say; the first that fits."""
