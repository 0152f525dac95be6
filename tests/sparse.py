"""Copying and filling sparse files: what is zero stays a hole, and nothing is ever shared by reflink.

Not for: hashing or comparing. Units: bytes. Source: lseek(2), SEEK_DATA and SEEK_HOLE.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO

STEP = 1 << 20
BLOCK = 4096
_ZERO = bytes(STEP)


def create(path: Path, length: int) -> Path:
    """A new file of holes."""
    with path.open("xb") as file:
        file.truncate(length)
    return path


def data(file: IO[bytes], offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The (offset, length) ranges of `file` that are not holes, cut to the given range."""
    end = min(offset + length, os.fstat(file.fileno()).st_size)
    while offset < end:
        try:
            first = os.lseek(file.fileno(), offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole from here to the end of the file
            return
        if first >= end:
            return
        offset = min(os.lseek(file.fileno(), first, os.SEEK_HOLE), end)
        yield first, offset - first


def copy(source: Path, target: Path, *, offset: int, length: int, to: int) -> None:
    """Copy bytes into an existing file; blocks of zeroes become (or stay) holes there.

    Plain reads and writes on purpose: copy_file_range could share the blocks, and a test that measures what the
    program under test shares would measure the fixture.
    """
    with source.open("rb") as old, target.open("r+b") as new:
        for start, amount in data(old, offset, length):
            for piece in range(start, start + amount, STEP):
                old.seek(piece)
                content = old.read(min(STEP, start + amount - piece))
                write_blocks(new, piece - offset + to, content)


def write_blocks(file: IO[bytes], offset: int, content: bytes) -> None:
    """Write what is not zero of `content`, in whole blocks counted from its beginning."""
    for start, end in _runs(content):
        file.seek(offset + start)
        file.write(content[start:end])


def fill(path: Path, offset: int, length: int, seed: str) -> None:
    """Write pseudo-random bytes, the same for the same seed."""
    source = random.Random(seed)
    with path.open("r+b") as file:
        file.seek(offset)
        for done in range(0, length, STEP):
            file.write(source.randbytes(min(STEP, length - done)))


def _runs(content: bytes) -> Iterator[tuple[int, int]]:
    """Half-open ranges of consecutive blocks that are not all zero."""
    begin: int | None = None
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        if block == _ZERO[: len(block)]:
            if begin is not None:
                yield begin, start
            begin = None
        elif begin is None:
            begin = start
    if begin is not None:
        yield begin, len(content)
