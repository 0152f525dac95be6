"""synthfs on real OpenZFS: sharing across datasets, proved by the pool's figures, and never in UrBackup's way.

Not collected by itself: `scripts/test-zfs` runs it in a guest, whose disk /dev/ubdb it may overwrite.
Expected values: the original disk, `zpool get`, `zfs destroy` as UrBackup's helper calls it. Units: bytes.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sampledisks
from lab import Lab, Scope
from makedisk import MIB, OriginalDisk
from makestore import Store
from onmount import read_right
from processes import Argument, run, wait_until
from synthfs.host.handle import lasting

CANNOT_SHARE, TARGET_FAILED = 7, 8
TANK = Path("/run/tank")
ENABLED = Path("/sys/module/zfs/parameters/zfs_bclone_enabled")
BLOCK = 128 << 10
IDLE = 30.0
"""Seconds within which a handle that nobody uses is to be given up."""


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """In the guest's own memory: the usual place is the machine's, whose processes the guest does not see."""
    with Lab(Path("/run/synthfs-lab")) as laboratory:
        yield laboratory


@pytest.fixture(scope="module", autouse=True)
def pool() -> Iterator[None]:
    if os.environ.get("SYNTHFS_INSIDE") != "1":
        pytest.skip("this is for scripts/test-zfs", allow_module_level=True)
    zfs("zpool", "create", "-f", "-O", f"mountpoint={TANK}", "tank", "/dev/ubdb")
    yield
    zfs("zpool", "destroy", "-f", "tank")


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    """ESP, C: and D:, with 32 MiB of data that cannot be compressed, which ZFS would not count in full."""
    with lab.scope("disk") as scope:
        made = sampledisks.gpt_disk(scope.path() / "original.img")
        with made.path.open("r+b") as file:
            for number in (3, 4):
                file.seek(made.partition(number).start + 8 * MIB)
                file.write(os.urandom(16 * MIB))
        yield made


def zfs(*command: str, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
    return run(command, check=check, timeout=60)


def figure(name: str) -> int:
    zfs("zpool", "sync", "tank")
    return int(zfs("zpool", "get", "-Hp", "-o", "value", name, "tank").stdout)


def blocks(dataset: str, file: Path) -> dict[int, str]:
    """Where on the device the blocks of a file lie, by their offset in it; those that have no place are not listed."""
    listed = zfs("zdb", "-U", "/run/zpool.cache", "-ddddd", dataset, str(file.stat().st_ino)).stdout.decode()
    return {int(at, 16): place for at, place in re.findall(r"^ +([0-9a-f]+) +L0 (\S+:\S+:\S+) ", listed, re.MULTILINE)}


@dataclass(slots=True)
class Images:
    """One client's images: each a dataset of its own, reached through a link in the client's folder, sealed by `@ro`."""

    name: str
    store: Path
    datasets: dict[str, str]
    raws: dict[str, Path]

    @property
    def out(self) -> Path:
        return TANK / self.name / "out"

    @property
    def frozen(self) -> str:
        return f"{self.raws['C'].stem}.vhd"


def back_up(
    scope: Scope, disk: OriginalDisk, name: str, *, records: dict[str, str] | str = "128K", out: str = "128K", sync: bool = True
) -> Images:
    """ESP, C: and D: of the disk, with block sizes of their own."""
    plain = Store(scope.path() / "plain").client("pc")
    client = scope.path() / "urbackup" / "pc"
    client.mkdir(parents=True)
    zfs("zfs", "create", "-p", f"tank/{name}/images/pc")
    zfs("zfs", "create", "-o", f"recordsize={out}", f"tank/{name}/out")
    datasets, raws = {}, {}
    for letter, number in (("SYSVOL", 1), ("C", 3), ("D", 4)):
        image = plain.backup(disk, number, letter, layout="plain")
        size = records if isinstance(records, str) else records[letter]
        dataset = f"tank/{name}/images/pc/{image.directory.name}"
        zfs("zfs", "create", "-o", f"recordsize={size}", dataset)
        run(["cp", "-rp", "--sparse=always", "--reflink=never", f"{image.directory}/.", f"/run/{dataset}/"])
        (client / image.directory.name).symlink_to(f"/run/{dataset}")
        zfs("zfs", "snapshot", f"{dataset}@ro")
        datasets[letter], raws[letter] = dataset, client / image.directory.name / image.raw.name
    shutil.rmtree(plain.directory)
    if sync:
        zfs("zpool", "sync", "tank")
    return Images(name, client.parent, datasets, raws)


@pytest.fixture(scope="module")
def images(lab: Lab, disk: OriginalDisk) -> Iterator[Images]:
    with lab.scope("images") as scope:
        yield back_up(scope, disk, "usual")


def freeze(scope: Scope, images: Images, *options: str) -> dict[str, Any]:
    done = scope.synthfs("materialize", images.raws["C"], "-o", images.out, "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    print(options, {k: v for k, v in found.items() if k != "steps"}, done.stderr)
    return found


def refused(scope: Scope, images: Images, *words: str) -> None:
    """`always` fails in one line with these words; nothing is made."""
    done = scope.synthfs("materialize", images.raws["C"], "-o", images.out, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == CANNOT_SHARE, line
    assert [word for word in (*words, "--reflink auto") if word not in line] == [], line
    assert list(images.out.iterdir()) == []


def test_crown(scope: Scope, disk: OriginalDisk, images: Images) -> None:
    """Cloned across datasets: the same places of the device, hardly any new space; mounted == materialized == the original."""
    data = sum(raw.stat().st_blocks * 512 for raw in images.raws.values())
    assert data > 32 * MIB
    saved, allocated = figure("bclonesaved"), figure("allocated")
    done = freeze(scope, images)
    grown = figure("bclonesaved") - saved
    print(f"data {data}, saved {grown}, allocated {figure('allocated') - allocated}, said {done['new_space']}")
    assert grown >= 0.95 * data
    assert figure("allocated") - allocated < 4 * MIB
    # At most three edges of a block of 128 KiB at each end, the tables, and metadata.
    assert done["new_space"] is not None
    assert done["new_space"] < 4 * MIB
    assert done["copied"] == done["edges"]
    frozen = images.out / images.frozen
    assert read_right(scope, frozen, disk)
    ours, raw = blocks(f"tank/{images.name}/out", frozen), blocks(images.datasets["C"], images.raws["C"])
    (clone,) = [step for step in done["steps"] if step["do"] == "clone" and step["source"].endswith(images.raws["C"].name)]
    shift, end = clone["offset"] - clone["source_offset"], clone["source_offset"] + clone["length"]
    shared = {at + shift: place for at, place in raw.items() if clone["source_offset"] <= at < end}
    assert len(shared) >= 16 * MIB // BLOCK
    assert {at: place for at, place in ours.items() if clone["offset"] <= at < end + shift} == shared
    mounted = scope.synthfs_mount(images.store)
    assert scope.run(["cmp", mounted / "pc" / images.frozen, frozen], check=False).returncode == 0
    frozen.unlink()


def test_dry_run(scope: Scope, images: Images) -> None:
    """A dry run says what is done then, and leaves neither a file nor a change of the figures."""
    saved = figure("bclonesaved")
    planned = freeze(scope, images, "--dry-run")
    assert (list(images.out.iterdir()), figure("bclonesaved")) == ([], saved)
    done = freeze(scope, images)
    assert planned["steps"] == done["steps"]
    (images.out / images.frozen).unlink()


@pytest.mark.parametrize("out", ["1M", "4K"])
def test_target_with_another_record_size(scope: Scope, disk: OriginalDisk, out: str) -> None:
    """The new file takes its block size from what is cloned into it, whatever its dataset's is; no property is changed."""
    images = back_up(scope, disk, f"out{out}", out=out)
    saved = figure("bclonesaved")
    freeze(scope, images)
    assert figure("bclonesaved") - saved > 32 * MIB
    assert (images.out / images.frozen).stat().st_blksize == 128 << 10
    assert zfs("zfs", "get", "-H", "-o", "value", "recordsize", f"tank/{images.name}/out").stdout.decode().strip() == out
    assert read_right(scope, images.out / images.frozen, disk)


def test_large_records(scope: Scope, disk: OriginalDisk) -> None:
    """With blocks of 1 MiB no whole disk can be shared: that is said; a volume alone can, and is proved."""
    images = back_up(scope, disk, "large", records="1M")
    refused(scope, images, "1048576", "--volume-only")
    saved = figure("bclonesaved")
    done = freeze(scope, images, "--volume-only")
    assert figure("bclonesaved") - saved > 16 * MIB
    assert done["cloned"] > 0
    (alone,) = images.out.iterdir()
    start, length = disk.partition(3).start, disk.partition(3).length
    at = next(step for step in done["steps"] if step["do"] == "clone")
    assert scope.run(
        ["cmp", f"--ignore-initial={at['offset'] + 8 * MIB}:{start + at['source_offset'] - 512 * 1024 + 8 * MIB}",
         f"--bytes={min(16 * MIB, length)}", alone, disk.path], check=False,
    ).returncode == 0  # fmt: skip
    alone.unlink()
    freeze(scope, images, "--reflink", "auto")
    assert read_right(scope, images.out / images.frozen, disk)


SPARSE = [("vhdx", "vhdx", ".vhdx"), pytest.param("vhd-dynamic", "vpc", ".dynamic.vhd", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("form", "driver", "suffix"), SPARSE)
def test_sparse_containers(scope: Scope, disk: OriginalDisk, images: Images, form: str, driver: str, suffix: str) -> None:
    """Containers that leave out what is empty share their blocks as well, and qemu reads them as the disk."""
    data = sum(raw.stat().st_blocks * 512 for raw in images.raws.values())
    saved = figure("bclonesaved")
    done = freeze(scope, images, "--format", form)
    print(f"data {data}, saved {figure('bclonesaved') - saved}, said {done['new_space']}")
    assert figure("bclonesaved") - saved >= 0.9 * data
    file = images.out / images.frozen.replace(".vhd", suffix)
    found = scope.run(["qemu-img", "compare", "-f", driver, "-F", "raw", file, disk.path], check=False)
    file.unlink()
    assert "Images are identical" in found.stdout, found


def test_no_writable_mount(scope: Scope, images: Images) -> None:
    """A mount that can be written to is refused here, with the reason and what to do instead, before there is a mount."""
    scratch, target = images.out.with_name("scratch"), scope.path("served")
    scratch.mkdir(exist_ok=True)
    done = scope.synthfs("mount", "--writable", scratch, images.store, target, check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("synthfs: ")]
    assert (done.returncode, "on ZFS" in line, "materialize" in line) == (CANNOT_SHARE, True, True)
    assert list(scratch.iterdir()) == []


def test_sources_of_different_record_sizes(scope: Scope, disk: OriginalDisk) -> None:
    """A file has one block size: what has another is named and, if that is allowed, copied."""
    images = back_up(scope, disk, "mixed", records={"SYSVOL": "16K", "C": "128K", "D": "128K"})
    refused(scope, images, images.raws["SYSVOL"].name, "16384", "131072")
    saved = figure("bclonesaved")
    done = freeze(scope, images, "--reflink", "auto")
    assert figure("bclonesaved") - saved > 30 * MIB
    assert done["copied"] > done["edges"]
    assert read_right(scope, images.out / images.frozen, disk)


def test_one_dataset(scope: Scope, disk: OriginalDisk) -> None:
    """Plain directories in one dataset, whose block size was changed later: shared as well, and what it costs is measured."""
    zfs("zfs", "create", "tank/plain")
    client = Store(TANK / "plain" / "urbackup").client("pc")
    raws = [client.backup(disk, n, letter, layout="plain").raw for letter, n in (("C", 3), ("SYSVOL", 1), ("D", 4))]
    zfs("zfs", "set", "recordsize=1M", "tank/plain")
    out = TANK / "plain" / "out"
    out.mkdir()
    allocated = figure("allocated")
    done = json.loads(scope.synthfs("materialize", raws[0], "-o", out, "--json").stdout)
    grown = figure("allocated") - allocated
    print({k: v for k, v in done.items() if k != "steps"}, grown)
    assert done["cloned"] > 32 * MIB
    assert grown < 4 * MIB
    assert done["new_space"] < 4 * MIB
    assert read_right(scope, out / f"{raws[0].stem}.vhd", disk)


def test_identity_of_a_store(scope: Scope) -> None:
    """A dataset is known again when it is mounted the next time, and the empty directory below it is another."""
    zfs("zfs", "create", "tank/known")
    before = lasting("/run/tank/known")
    zfs("zfs", "unmount", "tank/known")
    Path("/run/tank/known").mkdir(exist_ok=True)
    assert lasting("/run/tank/known") != before
    zfs("zfs", "mount", "tank/known")
    assert lasting("/run/tank/known") == before


def test_just_written(scope: Scope, disk: OriginalDisk) -> None:
    """Data that is not on disk yet is waited for, and shared."""
    images = back_up(scope, disk, "dirty", sync=False)
    raw = images.raws["C"]
    at = raw.stat()
    with raw.open("r+b") as file:
        file.seek(512 * 1024 + 8 * MIB)
        content = file.read(8 * MIB)
        file.seek(512 * 1024 + 8 * MIB)
        file.write(content)
    os.utime(raw, ns=(at.st_mtime_ns, at.st_mtime_ns))
    freeze(scope, images)
    data = sum(raw.stat().st_blocks * 512 for raw in images.raws.values())
    saved = figure("bclonesaved")
    (images.out / images.frozen).unlink()
    assert wait_until(lambda: saved - figure("bclonesaved") > 0.95 * data, 30.0, pause=1.0)


def test_switched_off(scope: Scope, disk: OriginalDisk, images: Images) -> None:
    """With block cloning switched off, `always` says so and how to switch it on, and `auto` copies."""
    ENABLED.write_text("0")
    try:
        refused(scope, images, str(ENABLED))
        saved = figure("bclonesaved")
        done = freeze(scope, images, "--reflink", "auto")
        assert (done["cloned"], figure("bclonesaved")) == (0, saved)
    finally:
        ENABLED.write_text("1")
    assert read_right(scope, images.out / images.frozen, disk)
    (images.out / images.frozen).unlink()


def test_pool_without_the_feature(scope: Scope, disk: OriginalDisk, images: Images) -> None:
    """A pool that has no block cloning, and is not that of the backups: the reason is given, nothing is made."""
    scope.run(["truncate", "--size=256M", "/dev/shm/old"])
    zfs("zpool", "create", "-o", "feature@block_cloning=disabled", "-O", "mountpoint=/run/old", "old", "/dev/shm/old")
    try:
        done = scope.synthfs("materialize", images.raws["C"], "-o", "/run/old", check=False)
        assert (done.returncode, "feature@block_cloning" in done.stderr) == (CANNOT_SHARE, True)
        assert os.listdir("/run/old") == []
    finally:
        zfs("zpool", "destroy", "old")
        os.unlink("/dev/shm/old")


def test_beside_other_activity(scope: Scope, disk: OriginalDisk, images: Images) -> None:
    """While others clone and delete, the figures prove less, and are never the reason of an error."""
    zfs("zfs", "create", "tank/noise")
    noise = "head -c 20M /dev/urandom > /run/tank/noise/a; while :; do for i in 1 2 3 4; do cp --reflink=auto /run/tank/noise/a"
    busy = scope.start(["sh", "-c", f"{noise} /run/tank/noise/$i; zpool sync tank; done; rm /run/tank/noise/[1-4]; done"])
    try:
        for _ in range(2):
            freeze(scope, images, "--force")
    finally:
        busy.kill()
    assert read_right(scope, images.out / images.frozen, disk)
    (images.out / images.frozen).unlink()


def command(images: Images, *options: str) -> list[Argument]:
    return [sys.executable, "-m", "synthfs", "materialize", images.raws["C"], "-o", images.out, *options]


@pytest.fixture(scope="module")
def calls(lab: Lab, images: Images) -> list[str]:
    """The system calls of a freeze from beginning to end, with the paths of descriptors; of what it starts as well none."""
    with lab.scope("calls") as scope:
        log = scope.path() / "strace.log"
        scope.run(["strace", "-y", "-s", "256", "-o", log, "-e", "trace=%file,%desc", *command(images)])
        (images.out / images.frozen).unlink()
        return [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("execve(")]


def test_order(images: Images, calls: list[str]) -> None:
    """The file is complete and on disk before it gets its name, and the name is on disk before the end."""
    last_data = max(n for n, line in enumerate(calls) if re.match(rf"(pwrite64|copy_file_range)\(.*<{images.out}/#", line))
    (of_file,) = [n for n, line in enumerate(calls) if re.match(rf"fsync\(\d+<{images.out}/#", line)]
    (link,) = [n for n, line in enumerate(calls) if line.startswith("linkat(") and f'"{images.frozen}"' in line]
    (of_directory,) = [n for n, line in enumerate(calls) if re.match(rf"fsync\(\d+<{images.out}>\)", line)]
    assert last_data < of_file < link < of_directory
    assert all(calls[n].endswith("= 0") for n in (of_file, link, of_directory))


def test_sources_are_read_only(images: Images, calls: list[str]) -> None:
    """Nothing in the store or its datasets is opened but for reading, and nothing below a snapshot is touched in any way."""
    ours = [line for line in calls if f"{images.store}/" in line or f"{TANK}/{images.name}/images/" in line]
    opened = [line for line in ours if line.startswith("open")]
    for raw in images.raws.values():
        assert any(f'/{raw.name}"' in line for line in opened), "by the freeze; a scan need not, of what it knows"
    assert [line for line in opened if "O_RDONLY" not in line or re.search("O_(WRONLY|RDWR|CREAT|TRUNC)", line)] == []
    reading = r"(openat|newfstatat|statx?|lstat|readlink|access|faccessat2?|getdents64|lseek|pread64|read|f?statfs|fstat|close"
    reading += r"|fcntl|ioctl|name_to_handle_at|copy_file_range\(\d+<[^>]*/images/[^>]*>, \[\d+[^]]*\], \d+<[^>]*/out/)"
    assert [line for line in ours if not re.match(reading, line)] == []
    assert [line for line in calls if ".zfs/snapshot/" in line] == []


@pytest.mark.parametrize(
    ("mode", "times"),
    [("always", 10), pytest.param("always", 100, marks=pytest.mark.slow), pytest.param("never", 100, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment(scope: Scope, disk: OriginalDisk, images: Images, mode: str, times: int) -> None:
    """SIGKILL at that many random times leaves nothing or the whole file, and nothing else; no data stay shared in the pool."""
    saved = figure("bclonesaved")
    began = time.monotonic()
    scope.run(command(images, "--reflink", mode))
    whole = time.monotonic() - began
    (images.out / images.frozen).unlink()
    dice, complete = random.Random(20260301), 0
    for number in range(times):
        child = subprocess.Popen(command(images, "--reflink", mode), env=scope.environment, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.2, 1.2) * whole)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        left = [path.name for path in images.out.iterdir()]
        assert left in ([], [images.frozen]), number
        if left:
            complete += 1
            assert read_right(scope, images.out / images.frozen, disk)
            (images.out / images.frozen).unlink()
    print(f"ZFS, --reflink {mode}: killed {times} times, {complete} whole files")
    assert wait_until(lambda: figure("bclonesaved") == saved, 30.0, pause=1.0)


@pytest.mark.parametrize(
    ("moment", "whole"), [pytest.param("linkat:when=1", False, marks=pytest.mark.slow), ("fsync:when=2", True)]
)
def test_killed_at_the_end(scope: Scope, disk: OriginalDisk, images: Images, moment: str, whole: bool) -> None:
    """The same when everything is written: about to be given its name, and to have that forced to disk."""
    strace: list[Argument] = ["strace", "-o", "/dev/null", "-e", f"inject={moment}:signal=SIGKILL"]
    done = scope.run([*strace, *command(images)], check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done
    assert [path.name for path in images.out.iterdir()] == [images.frozen] * whole
    if whole:
        assert read_right(scope, images.out / images.frozen, disk)
        (images.out / images.frozen).unlink()


def test_two_at_once(scope: Scope, disk: OriginalDisk, images: Images) -> None:
    """Of two runs for one name one makes the file, and the other says that it is there: they do not mislead each other."""
    log = scope.path() / "log"
    both = [scope.start(command(images), log=log) for _ in range(2)]
    codes = sorted(run.wait(60) for run in both)
    assert codes == [0, TARGET_FAILED], log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("synthfs:")]
    assert "exists already" in line
    assert [path.name for path in images.out.iterdir()] == [images.frozen]
    assert read_right(scope, images.out / images.frozen, disk)
    (images.out / images.frozen).unlink()


def test_quota(scope: Scope, images: Images) -> None:
    """Shared data count for a dataset's quota: where that is reached it is said in one line, and nothing is left."""
    zfs("zfs", "create", "-o", "quota=16M", "tank/limited")
    done = scope.run([*command(images)[:-1], TANK / "limited"], check=False)
    assert done.returncode == TARGET_FAILED, done.stderr
    (line,) = done.stderr.splitlines()
    assert "quota" in line
    assert os.listdir(TANK / "limited") == []


def test_full(scope: Scope, images: Images) -> None:
    """A pool that is filled up by somebody else in the middle of a copy: one line, and nothing is left."""
    scope.run(["truncate", "--size=128M", "/dev/shm/small"])
    zfs("zpool", "create", "-O", "mountpoint=/run/small", "small", "/dev/shm/small")
    out, log = Path("/run/small"), scope.path() / "strace.log"
    try:
        free = shutil.disk_usage(out).free
        said = scope.path() / "log"
        strace: list[Argument] = ["strace", "-f", "-o", log, "-e", "trace=pwrite64"]
        argv = ["-e", "inject=pwrite64:signal=SIGSTOP:when=9", *command(images)[:-1], out, "--reflink", "never"]
        child = scope.start([*strace, *argv], log=said)
        stopped = re.compile(r"^(\d+) +--- stopped by SIGSTOP ---$", re.MULTILINE)
        assert wait_until(lambda: log.exists() and bool(stopped.search(log.read_text())), 30.0), said.read_text()
        scope.run(["dd", "if=/dev/urandom", "of=/run/small/filler", "bs=1M"], check=False)
        zfs("zpool", "sync", "small")
        found = stopped.search(log.read_text())
        assert found
        os.kill(int(found[1]), signal.SIGCONT)
        assert child.wait(30) == TARGET_FAILED, said.read_text()
        (line,) = said.read_text().splitlines()
        assert "No space left" in line
        assert os.listdir(out) == ["filler"]
        (out / "filler").unlink()
        zfs("zpool", "sync", "small")
        assert wait_until(lambda: shutil.disk_usage(out).free > free - MIB, 20.0, pause=0.5)
    finally:
        zfs("zpool", "destroy", "-f", "small")
        os.unlink("/dev/shm/small")


def held(pid: int) -> list[str]:
    """What a process holds of the images' datasets: descriptors, O_PATH ones included, and its working directory."""
    found = []
    for link in (*Path(f"/proc/{pid}/fd").iterdir(), Path(f"/proc/{pid}/cwd")):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return [path for path in found if path.startswith(f"{TANK}/") and "/images/" in path]


def remove(dataset: str) -> bool:
    """As UrBackup's helper removes an image: its snapshot, then the dataset; where others were cloned from it, they inherit."""
    zfs("zfs", "destroy", f"{dataset}@ro", check=False)
    if zfs("zfs", "destroy", dataset, check=False).returncode == 0:
        return True
    clones = zfs("zfs", "get", "-H", "-o", "value", "clones", f"{dataset}@ro", check=False).stdout.decode().strip()
    if clones in ("", "-"):
        return False
    heir = clones.split(",")[0]
    zfs("zfs", "rename", f"{dataset}@ro", f"{dataset}@{heir.rpartition('/')[2]}")
    zfs("zfs", "promote", heir)
    return zfs("zfs", "destroy", dataset, check=False).returncode == 0


def test_nothing_is_held(scope: Scope, images: Images) -> None:
    """Looking at the store leaves no handle in any dataset, and never enters a snapshot."""
    for command in ("list", "doctor"):
        scope.synthfs(command, images.store, check=False)
    scope.synthfs("show", images.raws["C"])
    freeze(scope, images)
    (images.out / images.frozen).unlink()
    target = scope.synthfs_mount(images.store)
    server = scope.server(target)
    scope.run(["ls", "-lR", target])
    assert held(server.pid) == []
    assert ".zfs" not in Path("/proc/self/mounts").read_text()
    for dataset in images.datasets.values():
        zfs("zfs", "unmount", dataset)
        zfs("zfs", "mount", dataset)


def test_removal_beside_a_mount(scope: Scope, disk: OriginalDisk) -> None:
    """An idle handle does not keep UrBackup from removing an image; one in use does, until it is idle."""
    images = back_up(scope, disk, "removed")
    target = scope.synthfs_mount(images.store)
    server = scope.server(target)
    with (target / "pc" / images.frozen).open("rb", buffering=0) as file:
        offset = disk.partition(3).start + 8 * MIB
        file.seek(offset)
        assert file.read(4096)
        assert held(server.pid) != [], "it is in use: this is what could be in the way"
        assert not remove(images.datasets["C"])
        assert wait_until(lambda: not held(server.pid), IDLE, pause=0.5)
        assert remove(images.datasets["C"])
        run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"])
        file.seek(offset + 4 * MIB)
        with pytest.raises(OSError, match="Input/output error"):
            file.read(4096)


def test_removal_of_a_parent(scope: Scope, disk: OriginalDisk) -> None:
    """The same for an image that an incremental was cloned from, which becomes its heir and stays readable."""
    images = back_up(scope, disk, "parents")
    parent = images.datasets["C"]
    child = parent.replace("260301", "260302")
    zfs("zfs", "clone", f"{parent}@ro", child)
    for inherited in Path(f"/run/{child}").iterdir():
        inherited.rename(inherited.with_name(inherited.name.replace("260301", "260302")))
    zfs("zfs", "snapshot", f"{child}@ro")
    (images.store / "pc" / child.rpartition("/")[2]).symlink_to(f"/run/{child}")
    target = scope.synthfs_mount(images.store)
    with (target / "pc" / images.frozen).open("rb") as file:
        file.seek(disk.partition(3).start)
        assert file.read(512)
        assert wait_until(lambda: not held(scope.server(target).pid), IDLE, pause=0.5)
        assert remove(parent)
    assert scope.run(["sha256sum", target / "pc" / images.frozen.replace("260301", "260302")]).returncode == 0
    assert not Path(f"/run/{parent}").is_dir() or not any(Path(f"/run/{parent}").iterdir())


def test_sync_settles_and_prunes(scope: Scope, disk: OriginalDisk) -> None:
    """`sync` on ZFS freezes the newest disk, finds nothing to do then, and keeps one whose dataset is not mounted."""
    images = back_up(scope, disk, "synced")
    environment = {"STATE_DIRECTORY": str(scope.path("state"))}
    argv = ("sync", images.store, "--to", images.out, "--wait", "0", "--min-free", "0%")
    began = time.monotonic()
    assert scope.synthfs(*argv, env=environment).stderr.endswith("1 made, 0 removed, 0 kept, 0 failed\n")
    print(f"sync of one disk on ZFS: {time.monotonic() - began:.1f} s")
    assert read_right(scope, images.out / "pc" / images.frozen, disk)
    for dataset in images.datasets.values():
        zfs("zfs", "unmount", dataset)
    done = scope.synthfs(*argv, env=environment, check=False)
    assert (done.returncode, (images.out / "pc" / images.frozen).exists()) == (1, True)
