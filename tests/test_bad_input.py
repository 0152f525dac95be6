"""Backups that are damaged, lie, or are no files at all: one clear line each, no hang, and the others are served.

Not for: the parsers themselves (test_mbrfile and others), changes while a file is open (test_mount_laws).
Units: bytes; positions in GPT structures are those of UEFI 2.10, section 5.3.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import makembr
import need
import sampledisks
from lab import Lab, Scope
from makedisk import OriginalDisk
from makembr import GptCopy
from makestore import Image, Store
from onmount import ask, read_right

MIB = 1 << 20
GOOD = "good/Image_C_260301-0201.vhd"


def with_entries(disk: OriginalDisk, change: Callable[[bytearray], None], *, seal: bool = True) -> bytes:
    """An `.mbr` whose table was changed; unless `seal` is false, with checksums that fit it again."""
    gpt = GptCopy.read(disk.path)
    table = bytearray(gpt.table)
    change(table)

    def header(old: bytes) -> bytes:
        if not seal:
            return old
        new = bytearray(old)
        struct.pack_into("<I", new, 88, zlib.crc32(table))
        struct.pack_into("<I", new, 16, 0)
        struct.pack_into("<I", new, 16, zlib.crc32(new[:92]))
        return bytes(new)

    return with_gpt(disk, replace(
        gpt, table=bytes(table), backup_table=bytes(table), header=header(gpt.header), backup_header=header(gpt.backup_header)
    ))  # fmt: skip


def with_header(disk: OriginalDisk, form: str, offset: int, value: int) -> bytes:
    """An `.mbr` both of whose headers say something else at `offset`, with checksums that fit."""

    def changed(old: bytes) -> bytes:
        new = bytearray(old)
        struct.pack_into(form, new, offset, value)
        struct.pack_into("<I", new, 16, 0)
        struct.pack_into("<I", new, 16, zlib.crc32(new[:92]))
        return bytes(new)

    gpt = GptCopy.read(disk.path)
    return with_gpt(disk, replace(gpt, header=changed(gpt.header), backup_header=changed(gpt.backup_header)))


def with_gpt(disk: OriginalDisk, gpt: GptCopy) -> bytes:
    return makembr.mbr_bytes(
        version=1, device_number=0, partition_number=3, serial="1", volume_name="Windows", filesystem="NTFS",
        mbr_data=disk.read(0, 512), gpt=gpt,
    )  # fmt: skip


def entry(number: int, first: int | None = None, last: int | None = None) -> Callable[[bytearray], None]:
    """Sets the first or last LBA of an entry of 128 bytes."""

    def change(table: bytearray) -> None:
        for offset, value in ((32, first), (40, last)):
            if value is not None:
                struct.pack_into("<Q", table, 128 * (number - 1) + offset, value)

    return change


def lying_sidecars(disk: OriginalDisk) -> dict[str, bytes]:
    honest = makembr.capture(disk, 3)
    c = disk.partition(3)
    return {
        "empty": b"",
        "two bytes": honest[:2],
        "half": honest[: len(honest) // 2],
        "oversized": honest.ljust(MIB + 1, b"\0"),
        "version 7": honest[:1] + b"\x07" + honest[2:],
        "length beyond the file": honest[:10] + b"\xff\xff\xff\xff" + honest[14:],
        "no checksum fits": with_entries(disk, entry(3, first=c.start // 512 + 8), seal=False),
        "first after last": with_entries(disk, entry(3, first=c.end // 512, last=c.start // 512)),
        "overlap": with_entries(disk, entry(1, last=c.start // 512 + 100)),
        "past the end": with_entries(disk, entry(4, last=disk.length // 512 + 1000)),
        "last LBA 2^64-1": with_entries(disk, entry(4, last=2**64 - 1)),
        "2^31 entries": with_header(disk, "<I", 80, 2**31),
        "entries of 0 bytes": with_header(disk, "<I", 84, 0),
        "disk of 2^63 sectors": with_header(disk, "<Q", 32, 2**63),
        "table inside a partition": with_header(disk, "<Q", 72, c.start // 512),
    }


def spoil(image: Image, kind: str) -> None:
    """Put something else where a `.raw` or an `.mbr` should be."""
    what, _, which = kind.partition(" for ")
    path = image.sidecar(".mbr") if which == "mbr" else image.raw
    if which:
        path.rename(path.with_name("moved"))
    match what:
        case "FIFO":
            os.mkfifo(path)
        case "link":
            path.symlink_to("moved")
        case "directory":
            path.mkdir()
        case "device":
            os.mknod(path, 0o20600, os.makedev(1, 5))
        case _:
            os.truncate(path, {"raw of 0 bytes": 0, "raw of 100 bytes": 100, "raw of 512 KiB": 512 << 10}[kind])


LIES = (
    "empty", "two bytes", "half", "oversized", "version 7", "length beyond the file", "no checksum fits",
    "first after last", "overlap", "past the end", "last LBA 2^64-1", "2^31 entries", "entries of 0 bytes",
    "disk of 2^63 sectors", "table inside a partition",
)  # fmt: skip
SPOILS = (
    "raw of 0 bytes", "raw of 100 bytes", "raw of 512 KiB", "FIFO for raw", "link for raw", "directory for raw",
    "device for raw", "FIFO for mbr", "link for mbr", "directory for mbr",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Junkyard:
    """A store with one good image, and a bad one of each kind in a client of its own."""

    root: Path
    disk: OriginalDisk
    bad: dict[str, Image]
    listed: dict[str, Any]
    """What `list --all --json` says."""

    @classmethod
    def make(cls, scope: Scope) -> "Junkyard":
        disk = sampledisks.gpt_disk(scope.path("original") / "original.img")
        store = Store(scope.path("store") / "urbackup")
        for number, letter in ((1, "SYSVOL"), (3, "C"), (4, "D")):
            store.client("good").backup(disk, number, letter)
        bad = {}
        sidecars = lying_sidecars(disk)
        for number, kind in enumerate(LIES):
            bad[kind] = store.client(f"liar{number}").backup(disk, 3, mbr=sidecars.pop(kind))
        assert not sidecars
        for number, kind in enumerate(SPOILS):
            bad[kind] = store.client(f"other{number}").backup(disk, 3)
            spoil(bad[kind], kind)
        listed = json.loads(scope.synthfs("list", store.root, "--all", "--json").stdout)
        return cls(store.root, disk, bad, listed)


@pytest.fixture(scope="module")
def junkyard(lab: Lab) -> Iterator[Junkyard]:
    need.root()
    with lab.scope("junkyard") as scope:
        yield Junkyard.make(scope)


def remarks(listed: dict[str, Any], client: str) -> list[str]:
    """Everything that a user is warned of about one client: notes of its disks, and what is not offered."""
    notes = [note["text"] for disk in listed["disks"] if disk["client"] == client for note in disk["notes"] if note["warning"]]
    return notes + [f"{one['name']}: {one['reason']}" for one in listed["not_offered"] if one["client"] == client]


@pytest.mark.parametrize("kind", LIES + SPOILS)
def test_one_line_names_the_file(junkyard: Junkyard, kind: str) -> None:
    """A bad `.mbr` costs the image its disk, a bad `.raw` costs the image; one line names the file and the reason."""
    image = junkyard.bad[kind]
    (line,) = remarks(junkyard.listed, image.client)
    of_sidecar = not kind.endswith("for raw") and not kind.startswith("raw")
    assert f"{image.client}/{image.directory.name}/{image.raw.name}{'.mbr' if of_sidecar else ''}" in line
    assert "\n" not in line
    disks = [disk for disk in junkyard.listed["disks"] if disk["client"] == image.client]
    assert len(disks) == of_sidecar
    for disk in disks:
        # The volume alone: nothing of a table that lies is believed.
        assert [part["content"] for part in disk["partitions"]] == ["image"]


def test_one_copy_of_the_table_is_enough(scope: Scope) -> None:
    """Where only the primary GPT is damaged, the backup's is used, the disk is whole, and a note says so."""
    disk = sampledisks.gpt_disk(scope.path() / "original.img")
    gpt = GptCopy.read(disk.path)
    store = Store(scope.path("store") / "urbackup")
    broken = bytes((gpt.table[0] ^ 1,)) + gpt.table[1:]
    for number, letter in ((1, "SYSVOL"), (4, "D")):
        store.client("good").backup(disk, number, letter)
    image = store.client("good").backup(disk, 3, mbr=with_gpt(disk, replace(gpt, table=broken)))
    listed = json.loads(scope.synthfs("list", store.root, "--json").stdout)
    assert any("backup GPT" in line for one in listed["disks"] if one["image"].endswith(image.raw.name)
               for line in [note["text"] for note in one["notes"]])  # fmt: skip
    assert read_right(scope, scope.synthfs_mount(store.root) / GOOD, disk)


def test_others_are_served(scope: Scope, junkyard: Junkyard) -> None:
    """With all that beside it, the good disk is mounted byte for byte, and what is left of the bad ones can be read."""
    target = scope.synthfs_mount(junkyard.root)
    assert read_right(scope, target / GOOD, junkyard.disk)
    source = """
target, original, start = arguments[0], opened(arguments[1]), int(arguments[2])
wanted = os.pread(original, 1 << 20, start)
wrong = []
for client in os.listdir(target):
    disk = os.path.join(target, client, 'Image_C_260301-0201.vhd')
    if client.startswith('liar') or os.path.exists(disk):
        with open(disk, 'rb') as file:
            if wanted not in file.read(4 << 20) and os.pread(file.fileno(), len(wanted), start) != wanted:
                wrong.append(client)
answer(wrong)
"""
    start = junkyard.disk.partition(3).start
    assert ask(scope, source, target, junkyard.disk.path, str(start), timeout=60) == []


def test_materialize_says_why_not(scope: Scope, junkyard: Junkyard) -> None:
    """Asked for a bad image by name, `materialize` answers with one line that names it, and leaves nothing."""
    for kind in ("raw of 100 bytes", "FIFO for raw", "link for raw"):
        image, out = junkyard.bad[kind], scope.path("out")
        done = scope.synthfs("materialize", image.raw, "-o", out, check=False)
        assert (done.returncode, len(done.stderr.splitlines()), list(out.iterdir())) == (3, 1, [])
        assert image.raw.name in done.stderr


def test_unreadable(scope: Scope) -> None:
    """What another user may not read is one line each for that user, and hides nothing else."""
    need.root()
    disk = sampledisks.two_volume_disk(scope.path() / "original.img")
    store = Store(scope.path("store") / "urbackup")
    images = {name: store.client(name).backup(disk, 1) for name in ("good", "client", "directory", "raw", "mbr")}
    for image in images.values():
        image.directory.parent.chmod(0o755)
        for file in image.directory.iterdir():
            file.chmod(0o644)
    closed = {
        "client": images["client"].directory.parent,
        "directory": images["directory"].directory,
        "raw": images["raw"].raw,
        "mbr": images["mbr"].sidecar(".mbr"),
    }
    for path in closed.values():
        path.chmod(0)
    done = scope.synthfs("list", store.root, "--all", "--json", user="nobody")
    listed = json.loads(done.stdout)
    for client, path in closed.items():
        (line,) = remarks(listed, client)
        assert str(path.relative_to(store.root)) in line
        assert "Permission denied" in line
    assert [one["client"] for one in listed["disks"]] == ["good", "mbr"]
    assert remarks(listed, "good") == []
