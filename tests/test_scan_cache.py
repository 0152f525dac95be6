"""What is known of a store from an earlier look is never taken for what is there: every change shows at the next look.

A scan that knows something is held against one that knows nothing, on the same store. Not for: the file that keeps it
(test_cache_file). Source: stat(2) on what changes a ctime.
"""

import copy
import json
import os
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import makestore
import need
from lab import Scope
from onmount import Sample
from processes import run
from synthfs.host import files
from synthfs.model import Known, Seal, StoreFacts
from synthfs.plan.catalog import Catalog
from synthfs.plan.garden import Gardener
from synthfs.plan.tree import ROOT_INODE, File, Live, Tree, changes, walk
from synthfs.survey import survey
from synthfs.urbackup import remembered, storage
from test_store import DAY, HEADER, only, put


@pytest.fixture(autouse=True)
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test count as settled at once; those that ask for the time set it."""
    monkeypatch.setattr(storage, "_JUST_NOW", 0)


def again(root: Path, before: StoreFacts) -> StoreFacts:
    """The next look, in this process and in another one; each says what a look that knows nothing says."""
    fresh = storage.scan(str(root))
    assert storage.scan(str(root), known=kept(before.known)) == fresh
    found = storage.scan(str(root), known=before.known)
    assert found == fresh
    return found


def kept(known: Mapping[str, Known]) -> dict[str, Known]:
    """What the next process knows of it."""
    lines = json.loads(json.dumps(list(remembered.pack(known))))
    found = remembered.unpack(lines)
    assert {name: each._replace(image=None) for name, each in known.items()} == found
    return found


class TestNothingChanged:
    def test_nothing_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither `.raw` nor `.mbr` is opened, by this process or the next, and images are the same objects."""
        for number, letter in enumerate("CDE"):
            put(tmp_path / "pc" / f"{DAY}_Image_{letter}", letter, suffixes=".mbr .sync" if number else ".sync")
        put(tmp_path / "old")
        first = storage.scan(str(tmp_path))
        others = kept(first.known)
        monkeypatch.setattr(files, "open_regular", lambda path: pytest.fail(f"{path} is opened"))
        assert storage.scan(str(tmp_path), known=others) == first
        second = storage.scan(str(tmp_path), known=first.known)
        assert all(one is other for one, other in zip(first.images, second.images, strict=True))
        assert second.known == first.known

    def test_equal_contents_are_one_object(self, tmp_path: Path) -> None:
        """Also with what was read in another process, and for a backup that came later."""
        put(tmp_path / "pc" / f"{DAY}_Image_C")
        known = kept(storage.scan(str(tmp_path)).known)
        put(tmp_path / "pc" / f"{DAY}_Image_D", "D")
        one, other = storage.scan(str(tmp_path), known=known).images
        assert one.head is other.head
        assert one.boot is other.boot
        assert one.sidecar
        assert other.sidecar
        assert one.sidecar.deflated is other.sidecar.deflated


def _in_place(path: Path, offset: int = 0) -> None:
    """Other bytes at the same length, and the mtime that it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"new!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _sidecar(raw: Path) -> Path:
    return raw.with_name(raw.name + ".mbr")


def _replaced(path: Path) -> None:
    """Another file with the same length and mtime under the same name."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"!" * 4 + path.read_bytes()[4:])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


def _made_anew(raw: Path) -> None:
    """The directory is deleted, and one of the same names and contents is made but for the head."""
    content = {path.name: path.read_bytes() for path in raw.parent.iterdir()}
    shutil.rmtree(raw.parent)
    raw.parent.mkdir()
    for name, old in content.items():
        (raw.parent / name).write_bytes(b"anew" + old[4:])


def _moved_in(raw: Path) -> None:
    """Another directory of the same names takes its place; nothing in it changes at that."""
    other = raw.parent.with_name("elsewhere")
    shutil.copytree(raw.parent, other)
    _in_place(other / raw.name, HEADER)
    shutil.rmtree(raw.parent)
    other.rename(raw.parent)


def _back_in_time(raw: Path) -> None:
    os.utime(raw, ns=(0, 0))


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _linked_where_others_may(raw: Path) -> None:
    raw.parent.chmod(0o775)
    raw.with_name("second").hardlink_to(raw)


def _a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _renamed(raw: Path) -> None:
    raw.rename(raw.with_name("Image_C_260228-0201.raw"))


def _linked_directory(raw: Path) -> None:
    """As with ZFS; all files stay what they are."""
    away = raw.parents[3] / "dataset"
    raw.parent.rename(away)
    raw.parent.symlink_to(away)


CHANGES: dict[str, Callable[[Path], None]] = {
    "mbr in place": lambda raw: _in_place(_sidecar(raw)),
    "mbr replaced": lambda raw: _replaced(_sidecar(raw)),
    "mbr gone": lambda raw: _sidecar(raw).unlink(),
    "mbr a link": lambda raw: _linked(_sidecar(raw)),
    "mbr too long": lambda raw: os.truncate(_sidecar(raw), 100 << 30),
    "head in place": _in_place,
    "boot sector in place": lambda raw: _in_place(raw, HEADER),
    "raw replaced": _replaced,
    "raw longer": lambda raw: os.truncate(raw, HEADER + 8192),
    "raw touched": os.utime,
    "raw back in time": _back_in_time,
    "raw linked": _linked_where_others_may,
    "raw a FIFO": _a_fifo,
    "raw gone": lambda raw: raw.unlink(),
    "raw under another name": _renamed,
    "sync gone": lambda raw: raw.with_name(raw.name + ".sync").unlink(),
    "directory gone": lambda raw: shutil.rmtree(raw.parent),
    "directory made anew": _made_anew,
    "directory moved in": _moved_in,
    "directory a link": _linked_directory,
}


class TestChanges:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_show_at_once(self, tmp_path: Path, change: Callable[[Path], None]) -> None:
        """And once more, when nothing changes after that; the other image stays the object that it was."""
        raw = put(tmp_path / "store" / "pc" / f"{DAY}_Image_C")
        put(tmp_path / "store" / "pc" / f"{DAY}_Image_D", "D")
        first = storage.scan(str(tmp_path / "store"))
        change(raw)
        second = again(tmp_path / "store", first)
        assert (second != first) is (change is not _linked_directory)
        assert second.images[-1] is first.images[-1]
        again(tmp_path / "store", second)

    def test_a_sidecar_and_a_marker_that_come_later(self, tmp_path: Path) -> None:
        """As in a backup that is watched from its beginning."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C", suffixes="")
        first = storage.scan(str(tmp_path))
        assert (only(first).mbr, only(first).finished) == (None, False)
        _sidecar(raw).write_bytes(b"tables")
        second = again(tmp_path, first)
        assert (only(second).mbr, only(second).finished) == (b"tables", False)
        raw.with_name(raw.name + ".sync").touch()
        assert only(again(tmp_path, second)).finished

    def test_a_seal_that_comes_later(self, scope: Scope) -> None:
        """Making a subvolume read-only changes no time of any file; the next scan says so, and when it is undone."""
        root = scope.btrfs()
        directory = root / "pc" / f"{DAY}_Image_C"
        directory.parent.mkdir()
        run(["btrfs", "subvolume", "create", directory])
        put(directory)
        facts = storage.scan(str(root))
        for sealed, expected in ((True, Seal.SEALED), (False, Seal.OPEN)):
            makestore.seal(directory, read_only=sealed)
            facts = again(root, facts)
            assert only(facts).seal is expected

    def test_a_store_that_was_mounted_anew(self, scope: Scope) -> None:
        """BTRFS deals out device numbers anew, and the one to open files by is the present one."""
        root = scope.btrfs()
        put(root / "pc" / f"{DAY}_Image_C")
        first = storage.scan(str(root))
        scope.mount("tmpfs", scope.path(), fstype="tmpfs")
        device = run(["findmnt", "--noheadings", "--output=SOURCE", root]).stdout.decode().strip()
        scope.umount(root)
        again_mounted = scope.mount(device, root)
        image = only(again(again_mounted, first))
        assert image.raw.device == os.stat(image.raw.path).st_dev

    def test_another_store_in_its_place(self, tmp_path: Path) -> None:
        """With images of the same names: what is known of the first says nothing about the second."""
        put(tmp_path / "store" / "pc" / f"{DAY}_Image_C")
        first = storage.scan(str(tmp_path / "store"))
        (tmp_path / "store").rename(tmp_path / "away")
        _in_place(put(tmp_path / "store" / "pc" / f"{DAY}_Image_C"), HEADER)
        again(tmp_path / "store", first)


class TestTheClock:
    """A write within one tick of the last one leaves no trace in a ctime. So what was just written is not relied upon."""

    @pytest.mark.parametrize("which", ["", ".mbr"])
    @pytest.mark.parametrize(("ahead", "relied_upon"), [(0, False), (1.5, False), (-1.5, False), (3, True), (-3600, True)])
    def test_of_the_scan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, relied_upon: bool, which: str
    ) -> None:
        """A clock that was set back makes files of the future, which are as good as those of the past."""
        monkeypatch.undo()
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C")
        moment = os.stat(f"{raw}{which}").st_ctime_ns + int(ahead * 10**9)
        monkeypatch.setattr(time, "time_ns", lambda: moment)
        assert bool(storage.scan(str(tmp_path)).known) is relied_upon

    def test_a_change_within_a_tick(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if the file system counted in whole minutes: the second write is seen although no time tells of it."""
        monkeypatch.undo()
        coarse = 60 * 10**9
        mark = storage._mark

        def coarsely(found: os.stat_result | None) -> bytes:
            return mark(found)[:16] + bytes(16) if found else mark(found)

        monkeypatch.setattr(storage, "_mark", coarsely)
        monkeypatch.setattr(storage, "_JUST_NOW", 2 * coarse)
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C")
        first = storage.scan(str(tmp_path))
        _in_place(_sidecar(raw))
        assert only(again(tmp_path, first)).mbr == b"new!"


SPOILT: dict[str, Callable[[list[Any]], object]] = {
    "no lines": lambda lines: lines.__setitem__(0, 7),
    "a kind that is none": lambda lines: lines[1].__setitem__(0, "others"),
    "content that is no text": lambda lines: lines[0].append(7),
    "content in another code": lambda lines: lines[0].append("#"),
    "too few fields": lambda lines: lines[1][1].pop(),
    "too many fields": lambda lines: lines[1][1].append(0),
    "a name that is none": lambda lines: lines[1][1].__setitem__(0, 5),
    "a short mark": lambda lines: lines[1][1].__setitem__(1, b64encode(bytes(8)).decode()),
    "a number too large": lambda lines: lines[1][1].__setitem__(3, 1000),
    "a number from the end": lambda lines: lines[1][1].__setitem__(3, -1),
    "a truth for a number": lambda lines: lines[1][1].__setitem__(3, True),
    "a fraction": lambda lines: lines[1][1].__setitem__(3, 0.5),
    "a list for a number": lambda lines: lines[1][1].__setitem__(2, [0]),
    "no boot sector": lambda lines: lines[1][1].__setitem__(4, None),
    "a long boot sector": lambda lines: lines[0].__setitem__(1 + lines[1][1][4], b64encode(bytes(5000)).decode()),
    "a sidecar that is not deflated": lambda lines: lines[0].__setitem__(1 + lines[1][1][2], b64encode(b"plain").decode()),
}


class TestWhatACacheSays:
    @pytest.fixture
    def lines(self, tmp_path: Path) -> list[Any]:
        for letter in "CD":
            put(tmp_path / "pc" / f"{DAY}_Image_{letter}", letter)
        lines: list[Any] = json.loads(json.dumps(list(remembered.pack(storage.scan(str(tmp_path)).known))))
        return lines

    @pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
    def test_is_nothing_if_it_is_not_well_formed(self, lines: list[Any], spoil: Callable[[list[Any]], object]) -> None:
        """One wrong value, and none of it is believed."""
        assert len(remembered.unpack(copy.deepcopy(lines))) == 2
        spoil(lines)
        assert remembered.unpack(lines) == {}

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=30))
    def test_may_be_anything(self, value: Any) -> None:
        assert isinstance(remembered.unpack(value if isinstance(value, list) else [value]), dict)


def test_the_command_line_keeps_it_and_does_without(scope: Scope) -> None:
    """The second `list` says what the first one said, from a cache that is there, is spoilt, or is another user's."""
    sample = Sample.make(scope)
    caches = scope.path("caches")
    caches.chmod(0o700)
    time.sleep(2.1)  # what was just written is not kept
    env = {"CACHE_DIRECTORY": str(caches)}

    def listed() -> str:
        return scope.synthfs("list", "--json", sample.root, env=env).stdout

    first = listed()
    (cache,) = caches.iterdir()
    assert listed() == first
    cache.write_bytes(cache.read_bytes()[:-10])
    assert listed() == first
    need.root()
    os.chown(cache, 65534, 65534)
    assert listed() == first
    shutil.rmtree(sample.c.directory)
    assert Sample.C.rpartition("/")[2] not in listed()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "mbr", "sync", "write", "grow", "drop", "drop mbr", "drop sync", "old layout"]),
        st.sampled_from(["pc", "laptop"]),
        st.sampled_from("CD"),
        st.sampled_from(["260301-0201", "260302-0201"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(EVENTS, min_size=2, max_size=5))
def test_any_history_looks_the_same_with_and_without(
    rounds: list[list[tuple[str, str, str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Backups come, grow, finish and go; after each round, facts, catalog and tree are those of somebody who knows nothing."""
    root = tmp_path_factory.mktemp("history")
    facts, catalog, gardener = storage.scan(str(root)), survey(str(root)), Gardener()
    tree = gardener.grow(catalog)
    for events in rounds:
        for event in events:
            _happen(root, *event)
        facts = again(root, facts)
        catalog = survey(str(root), before=catalog)
        other = survey(str(root))
        assert (catalog, _offered(catalog)) == (other, _offered(other))
        before, tree = tree, gardener.grow(catalog)
        old, new = _nodes(before), _nodes(tree)
        assert new == _nodes(Gardener().grow(other))
        # A name leads elsewhere if there is another inode behind it.
        elsewhere = {path for path in old.keys() | new.keys() if old.get(path, (0,))[0] != new.get(path, (0,))[0]}
        assert {(parent, name) for parent, name in changes(before, tree)} == {
            ((old | new).get(path.rpartition("/")[0], (ROOT_INODE,))[0], path.rpartition("/")[2]) for path in elsewhere
        }


def _offered(catalog: Catalog) -> tuple[object, ...]:
    return catalog.disks, catalog.parts, catalog.skipped, catalog.settling


def _nodes(tree: Tree) -> dict[str, tuple[int, int | None]]:
    """Inode and length of all that a tree shows."""
    return {
        path: (node.inode, node.length if isinstance(node, File) else None)
        for path, node in walk(tree.root)
        if not isinstance(node, Live)
    }


def _happen(root: Path, what: str, client: str, letter: str, stamp: str) -> None:
    directory = root / client / f"{stamp}_Image_{letter}"
    raw = directory / f"Image_{letter}_{stamp}.raw"
    match what:
        case "old layout" if not (root / client / raw.name).exists():
            put(root / client, letter, stamp)
        case "put" if not raw.exists():
            put(directory, letter, stamp, suffixes="")
        case "drop":
            shutil.rmtree(directory, ignore_errors=True)
        case _ if not raw.exists():
            pass
        case "mbr":
            _sidecar(raw).write_bytes(os.urandom(20))
        case "sync":
            raw.with_name(raw.name + ".sync").touch()
        case "write":
            _in_place(raw, HEADER)
        case "grow":
            os.truncate(raw, raw.stat().st_size + 4096)
        case "drop mbr" | "drop sync":
            raw.with_name(f"{raw.name}.{what.split()[1]}").unlink(missing_ok=True)
