"""Input that lies: whatever a client sends or a store holds, the tool answers at once, with a disk or one clear line.

Not for: the laws of plans (fuzz_target, test_layout) or honest kinds of disks (test_kinds). Units: bytes, seconds.
Source of the rule for names: Microsoft, "Naming Files, Paths, and Namespaces"; it is written down anew here.
"""

import json
import os
import random
import re
import socket
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import handmade
import makeimage
import makembr
import need
from handmade import HEADER, MIB, Slot, sidecar_bytes
from lab import Lab, Scope
from makembr import GptCopy
from onmount import PRELUDE, ask
from processes import Argument

STAMP = "260301-0201"
LENGTH = 4 * MIB
DISK = 64 * MIB // 512
MARK = 4096
SECONDS, MEMORY = 0.1, 64 * MIB


def plant(client: bytes, letter: bytes = b"C", *, mbr: bytes | None = None, boot: bytes = b"", length: int = LENGTH) -> bytes:
    """An image below a client's directory; returns the bytes at MARK of its volume, which no other image has."""
    directory = os.path.join(client, f"{STAMP}_Image_".encode() + letter)
    os.makedirs(directory)
    raw = os.path.join(directory, b"Image_" + letter + f"_{STAMP}.raw".encode())
    mark = random.Random(raw).randbytes(64)
    with open(raw, "xb") as file:
        file.truncate(HEADER + length)
        file.write(makeimage.fake_mbr(length, 1))
        file.seek(HEADER)
        file.write(boot)
        file.seek(HEADER + MARK)
        file.write(mark)
    if mbr is not None:
        Path(os.fsdecode(raw + b".mbr")).write_bytes(mbr)
    Path(os.fsdecode(raw + b".sync")).touch()
    return mark


def listed(scope: Scope, store: Path, *options: str, user: str | None = None) -> Any:
    """`list --json --all` of a store, which must not take long."""
    done = scope.synthfs("list", "--json", "--all", *options, store, timeout=20, user=user)
    return json.loads(done.stdout)


@pytest.fixture
def store(scope: Scope) -> Path:
    return scope.path("urbackup")


# -- hostile .mbr


HEADER_FIELDS = {"own": (24, "<Q"), "other": (32, "<Q"), "at": (72, "<Q"), "count": (80, "<I"), "size": (84, "<I")}
"""Offset and form in a GPT header (UEFI 2.10, section 5.3)."""


def gpt(*slots: Slot, entries: int = 128, entry_size: int = 128, **lies: int) -> GptCopy:
    """Both copies of a table; `lies` replace fields of both headers, which have right checksums all the same."""
    honest = handmade.gpt(DISK, *slots, count=entries, size=entry_size)

    def lying(raw: bytes) -> bytes:
        out = bytearray(raw)
        for name, value in lies.items():
            offset, form = HEADER_FIELDS[name]
            struct.pack_into(form, out, offset, value)
        struct.pack_into("<I", out, 16, 0)
        struct.pack_into("<I", out, 16, zlib.crc32(out[:92]))
        return bytes(out)

    return replace(honest, header=lying(honest.header), backup_header=lying(honest.backup_header))


GOOD = Slot(1, 2048, 2047 + LENGTH // 512)


def sidecar(copy: GptCopy, number: int = 1) -> bytes:
    return sidecar_bytes(number, handmade.protective(DISK), copy)


def patched(field: int, form: str, value: int) -> bytes:
    """An honest `.mbr` with the number at `field` replaced."""
    raw = bytearray(sidecar(gpt(GOOD)))
    struct.pack_into(form, raw, field, value)
    return bytes(raw)


def positions(header: int, table: int, backup_header: int, backup_table: int) -> bytes:
    old = gpt(GOOD)
    first = header, old.header, table, old.table
    return sidecar(GptCopy(*first, backup_header, old.backup_header, backup_table, old.backup_table))


def mbr(*entries: tuple[int, int, int], extra: bytes = b"", number: int = 1) -> bytes:
    return sidecar_bytes(number, handmade.record(*entries)) + extra


FAR = 2**64 - 1
NUMBER_AT, SERIAL_AT = 6, 10
HOSTILE: dict[str, bytes] = {
    **{f"{n} entries": sidecar(gpt(GOOD, count=n)) for n in (0, 1025, 2**31, 2**32 - 1)},
    **{f"entries of {n} bytes": sidecar(gpt(GOOD, size=n)) for n in (0, 1, 127, 129, 2**32 - 1)},
    **{f"table at LBA {n}": sidecar(gpt(GOOD, at=n)) for n in (0, 1, 2040, 2048, DISK - 1, 2**55, 2**63, FAR)},
    **{f"last LBA {n}": sidecar(gpt(GOOD, own=1, other=n)) for n in (0, 2, 33, 2**55, 2**63, FAR)},
    **{f"own LBA {n}": sidecar(gpt(GOOD, own=n)) for n in (0, 2, 2**63, FAR)},
    "both copies at LBA 1": sidecar(gpt(GOOD, own=1, other=1)),
    "overlapping partitions": sidecar(gpt(GOOD, Slot(2, 4000, 20000))),
    "one partition twice": sidecar(gpt(GOOD, Slot(2, GOOD.first, GOOD.last))),
    "first after last": sidecar(gpt(Slot(1, 4000, 2048))),
    "partition at LBA 0": sidecar(gpt(Slot(1, 0, 20000))),
    "partition over the table": sidecar(gpt(Slot(1, 2, 20000))),
    "partition to the end": sidecar(gpt(Slot(1, 2048, DISK - 1))),
    "partition past the end": sidecar(gpt(Slot(1, 2048, DISK + 2048))),
    "partition of all LBAs": sidecar(gpt(Slot(1, 0, FAR))),
    "partition at LBA 2^63": sidecar(gpt(Slot(1, 2**63, 2**63 + 20000))),
    "every entry used": sidecar(gpt(*(Slot(n, 2048, 20000) for n in range(1, 129)))),
    "position -1": positions(-1, -1, -1, -1),
    "position 2^63-1": positions(2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1),
    "sectors of 0 bytes": positions(0, 0, 0, 0),
    "sectors of 1 byte": positions(1, 2, 1, 2),
    "version 2": b"\1\2" + sidecar(gpt(GOOD))[2:],
    "version 255": b"\1\xff" + sidecar(gpt(GOOD))[2:],
    "string of 100 MiB": patched(SERIAL_AT, "<I", 100 * MIB),
    "string of 4 GiB": patched(SERIAL_AT, "<I", 2**32 - 1),
    "one byte": b"\1",
    "zeroes": bytes(40000),
    "ones": b"\xff" * 40000,
    "longer than any": sidecar(gpt(GOOD)).ljust(100 * MIB, b"\1"),
    "overlapping MBR partitions": mbr((7, 2048, 20000), (7, 4000, 20000)),
    "MBR partition at LBA 0": mbr((7, 0, 20000)),
    "extra data of 2^64 bytes": mbr((7, 2048, 20000), extra=b"\x84\0" + b"\xff" * 9),
    "extra data in half": mbr((7, 2048, 20000), extra=b"\x84\0\x81\xfc\0" + bytes(9)),
}
"""Lies that leave no disk to believe in: each gives the volume alone."""

HARMLESS: dict[str, bytes] = {
    "honest": sidecar(gpt(GOOD)),
    "number -2^31": patched(NUMBER_AT, "<i", -(2**31)),
    "number 2^31-1": patched(NUMBER_AT, "<i", 2**31 - 1),
    "device -2^31": patched(2, "<i", -(2**31)),
    "1024 entries": sidecar(gpt(GOOD, entries=1024)),
    "1024 entries, all used": sidecar(
        handmade.gpt(2**24, *(Slot(n, 8192 * n, 8192 * n + 8191) for n in range(1, 1025)), count=1024)
    ),
    "entries of 512 bytes": sidecar(gpt(GOOD, entry_size=512)),
    "MBR to the last LBA": mbr((7, 2048, 2**32 - 1)),
    "extra data at 2^64-1": mbr((7, 2048, 20000), extra=b"\xff" * 9 + b"\4abcd"),
    "extra data over a partition": mbr((7, 2048, 20000), extra=b"\xc0\0\4abcd"),
    "extra data over the record": mbr((7, 2048, 20000), extra=b"\0\4abcd"),
}
"""Strange numbers that leave one to believe in, or for which another witness is found: the volume is on it."""

# What `mount` does with a store before it serves is measured for one after another; new identities are made at open.
MEASURE = """
import resource
from synthfs.plan.garden import Gardener
from synthfs.plan.tree import File, walk
from synthfs.survey import survey

def plan(store):
    began = time.process_time()
    files = [(path, node) for path, node in walk(Gardener().grow(survey(store)).root) if isinstance(node, File)]
    maps = [node.extent_map() for path, node in files if "new-identity" not in path]
    took = time.process_time() - began
    maps += [node.extent_map() for path, node in files if "new-identity" in path]
    return took

plan(arguments[0])
with open('/proc/self/statm') as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(arguments[1]), now + int(arguments[1])))
answer([plan(store) for store in arguments[2:]])
"""


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


@dataclass(frozen=True, slots=True)
class Lies:
    """A store of its own for each `.mbr`, and one with all of them, a client each."""

    scope: Scope
    together: Path
    apart: dict[str, Path]
    marks: dict[str, bytes]


@pytest.fixture(scope="module")
def lies(lab: Lab) -> Iterator[Lies]:
    with lab.scope("lies") as scope:
        together, single = scope.path("urbackup"), scope.path("single")
        marks, apart = {}, {}
        for name, raw in (HOSTILE | HARMLESS).items():
            marks[name] = plant(os.fsencode(together / slug(name)), mbr=raw)
            apart[name] = single / slug(name)
            apart[name].mkdir()
            os.rename(together / slug(name), apart[name] / "pc")
            scope.run(["cp", "-a", "--sparse=always", apart[name] / "pc", together / slug(name)])
        yield Lies(scope, together, apart, marks)


class TestSidecar:
    def test_time_and_memory(self, lies: Lies) -> None:
        """Each takes at most 100 ms of a processor, and all of them together less than 64 MiB."""
        names, stores = list(lies.apart), list(lies.apart.values())
        argv: list[Argument] = [sys.executable, "-c", PRELUDE + MEASURE, lies.apart["honest"], str(MEMORY), *stores]
        took = json.loads(lies.scope.run(argv, timeout=30).stdout)
        assert max(took) > 0
        assert {name: seconds for name, seconds in zip(names, took, strict=True) if seconds > SECONDS} == {}

    def test_outcome(self, lies: Lies) -> None:
        """A lie gives the volume alone, with one line that says what was wrong; no other number costs it its place."""
        facts = {disk["client"]: disk for disk in listed(lies.scope, lies.together)["disks"]}
        assert len(facts) == len(HOSTILE | HARMLESS)
        for name in HOSTILE:
            disk = facts[slug(name)]
            assert [p["start"] for p in disk["partitions"]] == [HEADER], name
            (note,) = [note["text"] for note in disk["notes"] if note["warning"]]
            assert ".mbr" in note, name
            assert len(note) < 400, name
        for name in HARMLESS:
            places = [p["start"] for p in facts[slug(name)]["partitions"] if p["content"] == "image"]
            assert places in ([2048 * 512], [8192 * 512]), name

    def test_long_text(self, scope: Scope, store: Path) -> None:
        """A name of a megabyte does not become a note of a megabyte."""
        raw = makembr.mbr_bytes(
            version=1,
            device_number=0,
            partition_number=1,
            serial="s" * 900_000,
            volume_name="LINUX:/dev/sda1",
            filesystem="ext4",
            mbr_data=handmade.protective(DISK),
            gpt=gpt(GOOD),
        )
        plant(os.fsencode(store / "pc"), mbr=raw, boot=handmade.ext_boot())
        (disk,) = listed(scope, store)["disks"]
        (note,) = disk["notes"]
        assert "the recorded id is sss" in note["text"]
        assert len(note["text"]) < 400

    def test_bytes(self, lies: Lies) -> None:
        """What is served is the volume at the place that is told, for every one of them."""
        need.fuse()
        facts = listed(lies.scope, lies.together)["disks"]
        # As bare disks: one of them is of 2 TiB, which is no VHD.
        target = lies.scope.synthfs_mount(lies.together, "--format", "raw")
        wanted = {
            f"{d['client']}/{kind}Image_C_{STAMP}.img": p["start"]
            for d in facts
            for p in d["partitions"]
            for kind in ("", "new-identity/")
            if p["content"] == "image"
        }
        source = """
wanted = json.loads(arguments[1]).items()
answer([os.pread(opened(os.path.join(arguments[0], path)), 64, at + 4096).hex() for path, at in wanted])
"""
        found = ask(lies.scope, source, target, json.dumps(wanted))
        marks = {slug(name): mark.hex() for name, mark in lies.marks.items()}
        assert dict(zip(wanted, found, strict=True)) == {path: marks[path.split("/")[0]] for path in wanted}
        assert len(wanted) == 2 * len(facts)


# -- boot sectors

def _boot(**changes: tuple[int, str, int]) -> bytes:
    raw = bytearray(handmade.ntfs_boot(LENGTH - 512, 2048))
    for offset, form, value in changes.values():
        struct.pack_into(form, raw, offset, value)
    return bytes(raw)


EXFAT = b"\xeb\x76\x90EXFAT   ".ljust(64, b"\0") + struct.pack("<QQ", FAR, FAR)
BOOTS = {
    "NTFS of 2^63 sectors": _boot(total=(40, "<Q", 2**63)),
    "NTFS of 2^64-1 sectors": _boot(total=(40, "<Q", FAR)),
    "NTFS of no sector": _boot(total=(40, "<Q", 0)),
    "NTFS with sectors of 0 bytes": _boot(size=(11, "<H", 0)),
    "NTFS with sectors of 4096 bytes": _boot(size=(11, "<H", 4096)),
    "NTFS at hidden sector 2^32-1": _boot(hidden=(28, "<I", 2**32 - 1)),
    "NTFS that ends before its image": _boot(total=(40, "<Q", 8)),
    "NTFS one sector too long": _boot(total=(40, "<Q", LENGTH // 512)),
    "FAT of no sector": b"\xeb\x3c\x90MSDOS5.0\0\2\1\1\0\2" + bytes(3) + b"\0\0\xf8" + bytes(487) + b"\x55\xaa",
    "exFAT of 2^64-1 sectors": EXFAT.ljust(108, b"\0") + b"\xff" + bytes(401) + b"\x55\xaa",
    "ones": b"\xff" * 4096,
}


@pytest.mark.parametrize("placed", [False, True], ids=["alone", "in its place"])
def test_boot_sectors(scope: Scope, store: Path, placed: bool) -> None:
    """Whatever a boot sector says of its volume, the served bytes are the image's, and it ends where the image ends."""
    need.fuse()
    mbr_bytes = sidecar(gpt(Slot(1, 2048, 2047 + LENGTH // 512 + 8))) if placed else None
    for name, boot in BOOTS.items():
        plant(os.fsencode(store / slug(name)), mbr=mbr_bytes, boot=boot[:MARK])
    # As bare disks: one of them has sectors of 4096 bytes, and is no VHD.
    target = scope.synthfs_mount(store, "--format", "raw")
    at = 2048 * 512 if placed else HEADER
    source = """
for client in sorted(os.listdir(arguments[1])):
    raw = f'{arguments[1]}/{client}/260301-0201_Image_C/Image_C_260301-0201.raw'
    disk = f'{arguments[0]}/{client}/Image_C_260301-0201.img'
    length = os.stat(raw).st_size - 524288
    a, b = os.pread(opened(raw), length, 524288), os.pread(opened(disk), length, int(arguments[2]))
    assert a == b, client
answer(len(os.listdir(arguments[1])))
"""
    assert ask(scope, source, target, store, str(at)) == len(BOOTS)


# -- names

NAMES = [
    *(b"plain", b"caf\xc3\xa9", b"cafe\xcc\x81", b"PC", b"pc", b"Pc", b"STRASSE", b"stra\xc3\x9fe"),
    *(b"CON", b"con.txt", b"Aux ", b"nul.", b"COM1", b"com\xc2\xb9", b"LPT9.x.y", b"conin$", b"prn .txt", b"COM10"),
    *(b"dot.", b"dots...", b"space ", b" lead", b"dot. ", b"...", b"a:b", b"a_b", b'q"<>|?*\\', b"a:Zone.Identifier:$DATA"),
    *(b"esc\x1b[31m", b"line\nbreak", b"tab\t", b"del\x7f", b"c1\xc2\x9b", b"bell\x07", b"\x01"),
    *(b"\xff\xfe", b"bad\xc3", b"bad\xe2\x82", b"\xed\xa0\x80", b"right\xe2\x80\xaeleft", b"\xef\xbf\xbf"),
    *(b"x" * 255, b"X" * 255, "\u00e9".encode() * 127, "\U0001f600".encode() * 63),
    *(b"y" * 254 + b".", b"z" * 250 + b"\xff" * 5, b"desktop.ini", b"~", b"PROGRA~1", b"-rf", b"%s"),
    *(b"README.txt", b"readme.TXT", b".synthfs", b".SYNTHFS", b"new-identity"),
]
LETTERS = [b"C", b"c", b"new-identity", b"a:", b"x ", b"\xff", b"e\x1b[2J", b"n\n", b"l" * 200, b"_dev_sda1", b"SYSVOL.", b".."]
NUMBERED = (f"{device}{number}" for device in ("COM", "LPT") for number in "0123456789\u00b9\u00b2\u00b3")
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *NUMBERED}


def accepted(name: bytes) -> bool:
    """Whether Windows takes it for the name of a file that can be opened."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if not 0 < len(text.encode("utf-16-le")) // 2 <= 255 or re.search(r'[\x00-\x1f<>:"/\\|?*]', text):
        return False
    return not text.endswith((".", " ")) and text.partition(".")[0].rstrip(" ").upper() not in RESERVED


TREE = """
found = {}
for top, _, files in os.walk(os.fsencode(arguments[0])):
    for name in files:
        path = os.path.join(top, name)
        if name.endswith(b'.vhd'):
            found[os.path.relpath(path, os.fsencode(arguments[0])).hex()] = os.pread(opened(path), 64, 528384).hex()
answer(found)
"""


class TestNames:
    @pytest.fixture
    def served(self, scope: Scope, store: Path) -> tuple[Path, dict[str, list[str]], dict[str, str]]:
        """The store, client and volume of every mark, and the mark of every file that is served."""
        need.fuse()
        marks: dict[str, list[str]] = {}
        for name in NAMES:
            mark = plant(os.path.join(os.fsencode(store), name))
            marks[mark.hex()] = [name.hex(), "C"]
        for letter in LETTERS:
            marks[plant(os.fsencode(store / "plain2"), letter).hex()] = ["plain2", letter.hex()]
        return store, marks, ask(scope, TREE, scope.synthfs_mount(store))

    def test_all_are_reachable(self, served: tuple[Path, dict[str, list[str]], dict[str, str]]) -> None:
        """Each image has its file, under both identities, and no file shows another one's bytes."""
        _, marks, files = served
        plain = {path: mark for path, mark in files.items() if b"/new-identity/" not in bytes.fromhex(path)}
        renewed = {path: mark for path, mark in files.items() if path not in plain}
        assert sorted(plain.values()) == sorted(marks)
        assert sorted(renewed.values()) == sorted(marks)
        assert {path.replace(b"/new-identity/".hex(), b"/".hex()): mark for path, mark in renewed.items()} == plain

    def test_windows_accepts_all(self, served: tuple[Path, dict[str, list[str]], dict[str, str]]) -> None:
        """No name that Windows refuses, none that it takes for a device or a stream, and no two that it takes for one."""
        _, _, files = served
        paths = [bytes.fromhex(path).split(b"/") for path in files]
        assert [name for path in paths for name in path if not accepted(name)] == []
        for fold in (str.upper, str.lower, str.casefold):
            assert len({fold("/".join(name.decode() for name in path)) for path in paths}) == len(paths)
            clients = {path[0].decode() for path in paths} | {"README.txt", ".synthfs"}
            assert len({fold(client) for client in clients}) == len(NAMES) + 3

    def test_good_names_stay(self, served: tuple[Path, dict[str, list[str]], dict[str, str]]) -> None:
        """A name that needs no change is shown as it is."""
        clients = {bytes.fromhex(path).split(b"/")[0] for path in served[2]}
        for name in (b"plain", b" lead", b"COM10", b"desktop.ini", b"PROGRA~1", b"-rf", b"%s", b"~"):
            assert name in clients

    def test_stable(self, scope: Scope, served: tuple[Path, dict[str, list[str]], dict[str, str]]) -> None:
        """Another scan, and a new client that is nobody's twin, change no name."""
        store, _, files = served
        assert ask(scope, TREE, scope.synthfs_mount(store)) == files
        plant(os.fsencode(store / "another"))
        again = ask(scope, TREE, scope.synthfs_mount(store))
        assert {path: again[path] for path in files} == files
        assert len(again) == len(files) + 2

    def test_tag_cannot_be_taken(self, scope: Scope, store: Path) -> None:
        """A client that is called what another one's changed name is does not hide it, nor is hidden."""
        plant(os.fsencode(store / "pc"))
        plant(os.fsencode(store / "PC"))
        first = {bytes.fromhex(path).split(b"/")[0] for path in ask(scope, TREE, scope.synthfs_mount(store))}
        for name in first:
            plant(os.path.join(os.fsencode(store), name))
        files = ask(scope, TREE, scope.synthfs_mount(store))
        assert len(files) == len(set(files)) == 2 * (2 + len(first))
        assert len(set(files.values())) == 2 + len(first)
        assert len({bytes.fromhex(path).split(b"/")[0].lower() for path in files}) == 2 + len(first)


# -- what is no file

def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    os.mknod(path, 0o644 | stat.S_IFCHR, os.makedev(1, 5))


def _block_device(path: Path) -> None:
    os.mknod(path, 0o644 | stat.S_IFBLK, os.makedev(7, 0))


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    # A socket's name has at most 108 bytes.
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _directory(path: Path) -> None:
    path.mkdir()


NODES: dict[str, Callable[[Path], None]] = {
    "fifo": _fifo,
    "device": _device,
    "block-device": _block_device,
    "socket": _socket,
    "symlink": _symlink,
    "loop": _loop,
    "directory": _directory,
}


class TestNodes:
    """One client has an honest image; it is offered whatever lies around it."""

    def test_in_place_of_a_raw(self, scope: Scope, store: Path) -> None:
        """Nothing but a regular file is opened for one; each is named with a reason, and the scan does not wait."""
        need.root()
        plant(os.fsencode(store / "honest"))
        for name, make in NODES.items():
            plant(os.fsencode(store / name))
            (raw,) = (store / name).glob("*/*.raw")
            raw.unlink()
            make(raw)
        facts = listed(scope, store)
        assert [disk["client"] for disk in facts["disks"]] == ["honest"]
        reasons = {one["client"]: one["reason"] for one in facts["not_offered"]}
        assert reasons.keys() == NODES.keys()
        words = {"symlink": "is a symbolic link", "loop": "is a symbolic link"}
        assert [n for n, reason in reasons.items() if words.get(n, "is no regular file") not in reason] == []

    def test_in_place_of_a_sidecar(self, scope: Scope, store: Path) -> None:
        """Whatever stands in an `.mbr`'s place is not read: the volume is alone, and the note says why."""
        need.root()
        for name, make in NODES.items():
            plant(os.fsencode(store / name))
            (raw,) = (store / name).glob("*/*.raw")
            make(raw.with_name(f"{raw.name}.mbr"))
        disks = listed(scope, store)["disks"]
        assert {disk["client"] for disk in disks} == NODES.keys()
        for disk in disks:
            (note,) = disk["notes"]
            assert f"Image_C_{STAMP}.raw.mbr" in note["text"]

    def test_in_place_of_a_directory(self, scope: Scope, store: Path) -> None:
        """A symbolic link in place of an image directory is followed; where it leads nowhere, that is told."""
        need.root()
        elsewhere = scope.path("dataset")
        plant(os.fsencode(elsewhere), b"Z")
        client = store / "pc"
        client.mkdir()
        (client / f"{STAMP}_Image_Z").symlink_to(elsewhere / f"{STAMP}_Image_Z")
        for number, (_, make) in enumerate((name, make) for name, make in NODES.items() if name != "directory"):
            make(client / f"26030{number + 2}-0201_Image_C")
        (client / "260309-0201_Image_C").touch()  # as with ZFS, before the dataset is there
        facts = listed(scope, store)
        assert [disk["volume"] for disk in facts["disks"]] == ["Z"]
        assert len(facts["not_offered"]) == len(NODES) - 1
        assert {one["reason"] for one in facts["not_offered"]} == {"is no directory, and leads to none"}

    def test_in_place_of_a_client(self, scope: Scope, store: Path) -> None:
        """A symbolic link in place of a client's directory is not followed; other things are no clients."""
        need.root()
        plant(os.fsencode(scope.directory / "outside"))
        (store / "linked").symlink_to(scope.directory / "outside")
        for name, make in NODES.items():
            make(store / name)
        facts = listed(scope, store)
        assert facts["disks"] == []
        assert {one["name"]: one["reason"] for one in facts["not_offered"]} == dict.fromkeys(
            ("linked", "loop", "symlink"), "is a symbolic link; only those of image directories are followed"
        )

    def test_hard_links(self, scope: Scope, store: Path) -> None:
        """Where others can write, a `.raw` with a second name may be anybody's file: not offered, with that reason."""
        plant(os.fsencode(store / "linked"))
        (raw,) = (store / "linked").glob("*/*.raw")
        raw.parent.chmod(0o775)
        os.link(raw, scope.path("elsewhere") / "secret")
        facts = listed(scope, store)
        assert facts["disks"] == []
        assert "hard link" in facts["not_offered"][0]["reason"]

    def test_unreadable(self, scope: Scope, store: Path) -> None:
        """Files and directories that this user may not read are told with that reason; the rest is offered."""
        need.root()
        for name in ("honest", "raw", "mbr", "directory", "client"):
            plant(os.fsencode(store / name), mbr=sidecar(gpt(GOOD)))
        (raw,) = (store / "raw").glob("*/*.raw")
        (mbr_file,) = (store / "mbr").glob("*/*.mbr")
        (directory,) = (store / "directory").iterdir()
        for path in (raw, mbr_file, directory, store / "client"):
            path.chmod(0)
        facts = listed(scope, store, user="nobody")
        assert {disk["client"] for disk in facts["disks"]} == {"honest", "mbr"}
        assert {one["client"] for one in facts["not_offered"]} == {"raw", "directory", "client"}
        said = [one["reason"] for one in facts["not_offered"]]
        said += [n["text"] for disk in facts["disks"] for n in disk["notes"] if disk["client"] == "mbr"]
        assert sum("Permission denied" in text for text in said) == 4

    def test_far_times(self, scope: Scope) -> None:
        """A file from the year 3,170,843 or from before 1970 breaks nothing."""
        store = scope.btrfs(256 * MIB) / "urbackup"
        for number, seconds in enumerate((10**14, -(10**11), 2**62)):
            plant(os.fsencode(store / f"pc{number}"))
            (raw,) = (store / f"pc{number}").glob("*/*.raw")
            os.utime(raw, (0, seconds))
        assert len(listed(scope, store)["disks"]) == 3


# -- terminals

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08\n\u202e[/b][red]x:smile:"


class TestTerminal:
    @pytest.fixture
    def store(self, scope: Scope) -> Path:
        """Names and labels that act on a terminal, wherever a backed-up machine can put them."""
        store = scope.path("urbackup")
        label = ESCAPES.replace("/", "")[:30]
        slots = (Slot(1, 2048, 2047 + LENGTH // 512, name=label), Slot(2, 20480, 30000, handmade.LVM, name=label))
        plant(os.fsencode(store / ESCAPES.replace("/", "")), os.fsencode(ESCAPES.replace("/", "")), mbr=sidecar(gpt(*slots)))
        linux = makembr.mbr_bytes(
            version=1,
            device_number=0,
            partition_number=1,
            serial=ESCAPES,
            volume_name="LINUX:/dev/sda1",
            filesystem=ESCAPES,
            mbr_data=handmade.protective(DISK),
            gpt=gpt(*slots),
            message=ESCAPES,
        )
        plant(b"%b/other" % os.fsencode(store), mbr=linux, boot=handmade.ext_boot())
        plant(os.fsencode(store / ("gone" + ESCAPES.replace("/", ""))))
        next((store / ("gone" + ESCAPES.replace("/", ""))).glob("*/*.sync")).unlink()
        return store

    def test_shows_nothing_that_acts(self, scope: Scope, store: Path) -> None:
        """No output of `list`, `show` or an error has a control character, a turn of direction, or a second line in a name."""
        (raw,) = (store / ESCAPES.replace("/", "")).glob("*/*.raw")
        commands = [
            ("list", store),
            ("list", "--all", store),
            ("show", raw),
            ("show", "--extents", raw),
            ("show", "--volume-only", raw),
            ("show", next((store / "other").glob("*/*.raw"))),
            ("show", f"{store}/{ESCAPES}"),
            ("list", f"{store}/{ESCAPES}"),
            ("list", "--client", ESCAPES, store),
            ("materialize", "--dry-run", raw),
        ]
        for command in commands:
            done = scope.synthfs(*command, check=False, env={"FORCE_COLOR": ""})
            assert done.returncode in (0, 3, 7), done
            text = done.stdout + done.stderr
            assert "Traceback" not in text
            acting = [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2028")]
            assert acting == [], command

    def test_shows_names_as_they_are(self, scope: Scope, store: Path) -> None:
        """Brackets and colons in names are no markup: they are shown."""
        for client in ("[red]x", "b:smile:"):
            plant(os.fsencode(store / client))
        shown = "".join(scope.synthfs("list", store, env={"COLUMNS": "300"}).stdout.split())
        assert "[red]x" in shown
        assert "b:smile:" in shown

    def test_label_that_closes_a_tag(self, scope: Scope, store: Path) -> None:
        """A partition's name with a closing tag in it does not end the program."""
        slots = (GOOD, Slot(2, 20480, 30000, name="[/b]"))
        plant(os.fsencode(store / "tag"), mbr=sidecar(gpt(*slots)))
        done = scope.synthfs("show", next((store / "tag").glob("*/*.raw")), check=False)
        assert done.returncode == 0, done.stderr[-500:]
        assert "[/b]" in done.stdout
