"""How long the sectors are that a boot record counts in, and whether there is a record at all: by what volumes tell.

Not for: real disks (test_unusual). Units: sectors of the disk, whatever their length.
"""

import struct

import pytest

from handmade import MIB, ext_boot, image, ntfs_boot, record, store
from makembr import mbr_bytes
from synthfs.model import ImageFacts
from synthfs.plan.catalog import plan

RECORD = record((7, 2048, 5120), (0x83, 8192, 5120))
"""Two partitions of 2.5 MiB, or of 20 MiB."""
ALONE = 0


def taken(number: int, length: int, boot: bytes = b"", *, linux: bool = True, raw: bytes = RECORD) -> ImageFacts:
    mbr = mbr_bytes(
        version=0,
        device_number=0,
        partition_number=number,
        serial="",
        volume_name=f"LINUX:/dev/sda{number}" if linux else "Windows",
        filesystem="",
        mbr_data=raw,
    )
    return image(letter=f"_dev_sda{number}" if linux else "CDEF"[number - 1], mbr=mbr, length=length, boot=boot or ext_boot())


def sectors(*images: ImageFacts) -> list[int]:
    """The sectors of the disk of each image, ALONE where it has no place."""
    disks = {disk.image: disk.layout for disk in plan(store(*images), None).disks}
    return [ALONE if disks[each].made_up else disks[each].sector_size for each in images]


def ntfs(length: int, sector: int, hidden: int = 2048) -> bytes:
    return ntfs_boot(length - sector, hidden, sector)


@pytest.mark.parametrize(("mib", "size"), [(2.5, 512), (20, 4096)])
def test_what_fills_its_partition(mib: float, size: int) -> None:
    """ext, XFS and btrfs name no sectors; their lengths do."""
    length = int(mib * MIB)
    assert sectors(taken(1, length)) == [size]
    assert sectors(taken(1, length - 65536), taken(2, length)) == [size, size]


def test_what_is_shorter_is_on_the_disk_of_the_others() -> None:
    """A volume that tells nothing takes what another one of the same record tells."""
    assert sectors(taken(1, 20 * MIB), taken(2, 2 * MIB)) == [4096, 4096]
    assert sectors(taken(2, 2 * MIB)) == [512]
    other = record((7, 2048, 5120), (0x83, 8192, 5120), signature=9)
    assert sectors(taken(1, 20 * MIB), taken(2, 2 * MIB, raw=other)) == [4096, 512]


@pytest.mark.parametrize("size", [512, 4096])
def test_what_a_file_system_names(size: int) -> None:
    """NTFS and FAT name their sectors, also where they are shorter than their partition."""
    length = 2 * MIB
    named = taken(1, length - size, ntfs(length, size), linux=False)
    assert sectors(named) == [size]
    assert sectors(named, taken(2, MIB)) == [size, size]


def test_a_length_outweighs_what_is_named() -> None:
    """Linux makes NTFS of 4096-byte sectors on any disk: a neighbour that fills its partition tells what the disk has."""
    small = taken(1, 2 * MIB - 4096, ntfs(2 * MIB, 4096))
    assert sectors(small, taken(2, 2560 * 1024)) == [512, 512]
    exact = taken(1, 2560 * 1024 - 4096, ntfs(2560 * 1024, 4096))
    assert sectors(exact) == [512]


def test_a_neighbour_that_is_too_long() -> None:
    """In sectors of 512 bytes it has no room, and in those of 4096 it does not fill its partition: nothing follows."""
    assert sectors(taken(1, 16 * MIB), taken(2, 2 * MIB)) == [ALONE, ALONE]
    # What names its sectors, or fills its partition, does not need the others.
    assert sectors(taken(1, 16 * MIB), taken(2, 2560 * 1024)) == [ALONE, 512]
    assert sectors(taken(1, 16 * MIB), taken(2, 2 * MIB - 512, ntfs(2 * MIB, 512, 8192), linux=False)) == [ALONE, 512]


def test_too_long_for_either() -> None:
    assert sectors(taken(1, 21 * MIB)) == [ALONE]


class TestNoTable:
    """A first sector that is also the volume's."""

    def boot(self, hidden: int, entry: bytes = bytes(16)) -> bytes:
        raw = bytearray(ntfs_boot(20 * MIB - 512, hidden))
        raw[446:462] = entry
        return bytes(raw)

    def scheme(self, boot: bytes, seen: bytes = b"") -> str:
        facts = taken(1, 20 * MIB - 512, boot, linux=False, raw=seen or boot[:512])
        (disk,) = plan(store(facts), None).disks
        return disk.layout.scheme

    @pytest.mark.parametrize(
        "entry", [bytes(16), bytes.fromhex("00fefffffffeffff2020202020202020"), b"\x80" * 16, b"Press any key \r\n"]
    )
    @pytest.mark.parametrize("hidden", [0, 63, 2048])
    def test_the_disk_begins_with_the_volume(self, entry: bytes, hidden: int) -> None:
        """Whatever text or numbers stand where a table has its entries, and whatever hidden sectors the maker wrote."""
        assert self.scheme(self.boot(hidden, entry)) == "none"

    def test_a_partition_that_begins_with_a_copy_of_the_record(self) -> None:
        """The table names just the place and the length of the volume."""
        entry = struct.pack("<B3xB3xII", 0, 7, 2048, 40960)
        assert self.scheme(self.boot(2048, entry)) == "MBR"

    @pytest.mark.parametrize("at", [0x48, 3, 40, 450, 511])
    def test_the_sector_of_another_volume(self, at: int) -> None:
        """One byte that no mount changes is another one: it is not this volume's, and it has no table."""
        boot = self.boot(0, bytes.fromhex("41fefffffffeffff2020202020202020"))
        seen = bytearray(boot[:512])
        seen[at] ^= 1
        assert self.scheme(boot, bytes(seen)) == "GPT"
