"""Mounts a tree and serves it until it is unmounted or told to end.

One exit stack owns the mount's life: things die in reverse order of birth, however the end comes.

    Operations ── FUSE session ── event loop: pyfuse3's workers, the signal watch, the housekeeping

Not for: what is shown (`plan/tree`), what an operation does (`fuse/operations`).
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pyfuse3
import trio

from synthfs.errors import MountError
from synthfs.fuse.operations import Access, Operations
from synthfs.host.mounts import encode_source
from synthfs.plan.tree import Tree

log = logging.getLogger(__name__)

_HOUSEKEEPING = 2.0
"""Seconds between looks for files to let go of; a fraction of what counts as idle."""


def serve(
    tree: Tree,
    store: str,
    mountpoint: str,
    access: Access,
    allow_other: bool,
    mounted: Callable[[], None] = lambda: None,
) -> None:
    """Mounts `tree` at `mountpoint` and returns when it is unmounted, by others or on SIGINT or SIGTERM.

    `mounted` is called once the mount stands. Raises MountError where it cannot be made.
    """
    options = {"ro", "nosuid", "nodev", "default_permissions", f"fsname={encode_source(store)}", "subtype=synthfs"}
    if allow_other:
        options.add("allow_other")
    with ExitStack() as stack:
        operations = Operations(tree, access)
        stack.callback(operations.close)
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            raise MountError(f"{mountpoint} cannot be mounted: {_why(allow_other) or error}") from error
        stack.callback(pyfuse3.close, unmount=True)
        trio.run(_main, operations, mounted)


async def _main(operations: Operations, mounted: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal)
        nursery.start_soon(_keep_house, operations)
        mounted()
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _end_on_signal(task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            pyfuse3.terminate()


async def _keep_house(operations: Operations) -> None:
    while True:
        await trio.sleep(_HOUSEKEEPING)
        operations.rest()


def _why(allow_other: bool) -> str | None:
    """The likely reason for a refused mount, with what to do."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing; load the kernel module with `modprobe fuse` (in a container: pass the device in)"
    if allow_other and os.geteuid() != 0 and not _users_may_allow_other():
        return "--allow-other as an ordinary user needs the line `user_allow_other` in /etc/fuse.conf"
    return None


def _users_may_allow_other() -> bool:
    try:
        with open("/etc/fuse.conf") as configuration:
            return any(line.strip() == "user_allow_other" for line in configuration)
    except OSError:
        return False
