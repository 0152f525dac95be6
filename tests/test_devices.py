"""Several disks of one machine with one table, or one disk under several names: which images stand together.

Not for: real disks (test_unusual), pairs of evidence (test_evidence). Times are the images' stamps; sectors of 512 bytes.
"""

from dataclasses import replace

import pytest

from handmade import MIB, Slot, database, ext_boot, gpt, image, ntfs_boot, protective, record, row, store
from makembr import mbr_bytes
from synthfs.model import DatabaseFacts, ImageFacts
from synthfs.plan.catalog import plan

SECTORS = 1 << 18
TABLE = gpt(SECTORS, Slot(1, 2048, 43007), Slot(2, 43008, 83967))
SIZE = 20 * MIB
ONE, TWO = "260301-0200", "260302-0200"


def on(
    device: str, number: int, id: int = 0, letter: str = "", stamp: str = ONE, *, logical: bool = False, length: int = SIZE
) -> ImageFacts:
    """An image of a Linux client, of an ext4 with UUID `id`; of another file system where that is 0."""
    boot = bytearray(ext_boot() if id else bytes(4096))
    boot[1024 + 104 : 1024 + 120] = bytes(15) + bytes([id])
    serial = f"00000000-0000-0000-0000-0000000000{id:02x}" if id else ""
    table = record((0x83, 2048, 40960), (0x05, 43008, 2 * (2048 + 20480))) if logical else protective(SECTORS)
    raw = mbr_bytes(
        version=0 if logical else 1,
        device_number=0,
        partition_number=number,
        serial=serial,
        volume_name=f"LINUX:{device}{'p' if device[-1].isdigit() else ''}{number}",
        filesystem="ext4",
        mbr_data=table,
        gpt=None if logical else TABLE,
    )
    letter = letter or f"{device.replace('/', '_')}{number}"
    return image(letter=letter, stamp=stamp, mbr=raw, length=length, boot=bytes(boot))


def windows(device: int, number: int, letter: str, stamp: str = ONE, *, boot: bytes = b"") -> ImageFacts:
    raw = mbr_bytes(
        version=1,
        device_number=device,
        partition_number=number,
        serial="1",
        volume_name="Windows",
        filesystem="NTFS",
        mbr_data=protective(SECTORS),
        gpt=TABLE,
    )
    return image(letter=letter, stamp=stamp, mbr=raw, length=SIZE - 512, boot=boot or bytes(4096))


def together(*images: ImageFacts, known: DatabaseFacts | None = None) -> list[set[str]]:
    """The letters on the disk of each image, as far as it has a disk of its own."""
    disks = {disk.image: disk for disk in plan(store(*images), known).disks}
    found = [disks[each].contents for each in images if each in disks]
    return [{content.volume.image.letter for content in contents if content.volume} for contents in found]


@pytest.mark.parametrize("devices", [("/dev/sda", "/dev/sdb"), ("/dev/nvme0n1", "/dev/nvme1n1"), ("/dev/vda", "/dev/vdb")])
@pytest.mark.parametrize("later", [ONE, "260301-0205", "260308-0200"])
def test_one_partition_of_each(devices: tuple[str, str], later: str) -> None:
    """The first of one disk, the second of another: no place was imaged twice, and still they are of two disks."""
    one, other = on(devices[0], 1, 1), on(devices[1], 2, 2, stamp=later)
    assert together(one, other) == [{one.letter}, {other.letter}]


def test_boot_and_root_on_two_disks() -> None:
    """/boot on sda1 and / on sdb2, whatever UrBackup associates: each disk is there."""
    boot, root = on("/dev/sda", 1, 1, "SYSVOL"), on("/dev/sdb", 2, 2, "C")
    assert together(boot, root) == [{"SYSVOL"}, {"C"}]
    assert together(boot, root, known=database(row(boot), row(root, 60, with_=(boot,)))) == [{"SYSVOL"}, {"C"}]


def test_logical_drives_of_two_disks() -> None:
    """The drives of either would fill the extended partition together."""
    one, other = (on(f"/dev/sd{disk}", number, number, logical=True, length=10 * MIB) for disk, number in (("a", 5), ("b", 6)))
    assert together(one, other) == [{one.letter}, {other.letter}]
    again = on("/dev/sda", 6, 7, logical=True, length=10 * MIB)
    assert together(one, again, other) == [{one.letter, again.letter}] * 2 + [{other.letter}]


def test_names_that_changed_by_a_start() -> None:
    """sda and sdb are swapped: the volumes of the night before stand with those of their own disk, or not at all."""
    night = [on("/dev/sda", 1, 1), on("/dev/sda", 2, 2), on("/dev/sdb", 1, 3), on("/dev/sdb", 2, 4)]
    swapped = [on("/dev/sda", 1, 3, stamp=TWO), on("/dev/sdb", 1, 1, stamp=TWO)]
    assert together(*night, *swapped)[4:] == [{"_dev_sda1"}, {"_dev_sdb1"}]
    complete = [*swapped, on("/dev/sda", 2, 4, stamp=TWO), on("/dev/sdb", 2, 2, stamp=TWO)]
    assert together(*night, *complete)[4:6] == [{"_dev_sda1", "_dev_sda2"}, {"_dev_sdb1", "_dev_sdb2"}]


def test_the_disk_of_the_system_under_another_name() -> None:
    """C is what / is on: one disk, that was sda and is sdb."""
    d, c = on("/dev/sda", 2, 2, "D"), on("/dev/sda", 1, 1, "C")
    later = on("/dev/sdb", 1, 1, "C", TWO)
    assert together(d, c, later) == [{"C", "D"}] * 3


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (0, 2)])
def test_windows_numbers_its_disks_anew(numbers: tuple[int, int]) -> None:
    """At each start: one disk, also where its volumes have other letters by then, or ESP and SYSVOL are one partition."""
    first, second = numbers
    assert together(windows(first, 1, "C"), windows(first, 2, "D"), windows(second, 1, "C", TWO))[2] == {"C", "D"}
    boot = ntfs_boot(SIZE - 512, 43008)
    same = windows(first, 2, "D", boot=boot), windows(second, 2, "E", TWO, boot=boot), windows(second, 1, "C", TWO)
    assert together(*same)[2] == {"C", "E"}
    esp, sysvol = windows(first, 1, "ESP"), windows(second, 1, "SYSVOL", "260301-0800")
    assert together(esp, sysvol, windows(first, 2, "C"), windows(second, 2, "C", "260301-0801"))[1] == {"SYSVOL", "C"}


def test_a_long_name() -> None:
    """A device's name comes from the backed-up machine: it is cut in what is said, and tells disks apart to its end."""
    name = "/dev/" + "x" * 5000
    one, other = on(f"{name}a", 1, 1, "A"), on(f"{name}b", 1, 2, "B")
    assert together(one, other) == [{"A"}, {"B"}]
    notes = [note.text for disk in plan(store(one, other), None).disks for note in disk.notes]
    assert any("several disks" in text for text in notes)
    assert max(map(len, notes)) < 600


def test_a_virtual_client_proves_nothing() -> None:
    """Anybody may call himself `pc[x]`: his images with the table of pc change nothing of its disks."""
    raw = record((0x83, 2048, 5120), (0x83, 8192, 5120))

    def of(client: str, number: int, length: int) -> ImageFacts:
        name = f"LINUX:/dev/sda{number}"
        mbr = mbr_bytes(
            version=0,
            device_number=0,
            partition_number=number,
            serial="",
            volume_name=name,
            filesystem="",
            mbr_data=raw,
        )
        return image(client, f"_dev_sda{number}", ONE, mbr=mbr, length=length, boot=ext_boot())

    own, other = of("pc", 1, 2 * MIB), of("pc[x]", 2, 20 * MIB)
    for images in ((own,), (own, other)):
        (disk,) = [disk for disk in plan(store(*images), None).disks if disk.image == own]
        assert (disk.layout.sector_size, disk.layout.made_up) == (512, False)
    windows_copy = windows(0, 2, "D", boot=ntfs_boot(SIZE - 512, 2048))
    thief = replace(windows(0, 1, "C", boot=ntfs_boot(SIZE - 512, 2048)), client="pc[x]")
    before, after = (plan(store(*images), None) for images in ((windows_copy,), (windows_copy, thief)))
    assert [disk.edition for disk in before.disks] == [disk.edition for disk in after.disks if disk.image.client == "pc"]
