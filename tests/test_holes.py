"""Hole maps: what is called a hole is one, and what is remembered of a file is forgotten with it.

Expected values are the file's bytes. Not for: containers (test_containers).
"""

import os
import random
import time
from pathlib import Path

import pytest

from lab import MIB, Scope
from synthfs.errors import SourceError
from synthfs.extents import Source
from synthfs.host import holes, zfs
from synthfs.host.files import OpenSource
from synthfs.host.state import Cache

KIB = 1024


@pytest.fixture(autouse=True)
def _private(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(scope.path("cache")))


def source_of(path: Path) -> Source:
    found = path.stat()
    return Source(f"client/{path.name}", str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def sparse_file(scope: Scope, seed: int = 1) -> Path:
    dice, path = random.Random(seed), scope.path("store") / "a.raw"
    with path.open("xb") as file:
        file.truncate(64 * MIB + 512)
        for _ in range(40):
            file.seek(dice.randrange(64 * MIB))
            file.write(dice.randbytes(dice.randrange(1, 100_000)))
        file.truncate(64 * MIB + 512)
    return path


@pytest.mark.parametrize("kind", ["btrfs", "xfs", "ext4"])
def test_no_byte_of_data_lies_in_a_hole(scope: Scope, kind: str) -> None:
    """Outside the ranges all is zero, on each file system; and the ranges leave out most of the emptiness."""
    path = getattr(scope, kind)() / "a.raw"
    scope.run(["cp", "--sparse=always", sparse_file(scope), path])
    found = holes.gather(source_of(path))
    raw, end = path.read_bytes(), 0
    for offset, length in found.ranges:
        assert not any(raw[end:offset])
        assert end == 0 or offset - end >= holes.FINEST
        end = offset + length
    assert not any(raw[end:])
    assert sum(length for _, length in found.ranges) < 32 * MIB
    assert found.block == path.stat().st_blksize


@pytest.mark.parametrize("most", [1, 3, 10])
def test_a_file_in_many_pieces_is_known_more_coarsely(scope: Scope, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What is remembered of a file has a bound, and still no byte of data lies in a hole."""
    monkeypatch.setattr(holes, "MAX_RANGES", most)
    path = sparse_file(scope)
    source, raw, end = source_of(path), path.read_bytes(), 0
    found = holes.gather(source)
    assert 1 <= len(found.ranges) <= most
    for offset, length in (*found.ranges, (len(raw), 0)):
        assert not any(raw[end:offset])
        end = offset + length
    assert holes.known(source) == found


def test_what_was_found_is_remembered(scope: Scope) -> None:
    """The next process is told without asking the file system; before anything was found, nothing is known."""
    source = source_of(sparse_file(scope))
    assert holes.known(source) is None
    found = holes.gather(source)
    assert holes.known(source) == found
    (cache,) = Path(os.environ["CACHE_DIRECTORY"]).iterdir()
    assert cache.stat().st_mode & 0o777 == 0o600


def test_a_changed_file_is_not_known(scope: Scope) -> None:
    """A file that was written to, also one with its old time put back, is looked at again."""
    path = sparse_file(scope)
    source = source_of(path)
    holes.gather(source)
    with path.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(b"new data" * 1000)
    os.utime(path, ns=(source.mtime_ns, source.mtime_ns))
    assert source_of(path) == source
    assert holes.known(source) is None
    assert any(at <= 32 * MIB < at + length for at, length in holes.gather(source).ranges)


def test_a_file_that_is_gone_or_another_is_an_error(scope: Scope) -> None:
    """Nothing is said about a file that is not the one that was listed."""
    path = sparse_file(scope)
    source = source_of(path)
    path.rename(path.with_name("b.raw"))
    with pytest.raises(SourceError):
        holes.gather(source)
    path.write_bytes(b"another")
    with pytest.raises(SourceError):
        holes.gather(source)


@pytest.mark.parametrize(
    "told",
    [
        [4096, [0, 4096, 0, 4096]],
        [4096, [8192, 4096, 0, 4096]],
        [4096, [0, 1 << 40]],
        [4096, [0]],
        [4096, [0, -1]],
        [4096, [0, "4096"]],
        [3000, [0, 4096]],
        [1 << 30, [0, 4096]],
        ["4096", [0, 4096]],
        [4096, None],
        [],
    ],
)
def test_nonsense_in_the_cache_is_nothing(scope: Scope, told: list[object]) -> None:
    """Ranges out of order, outside the file or no numbers, and blocks that are none, are not believed."""
    source = source_of(sparse_file(scope))
    found = holes.gather(source)
    at = os.stat(source.path)
    mark = [at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]
    cache = Cache("holes", source.path)
    assert cache.load()[0] == mark
    cache.save([mark, *told])
    assert holes.known(source) is None
    assert holes.gather(source) == found


@pytest.mark.parametrize(("age", "waits"), [(0, 1), (599, 1), (601, 0)])
def test_zfs_is_waited_for_while_data_may_be_dirty(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, age: int, waits: int
) -> None:
    """A store of thousands of old images does not cause a `zpool sync` for each of them."""
    waited: list[str] = []
    source = source_of(sparse_file(scope))
    now = os.stat(source.path).st_ctime_ns
    monkeypatch.setattr(OpenSource, "on_zfs", True)
    monkeypatch.setattr(zfs, "pool_of", lambda path: zfs.Pool("tank"))
    monkeypatch.setattr(zfs.Pool, "settle", lambda pool: waited.append(pool.name))
    monkeypatch.setattr(time, "time_ns", lambda: now + age * 10**9)
    holes.gather(source)
    assert len(waited) == waits


def test_old_ones_are_forgotten(scope: Scope) -> None:
    """What was found long ago does not stay for ever."""
    source = source_of(sparse_file(scope))
    holes.gather(source)
    holes.forget_old()
    assert holes.known(source)
    (cache,) = Path(os.environ["CACHE_DIRECTORY"]).iterdir()
    os.utime(cache, (0, 0))
    holes.forget_old()
    assert not cache.exists()
