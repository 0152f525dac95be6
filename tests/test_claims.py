"""Volumes whose place is in doubt, beside images whose place is not: which of the two the place belongs to.

Not for: a single volume's place (test_place), pairs of evidence (test_evidence). Units: LBAs of 512 bytes.
"""

from dataclasses import replace

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


def test_a_chain_of_copies() -> None:
    """E: was copied to D:, then C: to E:. All numbers are right, and two boot sectors are not."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        images = [taken("C", 1, 1), taken("D", 2, 3), taken("E", 3, 1)]
        found = places(*(images[index] for index in order))
        assert [found[order.index(index)] for index in range(3)] == [1, 2, 3]


def test_a_number_against_a_boot_sector() -> None:
    """Two stale numbers after a partition was deleted: one volume tells its place, the other one does not, and is alone."""
    assert places(taken("D", 2, 0, length=SIZE + MIB // 2), taken("Y", 4, 2)) == [ALONE, 2]
    # Years later another volume may be there.
    assert places(taken("D", 2, 0, length=SIZE + MIB // 2), taken("Y", 4, 2, OLD)) == [2, 2]


def test_a_volume_of_another_length() -> None:
    """Windows images all but NTFS to the end: what fills partition 1 alone is there. An NTFS may be shorter than its own."""
    exact = 20 * MIB
    assert places(taken("D", 2, 0, length=exact)) == [1]
    two = gpt(SECTORS, Slot(1, 2048, 43007), Slot(2, 43008, 84991), Slot(4, 84992, 125951))
    refs = image(letter="D", stamp=NOW, mbr=sidecar_bytes(2, protective(SECTORS), two), length=exact)
    assert places(refs) == [ALONE]
    ntfs = image(
        letter="D", stamp=NOW, mbr=sidecar_bytes(2, protective(SECTORS), TABLE), length=SIZE, boot=ntfs_boot(SIZE, 9999)
    )
    assert places(ntfs) == [2]
    assert places(ntfs, taken("Y", 4, 2)) == [1, 2]
    assert places(ntfs, taken("Y", 4, 2), taken("C", 1, 1)) == [ALONE, 2, 1]


def test_a_broken_off_image_is_a_witness() -> None:
    """The image of C: is not offered, and still tells where C: is."""
    catalog = plan(store(replace(taken("C", 1, 1), finished=False), d := taken("D", 2, 1)), None)
    (disk,) = catalog.disks
    (own,) = [content for content in disk.contents if content.volume]
    assert (own.volume and own.volume.image, own.partition.number) == (d, 2)


def test_another_machine_does_not_matter() -> None:
    sidecar, boot = sidecar_bytes(2, protective(SECTORS), TABLE), ntfs_boot(SIZE, FIRST[2])
    other = handmade.image("pc2", "C", NOW, mbr=sidecar, length=SIZE, boot=boot)
    assert places(other, taken("D", 3, 2)) == [2, 2]
