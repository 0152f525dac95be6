"""Things in order of their time, to find the one nearest to a moment: a machine may have thousands of backups.

Not for: what a time is, or what else counts (`plan/catalog`). Times in seconds.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Timeline(Generic[T]):
    """Things by time and name. Names are unique; of things equally near, the first by name is taken."""

    def __init__(self, entries: Iterable[tuple[int, str, T]]) -> None:
        """`entries` are (time, name, thing), in any order."""
        self._entries = sorted(entries, key=lambda entry: entry[:2])
        self._times = [time for time, _, _ in self._entries]

    def at(self, time: int) -> list[T]:
        """All things of exactly that time, in order of their names."""
        first, end = bisect_left(self._times, time), bisect_right(self._times, time)
        return [thing for _, _, thing in self._entries[first:end]]

    def nearest(self, time: int) -> tuple[int, str, T] | None:
        """Distance, name and thing; None where there is nothing at all."""
        after = bisect_left(self._times, time)
        found = [after] if after < len(self._times) else []
        if after:
            found.append(bisect_left(self._times, self._times[after - 1]))
        near = [(abs(self._times[index] - time), self._entries[index][1], self._entries[index][2]) for index in found]
        return min(near, key=lambda each: each[:2], default=None)
