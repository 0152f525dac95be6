"""What goes wrong under an SMB copy: the client gets right bytes or an error, never others, and the share recovers.

Each test copies a disk, breaks something halfway, goes on copying, and mends it without touching smbd. Not for: questions
about a disk that is well (test_smb). There is no device-mapper in many laboratories, so the I/O error is made by BTRFS
itself: a block under the backup is spoiled on its disk, and the checksum does not hold.
"""

import mmap
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import need
import sampledisks
import smbd
from lab import Scope
from makedisk import OriginalDisk
from makestore import Image, Store
from onmount import FOOTER, Sample, ask
from processes import wait_until
from smbd import Share
from smbwindows import Client, Failure, File
from test_smb import serve

MIB = 1 << 20
PIECE = MIB
OTHER = "disks/laptop/Image_C_260301-0201.vhd"
STATUS = ".synthfs/status.json"
DISK = f"disks/{Sample.C}"

FORGET = """
for path in arguments:
    fd = opened(path)
    os.fsync(fd)
    forget(fd)
    os.close(fd)
answer(None)
"""


@dataclass(slots=True)
class Bench:
    """A store on BTRFS with two clients, mounted and shared."""

    scope: Scope
    place: Path
    sample: Sample
    other: OriginalDisk
    other_image: Image
    share: Share
    mount: Path

    @classmethod
    def make(cls, scope: Scope) -> "Bench":
        need.root()
        place = scope.btrfs()
        sample = Sample.make(scope, place)
        other = sampledisks.xp_disk(scope.path("other") / "other.img")
        image = Store(sample.root).client("laptop").backup(other, 1)
        share, mount = serve(scope, sample.root)
        return cls(scope, place, sample, other, image, share, mount)

    @property
    def raws(self) -> list[Path]:
        return [image.raw for image in (self.sample.system, self.sample.c, self.sample.d)]

    def forget(self) -> None:
        """What was read before is not in the kernel's memory any more, neither of the backups nor of the mount."""
        ask(self.scope, FORGET, self.mount / Sample.C, *self.raws)

    def refresh(self) -> None:
        self.scope.server(self.mount).send_signal(signal.SIGHUP)

    def is_right(self, client: Client, path: str, disk: OriginalDisk) -> bool:
        """Whether a new open of the disk, over a connection that is there already, gives all of it."""
        try:
            with client.opened(path) as file:
                return copy(file, disk).is_whole
        except Failure as failure:
            print(f"{path}: {failure}")
            return False


@dataclass(slots=True)
class Copied:
    """What became of the pieces of a copy."""

    right: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.failed and not self.wrong


def copy(file: File, disk: OriginalDisk, break_it: Callable[[], object] = lambda: None) -> Copied:
    """Read the disk piece by piece; halfway something happens. A piece that cannot be read is left out."""
    done = Copied()
    pieces = range(0, disk.length, PIECE)
    for number, offset in enumerate(pieces):
        if number == len(pieces) // 2:
            break_it()
        wanted = disk.read(offset, PIECE)
        try:
            found = file.read(offset, len(wanted))
        except Failure:
            done.failed.append(offset)
        else:
            (done.right if found == wanted else done.wrong).append(offset)
    try:
        footer = file.read(disk.served_length, FOOTER)
        (done.right if footer[:8] == b"conectix" and len(footer) == FOOTER else done.wrong).append(disk.served_length)
    except Failure:
        done.failed.append(disk.served_length)
    return done


@pytest.fixture
def bench(scope: Scope) -> Bench:
    return Bench.make(scope)


def test_deleted(bench: Bench) -> None:
    """UrBackup deletes the backup: the copy ends right, the name is gone after a refresh, the other disk is not."""
    with Client(bench.share) as client:
        with client.opened(DISK) as file:

            def delete() -> None:
                bench.forget()
                store = Store(bench.sample.root)
                for image in (bench.sample.system, bench.sample.c, bench.sample.d):
                    store.delete(image)
                bench.refresh()
                assert wait_until(lambda: "pc" not in bench.share.smbclient("ls disks/*").stdout.split(), 10.0, 0.2)
                ask(bench.scope, "drop_caches(); answer(None)")

            done = copy(file, bench.sample.disk, delete)
        assert done.is_whole, done
        assert not bench.is_right(client, DISK, bench.sample.disk)
        assert bench.is_right(client, OTHER, bench.other)


def test_store_unmounted(bench: Bench) -> None:
    """The store is unmounted lazily: open files go on or fail, new ones fail, and after it is mounted again all is well."""
    device = bench.scope.run(["findmnt", "--noheadings", "--output=SOURCE", bench.place]).stdout.strip()
    with Client(bench.share) as client:
        with client.opened(DISK) as file:

            def unmount() -> None:
                bench.forget()
                bench.scope.run(["umount", "--lazy", bench.place])
                bench.refresh()

            done = copy(file, bench.sample.disk, unmount)
        assert done.wrong == []
        assert done.right
        # What was never opened cannot be found; and a store that is not there is not taken for an empty one.
        assert not bench.is_right(client, OTHER, bench.other)
        assert "laptop" in bench.share.smbclient("ls disks/*").stdout.split()
        bench.scope.mount(device, bench.place, fstype="btrfs")
        bench.refresh()
        assert wait_until(lambda: bench.is_right(client, OTHER, bench.other), 10.0, 0.2)
        assert bench.is_right(client, DISK, bench.sample.disk)


def test_truncated(bench: Bench) -> None:
    """A `.raw` is truncated: what is gone fails, the connection stays, and once the backup is back the disk is."""
    raw = bench.sample.c.raw
    bench.scope.run(["btrfs", "property", "set", "-f", "-ts", raw.parent, "ro", "false"])
    with Client(bench.share) as client:
        with client.opened(DISK) as file:

            def truncate() -> None:
                bench.scope.run(["cp", "-p", "--reflink=always", raw, raw.with_suffix(".kept")])
                os.truncate(raw, 40 * MIB)
                bench.forget()

            done = copy(file, bench.sample.disk, truncate)
            assert done.wrong == []
            # The second half of the disk begins in C:, of which 40 MiB are left.
            assert any(bench.sample.disk.partition(3).start + 41 * MIB <= at for at in done.failed), done
            # The same connection and handle go on with what is not of that file.
            assert file.read(bench.sample.disk.served_length, FOOTER)[:8] == b"conectix"
        assert bench.is_right(client, OTHER, bench.other)
        raw.with_suffix(".kept").rename(raw)
        bench.refresh()
        assert wait_until(lambda: bench.is_right(client, DISK, bench.sample.disk), 10.0, 0.2)


def test_input_error(bench: Bench) -> None:
    """The disk under the store gives an I/O error: so does the share, for those bytes alone, until the disk is well."""
    disk, c = bench.sample.disk, bench.sample.disk.partition(3)
    # Three volumes have this file; each place of it on the store's own disk is spoiled.
    (known,) = [one for one in c.files if one.name == "big.bin"]
    bad = occurrences(disk.path, known.content[:4096])
    (at,) = [at for at in bad if c.start <= at < c.end]
    (image,) = bench.scope.directory.glob("*btrfs/btrfs.img") or [Path()]
    bench.scope.run(["sync", "--file-system", bench.place])

    def spoil() -> None:
        for place in found:
            write(image, place, bytes(byte ^ 0xFF for byte in known.content[:4096]))
        bench.forget()
        ask(bench.scope, "drop_caches(); answer(None)")

    found = occurrences(image, known.content[:4096])
    assert found, "the content of the backup is not on its disk"
    with Client(bench.share) as client:
        with client.opened(DISK) as file:
            spoil()
            reading = "answer(failure(lambda: os.pread(opened(arguments[0]), 4096, int(arguments[1]))))"
            raw_offset = at - c.start + 512 * 1024
            assert ask(bench.scope, reading, bench.sample.c.raw, str(raw_offset)) == "EIO", "BTRFS did not notice"
            done = copy(file, disk)
            assert done.wrong == []
            assert done.failed == [at // PIECE * PIECE for at in bad]
        for place in found:
            write(image, place, known.content[:4096])
        ask(bench.scope, "drop_caches(); answer(None)")
        assert bench.is_right(client, DISK, disk)
        assert bench.is_right(client, OTHER, bench.other)


def test_killed_and_restarted(bench: Bench) -> None:
    """The daemon is killed and started again: the copy fails where it was, a new open over the same connection works."""
    with Client(bench.share) as client, client.opened(DISK) as file:

        def kill() -> None:
            bench.forget()
            server = bench.scope.server(bench.mount)
            server.kill()
            server.wait(10)

        done = copy(file, bench.sample.disk, kill)
        assert done.wrong == []
        assert done.right
        assert done.failed
        assert not bench.is_right(client, OTHER, bench.other)
        # A dead mount is an error, and no empty directory.
        listing = bench.share.smbclient("ls disks/*", check=False)
        assert "NT_STATUS" in listing.stdout + listing.stderr
        bench.scope.synthfs_mount(bench.sample.root, "--allow-other", "--group", smbd.GROUP, target=bench.mount)
        # The dead mount, which the new process takes away, is in the table too, and answers from the kernel's memory.
        is_served = "answer(failure(os.stat, arguments[0]))"
        assert wait_until(lambda: ask(bench.scope, is_served, bench.mount / STATUS) is None, 10.0, 0.1)
        assert bench.is_right(client, DISK, bench.sample.disk)
        assert bench.is_right(client, OTHER, bench.other)
        assert copy(file, bench.sample.disk).wrong == []


def occurrences(path: Path, content: bytes) -> list[int]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        return list(_places(memory, content))


def _places(memory: mmap.mmap, content: bytes) -> Iterator[int]:
    at = memory.find(content)
    while at >= 0:
        yield at
        at = memory.find(content, at + 1)


def write(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
