"""Reading on ZFS, in the guest that scripts/uml-run starts: the mount beside the .raw file itself, on one dataset.

ZFS cannot say whether a read would wait (no RWF_NOWAIT). The mount reads in place while that is prompt; the other two of ours
always hand a read to a thread, and never, which keeps everybody waiting while a disk is slow: they show what that is worth.
A guest is slow in its own way: only ratios mean something. This module is also what runs inside of it.
Units: bytes and seconds.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from bench.rig import Rig, forget
from bench.row import OURS, Row
from lab import MIB, REPOSITORY, Lab, Scope
from ledger import mounts_below
from makedisk import BASIC_DATA, Partition, make_disk
from makestore import Store
from processes import wait_until

RAW, THREAD, IN_PLACE = ".raw itself", f"{OURS}, always in a thread", f"{OURS}, always in place"
_DATA_AT = 16 * MIB
_WRAPPER = 512 * 1024
_PATCHED = """
import sys
from synthfs.host.files import OpenSource
OpenSource.try_read = {}
from synthfs.cli.main import main
sys.exit(main())
"""
_TRIES = {
    THREAD: "lambda *_: False",
    IN_PLACE: "lambda self, offset, into: self.read(offset, into) or True",
}


def rows(rig: Rig) -> Iterator[Row]:
    unpacked = REPOSITORY.parent / "shared" / "guest" / "uml-kernel.tar.zst"
    if not unpacked.is_file() and not Path("/var/cache/synthfs/uml/complete").is_file():
        rig.skip("reading on ZFS", "no kernel for scripts/uml-run (scripts/uml-build makes it)")
        return
    if not rig.has("reading on ZFS", "fio", "mkntfs"):
        return
    subprocess.run([REPOSITORY / "scripts" / "uml-build"], check=True, capture_output=True)
    argv = [str(REPOSITORY / "scripts" / "uml-run"), "-d", "2G", "-t", "280", "-m", "1536", sys.executable, __file__]
    # Not a child of the laboratory, whose pids the guest does not see.
    argv += ["smoke"] * rig.smoke
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise AssertionError(f"the guest failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    for title, unit, samples in json.loads(done.stdout[done.stdout.index("[[") :]):
        # Measured in turns there; here they are only told.
        yield Row(title, unit, {name: iter(row).__next__ for name, row in samples.items()}, rounds=len(samples[RAW]))


def guest(smoke: bool) -> None:
    """What happens inside: prints [title, unit, samples] of each row, as JSON."""
    subprocess.run(["zpool", "create", "-f", "-O", "mountpoint=/run/tank", "tank", "/dev/ubdb"], check=True)
    found = []
    with Lab(Path("/run/synthfs-lab")) as lab, lab.scope("zfs") as scope:
        rig = Rig(scope, smoke)
        data = (8 if smoke else 64) * MIB
        volume = Partition(1, MIB, _DATA_AT + data + 16 * MIB, BASIC_DATA, fs="ntfs", data=((_DATA_AT, data),))
        disk = make_disk(scope.path() / "original.img", volume, length=volume.end + 2 * MIB)
        raw = Store(Path("/run/tank/urbackup")).client("pc").backup(disk, 1).raw
        subprocess.run(["zpool", "sync", "tank"], check=True)
        mounts = {OURS: scope.synthfs_mount(raw.parents[2])}
        mounts |= {name: _patched(scope, raw.parents[2], how) for name, how in _TRIES.items()}
        files = {name: mount / "pc" / f"{raw.stem}.vhd" for name, mount in mounts.items()} | {RAW: raw}

        def fresh(name: str) -> None:
            if name != RAW:
                forget(files[name])

        def fio(name: str, *options: str) -> float:
            start = _DATA_AT + (_WRAPPER if name == RAW else volume.start)
            done = rig.fio([files[name]], f"--offset={start}", f"--size={data}", f"--runtime={rig.seconds}s", *options)
            return float(done["iops"])

        for title, unit, options in (
            ("on ZFS (guest kernel): sequential, 1 MiB", "MiB/s", ("--rw=read", "--bs=1M")),
            ("on ZFS (guest kernel): random 4 KiB", "IOPS", ("--rw=randread", "--bs=4k", "--fadvise_hint=random")),
        ):
            contestants = {name: (lambda name=name, options=options: fio(name, *options)) for name in files}
            result = Row(title, unit, contestants, prepare=fresh).measure(1 if smoke else 7)
            found.append([title, unit, result.samples])
    subprocess.run(["zpool", "destroy", "-f", "tank"], check=True)
    print(json.dumps(found))


def _patched(scope: Scope, store: Path, how: str) -> Path:
    target = scope.path("patched")
    scope.start([sys.executable, "-c", _PATCHED.format(how), "mount", store, target])
    assert wait_until(lambda: bool(mounts_below(target)) and (target / "pc").exists(), 30.0), scope.logs()[-1]
    return target


if __name__ == "__main__":
    guest("smoke" in sys.argv)
