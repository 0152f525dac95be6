"""A row of the table: contestants that do the same work, measured in turns, and what is asked of ours.

In turns, because these machines are shared and noisy: a slow minute then hits everybody alike, and ratios stay what they are.
Not for: what is measured. Units: each row names its own; the ratio of two contestants is taken round by round, then its median.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

OURS = "synthfs"
"""The contestant that goals bind; others of our own are named `synthfs, …` and shown beside it."""

FLOOR = "FUSE itself"
"""A server that does nothing (bench/floor): what it does not reach, nobody can."""

_ATTEMPTS = 5
"""How often a figure is taken again that something disturbed."""

Measure = Callable[[], float]
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a contestant: a figure of its own (`against` is empty), or a ratio to the best of some others."""

    how: Literal["at least", "at most"]
    bound: float
    against: tuple[str, ...] = ()
    of: str = OURS

    def value(self, samples: Samples, better: Literal["high", "low"]) -> float | None:
        """What to compare with the bound; None where there is nothing to compare with."""
        if self.of not in samples:
            return None
        mine = samples[self.of]
        if not self.against:
            return statistics.median(mine)
        others = [samples[name] for name in self.against if name in samples]
        if not others:
            return None
        best = (max if better == "high" else min)(others, key=statistics.median)
        return statistics.median(a / b for a, b in zip(mine, best, strict=True))

    def floor(self, samples: Samples, better: Literal["high", "low"]) -> float | None:
        """The same ratio for a server that does nothing, which nobody gets past; None where there is none to measure."""
        return replace(self, of=self.of.replace(OURS, FLOOR)).value(samples, better) if self.against else None

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.how == "at least" else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.how == "at least" else "≤"
        others = "the best peer" if len(self.against) > 1 else "".join(self.against)
        whose = "" if self.of == OURS else f"{self.of} "
        return f"{whose}{sign} {self.bound:g}" + (f" x {others}" if self.against else "")


@dataclass(slots=True)
class Row:
    """Contestants by name, each a call that does the work once and returns one figure.

    `prepare` is called before every figure, with the contestant's name, and is not measured; `counts` after it says whether
    the figure is what it was meant to be (caches vanish on shared machines); if not, it is taken again. `notes` are for what
    a reader of the table has to know.
    """

    title: str
    unit: str
    contestants: Mapping[str, Measure]
    better: Literal["high", "low"] = "high"
    goals: tuple[Goal, ...] = ()
    prepare: Callable[[str], None] = lambda name: None
    counts: Callable[[str], bool] = lambda name: True
    rounds: int | None = None
    """Where a round is dear; by default as many as the run makes."""
    notes: list[str] = field(default_factory=list)

    def measure(self, rounds: int) -> "Result":
        samples: Samples = {name: [] for name in self.contestants}
        names = list(self.contestants)
        for number in range(min(self.rounds or rounds, rounds)):
            # Nobody always comes first.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                samples[name].append(self._figure(name))
        return Result(self.title, self.unit, self.better, samples, self.goals, self.notes)

    def _figure(self, name: str) -> float:
        for _ in range(_ATTEMPTS):
            self.prepare(name)
            figure = self.contestants[name]()
            if self.counts(name):
                return figure
        raise AssertionError(f"{self.title}: {name} was disturbed {_ATTEMPTS} times")


@dataclass(frozen=True, slots=True)
class Result:
    """A row that was measured."""

    title: str
    unit: str
    better: Literal["high", "low"]
    samples: Samples
    goals: tuple[Goal, ...]
    notes: list[str]

    def verdicts(self) -> list[tuple[Goal, float | None]]:
        return [(goal, goal.value(self.samples, self.better)) for goal in self.goals]

    def ratio(self, name: str) -> float | None:
        """Ours to that of `name`, in the median of the rounds."""
        if OURS not in self.samples or name not in self.samples or not all(self.samples[name]):
            return None
        return statistics.median(a / b for a, b in zip(self.samples[OURS], self.samples[name], strict=True))

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.title,
            "unit": self.unit,
            "better": self.better,
            "contestants": {
                name: {
                    "median": statistics.median(row),
                    "min": min(row),
                    "max": max(row),
                    "rounds": row,
                    "ours_to_it": self.ratio(name),
                }
                for name, row in self.samples.items()
            },
            "goals": [
                {
                    "of": goal.of,
                    "goal": str(goal),
                    "value": value,
                    "met": value is not None and goal.is_met(value),
                    "floor": goal.floor(self.samples, self.better),
                }
                for goal, value in self.verdicts()
            ],
            "notes": self.notes,
        }
