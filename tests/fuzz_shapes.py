"""The fuzz target for what is no image: settings, what mounts say of themselves, control lines, attributes, records, caches.

`check(seed, directory)` tries one thing of each kind, made of an honest one: never a traceback, a hang or an undocumented
exit code, and one line where something is refused. test_shapes runs a few; `scripts/fuzz --shapes SECONDS` goes on and on.
The kernel's mount table and the look through a mount are replaced here: test_shapes has the real ones.
Not for: `.mbr` files and boot sectors (fuzz_target). Units: bytes, seconds.
"""

import copy
import json
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from inprocess import answer
from synthfs import samba
from synthfs.cli import sessions, sync
from synthfs.engines import session
from synthfs.errors import SynthfsError
from synthfs.extents import Source
from synthfs.host import control, holes, mounts, probe, state
from synthfs.host.state import Cache
from synthfs.urbackup import remembered

DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
PLACE, STORE, FILE = "/nowhere/served", "/nowhere/store", "pc/Image_C.vhd"
SESSION = {
    "path": FILE, "image": "pc/260301-0201_Image_C/Image_C_260301-0201.raw", "scratch": "/nowhere/scratch/x.vhd",
    "began_ns": 1772330460 * 10**9, "written_ns": 1772330461 * 10**9, "length": 1 << 26, "own_space": 4096, "generation": 0,
    "open": [1, 2], "backup": True,
}  # fmt: skip
STATUS = {
    "version": "0.1.0", "pid": 4711, "store": STORE, "database": None, "mountpoint": PLACE, "scratch": "/nowhere/scratch",
    "sessions": [SESSION], "open_handles": 0, "deleted_bytes_held": 0, "reads": 3, "read_bytes": 12345, "read_seconds": 0.5,
    "errors": 0, "bugs": 0, "disks": 2, "skipped": {"incomplete": 1}, "buckets": [0, 1, 2],
}  # fmt: skip
RECORD = {
    "store": {"identity": "abc", "database": True},
    "files": [{
        "place": "pc/Image_C.vhd", "client": "pc", "image": "pc/a/b.raw", "group": "g", "stamp": "260301-0201", "edition": "00",
        "images": 1, "size": 4096, "mtime_ns": 1, "rules": 1,
    }],
}  # fmt: skip
XATTR = {
    "path": FILE, "image": "pc/a/b.raw", "edition": "00" * 16, "disk_edition": "00" * 16, "generation": 0, "inode": 5,
    "length": 1 << 26, "mtime_ns": 1, "began_ns": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "mount": {"allow-other": True, "refresh": 300, "mode": "0440", "format": ["vhd", "raw"], "log_level": "info"},
    "sync": {"keep": 2, "min-free": "5%", "wait": 3.5, "client": "pc*"},
    "list": {"json": True},
}

VERBS = (
    ("status",), ("status", "--json"), ("sessions", PLACE), ("sessions", PLACE, "--json"), ("share", PLACE),
    ("share", PLACE, "--json"), ("share", PLACE, "--writable", "bob"), ("discard", f"{PLACE}/{FILE}"),
    ("keep", f"{PLACE}/{FILE}"), ("show", f"{PLACE}/{FILE}"), ("umount", PLACE),
)  # fmt: skip

TEXTS = (
    b"", b"\0", b"null", b"[]", b"5", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b"NaN", b"1e400", b"-Infinity",
    b"1" * 10_000, b'{"pid": 1' + b"0" * 6000 + b"}", b'"\\ud800"', b"{" + b'"a": 1,' * 10_000 + b'"b": 2}',
)  # fmt: skip
MARKS = (
    b"0x220\0", b"0x20\0\0\x05\0\0\0\x11\0\0\0\x20\x02\0\0", b"0x", b"0xzz", b"0x" + b"f" * 60_000, b"0x1_0", b"-0x1",
    b"\0" * 30, b"",
)  # fmt: skip


def odd(dice: random.Random) -> Any:
    deep: Any = 1
    for _ in range(dice.choice((3, 60, 300))):
        deep = [deep] if dice.random() < 0.5 else {"a": deep}
    return dice.choice((
        None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**4000, "", "a", "a\0b", "\ud800", "\udcff",
        "a" * 5000, "../../../etc/passwd", "/", "\x1b]0;x\a\n", "1", [], {}, [[]], [None], [1] * 1000, {"": None}, deep,
    ))  # fmt: skip


def spoiled(value: Any, dice: random.Random) -> Any:
    """The value with one to three of its parts replaced, left out or doubled."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        at, key = value, None
        while isinstance(at, (dict, list)) and at:
            into = dice.choice([*at] if isinstance(at, dict) else range(len(at)))
            if key is not None and dice.random() < 0.3:
                break
            holder, key = at, into
            at = at[into]
        if key is None:
            return odd(dice)
        match dice.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(odd(dice))
            case _:
                holder[key] = odd(dice)
    return value


def text(value: Any, dice: random.Random) -> bytes:
    """JSON of a spoiled value, or what is hardly JSON at all."""
    if dice.random() < 0.15:
        return dice.choice(TEXTS)
    raw = bytearray(json.dumps(spoiled(value, dice)).encode())
    if dice.random() < 0.2:
        for _ in range(dice.randint(1, 4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
    return bytes(raw[: dice.randrange(len(raw))] if dice.random() < 0.1 else raw)


def toml(value: Any) -> str:
    """A value as TOML has it, as far as it has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "nan" if value is None else json.dumps(value, ensure_ascii=False)


def check(seed: int, directory: Path) -> None:
    """Raises AssertionError, or whatever else escapes; `directory` takes attributes of files."""
    dice = random.Random(seed)
    _status(dice)
    _settings(dice, directory)
    _control(dice)
    _attributes(dice, directory)
    _kept(dice, directory)


def _tell(words: tuple[str, ...], shape: object) -> None:
    code, _, said = answer(*words)
    assert code in DOCUMENTED, (words, shape, code, said)
    assert "Traceback" not in said, (words, shape, said)
    if code > 1:
        assert len(said.splitlines()) == 1, (words, shape, said)


@contextmanager
def _told(content: bytes) -> Iterator[None]:
    """One mount, whose every look is answered, and whose status is this."""

    def run(command: tuple[str, ...], limit: float) -> tuple[bytes, bytes]:
        return (content if command[0] == "head" else b"0\n"), b""

    rows = [mounts._Row(PLACE, "0:999", mounts.TYPE, STORE, ())]
    with mock.patch.object(probe, "_run", run), mock.patch.object(mounts, "_rows", return_value=rows):
        yield


def _status(dice: random.Random) -> None:
    content = text(STATUS, dice)
    with _told(content):
        for words in dice.sample(VERBS, 4):
            _tell(words, content[:1000])


def _settings(dice: random.Random, directory: Path) -> None:
    tables = spoiled(SETTINGS, dice)
    raw = f"{json.dumps('a')} = {toml(tables)}"
    if isinstance(tables, dict):
        raw = "\n".join(f"{json.dumps(str(verb))} = {toml(table)}" for verb, table in tables.items())
    content = bytearray(raw.encode("utf-8", "surrogatepass"))
    if dice.random() < 0.2 and content:
        content[dice.randrange(len(content))] = dice.randrange(256)
    path = directory / "settings.toml"
    path.write_bytes(content)
    _tell(("--config", str(path), "list", "/nowhere"), content[:1000])


def _control(dice: random.Random) -> None:
    """What answers a verb is what was found at the place that a mount named."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(text({"done": True, "scratch": "x.vhd", "path": FILE, "error": "no", "code": 9}, dice)[:60_000] + b"\n")
        theirs.shutdown(socket.SHUT_WR)
        line = control.Line(ours, "/nowhere", 5.0)
        with suppress(SynthfsError):
            found = sessions._ask(line, do="keep", path=FILE, force=False)
            session.source("/nowhere", found.get("scratch", ""))


def _attributes(dice: random.Random, directory: Path) -> None:
    mark = bytearray(dice.choice(MARKS))
    if mark and dice.random() < 0.5:
        mark[dice.randrange(len(mark))] = dice.randrange(256)
    assert samba.is_sparse_mark(bytes(mark)) in (True, False)
    file = directory / "file"
    file.touch()
    os.setxattr(file, session.ATTRIBUTE, text(XATTR, dice)[:2000])
    session._record(str(file))


def _kept(dice: random.Random, directory: Path) -> None:
    record = directory / "record.json"
    record.write_bytes(text(RECORD, dice))
    loaded = state.load(str(record))
    for each in sync._recorded(loaded, {}).values():
        os.path.lexists(f"/nowhere/{each.place}/{each.image}")
    file = directory / "file"
    at = file.stat()
    source = Source("file", str(file), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns)
    with mock.patch.dict(os.environ, {"CACHE_DIRECTORY": str(directory / "caches")}):
        lines = spoiled([["bytes", "AAAA"], ["images", ["pc/a/b.raw", "AA==", 0, 0, 0]]], dice)
        cache = Cache(remembered.PURPOSE, "/nowhere", remembered.VERSION)
        cache.save(lines if isinstance(lines, list) else [lines])
        remembered.unpack(cache.load())
        told = spoiled([[0, 0, 0], 4096, [0, 4096]], dice)
        holes._cache(source).save(told if isinstance(told, list) else [told])
        holes.known(source)


def main() -> None:
    """For as many seconds as the first argument says, from the seed that the second one says, or a new one."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**9)
    began, first = time.monotonic(), seed
    with TemporaryDirectory(prefix="synthfs-fuzz-", dir="/var/tmp") as directory:
        while time.monotonic() < began + seconds:
            print(f"\rseed {seed}", end="", file=sys.stderr)
            check(seed, Path(directory))
            seed += 1
    print(f"\n{seed - first} rounds from seed {first}, and nothing was found", file=sys.stderr)


if __name__ == "__main__":
    main()
