"""What goes out as text: no name of anybody acts on a terminal, makes another line, or means more to a shell than a word.

Every verb is walked on a terminal, with names, paths and configurations that are out to do just that; a verb that is not in
the table below fails. Not for: the log of a mount (test_log). Expected values: what Unicode calls printable (UAX 44, general
category), and what bash makes of a word.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import need
import sampledisks
import smbd
from lab import Lab, Scope
from makestore import Image, Store
from processes import Argument
from synthfs import samba
from synthfs.cli.main import BUG, VERBS, verb
from synthfs.errors import UnsupportedError
from synthfs.host.notify import notify
from synthfs.text import printable, quoted

EVIL = "e\x1b]0;owned\x07\x1b[31m\r\nFORGED [red]x\x9b2J\u202egpj\u2028\x85`id`$(id) 'q\"\x7f\udcff\udc9b"
"""Colours and titles, another line by every means, C1 as text and as bare bytes, right to left, markup, words for a shell."""

MOUNTED = "".join(c for c in EVIL if c not in "\r\x85\u2028")
"""The same, without what would end a line for other readers of the kernel's table of mounts, such as the tests' own ledger."""

DRIVER = r"""
import json, os, pty, select, sys, termios
lines, result = json.load(sys.stdin), os.fdopen(os.dup(1), 'w')
master, terminal = pty.openpty()
settings = termios.tcgetattr(terminal)
settings[1] &= ~termios.OPOST
termios.tcsetattr(terminal, termios.TCSANOW, settings)
for number in range(3):
    os.dup2(terminal, number)
sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w', buffering=1, errors='backslashreplace')
# What is made at import looks at the terminal, and takes most of the time.
import synthfs.cli.main, synthfs.cli.fstab
from importlib import import_module
for name in {where.split('.')[0] for where in synthfs.cli.main.VERBS.values()}:
    import_module('synthfs.cli.' + name)

def run(words):
    if words[:1] == ['BUG']:
        text = words[1]
        def fails(*arguments):
            raise ValueError(text)
        sys.modules['synthfs.cli.list'].look_at = fails
        words = ['list', '/']
    is_helper = words[:1] == ['FSTAB']
    sys.argv = ['synthfs', *words[is_helper:]]
    try:
        (synthfs.cli.fstab if is_helper else synthfs.cli.main).main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)
    os._exit(0)

def walked(words):
    "What a command line writes to a terminal, stdout and stderr together, and its exit code."
    process = os.fork()
    if process == 0:
        run(words)
    said, ended = b'', None
    while True:
        if select.select([master], [], [], 0 if ended else 0.02)[0]:
            said += os.read(master, 65536)
        elif ended:
            return said.hex(), os.waitstatus_to_exitcode(ended[1])
        elif (found := os.waitpid(process, os.WNOHANG))[0]:
            ended = found

json.dump([walked(words) for words in lines], result)
"""
COLOURS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What a progress bar and a table consist of."""


@dataclass(frozen=True, slots=True)
class World:
    """A store, a writable mount of it, and more, all of which have such names."""

    scope: Scope
    here: Path
    store: Store
    image: Image
    target: Path
    configuration: Path

    @property
    def file(self) -> Path:
        (client,) = (path for path in self.target.iterdir() if path.name.startswith("e"))
        return next(path for path in sorted(client.iterdir()) if path.suffix == ".vhd")

    def walk(self, *lines: tuple[Argument, ...], terminal: str = "dumb") -> list[tuple[bytes, int]]:
        """What each command line writes to a terminal, and its exit code. The terminal itself is in no need of escapes."""
        words = json.dumps([[os.fspath(word) for word in line] for line in lines])
        env = {"TERM": terminal, "COLUMNS": "100"}
        done = self.scope.run([sys.executable, "-c", DRIVER], input=words, env=env, cwd=self.here, timeout=120)
        return [(bytes.fromhex(said), code) for said, code in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def world(lab: Lab) -> Iterator[World]:
    need.root()
    need.fuse()
    need.tool("mkfs.btrfs", "btrfs", "testparm")
    with lab.scope("output") as scope:
        here = scope.btrfs() / MOUNTED
        for name in (EVIL, "scratch", "to", "disks"):
            (here / name).mkdir(parents=True)
        store = Store(here / "store")
        disk = sampledisks.two_volume_disk(scope.path() / "original.img")
        image = store.client(EVIL).backup(disk, 1, EVIL[:30], "260301-0201")
        store.client(EVIL).backup(disk, 3, "D")
        bad = store.client(f"{EVIL}bad").backup(disk, 1, "C", mbr=b"no such thing", sealed=False)
        bad.raw.write_bytes(b"short")
        (here / f"{EVIL}.db").write_text("no database")
        target = scope.synthfs_mount(store.root, "--writable", here / "scratch", target=here / "disks")
        configuration = here / f"{EVIL}.toml"
        configuration.write_text(f"[{json.dumps(printable(EVIL))}]\n")
        yield World(scope, here, store, image, target, configuration)


def check(said: bytes, code: int) -> None:
    """That it is lines of text that can be seen, none of which a name has begun, and no traceback."""
    lines = said.decode().split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if line.lstrip().startswith("FORGED")] == []
    assert (b"Traceback" in said) == (code == BUG), said.decode()
    assert code in (*range(13), BUG)


WALKS: dict[str, Callable[[World], list[tuple[Argument, ...]]]] = {
    "list": lambda world: [
        (world.store.root,), (world.store.root, "--all"), (world.store.root, "--all", "--json"), (EVIL,),
        (world.store.root, "--client", EVIL), (world.store.root, "--client", f"{EVIL}*x"),
        (world.store.root, "--database", f"{EVIL}.db"),
    ],
    "show": lambda world: [
        (world.image.raw, "--extents"), (world.file,), (world.image.raw, "--json"), (world.store.root / EVIL,),
    ],
    "mount": lambda world: [
        (world.store.root, EVIL, "--log-file", f"{EVIL}/no/log"), (world.store.root, EVIL, "--writable", f"{EVIL}no"),
        (world.store.root, f"{EVIL}no"), (world.store.root, world.target), (world.store.root, "to", "--owner", EVIL),
        (world.store.root, "to", "--group", EVIL), (world.store.root, "to", "--mode", EVIL),
        (world.store.root, world.store.root), (world.store.root, "to", "--daemon", "--writable", "scratch"),
    ],
    "umount": lambda world: [(EVIL,), (world.here,)],
    "status": lambda world: [(), ("--json",)],
    "sessions": lambda world: [(world.target,), (world.target, "--json"), (EVIL,)],
    "discard": lambda world: [(world.file,), (f"{world.target}/{EVIL}",), (EVIL,)],
    "keep": lambda world: [(world.file, "-o", f"{EVIL}/no/x"), (world.file, "-o", f"{EVIL}/"), (EVIL,)],
    "share": lambda world: [
        (world.target,), (world.target, "--name", EVIL), (world.target, "--writable", EVIL), (EVIL,),
        (world.target, "--check", "--config-file", EVIL), (world.target, "--check", "--config-file", "smb.conf"),
        (world.target, "--check", "--config-file", f"{EVIL}.toml"),
    ],
    "doctor": lambda world: [(world.store.root,), (world.store.root, "--to", EVIL), (world.store.root, "--json"), (EVIL,)],
    "sync": lambda world: [
        (world.store.root, "--to", EVIL, "--dry-run", "--wait", "0"), (world.store.root, "--to", EVIL, "--wait", "0"),
        (world.store.root, "--to", f"{EVIL}no"), (world.store.root, "--to", EVIL, "--client", f"{EVIL}no", "--wait", "0"),
    ],
    "materialize": lambda world: [
        (world.image.raw, "-o", f"{EVIL}/{EVIL[:40]}.vhd", "--dry-run"), (world.image.raw, "-o", f"{EVIL}/{EVIL[:40]}.vhd"),
        (world.image.raw, "-o", f"{EVIL}/no/"), (EVIL, "-o", EVIL), (world.image.raw, "-o", world.store.root / EVIL / "x"),
    ],
    "boot": lambda world: [(world.image.raw,), (world.image.raw, "--serial", f"{EVIL}/no/x"), (EVIL, "--serial", EVIL)],
    "verify": lambda world: [
        (world.image.raw,), ("--store", world.store.root), ("--store", world.store.root, "--client", EVIL), ("--store", EVIL),
        (world.image.raw, "--against", world.image.raw), (world.image.raw, "--against", EVIL), (world.file,),
        ("--store", world.store.root, "--json"),
    ],
}  # fmt: skip
"""For each verb command lines that succeed or fail with such names; what no verb understands is added for all of them."""


def misunderstood(name: str) -> list[tuple[Argument, ...]]:
    """Such words in the place of each option's value, of an option, and of too many arguments; and the help."""
    options = {parameter.opts[0]: parameter.type.name for parameter in verb(name).params if parameter.opts[0][:2] == "--"}
    texts = [word for option, kind in options.items() if kind == "text" for word in (option, EVIL)]
    others = [(option, EVIL) for option, kind in options.items() if kind != "text"]
    return [(*texts, *(EVIL,) * 2), *others, (f"--{EVIL}",), (EVIL,) * 5, ("--help",)]


class TestEveryVerb:
    @pytest.mark.parametrize("name", VERBS)
    def test_on_a_terminal(self, world: World, name: str) -> None:
        """Whatever it says, it says in lines of its own that can be seen."""
        lines = [(name, *words) for words in [*misunderstood(name), *WALKS[name](world)]]
        for (said, code), words in zip(world.walk(*lines), lines, strict=True):
            assert code != BUG, said.decode()
            assert said or code == 0, words
            check(said, code)

    def test_outside_of_verbs(self, world: World) -> None:
        """The front door itself: unknown verbs and options, settings, mount(8)'s helper, and a bug with such a text."""
        walked = world.walk(
            (EVIL,), (f"--{EVIL}",), ("--config", EVIL, "status"), ("--config", world.configuration, "status"), (), ("--help",),
            ("FSTAB", EVIL, EVIL), ("FSTAB", "/", "/mnt", "-o", EVIL.replace(",", "")), ("FSTAB", world.store.root, world.here),
            ("FSTAB", f"-{EVIL}"), ("BUG", EVIL),
        )  # fmt: skip
        *rest, (traceback, code) = walked
        for said, other in rest:
            assert other != BUG
            check(said, other)
        check(traceback, code)
        assert code == BUG
        assert b"| ValueError: " in traceback

    def test_while_a_bar_is_drawn(self, world: World) -> None:
        """On a terminal with colours there is nothing but these beside it."""
        out = f"{EVIL}/{EVIL[:40]}.bar.vhd"
        lines = ("materialize", world.image.raw, "-o", out), ("verify", world.image.raw), ("list", world.store.root)
        for said, code in world.walk(*lines, terminal="xterm-256color"):
            assert b"\x1b[" in said
            check(COLOURS.sub(b"", said), code)


def test_what_is_proposed_can_be_copied(world: World) -> None:
    """A marked file in a share: the command that takes the mark away does so, and nothing else, whatever the file is called."""
    need.tool("setfattr")
    place = world.here.parent
    marked = place / f"{EVIL[:60]}.vhd"
    marked.write_bytes(b"")
    os.setxattr(marked, "user.DOSATTRIB", b"0x220\0")
    configuration = smbd.configure(world.scope, f"[backups]\npath = {place}\n")
    ((said, code),) = world.walk(("share", world.target, "--check", "--config-file", configuration))
    check(said, code)
    command = re.search(r"remove the mark with `(setfattr .*)`$", said.decode(), re.MULTILINE)
    assert command
    world.scope.run(["bash", "-c", command[1]])
    assert os.listxattr(marked) == []


@pytest.mark.parametrize(
    "name", [EVIL, "plain", "two words", "it's", "-rf", "a\\nb", "$HOME", "é\u202e", "\\'\n1", "", "\udc80\udcff7"]
)
def test_quoted(name: str) -> None:
    """For bash it is one word, and the name itself; to a person it is text that can be seen."""
    word = quoted(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '<%s>' {word}"], stdout=subprocess.PIPE, check=True)
    assert done.stdout.removeprefix(b"<./-").removeprefix(b"<") == os.fsencode(name).removeprefix(b"-") + b">"


def test_other_programs(world: World) -> None:
    """What fusermount3 says, which the mount runs for an ordinary user, is a part of the one line that says what is wrong."""
    need.tool("fusermount3")
    for directory in (world.here, world.here / "closed"):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    empty = world.here / "empty"
    (empty / "pc").mkdir(parents=True)
    done = world.scope.synthfs("mount", empty, world.here / "closed", user="nobody", check=False)
    assert done.returncode == 9
    assert "cannot be mounted: fusermount3: user has no write access" in done.stderr.splitlines()[-1]
    check(done.stderr.encode(errors="surrogateescape"), done.returncode)


class TestStanza:
    """What `share` prints is for smb.conf, where a line more is a setting more."""

    @pytest.mark.parametrize(
        "name", [EVIL, "x]\n[global]\n", "x\rguest ok = yes", "global", "Homes", "a%u", " x", "x\\", "", "x" * 81]
    )
    def test_share(self, name: str) -> None:
        with pytest.raises(UnsupportedError):
            samba.stanza("/srv/synthfs/disks", "backup", name)

    @pytest.mark.parametrize("parent", [EVIL, "a\nguest ok = yes", "a\\", "a%u", " a", "a\u2028b", 'a"b', "a\udcff"])
    def test_path(self, parent: str) -> None:
        with pytest.raises(UnsupportedError):
            samba.stanza(f"{parent}/disks", "backup")

    @pytest.mark.parametrize("name", [EVIL, "a\nb", "a\\", "a\x1b", "a\u202eb", "a,b", "%U"])
    def test_people(self, name: str) -> None:
        with pytest.raises(UnsupportedError):
            samba.stanza("/srv/synthfs/disks", name)
        with pytest.raises(UnsupportedError):
            samba.stanza("/srv/synthfs/disks", "backup", writers=[name])

    def test_group_of_two_words(self, scope: Scope) -> None:
        """It stays one group for Samba."""
        need.tool("testparm")
        configuration = smbd.configure(scope, samba.stanza("/srv/synthfs/disks", "domain users"))
        seen = scope.run(["testparm", "--suppress-prompt", configuration]).stdout
        assert 'valid users = "@domain users"' in seen
        assert "force group = domain users" in seen


def test_what_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store's path is no second message to it, and one that is no UTF-8 no reason to fail."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify(WATCHDOG=1, STATUS=f"2 disks of {EVIL}\nMAINPID=1")
        assert supervisor.recv(65536).decode() == f"WATCHDOG=1\nSTATUS=2 disks of {printable(EVIL)}\\nMAINPID=1"


def test_printable() -> None:
    """One line of it, with nothing that Unicode does not call printable; what is, stays."""
    shown = printable("".join(map(chr, range(0x20000))))
    assert shown.isprintable()
    assert {c for c in map(chr, range(0x20000)) if c.isprintable()} <= set(shown)
    assert tomllib.loads(f'x = "{printable(chr(0x202E))}"')["x"] == chr(0x202E)
