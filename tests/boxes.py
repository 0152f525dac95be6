"""Disks of every shape in every container: one store, one mount that shows them all, and the files frozen of it on demand.

Not for: judging any of it; test_containers does. Units: bytes.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import makembr
from crown import SAMPLES
from kinds import FEW, TIB, Workshop
from lab import Lab, Scope
from makedisk import BASIC_DATA, MIB, OriginalDisk, Partition, make_disk
from makestore import Image, Store
from makevolume import SECTOR
from onmount import ask
from processes import wait_until

GIB = 1 << 30
QEMU = {"vhd": "vpc", "vhd-dynamic": "vpc", "vhdx": "vhdx", "vmdk": "vmdk", "raw": "raw"}
"""What qemu calls them."""
SUFFIX = {"vhd": ".vhd", "vhd-dynamic": ".dynamic.vhd", "vhdx": ".vhdx", "vmdk": ".vmdk", "raw": ".img"}
SAMPLED = ("gpt", "xp", "two-volumes", "odd-sectors", "boot-manager", "linux")
EDGES = {
    "1 MiB": 33 * MIB,
    "2 MiB": 34 * MIB,
    "32 MiB": 64 * MIB,
    "2040 GiB": 2040 * GIB,
    "2 TiB": 2 * TIB,
}
"""Lengths that something in a container is a multiple of, or ends at; disks are that long, a sector less and one more."""
SHAPES = [*SAMPLED, "empty", "4096-sectors", "huge", *(f"{edge}{by:+}" for edge in EDGES for by in (-1, 0, 1))]


def _edged(path: Path, length: int, number: int) -> OriginalDisk:
    """A volume of data at its beginning, and behind it one that reaches to the backup table and has data at its end."""
    c = Partition(1, MIB, 8 * MIB, BASIC_DATA, "C", fs="ntfs", label="Windows", files=FEW)
    last = length - 9 * MIB - 33 * SECTOR
    # Up to the last cluster that is whole; a sector by sector backup of such a length would take too long.
    end = ((last // 4096 * 4096 - 8192, 4096),)
    d = Partition(2, 9 * MIB, last, BASIC_DATA, "D", fs="ntfs", label="Daten", files=FEW, fs_length=8 * MIB, data=end)
    disk = make_disk(path, c, d, length=length, identity=f"ED6E0000-0000-4222-8333-4444555566{number:02X}")
    # It calls itself as long as its partition, which mkntfs would take too long to make.
    boot = bytearray(disk.boot_sector(2))
    struct.pack_into("<Q", boot, 0x28, last // SECTOR - 1)
    with path.open("r+b") as file:
        for offset in (d.start, d.end - SECTOR):
            file.seek(offset)
            file.write(boot)
    return disk


def _empty(path: Path) -> OriginalDisk:
    """A partition in which nothing was ever written."""
    return make_disk(path, Partition(1, MIB, 61 * MIB, "7"), length=62 * MIB, scheme="mbr", identity="e3970001")


def _unformatted(disk: OriginalDisk) -> bytes:
    """What a client sends of a volume of which it knows no more than the disk."""
    record = disk.read(0, 512)
    return makembr.mbr_bytes(
        version=0, device_number=0, partition_number=1, serial="", volume_name="", filesystem="", mbr_data=record
    )


@dataclass(slots=True)
class Boxes:
    """The mounted store. A disk is named by its client."""

    scope: Scope
    store: Store
    output: Path
    disks: dict[str, OriginalDisk] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    mountpoint: Path = Path()
    _frozen: dict[tuple[str, str], Path] = field(default_factory=dict)

    def file(self, name: str, form: str, *, renewed: bool = False) -> Path:
        """The mounted file to open."""
        folder = self.mountpoint / name / ("new-identity" if renewed else ".")
        return folder / f"{self.images[name].raw.stem}{SUFFIX[form]}"

    def frozen(self, name: str, form: str, reflink: str = "auto") -> Path:
        """The materialized file; made once."""
        if (name, form) not in self._frozen:
            directory = self.output / f"{name} {form}"
            directory.mkdir()
            options = ["--format", form, "--reflink", reflink, "--json"]
            done = self.scope.synthfs("materialize", self.images[name].raw, "-o", directory, *options)
            self._frozen[name, form] = Path(json.loads(done.stdout)["file"])
        return self._frozen[name, form]

    def add(self, name: str, disk: OriginalDisk, *volumes: tuple[int, str], sidecar: bytes | None = None) -> None:
        """Backs up those volumes of a disk; the last one names it."""
        self.disks[name] = disk
        # As if the client read sector by sector: what is left of the last cluster is backed up too, and compared.
        block = disk.sector_size if disk.length < GIB else 4096
        without = (".hash", ".bitmap", ".cbitmap") if disk.length > GIB else ()
        for number, letter in volumes:
            captured = sidecar or makembr.capture(disk, number)
            client = self.store.client(name)
            self.images[name] = client.backup(disk, number, letter, mbr=captured, without=without, block=block)


def lay(lab: Lab) -> Iterator[Boxes]:
    with lab.scope("boxes") as scope:
        root = scope.btrfs(2048 * MIB)
        boxes = Boxes(scope, Store(root / "urbackup"), root / "output")
        boxes.output.mkdir()
        for name in SAMPLED:
            sample = SAMPLES[name]
            disk = sample.make(scope.path(name) / "disk.img")
            boxes.disks[name] = disk
            for number, letter, stamp in sample.images:
                sidecar = makembr.capture(disk, number, client=sample.client, **sample.capture)
                client = boxes.store.client(name)
                boxes.images[name] = client.backup(disk, number, letter, stamp, client=sample.client, mbr=sidecar)
        work = Workshop(scope)
        empty = _empty(scope.path("empty") / "disk.img")
        boxes.add("empty", empty, (1, "C"), sidecar=_unformatted(empty))
        boxes.add("4096-sectors", work.big_sectors, (1, "C"))
        boxes.add("huge", _edged(scope.path("huge") / "disk.img", 3 * TIB, 99), (2, "D"), (1, "C"))
        for number, (edge, length) in enumerate(EDGES.items()):
            for by in (-1, 0, 1):
                name = f"{edge}{by:+}"
                disk = _edged(scope.path("edge") / "disk.img", length + by * SECTOR, number * 3 + by + 1)
                boxes.add(name, disk, (2, "D"), (1, "C"))
        scope.run(["sync", "-f", root])
        boxes.mountpoint = scope.synthfs_mount(boxes.store.root, *(word for form in QEMU for word in ("--format", form)))
        pending = "answer(json.load(open(arguments[0]))['pending'])"
        status = boxes.mountpoint / ".synthfs" / "status.json"
        assert wait_until(lambda: ask(scope, f"import json\n{pending}", status) == 0, 60.0)
        yield boxes
