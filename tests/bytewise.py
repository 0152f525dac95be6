"""Compares and hashes files in a child with a limit: a mount that hangs fails the test that looked, not the whole run.

Not for: making files. Units: bytes; ranges are half-open. Run as a script, this module is that child.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import sparse

if TYPE_CHECKING:  # The child has no use for the laboratory, and starts the faster without it.
    from lab import Scope

Range = tuple[int, int]
STEP = 1 << 20
SECTOR = 512
MOST = 20_000
"""Ranges of differences that are reported before the comparison gives up."""


def differences(
    scope: "Scope", one: Path, other: Path, end: int, *, start: int = 0, data_of: Iterable[Path] = (), timeout: float = 120.0
) -> list[Range]:
    """Where two files differ between `start` and `end`; a file that ends before that is an error.

    `data_of` names sparse files, and restricts the comparison to where one of them has no hole.
    """
    words = [os.fspath(file) for file in (one, other)]
    words += [f"{start}", f"{end}", *map(os.fspath, data_of)]
    out = scope.run([sys.executable, __file__, "differences", *words], timeout=timeout).stdout
    return [(start, end) for start, end in json.loads(out)]


def hashes(scope: "Scope", directory: Path) -> dict[str, str]:
    """Path -> SHA-256 of every regular file below a directory."""
    found: dict[str, str] = json.loads(scope.run([sys.executable, __file__, "hashes", directory]).stdout)
    return found


def sha256(scope: "Scope", file: Path, length: int, *, timeout: float = 120.0) -> str:
    """Of the first `length` bytes of a file."""
    return scope.run([sys.executable, __file__, "sha256", file, f"{length}"], timeout=timeout).stdout.strip()


def names(scope: "Scope", directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    found: list[str] = json.loads(scope.run([sys.executable, __file__, "names", directory]).stdout)
    return found


def size(scope: "Scope", file: Path) -> int:
    return int(scope.run(["stat", "--format=%s", file]).stdout)


def outside(found: Iterable[Range], allowed: Iterable[Range]) -> list[Range]:
    """Those of the ranges `found` that do not lie within a single one of `allowed`."""
    allowed = list(allowed)
    return [(start, end) for start, end in found if not any(a <= start and end <= b for a, b in allowed)]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in ranges that are sorted and apart."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise EOFError(f"{file.name}: {len(content)} of {length} bytes at offset {offset}")
    return content


def _data(files: Iterable[str], start: int, end: int) -> Iterator[Range]:
    """Where one of the files has data; everywhere, where there is no file."""
    found: list[Range] = []
    for name in files:
        with open(name, "rb") as file:
            found += [(first, first + amount) for first, amount in sparse.data(file, start, end - start)]
    yield from merged(found) if files else [(start, end)]


def _differences(one: str, other: str, start: int, end: int, *data_of: str) -> list[Range]:
    found: list[Range] = []
    with open(one, "rb") as first, open(other, "rb") as second:
        for begin, stop in _data(data_of, start, end):
            for offset in range(begin, stop, STEP):
                want = min(STEP, stop - offset)
                found += _runs(_read(first, offset, want), _read(second, offset, want), offset)
                if len(found) > MOST:
                    return merged(found)
    return merged(found)


def _runs(one: bytes, other: bytes, at: int) -> Iterator[Range]:
    """Single bytes that differ, at the offsets of the file."""
    if one == other:
        return
    for block in range(0, len(one), SECTOR):
        if one[block : block + SECTOR] != other[block : block + SECTOR]:
            for index in range(block, min(block + SECTOR, len(one))):
                if one[index] != other[index]:
                    yield at + index, at + index + 1


def _hashes(top: str) -> dict[str, str]:
    found = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _sha256(path: str, length: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for offset in range(0, int(length), STEP):
            digest.update(_read(file, offset, min(STEP, int(length) - offset)))
    return digest.hexdigest()


if __name__ == "__main__":
    match sys.argv[1:]:
        case "differences", one, other, start, end, *data_of:
            print(json.dumps(_differences(one, other, int(start), int(end), *data_of)))
        case "hashes", directory:
            print(json.dumps(_hashes(directory)))
        case "sha256", path, length:
            print(_sha256(path, length))
        case "names", directory:
            print(json.dumps(sorted(os.listdir(directory))))
