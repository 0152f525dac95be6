"""Are the tables of a disk sound? Those of original disks are; with one bit flipped, or one thing moved, they are not.

Not for: hashes and files (test_verify). Expected values: tables by sgdisk and sfdisk, the verdicts of `sgdisk -v`.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import crown
import handmade
import makembr
from lab import Lab, Scope
from makedisk import OriginalDisk
from processes import run
from synthfs.model import Fault, Finding
from synthfs.plan.check import check_disk, check_sidecar

SECTOR = 512
ENTRIES = 128 * 128


@pytest.fixture(scope="module")
def disks(lab: Lab) -> Iterator[dict[str, OriginalDisk]]:
    """The disks of the crowning test, which came from sgdisk, sfdisk and the mkfs tools."""
    with lab.scope("check") as scope:
        yield {name: sample.make(scope.path(name) / "original.img") for name, sample in crown.SAMPLES.items()}


def check(disk: bytes | bytearray | Path, length: int) -> list[Finding]:
    def read(offset: int, amount: int) -> bytes:
        if not isinstance(disk, Path):
            return bytes(disk[offset : offset + amount])
        with disk.open("rb") as file:
            file.seek(offset)
            return file.read(amount)

    return list(check_disk(length, SECTOR, read))


def bad(found: list[Finding]) -> list[str]:
    return [finding.where for finding in found if finding.fault is Fault.BAD_INPUT]


@pytest.fixture(scope="module")
def gpt(disks: dict[str, OriginalDisk]) -> bytes:
    """A whole GPT disk in memory."""
    return disks["two-volumes"].path.read_bytes()


@pytest.fixture(scope="module")
def mbr(disks: dict[str, OriginalDisk]) -> bytes:
    return disks["mbr"].path.read_bytes()


@pytest.mark.parametrize("name", crown.SAMPLES)
def test_an_original_disk_is_sound(disks: dict[str, OriginalDisk], name: str) -> None:
    """Nothing is wrong with a disk that partitioners and formatters have made, and nothing is noted."""
    disk = disks[name]
    if disk.scheme == "gpt":
        assert b"No problems found" in run(["sgdisk", "-v", disk.path]).stdout
    assert check(disk.path, disk.length) == []


def test_every_flipped_bit_of_a_gpt_is_found(gpt: bytes) -> None:
    """In either header, what follows it in its sector included, and in either table."""
    dice, spoiled = random.Random(20260304), bytearray(gpt)
    places = {"GPT": (SECTOR, 1024 + ENTRIES), "backup GPT": (len(gpt) - SECTOR - ENTRIES, len(gpt))}
    for copy, (start, end) in places.items():
        headers = range(start, start + 92) if copy == "GPT" else range(end - SECTOR, end - SECTOR + 92)
        for offset in (*headers, *(dice.randrange(start, end) for _ in range(150))):
            flip = 1 << dice.randrange(8)
            spoiled[offset] ^= flip
            found = bad(check(spoiled, len(gpt)))
            spoiled[offset] ^= flip
            assert any(where.startswith(copy) for where in found), f"{copy}, offset {offset}"
            assert not any(where.startswith("partition") for where in found)


def test_every_flipped_bit_of_a_captured_gpt_is_found(disks: dict[str, OriginalDisk]) -> None:
    """The same in an `.mbr`, whose bytes are the same and lie elsewhere."""
    disk, dice = disks["two-volumes"], random.Random(20260305)
    sidecar, copies = makembr.capture(disk, 1), makembr.GptCopy.read(disk.path)
    assert list(check_sidecar(sidecar)) == []
    for content in (copies.header, copies.table, copies.backup_header):
        start = sidecar.index(content) if content is not copies.table else sidecar.index(content, 512)
        for _ in range(100):
            spoiled = bytearray(sidecar)
            spoiled[start + dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            assert bad(list(check_sidecar(bytes(spoiled)))), "not found"
    for end in range(0, len(sidecar) - 4, 997):
        assert bad(list(check_sidecar(sidecar[:end])))


def test_captures_that_are_not_wrong(disks: dict[str, OriginalDisk]) -> None:
    """A client that could not read the backup GPT, and an MBR disk, are no findings."""
    assert list(check_sidecar(makembr.capture(disks["two-volumes"], 1, backup_readable=False))) == []
    assert list(check_sidecar(makembr.capture(disks["mbr"], 1))) == []
    assert list(check_sidecar(b"\x01\x64PK")) == []


def _entry(disk: bytearray, number: int, first: int, last: int) -> None:
    """Move a partition in both copies of a GPT, and mend all checksums."""
    for header in (SECTOR, len(disk) - SECTOR):
        (table,) = struct.unpack_from("<Q", disk, header + 72)
        struct.pack_into("<QQ", disk, table * SECTOR + (number - 1) * 128 + 32, first, last)
    _mend(disk)


def _mend(disk: bytearray) -> None:
    for header in (SECTOR, len(disk) - SECTOR):
        (table,) = struct.unpack_from("<Q", disk, header + 72)
        struct.pack_into("<I", disk, header + 88, zlib.crc32(disk[table * SECTOR : table * SECTOR + ENTRIES]))
        struct.pack_into("<I", disk, header + 16, 0)
        struct.pack_into("<I", disk, header + 16, zlib.crc32(disk[header : header + 92]))


def _other_backup(disk: bytearray) -> None:
    table = len(disk) - SECTOR - ENTRIES
    disk[table + 56 : table + 58] = b"X\0"
    _mend(disk)


def _same_guid(disk: bytearray) -> None:
    for table in (1024, len(disk) - SECTOR - ENTRIES):
        disk[table + 256 + 16 : table + 256 + 32] = disk[table + 16 : table + 32]
    _mend(disk)


def _set(offset: int, value: bytes) -> Callable[[bytearray], None]:
    def change(disk: bytearray) -> None:
        disk[offset : offset + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "where", "words"),
    [
        (lambda disk: _entry(disk, 1, 2048, 120_000), "partition 3", "overlaps partition 1"),
        (lambda disk: _entry(disk, 1, 20, 98_303), "partition 1", "usable"),
        (lambda disk: _entry(disk, 3, 100_352, 300_000), "partition 3", "past the end of the disk"),
        (lambda disk: _entry(disk, 3, 100_352, 100_000), "partition 3", "usable"),
        (lambda disk: _entry(disk, 1, 2048, 50_000), "partition 1", "NTFS says that it has"),
        (_other_backup, "backup GPT", "another table"),
        (_same_guid, "partition 1", "GUID"),
        (_set(450, b"\x07"), "boot record", "type ee"),
        (_set(510, b"\0\0"), "boot record", "55 aa"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_gpt_disk(
    gpt: bytes, scope: Scope, spoil: Callable[[bytearray], None], where: str, words: str
) -> None:
    """Each is named by its place and told in words; checksums alone would be content with all of them."""
    spoiled = bytearray(gpt)
    spoil(spoiled)
    found = check(spoiled, len(gpt))
    assert any(f.where == where and words in f.text for f in found if f.fault is Fault.BAD_INPUT), found


@pytest.mark.parametrize(
    ("spoil", "where", "words"),
    [
        (_set(462 + 8, struct.pack("<I", 2048)), "partition 2", "overlaps partition 1"),
        (_set(462 + 12, struct.pack("<I", 0x7FFFFFFF)), "partition 2", "past the end of the disk"),
        (_set(446 + 8, struct.pack("<I", 0)), "partition 1", "overlaps boot record"),
        (_set(446, b"\x01"), "boot record", "status 01"),
        (_set(462, b"\x80"), "boot record", "more than one"),
        (_set(450, b"\xee"), "GPT", "EFI PART"),
    ],
)
def test_what_is_wrong_with_an_mbr_disk(
    mbr: bytes, spoil: Callable[[bytearray], None], where: str, words: str
) -> None:
    spoiled = bytearray(mbr)
    spoiled[446] = 0x80
    spoil(spoiled)
    found = check(spoiled, len(mbr))
    assert any(f.where == where and words in f.text for f in found if f.fault is Fault.BAD_INPUT), found


def chained() -> bytearray:
    """A disk with two logical drives, each a MiB behind its record, without volumes."""
    disk = bytearray(32 * 2048 * SECTOR)
    disk[:SECTOR] = handmade.record((7, 2048, 2048), (0x0F, 4096, 20480))
    disk[4096 * SECTOR : 4097 * SECTOR] = handmade.record((7, 2048, 4096), (5, 8192, 6144), signature=0)
    disk[12288 * SECTOR : 12289 * SECTOR] = handmade.record((7, 2048, 4096), signature=0)
    return disk


RECORD_5, RECORD_6 = 4096 * SECTOR, 12288 * SECTOR


@pytest.mark.parametrize(
    ("at", "spoil", "where", "words"),
    [
        (RECORD_6, _set(510, b"\0\0"), "partition 2: extended boot record", "55 aa"),
        (RECORD_5, _set(462 + 8, struct.pack("<I", 0)), "partition 2: extended boot record", "overlaps"),  # a circle
        (RECORD_5, _set(462 + 8, struct.pack("<I", 0x7FFFFFFF)), "partition 2: extended boot record", "0 bytes"),
        (RECORD_6, _set(446 + 12, struct.pack("<I", 60000)), "partition 6", "lies outside partition 2"),
        (RECORD_5, _set(446 + 12, struct.pack("<I", 7000)), "partition 2: extended boot record", "overlaps partition 5"),
    ],
)
def test_what_is_wrong_with_logical_drives(at: int, spoil: Callable[[bytearray], None], where: str, words: str) -> None:
    """The chain of their records is followed, and everything in it looked at."""
    sound = chained()
    assert check(sound, len(sound)) == []
    sector = sound[at : at + SECTOR]
    spoil(sector)
    sound[at : at + SECTOR] = sector
    found = check(sound, len(sound))
    assert any(f.where == where and words in f.text for f in found if f.fault is Fault.BAD_INPUT), found


def test_where_a_logical_drive_says_that_it_begins() -> None:
    """Windows counts from the record in front of it, mkntfs from the start of the disk; a third place is worth a note."""
    for hidden, notes in ((2048, 0), (4096 + 2048, 0), (63, 1)):
        disk = chained()
        boot = handmade.ntfs_boot(4095 * SECTOR, hidden)[:SECTOR]
        for place in ((4096 + 2048) * SECTOR, (4096 + 2048 + 4095) * SECTOR):
            disk[place : place + SECTOR] = boot
        assert [(f.fault, f.where) for f in check(disk, len(disk))] == [(Fault.NOTE, "partition 5")] * notes


def test_what_is_worth_a_note(gpt: bytes, disks: dict[str, OriginalDisk]) -> None:
    """A boot sector that names another place, or a copy of it that differs: Windows reads such a volume."""
    c = disks["two-volumes"].partition(1)
    length = disks["two-volumes"].ntfs_length(1)
    for offset, words in ((c.start + 28, "LBA"), (c.start + length + 100, "chkdsk")):
        spoiled = bytearray(gpt)
        spoiled[offset] ^= 0x40
        (note, *more) = check(spoiled, len(gpt))
        assert (note.fault, note.where) == (Fault.NOTE, "partition 1")
        assert words in note.text + "".join(finding.text for finding in more)


def test_garbage_never_raises(gpt: bytes) -> None:
    """Whatever the bytes are, there is an answer."""
    dice = random.Random(20260306)
    for _ in range(300):
        spoiled = bytearray(gpt[: 64 * SECTOR])
        for _ in range(dice.randrange(1, 40)):
            spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
        if dice.random() < 0.5:
            struct.pack_into("<QQ", spoiled, SECTOR + 40, dice.getrandbits(64), dice.getrandbits(64))
            struct.pack_into("<I", spoiled, SECTOR + 16, 0)
            struct.pack_into("<I", spoiled, SECTOR + 16, zlib.crc32(spoiled[SECTOR : SECTOR + 92]))
        check(spoiled, len(gpt))
        list(check_sidecar(dice.randbytes(dice.randrange(400))))
