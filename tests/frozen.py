"""A backup to freeze, and what the file system says about what came of it: FIEMAP by filefrag, flags by lsattr.

Not for: expectations; those are in the tests. Units: bytes.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import need
from lab import Scope
from makedisk import OriginalDisk
from makestore import Image, Store

BLOCK = 4096
CANNOT_SHARE = 7
Extent = tuple[int, int, int]
"""Logical offset, physical offset, length."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """One C: image on a file system of its own, and the place beside the store that disks are frozen to."""

    mounted: Path
    disk: OriginalDisk
    image: Image

    @classmethod
    def make(cls, scope: Scope, mounted: Path, disk: OriginalDisk, number: int = 1) -> "Frozen":
        image = Store(mounted / "urbackup").client("pc").backup(disk, number)
        scope.run(["sync", "-f", mounted])
        return cls(mounted, disk, image)

    def out(self, name: str) -> Path:
        directory = self.mounted / name
        directory.mkdir()
        return directory

    @property
    def name(self) -> str:
        return f"{self.image.raw.stem}.vhd"


def extents(scope: Scope, file: Path) -> list[Extent]:
    """Where a file's data lie, by FIEMAP; neighbours joined."""
    need.tool("filefrag")
    found: list[Extent] = []
    for line in scope.run(["filefrag", "-v", "-b4096", file]).stdout.splitlines():
        matched = re.match(r"\s*\d+:\s*(\d+)\.\.\s*\d+:\s*(\d+)\.\.\s*\d+:\s*(\d+):", line)
        if matched:
            logical, physical, length = (int(word) * BLOCK for word in matched.groups())
            if found and found[-1][0] + found[-1][2] == logical and found[-1][1] + found[-1][2] == physical:
                found[-1] = (*found[-1][:2], found[-1][2] + length)
            else:
                found.append((logical, physical, length))
    return found


def exclusive(scope: Scope, file: Path) -> int:
    """Bytes that no other file shares, by FIEMAP."""
    need.tool("filefrag")
    listed = scope.run(["filefrag", "-v", "-b1", file]).stdout
    found = re.findall(r"^ *\d+: *\d+\.\. *\d+: *\d+\.\. *\d+: *(\d+):(.*)$", listed, re.MULTILINE)
    return sum(int(length) for length, flags in found if "shared" not in flags)


def volume_extents(scope: Scope, file: Path, start: int, length: int) -> list[Extent]:
    """The extents of the whole blocks of a volume that begins at `start` in a file, counted from there."""
    end, found = start + length // BLOCK * BLOCK, []
    for logical, physical, amount in extents(scope, file):
        first, last = max(logical, start), min(logical + amount, end)
        if first < last:
            found.append((first - start, physical + first - logical, last - first))
    return found


def materialize(scope: Scope, image: Path, out: Path, *options: str) -> dict[str, Any]:
    done = scope.synthfs("materialize", image, "-o", out, "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def parts(figures: dict[str, Any]) -> dict[str, int]:
    """What became of the bytes."""
    return {word: figures[word] for word in ("cloned", "copied", "edges", "written", "hole")}


def adds_up(figures: dict[str, Any], length: int) -> bool:
    sums = figures["cloned"] + figures["copied"] + figures["written"] + figures["hole"]
    return bool(sums == figures["length"] == length and figures["edges"] <= figures["copied"])


def refused_to_copy(scope: Scope, image: Path, out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`always` fails: reason and remedy in one line, nothing written."""
    before, free = sorted(out.iterdir()), shutil.disk_usage(out).free
    done = scope.synthfs("materialize", image, "-o", out, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == CANNOT_SHARE, line
    assert [word for word in ("-o", "--reflink auto", *words) if word not in line] == [], line
    assert (sorted(out.iterdir()), shutil.disk_usage(out).free) == (before, free)
    return done


def has_c(scope: Scope, path: Path) -> bool:
    return "C" in scope.run(["lsattr", path]).stdout.split()[0]


def guid(scope: Scope, path: Path) -> str:
    found = re.search(r"Disk identifier \(GUID\): (\S+)", scope.run(["sgdisk", "-p", path]).stdout)
    assert found
    return found[1]
