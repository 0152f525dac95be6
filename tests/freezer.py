"""A store and a directory of frozen disks beside it, and `synthfs sync` from the one to the other.

Not for: expectations; those are in the tests. Source: the manual page's words for the options.
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Scope
from makedisk import OriginalDisk
from makestore import Image, Layout, Store
from processes import Argument


@dataclass(slots=True)
class Freezer:
    """One store, in a directory of its own, with the state that synthfs keeps of it."""

    scope: Scope
    home: Path
    disk: OriginalDisk
    number: int = 1
    layout: Layout = "plain"
    environment: dict[str, str] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)

    @classmethod
    def make(cls, scope: Scope, mounted: Path, disk: OriginalDisk, number: int = 1, layout: Layout = "plain") -> "Freezer":
        home = mounted / scope.directory.name
        (home / "frozen").mkdir(parents=True)
        (home / "urbackup").mkdir()
        return cls(scope, home, disk, number, layout, {"STATE_DIRECTORY": str(home / "state")}, [])

    @property
    def store(self) -> Path:
        return self.home / "urbackup"

    @property
    def frozen(self) -> Path:
        return self.home / "frozen"

    def backup(self, client: str, day: int, letter: str = "C", number: int | None = None, **options: Any) -> Image:
        """An image of the disk on a day of March; by default of the volume that this freezer is about."""
        there = Store(self.store).client(client)
        stamp = options.pop("stamp", f"2603{day:02}-0201")
        layout = options.pop("layout", self.layout)
        made = there.backup(self.disk, number or self.number, letter, stamp, layout=layout, **options)
        self.images.append(made)
        return made

    def delete(self, image: Image) -> None:
        Store(self.store).delete(image)

    def sync(
        self, *options: Argument, check: bool = True, user: str | None = None, to: Path | None = None, timeout: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        argv: list[Argument] = ["sync", self.store, "--to", to or self.frozen, "--wait", "0", "--min-free", "0%", *options]
        return self.scope.synthfs(*argv, check=check, env=self.environment, user=user, timeout=timeout)

    def summary(self, *options: Argument, check: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sync("--json", *options, check=check).stdout)
        return found

    def counts(self, *options: Argument) -> tuple[int, int, int, int]:
        """Made, removed, kept, failed."""
        found = self.summary(*options, check=False)
        return found["made"], found["removed"], found["kept"], found["failed"]

    def files(self) -> list[str]:
        """What is in the directory, by place below it; hidden files too."""
        return sorted(str(path.relative_to(self.frozen)) for path in self.frozen.rglob("*") if not path.is_dir())

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """Every file's inode, size and time: equal if nothing was touched."""
        found = {place: (self.frozen / place).stat() for place in self.files()}
        return {place: (at.st_ino, at.st_size, at.st_mtime_ns) for place, at in found.items()}

    @property
    def record(self) -> Path:
        (found,) = (self.home / "state").glob("sync-*.json")
        return found


def named(day: int, letter: str = "C") -> str:
    return f"Image_{letter}_2603{day:02}-0201.vhd"
