"""Files that must not be held open while nobody reads them: `Reader`'s answer to ZFS, on any file system.

Not for: when the mount lets files rest (test_mount_laws). Units: bytes and seconds.
"""

import os
import threading
from pathlib import Path

import pytest

from lab import Scope
from synthfs.engines.read import Reader
from synthfs.errors import SourceError
from synthfs.extents import ExtentMap, FileRange, Source
from synthfs.host.files import OpenSource

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def file(scope: Scope) -> Path:
    path = scope.path() / "Image_C.raw"
    path.write_bytes(CONTENT)
    return path


def reader_of(path: Path, *, may_rest: bool = True) -> Reader:
    found = path.stat()
    source = Source(path.name, str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    reader = Reader(ExtentMap([FileRange(source, 0, found.st_size)]), lambda _: may_rest)
    reader.open()
    return reader


def is_open(path: Path) -> bool:
    """Whether this process has a descriptor of the file, by the kernel's account."""
    numbers = [Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd")]
    return str(path) in [str(one.readlink()).removesuffix(" (deleted)") for one in numbers if one.is_symlink()]


def content(reader: Reader) -> bytes:
    into = bytearray(len(CONTENT))
    assert reader.read(0, memoryview(into)) == len(CONTENT)
    return bytes(into)


def test_idle_file_is_closed_and_opened_again(file: Path) -> None:
    """An idle file has no descriptor left; the next read opens it again and gives its bytes, as often as one likes."""
    reader = reader_of(file)
    for _ in range(3):
        assert is_open(file)
        reader.rest(idle=0)
        assert not is_open(file)
        assert reader.try_read(0, memoryview(bytearray(10))) is None, "opening a file may wait"
        assert content(reader) == CONTENT
    reader.close()
    assert not is_open(file)


def test_file_in_use_stays_open(file: Path) -> None:
    """A file that was read a moment ago stays open, and so does one that may not rest, however idle."""
    reader, other = reader_of(file), reader_of(file, may_rest=False)
    reader.rest()
    assert is_open(file)
    reader.close()
    assert (reader.rests, other.rests) == (True, False)
    other.rest(idle=0)
    assert is_open(file)
    other.close()


def test_read_under_way_keeps_its_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a read is under way nothing rests, however long it takes."""
    entered, go_on, read = threading.Event(), threading.Event(), OpenSource.read

    def slow(self: OpenSource, offset: int, into: memoryview) -> None:
        entered.set()
        assert go_on.wait(10)
        read(self, offset, into)

    reader = reader_of(file)
    monkeypatch.setattr(OpenSource, "read", slow)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(content(reader)))
    thread.start()
    assert entered.wait(10)
    reader.rest(idle=0)
    assert is_open(file)
    go_on.set()
    thread.join()
    assert found == [CONTENT]
    reader.rest(idle=0)
    assert not is_open(file)


@pytest.mark.parametrize("deed", ["replaced", "gone", "grown", "touched", "link"])
def test_other_file_is_not_taken_for_it(file: Path, deed: str) -> None:
    """What is found under the name after a rest is read only if it is the same file, unchanged; else SourceError."""
    reader = reader_of(file)
    reader.rest(idle=0)
    before = file.stat()
    match deed:
        case "replaced":
            other = file.with_name("other")
            other.write_bytes(CONTENT)
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.rename(file)
        case "gone":
            file.unlink()
        case "grown":
            with file.open("ab") as end:
                end.write(b"x")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "touched":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        case "link":
            file.rename(file.with_name("moved"))
            file.symlink_to("moved")
    with pytest.raises(SourceError, match=str(file)):
        content(reader)
    assert not is_open(file)
    reader.close()


@pytest.mark.parametrize("waits", [False, True])
def test_change_is_seen_at_once(file: Path, *, waits: bool) -> None:
    """A file that was written to a moment after it was opened gives an error, in both colours, and not its new bytes."""
    reader = reader_of(file, may_rest=False)
    content(reader)
    file.write_bytes(bytes(reversed(CONTENT)))
    os.utime(file)
    read = reader.read if waits else reader.try_read
    with pytest.raises(SourceError, match="changed"):
        read(0, memoryview(bytearray(len(CONTENT))))
    reader.close()
