"""A machine boots from a materialized disk, and from one that is written to in a mount, and its own writes stay there.

Not for: `synthfs boot`, which writes nothing (test_boot). Under emulation, so that it runs everywhere. Units: bytes, seconds.
"""

import itertools
import subprocess
from pathlib import Path

import makeboot
import need
from lab import Scope
from makestore import Store
from test_boot import expected, said, sums

LIMIT = 150.0
SIGNATURE = 440
"""Where an MBR has the disk's signature, which Windows changes where it collides."""
MIB = 1 << 20


def test_both(scope: Scope) -> None:
    """The guest reads the disk that it is given, changed signature included, writes to it, and no backup changes."""
    need.fuse()
    need.root()
    need.tool("qemu-system-x86_64")
    disk = makeboot.bios_disk(scope.path("bios") / "bios.img")
    mounted = scope.btrfs()
    store = Store(mounted / "urbackup")
    image = store.client("bios").backup(disk, 1)
    scratch, out = mounted / "scratch", mounted / "out"
    scratch.mkdir()
    out.mkdir()
    before = sums(store.root)
    scope.synthfs("materialize", image.raw, "-o", out)
    target = scope.synthfs_mount(store.root, "--writable", scratch)
    written = target / "bios" / f"{image.raw.stem}.vhd"
    with written.open("r+b") as file, disk.path.open("r+b") as model:
        for there in (file, model):
            there.seek(SIGNATURE)
            there.write(b"\xde\xc0\xad\x0b")
    wanted = expected(disk) | {"scribbled": ""}
    runs = [boot(scope, one, disk.length) for one in (out / written.name, written)]
    for (machine, _), first in zip(runs, (None, wanted["first"]), strict=True):
        assert machine.wait(LIMIT) == 0, first
    (_, frozen), (_, changed) = runs
    assert said(changed) == wanted
    assert said(frozen).items() >= {key: value for key, value in wanted.items() if key != "first"}.items()
    assert said(frozen)["first"] != wanted["first"]
    for one in (out / written.name, written):
        behind = one.read_bytes()[MIB : disk.length]
        # `yes scribble` from the first MiB on, as much as `dd` got out of its pipe in four reads.
        pairs = zip(behind, itertools.cycle(b"scribble\n"), strict=False)
        count = next(number for number, (byte, its) in enumerate(pairs) if byte != its)
        assert count >= 4 * 4096
        assert behind[count:] == disk.read(MIB + count, disk.length - MIB - count)
    assert sums(store.root) == before


def boot(scope: Scope, disk: Path, length: int) -> "tuple[subprocess.Popen[bytes], Path]":
    serial = scope.path("serial") / "said"
    drive = f"if=ide,format=raw,size={length},file.driver=file,file.filename={disk}"
    machine = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none"]
    return scope.start([*machine, "-serial", f"file:{serial}", "-drive", drive]), serial
