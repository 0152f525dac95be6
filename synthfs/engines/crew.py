"""A crew of threads that does many small jobs at once and hands back what came of them in order.

It is for work that releases the interpreter: reading, and hashing of more than 2 KiB at once. Each worker has a buffer of its
own, which is reused, since a fresh one would be zeroed first.

Not for: deciding what the jobs are. Units: bytes.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")

_AHEAD = 4
"""Jobs per worker that are begun before the first of them is asked for: enough that none waits for a slow one."""


class Crew:
    """As many threads as this process may use cores. A context manager: no job outlives it."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.workers, "verify")
        self._own = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def buffer(self, number: int, length: int) -> bytearray:
        """`length` bytes of the calling worker's own, the same at each call if they can be; they hold what was left there."""
        buffers: dict[int, bytearray] = self._own.__dict__.setdefault("buffers", {})
        if len(buffers.get(number, b"")) != length:
            buffers[number] = bytearray(length)
        return buffers[number]

    def do(self, jobs: Iterable[Job], work: Callable[[Job], Made]) -> Iterator[tuple[Job, Made]]:
        """Each job with what `work` makes of it, in their order. Jobs are taken from the iterable as they are begun."""
        under_way: deque[tuple[Job, Future[Made]]] = deque()
        for job in jobs:
            under_way.append((job, self._pool.submit(work, job)))
            if len(under_way) >= self.workers * _AHEAD:
                yield _result(*under_way.popleft())
        while under_way:
            yield _result(*under_way.popleft())


def _result(job: Job, future: "Future[Made]") -> tuple[Job, Made]:
    return job, future.result()
