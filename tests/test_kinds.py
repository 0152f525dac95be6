"""Every kind of disk comes out right, or is refused with a clear word: the table of `docs/disk-kinds.md`, row by row.

Expected values are the original disks, and what sgdisk, sfdisk, qemu-img, ntfsfix and blkid say of the served ones.
Not for: single decisions (test_place, test_layout), the whole round trip of common disks (test_crown). Units: bytes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import kinds
import need
import sampledisks
import sparse
import test_unusual
from kinds import STAMP, TIB, Kinds
from lab import Lab, Scope
from makedatabase import Database
from makedisk import BASIC_DATA, ESP, LINUX, MIB, OriginalDisk
from makestore import Image, Store
from onmount import ask
from processes import wait_until

DOCUMENT = Path(__file__).parent.parent / "docs" / "disk-kinds.md"
UNSUPPORTED = 5
FOOTER = 512
SECTOR = 512
ALONE = 512 * 1024
"""Where the one partition of a generated disk begins."""

# Sectors in which a file differs from the original disk, with what UrBackup does not have in it zeroed.
COMPARE = """
served, original, jobs = arguments[0], arguments[1], json.loads(arguments[2])
found = []
with open(served, 'rb') as one, open(original, 'rb') as other:
    for at, at_original, length, zeroed in jobs:
        for done in range(0, length, 1 << 20):
            want = min(1 << 20, length - done)
            one.seek(at + done), other.seek(at_original + done)
            a, b = one.read(want), bytearray(other.read(want))
            for start, end in zeroed:
                start, end = max(start - at_original - done, 0), max(min(end - at_original - done, want), 0)
                b[start:end] = bytes(max(end - start, 0))
            if a != b:
                found += [at + done + n for n in range(0, want, 512) if a[n:n + 512] != b[n:n + 512]]
answer(found[:50])
"""

# The tables of a served disk, without the container, in a file of holes.
SKELETON = """
source, target, length = arguments[0], arguments[1], int(arguments[2])
edge = min(length // 2, 256 * 1024)
with open(source, 'rb') as old, open(target, 'xb') as new:
    new.truncate(length)
    for at in (0, length - edge):
        old.seek(at), new.seek(at)
        new.write(old.read(edge))
answer(None)
"""

SGDISK = """
running = [subprocess.Popen(['sgdisk', '-v', path], stdout=subprocess.PIPE, text=True) for path in arguments]
answer([process.communicate()[0] for process in running])
"""


@dataclass(slots=True)
class Bench:
    """The store of all kinds, what `list --json` says of it, and its mount."""

    kinds: Kinds
    facts: dict[str, Any]
    mountpoint: Path
    _bare: dict[Path, Path] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        return self.kinds.scope

    def image(self, client: str, letter: str = "C") -> Image:
        return self.kinds.images[client, letter]

    def disk(self, client: str, letter: str = "C") -> dict[str, Any]:
        (found,) = [disk for disk in self.facts["disks"] if (disk["client"], disk["volume"]) == (client, letter)]
        return dict(found)

    def file(self, client: str, letter: str = "C", *, renewed: bool = False) -> Path:
        return self.mountpoint / client / ("new-identity" if renewed else ".") / f"{self.image(client, letter).raw.stem}.vhd"

    def bare(self, path: Path) -> Path:
        """The tables of a served disk, for tools that know nothing of VHD."""
        if path not in self._bare:
            length = self.scope.run(["stat", "--format=%s", path]).stdout
            self._bare[path] = self.scope.path("bare") / "disk.img"
            ask(self.scope, SKELETON, path, self._bare[path], str(int(length) - FOOTER))
        return self._bare[path]

    def table(self, path: Path) -> dict[str, Any]:
        """What sfdisk says of a served disk."""
        found: dict[str, Any] = json.loads(self.scope.run(["sfdisk", "--json", self.bare(path)]).stdout)["partitiontable"]
        return found

    def differing(self, client: str, letter: str, disk: OriginalDisk, *, without: tuple[int, ...] = ()) -> list[int]:
        """Offsets of sectors of the served disk that are not the original's; partitions `without` image are zero.

        A disk with an MBR ends at a whole MiB, wherever the original did.
        """
        zeroed = [(p.start, p.end) for p in disk.partitions if p.number in without]
        jobs = json.dumps([(0, 0, disk.length, zeroed)])
        path = self.file(client, letter)
        whole = self.disk(client, letter)["scheme"] == "as imaged"
        length = disk.length if whole else disk.served_length
        assert int(self.scope.run(["stat", "--format=%s", path]).stdout) == length + FOOTER
        found: list[int] = ask(self.scope, COMPARE, path, disk.path, jobs)
        return found

    def words(self, client: str, letter: str = "C") -> str:
        """All notes about a disk."""
        return "\n".join(note["text"] for note in self.disk(client, letter)["notes"])

    def is_alone(self, client: str, letter: str, kind: str, *words: str) -> None:
        """The volume is the only one on a generated disk, as sfdisk sees it; all its bytes are there, and a note says why."""
        image = self.image(client, letter)
        path, partition = self.file(client, letter), image.partition
        table = self.table(path)
        (entry,) = table["partitions"]
        assert (table["label"], entry["start"], entry["type"]) == ("gpt", 1024, kind)
        length = int(self.scope.run(["stat", "--format=%s", path]).stdout) - FOOTER
        assert length >= 256 * MIB
        assert length % MIB == 0
        assert entry["size"] * SECTOR == partition.length
        jobs = json.dumps([(ALONE, partition.start, partition.length, [])])
        assert ask(self.scope, COMPARE, path, image.disk.path, jobs) == []
        notes = [note["text"] for note in self.disk(client, letter)["notes"] if note["warning"]]
        assert len(notes) == 1
        assert [word for word in words if word not in notes[0]] == []
        # Disk offset and file offset agree, for every block size there is.
        shown = json.loads(self.scope.synthfs("show", "--json", "--extents", path).stdout)
        assert [e["offset"] - e["source_offset"] for e in shown["extents"] if e["kind"] == "file"] == [0]

    def refused(self, image: Image, *words: str, options: tuple[str, ...] = ()) -> None:
        """No VHD is made of the disk: one line says why, and nothing is left behind."""
        target = self.scope.path("refused") / "disk.vhd"
        done = self.scope.synthfs("materialize", image.raw, "-o", target, *options, check=False)
        assert done.returncode == UNSUPPORTED, done
        (line,) = done.stderr.splitlines()
        assert [word for word in words if word not in line] == [], line
        assert list(target.parent.iterdir()) == []


@pytest.fixture(scope="module")
def bench(lab: Lab) -> Iterator[Bench]:
    need.fuse()
    need.tool("sgdisk", "sfdisk", "qemu-img", "ntfsfix", "mkfs.xfs")
    for made in kinds.lay(lab):
        listed = made.scope.synthfs("list", "--json", "--all", made.store.root)
        assert listed.stderr == ""
        yield Bench(made, json.loads(listed.stdout), made.scope.synthfs_mount(made.store.root))


# -- volumes whose disk is not known


@pytest.mark.parametrize(
    ("letter", "kind"),
    [("C", BASIC_DATA), ("ESP", ESP), ("U", BASIC_DATA), ("_dev_sdb", LINUX), ("_dev_sdc", LINUX)],
    ids=["NTFS", "ESP", "FAT", "ext4", "XFS"],
)
def test_no_mbr(bench: Bench, letter: str, kind: str) -> None:
    """Without an `.mbr` a volume of any file system is alone on a disk, in a partition of the type that goes with it."""
    bench.is_alone("no-mbr", letter, kind, "no .mbr file")


@pytest.mark.parametrize("letter", ["C", "D"], ids=["cut off", "empty"])
def test_unusable_mbr(bench: Bench, letter: str) -> None:
    """One that ends too early is as good as none, and named."""
    bench.is_alone("unusable-mbr", letter, BASIC_DATA, f"Image_{letter}_{STAMP}.raw.mbr is not usable")


@pytest.mark.parametrize("client", ["lvm", "lvm-untyped"])
def test_lvm(bench: Bench, client: str) -> None:
    """A logical volume is not put where the physical one lies, known by the partition's type or by its id."""
    bench.is_alone(client, "C", LINUX, "partition 1", "LVM")


def test_dynamic(bench: Bench) -> None:
    """What the client calls a dynamic volume is not put where the partition of that number lies."""
    bench.is_alone("dynamic", "S", BASIC_DATA, "dynamic volume")


def test_whole_device(bench: Bench) -> None:
    """Number -1: a device without a number; the image holds a whole disk, which is there to its last byte."""
    bench.is_alone("whole-device", "_dev_loop3", LINUX, "whole disk")


def test_too_long(bench: Bench) -> None:
    """An image longer than its partition is not cut; both lengths are told."""
    long = bench.image("too-long").length
    bench.is_alone("too-long", "C", BASIC_DATA, "longer than partition 1", str(long), str(4 * MIB))


@pytest.mark.parametrize(("client", "letter"), [("logical", "E"), ("logical", "F"), ("logical-linux", "_dev_sda5")])
def test_logical_drive(bench: Bench, client: str, letter: str) -> None:
    """A logical drive is not put into C:, although it is as long and its boot sector says 2048 as C:'s does."""
    bench.is_alone(client, letter, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "logical drive")


def test_beside_logical_drives(bench: Bench) -> None:
    """C: of that disk is served in its place, with an empty extended partition, and said to be so."""
    disk = bench.kinds.work.extended
    assert bench.differing("logical", "C", disk, without=(2,)) == [disk.partition(2).start]
    assert [e["node"][-1] for e in bench.table(bench.file("logical"))["partitions"]] == ["1", "2"]
    assert "extended partition, which UrBackup does not save" in bench.words("logical")


def test_mountable(bench: Bench) -> None:
    """The volume on a generated disk is whole for a checker, backup boot sector included."""
    volume = sparse.create(bench.scope.path("volume") / "c.img", 12 * MIB)
    source = """
options = ['bs=512k', 'skip=1', 'count=24', 'conv=sparse,notrunc', 'status=none']
answer(subprocess.run(['dd', f'if={arguments[0]}', f'of={arguments[1]}', *options]).returncode)
"""
    assert ask(bench.scope, source, bench.file("no-mbr"), volume) == 0
    assert "successfully" in bench.scope.run(["ntfsfix", "--no-action", volume]).stdout
    with volume.open("rb") as file:
        boot = file.read(512)
        file.seek(-512, 2)
        assert file.read() == boot
    assert boot[3:7] == b"NTFS"


def test_volume_only(bench: Bench) -> None:
    """Any image alone on request: one that has its place, one that is only a part, one whose disk is too large."""
    for client, letter in (("clone-1", "C"), ("clone-1", "ESP"), ("huge", "C")):
        image = bench.image(client, letter)
        target = bench.kinds.store.root.with_name(f"{client}-{letter}.vhd")
        bench.scope.synthfs("materialize", "--volume-only", image.raw, "-o", target)
        table = json.loads(bench.scope.run(["sfdisk", "--json", target]).stdout)["partitiontable"]
        assert [(e["start"], e["size"] * SECTOR) for e in table["partitions"]] == [(1024, image.partition.length)]
        jobs = json.dumps([(ALONE, image.partition.start, image.partition.length, [])])
        assert ask(bench.scope, COMPARE, target, image.disk.path, jobs) == []
        target.unlink()


# -- which partition a number means


@pytest.mark.parametrize("letter", ["C", "D"])
def test_windows_numbers(bench: Bench, letter: str) -> None:
    """Windows' partition 1 is in slot 2 and lies behind partition 2, in slot 5: the disk is the original one."""
    assert bench.differing("windows-gaps", letter, bench.kinds.work.gaps) == []
    assert bench.words("windows-gaps", letter) == ""


@pytest.mark.parametrize("letter", ["_dev_sda3", "_dev_sda7"])
def test_linux_numbers(bench: Bench, letter: str) -> None:
    """Linux' numbers are slots, 3 and 7, of which the higher one lies first: the disk is the original one."""
    assert bench.differing("linux-gaps", letter, bench.kinds.work.linux_gaps) == []
    assert bench.words("linux-gaps", letter) == ""


def test_disagreement(bench: Bench) -> None:
    """A number that names C: on the volume of D:: the boot sector is believed, and the note says so."""
    assert bench.differing("disagreement", "D", bench.kinds.work.uefi, without=(1, 2, 3)) == []
    assert "placed in partition 4: its boot sector names that place" in bench.words("disagreement", "D")


# -- which images are one disk


def test_sysvol_is_esp(bench: Bench) -> None:
    """Two images of one partition fill it once; neither is offered as a disk of its own."""
    assert bench.differing("sysvol-is-esp", "C", bench.kinds.work.uefi, without=(2, 4)) == []
    assert {d["volume"] for d in bench.facts["disks"] if d["client"] == "sysvol-is-esp"} == {"C"}
    parts = [part["image"].rpartition("/")[2] for part in bench.facts["parts"] if part["client"] == "sysvol-is-esp"]
    assert parts == [f"Image_{letter}_{STAMP}.raw" for letter in ("ESP", "SYSVOL")]


@pytest.mark.parametrize("letter", ["C", "_dev_sda3", "_dev_sda7"])
def test_two_names(bench: Bench, letter: str) -> None:
    """A volume imaged under two names gives a disk under each, and a third volume is completed by either."""
    assert bench.differing("two-names", letter, bench.kinds.work.linux_gaps) == []


def test_two_disks(bench: Bench) -> None:
    """Disks of one machine with equal device numbers stay two disks."""
    for letter, number in (("C", 6), ("D", 7)):
        disk = bench.image("two-disks", letter).disk
        assert f"{number:06}" in disk.identity
        assert bench.differing("two-disks", letter, disk) == []


def test_clones(bench: Bench) -> None:
    """Two clients with one disk identity: the ESP of the first does not get into the second's disk."""
    uefi = bench.kinds.work.uefi
    assert bench.differing("clone-1", "C", uefi, without=(2, 4)) == []
    assert bench.differing("clone-2", "C", uefi, without=(1, 2, 4)) == []


def test_time_runs_backwards(scope: Scope) -> None:
    """When the clock is set back, the ESP of 02:59 is two minutes older than the C: of 02:01, and that of 02:00 an hour."""
    disk = sampledisks.gpt_disk(scope.path("disk") / "disk.img")
    client = Store(scope.path("store") / "urbackup").client("pc")
    images = {
        "2026-10-25 00:00:00": client.backup(disk, 1, "ESP", "261025-0200"),
        "2026-10-25 00:59:00": client.backup(disk, 1, "ESP", "261025-0259"),
        "2026-10-25 01:01:00": client.backup(disk, 3, "C", "261025-0201"),
    }
    path = scope.path("database") / "backup_server.db"
    with Database(path) as database:
        for time, image in images.items():
            database.add(image, backuptime=time)
    listed = scope.synthfs("list", "--json", "--database", path, client.directory.parent)
    (facts,) = json.loads(listed.stdout)["disks"]
    esp, _, c, _ = facts["partitions"]
    assert (esp["image"].rpartition("/")[2], esp["age"]) == ("Image_ESP_261025-0259.raw", -120)
    assert c["image"].endswith("Image_C_261025-0201.raw")


# -- strange tables


@pytest.mark.parametrize("letter", ["C", "D"])
def test_backup_copies(bench: Bench, letter: str) -> None:
    """A "backup" that is the primary table once more gives the original disk, backup table in its place."""
    assert bench.differing("backup-copies", letter, bench.kinds.work.uefi, without=(2,)) == []


def test_bad_primary(bench: Bench) -> None:
    """A primary table with a wrong checksum is replaced from the backup: the disk is the original one, with a warning."""
    assert bench.differing("bad-primary", "C", bench.kinds.work.uefi, without=(1, 2, 4)) == []
    assert "tables taken from the backup GPT" in bench.words("bad-primary")


@pytest.mark.parametrize("client", ["short-record", "empty-record"])
def test_no_boot_record(bench: Bench, client: str) -> None:
    """A missing or short boot record is made anew, and is the only sector that differs."""
    assert bench.differing(client, "C", bench.kinds.work.uefi, without=(1, 2, 4)) == [0]
    assert "protective boot record made anew" in bench.words(client)


def test_hybrid(bench: Bench) -> None:
    """A boot record with partitions beside a GPT is kept; the GPT is what counts."""
    assert bench.differing("hybrid", "C", bench.kinds.work.hybrid) == []
    assert bench.disk("hybrid")["scheme"] == "GPT"


def test_hybrid_new_identity(bench: Bench) -> None:
    """The signature of such a boot record is replaced as well, by another than 0, and nothing else in it."""
    source = "answer([open(path, 'rb').read(512).hex() for path in arguments])"
    paths = (bench.file("hybrid"), bench.file("hybrid", renewed=True))
    old, new = (bytes.fromhex(sector) for sector in ask(bench.scope, source, *paths))
    assert old[440:444] == bytes.fromhex("78563412")
    assert new[440:444] not in (old[440:444], bytes(4))
    assert new[:440] + new[444:] == old[:440] + old[444:]


def test_256_entries(bench: Bench) -> None:
    """A table twice as long as usual, and a volume in slot 200 of it."""
    assert bench.differing("256-entries", "C", bench.kinds.work.many, without=(1,)) == []
    (partition,) = [p for p in bench.disk("256-entries")["partitions"] if p["content"] == "image"]
    assert partition["number"] == 200


@pytest.mark.parametrize("client", ["grub", "veracrypt"])
def test_boot_loader(bench: Bench, client: str) -> None:
    """The sectors of a boot loader behind the MBR come back."""
    work = bench.kinds.work
    disk = {"grub": work.grub, "veracrypt": work.veracrypt}[client]
    assert disk.read(SECTOR, 8) != bytes(8)
    assert bench.differing(client, "C", disk) == []


def test_xp(bench: Bench) -> None:
    """A partition from LBA 63 is served like any other; freezing it shares nothing, and says why."""
    disk = bench.kinds.work.xp
    assert bench.differing("xp", "C", disk) == []
    target = bench.kinds.store.root.with_name("xp.vhd")
    done = bench.scope.synthfs("materialize", bench.image("xp").raw, "-o", target, check=False)
    assert (done.returncode, target.exists()) == (7, False)
    assert "synthfs: " in done.stderr
    assert "block" in done.stderr


# -- disks that a VHD cannot hold, and images that hold a whole disk


def forms(disk: dict[str, Any]) -> list[str]:
    return [container["format"] for container in disk["containers"]]


@pytest.mark.parametrize("letter", ["hda", "hdb"], ids=["GPT, slot 1 empty", "MBR"])
def test_version_100(bench: Bench, letter: str) -> None:
    """An image of a whole disk is that disk, from offset 0 and without its 512 KiB of slack."""
    disk = bench.image("version-100", letter).disk
    assert bench.differing("version-100", letter, disk) == []
    bench.refused(bench.image("version-100", letter), "whole disk", options=("--volume-only",))
    bench.refused(bench.image("version-100", letter), "whole disk", options=("--new-identity",))


def test_4096_sectors(bench: Bench) -> None:
    """A disk of 4096-byte sectors is a VHDX, and no VHD, which knows only those of 512."""
    disk = bench.disk("4096-sectors")
    assert (disk["sector_size"], disk["length"], forms(disk)) == (4096, 64 * MIB, ["vhdx"])
    assert [(p["start"], p["length"]) for p in disk["partitions"]] == [(MIB, 16 * MIB)]
    for form in ("vhd", "vhd-dynamic", "vmdk"):
        bench.refused(bench.image("4096-sectors"), "4096-byte sectors", options=("--format", form))


def test_above_2040_gib(bench: Bench) -> None:
    """So is a disk above 2040 GiB, whatever the length of the volume on it."""
    disk = bench.disk("huge")
    assert (disk["length"], forms(disk)) == (3 * TIB, ["vhdx"])
    for form in ("vhd", "vhd-dynamic"):
        bench.refused(bench.image("huge"), "3 TiB", "2040 GiB", options=("--format", form))


@pytest.mark.parametrize("letter", ["D", "E", "F"], ids=["placed", "alone", "no table in it"])
def test_enlarged(bench: Bench, letter: str) -> None:
    """A `.raw` that 2.5.33 made longer holds the volume's bytes and no more; above 2040 GiB it is a VHDX."""
    image, disk = bench.image("enlarged", letter), bench.disk("enlarged", letter)
    assert image.raw.stat().st_size % MIB == 1024
    (partition,) = [p for p in disk["partitions"] if p["content"] == "image"]
    assert partition["image_length"] == image.length
    assert partition["start"] == (16 * MIB if letter == "D" else ALONE)
    assert forms(disk) == ["vhdx"]
    bench.refused(image, "2040 GiB", options=("--format", "vhd"))


def test_beyond_a_vhd(bench: Bench) -> None:
    """What no VHD can hold is a VHDX in the mount, by itself and beside the others, once its holes are known."""
    assert ask(bench.scope, "answer(sorted(os.listdir(arguments[0])))", bench.mountpoint) == sorted(
        {disk["client"] for disk in bench.facts["disks"]} | {".synthfs", "README.txt"}
    )
    names = "answer(sorted(os.listdir(arguments[0])))"
    for client in ("4096-sectors", "huge", "enlarged"):
        expected = sorted(d["containers"][0]["file"] for d in bench.facts["disks"] if d["client"] == client)
        assert wait_until(lambda: ask(bench.scope, names, bench.mountpoint / client) == [*expected, "new-identity"], 60.0)  # noqa: B023
    assert {(d["client"], d["volume"]) for d in bench.facts["disks"] if forms(d) == ["vhdx"]} == {
        ("4096-sectors", "C"),
        ("huge", "C"),
        *(("enlarged", letter) for letter in "DEF"),
    }


# -- images that are not all there


def test_cut(bench: Bench) -> None:
    """Half of C: lies in its place, and zeroes behind it up to NTFS' backup boot sector; a warning tells both lengths."""
    uefi = bench.kinds.work.uefi
    c = uefi.partition(3)
    missing = [(p.start, p.end) for p in uefi.partitions if p is not c] + [(c.start + kinds.CUT, c.end - SECTOR)]
    assert ask(bench.scope, COMPARE, bench.file("cut"), uefi.path, json.dumps([(0, 0, uefi.length, missing)])) == []
    words = bench.words("cut")
    assert f"the volume has {kinds.CUT} bytes, and its NTFS says that it has {uefi.ntfs_length(3)}" in words
    assert [note["warning"] for note in bench.disk("cut")["notes"] if "NTFS" in note["text"]] == [True]


def test_no_volume(scope: Scope) -> None:
    """A `.raw` that ends where its volume begins is not offered, with the reason; `verify` of the store calls it bad."""
    disk = sampledisks.small_ntfs_disk(scope.path("disk") / "disk.img")
    client = Store(scope.path("store") / "urbackup").client("pc")
    client.backup(disk, 1)
    empty = client.backup(disk, 1, stamp="260302-0201")
    with empty.raw.open("r+b") as file:
        file.truncate(ALONE)
    root = client.directory.parent
    listed = json.loads(scope.synthfs("list", "--json", "--all", root).stdout)
    (skipped,) = listed["not_offered"]
    assert (skipped["name"], len(listed["disks"])) == ("/".join(empty.raw.parts[-3:]), 1)
    assert f".raw holds no volume: it has {ALONE} bytes" in skipped["reason"]
    done = scope.synthfs("verify", "--store", root, check=False)
    assert done.returncode == 4
    assert [line.split()[:3] for line in done.stdout.splitlines() if skipped["name"] in line] == [["bad", "input", "image"]]


# -- all of them


def test_list(bench: Bench) -> None:
    """`list --json` names every image once, in a disk or as a part, and every partition with its right place and image."""
    disks = {(d["client"], d["volume"]): d for d in bench.facts["disks"]}
    parts = {tuple(p["image"].split("/")[::2]) for p in bench.facts["parts"]}
    of_parts = {key for key, image in bench.kinds.images.items() if (key[0], image.raw.name) in parts}
    assert len(disks) == len(bench.facts["disks"])
    assert disks.keys() | of_parts == bench.kinds.images.keys()
    assert not disks.keys() & of_parts
    assert bench.facts["not_offered"] == []
    assert bench.facts["database"] is None
    assert [d["edition"] for d in disks.values()] == list(dict.fromkeys(d["edition"] for d in disks.values()))
    for (client, letter), facts in disks.items():
        image = bench.image(client, letter)
        assert facts["image"] == "/".join(image.raw.parts[-3:])
        assert (facts["name"], facts["stamp"], facts["mixed"]) == (image.raw.stem, image.stamp, False)
        alone = any("disk of its own" in note["text"] for note in facts["notes"])
        if alone or facts["scheme"] == "as imaged":
            assert [p["content"] for p in facts["partitions"]] == ["image"]
            continue
        original = _original(bench, client, image)
        assert facts["length"] == original.served_length
        assert facts["disk_id"].lower() == original.identity.lower()
        expected = [(p.number, p.start, p.length) for p in original.partitions if p.number < 5 or original.scheme == "gpt"]
        assert [(p["number"], p["start"], p["length"]) for p in facts["partitions"]] == sorted(expected)


def _original(bench: Bench, client: str, image: Image) -> OriginalDisk:
    return bench.kinds.work.huge if client == "enlarged" else image.disk


def test_sgdisk_finds_no_problem(bench: Bench) -> None:
    """In any GPT that is served, under either identity."""
    served = [(d["client"], d["volume"]) for d in bench.facts["disks"] if d["scheme"] == "GPT" and forms(d) == ["vhd"]]
    names = [(*name, renewed) for name in served for renewed in (False, True)]
    bare = [bench.bare(bench.file(client, letter, renewed=renewed)) for client, letter, renewed in names]
    bare.append(bench.bare(bench.file("version-100", "hda")))
    said = ask(bench.scope, SGDISK, *bare, timeout=90)
    assert [text for text in said if "No problems found" not in text] == []
    assert len(said) == len(bare) > 60


def test_new_identities(bench: Bench) -> None:
    """Beside each disk: the same partitions, all ids of the disk others, and no id twice in the store."""
    seen: list[str] = []
    for disk in bench.facts["disks"]:
        if forms(disk) != ["vhd"] or disk["scheme"] == "as imaged":
            continue
        name = disk["client"], disk["volume"]
        old, new = (bench.table(bench.file(*name, renewed=renewed)) for renewed in (False, True))
        same = ("start", "size", "type", "name", "bootable")
        assert [[p.get(k) for k in same] for p in old["partitions"]] == [[p.get(k) for k in same] for p in new["partitions"]]
        ids, others = ([t["id"], *(p["uuid"] for p in t["partitions"] if "uuid" in p)] for t in (old, new))
        if old["label"] == "dos":
            ids, others = ids[:1], others[:1]
        assert not set(ids) & set(others)
        seen += others
        _check_attributes(disk, old["partitions"], new["partitions"])
    assert len(seen) == len(set(seen)) > 60


def _check_attributes(disk: dict[str, Any], old: list[dict[str, str]], new: list[dict[str, str]]) -> None:
    """Basic data partitions without an image are hidden and get no letter; all others keep what they have."""
    if disk["scheme"] != "GPT":
        return
    empty = [p["content"] == "zero" for p in disk["partitions"]]
    for before, after, is_empty in zip(old, new, empty, strict=True):
        added = {"62", "63"} if is_empty and before["type"] == BASIC_DATA else set()
        bits = [set(re.findall(r"\d+|[A-Z]\w+", p.get("attrs", "").replace("GUID:", ""))) for p in (before, after)]
        assert bits[1] == bits[0] | added


def test_new_identity_changes_nothing_inside(bench: Bench) -> None:
    """The partitions' bytes are the same under both identities, and so are those behind an MBR's signature."""
    for client, letter in (("grub", "C"), ("xp", "C"), ("windows-gaps", "C"), ("no-mbr", "C"), ("sysvol-is-esp", "C")):
        partitions = bench.disk(client, letter)["partitions"]
        jobs: list[tuple[int, int, int, list[int]]] = [(p["start"], p["start"], p["length"], []) for p in partitions]
        plain, renewed = (bench.file(client, letter, renewed=renewed) for renewed in (False, True))
        assert ask(bench.scope, COMPARE, plain, renewed, json.dumps(jobs)) == []
        if bench.disk(client, letter)["scheme"] == "MBR":
            gap = json.dumps([(0, 0, partitions[0]["start"], [(440, 444)]), (512, 512, partitions[0]["start"] - 512, [])])
            assert ask(bench.scope, COMPARE, plain, renewed, gap) == [0]


def test_identity_is_stable(bench: Bench) -> None:
    """A generated disk has the same GUIDs in a copy of the store that another process reads."""
    copy = bench.scope.path("copy") / "urbackup"
    (copy / "no-mbr").mkdir(parents=True)
    image = bench.image("no-mbr")
    bench.scope.run(["cp", "-a", "--sparse=always", image.directory, copy / "no-mbr"])
    (facts,) = json.loads(bench.scope.synthfs("list", "--json", copy).stdout)["disks"]
    assert facts["disk_id"] == bench.disk("no-mbr")["disk_id"] == bench.table(bench.file("no-mbr"))["id"].lower()
    assert facts["edition"] == bench.disk("no-mbr")["edition"]


@pytest.mark.parametrize(("client", "letter"), [("no-mbr", "C"), ("hybrid", "C"), ("xp", "C"), ("version-100", "hda")])
def test_qemu(bench: Bench, client: str, letter: str) -> None:
    """QEMU takes the file for a VHD of exactly the disk's length."""
    shown = json.loads(bench.scope.run(["qemu-img", "info", "-f", "vpc", "--output=json", bench.file(client, letter)]).stdout)
    assert shown["virtual-size"] == bench.disk(client, letter)["length"]


def test_verify(bench: Bench) -> None:
    """`verify` calls wrong what is wrong with them, and nothing else; what has no `.hash` cannot be checked."""
    done = bench.scope.synthfs("verify", "--json", "--store", bench.kinds.store.root, check=False, timeout=120)
    *findings, last = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(f["finding"], (f.get("tables") or f["image"]).split("/")[0], f["where"]) for f in findings}
    assert {each for each in found if each[0] != "note"} == {
        ("bad input", "bad-primary", ".mbr: GPT"),
        ("bad input", "unusable-mbr", ".mbr"),
        ("bad input", "cut", "volume"),
        ("bad input", "cut", ".hash"),
        ("cannot check", "enlarged", ".hash"),
    }
    assert {where for kind, _, where in found if kind == "note"} == {"disk"}
    assert last["summary"]["checked"] == {"tables": len(bench.facts["disks"]), "image": len(bench.kinds.images)}
    assert done.returncode == 4


# -- the document


def test_document() -> None:
    """Every row of `docs/disk-kinds.md` names a test, and every test of a kind has its row."""
    rows = re.findall(r"^\|([^|]+)\|([^|]+)\|\s*`(test_\w+)`\s*\|$", DOCUMENT.read_text(), re.MULTILINE)
    named = [test for _, _, test in rows]
    tests = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    about_all = {"test_document", "test_list", "test_mountable", "test_beyond_a_vhd", "test_sgdisk_finds_no_problem"}
    about_all |= {"test_identity_is_stable", "test_qemu", "test_new_identity_changes_nothing_inside", "test_verify"}
    unusual = {name for name in vars(test_unusual) if name.startswith("test_")}
    assert set(named) - {"test_is_named_with_the_reason", "test_was_not_imaged"} == (tests - about_all) | unusual
    assert all(kind.strip() and outcome.strip() for kind, outcome, _ in rows)


