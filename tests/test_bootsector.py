"""Boot sectors of real file systems, as the tools wrote them, and of hostile ones.

Not for: where a volume is placed because of them (plan/place). Units: bytes, sectors where a name says so.
"""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import need
from lab import Scope
from processes import run
from synthfs.formats import bootsector

MIB = 1 << 20


def formatted(scope: Scope, size: int, *command: str, after: Sequence[str] = ()) -> bytes:
    need.tool(command[0])
    volume = scope.sparse(size, "volume")
    run([*command, volume, *after])
    with volume.open("rb") as file:
        return file.read(4096)


class TestBootSector:
    @pytest.mark.parametrize("sector", [512, 4096])
    def test_of_mkntfs(self, scope: Scope, sector: int) -> None:
        """NTFS: the length that mkntfs counts, without the last sector, and the sectors before the volume."""
        size = 40 * MIB
        options = ["-F", "-q", "-f", "-s", str(sector), "-c", "4096", "-p", "2048", "-H", "255", "-S", "63"]
        boot = formatted(scope, size, "mkntfs", *options, after=[str(size // sector)])
        assert bootsector.parse(boot) == bootsector.BootSector("NTFS", sector, size - sector, 2048)

    @pytest.mark.parametrize(("bits", "size", "sector"), [(12, 1, 512), (16, 20, 512), (32, 40, 512), (32, 400, 4096)])
    def test_of_mkfs_vfat(self, scope: Scope, bits: int, size: int, sector: int) -> None:
        """FAT of each width: its length, whichever of the two fields has it, and the sectors before the volume."""
        options = ["-F", str(bits), "-s", "1", "-h", "63", "-S", str(sector), "-g", "255/63"]
        boot = formatted(scope, size * MIB, "mkfs.vfat", *options)
        found = bootsector.parse(boot)
        assert found is not None
        assert (found.file_system, found.sector_size, found.hidden_sectors) == ("FAT", sector, 63)
        # mkfs.vfat rounds down to whole tracks of 63 sectors.
        assert size * MIB - 63 * sector < found.length <= size * MIB

    def test_of_mkfs_exfat(self, scope: Scope) -> None:
        """exFAT: the length of the whole volume."""
        boot = formatted(scope, 40 * MIB, "mkfs.exfat")
        assert bootsector.parse(boot) == bootsector.BootSector("exFAT", 512, 40 * MIB, 0)

    def test_of_exfat_by_its_specification(self) -> None:
        """exFAT (specification, section 3.1): offset and length in sectors whose size is a power of two."""
        raw = bytearray(512)
        raw[:11], raw[108], raw[510:] = b"\xeb\x76\x90EXFAT   ", 12, b"\x55\xaa"
        struct.pack_into("<QQ", raw, 64, 256, 10000)
        assert bootsector.parse(bytes(raw)) == bootsector.BootSector("exFAT", 4096, 10000 * 4096, 256)

    @pytest.mark.parametrize(
        ("command", "size", "name"),
        [
            (("mkfs.ext4", "-q", "-F"), 40, "ext"),
            (("mkfs.xfs", "-q"), 320, "XFS"),
            (("mkswap", "--quiet", "--pagesize", "4096"), 40, "swap"),
            (("mkfs.btrfs", "-q"), 120, None),
        ],
    )
    def test_of_others_says_nothing_but_their_name(
        self, scope: Scope, command: tuple[str, ...], size: int, name: str | None
    ) -> None:
        """Volumes of other file systems have no such boot sector, but are known by name."""
        boot = formatted(scope, size * MIB, *command)
        assert bootsector.parse(boot) is None
        assert bootsector.file_system(boot) == name

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=80), st.sampled_from((b"NTFS    ", b"EXFAT   ", b"MSDOS5.0")))
    def test_garbage_never_raises(self, raw: bytes, oem: bytes) -> None:
        """Whatever a client wrote there, the parser returns something, and never a sector size that cannot be."""
        sector = (b"\xeb\x3c\x90" + oem + raw).ljust(510, b"\xff") + b"\x55\xaa"
        found = bootsector.parse(sector)
        assert found is None or found.sector_size in (512, 1024, 2048, 4096)
        assert bootsector.parse(raw) is None
