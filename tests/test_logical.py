"""Where logical drives lay, from their lengths, numbers and boot sectors; and where that does not follow.

Places are counted by hand. Not for: real disks, against sfdisk and parted (test_unusual). Units: MiB or sectors, as named.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import MIB, mbr_sidecar, record
from synthfs.plan.layout import Layout, captured
from synthfs.plan.logical import Doubt, Drive, WithDrives, place

SECTOR = 512
START, LENGTH = 65, 30
"""Of the extended partition, in MiB: room for drives of 9, 12 and 6 MiB, each 1 MiB behind its record."""
FULL = ((9, 2048), (12, 2048), (6, 2048))


def disk(start: int = START * 2048, length: int = LENGTH * 2048, kind: int = 0x0F) -> Layout:
    """C: and an extended partition, in sectors."""
    return captured(mbr_sidecar(record((7, 2048, 64 * 2048 - 2048), (kind, start, length))))


def drives(*known: tuple[int, int], unit: int = 2048, type: int = 7) -> list[Drive]:
    """Drives by length, in units of sectors, and hidden sectors."""
    return [Drive(number, length * unit * SECTOR, hidden, type) for number, (length, hidden) in enumerate(known, 1)]


def places(found: WithDrives | Doubt) -> list[tuple[int, int, int]]:
    """Number, start and length in sectors of what is not C:."""
    assert isinstance(found, WithDrives), found
    rest = [p for p in found.layout.partitions if p.number != 1]
    return [(p.number, p.start // SECTOR, p.length // SECTOR) for p in rest]


def chain(found: WithDrives | Doubt, start: int = START * 2048) -> list[tuple[int, int]]:
    """Start and length of the drives in sectors, as any partitioner reads them out of the records."""
    assert isinstance(found, WithDrives), found
    records = dict(found.layout.extended)
    at, read = start, []
    while True:
        raw = records.pop(at * SECTOR)
        assert raw[510:] == b"\x55\xaa"
        own, following = (struct.unpack_from("<4xB3xII", raw, 446 + 16 * n) for n in (0, 1))
        assert own[0] != 0
        read.append((at + own[1], own[2]))
        if following[0] == 0:
            assert records == {}
            return read
        assert following[0] == 5
        at = start + following[1]


class TestFilled:
    def test_as_windows_lays_them_out(self) -> None:
        """Each 2048 sectors behind its record, one behind the other to the end."""
        found = place(disk(), drives(*FULL))
        expected = [(66 * 2048, 9 * 2048), (76 * 2048, 12 * 2048), (89 * 2048, 6 * 2048)]
        assert places(found) == [(5 + n, *each) for n, each in enumerate(expected)]
        assert chain(found) == expected

    def test_without_a_word_from_boot_sectors(self) -> None:
        """ext tells nothing of its place: the gap of Windows, since it fills the partition to the end."""
        assert places(place(disk(), drives(*((length, 0) for length, _ in FULL)))) == places(place(disk(), drives(*FULL)))

    def test_as_windows_xp_lays_them_out(self) -> None:
        """Each 63 sectors behind its record, from cylinder to cylinder."""
        cylinder = 255 * 63
        lengths = [3 * cylinder - 63, 2 * cylinder - 63]
        for hidden in (63, 0):
            known = drives(*((length, hidden) for length in lengths), unit=1)
            found = place(disk(9 * cylinder, 5 * cylinder), known)
            assert chain(found, 9 * cylinder) == [(9 * cylinder + 63, lengths[0]), (12 * cylinder + 63, lengths[1])]

    @pytest.mark.parametrize("hidden", [(2048, 76 * 2048, 0), (66 * 2048, 2048, 2048), (0, 0, 89 * 2048)])
    def test_of_several_makers(self, hidden: Sequence[int]) -> None:
        """One drive formatted by Windows, one by mkntfs, which counts from the start of the disk, one by mkfs.ext4."""
        known = drives(*zip((9, 12, 6), hidden, strict=True))
        assert chain(place(disk(), known)) == [(66 * 2048, 9 * 2048), (76 * 2048, 12 * 2048), (89 * 2048, 6 * 2048)]

    @pytest.mark.parametrize("hidden", [0, 2048])
    def test_each_from_a_whole_mib_on(self, hidden: int) -> None:
        """As sfdisk lays them out: a drive whose length is no whole MiB is followed by less than two."""
        known = ((9 * 2048 + 1024, hidden), (8 * 2048, hidden), (5 * 2048, hidden))
        found = place(disk(length=26 * 2048), drives(*known, unit=1))
        assert chain(found) == [(66 * 2048, 9 * 2048 + 1024), (77 * 2048, 8 * 2048), (86 * 2048, 5 * 2048)]

    @pytest.mark.parametrize("left", [1, 1024, 2047, 2048, 4096])
    def test_anything_is_left(self, left: int) -> None:
        """It may lie between the drives as well as behind them."""
        assert isinstance(place(disk(length=LENGTH * 2048 + left), drives(*FULL)), Doubt)

    @pytest.mark.parametrize("kind", [0x05, 0x0F, 0x85])
    def test_any_kind_of_extended_partition(self, kind: int) -> None:
        assert len(chain(place(disk(kind=kind), drives(*FULL)))) == 3

    def test_one_drive(self) -> None:
        assert chain(place(disk(length=10 * 2048), drives((9, 2048)))) == [(66 * 2048, 9 * 2048)]


class TestNamed:
    def test_each_from_a_whole_mib_on(self) -> None:
        """Boot sectors that count from the start of the disk, of drives whose lengths are no whole MiB."""
        known = ((9 * 2048 + 1, 66 * 2048), (11 * 2048 + 5, 77 * 2048), (6 * 2048 - 7, 90 * 2048))
        found = place(disk(length=LENGTH * 2048 + 2048), drives(*known, unit=1))
        assert chain(found) == [(start, length) for length, start in known]
        assert isinstance(found, WithDrives)
        assert "boot sectors name" in found.evidence

    @pytest.mark.parametrize("starts", [(68, 78, 91), (66, 79, 92), (66, 77, 89)])
    def test_with_room_for_one_more(self, starts: Sequence[int]) -> None:
        """Before, between or behind them: nobody knows what is there."""
        known = zip((9, 11, 6), (start * 2048 for start in starts), strict=True)
        assert isinstance(place(disk(length=(LENGTH + 3) * 2048), drives(*known)), Doubt)


class TestDoubt:
    @pytest.mark.parametrize(
        "known",
        [
            ((9, 2048), (12, 2048)),  # the last one was not imaged
            ((9, 2048), (11, 2048), (6, 2048)),  # one is shorter than it was, or its file system is
            ((9, 2048), (13, 2048), (6, 2048)),  # one does not fit
            ((9, 0), (12, 0), (5, 0)),
            ((9, 67 * 2048), (6, 75 * 2048), (6, 82 * 2048)),  # the second one begins inside the first
            ((9, 76 * 2048), (6, 66 * 2048), (6, 89 * 2048)),  # not in the order of their numbers
            ((9, 67 * 2048), (6, 91 * 2048)),  # past the end
            ((9, 67 * 2048), (6, 2048)),  # one counts from the disk, one from its record, and there is room
            ((9, 2**32 - 1), (12, 2**32 - 1), (6, 2**32 - 1)),
        ],
    )
    def test_that_does_not_follow(self, known: Sequence[tuple[int, int]]) -> None:
        """Nothing is placed where a single one is in doubt."""
        assert isinstance(place(disk(), drives(*known)), Doubt)

    def test_one_volume_twice(self) -> None:
        """A drive was deleted, and the next one has its number now: an image of it is among them under both."""
        known = [Drive(number, 9 * MIB, 0, 0x83, id) for number, id in ((1, "a"), (2, "b"), (3, "b"))]
        found = place(disk(length=30 * 2048), known)
        assert isinstance(found, Doubt)
        assert "two numbers" in found.why
        others = [Drive(drive.number, drive.length, 0, drive.type, str(drive.number)) for drive in known]
        assert len(chain(place(disk(length=30 * 2048), others))) == 3

    def test_not_on_a_whole_mib(self) -> None:
        """Debian begins an extended partition two sectors before its drive: a MiB left behind it is not one before it."""
        assert isinstance(place(disk(66 * 2048 - 2, 9 * 2048), drives((8, 0))), Doubt)

    @pytest.mark.parametrize(("numbers", "missing"), [((2, 3), 1), ((1, 3), 2), ((1, 2, 4), 3)])
    def test_one_without_an_image(self, numbers: Sequence[int], missing: int) -> None:
        """Also where its length would be just what is left: who knows how many there were."""
        known = [Drive(number, 6 * MIB, 2048, 7) for number in numbers]
        found = place(disk(), known)
        assert isinstance(found, Doubt)
        assert f"logical drive {missing}" in found.why

    def test_two_extended_partitions(self) -> None:
        layout = captured(mbr_sidecar(record((7, 2048, 4096), (0x0F, 8192, 20480), (0x85, 40960, 20480))))
        assert isinstance(place(layout, drives((9, 2048))), Doubt)

    def test_first_on_the_disk(self) -> None:
        """In an extended partition from sector 63 on, 2048 is a place: as a gap it would lead to no whole MiB."""
        layout = captured(mbr_sidecar(record((0x0F, 63, 2048 + 4 * 2048))))
        assert chain(place(layout, drives((4, 2048))), 63) == [(2048, 8192)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20000), st.sampled_from((0, 1, 63, 2048, 135168, 2**32 - 1))), min_size=1, max_size=6),
    st.integers(1, 70000),
)
def test_never_over_each_other(known: list[tuple[int, int]], length: int) -> None:
    """Whatever the evidence, drives and records lie apart, inside the extended partition."""
    found = place(disk(length=length), drives(*known, unit=1))
    if isinstance(found, WithDrives):
        taken = [(at, at + SECTOR) for at, _ in found.layout.extended]
        taken += [(p.start, p.end) for p in found.layout.partitions if p.number >= 5]
        taken.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(taken))
        assert taken[0][0] == START * MIB
        assert taken[-1][1] <= START * MIB + length * SECTOR
        assert chain(found) == [(p.start // SECTOR, p.length // SECTOR) for p in found.layout.partitions if p.number >= 5]
