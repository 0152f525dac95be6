"""Volumes that are not all there: shorter than their file system says, or than their `.hash` has entries, or empty.

Not for: the hashes themselves (test_verify). Expected values: the lengths that the mkfs tools were given or tell, the table of
entries in facts/urbackup-format.md section 6, images cut by the tests. Units: bytes.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pytest

import need
from handmade import ntfs_boot
from lab import Lab, Scope
from makedisk import BASIC_DATA, LINUX, OriginalDisk, Partition, make_disk
from makeimage import CHUNK, HEADER
from makestore import Image, Store
from onmount import Sample
from processes import Argument, run
from synthfs.formats import superblock
from synthfs.plan import lengths

MIB = 1 << 20
NOT_FOUND, BAD_INPUT = 3, 4


def formatted(scope: Scope, size: int, *command: Argument, after: tuple[str, ...] = ()) -> Path:
    need.tool(str(command[0]))
    volume = scope.sparse(size, "volume")
    run([*command, volume, *after])
    return volume


def start(volume: Path) -> bytes:
    with volume.open("rb") as file:
        return file.read(4096)


def said(boot: bytes, length: int) -> list[str]:
    return [finding.text for finding in lengths.of_volume(boot, length)]


def _mtools(volume: Path) -> int:
    text = run(["minfo", "-i", volume, "::"]).stdout.decode()
    sectors = [int(word) for word in re.findall(r"^(?:small|big) size: (\d+) sectors", text, re.MULTILINE)]
    (size,) = re.findall(r"^sector size: (\d+) bytes", text, re.MULTILINE)
    return max(sectors) * int(size)


def _dumpe2fs(volume: Path) -> int:
    text = run(["dumpe2fs", "-h", volume]).stdout.decode()
    count, size = (int(re.findall(rf"^{word}: +(\d+)", text, re.MULTILINE)[0]) for word in ("Block count", "Block size"))
    return count * size


def _xfs_db(volume: Path) -> int:
    text = run(["xfs_db", "-r", "-c", "sb 0", "-c", "print dblocks blocksize", volume]).stdout.decode()
    blocks, size = (int(number) for number in re.findall(r"= (\d+)", text))
    return blocks * size


EXT: list[str] = ["mkfs.ext4", "-q", "-F"]
MKNTFS = ["mkntfs", "-F", "-q", "-f", "-c", "4096", "-p", "2048", "-H", "255", "-S", "63"]


@pytest.mark.parametrize(
    ("command", "size", "length"),
    [
        ([*MKNTFS, "-s", "512"], 40 * MIB, lambda volume: 40 * MIB - 512),
        ([*MKNTFS, "-s", "4096"], 40 * MIB, lambda volume: 40 * MIB - 4096),
        (["mkfs.vfat", "-F", "12"], MIB, _mtools),
        (["mkfs.vfat", "-F", "16"], 20 * MIB, _mtools),
        (["mkfs.vfat", "-F", "32", "-S", "4096"], 400 * MIB, _mtools),
        (["mkfs.exfat"], 40 * MIB, lambda volume: 40 * MIB),
        ([*EXT, "-t", "ext2", "-b", "1024"], 20 * MIB + 512, _dumpe2fs),
        ([*EXT, "-O", "64bit", "-b", "4096"], 40 * MIB, _dumpe2fs),
        ([*EXT, "-O", "^64bit", "-b", "2048"], 40 * MIB, _dumpe2fs),
        (["mkfs.xfs", "-q", "-f"], 320 * MIB, _xfs_db),
        (["mkfs.xfs", "-q", "-f", "-s", "size=4096"], 320 * MIB, _xfs_db),
    ],
    ids=["NTFS", "NTFS 4Kn", "FAT12", "FAT16", "FAT32 4Kn", "exFAT", "ext2", "ext4 64bit", "ext4", "XFS", "XFS 4Kn"],
)
def test_a_volume_that_is_shorter_than_its_file_system(
    scope: Scope, command: list[str], size: int, length: Callable[[Path], int]
) -> None:
    """One sector less than the file system has is told with both lengths; as much as it has, or more, is nothing."""
    sectors = [f"{size // int(command[command.index('-s') + 1])}"] if command[0] == "mkntfs" else []
    volume = formatted(scope, size, *command, after=tuple(sectors))
    boot, whole = start(volume), length(volume)
    assert size - MIB < whole <= size
    for enough in (whole, whole + 512, size, 10 * size):
        assert said(boot, enough) == []
    for short in (whole - 512, whole // 2 // 512 * 512, 512):
        (text,) = said(boot, short)
        assert f"{short} bytes" in text
        assert f"{whole}:" in text


def test_ext4_of_more_than_32_bits_of_blocks(scope: Scope) -> None:
    """The high word, which debugfs sets, counts with the feature 64bit; without, dumpe2fs does not count it either."""
    need.tool("debugfs")
    for feature, high in (("64bit", 3 << 32), ("^64bit", 0)):
        volume = formatted(scope, 20 * MIB, *EXT, "-O", feature, "-b", "4096")
        before = _dumpe2fs(volume)
        run(["debugfs", "-w", "-R", "set_super_value blocks_count_hi 3", volume])
        assert superblock.parse(start(volume)) == superblock.Superblock("ext", before + high * 4096)
        assert high or _dumpe2fs(volume) == before


@pytest.mark.parametrize("command", [["mkfs.btrfs", "-q"], ["mkswap", "--quiet"]], ids=["BTRFS", "swap"])
def test_what_says_nothing_of_its_length(scope: Scope, command: list[str]) -> None:
    """A volume of another file system, or of none, may have any length."""
    assert said(start(formatted(scope, 120 * MIB, *command)), 512) == []
    assert said(bytes(4096), 512) == said(b"", 512) == said(ntfs_boot(MIB)[:100], 512) == []


def test_no_bytes_break_it() -> None:
    """A block size that no file system has is no superblock, and neither are a few bytes of one."""
    for raw in (b"XFSB" + b"\xff" * 4092, b"XFSB" + bytes(4092), bytes(1024) + b"\xff" * 56 + b"\x53\xef" + b"\xff" * 3014):
        assert [superblock.parse(raw[:end]) for end in range(0, 4097, 8) if superblock.parse(raw[:end])] == []


class TestHashCounts:
    """How many entries a `.hash` has."""

    @pytest.mark.parametrize("length", [512, CHUNK - 512, CHUNK, CHUNK + 4096, 40 * MIB, 64 * MIB - 512, 5 * CHUNK + 512])
    @pytest.mark.parametrize("block", [512, 4096, 65536])
    def test_irregular_ends_are_no_findings(self, length: int, block: int) -> None:
        """The table of section 6: one to three entries from the last complete chunk on."""
        complete = length // block * block // CHUNK
        for more in (1, 2, 3):
            assert list(lengths.of_hashes((complete + more) * 32, length)) == []

    def test_of_images_as_they_are_written(self, scope: Scope) -> None:
        """Volumes, and a whole disk with 512 KiB of slack, which is not hashed."""
        disk = _small_disk(scope, "gpt")
        client = Store(scope.path("store") / "urbackup").client("pc")
        for image, length in (
            (client.backup(disk, 1), disk.ntfs_length(1)),
            (client.backup(disk, 1, "hda", form="whole disk", mbr=b"\x01\x64PK"), disk.length),
        ):
            assert list(lengths.of_hashes(image.sidecar(".hash").stat().st_size, length)) == []

    @pytest.mark.parametrize(
        ("entries", "chunks", "fault"), [(200, 100, "bad input"), (50, 100, "cannot check"), (0, 9, "cannot check")]
    )
    def test_far_more_and_far_fewer(self, entries: int, chunks: int, fault: str) -> None:
        (found,) = lengths.of_hashes(entries * 32, chunks * CHUNK + 512)
        assert found.fault == fault
        assert f"{entries}" in found.text
        assert f"{chunks}" in found.text
        assert ("missing" if fault == "bad input" else "broken off") in found.text


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    with lab.scope("lengths") as scope:
        yield Sample.make(scope)


def cut(raw: Path, length: int, *, blank: bool) -> None:
    """The volume of an image ends early; `blank` takes away what UrBackup wrote before it."""
    if blank:
        with raw.open("r+b") as file:
            file.write(bytes(HEADER))
    os.truncate(raw, HEADER + length)


def findings(scope: Scope, *arguments: Argument) -> tuple[int, set[tuple[str, str]], str]:
    """Exit code of `verify`, what it found that is no note, and what it said on stderr."""
    done = scope.synthfs("verify", "--json", *arguments, check=False)
    *found, _ = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {(f["finding"], f["where"]) for f in found if f["finding"] != "note"}, done.stderr


def warnings(scope: Scope, verb: str, *arguments: Argument) -> list[str]:
    facts = json.loads(scope.synthfs(verb, "--json", *arguments).stdout)
    notes = facts["notes"] if verb == "show" else [n for disk in facts["disks"] for n in disk["notes"]]
    return [note["text"] for note in notes if note["warning"]]


class TestCutImages:
    @pytest.mark.parametrize("which", ["C", "SYSVOL"])
    def test_half_an_image_with_a_blank_wrapper(self, sample: Sample, scope: Scope, which: str) -> None:
        """NTFS of C:, FAT of SYSVOL: nothing in the wrapper tells; the file system and the `.hash` do, in all verbs."""
        root, image = sample.copy(scope), {"C": sample.c, "SYSVOL": sample.system}[which]
        raw, half = sample.raw(root, image), image.length // 2 // CHUNK * CHUNK
        cut(raw, half, blank=True)
        code, found, stderr = findings(scope, "--store", root)
        assert (code, found) == (BAD_INPUT, {("bad input", "volume"), ("bad input", ".hash")})
        assert len(stderr.splitlines()) == 1
        assert raw.name in stderr
        prefix = "" if which == "C" else "partition 1: "
        disk = sample.raw(root, sample.c)
        volume, hashes = warnings(scope, "show", disk)
        assert volume.startswith(f"{prefix}the volume has {half} bytes, and its {'NTFS' if which == 'C' else 'FAT'} says")
        assert hashes.startswith(f"{prefix}the .hash has hashes for ")
        assert volume in warnings(scope, "list", root)
        text = " ".join(scope.synthfs("show", disk, env={"COLUMNS": "80"}).stdout.split())
        assert [note for note in (volume, hashes) if f"warning: {note}" not in text] == []

    def test_half_of_an_ext4_volume(self, scope: Scope) -> None:
        """A Linux machine's, of whose volume on a disk of its own, too: no `.mbr`."""
        root = Partition(5, MIB, 16 * MIB, LINUX, "root", fs="ext4", label="root", files=())
        disk = make_disk(scope.path("disk") / "original.img", root, length=18 * MIB)
        client = Store(scope.path("store") / "urbackup").client("linux")
        image = client.backup(disk, 5, "/dev/sda5", client="linux", without=(".mbr",))
        cut(image.raw, image.length // 2, blank=True)
        code, found, _ = findings(scope, image.raw)
        assert (code, found) == (BAD_INPUT, {("bad input", "volume"), ("bad input", ".hash")})
        assert len(warnings(scope, "show", image.raw)) == 3
        assert "its ext says" in "\n".join(warnings(scope, "show", "--volume-only", image.raw))

    def test_a_hash_file_of_another_length(self, sample: Sample, scope: Scope) -> None:
        """Far too few entries are warned of by `show`, and so are far too many; a few at the end are neither."""
        root = sample.copy(scope)
        raw = sample.raw(root, sample.c)
        entries = raw.with_name(f"{raw.name}.hash")
        honest = entries.read_bytes()
        for content, words in (
            (honest + sha256(b"").digest() * 2, []),
            (honest[: len(honest) // 64 * 32], ["broken off"]),
            (honest * 2, ["the end of the image is missing"]),
        ):
            entries.write_bytes(content)
            told = warnings(scope, "show", raw)
            assert [word in text for word, text in zip(words, told, strict=True)] == [True] * len(words)
        assert findings(scope, raw)[:2] == (BAD_INPUT, {("bad input", ".hash")})

    @pytest.mark.parametrize("scheme", ["gpt", "mbr"])
    def test_half_an_image_of_a_whole_disk(self, scope: Scope, scheme: Literal["gpt", "mbr"]) -> None:
        """Its `.hash` says that there was more, its own tables as well."""
        disk = _small_disk(scope, scheme)
        image = _whole_disk(scope, disk)
        os.truncate(image.raw, disk.length // 2 // MIB * MIB)
        code, found, _ = findings(scope, image.raw)
        assert code == BAD_INPUT
        assert ("bad input", ".hash") in found
        assert {where for _, where in found} > {".hash"}
        assert any("the .hash has" in text for text in warnings(scope, "show", image.raw))

    @pytest.mark.parametrize("length", [0, 511])
    def test_no_volume(self, sample: Sample, scope: Scope, length: int) -> None:
        """A `.raw` that ends where its volume begins, or before its first sector does: a reason in every verb."""
        root = sample.copy(scope)
        raw = sample.raw(root, sample.d)
        cut(raw, length, blank=True)
        listed = json.loads(scope.synthfs("list", "--all", "--json", root).stdout)
        (skipped,) = listed["not_offered"]
        assert (skipped["kind"], str(HEADER + length) in skipped["reason"]) == ("unusable", True)
        assert "holds no volume" in skipped["reason"]
        for verb in ("show", "verify"):
            done = scope.synthfs(verb, raw, check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (NOT_FOUND, 1)
            assert "not offered: .raw holds no volume" in done.stderr
        assert findings(scope, "--store", root)[:2] == (BAD_INPUT, {("bad input", "volume")})

    def test_half_an_image_with_its_wrapper(self, sample: Sample, scope: Scope) -> None:
        """It is not offered, and `verify --store` calls it bad, also where the client has nothing else."""
        root = sample.copy(scope)
        cut(sample.raw(root, sample.c), sample.c.length // 2 // 512 * 512, blank=False)
        assert findings(scope, "--store", root)[:2] == (BAD_INPUT, {("bad input", "volume")})
        for image in (sample.system, sample.d):
            scope.run(["rm", "-r", sample.raw(root, image).parent])
        done = scope.synthfs("verify", "--store", root, "--client", "p*", check=False)
        first, finding, summary = done.stdout.splitlines()
        assert (done.returncode, first.split()[:2]) == (BAD_INPUT, ["bad", "input"])
        assert "are missing" in finding
        assert summary.startswith("1 image checked")


def _small_disk(scope: Scope, scheme: Literal["gpt", "mbr"]) -> OriginalDisk:
    kind = BASIC_DATA if scheme == "gpt" else "7"
    c = Partition(1, MIB, 16 * MIB, kind, fs="ntfs", label="Windows", files=())
    return make_disk(scope.path("disk") / "original.img", c, length=18 * MIB, scheme=scheme)


def _whole_disk(scope: Scope, disk: OriginalDisk) -> Image:
    client = Store(scope.path("store") / "urbackup").client("vm")
    number = disk.partitions[-1].number
    return client.backup(disk, number, "hda", mbr=b"\x01\x64PK\x03\x04" + bytes(300), form="whole disk")
