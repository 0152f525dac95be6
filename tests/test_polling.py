"""Looking for the next request before sleeping: bounded, one at a time, and given up where pyfuse3 is not the known one.

Not for: how fast it is (scripts/bench). The pipe stands for FUSE's descriptor; a read of it that finds nothing is what
would stop a mount.
"""

import os
import select
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

import need
from lab import Scope
from onmount import Sample, end, read_right, start_server
from synthfs.fuse import polling
from synthfs.fuse.polling import GREED, Lookout, look_before_sleeping


@dataclass(slots=True)
class Requests:
    """A pipe of requests, a byte each, and how often somebody slept for one."""

    out: int
    into: int
    sleeps: int = 0
    answered: list[int] = field(default_factory=list)

    async def sleep(self) -> bool:
        self.sleeps += 1
        await trio.lowlevel.wait_readable(self.out)
        return True

    def send(self, *numbers: int) -> None:
        os.write(self.into, bytes(numbers))

    def take(self) -> int:
        (number,) = os.read(self.out, 1)
        self.answered.append(number)
        return number


@pytest.fixture
def requests() -> Iterator[Requests]:
    out, into = os.pipe2(os.O_NONBLOCK)
    yield Requests(out, into)
    os.close(out)
    os.close(into)


async def test_others_have_their_turn(requests: Requests) -> None:
    """However many requests wait, after 64 of them everything else on the event loop runs."""
    lookout, turns, others = Lookout(requests.out, requests.sleep), 0, True

    async def other() -> None:
        nonlocal turns
        while others:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        requests.send(*[7] * 20 * GREED)
        for _ in range(20 * GREED):
            assert await lookout.wait()
            requests.take()
        others = False
    assert requests.sleeps >= 20
    assert turns >= requests.sleeps - 1


async def test_nobody_looks_when_idle(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without requests the descriptor is left alone, and the first one after that is slept for."""
    looks, original = 0, select.poll

    class Counting:
        def __init__(self) -> None:
            self._poll = original()

        def register(self, fd: int, events: int) -> None:
            self._poll.register(fd, events)

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            nonlocal looks
            looks += 1
            return self._poll.poll(timeout)

    monkeypatch.setattr(select, "poll", Counting)
    lookout = Lookout(requests.out, requests.sleep)
    requests.send(1, 2)
    for _ in range(2):
        await lookout.wait()
        requests.take()
    assert looks == 1, "the second was there when it was looked for"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookout.wait)
        await trio.sleep(0.05)
        after_patience = looks
        await trio.sleep(0.2)
        assert looks == after_patience
        requests.send(3)
    assert requests.sleeps == 2


async def test_one_at_a_time(requests: Requests) -> None:
    """Of many workers, some of whom take long, no two see the same request, and none is left lying."""
    lookout = Lookout(requests.out, requests.sleep)
    numbers = [number % 256 for number in range(4000)]

    async def worker() -> None:
        while len(requests.answered) < len(numbers):
            if not await lookout.wait():
                return
            # A blocking descriptor would hold everything up here; this one raises.
            if requests.take() % 5 == 0:
                await trio.sleep(0.0001)
            elif requests.answered[-1] % 7 == 0:
                await trio.to_thread.run_sync(lambda: None)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(worker)
            for start in range(0, len(numbers), 100):
                requests.send(*numbers[start : start + 100])
                await trio.sleep(0.001)
            while len(requests.answered) < len(numbers):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert requests.answered == numbers


async def test_the_end_reaches_all(requests: Requests) -> None:
    """When the session is over, every worker learns it, those that were parked too."""
    over = trio.Event()
    ended = 0

    async def sleep() -> bool:
        await over.wait()
        return False

    lookout = Lookout(requests.out, sleep)

    async def worker() -> None:
        nonlocal ended
        assert not await lookout.wait()
        ended += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(worker)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == 0
            over.set()
    assert ended == 5


class TestFallback:
    def test_unknown_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pyfuse3 that nobody has read keeps its own way of waiting."""
        before = vars(pyfuse3)["_wait_fuse_readable"]
        monkeypatch.setattr(polling, "_descriptor", lambda: 0)
        monkeypatch.setattr(pyfuse3, "__version__", "3.99.0")
        assert not look_before_sleeping()
        assert vars(pyfuse3)["_wait_fuse_readable"] is before

    def test_installed_version_is_known(self) -> None:
        """The pyfuse3 that is installed is one of those whose worker loop was read; if this fails, read it."""
        assert pyfuse3.__version__ in polling.KNOWN

    def test_serves_all_the_same(self, scope: Scope, tmp_path: Path) -> None:
        """With an unknown pyfuse3, the mount gives the same bytes and ends as it should."""
        need.fuse()
        sample, target = Sample.make(scope), scope.path("served")
        server, log = start_server(scope, "unread-pyfuse3", sample.root, target, tmp_path)
        assert read_right(scope, target / sample.C, sample.disk)
        assert end(server) == 0, log.read_text()
