"""Files of the cache directory: what is kept comes back, and nothing that another user, a disk or a crash made of it.

Not for: what a scan keeps there (test_scan_cache). Source: systemd.exec(5) for $CACHE_DIRECTORY, the XDG base directories.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import need
from lab import Scope
from synthfs.host import state
from synthfs.host.state import Cache

CONTENT = [{"images": [["pc/a.raw", 1, 2.5, None, True]]}, "caf\udce9 \u20ac\n\u2028", 7]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache() -> Cache:
    found = Cache("scan", "/srv/urbackup")
    assert found.save(CONTENT)
    return found


class TestKeeping:
    def test_what_was_saved_comes_back(self, cache: Cache, directory: Path) -> None:
        """Names of any bytes included; file and directory are for their owner alone, and no draft stays."""
        assert cache.load() == CONTENT
        assert [path.name for path in directory.iterdir()] == [Path(cache.path).name]
        assert (directory.stat().st_mode & 0o777, Path(cache.path).stat().st_mode & 0o777) == (0o700, 0o600)

    def test_the_last_one_counts(self, cache: Cache) -> None:
        assert cache.save([{"a": 1}])
        assert cache.load() == [{"a": 1}]

    def test_of_another_store_purpose_or_form(self, cache: Cache) -> None:
        """Each has its own; a file that was put in the place of another one's is none."""
        others = [Cache("scan", "/srv/other"), Cache("holes", "/srv/urbackup"), Cache("scan", "/srv/urbackup", 2)]
        assert [other.load() for other in others] == [[], [], []]
        os.rename(cache.path, others[0].path)
        assert others[0].load() == []

    def test_nothing_is_there(self) -> None:
        assert Cache("scan", "/srv/urbackup").load() == []


def _shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def _one_bit(path: Path) -> None:
    """A digit that still is one: JSON alone would not notice."""
    path.write_bytes(path.read_bytes().replace(b"2.5", b"2.7"))


def _deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def _huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _open_to_others(path: Path) -> None:
    path.chmod(0o622)


def _open_to_a_group(path: Path) -> None:
    path.chmod(0o660)


def _in_an_open_directory(path: Path) -> None:
    path.parent.chmod(0o777)


def _foreign(path: Path) -> None:
    need.root()
    os.chown(path, 65534, 65534)


def _in_a_foreign_directory(path: Path) -> None:
    need.root()
    os.chown(path.parent, 65534, 65534)


SPOILT: list[Callable[[Path], None]] = [
    *(_shortened, _longer, _one_bit, _deep, _huge, _link, _fifo, _directory),
    *(_open_to_others, _open_to_a_group, _in_an_open_directory, _foreign, _in_a_foreign_directory),
]


class TestWhatIsNotTrusted:
    @pytest.mark.parametrize("spoil", SPOILT)
    def test_is_the_same_as_nothing(self, cache: Cache, spoil: Callable[[Path], None]) -> None:
        """Spoilt, strange, or within another user's reach."""
        spoil(Path(cache.path))
        assert cache.load() == []

    @pytest.mark.parametrize("spoil", [_shortened, _link, _fifo, _open_to_others, _foreign])
    def test_is_replaced(self, cache: Cache, spoil: Callable[[Path], None]) -> None:
        """What a link leads to stays as it is."""
        spoil(Path(cache.path))
        assert cache.save([{"a": 1}])
        assert cache.load() == [{"a": 1}]

    @pytest.mark.parametrize("spoil", [_in_an_open_directory, _in_a_foreign_directory])
    def test_nothing_is_kept_within_reach_of_others(self, cache: Cache, directory: Path, spoil: Callable[[Path], None]) -> None:
        before = Path(cache.path).read_bytes()
        spoil(Path(cache.path))
        assert not cache.save([{"a": 1}])
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == {Path(cache.path).name: before}


def test_a_full_or_missing_place_is_no_harm(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written, nothing is kept, and nobody is bothered; a draft does not stay."""
    for place in ("/proc/synthfs", "/dev/null/cache"):
        monkeypatch.setenv("CACHE_DIRECTORY", place)
        assert not Cache("scan", "a").save(CONTENT)
        assert Cache("scan", "a").load() == []
    need.root()
    small = scope.mount("tmpfs", fstype="tmpfs", options="size=64k,mode=700")
    monkeypatch.setenv("CACHE_DIRECTORY", str(small))
    assert not Cache("scan", "a").save(["x" * 200_000])
    assert list(small.iterdir()) == []


def test_what_would_not_be_read_is_not_kept(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than what is read back: it is not said to be kept, and what was there stays. One that just fits is read."""
    monkeypatch.setattr(state, "MAX_CACHE", os.stat(cache.path).st_size)
    assert cache.save(CONTENT)
    assert not cache.save([*CONTENT, 1])
    assert cache.load() == CONTENT


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd names it, the first of several; else root's, or that of XDG."""
    monkeypatch.setenv("CACHE_DIRECTORY", "/run/a:/run/b")
    assert state.cache_directory() == "/run/a"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state.cache_directory() == "/var/cache/synthfs"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/ann/caches")
    assert state.cache_directory() == "/home/ann/caches/synthfs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert state.cache_directory() == "/home/ann/.cache/synthfs"
