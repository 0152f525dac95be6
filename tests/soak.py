"""Everything at once for a while, against a model that knows every byte: what scripts/soak runs, and `soak` for the suite.

Readers read the mount by chance, each a process of its own, while one hand makes backups, deletes and freezes them, looks
anew, kills the mount and freezes under way, fills disks, spoils backups behind synthfs' back and goes on reading them, lets
machines with hostile names in, and stops the terminal that the mount writes to. The model is a copy of each original disk as
it was on the day of the backup. A read may fail where something was broken; it may never be wrong, and once the hand rests
nothing may fail any more. Not for: SMB (smbsoak). Units: bytes and seconds.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import sampledisks
import sparse
from hostilenames import HOSTILE, unsafe
from lab import MIB, Lab, Scope
from ledger import mounts_below
from makedisk import OriginalDisk, Partition, make_disk
from makestore import Image, Store, seal
from onmount import FOOTER, PRELUDE, ask
from processes import Argument, CommandFailedError, run, wait_until
from soakprograms import EXACTLY, FAILING, READER, SPOIL, WHOLE
from terminals import Terminal

OPTIONS = ("--refresh", "0.3", "--log-level", "info")

READERS = 4
FAILING_READERS = 3
MACHINES = 3
MOST = 5
"""Backups of a machine that are kept at a time."""
IMPOSTORS = 5
"""Clients with hostile names, at a time."""

ALLOWED = frozenset(("ENOENT", "ENOTCONN", "EIO", "ESTALE", "ECONNABORTED", "ENODEV"))
"""What a read may answer while backups go, change and come back, and while nobody serves the mount."""

@dataclass(slots=True)
class Result:
    """What became of a soak. `done` counts what the hand did, faults among it."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Reads and opens that failed, by errno."""
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    compared: int = 0
    """Whole files that were compared with the model, mounted and frozen ones."""
    spoiled: int = 0
    """Reads of bytes that had just been overwritten in the backup, and were refused."""
    failing: int = 0
    """Reads, one after another, of backups that were spoiled while they were open."""
    memory: int = 0
    """The largest resident set of a mount's process, in KiB."""
    bugs: int = 0

    def problems(self) -> list[str]:
        """In words, whatever is not as it has to be."""
        checks = {
            f"wrong bytes: {self.wrong[:5]}": not self.wrong,
            f"unexpected: {self.unexpected[:5]}": not self.unexpected,
            f"errors that no fault explains: {self.refused}": set(self.refused) <= ALLOWED,
            f"only {self.reads} reads": self.reads > 20 * self.seconds,
            f"never done: {[name for name in OPERATIONS if not self.done[name]]}": all(self.done[name] for name in OPERATIONS),
            "no spoiled byte was refused": self.spoiled > 0,
            "no backup went on failing": self.failing > 0,
            f"{self.bugs} bugs": self.bugs == 0,
        }
        return [problem for problem, is_well in checks.items() if not is_well]

    def __str__(self) -> str:
        faults = {name: count for name, count in self.done.items() if name in FAULTS}
        rest = {name: count for name, count in self.done.items() if name not in FAULTS}
        return (
            f"{self.seconds:.0f} s: {self.reads} reads of {self.bytes >> 20} MiB, {self.compared} whole files compared, "
            f"{len(self.wrong)} wrong; done: {rest}; faults: {faults}; refused: {dict(self.refused)}, "
            f"{self.spoiled} of spoiled bytes, and {self.failing} of backups that went on failing; "
            f"at most {self.memory >> 10} MiB; bugs: {self.bugs}"
        )


@dataclass(slots=True)
class World:
    """A store on BTRFS, its mount, what was frozen from it, and the model: `<client>/<name>` of each disk that is offered."""

    scope: Scope
    dice: random.Random
    result: Result
    disks: list[OriginalDisk]
    stranger: OriginalDisk
    """What all impostors have on their disks: to read it in another's folder is a wrong byte."""
    btrfs: Path
    small: Path
    mount: Path
    model: Path
    past: Path
    """The model of backups that are gone."""
    log: Path
    stop: Path
    """A file that ends those who read on."""
    images: dict[str, list[Image]] = field(default_factory=dict)
    frozen: dict[Path, str] = field(default_factory=dict)
    """What was frozen, and the place of its model."""
    impostors: dict[str, Image] = field(default_factory=dict)
    """Clients with hostile names, and the one backup of each."""
    failing: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)
    """The processes that go on reading what was spoiled, with what they say."""
    terminal: Terminal | None = None
    """Where the mount's process writes its log; None for one in the background, with a log file."""
    number: int = 0

    @classmethod
    def make(cls, scope: Scope, seed: int, result: Result) -> "World":
        btrfs, small = scope.btrfs(768 * MIB), scope.ext4(24 * MIB)
        for name in ("urbackup", "frozen", "synced"):
            (btrfs / name).mkdir()
        disks = [plain_disk(scope.path("original") / f"pc{number}.img") for number in range(MACHINES - 1)]
        # One whose data cannot be shared, since nothing in it is aligned.
        disks.append(sampledisks.xp_disk(scope.path("original") / "xp.img"))
        mount, model, past = scope.path("mount"), scope.path("model"), scope.path("past")
        stranger = plain_disk(scope.path("original") / "stranger.img")
        log, stop = scope.path("mount-log") / "synthfs.log", scope.path("stop") / "now"
        world = cls(scope, random.Random(seed), result, disks, stranger, btrfs, small, mount, model, past, log, stop)
        world._fill(small, spare=MIB)
        for machine in range(MACHINES):
            (model / f"pc{machine}").mkdir()
            (past / f"pc{machine}").mkdir()
            world.images[f"pc{machine}"] = []
            world.back_up(machine)
        world.serve()
        return world

    @property
    def store(self) -> Store:
        return Store(self.btrfs / "urbackup")

    # -- what the hand does

    def back_up(self, machine: int | None = None) -> None:
        """Another day: something was written to a disk, and it was backed up."""
        machine = self.dice.randrange(MACHINES) if machine is None else machine
        client, disk = f"pc{machine}", self.disks[machine]
        while len(self.images[client]) >= MOST:
            self._delete(client, self.images[client][0])
        volume, edge = disk.partitions[0], 65536
        with disk.path.open("r+b") as file:
            for _ in range(self.dice.randrange(1, 20)):
                file.seek(volume.start + self.dice.randrange(edge, volume.length - 2 * edge))
                file.write(self.dice.randbytes(self.dice.choice((1, 512, 4096, edge))))
        self.number += 1
        stamp = time.strftime("%y%m%d-%H%M", time.gmtime(1_780_000_000 + self.number * 3600))
        parent = self.images[client][-1] if self.images[client] and self.dice.random() < 0.7 else None
        image = self.store.client(client).backup(disk, 1, "C", stamp, parent=parent)
        copy = self.past / client / f"{image.raw.stem}.vhd"
        sparse.create(copy, disk.served_length)
        sparse.copy(disk.path, copy, offset=0, length=disk.length, to=0)
        copy.rename(self._model(client, image))
        self.images[client].append(image)

    def delete(self) -> None:
        self._delete(*self._old())

    def refresh(self) -> None:
        if pid := self._server():
            os.kill(pid, signal.SIGHUP)

    def freeze(self) -> None:
        client, image = self._any()
        target = self.btrfs / "frozen" / f"{self.number}-{self.dice.randrange(10**6)}.vhd"
        self._materialize(client, image, target, self._mode(image))

    def sync(self) -> None:
        """What it keeps is right, that of deleted backups too."""
        state = {"STATE_DIRECTORY": str(self.btrfs / "state")}
        argv: list[Argument] = ["--wait", "0", "--min-free", "0%", "--keep", str(self.dice.choice((1, 2))), "--json"]
        done = self.scope.synthfs("sync", self.store.root, "--to", self.btrfs / "synced", *argv, env=state, check=False)
        if done.returncode not in (0, 1):
            self.result.unexpected.append(f"sync: {done.returncode} {done.stderr}")
        for file in (self.btrfs / "synced").glob("*/*.vhd"):
            self.compare(file, str(file.relative_to(self.btrfs / "synced")))

    def check_frozen(self) -> None:
        for file in self.dice.sample(sorted(self.frozen), min(4, len(self.frozen))):
            self.compare(file, self.frozen[file])

    def thaw(self) -> None:
        """Frozen files are deleted by their owner."""
        while len(self.frozen) > 6:
            file = self.dice.choice(sorted(self.frozen))
            file.unlink()
            del self.frozen[file]

    def remount(self) -> None:
        """It ends, if nobody reads at the moment, and begins anew."""
        done = self.scope.synthfs("umount", self.mount, check=False)
        if done.returncode not in (0, 9):
            self.result.unexpected.append(f"umount: {done.returncode} {done.stderr}")
        if done.returncode == 0:
            self.serve()

    # -- faults

    def impersonate(self) -> None:
        """A machine comes whose name is made to pass for another's, with a backup of the same name; others go."""
        while len(self.impostors) >= IMPOSTORS:
            self._expose(self.dice.choice(sorted(self.impostors)))
        self._impersonate(self.dice.choice([name for name in HOSTILE if name not in self.impostors]))

    def _impersonate(self, name: str) -> None:
        victim = self.dice.choice(sorted(self.images))
        client = self.store.client(name)
        self.impostors[name] = client.backup(self.stranger, 1, "C", self.images[victim][-1].stamp)
        client.backup(self.stranger, 1, "D", self.images[victim][-1].stamp, complete=False)
        self.refresh()

    def _expose(self, name: str) -> None:
        image = self.impostors.pop(name)
        self.store.delete(image)
        self.store.delete(replace(image, letter="D"))
        (self.store.root / name).rmdir()

    def stop_terminal(self) -> None:
        """The mount is served anew, in the foreground; somebody presses Ctrl-S, and there is much to say."""
        if pid := self._server():
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), 15.0)
        self.serve_on_terminal()
        for _ in range(3):
            self.spoil()

    def kill_mount(self) -> None:
        """Its process dies under its readers; another one takes over."""
        if pid := self._server():
            os.kill(pid, signal.SIGKILL)
            time.sleep(self.dice.random() / 2)
        self.serve()

    def kill_freeze(self) -> None:
        """A freeze dies under way: what is there is nothing or a whole disk."""
        client, image = self._any()
        target = self.btrfs / "frozen" / f"killed-{self.dice.randrange(10**6)}.vhd"
        mode = self._mode(image)
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "materialize", image.raw, "-o", target, "--reflink", mode]
        child = self.scope.start(argv)
        with suppress(subprocess.TimeoutExpired):
            child.wait(self.dice.uniform(0.1, 1.5))
        child.kill()
        child.wait(10)
        if target.exists():
            self.frozen[target] = self._place(client, image)
            self.compare(target, self.frozen[target])

    def full_target(self) -> None:
        """There is no room for a copy: an error that says so, and nothing left behind."""
        before = sorted(path.name for path in self.small.iterdir())
        _, image = self._any()
        argv: list[Argument] = ["materialize", image.raw, "--reflink", "never", "-o", self.small / "copy.vhd"]
        done = self.scope.synthfs(*argv, check=False)
        if done.returncode != 8 or sorted(path.name for path in self.small.iterdir()) != before:
            self.result.unexpected.append(f"full target: {done.returncode} {done.stderr}")

    def full_store(self) -> None:
        """The file system of the store has no room: what is frozen is right or not there, and the mount goes on."""
        ballast = self._fill(self.btrfs, spare=0)
        try:
            client, image = self._any()
            target = self.btrfs / "frozen" / f"full-{self.dice.randrange(10**6)}.vhd"
            self._materialize(client, image, target, self._mode(image), allowed=(0, 8))
        finally:
            ballast.unlink()

    def spoil(self) -> None:
        """Somebody writes to a backup that is listed and read: its readers get its old bytes or an error."""
        client, image = self._old()
        known = self._model(client, image).rename(self.past / self._place(client, image))
        seal(image.directory, read_only=False)
        words = (self.mount / self._place(client, image), known, image.raw, str(image.partition.start), str(self.number))
        self._read_on(self.mount / self._place(client, image), known)
        with suppress(CommandFailedError):  # the mount may not have it
            wrong, refused = ask(self.scope, EXACTLY + SPOIL, *words)
            self.result.wrong += [f"{known.name}, spoiled at {at}" for at in wrong]
            self.result.spoiled += refused
        self._delete(client, image)

    # -- the mount and the model

    def serve(self) -> None:
        self._leave_terminal()
        self.scope.synthfs("mount", "--daemon", "--log-file", self.log, *OPTIONS, self.store.root, self.mount)

    def serve_on_terminal(self) -> None:
        """In the foreground of a terminal that stops as soon as the mount stands."""
        self._leave_terminal()
        self.terminal = Terminal()
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "mount", *OPTIONS, self.store.root, self.mount]
        process = self.scope.start(self.terminal.argv(argv))
        if not wait_until(lambda: process.poll() is not None or self._pid() == process.pid, 30.0, pause=0.2):
            self.result.unexpected.append(f"a mount on a terminal does not answer: {self.terminal.said()!r}")
        self.terminal.stop()

    def _leave_terminal(self) -> None:
        """What came through is looked at; the process that wrote it has ended."""
        if self.terminal:
            self.terminal.resume()
            self._check_log(self.terminal.said())
            self.terminal.close()
            self.terminal = None

    def _check_log(self, said: bytes) -> None:
        """A line is a line of synthfs, and nothing in it is for a terminal to act on."""
        lines = said.decode("utf-8", "surrogateescape").splitlines(keepends=True)
        self.result.unexpected += [f"in the log: {line!r}" for line in lines if unsafe(line.removesuffix("\n"))]
        self.result.unexpected += [f"a forged line: {line!r}" for line in lines if line.startswith("synthfs[1]")]

    def _read_on(self, mounted: Path, known: Path) -> None:
        """Somebody has a backup open that is about to be spoiled, and will not give up."""
        self.failing = [one for one in self.failing if not self._has_ended(*one)]
        if len(self.failing) < FAILING_READERS:
            out = self.scope.path("failing") / "result.json"
            argv: list[Argument] = [sys.executable, "-I", "-S", "-c", PRELUDE + EXACTLY + FAILING, mounted, known, self.stop]
            self.failing.append((self.scope.start(argv, log=out), out))
            wait_until(lambda: out.stat().st_size > 0, 10.0)

    def _has_ended(self, process: "subprocess.Popen[bytes]", out: Path, limit: float = 0) -> bool:
        with suppress(subprocess.TimeoutExpired):
            if process.wait(limit) != 0:
                self.result.unexpected.append(f"a failing reader: {out.read_text()[-2000:]}")
                return True
            found = json.loads(out.read_text().splitlines()[-1])
            self.result.failing += found["failed"]
            self.result.wrong += [f"{out}: 4096 bytes at {at}" for at in found["wrong"]]
            return True
        return False

    def end(self) -> None:
        """Whoever reads on is told to stop, and what the log says is looked at."""
        self.stop.touch()
        for process, out in self.failing:
            if not self._has_ended(process, out, 30.0):
                self.result.unexpected.append(f"a failing reader does not end: {out}")
        self._leave_terminal()
        self._check_log(self.log.read_bytes())

    def compare(self, file: Path, place: str) -> None:
        """A frozen file is, but for its footer, the disk of that day."""
        known = self.model / place
        with suppress(FileNotFoundError):
            if not same(file, known if known.exists() else self.past / place):
                self.result.wrong.append(f"{file} is not {place}")
        self.result.compared += 1

    def rest(self) -> None:
        """The hand does nothing more, with every hostile name in the store."""
        for name in HOSTILE:
            if name not in self.impostors:
                self._impersonate(name)
        if not mounts_below(self.mount):
            self.serve()
        self.refresh()
        time.sleep(1.5)

    def whole(self) -> None:
        """At rest, every disk of the model is there and right, from the first to the last byte."""
        pairs = [
            [str(self.mount / path.relative_to(self.model)), str(path)] for path in sorted(self.model.rglob("*.vhd"))
        ]
        program = [sys.executable, "-I", "-S", "-c", PRELUDE + WHOLE]
        said = run(program, input=json.dumps(pairs).encode(), timeout=120).stdout
        wrong, errors = json.loads(said)
        self.result.wrong += [f"{mounted} is not {known}" for mounted, known in wrong]
        self.result.unexpected += errors
        self.result.compared += len(pairs)
        for file, place in self.frozen.items():
            self.compare(file, place)
        names = ask(self.scope, "answer(os.listdir(arguments[0]))", self.mount)
        folders = [name for name in names if name not in (".synthfs", "README.txt")]
        own = {"README.txt"} & self.impostors.keys()
        if len({name.casefold() for name in folders} | own) != len(self.images) + len(self.impostors):
            self.result.unexpected.append(f"{sorted(self.impostors)} are shown among {sorted(names)}")
        self.result.unexpected += [f"a name in the mount: {name!r}" for name in names if unsafe(name.replace("\u202e", ""))]
        self._server()

    def _materialize(
        self, client: str, image: Image, target: Path, mode: str, allowed: tuple[int, ...] = (0,)
    ) -> None:
        done = self.scope.synthfs("materialize", image.raw, "--reflink", mode, "-o", target, check=False)
        if done.returncode not in allowed or (done.returncode != 0) is target.exists():
            self.result.unexpected.append(f"materialize: {done.returncode} {done.stderr}")
        if target.exists():
            self.frozen[target] = self._place(client, image)
            self.compare(target, self.frozen[target])

    def _mode(self, image: Image) -> str:
        shared = image.partition.start % 4096 == 0
        return self.dice.choice(("always", "auto", "never") if shared else ("auto", "never"))

    def _delete(self, client: str, image: Image) -> None:
        known = self._model(client, image)
        if known.exists():
            known.rename(self.past / self._place(client, image))
        self.images[client].remove(image)
        self.store.delete(image)

    def _any(self) -> tuple[str, Image]:
        client = self.dice.choice(sorted(self.images))
        return client, self.dice.choice(self.images[client])

    def _old(self) -> tuple[str, Image]:
        """One that is not its machine's newest."""
        found = [(client, image) for client, images in self.images.items() for image in images[:-1]]
        if not found:
            self.back_up()
            return self._old()
        return self.dice.choice(found)

    def _place(self, client: str, image: Image) -> str:
        return f"{client}/{image.raw.stem}.vhd"

    def _model(self, client: str, image: Image) -> Path:
        return self.model / self._place(client, image)

    def _server(self) -> int | None:
        """The process that serves the mount; its bugs are counted before it is lost."""
        if not mounts_below(self.mount):
            return None
        facts = ask(self.scope, "answer(json.load(open(arguments[0])))", self.mount / ".synthfs/status.json")
        self.result.bugs += facts["bugs"]
        status = Path(f"/proc/{facts['pid']}/status").read_text()
        self.result.memory = max(self.result.memory, int(status.split("VmRSS:")[1].split()[0]))
        return int(facts["pid"])

    def _pid(self) -> int | None:
        """The process that serves the mount; None where none answers."""
        with suppress(CommandFailedError):
            return int(ask(self.scope, "answer(json.load(open(arguments[0]))['pid'])", self.mount / ".synthfs/status.json"))
        return None

    def _fill(self, directory: Path, spare: int) -> Path:
        """A file that takes all room but `spare`."""
        ballast = directory / "ballast"
        with ballast.open("xb") as file:
            length, step = 0, 128 * MIB
            while step >= 65536:
                try:
                    os.posix_fallocate(file.fileno(), length, step)
                    length += step
                except OSError:
                    step //= 2
            file.truncate(max(0, length - spare))
        return ballast


FAULTS = ("kill_mount", "kill_freeze", "full_target", "full_store", "spoil", "delete", "impersonate", "stop_terminal")
OPERATIONS = {
    "back_up": 6, "delete": 4, "refresh": 4, "freeze": 5, "sync": 2, "check_frozen": 4, "thaw": 2, "remount": 1,
    "kill_mount": 2, "kill_freeze": 3, "full_target": 1, "full_store": 1, "spoil": 2, "impersonate": 3, "stop_terminal": 1,
}  # fmt: skip
"""What the hand does, and how often; in the beginning, each once."""


def plain_disk(path: Path) -> OriginalDisk:
    """A machine with one volume, aligned as usual."""
    c = Partition(1, MIB, 64 * MIB, "7", active=True, fs="ntfs", label="Windows")
    return make_disk(path, c, length=65 * MIB, scheme="mbr")


def same(file: Path, disk: Path) -> bool:
    """Whether a VHD is that disk and a footer."""
    if file.stat().st_size != disk.stat().st_size + FOOTER:
        return False
    with file.open("rb") as one, disk.open("rb") as other:
        while part := other.read(MIB):
            if one.read(len(part)) != part:
                return False
        return one.read(8) == b"conectix"


@contextmanager
def readers(world: World) -> Iterator[None]:
    """They read until the context ends; what they found is added to the result."""
    running, python = [], [sys.executable, "-I", "-S", "-c", PRELUDE + EXACTLY + READER]
    for number in range(READERS):
        out = world.scope.path("reader") / "result.json"
        argv: list[Argument] = [*python, world.mount, world.model, world.stop, str(number)]
        running.append((world.scope.start(argv, log=out), out))
    try:
        yield
    finally:
        world.end()
    for process, out in running:
        if process.wait(60) != 0:
            world.result.unexpected.append(f"a reader: {out.read_text()[-2000:]}")
            continue
        found = json.loads(out.read_text())
        world.result.reads += found["reads"]
        world.result.bytes += found["bytes"]
        world.result.wrong += [f"{client}/{name}: {size} bytes at {at}" for client, name, at, size in found["wrong"]]
        world.result.refused += Counter(found["errors"])


def soak(scope: Scope, seconds: float, seed: int = 1, say: Callable[[str], None] = lambda line: None) -> Result:
    result = Result()
    world = World.make(scope, seed, result)
    names = world.dice.sample(sorted(OPERATIONS), len(OPERATIONS))
    began = time.monotonic()
    with readers(world):
        while names or time.monotonic() - began < seconds:
            name = names.pop() if names else world.dice.choices([*OPERATIONS], [*OPERATIONS.values()])[0]
            getattr(world, name)()
            result.done[name] += 1
            if sum(result.done.values()) % 50 == 0:
                say(f"{time.monotonic() - began:5.0f} s: {dict(result.done)}")
            result.seconds = time.monotonic() - began
            if result.unexpected:
                break
    world.rest()
    world.whole()
    shutil.rmtree(world.past)
    return result


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}", flush=True)
    with Lab() as lab, lab.scope("soak") as scope:
        result = soak(scope, seconds, seed, lambda line: print(line, flush=True))
    print(result)
    for problem in result.problems():
        print(f"PROBLEM: {problem}")
    return bool(result.problems())


if __name__ == "__main__":
    sys.exit(main())
