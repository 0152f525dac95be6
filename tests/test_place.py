"""Where a volume is placed on its disk: by number, and against what its boot sector and its length say.

Not for: the tables that the partitions come from (test_layout). Units: bytes; LBAs of 512 bytes in the helpers.
"""

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handmade
from handmade import ext_boot, gpt, gpt_sidecar, mbr_sidecar, ntfs_boot, record
from makembr import GptCopy
from synthfs.plan.layout import Partition, captured
from synthfs.plan.place import NotPlaced, Placed, locate
from synthfs.urbackup.mbrfile import MbrFile

SECTOR = 512
DISK = 1 << 20
"""Sectors: 512 MiB."""
NO_BOOT = bytes(4096)


def slots(*numbered: tuple[int, int, int]) -> GptCopy:
    """A GPT with (slot, first LBA, sectors)."""
    return gpt(DISK, *(handmade.Slot(number, first, first + sectors - 1) for number, first, sectors in numbered))


def found(sidecar: MbrFile, length: int, boot: bytes = NO_BOOT) -> tuple[Partition, str]:
    """The partition and the notes' text; fails where the volume has no place."""
    place = locate(captured(sidecar), sidecar, length, boot)
    assert isinstance(place, Placed), place.why
    return place.partition, " ".join(note.text for note in place.notes)


def why_not(sidecar: MbrFile, length: int, boot: bytes = NO_BOOT) -> str:
    place = locate(captured(sidecar), sidecar, length, boot)
    assert isinstance(place, NotPlaced), f"placed in partition {place.partition.number}"
    return place.why


class TestNumbers:
    GAPS = slots((1, 2048, 4096), (3, 8192, 4096), (4, 20480, 4096), (7, 40960, 4096))

    @pytest.mark.parametrize(("number", "slot"), [(1, 1), (2, 3), (3, 4), (4, 7)])
    def test_windows_counts_the_partitions_that_exist(self, number: int, slot: int) -> None:
        """A Windows client's number N is the Nth entry in use, whatever slots are empty before it."""
        partition, notes = found(gpt_sidecar(self.GAPS, number), 4096 * SECTOR)
        assert (partition.number, notes) == (slot, "")

    @pytest.mark.parametrize("slot", [1, 3, 4, 7])
    def test_linux_counts_slots(self, slot: int) -> None:
        """A Linux client's number is the one in the device's name, which is the slot."""
        partition, notes = found(gpt_sidecar(self.GAPS, slot, linux=True), 4096 * SECTOR)
        assert (partition.number, notes) == (slot, "")

    @pytest.mark.parametrize(
        ("number", "linux"), [(2, True), (5, True), (5, False), (0, False), (0, True), (-2, False), (2**31 - 1, True)]
    )
    def test_a_number_of_no_partition_places_nothing(self, number: int, linux: bool) -> None:
        """With several partitions of the volume's length, a number that means none of them leaves it without a place."""
        assert str(number) in why_not(gpt_sidecar(self.GAPS, number, linux=linux), 4096 * SECTOR)

    def test_slots_out_of_order_keep_their_numbers(self) -> None:
        """Slot 1 may lie behind slot 2 on the disk; the number still means the slot, and the boot sector agrees."""
        disk = slots((1, 40960, 4096), (2, 2048, 4096))
        for linux in (False, True):
            partition, notes = found(gpt_sidecar(disk, 1, linux=linux), 4095 * SECTOR, ntfs_boot(4095 * SECTOR, 40960))
            assert (partition.start, notes) == (40960 * SECTOR, "")

    def test_mbr_slots_with_a_gap(self) -> None:
        """On MBR disks too: the second partition in use is slot 3, for Linux slot 3 is number 3."""
        raw = record((7, 2048, 4096), (0, 0, 0), (7, 8192, 4096))
        for sidecar in (mbr_sidecar(raw, 2), mbr_sidecar(raw, 3, linux=True)):
            assert found(sidecar, 4096 * SECTOR)[0].number == 3

    def test_a_whole_disk_has_no_place_in_itself(self) -> None:
        """Number -1: the image is a disk, or a device without a number."""
        assert "whole disk" in why_not(gpt_sidecar(self.GAPS, -1, linux=True), 4096 * SECTOR)


class TestCrossChecks:
    TWO = slots((1, 2048, 4096), (2, 8192, 4096))

    def test_the_boot_sectors_own_place_beats_the_number(self) -> None:
        """A volume that says it begins at another partition is placed there, and the note has both numbers and the reason."""
        partition, notes = found(gpt_sidecar(self.TWO, 1), 4095 * SECTOR, ntfs_boot(4095 * SECTOR, 8192))
        assert partition.number == 2
        assert "boot sector" in notes
        assert "partition 1" in notes
        assert "partition 2" in notes

    @pytest.mark.parametrize("hidden", [0, 63, 9999, 2**32 - 1])
    def test_a_boot_sector_that_names_no_partition_says_nothing(self, hidden: int) -> None:
        """Hidden sectors of 0 or of no partition's start are a formatter that did not know: the number counts."""
        partition, notes = found(gpt_sidecar(self.TWO, 2), 4095 * SECTOR, ntfs_boot(4095 * SECTOR, hidden))
        assert (partition.number, notes) == (2, "")

    def test_a_place_that_is_too_small_is_not_believed(self) -> None:
        """The boot sector may name a partition, but not one that the volume does not fit into."""
        disk = slots((1, 2048, 4096), (2, 8192, 8192))
        partition, notes = found(gpt_sidecar(disk, 2), 8191 * SECTOR, ntfs_boot(8191 * SECTOR, 2048))
        assert (partition.number, notes) == (2, "")

    def test_a_unique_length_places_a_volume_whose_number_is_wrong(self) -> None:
        """If the numbered partition is too small, the only one that the volume fills takes it, with a note."""
        disk = slots((1, 2048, 4096), (2, 8192, 8192), (3, 20480, 9000))
        for length in (8192, 8191):  # as long as the partition, or without the last sector, as NTFS counts
            partition, notes = found(gpt_sidecar(disk, 1), length * SECTOR)
            assert partition.number == 2
            assert "length" in notes

    def test_two_of_that_length_place_nothing(self) -> None:
        """Where two partitions fit equally well, neither is chosen."""
        disk = slots((1, 2048, 4096), (2, 8192, 8192), (3, 20480, 8192))
        assert "longer" in why_not(gpt_sidecar(disk, 1), 8192 * SECTOR)

    def test_an_image_longer_than_its_partition_has_no_place(self) -> None:
        """One sector too long is too long; the reason names both lengths."""
        why = why_not(gpt_sidecar(self.TWO, 2), 4097 * SECTOR)
        assert str(4097 * SECTOR) in why
        assert str(4096 * SECTOR) in why

    def test_hidden_sectors_are_of_the_disks_size(self) -> None:
        """On a disk of 4096-byte sectors they count such sectors."""
        disk = gpt(1 << 17, handmade.Slot(1, 256, 767), handmade.Slot(2, 1024, 1535), sector=4096)
        boot = ntfs_boot(511 * 4096, 1024, sector=4096)
        assert found(gpt_sidecar(disk, 1), 511 * 4096, boot)[0].number == 2

    @settings(max_examples=100, deadline=None)
    @given(st.integers(-5, 12), st.booleans(), st.integers(1, 9000), st.sampled_from((0, 2048, 8192, 20480, 77)))
    def test_never_where_it_does_not_fit(self, number: int, linux: bool, sectors: int, hidden: int) -> None:
        """Whatever the evidence, a volume is never placed in a partition that is shorter than it is."""
        disk = slots((1, 2048, 4096), (4, 8192, 8192), (9, 20480, 300))
        sidecar = gpt_sidecar(disk, number, linux=linux)
        place = locate(captured(sidecar), sidecar, sectors * SECTOR, ntfs_boot(sectors * SECTOR, hidden))
        if isinstance(place, Placed):
            assert sectors * SECTOR <= place.partition.length
            assert place.partition in captured(sidecar).partitions


class TestLogicalDrives:
    """C: of 24 MiB, and an extended partition with logical drives, each of 24 MiB and 1 MiB behind its own EBR."""

    LENGTH = 24 * 2048 * SECTOR
    RAW = record((7, 2048, 24 * 2048), (0x0F, 51200, 64 * 2048))

    def test_the_container_is_no_volume(self) -> None:
        """A Linux client that imaged the extended partition itself has no place to go."""
        assert "extended" in why_not(mbr_sidecar(self.RAW, 2, linux=True), 1024)

    def test_windows_does_not_count_the_container(self) -> None:
        """The second volume that exists, with the container in the slot between, is slot 3."""
        raw = record((7, 2048, 4096), (0x05, 8192, 4096), (7, 20480, 4096))
        assert found(mbr_sidecar(raw, 2), 4096 * SECTOR)[0].number == 3

    @pytest.mark.parametrize(("number", "linux"), [(2, False), (3, False), (5, True), (6, True)])
    def test_has_no_place_although_its_length_is_cs(self, number: int, linux: bool) -> None:
        """The numbers behind the primary partitions are logical drives: their data are not put into C:."""
        assert why_not(mbr_sidecar(self.RAW, number, linux=linux), self.LENGTH)

    @pytest.mark.parametrize(("number", "linux"), [(2, False), (5, True)])
    def test_its_hidden_sectors_count_from_its_own_table(self, number: int, linux: bool) -> None:
        """Windows writes 2048 into a logical drive's boot sector, sectors behind its EBR: that is not where C: begins."""
        boot = ntfs_boot(self.LENGTH - SECTOR, 2048)
        assert why_not(mbr_sidecar(self.RAW, number, linux=linux), self.LENGTH - SECTOR, boot)


@pytest.mark.parametrize("kind", [handmade.LVM, handmade.LDM], ids=["LVM", "LDM"])
def test_a_volume_inside_a_volume_manager_has_no_place(kind: UUID) -> None:
    """For a logical volume the `.mbr` names the physical one below it (facts, trap 19): the image does not belong there."""
    disk = gpt(DISK, handmade.Slot(1, 2048, 6143), handmade.Slot(2, 8192, 200000, type=kind))
    assert why_not(gpt_sidecar(disk, 2, linux=kind == handmade.LVM), 100000 * SECTOR, ext_boot())


@pytest.mark.parametrize("kind", [0x8E, 0x42])
def test_so_on_mbr_disks(kind: int) -> None:
    """Types 8e (LVM) and 42 (dynamic disk) hold no volume that begins with them."""
    assert why_not(
        mbr_sidecar(record((7, 2048, 4096), (kind, 8192, 200000)), 2, linux=kind == 0x8E), 100000 * SECTOR, ext_boot()
    )


class TestAStaleBootSector:
    """A volume that was moved or cloned may keep the hidden sectors of its earlier place."""

    DISK = slots((1, 2048, 40960), (2, 65536, 4096))

    def test_does_not_outvote_a_number_and_a_length_that_agree(self) -> None:
        """The image fills the partition that its number means; the larger one that its boot sector names is not believed."""
        length = 4095 * SECTOR
        partition, notes = found(gpt_sidecar(self.DISK, 2), length, ntfs_boot(length, 2048))
        assert partition.number == 2
        assert "partition 1" in notes
