"""Reading where the file system cannot tell whether a read would wait, as ZFS cannot: in place while that is prompt.

Not for: ZFS itself (test_zfs, scripts/bench zfs). Units: bytes and seconds.
"""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from synthfs.errors import SourceError
from synthfs.extents import Source
from synthfs.host import files
from synthfs.host.files import OpenSource


@dataclass(slots=True)
class Device:
    """What the kernel's preadv(2) is like: it knows no RWF_NOWAIT, and takes `seconds`."""

    seconds: float = 0.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device, original = Device(), os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        if device.seconds:
            time.sleep(device.seconds)
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return device


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OpenSource]:
    path = tmp_path / "image.raw"
    path.write_bytes(b"0123456789" * 1000)
    found = path.stat()
    opened = OpenSource(Source("x", str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    yield opened
    opened.close()


def tried(file: OpenSource) -> bytes | None:
    into = bytearray(10)
    return bytes(into) if file.try_read(20, memoryview(into)) else None


def read(file: OpenSource) -> None:
    file.read(20, memoryview(bytearray(10)))


def test_first_read_is_not_tried(device: Device, file: OpenSource) -> None:
    """Nothing is known of the file yet, and its disk may be asleep."""
    assert [tried(file), tried(file)] == [None, None]


def test_prompt_reads_are_made_in_place(device: Device, file: OpenSource) -> None:
    """Once a read did not wait, the next one is made where it is tried."""
    tried(file)
    read(file)
    assert [tried(file), tried(file)] == [b"0123456789"] * 2


def test_one_slow_read_is_enough(device: Device, file: OpenSource) -> None:
    """After a read that waited, others are not tried, until one did not wait."""
    tried(file)
    read(file)
    device.seconds = 5 * files.PROMPT
    assert tried(file) == b"0123456789", "it could not be known before"
    assert tried(file) is None
    read(file)
    assert tried(file) is None
    device.seconds = 0.0
    read(file)
    assert tried(file) == b"0123456789"


def test_nothing_is_known_after_a_while(device: Device, file: OpenSource) -> None:
    """A disk may have gone to sleep since."""
    tried(file)
    read(file)
    file.used -= 2 * files.RECENT
    assert tried(file) is None


def test_a_changed_file_is_an_error_here_too(device: Device, file: OpenSource) -> None:
    tried(file)
    read(file)
    Path(file.source.path).write_bytes(b"other bytes")
    with pytest.raises(SourceError):
        tried(file)
