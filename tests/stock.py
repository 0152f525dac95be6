"""Disks to make backups of, and questions about the mount that shows them: what all tests of a live mount share.

Not for: expectations. Units: bytes and seconds.
"""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sampledisks
from lab import Scope
from makedisk import OriginalDisk
from makestore import Image, Store
from onmount import ask
from processes import wait_until

STATUS = ".synthfs/status.json"
STAT = "answer([failure(os.stat, path) for path in arguments])"
NEXT = "pc/Image_C_260302-0201.vhd"


@dataclass(frozen=True, slots=True)
class Stock:
    """Disks to make backups of; making a disk takes longer than backing it up."""

    two: OriginalDisk
    xp: OriginalDisk

    @classmethod
    def make(cls, scope: Scope) -> "Stock":
        two = sampledisks.two_volume_disk(scope.path("two") / "two.img")
        return cls(two, sampledisks.xp_disk(scope.path("xp") / "xp.img"))

    def store(self, scope: Scope) -> Store:
        """A store of one client with a backup of C: alone, of a disk that has D: too."""
        store = Store(scope.path("store") / "urbackup")
        self.backup(store)
        return store

    def backup(self, store: Store, number: int = 1, letter: str = "C", stamp: str = "260301-0201", **how: Any) -> Image:
        return store.client("pc").backup(self.two, number, letter, stamp, **how)


def status(scope: Scope, target: Path) -> dict[str, Any]:
    found: dict[str, Any] = ask(scope, "answer(json.load(open(arguments[0])))", target / STATUS)
    return found


def is_there(scope: Scope, *paths: Path) -> list[bool]:
    return [error is None for error in ask(scope, STAT, *paths)]


def refresh(scope: Scope, target: Path) -> None:
    """Ask for a scan and wait until it is done."""
    done = status(scope, target)["refreshes"]
    scope.server(target).send_signal(signal.SIGHUP)
    assert wait_until(lambda: status(scope, target)["refreshes"] > done, 10.0, 0.05)
