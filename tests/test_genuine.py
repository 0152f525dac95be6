"""Proves that every disk of the genuine store is the disk that was backed up: its files, its tables, its bytes.

Expected values are the source disks and what was recorded of them. Not for: which images are offered; see
test_genuine_database.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bytewise
import genuinedisks
import need
from genuine import SOURCE_DISK, GenuineStore
from genuinedisks import BESIDE, DISKS, FOOTER, LENGTH, LINUX, PARTITIONS, PARTS, RESERVED, Bench, Key, stage
from lab import Lab, Scope
from processes import Argument

IDS = ["-".join(disk) for disk in DISKS]


@pytest.fixture(scope="module")
def bench(lab: Lab, genuine: GenuineStore) -> Iterator[Bench]:
    yield from genuinedisks.lay(lab, genuine)


def test_every_complete_image_is_on_a_disk(bench: Bench) -> None:
    """Each of the 18 complete images that are there stands in the partition it was taken from, on the disks of its run."""
    listed = json.loads(bench.scope.synthfs("list", bench.genuine.root, "--database", bench.genuine.database, "--json").stdout)
    found = {
        disk["image"]: {one["number"]: one["image"] for one in disk["partitions"] if one["content"] == "image"}
        for disk in listed["disks"]
    }
    expected = {
        genuinedisks.name(disk): {number: genuinedisks.name(image) for number, image in images.items()}
        for disk, images in DISKS.items()
    }
    assert found == expected
    assert {image for images in DISKS.values() for image in images.values()} == {*DISKS, *PARTS}
    assert len({*DISKS, *PARTS}) == 18
    assert [disk["mixed"] for disk in listed["disks"]] == [False] * 11


@pytest.mark.parametrize("disk", DISKS, ids=IDS)
def test_files(bench: Bench, scope: Scope, disk: Key) -> None:
    """mtools, ntfs-3g and the kernel's ext4 find in the volumes exactly the recorded files, with the recorded SHA-256."""
    _files_are_the_recorded(bench, scope, bench.frozen(disk), disk)


@pytest.mark.parametrize("disk", [("0254", "C"), ("0309", LINUX), ("0312", "C")], ids="-".join)
def test_files_on_the_mount(bench: Bench, scope: Scope, disk: Key) -> None:
    """They find the same on the mounted file, at one disk of each stage; that all are the same is TestBytes' promise."""
    _files_are_the_recorded(bench, scope, bench.mounted(disk), disk)


def _files_are_the_recorded(bench: Bench, scope: Scope, file: Path, disk: Key) -> None:
    need.tool("ntfs-3g", "mcopy")
    for number, image in DISKS[disk].items():
        *_, recorded = PARTITIONS[number]
        expected = bench.genuine.source(stage(image)).files(recorded)
        assert len(expected) > 1
        assert _files(scope, file, number) == expected, f"partition {number}, {image}"


@pytest.mark.parametrize("disk", DISKS, ids=IDS)
class TestTables:
    """Partition tables are those of the source disk."""

    def test_sfdisk_of_the_mounted(self, bench: Bench, disk: Key) -> None:
        """`sfdisk --dump` of the mounted file is the recorded one."""
        file = bench.mounted(disk)
        recorded = (bench.genuine.source(0).records / "diskA.sfdisk-d.txt").read_text()
        assert bench.scope.run(["sfdisk", "--dump", file]).stdout.replace(f"{file}", SOURCE_DISK) == recorded

    def test_sgdisk_of_the_materialized(self, bench: Bench, disk: Key) -> None:
        """`sgdisk` finds no problem on the bare disk, and prints the recorded table and details of each partition."""
        frozen = bench.frozen(disk)
        bare = frozen.with_suffix(".bare")
        bench.scope.run(["cp", "--reflink=always", frozen, bare])
        bench.scope.run(["truncate", f"--size=-{FOOTER}", bare])
        said = bench.scope.run(["sgdisk", "-v", "-p", *[f"-i{number}" for number in (1, 2, 3, 4)], bare]).stdout
        verdict, _, table = said.partition(f"Disk {bare}")
        assert "No problems found" in verdict
        recorded = (bench.genuine.source(0).records / "diskA.sgdisk-p.txt").read_text().splitlines()
        assert f"Disk {SOURCE_DISK}{table}".splitlines() == [line for line in recorded if not line.startswith("---")]


@pytest.mark.parametrize("disk", DISKS, ids=IDS)
class TestBytes:
    """Bytes are those of the source disk, but for the stated exceptions."""

    def test_size(self, bench: Bench, disk: Key) -> None:
        """qemu-img finds the source disk's exact size in both files, and both have a footer more."""
        for file in (bench.mounted(disk), bench.frozen(disk)):
            info = json.loads(bench.scope.run(["qemu-img", "info", "-f", "vpc", "--output=json", file]).stdout)
            assert info["virtual-size"] == LENGTH
            assert bytewise.size(bench.scope, file) == LENGTH + FOOTER

    def test_beside_the_partitions(self, bench: Bench, disk: Key) -> None:
        """Tables, gaps and the end of the disk are the source's, at each of its stages; partition 2 is zero."""
        file = bench.frozen(disk)
        for start, end in BESIDE:
            for number in {stage(image) for image in DISKS[disk].values()}:
                assert bench.differences(file, number, start, end) == []
        start, end = RESERVED
        assert bytewise.differences(bench.scope, file, bench.zero, end, start=start) == []

    def test_partitions(self, bench: Bench, disk: Key) -> None:
        """Each volume is the source's of its stage to the last sector, but for free clusters of what was incremental."""
        file = bench.frozen(disk)
        for number, image in DISKS[disk].items():
            start, end, _ = PARTITIONS[number]
            found = bench.differences(file, stage(image), start, end)
            if image[0] == "0254" or image[1] in ("SYSVOL", "ESP"):
                assert found == [], image
            raw = bench.genuine.root / genuinedisks.name(image)
            assert genuinedisks.in_used_blocks(found, raw, start) == [], image
            # In those clusters too, the disk shows what the image holds.
            assert len(found) < bytewise.MOST
            assert _in_raw(file, raw, found, start) == [], image

    def test_mounted_is_materialized(self, bench: Bench, disk: Key) -> None:
        """The mounted file is the materialized one: the last C: in full, the others where there is anything but a hole."""
        file = bench.frozen(disk)
        data_of = () if disk == ("0312", "C") else (file, bench.genuine.source(0).image)
        end = LENGTH + FOOTER
        assert bytewise.differences(bench.scope, bench.mounted(disk), file, end, data_of=data_of, timeout=300) == []


def test_first_full_has_the_recorded_hash(bench: Bench) -> None:
    """The whole disk of the first full image, as mounted, has the SHA-256 that was recorded of the source disk."""
    found = bytewise.sha256(bench.scope, bench.mounted(("0254", "C")), LENGTH, timeout=300)
    assert found == bench.genuine.source(0).sha256


def test_materializing_shares_everything(bench: Bench) -> None:
    """All whole blocks of a disk's data are shared with its images; copied are edges of blocks, written tables and footer."""
    database: list[Argument] = ["--database", bench.genuine.database]
    argv = [*database, "-o", bench.writable.parent, "--dry-run", "--force", "--json"]
    for disk in list(DISKS)[::5]:
        told = json.loads(bench.scope.synthfs("materialize", bench.writable / genuinedisks.name(disk), *argv).stdout)
        assert told["copied"] == told["edges"] < 2 * 4096 * len(PARTITIONS), disk
        assert told["written"] < 100_000, disk


@pytest.mark.parametrize("image", PARTS, ids=["-".join(part) for part in PARTS])
def test_part_names_its_disk(bench: Bench, image: Key) -> None:
    """A SYSVOL or ESP image is refused in one line that says that it is part of another disk."""
    path = bench.genuine.root / genuinedisks.name(image)
    done = bench.scope.synthfs("materialize", path, "--database", bench.genuine.database, "--dry-run", check=False)
    assert done.returncode not in (0, 2, 70)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert genuinedisks.name(image) in line
    assert "part of other disks" in line


def _files(scope: Scope, disk: Path, number: int) -> dict[str, str]:
    """Path -> SHA-256 of the files in a partition of a disk, read by somebody else's driver."""
    start, end, recorded = PARTITIONS[number]
    if recorded.endswith("fat32"):
        target = scope.path("fat")
        scope.run(["mcopy", "-s", "-n", "-i", f"{disk}@@{start}", "::*", target])
        return bytewise.hashes(scope, target)
    place = f"loop,offset={start},sizelimit={end - start}"
    if recorded.endswith("ntfs"):
        mounted = scope.mount(disk, fstype="ntfs-3g", options=f"ro,{place}")
    else:
        mounted = scope.mount(disk, fstype="ext4", options=f"ro,noload,{place}")
    found = bytewise.hashes(scope, mounted)
    scope.umount(mounted)
    return found


def _in_raw(disk: Path, raw: Path, ranges: list[bytewise.Range], start: int) -> list[bytewise.Range]:
    """Those of the ranges where a disk is not what a `.raw` file has for a volume at `start`."""
    with disk.open("rb") as one, raw.open("rb") as other:

        def differ(first: int, end: int) -> bool:
            one.seek(first)
            other.seek(first - start + genuinedisks.HEADER)
            return one.read(end - first) != other.read(end - first)

        return [(first, end) for first, end in ranges if differ(first, end)]
