"""Calls that wait, in a thread, so that the event loop serves others meanwhile.

What goes wrong in them is handed over in a box, which is emptied before it is raised here. An error that passes through
`trio.to_thread` itself is a cycle with the frames that it came through, where variables hold the outcome: 90 objects, and the
buffer of a read, for the cycle collector to find, or for good where `host/collector` keeps that one from looking.

Not for: which thread does what (`fuse/operations`).
"""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


async def in_thread(
    call: Callable[[*Ts], R], *arguments: *Ts, limiter: trio.CapacityLimiter | None = None, abandon_on_cancel: bool = False
) -> R:
    """What `call` returns, or raises: as `trio.to_thread.run_sync`, without a cycle."""
    done = await trio.to_thread.run_sync(
        _attempted, call, arguments, limiter=limiter, abandon_on_cancel=abandon_on_cancel
    )
    if not isinstance(done, _Failed):
        return done
    error, done.error = done.error, None
    assert error is not None
    try:
        raise error
    finally:
        # The traceback of the error has this very frame.
        del error


class _Failed:
    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error


def _attempted(call: Callable[[*Ts], R], arguments: tuple[*Ts]) -> R | _Failed:
    try:
        return call(*arguments)
    except Exception as error:
        return _Failed(error)
