"""Eight SMB clients read for a while, while backups come and go: nothing wrong, and the mount's process does not grow.

Beside them machines with hostile names come and go, somebody reads a spoiled backup that fails and fails, and the terminal
that the mount writes to is stopped.

`smbsoak.py [SECONDS]` is what scripts/smb-soak runs; `soak` is the same for the suite. Each client is a process of its own,
so that smbprotocol's work does not stand in the way of the others'. Not for: what happens when something breaks.
Units: bytes and seconds.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sampledisks
import smbd
from hostilenames import HOSTILE
from lab import Lab, Scope
from makestore import Image, Store
from onmount import PRELUDE, ask
from processes import Argument, wait_until
from soak import plain_disk
from soakprograms import EXACTLY, FAILING
from terminals import Terminal

CLIENTS = 8
MACHINES = 4
NAME = "Image_C_260301-0201.vhd"
SIZES = (512, 4096, 65536, 262_144, 1 << 20)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a soak: counts over all clients, and the process at its begin and end."""

    seconds: float
    reads: int
    bytes: int
    wrong: int
    unexpected: tuple[str, ...]
    absent: int
    moves: int
    refreshes: int
    failed: int
    """Reads of the backup that was spoiled while it was open."""
    bugs: int
    memory: tuple[int, int]
    """Resident set in KiB: median of the second and of the last fifth of the time."""
    descriptors: tuple[int, int]
    """Before the first client and after the last one."""
    threads: tuple[int, int]

    def problems(self) -> list[str]:
        """In words, whatever is not as it has to be."""
        grown = self.memory[1] - self.memory[0]
        checks = {
            f"{self.wrong} reads with wrong bytes": self.wrong == 0,
            f"unexpected errors: {self.unexpected}": not self.unexpected,
            f"only {self.reads} reads": self.reads > 20 * self.seconds,
            f"only {self.failed} reads failed": self.failed > 20 * self.seconds,
            f"{self.bugs} bugs": self.bugs == 0,
            f"only {self.moves} comings and goings": self.moves > self.seconds,
            f"the process grew by {grown} KiB": grown < 8 * 1024 + self.memory[0] // 20,
            f"descriptors: {self.descriptors}": self.descriptors[1] <= self.descriptors[0] + 2,
            f"threads: {self.threads}": self.threads[1] <= 60,
        }
        return [problem for problem, is_well in checks.items() if not is_well]


def client(port: int, limit: float, seed: int, original: Path) -> dict[str, Any]:
    """One client: opens disks by chance, reads and checks, and now and then comes anew."""
    from smbwindows import SMB_STATUS_OBJECT_NAME_NOT_FOUND, Client, Failure, StatusFailure

    share: Any = type("Port", (), {"port": port, "name": "backups"})
    dice, end = random.Random(seed), time.monotonic() + limit
    found: dict[str, Any] = {"reads": 0, "bytes": 0, "wrong": 0, "absent": 0, "unexpected": []}
    length = original.stat().st_size
    with original.open("rb") as known:
        while time.monotonic() < end:
            with Client(share) as one:
                for _ in range(10):
                    path = f"disks/pc{dice.randrange(MACHINES)}/{NAME}"
                    try:
                        with one.opened(path) as file:
                            for _ in range(20):
                                size = dice.choice(SIZES)
                                at = dice.randrange(0, length - size)
                                known.seek(at)
                                found["wrong"] += file.read(at, size) != known.read(size)
                                found["reads"] += 1
                                found["bytes"] += size
                    except StatusFailure as failure:
                        # A backup that has just gone: no such path, or one whose file cannot be opened any more.
                        gone = (SMB_STATUS_OBJECT_NAME_NOT_FOUND, 0xC000003A, 0xC0000185)
                        found["absent"] += failure.status in gone
                        found["unexpected"] += [] if failure.status in gone else [str(failure)]
                    except Failure as failure:
                        found["unexpected"].append(str(failure))
                    if time.monotonic() >= end:
                        break
    return found


def soak(scope: Scope, seconds: float, say: Callable[[str], None] = lambda line: None) -> Result:
    """Run the clients against a mount that refreshes twice a second."""
    # Its end comes after that of the mount.
    with Terminal() as terminal, scope.scope("clients") as inner:
        return _soak(inner, terminal, seconds, say)


def _soak(scope: Scope, terminal: Terminal, seconds: float, say: Callable[[str], None]) -> Result:
    disk = sampledisks.xp_disk(scope.path("original") / "xp.img")
    store, away = Store(scope.path("store") / "urbackup"), scope.path("away")
    for number in range(MACHINES):
        store.client(f"pc{number}").backup(disk, 1)
    stranger = plain_disk(scope.path("stranger") / "original.img")
    spoiled = store.client("spoiled").backup(stranger, 1)
    for name in HOSTILE:
        Store(away).client(name).backup(stranger, 1)
    parent = scope.path("share")
    (parent / "disks").mkdir()
    options = ("--allow-other", "--group", smbd.GROUP, "--refresh", "0.5")
    target = scope.synthfs_mount(store.root, *options, target=parent / "disks", terminal=terminal)
    terminal.stop()
    share = smbd.start(scope, smbd.stanza(scope, target))
    pid = scope.server(target).pid
    share.smbclient("ls disks/*")
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))

    failing, failed = scope.path("failing") / "result.json", scope.path("stop") / "now"
    words = (target / "spoiled" / NAME, stranger.path, failed)
    reader = scope.start([sys.executable, "-I", "-S", "-c", PRELUDE + EXACTLY + FAILING, *words], log=failing)
    assert wait_until(lambda: failing.read_text() != "", 10.0)
    _spoil(spoiled)
    running = []
    for number in range(CLIENTS):
        out = scope.path("client") / "result.json"
        argv: list[Argument] = [sys.executable, __file__, "client", str(share.port), str(seconds), str(number), disk.path]
        running.append((scope.start(argv, log=out), out))
    samples: list[tuple[int, int]] = []
    moves, began = 0, time.monotonic()
    while any(process.poll() is None for process, _ in running):
        if time.monotonic() - began > seconds + 60:
            raise AssertionError("clients that hang")
        if time.monotonic() - began < seconds:
            # Half of the machines stay, so that there is always something to read.
            for name in (f"pc{moves % (MACHINES // 2)}", HOSTILE[moves % len(HOSTILE)]):
                here, there = store.root / name, away / name
                (here if here.exists() else there).rename(there if here.exists() else here)
            moves += 1
            samples.append(process_size(pid))
            if moves % 60 == 0:
                say(f"{time.monotonic() - began:5.0f} s: {samples[-1][0]} KiB, {samples[-1][1]} threads")
        time.sleep(0.4)
    failed.touch()
    assert reader.wait(30) == 0
    found = json.loads(failing.read_text().splitlines()[-1])
    results = [json.loads(out.read_text().splitlines()[-1]) for _, out in running]
    with suppress(ProcessLookupError):
        wait_until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= descriptors, 5.0, 0.2)
    status = ask(scope, "answer(json.load(open(arguments[0])))", target / ".synthfs/status.json")
    fifth = max(1, len(samples) // 5)
    early, late = (statistics.median(size for size, _ in part) for part in (samples[fifth : 2 * fifth], samples[-fifth:]))
    return Result(
        seconds=seconds,
        reads=sum(one["reads"] for one in results),
        bytes=sum(one["bytes"] for one in results),
        wrong=sum(one["wrong"] for one in results) + len(found["wrong"]),
        unexpected=tuple(sorted({text for one in results for text in one["unexpected"]})),
        absent=sum(one["absent"] for one in results),
        moves=moves,
        refreshes=status["refreshes"],
        failed=found["failed"],
        bugs=status["bugs"],
        memory=(round(early), round(late)),
        descriptors=(descriptors, len(list(Path(f"/proc/{pid}/fd").iterdir()))),
        threads=(samples[0][1], samples[-1][1]),
    )


def _spoil(image: Image) -> None:
    """Somebody writes to a backup, whose readers are to get an error from then on."""
    with image.raw.open("r+b") as raw:
        raw.seek(1 << 20)
        raw.write(b"spoiled")


def process_size(pid: int) -> tuple[int, int]:
    """Resident set in KiB and number of threads."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]), int(fields["Threads"])


def main() -> int:
    if sys.argv[1:2] == ["client"]:
        port, limit, seed, original = sys.argv[2:]
        print(json.dumps(client(int(port), float(limit), int(seed), Path(original))))
        return 0
    with Lab() as lab, lab.scope("soak") as scope:
        result = soak(scope, float(sys.argv[1]) if len(sys.argv) > 1 else 300.0, lambda line: print(line, flush=True))
    print(result)
    for problem in result.problems():
        print(f"PROBLEM: {problem}")
    return bool(result.problems())


if __name__ == "__main__":
    sys.exit(main())
