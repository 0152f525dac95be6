"""Tells systemd how the mount fares: ready, reloading, alive, stopping.

Ready and alive mean that somebody who goes through the kernel is served, so both rest on a look through the mount, taken in
a thread: at `status.json`, which the kernel keeps nothing of. Ready also means that the mount is one for everybody, smbd
among them: PID 1 has it in its mount table. Nothing here happens where no $NOTIFY_SOCKET is set.

Source: sd_notify(3), systemd.service(5). Units: seconds.
"""

import logging
import os
from collections.abc import Callable

import trio

from synthfs.fuse.threads import in_thread
from synthfs.host import mounts
from synthfs.host.notify import is_supervised, monotonic_microseconds, notify, watchdog_interval
from synthfs.model import STATUS, STATUS_DIRECTORY

log = logging.getLogger(__name__)

_PAUSE = 0.2
"""Between looks until the mount is ready."""

_LIMIT = 5.0
"""How long a look may take; a healthy mount answers in a millisecond."""


class Supervision:
    """What the service of one mount tells its supervisor. `describe` gives the one line that `systemctl status` shows."""

    def __init__(self, mountpoint: str, describe: Callable[[], str]) -> None:
        self._mountpoint = mountpoint
        self._describe = describe
        self._is_ready = False

    async def run(self) -> None:
        """Reports readiness once it is there, then signs of life for as long as there are any."""
        if not is_supervised():
            return
        while not await self._is_served_to_all():
            await trio.sleep(_PAUSE)
        self._is_ready = True
        notify(READY=1, STATUS=self._describe())
        interval = watchdog_interval()
        while interval:
            await trio.sleep(interval)
            if await self._answers():
                notify(WATCHDOG=1, STATUS=self._describe())
            else:
                log.warning("%s does not answer its own process; the watchdog is not fed", self._mountpoint)

    def reloading(self) -> None:
        """Somebody asked for a scan."""
        if self._is_ready:
            notify(RELOADING=1, MONOTONIC_USEC=monotonic_microseconds(), STATUS="looking at the store")

    def reloaded(self) -> None:
        if self._is_ready:
            notify(READY=1, STATUS=self._describe())

    def stopping(self) -> None:
        notify(STOPPING=1)

    async def _is_served_to_all(self) -> bool:
        if not await self._answers():
            return False
        if mounts.init_sees(self._mountpoint):
            return True
        notify(STATUS="mounted in a mount namespace of its own, where Samba cannot see it; see the comments in the unit file")
        return False

    async def _answers(self) -> bool:
        path = f"{self._mountpoint}/{STATUS_DIRECTORY}/{STATUS}"
        with trio.move_on_after(_LIMIT):
            return await in_thread(_can_stat, path, abandon_on_cancel=True)
        return False


def _can_stat(path: str) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True
