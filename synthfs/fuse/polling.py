"""Looks for the next request before sleeping until it comes: falling asleep and waking up is what a small read costs most.

    request ──► answered ──► look, for at most 100 µs ──► the next one is there: take it at once
                                                     └──► none: sleep in trio, as pyfuse3 does

Replaces `pyfuse3._wait_fuse_readable`, a private function, which is why it does so only in versions that were read
(docs/decisions/0007-looking-before-sleeping.md, with figures). One worker at a time looks or sleeps, the *leader*: the
descriptor blocks, so two that saw the same request would stop the mount. All others are parked; the leader calls one of
them as it leaves with a request, who comes into its place if the request has to wait, and finds it taken if not.

Not for: requests. Units: seconds.
"""

import logging
import os
import select
import time
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

log = logging.getLogger(__name__)

_PRIVATE = "_wait_fuse_readable"

KNOWN = ("3.4.2", "3.5.0")
"""Versions of pyfuse3 whose worker loop was read: nothing happens between the return of the function and the reading."""

PATIENCE = 0.0001
"""How long the leader looks for the next request."""

GREED = 64
"""How many requests may be taken in a row before everything else on the event loop has its turn."""


def look_before_sleeping() -> bool:
    """Makes pyfuse3's workers look first; to be called between its `init` and its `main`. False where it has to be as it is."""
    original = getattr(pyfuse3, _PRIVATE, None)
    fd = _descriptor()
    if pyfuse3.__version__ not in KNOWN or original is None or fd is None or len(os.sched_getaffinity(0)) < 2:
        # With one processor, looking would keep away the very process that is to make the next request.
        log.debug("pyfuse3 %s waits for requests in its own way", pyfuse3.__version__)
        return False
    setattr(pyfuse3, _PRIVATE, Lookout(fd, original).wait)
    return True


class Lookout:
    """The place of the leader, and those who are parked."""

    def __init__(self, fd: int, sleep: Callable[[], Awaitable[bool]]) -> None:
        """`sleep` waits on trio's terms; it tells whether there is a request (True) or the session is over."""
        self._sleep = sleep
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self._is_led = False
        self._parked = trio.lowlevel.ParkingLot()
        self._is_called = False
        self._in_a_row = 0
        self._is_busy = False

    async def wait(self) -> bool:
        """As pyfuse3 wants it: True when there is a request to read, False when the worker is to end."""
        while self._is_led:
            await self._parked.park()
            self._is_called = False
        self._is_led = True
        try:
            return self._look() or await self._rest()
        finally:
            self._is_led = False
            if self._parked and not self._is_called:
                self._is_called = True
                self._parked.unpark()

    def _look(self) -> bool:
        """Whether a request came while it was looked for. Nobody else runs meanwhile."""
        if not self._is_busy or self._in_a_row >= GREED:
            return False
        self._in_a_row += 1
        if self._poll(0):
            return True
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            if self._poll(0):
                return True
        self._is_busy = False
        return False

    async def _rest(self) -> bool:
        self._in_a_row = 1
        began = time.perf_counter()
        found = await self._sleep()
        # Whoever made that client wait may be asked again at once; where requests are rare, looking is a waste.
        self._is_busy = time.perf_counter() - began < 10 * PATIENCE
        return found


def _descriptor() -> int | None:
    """That of the session, which pyfuse3 keeps to itself; None unless there is exactly one that it can be."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
        except OSError:
            continue
    return found[0] if len(found) == 1 else None
