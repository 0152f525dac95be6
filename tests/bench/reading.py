"""Reading a disk: from the mount, from its peers, from a reflinked copy, and from the .raw file itself.

All read the same bytes of the same volume, out of the page cache of their backing files, which fincore proves; what the mount
itself has cached is dropped first, except where it is to be read again. `synthfs, unprivileged` is the mount as an ordinary
user has it, with the kernel's own read-ahead. Units: bytes and seconds.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.floor import build, floor, serve
from bench.peers import Contestant, Pieces, peers
from bench.rig import Rig, cpu_per, cpu_seconds, forget, is_warm, read_ahead, warm
from bench.row import FLOOR, OURS, Goal, Row
from lab import MIB, Scope
from makedisk import BASIC_DATA, OriginalDisk, Partition, make_disk
from makestore import Store
from processes import wait_until

RAW, COPY, UNPRIVILEGED = ".raw itself", "reflinked copy", f"{OURS}, unprivileged"
PEERS = ("xmount", "nbdkit + nbdfuse", "qemu-storage-daemon")
"""A reflinked copy is a file like the .raw, not a peer that computes: it is shown beside it."""

_WRAPPER = 512 * 1024
"""What UrBackup has before the volume in a .raw file."""
_BEFORE = 64 * MIB
"""Where the random data begin in the volume: behind what mkntfs wrote."""


def rows(rig: Rig) -> Iterator[Row]:
    """Sequential, random, with several readers, and what it costs."""
    if not rig.has("reading", "fio", "fincore", "mkfs.xfs", "mkntfs"):
        return
    with rig.scope.scope("reading") as scope:
        bench = Bench.make(rig, scope)
        yield from bench.sequential()
        yield from bench.random()
        yield from bench.cost()
        yield bench.four_readers()
        yield bench.cold()


class Bench:
    """Four disks, and everybody who serves them."""

    def __init__(self, rig: Rig, scope: Scope, contestants: list[Contestant], image: Path) -> None:
        self.rig = rig
        self.scope = scope
        self.by_name = {contestant.name: contestant for contestant in contestants}
        self.image = image

    @classmethod
    def make(cls, rig: Rig, scope: Scope) -> "Bench":
        volume = Partition(1, MIB, _BEFORE + rig.data + 16 * MIB, BASIC_DATA, fs="ntfs", data=((_BEFORE, rig.data),))
        disk = make_disk(scope.path() / "original.img", volume, length=volume.end + 2 * MIB)
        mounted = scope.xfs(6 * disk.length + 512 * MIB)
        count = 1 if rig.smoke else 4
        store = Store(mounted / "urbackup")
        raws = [store.client("pc0").backup(disk, 1).raw]
        scope.run(["cp", "--sparse=never", disk.path, mounted / "disk0.img"])
        for number in range(1, count):
            scope.run(["cp", "-a", "--reflink=always", store.root / "pc0", store.root / f"pc{number}"])
            raws.append(store.root / f"pc{number}" / raws[0].relative_to(store.root / "pc0"))
        disks = [_pieces(scope, mounted, disk, number) for number in range(count)]
        scope.run(["sync"])

        offset = volume.start + _BEFORE
        plain = [
            Contestant(RAW, tuple(raws), _WRAPPER + _BEFORE, tuple(raws)),
            Contestant(COPY, tuple(piece.whole for piece in disks), offset, tuple(piece.whole for piece in disks)),
        ]
        ours = [_ours(scope, store.root, name, raws, offset) for name in (OURS, UNPRIVILEGED)]
        others = [*peers(rig, scope, disks, offset), *floor(rig, scope, count, disk.length, offset)]
        contestants = [*ours, *others, *plain]
        for contestant in contestants:
            warm(scope, contestant.backing)
        (image,) = scope.directory.glob("*-xfs/xfs.img")
        return cls(rig, scope, contestants, image)

    def sequential(self) -> Iterator[Row]:
        where = self._each(self._rate)
        first = (Goal("at least", 1.5, PEERS), Goal("at least", 0.4, (RAW,)))
        yield Row(
            "sequential, 1 MiB, mount freshly made", "MiB/s", where, goals=first, prepare=self._fresh, counts=self._still_warm
        )
        again = (Goal("at least", 0.9, (RAW,)),)
        yield Row("the same file read again", "MiB/s", where, goals=again, prepare=self._read_once, counts=self._still_warm)

    def random(self) -> Iterator[Row]:
        for jobs, bound in ((1, 0.9), (16, 0.8)):
            title = "random 4 KiB, one job" if jobs == 1 else f"random 4 KiB, {jobs} jobs"
            yield Row(
                title,
                "IOPS",
                self._each(partial(self._iops, jobs)),
                goals=(Goal("at least", bound, PEERS),),
                prepare=self._fresh,
            )

    def cost(self) -> Iterator[Row]:
        """Of the servers' processes alone; the reader's is not in it."""
        rig, served = self.rig, [contestant for contestant in self.by_name.values() if contestant.pids]

        def idle(contestant: Contestant) -> float:
            before, began = cpu_seconds(contestant.pids), time.monotonic()
            time.sleep(rig.seconds * 4)
            return (cpu_seconds(contestant.pids) - before) / (time.monotonic() - began) * 100

        def one(contestant: Contestant) -> float:
            return cpu_per(contestant.pids, lambda: self._at_random(contestant, 1)["total_ios"])

        def mebibyte(contestant: Contestant) -> float:
            return cpu_per(contestant.pids, lambda: self._in_sequence(contestant, 1)["total_ios"])

        yield Row("processor when idle", "% of one", self._each(idle, served), "low", (Goal("at most", 0.1),), rounds=3)
        yield Row(
            "processor for a random read of 4 KiB",
            "µs",
            self._each(one, served),
            "low",
            prepare=self._fresh,
            counts=self._still_warm,
        )
        yield Row(
            "processor for a sequential MiB",
            "µs",
            self._each(mebibyte, served),
            "low",
            prepare=self._fresh,
            counts=self._still_warm,
        )

    def four_readers(self) -> Row:
        where = self._each(lambda contestant: self._rate(contestant, len(contestant.files)))
        count = len(self.by_name[RAW].files)
        goals = (Goal("at least", 1.0, PEERS),)
        return Row(
            f"{count} readers on {count} disks, sequential",
            "MiB/s",
            where,
            goals=goals,
            prepare=self._fresh,
            counts=self._still_warm,
        )

    def cold(self) -> Row:
        """The backing file has to come from the device, which is read as a disk is: with no cache of its own, 128 KiB ahead."""
        device = self.scope.run(["losetup", "--noheadings", "--output=NAME", "--associated", self.image]).stdout.strip()
        self.scope.run(["losetup", "--direct-io=on", device])
        Path(f"/sys/block/{Path(device).name}/queue/read_ahead_kb").write_text("128")

        contestants = {name: contestant for name, contestant in self.by_name.items() if name != FLOOR}
        if server := build(self.rig, self.scope):
            ours, raw = self.by_name[OURS], self.by_name[RAW]
            source, length = raw.files[0], ours.files[0].stat().st_size
            file, pid = serve(self.scope, server, self.scope.path("floor"), length, source, str(raw.offset - ours.offset))
            contestants[FLOOR] = Contestant(FLOOR, (file,), ours.offset, (source,), (pid,))

        def prepare(name: str) -> None:
            contestant = contestants[name]
            forget(*(contestant.files if contestant.pids else ()), *contestant.backing, self.image)

        where = self._each(self._rate, [*contestants.values()])
        goals = (Goal("at least", 0.9, (RAW,)),)
        return Row("cold backing file, sequential", "MiB/s", where, goals=goals, prepare=prepare)

    def _each(
        self, measure: Callable[[Contestant], float], whom: list[Contestant] | None = None
    ) -> dict[str, Callable[[], float]]:
        return {contestant.name: partial(measure, contestant) for contestant in whom or self.by_name.values()}

    def _fresh(self, name: str) -> None:
        """Nothing in the cache of the mount, everything in that of its backing files."""
        contestant = self.by_name[name]
        if contestant.pids:
            forget(*contestant.files)
        warm(self.scope, contestant.backing)

    def _still_warm(self, name: str) -> bool:
        return is_warm(self.scope, self.by_name[name].backing)

    def _read_once(self, name: str) -> None:
        warm(self.scope, self.by_name[name].backing)
        self._rate(self.by_name[name])

    def _iops(self, jobs: int, contestant: Contestant) -> float:
        return float(self._at_random(contestant, jobs)["iops"])

    def _rate(self, contestant: Contestant, disks: int = 1) -> float:
        return float(self._in_sequence(contestant, disks)["bw_bytes"]) / MIB

    def _in_sequence(self, contestant: Contestant, disks: int) -> dict[str, Any]:
        options = ("--rw=read", "--bs=1M", f"--offset={contestant.offset}", f"--size={self.rig.data}")
        return self.rig.fio(contestant.files[:disks], *options)

    def _at_random(self, contestant: Contestant, jobs: int) -> dict[str, Any]:
        # A part of the data for each job, so that nobody reads what another one has brought into a cache.
        part = self.rig.data // jobs
        where = (f"--offset={contestant.offset}", f"--offset_increment={part}", f"--size={part}")
        how = ("--rw=randread", "--bs=4k", "--fadvise_hint=random", f"--runtime={self.rig.seconds}s")
        return self.rig.fio(contestant.files[:1], *where, *how, jobs=jobs)


def _pieces(scope: Scope, mounted: Path, disk: OriginalDisk, number: int) -> Pieces:
    """The disk as files of their own that share their blocks with those of the other numbers."""
    whole = mounted / f"disk{number}.img"
    if number:
        scope.run(["cp", "--reflink=always", mounted / "disk0.img", whole])
    volume = disk.partition(1)
    cuts = {"head": (0, volume.start), "volume": (volume.start, volume.end), "tail": (volume.end, disk.length)}
    pieces = {}
    for name, (start, end) in cuts.items():
        pieces[name] = mounted / f"{name}{number}.img"
        command = f"reflink {whole} {start} 0 {end - start}"
        scope.run(["xfs_io", "-f", "-c", command, pieces[name]])
    return Pieces(whole, pieces["head"], pieces["volume"], pieces["tail"])


def _ours(scope: Scope, store: Path, name: str, raws: list[Path], offset: int) -> Contestant:
    target = scope.synthfs_mount(store)
    if name == UNPRIVILEGED:
        _as_an_ordinary_user_has_it(target)
    files = tuple(target / raw.relative_to(store).parts[0] / f"{raw.stem}.vhd" for raw in raws)
    return Contestant(name, files, offset, tuple(raws), (scope.server(target).pid,))


def _as_an_ordinary_user_has_it(target: Path) -> None:
    """Puts back what synthfs raises where it may: an ordinary user's mount has the kernel's defaults."""
    file = read_ahead(target)
    assert wait_until(lambda: file.read_text() == "1024\n", 5.0), "synthfs has not raised the read-ahead"
    file.write_text("128")
