"""Volumes whose place is in doubt, beside images whose place is not: which of the two the place belongs to.

Not for: a single volume's place (test_place), pairs of evidence (test_evidence). Units: LBAs of 512 bytes.
"""

import handmade
from handmade import MIB, Slot, gpt, image, ntfs_boot, protective, sidecar_bytes, store
from synthfs.model import ImageFacts
from synthfs.plan.catalog import plan

SECTORS = 1 << 18
TABLE = gpt(SECTORS, Slot(1, 2048, 43007), Slot(2, 43008, 84991), Slot(3, 84992, 169983))
"""Of 20, 20.5 and 41.5 MiB."""
FIRST = {1: 2048, 2: 43008, 3: 84992}
SIZE = 20 * MIB - 512
ALONE = 0
OLD, LAST, NOW = "260201-0200", "260301-0200", "260302-0200"


def taken(letter: str, number: int, told: int, stamp: str = NOW, *, length: int = SIZE) -> ImageFacts:
    """An image whose `.mbr` names partition `number`, and its boot sector the place of `told` (0: none)."""
    boot = ntfs_boot(length, FIRST[told]) if told else bytes(4096)
    return image(letter=letter, stamp=stamp, mbr=sidecar_bytes(number, protective(SECTORS), TABLE), length=length, boot=boot)


def places(*images: ImageFacts) -> list[int]:
    """The partition of each image on its own disk."""
    catalog = plan(store(*images), None)
    found = []
    for facts in images:
        (disk,) = [disk for disk in catalog.disks if disk.image == facts]
        (own,) = [c for c in disk.contents if c.volume and c.volume.image == facts]
        found.append(ALONE if disk.layout.made_up else own.partition.number)
    return found


def test_a_copy_is_where_its_number_says() -> None:
    assert places(taken("C", 1, 1), taken("D", 2, 1)) == [1, 2]
    assert places(taken("D", 2, 1, OLD), taken("C", 1, 1)) == [2, 1]


def test_a_copy_of_a_copy() -> None:
    """Three volumes with one boot sector."""
    assert places(taken("C", 1, 1), taken("D", 2, 1), taken("E", 3, 1)) == [1, 2, 3]


def test_a_stale_number_is_where_its_boot_sector_says() -> None:
    """While nobody else has that place, or only another volume whose place is in doubt as well."""
    assert places(taken("C", 1, 1), taken("D", 3, 2)) == [1, 2]
    assert places(taken("D", 3, 2), taken("X", 7, 2)) == [2, 2]


def test_a_volume_that_had_the_place_keeps_it() -> None:
    """Another volume had it before: a letter that changed, or a partition that was made anew."""
    assert places(taken("E", 2, 2, OLD), taken("D", 2, 2, LAST), taken("D", 3, 2)) == [2, 2, 2]


def test_a_letter_that_changed_while_the_number_is_stale() -> None:
    """The place was never this letter's: then the number is believed, with a warning that names the other image."""
    images = taken("E", 2, 2, OLD), taken("D", 3, 2)
    assert places(*images) == [2, 3]
    (disk,) = [disk for disk in plan(store(*images), None).disks if disk.image == images[1]]
    assert any(images[0].name in note.text and note.warning for note in disk.notes)


def test_two_names_of_one_volume() -> None:
    """The same number and the same boot sector, or both SYSVOL and ESP: neither takes the other's place away."""
    assert places(taken("C", 3, 2), taken("_dev_sda2", 3, 2)) == [2, 2]
    assert places(taken("ESP", 2, 2, LAST), taken("SYSVOL", 3, 2)) == [2, 2]


def test_both_places_are_taken() -> None:
    assert places(taken("C", 1, 1), taken("D", 2, 2), taken("X", 2, 1)) == [1, 2, ALONE]


def test_a_number_that_cannot_be() -> None:
    """Its partition is too small, or not there, and the place that is left is another volume's."""
    large = 30 * MIB
    assert places(taken("C", 1, 1), taken("D", 7, 1)) == [1, ALONE]
    assert places(taken("E", 3, 3, length=large), taken("X", 1, 3, length=large)) == [3, ALONE]
    filled = 84992 * 512
    assert places(taken("E", 3, 0, length=filled), taken("X", 1, 0, length=filled)) == [3, ALONE]
    assert places(taken("X", 1, 0, length=filled)) == [3]


def test_another_machine_does_not_matter() -> None:
    other = handmade.image("pc2", "C", NOW, mbr=sidecar_bytes(2, protective(SECTORS), TABLE), length=SIZE)
    assert places(other, taken("D", 3, 2)) == [2, 2]
