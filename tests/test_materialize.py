"""Freezing a disk: what is shared, what is copied, and what it costs.

Not for: places and names (test_materialize_targets), what goes wrong on the way (test_materialize_trouble).
Expected values: `btrfs filesystem du`, filefrag (FIEMAP), the original disk. Units: bytes.
"""

import re
from collections.abc import Iterator

import pytest

import need
import sampledisks
from frozen import BLOCK, Frozen, adds_up, exclusive, extents, has_c, materialize, parts, refused_to_copy, volume_extents
from lab import Lab, Scope
from makedisk import Partition, make_disk
from makeimage import HEADER
from makestore import Store
from makevolume import SECTOR
from onmount import FOOTER, ask, read_right

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def small(lab: Lab) -> Iterator[Frozen]:
    with lab.scope("small") as scope:
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        yield Frozen.make(scope, scope.btrfs(), disk)


class TestSharing:
    def test_large_disk_on_btrfs(self, scope: Scope) -> None:
        """A disk of 20 GiB with 1 GiB of data costs what is reported, and every block lies where the backup's does."""
        disk = sampledisks.large_disk(scope.path() / "original.img")
        frozen = Frozen.make(scope, scope.btrfs(3 * GIB), disk)
        planned = materialize(scope, frozen.image.raw, frozen.out("out"), "--dry-run")
        target = frozen.mounted / "out" / frozen.name
        assert not target.exists()
        done = materialize(scope, frozen.image.raw, target.parent)
        print(f"20 GiB with 1 GiB of data: {done['seconds']} s, {parts(done)}")
        scope.run(["sync", "-f", target])

        assert target.stat().st_size == disk.length + FOOTER
        assert adds_up(done, disk.length + FOOTER)
        assert done["file"] == str(target)
        usage = scope.run(["btrfs", "filesystem", "du", "--raw", target]).stdout.splitlines()[-1].split()
        total, exclusive = int(usage[0]), int(usage[1])
        assert total >= GIB
        assert exclusive <= done["written"] + done["copied"] + BLOCK * len(extents(scope, target))

        start, length = disk.partition(1).start, frozen.image.length
        of_backup = volume_extents(scope, frozen.image.raw, HEADER, length)
        assert sum(amount for _, _, amount in of_backup) >= GIB
        assert volume_extents(scope, target, start, length) == of_backup
        # Nothing else but the tables, the edges of the volume and the footer takes space.
        outside = sum(amount for _, _, amount in extents(scope, target)) - sum(amount for _, _, amount in of_backup)
        assert outside <= done["written"] + done["copied"] + 4 * BLOCK
        for offset, _ in disk.partition(1).data:
            same = "a, b = (os.pread(opened(path), 1 << 20, int(arguments[2])) for path in arguments[:2]); answer(a == b)"
            assert ask(scope, same, target, disk.path, str(start + offset)) is True
        assert parts(planned) == parts(done)

    @pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
    def test_several_volumes(self, scope: Scope, filesystem: str) -> None:
        """A disk of several images, on BTRFS (in subvolumes of their own) and XFS: shared, and right byte for byte."""
        disk = sampledisks.gpt_disk(scope.path() / "original.img")
        mounted = scope.btrfs() if filesystem == "btrfs" else scope.xfs()
        client = Store(mounted / "urbackup").client("pc")
        esp, c, d = (client.backup(disk, number, letter) for number, letter in ((1, "SYSVOL"), (3, "C"), (4, "D")))
        scope.run(["sync", "-f", mounted])
        target = mounted / "disk.vhd"
        done = materialize(scope, c.raw, target)
        scope.run(["sync", "-f", mounted])
        assert adds_up(done, disk.length + FOOTER)
        assert done["cloned"] > 0
        assert done["copied"] == done["edges"] < 3 * 2 * BLOCK
        for image, number in ((esp, 1), (c, 3), (d, 4)):
            shared = volume_extents(scope, image.raw, HEADER, image.length)
            assert shared
            assert volume_extents(scope, target, disk.partition(number).start, image.length) == shared
        assert exclusive(scope, target) == done["new_space"]
        assert read_right(scope, target, disk)

    def test_unaligned_disk(self, scope: Scope) -> None:
        """A volume that begins at sector 63 cannot be shared: `always` fails and explains, `auto` copies."""
        disk = sampledisks.xp_disk(scope.path() / "original.img")
        frozen = Frozen.make(scope, scope.btrfs(), disk)
        out = frozen.out("out")
        refused_to_copy(scope, frozen.image.raw, out, frozen.image.raw.name, "32256", "4096", "--volume-only", "vhd-dynamic")
        assert materialize(scope, frozen.image.raw, frozen.out("alone"), "--volume-only")["cloned"] > 0
        done = materialize(scope, frozen.image.raw, out, "--reflink", "auto")
        assert (done["cloned"], adds_up(done, disk.served_length + FOOTER)) == (0, True)
        assert done["copied"] > 0
        assert read_right(scope, out / frozen.name, disk)

    def test_partitions_that_agree_with_different_places(self, scope: Scope) -> None:
        """In a dynamic VHD one block is of both partitions: of that, the smaller part is copied, and all else shared."""
        border = 63 * SECTOR + 16 * MIB
        c = Partition(1, 63 * SECTOR, 16 * MIB, "7", active=True, fs="ntfs", label="XP")
        d = Partition(2, border + 3 * SECTOR, 16 * MIB, "7", fs="ntfs", label="Daten")
        disk = make_disk(scope.path() / "original.img", c, d, length=33 * MIB, scheme="mbr", identity="000063fe")
        mounted = scope.btrfs()
        client = Store(mounted / "urbackup").client("pc")
        image, _ = client.backup(disk, 1), client.backup(disk, 2, "D")
        scope.run(["sync", "-f", mounted])
        done = materialize(scope, image.raw, mounted / "both.vhd", "--format", "vhd-dynamic")
        assert done["cloned"] > 0
        assert done["copied"] - done["edges"] <= MIB
        scope.run(["qemu-img", "compare", "-f", "vpc", "-F", "raw", mounted / "both.vhd", disk.path])

    def test_source_without_copy_on_write(self, scope: Scope) -> None:
        """A backup with `chattr +C` is shared with a file that has it too, and one without is copied or refused."""
        need.tool("chattr", "lsattr")
        disk = sampledisks.two_volume_disk(scope.path() / "original.img")
        mounted = scope.btrfs()
        client = Store(mounted / "urbackup").client("pc")
        scope.run(["chattr", "+C", client.directory])
        c = client.backup(disk, 1, layout="plain")
        scope.run(["sync", "-f", mounted])
        assert has_c(scope, c.raw)
        target = mounted / "both.vhd"
        done = materialize(scope, c.raw, target)
        assert done["cloned"] > 0
        assert has_c(scope, target)
        shared = volume_extents(scope, c.raw, HEADER, c.length)
        assert volume_extents(scope, target, disk.partition(1).start, c.length) == shared != []
        # D: of the same disk, without the flag: no file can share with both.
        scope.run(["chattr", "-C", client.directory])
        d = client.backup(disk, 3, "D", layout="plain")
        assert not has_c(scope, d.raw)
        out = mounted / "out"
        out.mkdir()
        refused_to_copy(scope, c.raw, out, "chattr +C", d.raw.name)
        done = materialize(scope, c.raw, out, "--reflink", "auto")
        assert done["cloned"] > 0
        assert done["copied"] > done["edges"]
        assert read_right(scope, out / f"{c.raw.stem}.vhd", disk)


class TestReflink:
    @pytest.mark.parametrize("filesystem", ["btrfs", "ext4"])
    def test_onto_another_file_system(self, scope: Scope, small: Frozen, filesystem: str) -> None:
        """`always` fails with reason and remedy before anything is written; `auto` copies and says so."""
        out = scope.btrfs() if filesystem == "btrfs" else scope.ext4()
        before = sorted(out.iterdir())
        refused_to_copy(scope, small.image.raw, out, small.image.raw.name, "file system")
        assert sorted(out.iterdir()) == before
        done = scope.synthfs("materialize", small.image.raw, "-o", out, "--reflink", "auto")
        (line,) = done.stderr.splitlines()
        assert "0 B cloned" in line
        assert re.search(r"[1-9][0-9.]* [KM]iB copied", line)
        assert read_right(scope, out / small.name, small.disk)

    def test_never(self, scope: Scope, small: Frozen) -> None:
        """`never` copies all of it even where it could be shared, and leaves the holes."""
        out = small.out("never")
        done = materialize(scope, small.image.raw, out, "--reflink", "never")
        scope.run(["sync", "-f", out])
        assert (done["cloned"], adds_up(done, small.disk.length + FOOTER)) == (0, True)
        of_backup = volume_extents(scope, small.image.raw, HEADER, small.image.length)
        ours = extents(scope, out / small.name)
        assert {physical for _, physical, _ in of_backup}.isdisjoint(physical for _, physical, _ in ours)
        # In whole blocks, those of the tables and the footer included.
        assert sum(amount for _, _, amount in ours) <= sum(amount for _, _, amount in of_backup) + done["written"] + 8 * BLOCK

    @pytest.mark.parametrize("mode", ["always", "auto", "never"])
    def test_dry_run_is_true(self, scope: Scope, small: Frozen, mode: str) -> None:
        """What a dry run says is what is done afterwards, and it makes nothing."""
        out = small.out(f"dry-{mode}")
        planned = materialize(scope, small.image.raw, out, "--reflink", mode, "--dry-run")
        assert list(out.iterdir()) == []
        done = materialize(scope, small.image.raw, out, "--reflink", mode)
        assert (planned["dry_run"], done["dry_run"]) == (True, False)
        assert parts(planned) == parts(done)

    def test_copy_of_a_sparse_disk_needs_room_for_its_data_only(self, scope: Scope) -> None:
        """A disk of 20 GiB with 64 MiB of data can be copied to where there is a quarter of a GiB."""
        disk = sampledisks.large_disk(scope.path() / "original.img", data=64 * MIB)
        frozen = Frozen.make(scope, scope.path("plain"), disk)
        out = scope.ext4()
        done = materialize(scope, frozen.image.raw, out, "--reflink", "auto")
        assert 64 * MIB < done["copied"] < 160 * MIB
