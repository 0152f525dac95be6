"""Machines that are a little unusual: every volume is in its place, on the right disk, or alone with a word that says why.

Expected bytes are those of the original disks, made by sfdisk, sgdisk and the mkfs tools; tables are read by sfdisk, parted and
qemu. Not for: which evidence wins (test_evidence), single decisions (test_place, test_logical). Units: bytes.
"""

import json
import re
import struct
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import makembr
import need
import sparse
from lab import Scope
from makedisk import BASIC_DATA, LINUX, MIB, OriginalDisk, Partition, make_disk
from makestore import Client, Image, Store
from makevolume import KnownFile
from processes import run
from synthfs.engines.read import Reader
from synthfs.plan.disk import Disk
from synthfs.survey import survey

SECTOR = 512
ALONE = 512 * 1024
FEW = (KnownFile("resident.txt", 217), KnownFile("odd.bin", 70_001))
LVM_ID = "Zt5wTn-aaaa-bbbb-cccc-dddd-eeee-ffffff"


@pytest.fixture
def machine(scope: Scope) -> Client:
    return Store(scope.path("store") / "urbackup").client("pc")


def disk_of(image: Image) -> Disk:
    """The disk of an image, as the program works it out of the store. What its verbs make of disks, other tests look at."""
    catalog = survey(str(image.directory.parent.parent), None)
    (found,) = [disk for disk in catalog.disks if disk.image.raw.path == str(image.raw)]
    return found


def bare(scope: Scope, image: Image) -> Path:
    """The disk of an image as a file, without a container."""
    disk = disk_of(image)
    target = sparse.create(scope.path("bare") / "disk.img", disk.length)
    with closing(Reader(disk.extent_map())) as reader, target.open("r+b") as file:
        for at, length in reader.data(0, disk.length):
            buffer = bytearray(length)
            reader.read(at, memoryview(buffer))
            file.seek(at)
            file.write(buffer)
    return target


def words(image: Image) -> str:
    return "\n".join(note.text for note in disk_of(image).notes)


def differing(served: Path, original: Path, *, without: Sequence[tuple[int, int]] = ()) -> list[int]:
    """Offsets of sectors that are not the original's, whose ranges (start, end) `without` image are taken for zeroes.

    Behind the end of a served disk nothing is compared: with an MBR it ends where its last partition does, or a little later.
    """
    found = []
    length = min(original.stat().st_size, served.stat().st_size)
    with served.open("rb") as one, original.open("rb") as other:
        ranges = [*sparse.data(one, 0, length), *sparse.data(other, 0, length)]
        for block in sorted({n for at, size in ranges for n in range(at // MIB, (at + size - 1) // MIB + 1)}):
            at = block * MIB
            one.seek(at), other.seek(at)
            want = min(MIB, length - at)
            a, b = one.read(want), bytearray(other.read(want))
            for start, end in without:
                start, end = max(start - at, 0), min(end - at, len(b))
                b[start:end] = bytes(max(end - start, 0))
            if a != b:
                found += [at + n for n in range(0, len(b), SECTOR) if a[n : n + SECTOR] != b[n : n + SECTOR]]
    return found


def table(scope: Scope, disk: Path) -> list[tuple[int, int]]:
    """Start and length of the partitions, as sfdisk reads them."""
    found = json.loads(scope.run(["sfdisk", "--json", disk]).stdout)["partitiontable"]["partitions"]
    return [(entry["start"] * SECTOR, entry["size"] * SECTOR) for entry in found]


def is_alone(scope: Scope, image: Image, *said: str) -> None:
    """The volume is the only one of a generated disk, with all its bytes, and a note says why."""
    disk = bare(scope, image)
    ((start, _),) = table(scope, disk)
    assert start == ALONE
    with disk.open("rb") as one, image.raw.open("rb") as other:
        one.seek(ALONE), other.seek(ALONE)
        assert one.read(image.length) == other.read()
    text = words(image)
    assert [word for word in said if word not in text] == []


# -- disks with equal tables


def twins(scope: Scope, count: int, scheme: str, fs: str) -> list[OriginalDisk]:
    """Disks whose tables are the same, with two volumes each that are not."""
    identity = "7A11E000-0000-4222-8333-444455556666" if scheme == "gpt" else "7a11e001"
    kind = {"gpt": BASIC_DATA if fs == "ntfs" else LINUX, "mbr": "83"}[scheme]
    disks = []
    for number in range(count):
        first = Partition(1, MIB, 6 * MIB, kind, "one", fs=fs, label=f"first{number}", files=FEW)  # type: ignore[arg-type]  # as named
        second = replace(first, number=2, start=7 * MIB, name="two", label=f"second{number}")
        path = scope.path(f"twin{number}") / "disk.img"
        disks.append(make_disk(path, first, second, length=14 * MIB, scheme=scheme, identity=identity))  # type: ignore[arg-type]
    heads = {disk.read(0, SECTOR) for disk in disks}
    assert len(heads) == 1
    return disks


@pytest.mark.parametrize(
    ("scheme", "devices", "stamps"),
    [
        ("mbr", ("/dev/sda", "/dev/sdb"), ("260301-0200", "260301-0201")),
        ("gpt", ("/dev/nvme0n1", "/dev/nvme1n1"), ("260301-0200", "260301-0201")),
        ("gpt", ("/dev/sda", "/dev/sdb"), ("260301-0200", "260308-0200")),
        ("mbr", ("/dev/vda", "/dev/vdb", "/dev/vdc"), ("260301-0200", "260301-0200", "260302-0200")),
    ],
    ids=["MBR", "NVMe", "a week later", "three"],
)
def test_equal_tables(scope: Scope, machine: Client, scheme: str, devices: Sequence[str], stamps: Sequence[str]) -> None:
    """Each of the disks is there, with its own volumes, and says that there are others."""
    disks = twins(scope, len(devices), scheme, "ext4")
    images: list[tuple[OriginalDisk, Image]] = []
    for number in (2, 1):  # the second volume of each before the first of any
        for disk, device, stamp in zip(disks, devices, stamps, strict=True):
            letter = f"{device}{'p' if device[-1].isdigit() else ''}{number}"
            late = f"{stamp[:-1]}{int(stamp[-1]) + 3 * number}"
            how = {"client": "linux", "device": device, "device_number": 1}
            images.append((disk, machine.backup(disk, number, letter, late, **how)))  # type: ignore[arg-type]  # as named
    for disk, image in images:
        assert differing(bare(scope, image), disk.path) == [], image.letter
        assert all(device in words(image) for device in devices)


def test_equal_tables_of_windows(scope: Scope, machine: Client) -> None:
    """Windows tells no names, but numbers: C: and D: are on disk 0, E: and F: on disk 1. F: lies nearer to C: than D: does."""
    disks = twins(scope, 2, "gpt", "ntfs")
    for letter, minute in (("C", 0), ("F", 1), ("E", 8), ("D", 9)):
        number, partition = divmod("CDEF".index(letter), 2)
        mbr = _of_disk(disks[number], partition + 1, number)
        machine.backup(disks[number], partition + 1, letter, f"260301-020{minute}", mbr=mbr)
    found = json.loads(scope.synthfs("list", "--json", machine.store.root).stdout)["disks"]
    assert {disk["volume"]: [p["letter"] for p in disk["partitions"]] for disk in found} == {
        "C": ["C", "D"],
        "D": ["C", "D"],
        "E": ["E", "F"],
        "F": ["E", "F"],
    }


def _of_disk(disk: OriginalDisk, partition: int, number: int) -> bytes:
    return makembr.capture(disk, partition, device_number=number)


def test_one_disk_of_several_numbers(scope: Scope, machine: Client) -> None:
    """Windows numbers its disks anew at each start: the D: of the night before is of the same disk, and nothing is said."""
    (disk,) = twins(scope, 1, "gpt", "ntfs")
    for number, stamp in ((0, "260301-0200"), (2, "260302-0200"), (1, "260303-0200")):
        c = machine.backup(disk, 1, "C", stamp, mbr=_of_disk(disk, 1, number))
        if number != 1:
            machine.backup(disk, 2, "D", f"{stamp[:-1]}5", mbr=_of_disk(disk, 2, number))
    assert differing(bare(scope, c), disk.path) == []
    assert words(c) == ""


# -- a copied volume


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(("C", "260301-0200"), ("D", "260301-0205")), (("D", "260301-0200"), ("C", "260301-0205")),
     (("C", "260224-0200"), ("D", "260301-0205"))],
    ids=["C first", "D first", "C a week before"],
)  # fmt: skip
def test_copied_volume(
    scope: Scope, machine: Client, scheme: str, first: tuple[str, str], second: tuple[str, str]
) -> None:
    """D: was made by copying C: into a larger partition: its boot sector names C:'s place, where C: itself is."""
    kind = BASIC_DATA if scheme == "gpt" else "7"
    c = Partition(1, MIB, 8 * MIB, kind, fs="ntfs", label="Windows", files=FEW)
    d = Partition(2, 9 * MIB, 8 * MIB + 64 * 1024, kind, fs=None, label="Copy")
    disk = make_disk(scope.path("disk") / "disk.img", c, d, length=20 * MIB, scheme=scheme)  # type: ignore[arg-type]
    sparse.copy(disk.path, disk.path, offset=c.start, length=c.length, to=d.start)
    disk = replace(disk, partitions=(c, replace(d, fs="ntfs")))
    images = {}
    for letter, stamp in (first, second):
        images[letter] = machine.backup(disk, {"C": 1, "D": 2}[letter], letter, stamp)
    for image in images.values():
        assert differing(bare(scope, image), disk.path) == [], image.letter
    assert "boot sector names the place of partition 1" in words(images["D"])


# -- logical volumes, and what looks like one


@pytest.mark.parametrize("fs", ["btrfs", "vfat", "ntfs", "none"])
def test_logical_volume_of_any_file_system(scope: Scope, machine: Client, fs: str) -> None:
    """The physical volume is on a partition of type "Linux": the id that the client found there is one of LVM."""
    need.tool("mkfs.btrfs", "mkfs.vfat", "mkntfs")
    physical = make_disk(scope.path("pv") / "disk.img", Partition(1, MIB, 130 * MIB, LINUX), length=140 * MIB)
    volume = sparse.create(scope.path("lv") / "volume.img", 112 * MIB)
    make = {"btrfs": ["mkfs.btrfs", "-q"], "vfat": ["mkfs.vfat"], "ntfs": ["mkntfs", "-qFf"], "none": ["true"]}[fs]
    run([*make, volume])
    logical = OriginalDisk(volume, 112 * MIB, "gpt", "", (Partition(1, 0, 112 * MIB),), b"")
    mbr = _linux_sidecar(physical, "/dev/sda1", LVM_ID)
    image = machine.backup(logical, 1, "/dev/mapper/vg-root", client="linux", mbr=mbr)
    is_alone(scope, image, "partition 1", "LVM")


def _linux_sidecar(disk: OriginalDisk, name: str, serial: str) -> bytes:
    return makembr.mbr_bytes(
        version=int(disk.scheme == "gpt"),
        device_number=0,
        partition_number=int(name[-1]),
        serial=serial,
        volume_name=f"LINUX:{name}",
        filesystem="root",
        mbr_data=disk.read(0, SECTOR),
        gpt=makembr.GptCopy.read(disk.path) if disk.scheme == "gpt" else None,
    )


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_changed_uuid(scope: Scope, machine: Client, scheme: str, fs: str) -> None:
    """The recorded UUID is an old one: a volume that fills its partition to the byte is there all the same."""
    length = {"ext4": 8 * MIB, "xfs": 300 * MIB}[fs]
    p = Partition(1, MIB, length, LINUX if scheme == "gpt" else "83")
    disk = make_disk(scope.path("disk") / "disk.img", p, length=length + 2 * MIB, scheme=scheme)  # type: ignore[arg-type]
    volume = sparse.create(scope.path("volume") / "volume.img", length)
    run([f"mkfs.{fs}", "-q", volume])
    sparse.copy(volume, disk.path, offset=0, length=length, to=p.start)
    mbr = _linux_sidecar(disk, "/dev/sda1", "99999999-9999-4999-8999-999999999999")
    image = machine.backup(disk, 1, "/dev/sda1", client="linux", mbr=mbr, block=4096)
    assert differing(bare(scope, image), disk.path) == []
    assert "fills it to the byte" in words(image)


# -- no partition table


@pytest.mark.parametrize(
    ("fs", "text"),
    [
        ("ntfs", b"\0\0please try it once more\0"),
        ("fat16", b""),
        ("fat32", b"\r\nPress any key to restart\r\n"),
        ("exfat", b"\0 boot error"),
    ],
)
def test_no_table(scope: Scope, machine: Client, fs: str, text: bytes) -> None:
    """A stick without a table: its volume begins at its first sector, whatever text stands where a table has its entries."""
    need.tool("mkfs.exfat", "mkfs.vfat", "mkntfs")
    length = 64 * MIB
    stick = sparse.create(scope.path("stick") / "stick.img", length)
    make = {"fat16": ["mkfs.vfat", "-F16"], "fat32": ["mkfs.vfat", "-F32"], "exfat": ["mkfs.exfat"]}
    run([*make.get(fs, ["mkntfs", "-qFf", "-p", "0"]), stick])
    boot = bytearray(stick.read_bytes()[:SECTOR])
    boot[446:510] = text.ljust(64, b"\0")
    _write(stick, 0, boot)
    if fs == "ntfs":
        _write(stick, length - SECTOR, boot)
    seen = bytearray(boot)
    if fs != "ntfs":
        # It was in use between the two reads.
        seen[{"fat16": 37, "fat32": 65, "exfat": 106}[fs]] ^= 1
    volume = Partition(1, 0, length, fs="ntfs" if fs == "ntfs" else None, label="Stick")
    disk = OriginalDisk(stick, length, "mbr", "", (volume,), b"")
    image = machine.backup(disk, 1, "E", mbr=_windows_sidecar(1, bytes(seen)))
    served = bare(scope, image)
    assert served.stat().st_size == length
    assert differing(served, stick) == []
    assert "no partition table" in words(image)
    assert scope.synthfs("verify", image.raw, check=False).returncode == 0
    refused = scope.synthfs("materialize", image.raw, "--new-identity", "-o", scope.path("new") / "x.vhd", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (5, 1)


def _windows_sidecar(number: int, record: bytes) -> bytes:
    return makembr.mbr_bytes(
        version=0, device_number=1, partition_number=number, serial="1", volume_name="Stick", filesystem="", mbr_data=record
    )


def _write(path: Path, offset: int, content: bytes | bytearray) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_text_is_no_table(scope: Scope, machine: Client) -> None:
    """A first sector of another volume, or of none: a status that is neither 00 nor 80 makes it no boot record."""
    c = Partition(1, MIB, 8 * MIB, "7", fs="ntfs", label="Windows", files=FEW)
    disk = make_disk(scope.path("disk") / "disk.img", c, length=9 * MIB, scheme="mbr")
    for slot, letter in enumerate("CDEF"):
        record = bytearray(disk.read(0, SECTOR))
        record[446 + 16 * slot] = 0x72
        is_alone(scope, machine.backup(disk, 1, letter, mbr=_windows_sidecar(1, bytes(record))), "neither 00 nor 80")


def test_boot_code_with_the_head_of_a_volume(scope: Scope, machine: Client) -> None:
    """GRUB keeps what a boot record has where volumes tell their length: such a record has partitions all the same."""
    c = Partition(1, MIB, 40 * MIB, "c", fs="vfat", label="DATA", files=FEW)
    disk = make_disk(scope.path("disk") / "disk.img", c, length=41 * MIB, scheme="mbr")
    _write(disk.path, 3, disk.boot_sector(1)[3:90])
    image = machine.backup(disk, 1, "D")
    assert differing(bare(scope, image), disk.path) == []
    assert disk_of(image).layout.scheme == "MBR"


# -- sectors of 4096 bytes


def large_sectors(scope: Scope, *partitions: Partition, length: int) -> OriginalDisk:
    """A disk of 4096-byte sectors with an MBR, by sfdisk on a device of such sectors."""
    path = sparse.create(scope.path("4096") / "disk.img", length)
    with scope.scope("device") as inner:
        device = inner.loop(path, sector_size=4096)
        lines = [f"start={p.start // 4096}, size={p.length // 4096}, type={p.type}" for p in partitions]
        run(["sfdisk", "--quiet", "--no-tell-kernel", device], input="\n".join(["label: dos", *lines]).encode())
    for p in partitions:
        volume = sparse.create(path.with_name(f"volume{p.number}"), p.length)
        if p.fs == "ntfs":
            hidden = ["-p", str(p.start // 4096), "-H", "255", "-S", "63"]
            run(["mkntfs", "-Fqf", "-s", "4096", "-c", "4096", *hidden, volume, str(p.length // 4096)])
        else:
            run(["mkfs.ext4" if p.fs == "ext4" else "mkfs.xfs", "-q", volume])
        sparse.copy(volume, path, offset=0, length=p.length, to=p.start)
    return OriginalDisk(path, length, "mbr", "", partitions, b"", 4096)


def capture_4096(disk: OriginalDisk, number: int, *, linux: bool, record: bool = True) -> bytes:
    return makembr.mbr_bytes(
        version=0,
        device_number=0,
        partition_number=number,
        serial=makembr.linux_uuid(disk.path, disk.partition(number).start, disk.partition(number).length) if linux else "1",
        volume_name=f"LINUX:/dev/sda{number}" if linux else "Data",
        filesystem="",
        mbr_data=disk.read(0, SECTOR) if record else b"",
    )


def sectors(scope: Scope, image: Image) -> int:
    """The length of a logical sector, as libvhdi reads it from the VHDX."""
    target = scope.path("vhdx") / "disk.vhdx"
    scope.synthfs("materialize", image.raw, "--format", "vhdx", "--reflink", "auto", "-o", target)
    found = re.search(r"Bytes per sector\s*:\s*(\d+)", run(["vhdiinfo", target]).stdout.decode())
    assert found
    return int(found[1])


@pytest.mark.parametrize("fs", ["ntfs", "ext4", "xfs"])
def test_mbr_of_4096_byte_sectors(scope: Scope, machine: Client, fs: str) -> None:
    """The table counts such sectors: everything is in its place, also what tells nothing of sectors, and what is shorter."""
    need.tool("vhdiinfo")
    kind, size = ("7", 20 * MIB) if fs == "ntfs" else ("83", 300 * MIB if fs == "xfs" else 20 * MIB)
    a = Partition(1, MIB, size, kind, fs=fs)  # type: ignore[arg-type]  # as named
    b = Partition(2, size + 4 * MIB, size, kind, fs=fs)  # type: ignore[arg-type]
    disk = large_sectors(scope, a, b, length=2 * size + 4 * MIB)
    ntfs = fs == "ntfs"
    letters = ("D", "E") if ntfs else ("/dev/sda1", "/dev/sda2")
    how: dict[str, Any] = {"client": "windows" if ntfs else "linux", "block": 4096}
    images = [
        machine.backup(disk, number, letter, mbr=capture_4096(disk, number, linux=not ntfs), **how)
        for number, letter in enumerate(letters, 1)
    ]
    for image in images:
        assert differing(bare(scope, image), disk.path) == []
        assert (disk_of(image).layout.sector_size, sectors(scope, image)) == (4096, 4096)


def test_4096_byte_sectors_without_a_record(scope: Scope, machine: Client) -> None:
    """Windows gives no part of such a sector: the volume is alone, on a disk of such sectors, where it began on its own."""
    need.tool("vhdiinfo")
    disk = large_sectors(scope, Partition(1, 5 * MIB, 20 * MIB, "7", fs="ntfs"), length=30 * MIB)
    image = machine.backup(disk, 1, "D", mbr=capture_4096(disk, 1, linux=False, record=False), block=4096)
    (content,) = disk_of(image).contents
    assert (content.partition.start, sectors(scope, image)) == (5 * MIB, 4096)
    served = bare(scope, image)
    with served.open("rb") as one:
        one.seek(5 * MIB)
        assert one.read(20 * MIB) == disk.read(5 * MIB, 20 * MIB)


def test_large_file_system_sectors_on_a_small_sectored_disk(scope: Scope, machine: Client) -> None:
    """NTFS of 4096-byte sectors, made by Linux in a partition of a disk of 512-byte ones: the partition's length tells."""
    c = Partition(1, MIB, 20 * MIB, "7", label="Data")
    disk = make_disk(scope.path("disk") / "disk.img", c, length=22 * MIB, scheme="mbr")
    volume = sparse.create(scope.path("volume") / "volume.img", c.length)
    run(["mkntfs", "-Fqf", "-s", "4096", "-c", "4096", "-p", "256", "-H", "255", "-S", "63", volume])
    sparse.copy(volume, disk.path, offset=0, length=c.length, to=c.start)
    uuid = makembr.linux_uuid(disk.path, c.start, c.length)
    length = int.from_bytes(disk.boot_sector(1)[40:48], "little") * 4096
    imaged = replace(disk, partitions=(replace(c, length=length),))
    image = machine.backup(imaged, 1, "/dev/sda1", client="linux", mbr=_linux_sidecar(disk, "/dev/sda1", uuid), block=4096)
    assert disk_of(image).layout.sector_size == 512
    assert differing(bare(scope, image), disk.path) == []


# -- logical drives


def extended(scope: Scope, how: str) -> OriginalDisk:
    """C: and two logical drives that fill the extended partition, each behind a gap."""
    gap = 63 * SECTOR if how == "ms-dos" else MIB
    start = 16065 * SECTOR if how == "ms-dos" else 10 * MIB
    length = 16065 * SECTOR - gap if how == "ms-dos" else 8 * MIB
    fs, kind = ("ext4", "83") if how == "ext4" else ("ntfs", "7")
    c = Partition(1, MIB, 6 * MIB, kind, fs=fs, label="C", files=FEW)  # type: ignore[arg-type]  # as named
    e = Partition(5, start + gap, length, kind, fs=fs, label="E", files=FEW)  # type: ignore[arg-type]
    f = replace(e, number=6, start=e.end + gap, label="F")
    container = Partition(2, start, f.end - start, "f")
    disk = make_disk(scope.path("disk") / "disk.img", c, container, e, f, length=-(-f.end // MIB) * MIB, scheme="mbr")
    if how in ("windows", "ms-dos"):
        for one in (e, f):
            for offset in (one.start, one.end - SECTOR):
                _write(disk.path, offset + 0x1C, struct.pack("<I", gap // SECTOR))
    return disk


@pytest.mark.parametrize("how", ["windows", "ms-dos", "mkntfs", "ext4"])
def test_logical_drives_in_place(scope: Scope, machine: Client, how: str) -> None:
    """Where they fill the extended partition: on the disk of each, in their places, as sfdisk and parted read them."""
    need.tool("parted")
    disk = extended(scope, how)
    linux: dict[str, Any] = {"client": "linux"} if how == "ext4" else {}
    letters = {1: "/dev/sda1", 5: "/dev/sda5", 6: "/dev/sda6"} if how == "ext4" else {1: "C", 5: "E", 6: "F"}
    images = [machine.backup(disk, number, letter, **linux) for number, letter in letters.items()]
    container, *drives = (disk.partition(number) for number in (2, 5, 6))
    for image in images:
        served = bare(scope, image)
        # Of the records those bytes may differ that mean nothing, such as places by cylinder and head, and where the second is.
        others = differing(served, disk.path)
        assert len(others) <= 3
        assert all(container.start <= at < container.end for at in others)
        assert not any(drive.start <= at < drive.end for at in others for drive in drives)
        assert table(scope, served) == table(scope, disk.path)
        assert scope.run(["parted", "--script", served, "print"], check=False).returncode == 0
        assert "logical drives follow from" in words(image)
    assert scope.synthfs("verify", image.raw, check=False).returncode == 0
    kinds = [e["type"] for e in json.loads(run(["sfdisk", "--json", served]).stdout)["partitiontable"]["partitions"]]
    assert kinds == [e["type"] for e in json.loads(run(["sfdisk", "--json", disk.path]).stdout)["partitiontable"]["partitions"]]


def test_logical_drives_in_doubt(scope: Scope, machine: Client) -> None:
    """One was not imaged: none is placed. The disk of C: has an empty table for them, and names the images that hold them."""
    need.tool("parted")
    disk = extended(scope, "windows")
    c, f = machine.backup(disk, 1, "C"), machine.backup(disk, 6, "F")
    is_alone(scope, f, "logical drive")
    served = bare(scope, c)
    container = disk.partition(2)
    without = [(container.start, container.end)]
    assert differing(served, disk.path, without=without) == [container.start]
    assert scope.run(["parted", "--script", served, "print"], check=False).returncode == 0
    assert table(scope, served) == table(scope, disk.path)[:2]
    text = words(c)
    assert all(word in text for word in (f.raw.name, "no image of logical drive 1", "extended partition"))


# -- lengths


def test_ends_at_a_whole_mib(scope: Scope, machine: Client) -> None:
    """In every format alike: qemu tells the length, and opens the bare one for writing without its cache."""
    need.tool("qemu-img", "qemu-io")
    sectors = 16065 * 12
    c = Partition(1, 63 * SECTOR, (sectors - 63) * SECTOR, "7", fs="ntfs", label="XP", files=FEW)
    disk = make_disk(scope.path("disk") / "disk.img", c, length=sectors * SECTOR, scheme="mbr")
    image = machine.backup(disk, 1, "C")
    whole = -(-disk.length // MIB) * MIB
    assert whole != disk.length
    served = bare(scope, image)
    assert served.stat().st_size == whole
    assert differing(served, disk.path) == []
    assert "length is not recorded" in words(image)
    scope.run(["qemu-io", "-t", "none", "-f", "raw", "-c", "read 0 512", served])
    for form, suffix, driver in (("vhd", "vhd", "vpc"), ("vhd-dynamic", "vhd", "vpc"), ("vhdx", "vhdx", "vhdx")):
        target = scope.path(form) / f"disk.{suffix}"
        scope.synthfs("materialize", image.raw, "--format", form, "--reflink", "auto", "-o", target)
        found = json.loads(run(["qemu-img", "info", "--output=json", "-f", driver, target]).stdout)
        assert found["virtual-size"] == whole, form


# -- slots out of order


@pytest.mark.parametrize("tells", [False, True])
def test_slots_out_of_order(scope: Scope, machine: Client, tells: bool) -> None:
    """Windows' number may count by slot or by place: where the boot sector does not tell, a warning says so."""
    c = Partition(1, 40 * MIB, 34 * MIB, "c", fs="vfat", label="C", files=FEW)
    d = Partition(2, MIB, 34 * MIB, "c", fs="vfat", label="D", files=FEW)
    disk = make_disk(scope.path("disk") / "disk.img", c, d, length=74 * MIB, scheme="mbr")
    if not tells:
        for p in (c, d):
            _write(disk.path, p.start + 0x1C, bytes(4))
    image = machine.backup(disk, 1, "C")
    machine.backup(disk, 2, "D")
    assert differing(bare(scope, image), disk.path) == []
    assert ("by its number alone" in words(image)) is not tells


# -- boot loaders


@pytest.mark.parametrize(
    ("first", "count", "boots"), [(1, 40, True), (1, 62, True), (1, 63, False), (70, 40, False), (2048 + 100, 40, True)]
)
def test_grub_that_is_not_saved(scope: Scope, machine: Client, first: int, count: int, boots: bool) -> None:
    """GRUB's core is in the 63 sectors that UrBackup saves, or in an image; otherwise a warning says that it will not boot."""
    code = bytearray(b"\xeb\x63\x90".ljust(440, b"\x90"))
    code[92:100], code[384:389] = struct.pack("<Q", first), b"GRUB "
    loader = b"Geom\0Hard Disk\0Read\0 Error\r\n".ljust(500, b"\xeb") + struct.pack("<QHH", first + 1, count, 0x820)
    # A zero count before it ends the list.
    loader = loader[:488] + bytes(12) + loader[500:]
    root = Partition(1, MIB, 8 * MIB, "83", active=True, fs="ext4", label="root", files=FEW)
    gap = ((first * SECTOR, loader),) if first < 2048 else ()
    disk = make_disk(scope.path("d") / "disk.img", root, length=9 * MIB, scheme="mbr", boot_code=bytes(code), gap=gap)
    extra = (SECTOR, disk.read(SECTOR, 63 * SECTOR))
    mbr = makembr.capture(disk, 1, client="linux", extra=extra)
    image = machine.backup(disk, 1, "/dev/sda1", client="linux", mbr=mbr)
    assert ("does not boot by itself" in words(image)) is not boots
