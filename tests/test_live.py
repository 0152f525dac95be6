"""The mount follows its store: what comes appears, what goes disappears, and what is open stays what it was.

Not for: load (test_live_load), counters (test_status), or clients on the network (test_smb_faults, test_smb_soak).
Units: bytes and seconds.
"""

import os
import shutil
import time
from collections.abc import Iterator

import pytest

import need
from lab import Lab, Scope
from makestore import Store
from onmount import FOOTER, Sample, ask, read_right
from processes import Argument, wait_until
from stock import NEXT, STATUS, Stock, is_there, refresh, status

MIB = 1 << 20


@pytest.fixture(scope="module")
def stock(lab: Lab) -> Iterator[Stock]:
    need.fuse()
    with lab.scope("stock") as scope:
        yield Stock.make(scope)


class TestComingAndGoing:
    def test_within_the_interval(self, scope: Scope, stock: Stock) -> None:
        """A new backup appears and a deleted one disappears without anything being done, in the listing and by name."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0.5")
        new = target / NEXT
        # Asked for before it is there: the kernel remembers that it is not.
        assert is_there(scope, new, target / Sample.C) == [False, True]
        image = stock.backup(store, stamp="260302-0201")
        assert wait_until(lambda: is_there(scope, new) == [True], 5.0, 0.1)
        assert new.name in os.listdir(new.parent)
        assert read_right(scope, new, stock.two) is False, "D: is not backed up, so the disk cannot be the original"
        store.delete(image)
        assert wait_until(lambda: is_there(scope, new) == [False], 5.0, 0.1)
        assert new.name not in os.listdir(new.parent)
        assert is_there(scope, target / Sample.C) == [True]

    def test_at_once_on_a_signal(self, scope: Scope, stock: Stock) -> None:
        """With --refresh 0 nothing changes by itself; SIGHUP shows at once a new client and hides a deleted one."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        paths = [target / NEXT, target / "laptop", target / "laptop/Image_C_260301-0201.vhd", target / Sample.C]
        assert is_there(scope, *paths) == [False, False, False, True]
        stock.backup(store, stamp="260302-0201")
        store.client("laptop").backup(stock.xp, 1)
        shutil.rmtree(store.root / "pc/260301-0201_Image_C")
        time.sleep(1.0)
        assert is_there(scope, *paths) == [False, False, False, True]
        began = time.monotonic()
        refresh(scope, target)
        assert is_there(scope, *paths) == [True, True, True, False]
        assert time.monotonic() - began < 3.0
        assert read_right(scope, paths[2], stock.xp)
        assert sorted(os.listdir(target)) == [".synthfs", "README.txt", "laptop", "pc"]
        shutil.rmtree(store.root / "laptop")
        refresh(scope, target)
        assert is_there(scope, *paths[:3]) == [True, False, False]

    def test_unfinished_backup(self, scope: Scope, stock: Stock) -> None:
        """A backup that is being made does not appear before it is done."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        image = stock.backup(store, stamp="260302-0201", complete=False)
        refresh(scope, target)
        assert is_there(scope, target / NEXT) == [False]
        stock.backup(Store(scope.path("elsewhere") / "urbackup"), stamp="260302-0201")
        (done,) = scope.directory.glob("*-elsewhere/urbackup/pc/260302-0201_Image_C")
        for suffix in (".hash", ".cbitmap", ".sync"):
            shutil.copy(done / f"{image.raw.name}{suffix}", image.sidecar(suffix))
        refresh(scope, target)
        assert is_there(scope, target / NEXT) == [True]

    def test_store_that_is_not_there(self, scope: Scope, stock: Stock) -> None:
        """A store that vanishes for a while is no store without backups: everything stays listed, and counts as failed."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0.2")
        away = store.root.with_name("away")
        store.root.rename(away)
        assert wait_until(lambda: status(scope, target)["failed_refreshes"] > 1, 5.0, 0.1)
        assert is_there(scope, target / Sample.C) == [True]
        away.rename(store.root)
        stock.backup(store, stamp="260302-0201")
        assert wait_until(lambda: is_there(scope, target / NEXT) == [True], 5.0, 0.1)

    def test_store_that_was_unmounted(self, scope: Scope, stock: Stock) -> None:
        """The empty directory that an unmounted store leaves is no store without backups either."""
        place = scope.btrfs(512 << 20, name="unmounted")
        stock.backup(Store(place), stamp="260301-0201")
        target = scope.synthfs_mount(place, "--refresh", "0.2")
        scope.run(["umount", "--lazy", place])
        assert wait_until(lambda: status(scope, target)["failed_refreshes"] > 1, 5.0, 0.1)
        assert is_there(scope, target / Sample.C) == [True]

    def test_texts_are_fresh_after_a_listing(self, scope: Scope, stock: Stock) -> None:
        """The kernel keeps nothing of status.json, also when it came to know the file by a listing with all attributes."""
        target = scope.synthfs_mount(stock.store(scope).root, "--refresh", "0")
        scope.run(["ls", "-l", target / ".synthfs"])
        before = status(scope, target)["refreshes"]
        refresh(scope, target)
        scope.run(["ls", "-l", target / ".synthfs"])
        assert status(scope, target)["refreshes"] > before

    def test_listing_begun_before_a_refresh(self, scope: Scope, stock: Stock) -> None:
        """A directory that is open while a backup goes lists what it did, and does not bring its name back."""
        store = stock.store(scope)
        image = stock.backup(store, stamp="260302-0201")
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        raw, server, state = image.raw.parent, str(scope.server(target).pid), target / STATUS
        source = """
import shutil
folder, backup, server, status, name = arguments
listing = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
shutil.rmtree(backup)
done = json.load(open(status))['refreshes']
os.kill(int(server), 1)
while json.load(open(status))['refreshes'] == done:
    time.sleep(0.02)
answer([name in os.listdir(listing), failure(os.stat, os.path.join(folder, name)), name in os.listdir(folder)])
"""
        found = ask(scope, source, (target / NEXT).parent, raw, server, state, NEXT.rpartition("/")[2])
        assert found == [True, "ENOENT", False]

    def test_backup_that_was_put_back(self, scope: Scope, stock: Stock) -> None:
        """A backup that was spoiled and is put back can be opened after a refresh, also while a spoiled handle is open."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        raw = store.root / "pc/260301-0201_Image_C/Image_C_260301-0201.raw"
        source = """
file, raw, server, status = arguments
fd = opened(file)
before = os.pread(fd, 1 << 20, 1 << 20)
subprocess.run(['cp', '-p', '--sparse=always', raw, raw + '.new'], check=True)
os.truncate(raw, 4096)
forget(fd)
spoiled = failure(os.pread, fd, 1 << 20, 1 << 20)
os.rename(raw + '.new', raw)
done = json.load(open(status))['refreshes']
os.kill(int(server), 1)
while json.load(open(status))['refreshes'] == done:
    time.sleep(0.02)
answer([spoiled, failure(os.open, file, os.O_RDONLY), os.pread(opened(file), 1 << 20, 1 << 20) == before])
"""
        server = str(scope.server(target).pid)
        assert ask(scope, source, target / Sample.C, raw, server, target / STATUS) == ["EIO", None, True]


class TestEditions:
    def test_sibling_comes_and_goes(self, scope: Scope, stock: Stock) -> None:
        """D: makes another disk of C:'s: a new inode and VHD id, the right bytes; an open handle keeps the old ones."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        source = """
file, original, server, status, command, *rest = arguments
def digest(fd):
    forget(fd)
    sha, at = hashlib.sha256(), 0
    while part := os.pread(fd, 1 << 20, at):
        sha.update(part)
        at += len(part)
    return sha.hexdigest()
def refresh():
    done = json.load(open(status))['refreshes']
    os.kill(int(server), 1)
    while json.load(open(status))['refreshes'] == done:
        time.sleep(0.02)
def facts(fd):
    size = os.fstat(fd).st_size
    return [os.fstat(fd).st_ino, os.pread(fd, 512, size - 512)[68:84].hex(), digest(fd)]
old = opened(file)
story = [facts(old)]
exec(command)
refresh()
new = opened(file)
story += [facts(old), facts(new), [os.stat(file).st_ino, '', '']]
answer(story)
"""
        parts: list[Argument] = [str(scope.server(target).pid), target / STATUS]
        disks = Store(scope.path("elsewhere") / "urbackup")
        d = stock.backup(disks, 3, "D", "260301-0203")
        there = store.root / "pc" / d.directory.name
        put = f"os.rename({str(d.directory)!r}, {str(there)!r})"
        without, same, with_d, named = ask(scope, source, target / Sample.C, stock.two.path, *parts, put)
        assert same == without, "an open handle changed"
        assert with_d[0] == named[0] != without[0]
        assert with_d[1] != without[1]
        assert read_right(scope, target / Sample.C, stock.two)
        take = f"os.rename({str(there)!r}, {str(d.directory)!r})"
        again, same, gone, _ = ask(scope, source, target / Sample.C, stock.two.path, *parts, take)
        assert again == same == with_d
        # Without D: it is what it was in the beginning, and has the same names.
        assert gone == without


def test_two_mounts_are_equal(scope: Scope, stock: Stock) -> None:
    """Two mounts of one store have equal names, inodes, sizes, times and bytes, README.txt included, as a cluster needs."""
    store = stock.store(scope)
    store.client("laptop").backup(stock.xp, 1)
    source = """
found = {}
for root in arguments:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name != '.synthfs']
        for name in (*names, *files):
            path = f'{directory}/{name}'
            s = os.stat(path)
            sha = hashlib.file_digest(open(path, 'rb'), 'sha256').hexdigest() if name in files else ''
            place = os.path.relpath(path, root)
            times = [s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns]
            found.setdefault(place, []).append([s.st_ino, s.st_size, s.st_mode, s.st_nlink, s.st_blocks, *times, sha])
answer(found)
"""
    # As if on another host: another path, another device under the store, another moment.
    other = scope.mount(store.root, options="bind,ro")
    found = ask(scope, source, scope.synthfs_mount(store.root), scope.synthfs_mount(other), timeout=60)
    assert {"README.txt", Sample.C, Sample.RENEWED, "laptop/Image_C_260301-0201.vhd"} <= found.keys()
    assert [place for place, both in found.items() if len(both) != 2 or both[0] != both[1]] == []
    assert found[Sample.C][0][1] == stock.two.length + FOOTER
