"""Where two kinds of evidence about a volume's place contradict each other, which one wins: every pair of them.

    number        the partition number in the `.mbr`               LVM id    the id of a physical volume in the `.mbr`
    length        that of the image                                UUID      the id of another file system in the `.mbr`
    boot sector   the place that the volume names itself           time      how near the image is to that of the disk
    device        the disk's name, or number, in the `.mbr`        association   UrBackup's own record of what belongs together

Each case is a store in which exactly these two disagree; it tells which of them had its way. The table has the reasons.
Expected places are counted by hand. Not for: real disks (test_unusual). Units: LBAs of 512 bytes.
"""

from collections.abc import Callable
from itertools import combinations

import pytest

import handmade
from handmade import MIB, Slot, database, gpt, image, ntfs_boot, protective, row, store
from makembr import GptCopy, mbr_bytes
from synthfs.model import ImageFacts
from synthfs.plan.catalog import Catalog, plan

SECTORS = 1 << 18
A, B, LONG = Slot(1, 2048, 43007), Slot(2, 43008, 83967), Slot(3, 83968, 165887)
"""Two partitions of 20 MiB and one of 40."""
TABLE = gpt(SECTORS, A, B, LONG)
SIZE = 20 * MIB
LVM_ID = "Zt5wTn-aaaa-bbbb-cccc-dddd-eeee-ffffff"
NOWHERE = 0
LETTERS = {1: "C", 2: "D", 3: "E"}


def ext(number: int) -> bytes:
    """The beginning of an ext4 whose UUID ends with `number`."""
    raw = bytearray(handmade.ext_boot())
    raw[1024 + 104 : 1024 + 120] = bytes(15) + bytes([number])
    return bytes(raw)


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-0000000000{number:02x}"


def taken(
    number: int,
    letter: str = "",
    stamp: str = "260302-0200",
    *,
    length: int = SIZE,
    boot: bytes = bytes(4096),
    device: str = "",
    disk: int = 0,
    serial: str = "",
    table: GptCopy = TABLE,
) -> ImageFacts:
    """An image whose `.mbr` names partition `number`; of a Linux client where `device` is given, such as /dev/sda."""
    raw = mbr_bytes(
        version=1,
        device_number=disk,
        partition_number=number,
        serial=serial,
        volume_name=f"LINUX:{device}{number}" if device else "Windows",
        filesystem="ext4" if device else "NTFS",
        mbr_data=protective(SECTORS),
        gpt=table,
    )
    return image(letter=letter or LETTERS[number], stamp=stamp, mbr=raw, length=length, boot=boot)


def place(catalog: Catalog, facts: ImageFacts) -> int:
    """The partition in which the image is on its own disk, NOWHERE where it is alone."""
    (disk,) = [disk for disk in catalog.disks if disk.image == facts]
    (content,) = [content for content in disk.contents if content.volume and content.volume.image == facts]
    return NOWHERE if disk.layout.made_up else content.partition.number


def beside(catalog: Catalog, facts: ImageFacts, number: int = 2) -> ImageFacts | None:
    """The image in partition `number` of the disk of `facts`."""
    (disk,) = [disk for disk in catalog.disks if disk.image == facts]
    (content,) = [content for content in disk.contents if content.partition.number == number]
    return content.volume.image if content.volume else None


def alone(facts: ImageFacts, **winners: int) -> str:
    """Which evidence about one image had its way, by the place that each of them names."""
    found = place(plan(store(facts), None), facts)
    (winner,) = [name.replace("_", " ") for name, number in winners.items() if number == found]
    return winner


def chosen(base: ImageFacts, *, rows: bool = False, **winners: ImageFacts | None) -> str:
    """Which evidence about the image beside `base` had its way; with `rows`, UrBackup associates the last one with it."""
    images = [facts for facts in winners.values() if facts]
    known = database(*(row(each, _minutes(each)) for each in images), row(base, _minutes(base), with_=images[-1:]))
    found = beside(plan(store(base, *images), known if rows else None), base)
    (winner,) = [name.replace("_", " ") for name, facts in winners.items() if facts == found]
    return winner


def _minutes(facts: ImageFacts) -> int:
    day, clock = int(facts.stamp[4:6]), facts.stamp[7:]
    return (day * 1440 + int(clock[:2]) * 60 + int(clock[2:])) * 60


NIGHT = "260301-0200"
SOON = "260302-0206"
LATER = "260302-0230"


def number_and_time() -> str:
    """Two images of partitions of one length: the nearer one is of partition 3, by its number."""
    near, far = taken(3, "X", SOON, table=OLD), taken(2, "D", NIGHT, table=OLD)
    base = taken(1, table=OLD)
    catalog = plan(store(base, near, far), None)
    return {far: "number", near: "time"}[found] if (found := beside(catalog, base)) else "neither"


def device_and_time() -> str:
    """sdb2 was taken nearer to sda1 than sda2."""
    base = taken(1, "_dev_sda1", boot=ext(1), device="/dev/sda", serial=uuid(1))
    sdb1 = taken(1, "_dev_sdb1", SOON, boot=ext(3), device="/dev/sdb", serial=uuid(3))
    sdb2 = taken(2, "_dev_sdb2", SOON, boot=ext(4), device="/dev/sdb", serial=uuid(4))
    sda2 = taken(2, "_dev_sda2", LATER, boot=ext(2), device="/dev/sda", serial=uuid(2))
    found = beside(plan(store(base, sdb1, sdb2, sda2), None), base)
    return {sda2: "device", sdb2: "time"}[found] if found else "neither"


def device_and_uuid() -> str:
    """After a start sda and sdb are swapped: the sda2 of the night before is of the other disk."""
    images = [
        taken(number, f"_dev_sd{disk}{number}", NIGHT, boot=ext(own), device=f"/dev/sd{disk}", serial=uuid(own))
        for disk, number, own in (("a", 1, 1), ("a", 2, 2), ("b", 1, 3), ("b", 2, 4))
    ]
    base = taken(1, "_dev_sda1", boot=ext(3), device="/dev/sda", serial=uuid(3))
    found = beside(plan(store(base, *images), None), base)
    return "device" if found == images[1] else "UUID" if found is None else "neither"


def device_and_association() -> str:
    """UrBackup associates the ESP of the other disk."""
    esp = [taken(2, letter, NIGHT, device=f"/dev/{disk}") for letter, disk in (("ESP", "sda"), ("SYSVOL", "sdb"))]
    others = [taken(1, f"_dev_{disk}1", NIGHT, device=f"/dev/{disk}") for disk in ("sda", "sdb")]
    base = taken(1, "_dev_sda1", device="/dev/sda")
    known = database(*(row(each, _minutes(each)) for each in (*esp, *others)), row(base, _minutes(base), with_=esp[1:]))
    found = beside(plan(store(base, *esp, *others), known), base)
    return {esp[0]: "device", esp[1]: "association"}[found] if found else "neither"


def device_and(boot: bytes = bytes(4096), number: int = 2) -> str:
    """sda2 and sdb2 say of themselves that they lie in partition 2: so does each of them, on its own disk."""
    length = SIZE - 512 if boot != bytes(4096) else SIZE
    images = [taken(1, f"_dev_sd{disk}1", device=f"/dev/sd{disk}") for disk in "ab"] + [
        taken(number, f"_dev_sd{disk}2", SOON, device=f"/dev/sd{disk}", boot=boot, length=length) for disk in "ab"
    ]
    catalog = plan(store(*images), None)
    pairs = [(beside(catalog, images[0]), images[2]), (beside(catalog, images[1]), images[3])]
    return "device" if all(found == own for found, own in pairs) else "neither"


B_BOOT = ntfs_boot(SIZE - 512, B.first)
LONG_BOOT = ntfs_boot(2 * SIZE - 512, B.first)
OLD = gpt(SECTORS, A, B, Slot(3, 83968, 124927))
"""Partition 3 as long as the others."""

Case = Callable[[], str]
PAIRS: dict[tuple[str, str], tuple[str, str, Case]] = {
    ("number", "length"): (
        "length",
        "a volume cannot be longer than its partition; the only one of its length has it",
        lambda: alone(taken(1, length=2 * SIZE), number=1, length=3),
    ),
    ("number", "boot sector"): (
        "boot sector",
        "numbers go stale when a partition is deleted; a boot sector is written with the volume",
        lambda: alone(taken(3, length=SIZE - 512, boot=B_BOOT), number=3, boot_sector=2),
    ),
    ("number", "device"): (
        "device",
        "a number counts within one device, and both disks have a partition of that number",
        device_and,
    ),
    ("number", "LVM id"): (
        "LVM id",
        "the number is that of the partition below the logical volume",
        lambda: alone(taken(2, length=SIZE // 2, device="/dev/sda", serial=LVM_ID), number=2, LVM_id=NOWHERE),
    ),
    ("number", "UUID"): (
        "UUID",
        "the named partition holds another file system, so the volume is of another device",
        lambda: alone(taken(2, length=SIZE // 2, device="/dev/sda", serial=uuid(9), boot=ext(1)), number=2, UUID=NOWHERE),
    ),
    ("number", "time"): (
        "number",
        "an image of another partition is not of this one, however near it is",
        number_and_time,
    ),
    ("number", "association"): (
        "number",
        "UrBackup tells that the images belong together, and the number where",
        lambda: chosen(taken(1), rows=True, number=None, association=taken(3, "ESP")),
    ),
    ("length", "boot sector"): (
        "length",
        "a volume cannot be longer than its partition, whatever its boot sector says",
        lambda: alone(taken(3, length=2 * SIZE - 512, boot=LONG_BOOT), boot_sector=2, length=3),
    ),
    ("length", "device"): (
        "length",
        "on either device it is too long",
        lambda: alone(taken(3, length=3 * SIZE, device="/dev/sdb"), device=3, length=NOWHERE),
    ),
    ("length", "LVM id"): (
        "LVM id",
        "a logical volume of several physical ones may be as long as one of them; no file system has such an id",
        lambda: alone(taken(2, device="/dev/sda", serial=LVM_ID, boot=ext(1)), length=2, LVM_id=NOWHERE),
    ),
    ("length", "UUID"): (
        "length",
        "a logical volume is shorter than the partition below it: the id is a stale record",
        lambda: alone(taken(2, device="/dev/sda", serial=uuid(9), boot=ext(1)), length=2, UUID=NOWHERE),
    ),
    ("length", "time"): (
        "length",
        "an image that is longer than the partition is not of it, however near it is",
        lambda: chosen(taken(1), time=taken(2, "D", SOON, length=3 * SIZE), length=taken(2, "D", NIGHT)),
    ),
    ("length", "association"): (
        "length",
        "nor if UrBackup associates it",
        lambda: chosen(taken(1), rows=True, length=None, association=taken(2, "ESP", length=3 * SIZE)),
    ),
    ("boot sector", "device"): (
        "device",
        "a boot sector names a place on its own disk",
        lambda: device_and(B_BOOT),
    ),
    ("boot sector", "LVM id"): (
        "LVM id",
        "a volume may have been formatted elsewhere, and the id is that of what the partition holds now",
        lambda: alone(
            taken(2, length=SIZE // 2, device="/dev/sda", serial=LVM_ID, boot=ntfs_boot(SIZE // 2, B.first)),
            boot_sector=2,
            LVM_id=NOWHERE,
        ),
    ),
    ("boot sector", "UUID"): (
        "UUID",
        "the named partition holds another file system now",
        lambda: alone(
            taken(2, length=SIZE // 2, device="/dev/sda", serial="0123456789ABCDEF", boot=ntfs_boot(SIZE // 2, B.first)),
            boot_sector=2,
            UUID=NOWHERE,
        ),
    ),
    ("boot sector", "time"): (
        "time",
        "an image whose place is in doubt is still of last night; certainty decides within one run alone",
        lambda: chosen(
            taken(1),
            time=taken(3, "D", SOON, length=SIZE - 512, boot=B_BOOT),
            boot_sector=taken(2, "D", NIGHT, length=SIZE - 512, boot=B_BOOT),
        ),
    ),
    ("boot sector", "association"): (
        "association",
        "UrBackup knows which images it took together",
        lambda: chosen(
            taken(1),
            rows=True,
            boot_sector=taken(2, "ESP", SOON, length=SIZE - 512, boot=B_BOOT),
            association=taken(3, "ESP", NIGHT, length=SIZE - 512, boot=B_BOOT),
        ),
    ),
    ("device", "LVM id"): (
        "LVM id",
        "a logical volume is on neither disk itself",
        lambda: alone(taken(2, length=SIZE // 2, device="/dev/sdb", serial=LVM_ID), device=2, LVM_id=NOWHERE),
    ),
    ("device", "UUID"): (
        "UUID",
        "names of devices change with a start, and the file system of the same partition tells that they did",
        device_and_uuid,
    ),
    ("device", "time"): ("device", "the other disk's image is of another disk, however near it is", device_and_time),
    ("device", "association"): (
        "device",
        "two disks cannot be told apart by what UrBackup took together",
        device_and_association,
    ),
    ("LVM id", "UUID"): (
        "LVM id",
        "a file system on a logical volume has a UUID of its own",
        lambda: alone(taken(2, length=SIZE // 2, device="/dev/sda", serial=LVM_ID, boot=ext(1)), UUID=2, LVM_id=NOWHERE),
    ),
    ("LVM id", "time"): (
        "LVM id",
        "a logical volume is not of the partition below it, however near it is",
        lambda: chosen(
            taken(1, device="/dev/sda"),
            time=taken(2, "_dev_vg_lv", SOON, length=SIZE // 2, device="/dev/sda", serial=LVM_ID),
            LVM_id=taken(2, "_dev_sda2", NIGHT, device="/dev/sda", serial=uuid(2), boot=ext(2)),
        ),
    ),
    ("LVM id", "association"): (
        "LVM id",
        "nor if UrBackup associates it, such as /boot on a logical volume",
        lambda: chosen(
            taken(1, device="/dev/sda"),
            rows=True,
            LVM_id=None,
            association=taken(2, "SYSVOL", length=SIZE // 2, device="/dev/sda", serial=LVM_ID),
        ),
    ),
    ("UUID", "time"): (
        "UUID",
        "the nearer image is of another device",
        lambda: chosen(
            taken(1, device="/dev/sda"),
            time=taken(2, "_dev_sda2", SOON, length=SIZE // 2, device="/dev/sda", serial=uuid(9), boot=ext(1)),
            UUID=taken(2, "_dev_sda2", NIGHT, device="/dev/sda", serial=uuid(2), boot=ext(2)),
        ),
    ),
    ("UUID", "association"): (
        "UUID",
        "nor is one that UrBackup associates of this device",
        lambda: chosen(
            taken(1, device="/dev/sda"),
            rows=True,
            UUID=None,
            association=taken(2, "SYSVOL", length=SIZE // 2, device="/dev/sda", serial=uuid(9), boot=ext(1)),
        ),
    ),
    ("time", "association"): (
        "association",
        "UrBackup knows which images it took together",
        lambda: chosen(taken(1), rows=True, time=taken(2, "SYSVOL", SOON), association=taken(2, "ESP", NIGHT)),
    ),
}


EVIDENCE = ("number", "length", "boot sector", "device", "LVM id", "UUID", "time", "association")


def test_every_pair_has_its_case() -> None:
    """None of the pairs is left to chance, and each says why."""
    assert set(PAIRS) == set(combinations(EVIDENCE, 2))
    assert all(winner in pair and why for pair, (winner, why, _) in PAIRS.items())


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_which_wins(pair: tuple[str, str]) -> None:
    winner, _, case = PAIRS[pair]
    assert case() == winner
