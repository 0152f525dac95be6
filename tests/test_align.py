"""`--align`: the end of a disk rounded up to a multiple, with the backup GPT at the new end.

Not for: freezing itself (test_materialize), single headers (test_layout). Expected values: the original disk, lengthened by
truncate(1) and `sgdisk --move-second-header`; sgdisk -v, sfdisk, qemu. Units: bytes.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import typer

import handmade
import makembr
import makevolume
import need
import sampledisks
import sparse
from lab import Lab, Scope
from makedisk import BASIC_DATA, OriginalDisk, Partition, make_disk
from makestore import Image, Store
from processes import Argument
from synthfs.cli import common
from synthfs.errors import UnsupportedError
from synthfs.extents import Bytes
from synthfs.plan import container
from synthfs.plan.align import aligned
from synthfs.plan.container import Format
from synthfs.plan.disk import assemble
from synthfs.plan.volume import Planner
from synthfs.survey import survey

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECTOR = 512
NOT_UNDERSTOOD, CANNOT_HOLD, DIFFERS = 2, 5, 11
LAST_CHS = slice(446 + 5, 446 + 8)
"""Of a protective boot record's entry: sgdisk writes where the last sector of a small disk would be, others ff or fe ff ff."""


@dataclass(frozen=True, slots=True)
class Backup:
    """One disk whose volumes are all imaged, and its image of C:."""

    scope: Scope
    disk: OriginalDisk
    image: Image
    _made: dict[tuple[Argument, ...], tuple[Path, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def make(cls, scope: Scope, disk: OriginalDisk, **how: Any) -> "Backup":
        client = Store(scope.path("store") / "urbackup").client("pc")
        return cls(scope, disk, client.backup(disk, disk.partitions[0].number, **how))

    def materialize(self, *options: Argument, form: str = "raw") -> tuple[Path, dict[str, Any]]:
        """The file made, and what `--json` says of it; made once."""
        key = form, *options
        if key not in self._made:
            argv: list[Argument] = ["materialize", "--json", "--reflink=never", "--format", form, *options]
            done = self.scope.synthfs(*argv, self.image.raw, "-o", self.scope.path("out"))
            facts: dict[str, Any] = json.loads(done.stdout)
            self._made[key] = Path(facts["file"]), facts
        return self._made[key]

    def lengthened(self, length: int) -> Path:
        """The original disk, `length` bytes long, as sgdisk leaves it, without what is left of the old backup GPT."""
        longer = sparse.create(self.scope.path("longer") / "disk.img", length)
        sparse.copy(self.disk.path, longer, offset=0, length=self.disk.length, to=0)
        self.scope.run(["sgdisk", "--move-second-header", longer if self.disk.sector_size == SECTOR else self.loop(longer)])
        tables = self.disk.sector_size + 128 * 128
        old, new = self.disk.length - tables, length - tables
        with longer.open("r+b") as file:
            file.seek(old)
            file.write(bytes(min(tables, new - old)))
        return longer

    def loop(self, file: Path) -> Path:
        return Path(self.scope.loop(file, sector_size=self.disk.sector_size))


def same(one: Path, other: Path) -> bool:
    a, b = bytearray(one.read_bytes()), bytearray(other.read_bytes())
    a[LAST_CHS] = b[LAST_CHS] = bytes(3)
    return a == b


def gpt_disk(path: Path, length: int) -> OriginalDisk:
    c = Partition(2, MIB, 16 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows", files=())
    return make_disk(path, c, length=length, identity="A1160000-0000-4222-8333-444455556666")


def big_sectors(scope: Scope, path: Path, length: int) -> OriginalDisk:
    """4096-byte sectors: sgdisk asks the loop device for them."""
    sparse.create(path, length)
    identity = "A1164096-0000-4222-8333-444455556666"
    with scope.scope("4096") as inner:
        device = inner.loop(path, sector_size=4096)
        inner.run(["sgdisk", "--clear", f"--disk-guid={identity}", "--new=1:256:4351", "--typecode=1:0700", device])
    c = Partition(1, MIB, 16 * MIB, BASIC_DATA, "", fs="ntfs", label="4Kn")
    volume = sparse.create(path.with_name("volume"), c.length)
    mkntfs: list[Argument] = ["mkntfs", "-F", "-q", "-f", "-s", "4096", "-c", "4096", "-p", "256", "-H", "255", "-S", "63"]
    scope.run([*mkntfs, volume, "4096"])
    sparse.copy(volume, path, offset=0, length=c.length, to=c.start)
    return OriginalDisk(path, length, "gpt", identity, (c,), b"", 4096)


@pytest.fixture(scope="module")
def odd(lab: Lab) -> Iterator[Backup]:
    """A GPT disk that ends five sectors behind a MiB, as disks do that no table of a virtual machine cared for."""
    need.tool("sgdisk", "sfdisk", "qemu-img", "qemu-io")
    with lab.scope("odd") as scope:
        disk = gpt_disk(scope.path("disk") / "original.img", 20 * MIB + 5 * SECTOR)
        yield Backup.make(scope, disk)


class TestGpt:
    @pytest.mark.parametrize(("unit", "length"), [("4K", 20 * MIB + 4 * KIB), ("1M", 21 * MIB)])
    def test_is_what_sgdisk_makes(self, odd: Backup, unit: str, length: int) -> None:
        """All bytes are those of the original disk whose end was moved by sgdisk; both copies are where they belong."""
        file, facts = odd.materialize(f"--align={unit}")
        assert (file.stat().st_size, facts["length"], facts["disk_length"]) == (length, length, length)
        assert "No problems found" in odd.scope.run(["sgdisk", "-v", file]).stdout
        assert same(file, odd.lengthened(length))
        table = json.loads(odd.scope.run(["sfdisk", "--json", file]).stdout)["partitiontable"]
        assert table["lastlba"] == length // SECTOR - 34
        before = json.loads(odd.scope.run(["sfdisk", "--json", odd.disk.path]).stdout)["partitiontable"]
        places = [[(p["start"], p["size"], p["uuid"]) for p in one["partitions"]] for one in (table, before)]
        assert places[0] == places[1]

    def test_of_4096_byte_sectors(self, scope: Scope) -> None:
        """The same on a disk of other sectors."""
        need.tool("sgdisk")
        path = scope.path("disk") / "original.img"
        backup = Backup.make(scope, big_sectors(scope, path, 20 * MIB + 3 * 4096), block=4096)
        file, facts = backup.materialize("--align=1M")
        assert facts["disk_length"] == file.stat().st_size == 21 * MIB
        assert "No problems found" in scope.run(["sgdisk", "-v", backup.loop(file)]).stdout
        assert same(file, backup.lengthened(21 * MIB))

    @pytest.mark.parametrize(("form", "qemus"), [("vhd", "vpc"), ("vhd-dynamic", "vpc"), ("vhdx", "vhdx"), ("vmdk", "vmdk")])
    def test_in_every_container(self, odd: Backup, form: str, qemus: str) -> None:
        """QEMU sees the new length, and the bytes of the lengthened disk."""
        file, facts = odd.materialize("--align=1M", form=form)
        assert _virtual_size(odd.scope, file, qemus) == facts["disk_length"] == 21 * MIB
        bare, _ = odd.materialize("--align=1M")
        odd.scope.run(["qemu-img", "compare", "-f", qemus, "-F", "raw", file, bare])

    def test_qemu_without_a_cache(self, odd: Backup) -> None:
        """On a disk of 4096-byte sectors, `cache=none` takes a whole end, where it refuses an odd one."""
        device = odd.scope.loop(odd.scope.sparse(128 * MIB, "backing"), sector_size=4096)
        odd.scope.run(["mkfs.ext4", "-q", device])
        mounted = odd.scope.mount(device, fstype="ext4")
        for name, options in (("odd", []), ("whole", ["--align=4K"])):
            file, _ = odd.materialize(*options)
            copy = mounted / f"{name}.img"
            odd.scope.run(["cp", "--sparse=always", file, copy])
            last = f"{copy.stat().st_size - SECTOR} {SECTOR}"
            commands: list[Argument] = ["-c", f"read {last}", "-c", f"write {last}"]
            done = odd.scope.run(["qemu-io", "-t", "none", "-f", "raw", *commands, copy], check=False)
            assert ("not a multiple of request alignment" in done.stderr) == (name == "odd")
            assert (done.returncode == 0) == (name == "whole")

    def test_another_length_is_another_disk(self, odd: Backup) -> None:
        """The VHD's id differs from that of the disk as it was, and is the same again for the same length."""
        (disk,) = survey(f"{odd.image.raw.parents[2]}").disks

        def footer(unit: int) -> bytes:
            (file,) = container.of_disk(aligned(disk, unit), Format.VHD, "disk", lambda source: None)
            *_, (_, last) = file.extent_map()
            assert isinstance(last, Bytes)
            return last.data[-512:]

        ids = [footer(unit)[68:84] for unit in (512, 2 * KIB, 4 * KIB, MIB)]
        assert ids[1] == ids[2]
        assert len(set(ids)) == 3

    def test_an_even_end_stays(self) -> None:
        """A disk of whole MiB is itself, edition and notes included, in any smaller unit."""
        for sector in (512, 4096):
            copy = handmade.gpt(64 * MIB // sector, handmade.Slot(1, MIB // sector, 2 * MIB // sector), sector=sector)
            mbr = handmade.sidecar_bytes(1, handmade.protective(64 * MIB // sector), copy)
            disk = assemble(Planner().volume(handmade.image(mbr=mbr, length=MIB)), {})
            assert disk.layout.sector_size == sector
            for unit in (512, 4096, MIB, 64 * MIB):
                assert aligned(disk, unit) is disk

    def test_with_other_options(self, odd: Backup) -> None:
        """A new identity and a volume alone are rounded as well."""
        for option in ("--new-identity", "--volume-only"):
            file, facts = odd.materialize("--align=512M", option)
            assert facts["disk_length"] == 512 * MIB
            assert "No problems found" in odd.scope.run(["sgdisk", "-v", file]).stdout

    def test_verify_knows_it(self, odd: Backup) -> None:
        """`verify --against` takes the same option, and without it tells that the file is another disk."""
        file, _ = odd.materialize("--align=1M", form="vhd")
        argv: list[Argument] = ["verify", odd.image.raw, "--against", file]
        assert "\ngood" in "\n" + odd.scope.synthfs(*argv, "--align=1M").stdout
        assert odd.scope.synthfs(*argv, check=False).returncode == DIFFERS

    def test_a_dry_run_tells(self, odd: Backup) -> None:
        """The new length, in words and in JSON, and nothing is made."""
        out = odd.scope.path("dry")
        argv: list[Argument] = ["materialize", "--dry-run", "--reflink=never", "--align=1M", odd.image.raw, "-o", out]
        done = odd.scope.synthfs(*argv, "--json")
        assert f"which make it {21 * MIB} bytes long; its backup GPT lies at the new end" in done.stderr
        facts = json.loads(done.stdout)
        assert (facts["disk_length"], facts["length"]) == (21 * MIB, 21 * MIB + 512)
        assert any(f"{21 * MIB}" in note["text"] for note in facts["notes"])
        assert list(out.iterdir()) == []


def test_mbr(scope: Scope) -> None:
    """An MBR disk gets zeroes behind its end, and nothing else changes."""
    disk = sampledisks.xp_disk(scope.path("disk") / "original.img")
    file, facts = Backup.make(scope, disk).materialize("--align=4M")
    length = -(-disk.length // (4 * MIB)) * 4 * MIB
    assert length > disk.length
    assert facts["disk_length"] == file.stat().st_size == length
    content = file.read_bytes()
    assert content[: disk.length] == disk.path.read_bytes()
    assert not any(content[disk.length :])


def test_a_disk_without_a_table(scope: Scope) -> None:
    """A volume that begins at the first sector of its disk has zeroes behind it, too."""
    volume = Partition(1, 0, 9 * MIB, fs="ntfs", label="stick", files=())
    path = sparse.create(scope.path("disk") / "original.img", volume.length)
    makevolume.make("ntfs", path, label="stick", start=0, files=())
    disk = OriginalDisk(path, volume.length, "mbr", "", (volume,), b"")
    sidecar = makembr.capture(disk, 1)
    file, facts = Backup.make(scope, disk, mbr=sidecar).materialize("--align=4M")
    assert facts["disk_length"] == file.stat().st_size == 12 * MIB
    assert file.read_bytes() == path.read_bytes() + bytes(3 * MIB)


@pytest.mark.parametrize(("more", "form", "length"), [(-1, Format.VHD, 2040 * GIB), (1, Format.VHDX, 2041 * GIB)])
def test_limits_are_judged_afterwards(more: int, form: Format, length: int) -> None:
    """A disk just below 2040 GiB is rounded up to what a VHD just holds; one just above is a VHDX, and refused as a VHD."""
    sectors = 2040 * GIB // SECTOR + more
    mbr = handmade.sidecar_bytes(1, handmade.protective(sectors), handmade.gpt(sectors, handmade.Slot(1, 2048, 4095)))
    disk = aligned(assemble(Planner().volume(handmade.image(mbr=mbr, length=MIB)), {}), GIB)
    assert (disk.length, container.fitting(disk, Format.VHD)) == (length, form)
    if form is Format.VHDX:
        with pytest.raises(UnsupportedError, match="2040 GiB at most"):
            container.check(disk, Format.VHD)


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_an_image_of_a_whole_disk(scope: Scope, scheme: Literal["gpt", "mbr"]) -> None:
    """Its tables are its own: refused in one line, whatever they are, unless it ends well as it is."""
    c = Partition(1, MIB, 4 * MIB, BASIC_DATA if scheme == "gpt" else "7", fs="ntfs", files=())
    disk = make_disk(scope.path("disk") / "original.img", c, length=6 * MIB + 4096, scheme=scheme)
    backup = Backup.make(scope, disk, letter="hda", mbr=b"\x01\x64PK\x03\x04" + bytes(300), form="whole disk")
    (found,) = survey(f"{backup.image.raw.parents[2]}").disks
    assert aligned(found, 4096) is found
    with pytest.raises(UnsupportedError, match=f"whole disk with its own tables, of {disk.length} bytes"):
        aligned(found, MIB)
    out = scope.path("refused")
    done = scope.synthfs("materialize", "--align=1M", "--reflink=never", backup.image.raw, "-o", out, check=False)
    assert (done.returncode, len(done.stderr.splitlines()), os.listdir(out)) == (CANNOT_HOLD, 1, [])


@pytest.mark.parametrize("size", ["0", "256", "3M", "1.5M", "-1M", "M", "2G", "1MiB", "\u0661M", "1" * 40, "512\n"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(typer.BadParameter, match="power of two"):
        common.unit_of(size)


def test_a_size_that_is_none_is_not_understood(odd: Backup) -> None:
    done = odd.scope.synthfs("materialize", "--align=3M", odd.image.raw, "-o", odd.scope.path("none"), check=False)
    assert done.returncode == NOT_UNDERSTOOD
    assert "power of two" in done.stderr


def _virtual_size(scope: Scope, file: Path, form: str) -> int:
    shown = json.loads(scope.run(["qemu-img", "info", "-f", form, "--output=json", file]).stdout)
    return int(shown["virtual-size"])
