"""What is said of a partition that stays empty: that it was not imaged, only where no image of the machine can be of it.

Not for: what is put into partitions (test_catalog, test_evidence). Units: LBAs of 512 bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest

import handmade
from handmade import DISK_B, MIB, NOBODY, Slot, database, gpt, image, ntfs_boot, protective, record, row, sidecar_bytes, store
from makeimage import fake_mbr
from makembr import GptCopy
from synthfs.model import DatabaseFacts, ImageFacts
from synthfs.plan.catalog import plan

SECTORS = 1 << 18
C, D = Slot(1, 2048, 43007), Slot(2, 43008, 83967)
TABLE = gpt(SECTORS, C, D)
SIZE = 20 * MIB - 512


class Other(Slot):
    """A slot whose GUID is not that of its number."""

    @property
    def guid(self) -> UUID:
        return UUID(int=0x07E3 << 112 | self.number)


def taken(
    letter: str = "C",
    stamp: str = "260302-0200",
    *,
    table: GptCopy | None = TABLE,
    client: str = "pc",
    device: int = 0,
    **how: object,
) -> ImageFacts:
    number = {"C": 1, "D": 2}[letter]
    start = {"C": C, "D": D}[letter].first
    mbr = sidecar_bytes(number, protective(SECTORS), table, device) if table else None
    about: dict[str, object] = {"mbr": mbr, "length": SIZE, "boot": ntfs_boot(SIZE, start), **how}
    return image(client, letter, stamp, **about)  # type: ignore[arg-type]  # as named there


def said(images: Sequence[ImageFacts], known: DatabaseFacts | None = None) -> str:
    """All that is said on the disk of the first of the images."""
    (disk,) = [disk for disk in plan(store(*images), known).disks if disk.image == images[0]]
    assert disk.contents[1].volume is None
    return "\n".join(note.text for note in disk.notes)


def mbr(signature: int, number: int, *, second: tuple[int, int, int] = (7, 43008, 40960)) -> bytes:
    return sidecar_bytes(number, record((7, 2048, 40960), second, signature=signature))


OLD = "260228-0200"
OTHER_DISKS = ("another disk, that night", "one of the same make", "one that is there in turn with this one")
WRAPPER = fake_mbr(SIZE, 1)
MOVED = gpt(SECTORS, C, Slot(2, 84992, 125951))
SHORTER = gpt(SECTORS, C, Slot(2, 43008, 82000))
ALL_NEW = gpt(SECTORS, Other(1, C.first, C.last), Other(2, D.first, D.last), disk=DISK_B)
RECREATED = gpt(SECTORS, C, Other(2, D.first, D.last))

CASES = {
    "disk GUID": (taken(), taken("D", OLD, table=gpt(SECTORS, C, D, disk=DISK_B)), "its disk has another GUID"),
    "all GUIDs": (taken(), taken("D", OLD, table=ALL_NEW), "its disk has another GUID"),
    "GUID of zero": (taken(), taken("D", OLD, table=gpt(SECTORS, C, D, disk=NOBODY)), "cannot be told from each other"),
    "moved": (taken(), taken("D", OLD, table=MOVED, boot=ntfs_boot(SIZE, 84992)), "another place or length then"),
    "resized": (
        taken(),
        taken("D", OLD, table=SHORTER, length=38000 * 512, boot=ntfs_boot(38000 * 512, D.first)),
        "another place or length then",
    ),
    "made anew": (taken(), taken("D", OLD, table=RECREATED), "another GUID then"),
    "no .mbr": (taken(), taken("D", table=None), "no .mbr file"),
    "a broken .mbr": (taken(), taken("D", mbr=b"\1\0"), "is not usable"),
    "too long": (taken(), taken("D", length=30 * MIB, boot=bytes(4096)), "longer than partition 2"),
    "virtual client": (taken(), taken("D", client="pc[data]"), "it belongs to the client pc[data]"),
    "of a virtual client": (taken(client="pc[c]"), taken("D"), "it belongs to the client pc"),
    "two virtual clients": (taken(client="pc[c]"), taken("D", client="pc[d]"), "it belongs to the client pc[d]"),
    "no .sync": (taken(), taken("D", finished=False), "it is not offered: no .sync"),
    "signature": (taken(mbr=mbr(1, 1)), taken("D", mbr=mbr(2, 2)), "its disk has another signature, 00000002"),
    "no signature": (taken(mbr=mbr(0, 1)), taken("D", mbr=mbr(0, 2)), "disks without an id"),
    "another signature, and resized": (
        taken(mbr=mbr(1, 1)),
        taken("D", OLD, mbr=mbr(2, 2, second=(7, 43008, 50000))),
        "its disk has another signature, 00000002",
    ),
    "all GUIDs, and moved": (
        taken(),
        taken("D", OLD, table=gpt(SECTORS, Other(1, 4096, 45055), Other(2, 84992, 125951), disk=DISK_B), boot=b"\0"),
        "its disk has another GUID",
    ),
    "made a GPT": (taken(), taken("D", OLD, mbr=mbr(2, 2)), "its disk has another signature"),
    "cut": (taken(), taken("D", length=SIZE // 2, head=WRAPPER), "it is not offered: .raw ends early"),
    "no volume": (taken(), taken("D", length=0), "it is not offered: "),
    "no .mbr, and shorter": (
        taken(),
        taken("D", table=None, length=SIZE // 2, boot=ntfs_boot(SIZE // 2, D.first)),
        "no .mbr file",
    ),
    "moved MBR": (
        taken(mbr=mbr(1, 1)),
        taken("D", OLD, mbr=mbr(1, 2, second=(7, 45056, 40960)), boot=bytes(4096)),
        "another place or length then",
    ),
    "resized MBR": (
        taken(mbr=mbr(1, 1)),
        taken("D", OLD, mbr=mbr(1, 2, second=(7, 43008, 50000))),
        "another place or length then",
    ),
}


@pytest.mark.parametrize(("base", "other", "why"), CASES.values(), ids=CASES)
def test_is_named_with_the_reason(base: ImageFacts, other: ImageFacts, why: str) -> None:
    """The image that could be of the partition is named, and why it is not used."""
    text = said([base, other])
    assert f"{other.name} is not used, since" in text
    assert why in text
    assert "was not imaged" not in text


def test_incomplete_by_the_database() -> None:
    c, d = taken(), taken("D")
    text = said([c, d], database(row(c), row(d, complete=False)))
    assert f"{d.name} is not used, since it is not offered: UrBackup's database calls it incomplete" in text


def test_the_nearest_of_each_volume() -> None:
    """Of many such images the nearest is named, not all of them."""
    old = [taken("D", f"2602{day:02}-0200", table=MOVED, boot=ntfs_boot(SIZE, 84992)) for day in range(1, 28)]
    text = said([taken(), *old])
    assert [each.name in text for each in old] == [False] * 26 + [True]


@pytest.mark.parametrize(
    "others",
    [
        (),
        (taken("D", client="pc2"),),  # another machine, also if it was cloned
        (taken("D", client="pc[x"),),  # not the name of a virtual client
        (taken("D", table=None, length=30 * MIB, boot=ntfs_boot(30 * MIB)),),  # of no length that would fit
        (taken("C", OLD),),
        (taken("C", "260301-0200", table=gpt(SECTORS, C, D, disk=DISK_B)),),
        (taken("D", table=gpt(SECTORS, Other(1, 4096, 45055), Other(2, 84992, 125951), disk=DISK_B), device=1, boot=b"\0"),),
        (taken("D", table=ALL_NEW, device=1),),
        (taken("D", OLD, table=ALL_NEW), taken("C", "260227-0200")),
    ],
    ids=["alone", "another machine", "a name", "a length", "itself", "itself, on another disk", *OTHER_DISKS],
)
def test_was_not_imaged(others: Sequence[ImageFacts]) -> None:
    """It is said where it is true."""
    assert "partition 2 (basic data) is zero: it was not imaged" in said([taken(), *others])


def test_a_physical_volume_names_its_logical_ones() -> None:
    """What lies in it is alone on disks of its own, and the disk of the other partition says where to look."""
    table = gpt(SECTORS, C, replace(D, type=handmade.LVM))
    base = taken(table=table)
    inside = taken("D", table=table, length=10 * MIB, boot=handmade.ext_boot())
    text = said([base, inside])
    assert f"an LVM physical volume, which UrBackup does not save; volumes that lay in it: {inside.name}" in text


def test_a_change_of_a_virtual_client_is_seen() -> None:
    """A later look knows what came to the other client of the machine."""
    c, d = taken(), taken("D", client="pc[data]")
    before = plan(store(c), None)
    after = plan(store(c, d), None, before=before)
    (disk,) = [disk for disk in after.disks if disk.image == c]
    assert any(d.name in note.text for note in disk.notes)
    assert plan(store(c, d), None, before=after).machines["pc"] is after.machines["pc"]
