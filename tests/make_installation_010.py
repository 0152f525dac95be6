"""Makes tests/fixtures/0.1.0.btrfs.zst: all that synthfs 0.1.0 keeps on disk, for the tests of the versions after it.

    git worktree add /tmp/synthfs-0.1.0 2ce1fde
    python tests/make_installation_010.py /tmp/synthfs-0.1.0

It was run once, as root, with the code of 0.1.0 (commit 2ce1fde), and is not to be run with any other: what a later version
writes is no evidence of what 0.1.0 wrote. Beside the image it leaves what 0.1.0 showed at that time, file by file, and what
the original disks were (0.1.0.json). The image is a whole BTRFS, since sessions and caches rest on attributes, inodes and
ctimes, which git does not keep.

Not for: expectations (test_left_by_010). Units: bytes.

    client     disk                          what is special
    office-pc  GPT: C:, D:                   the table tells the disk's length
    till       MBR: System Reserved, C:      C: ends 37 KiB behind a whole MiB, the original disk with that MiB
    lab:3      MBR: C:                       the same with 5 KiB; and a mount has to change the client's name
    press      MBR: C:, E:, F:               E: and F: are logical drives
    xp         MBR: C:                       C: begins at sector 63, so that only a dynamic VHD can share its data
"""

import json
import random
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import need
from installation import DISKS, FACTS, FROZEN, HOME, IMAGE, MADE, SCRATCH, SETTINGS, STORE, Installation, installed
from kinds import FEW, Workshop
from lab import Lab, Scope
from makedatabase import Database
from makedisk import BASIC_DATA, MIB, OriginalDisk, Partition, make_disk
from makestore import Image, Store
from makevolume import SECTOR
from onmount import ask
from processes import run
from sampledisks import GPT_BOOT_CODE, MBR_BOOT_CODE

LENGTH = 160 * MIB
KIB = 1024
STAMP = "260301-0201"
CONFIGURATION = f"""\
[mount]
writable = "{SCRATCH}"
format = ["vhd", "vhd-dynamic"]
refresh = 0

[sync]
to = "{FROZEN}"
client = "[!x]*"
min-free = "0%"
wait = 0
"""

PLAIN, DYNAMIC = f"Image_C_{STAMP}.vhd", f"Image_C_{STAMP}.dynamic.vhd"
WRITES = {
    f"office-pc/{PLAIN}": 5 * MIB,
    f"office-pc/{DYNAMIC}": 6 * MIB,
    f"till/{PLAIN}": 14 * MIB,
    f"till/new-identity/{PLAIN}": 15 * MIB,
    f"lab_3~*/{PLAIN}": 6 * MIB,
    f"press/{PLAIN}": 6 * MIB,
    f"xp/{DYNAMIC}": 4 * MIB,
}
"""The disks that are written to, and where in the file. The mount gives a name of its own to one of the clients."""

DISCARDED = (f"office-pc/new-identity/{PLAIN}", f"till/{PLAIN}")
"""These were written to before, and that was discarded."""

WRITE = """
path, at, content = arguments[0], int(arguments[1]), bytes.fromhex(arguments[2])
fd = os.open(path, os.O_RDWR)
assert os.pwrite(fd, content, at) == len(content)
os.fsync(fd)
os.close(fd)
answer(None)
"""


@dataclass(slots=True)
class Originals:
    """The disks of the machines, and their backups in `store`."""

    scope: Scope
    store: Store
    disks: dict[str, OriginalDisk] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)

    def add(self, client: str, disk: OriginalDisk, *volumes: tuple[int, str]) -> None:
        self.disks[client] = disk
        for number, letter in volumes:
            self.images.append(self.store.client(client).backup(disk, number, letter, STAMP))

    def facts(self) -> dict[str, dict[str, Any]]:
        contents = {client: disk.path.read_bytes() for client, disk in self.disks.items()}
        return {client: {"length": len(each), "sha256": sha256(each).hexdigest()} for client, each in contents.items()}

    def path(self, name: str) -> Path:
        return self.scope.path(name) / "disk.img"

    def make(self) -> None:
        c = Partition(1, MIB, 8 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows", files=FEW)
        d = Partition(3, 9 * MIB, 4 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Daten", files=FEW)
        office = make_disk(self.path("office"), c, d, length=14 * MIB, boot_code=GPT_BOOT_CODE)
        self.add("office-pc", office, (1, "C"), (3, "D"))
        system = Partition(1, MIB, 8 * MIB, "7", active=True, fs="ntfs", label="System Reserved", files=FEW)
        c = Partition(2, 9 * MIB, 8 * MIB + 37 * KIB, "7", fs="ntfs", label="Windows", files=FEW)
        how: dict[str, Any] = {"scheme": "mbr", "boot_code": MBR_BOOT_CODE}
        till = make_disk(self.path("till"), system, c, length=18 * MIB, identity="0000711a", **how)
        self.add("till", till, (1, "SYSVOL"), (2, "C"))
        c = Partition(1, MIB, 8 * MIB + 5 * KIB, "7", active=True, fs="ntfs", label="Messung", files=FEW)
        self.add("lab:3", make_disk(self.path("lab"), c, length=10 * MIB, identity="00001ab3", **how), (1, "C"))
        self.add("press", Workshop(self.scope).extended, (1, "C"), (5, "E"), (6, "F"))
        start, end = 63 * SECTOR, 2 * 255 * 63 * SECTOR
        c = Partition(1, start, end - start, "7", active=True, fs="ntfs", label="XP", files=FEW)
        self.add("xp", make_disk(self.path("xp"), c, length=16 * MIB, identity="000063ff", **how), (1, "C"))


def bare(scope: Scope) -> Path:
    """An empty BTRFS in a file, as small as there are."""
    file = scope.sparse(LENGTH, "installation")
    run(["mkfs.btrfs", "-q", "--mixed", file])
    return file


def fill(place: Installation, scope: Scope) -> dict[str, Any]:
    """Uses every verb of 0.1.0 that keeps something; returns what 0.1.0 showed of it."""
    for directory in (STORE, SCRATCH, FROZEN, DISKS, MADE):
        place.seen(directory).mkdir(mode=0o700)
    place.seen(SETTINGS).write_text(CONFIGURATION)
    originals = Originals(scope, Store(place.seen(STORE)))
    originals.make()
    with Database(scope.path("var") / "backup_server.db") as database:
        rows = {}
        for image in originals.images:
            path = STORE / image.raw.relative_to(place.seen(STORE))
            rows[image.client, image.letter] = database.add(image, path=str(path))
        database.associate(rows["till", "C:"], rows["till", "SYSVOL"])
        database.nightly_copy(place.seen(STORE) / "urbackup")
    place.synthfs("--config", SETTINGS, "sync", STORE)
    for client, *options in (
        ("till",),
        ("till", "--new-identity"),
        ("lab:3", "--format", "vhd-dynamic"),
        ("office-pc", "--format", "vhdx"),
        ("xp", "--format", "vhd-dynamic"),
    ):
        place.seen(MADE / client).mkdir(exist_ok=True)
        raw = STORE / client / f"{STAMP}_Image_C" / f"Image_C_{STAMP}.raw"
        place.synthfs("materialize", raw, *options, "-o", MADE / client)
    facts: dict[str, Any] = {"originals": originals.facts()}
    with place.mounted() as disks:
        facts["disks"] = {name: fact for name, fact in place.what(DISKS).items() if name.endswith(".vhd")}
        for name in DISCARDED:
            write(scope, disks / name, MIB)
            place.synthfs("discard", DISKS / name)
        for pattern, at in WRITES.items():
            (path,) = disks.glob(pattern)
            write(scope, path, at)
    with place.mounted() as disks:
        listed = json.loads(place.synthfs("sessions", DISKS, "--json").stdout)
        facts["sessions"] = place.what(DISKS, *(one["path"] for one in listed))
        facts["discarded"] = place.what(DISKS, DISCARDED[0])
    facts["frozen"], facts["made"] = place.what(FROZEN), place.what(MADE)
    place.run(["fstrim", HOME])
    return facts


def write(scope: Scope, path: Path, at: int) -> None:
    content = random.Random(str(at)).randbytes(20_000)
    ask(scope, WRITE, path, str(at), content.hex())


def main() -> None:
    need.tool("mkfs.btrfs", "fstrim", "zstd")
    checkout = Path(sys.argv[1]).resolve()
    IMAGE.parent.mkdir(exist_ok=True)
    with Lab() as lab, lab.scope("making") as scope:
        image = bare(scope)
        with installed(scope, image, checkout) as place:
            facts = fill(place, scope)
        run(["zstd", "-q", "-f", "--ultra", "-22", "--long=27", image, "-o", IMAGE], timeout=600.0)
    FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
