"""Which images stand in each other's disks: grouping, and the choice between several images of one partition.

Not for: completeness (test_complete), places (test_place). Times: seconds of UTC, 0 is the day of the sample backup.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import handmade
from handmade import DISK_B, MIB, NOBODY, Slot, database, gpt, image, ntfs_boot, protective, record, row, sidecar_bytes, store
from makembr import GptCopy
from synthfs.model import DatabaseFacts, ImageFacts, ImageRow
from synthfs.plan import layout as layouts
from synthfs.plan.catalog import Catalog, plan
from synthfs.plan.disk import Disk
from synthfs.plan.siblings import ONE_RUN, Candidates, Dated
from synthfs.plan.volume import Volume

SECTORS = 1 << 19
ESP_SLOT, C_SLOT, D_SLOT = Slot(1, 2048, 22527, handmade.ESP), Slot(2, 22528, 182527), Slot(3, 182528, 342527)
TABLE = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT)
RECORD = protective(SECTORS)
LENGTHS = {"ESP": 20480 * 512, "SYSVOL": 20480 * 512}
NUMBERS = {"ESP": 1, "SYSVOL": 1, "C": 2, "_dev_sda2": 2, "D": 3}
HOUR, DAY = 3600, 86400


def taken(
    letter: str = "C",
    stamp: str = "260301-0201",
    client: str = "pc",
    *,
    table: GptCopy = TABLE,
    device: int = 0,
    number: int = 0,
) -> ImageFacts:
    """An image of one of the three volumes of a disk."""
    mbr = sidecar_bytes(number or NUMBERS[letter], RECORD, table, device)
    return image(client, letter, stamp, mbr=mbr, length=LENGTHS.get(letter, 60 * MIB))


def disk_of(catalog: Catalog, facts: ImageFacts) -> Disk:
    (disk,) = [disk for disk in catalog.disks if disk.image == facts]
    return disk


def holds(catalog: Catalog, facts: ImageFacts) -> dict[int, ImageFacts | None]:
    """Partition number -> the image in it, on the disk of `facts`."""
    contents = disk_of(catalog, facts).contents
    return {each.partition.number: each.volume.image if each.volume else None for each in contents}


class TestGrouping:
    def test_volumes_of_one_disk_stand_together(self) -> None:
        """C:, D: and the ESP of one disk are on each disk of C: and of D:; the ESP has none of its own."""
        esp, c, d = images = taken("ESP"), taken("C"), taken("D")
        catalog = plan(store(*images), None)
        assert holds(catalog, c) == holds(catalog, d) == {1: esp, 2: c, 3: d}
        assert [disk.image for disk in catalog.disks] == [c, d]
        assert [part.image for part in catalog.parts] == [esp]

    def test_several_disks_of_one_client_stay_apart(self) -> None:
        """Two disks with the same partitions, and with equal device numbers, are told apart by their GUIDs."""
        other = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT, disk=DISK_B)
        c, d = taken("C"), taken("D", table=other)
        catalog = plan(store(c, d), None)
        assert holds(catalog, c) == {1: None, 2: c, 3: None}
        assert holds(catalog, d) == {1: None, 2: None, 3: d}

    def test_device_numbers_do_not_matter(self) -> None:
        """PhysicalDrive numbers change from boot to boot: one disk under two of them is one disk."""
        c, d = taken("C", device=0), taken("D", device=1)
        assert holds(plan(store(c, d), None), c)[3] == d

    def test_clients_cloned_from_one_image_stay_apart(self) -> None:
        """Equal GUIDs on two machines are two disks; an ESP goes with its own machine."""
        c, d, theirs = taken("C"), taken("D", client="twin"), taken("ESP", client="twin")
        catalog = plan(store(c, d, theirs), None)
        assert holds(catalog, c) == {1: None, 2: c, 3: None}
        assert holds(catalog, d) == {1: theirs, 2: None, 3: d}

    @pytest.mark.parametrize("scheme", ["GPT", "MBR"])
    def test_an_id_of_zero_groups_nothing(self, scheme: str) -> None:
        """Disks whose GUID or signature is zero may be two disks: no image is put beside another."""
        if scheme == "GPT":
            nobody = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT, disk=NOBODY)
            c, d, esp = taken("C", table=nobody), taken("D", table=nobody), taken("ESP", table=nobody)
        else:
            raw = record((7, 2048, 4096), (7, 8192, 4096), signature=0)
            c, d = (image(letter=letter, mbr=sidecar_bytes(n, raw), length=MIB) for n, letter in ((1, "C"), (2, "D")))
            esp = image(letter="SYSVOL", mbr=sidecar_bytes(1, raw), length=MIB)
        catalog = plan(store(c, d, esp), None)
        for mine in (c, d, esp):
            assert [found for found in holds(catalog, mine).values() if found] == [mine]

    def test_mbr_disks_are_grouped_by_signature(self) -> None:
        """Equal signatures are one disk, different ones are two."""

        def on(signature: int, number: int, letter: str) -> ImageFacts:
            raw = record((7, 2048, 4096), (7, 8192, 4096), signature=signature)
            return image(letter=letter, mbr=sidecar_bytes(number, raw), length=MIB)

        c, d, e = on(1, 1, "C"), on(1, 2, "D"), on(2, 2, "E")
        catalog = plan(store(c, e, d), None)
        assert holds(catalog, c) == {1: c, 2: d}
        assert holds(catalog, e) == {1: None, 2: e}

    @pytest.mark.parametrize(
        "moved",
        [Slot(3, 184576, 342527), Slot(3, 182528, 342526), Slot(4, 182528, 342527)],
        ids=["start", "length", "GUID"],
    )
    def test_after_a_repartition_old_images_do_not_fit(self, moved: Slot) -> None:
        """An image whose own table has the partition elsewhere, or under another GUID, is not used: zeroes, and a note."""
        c, d = taken("C"), taken("D", stamp="260228-0201", table=gpt(SECTORS, ESP_SLOT, C_SLOT, moved))
        catalog = plan(store(c, d), None)
        assert holds(catalog, c)[3] is None
        assert any("partition 3" in note.text for note in disk_of(catalog, c).notes)

    def test_sysvol_and_esp_may_be_one_partition(self) -> None:
        """On UEFI machines both name the ESP: one of them is in it, and neither gets a disk."""
        sysvol, esp, c = taken("SYSVOL", "260301-0159"), taken("ESP", "260301-0200"), taken("C")
        catalog = plan(store(sysvol, esp, c), database(row(sysvol, -120), row(esp, -60), row(c, 0, with_=(sysvol, esp))))
        assert holds(catalog, c)[1] in (sysvol, esp)
        assert {part.image for part in catalog.parts} == {sysvol, esp}

    def test_one_volume_under_two_names(self) -> None:
        """The same partition imaged as C: and as /dev/sda2: two disks, each with its own image in that partition."""
        c, again, d = taken("C"), taken("_dev_sda2", "260301-0230"), taken("D", "260301-0300")
        catalog = plan(store(c, again, d), None)
        assert holds(catalog, c)[2] == c
        assert holds(catalog, again)[2] == again
        assert holds(catalog, d)[2] == again

    def test_an_esp_without_its_c_gets_a_disk(self) -> None:
        """SYSVOL and ESP are hidden only where there is a disk that they belong to."""
        esp = taken("ESP")
        catalog = plan(store(esp, taken("C", table=gpt(SECTORS, ESP_SLOT, C_SLOT, disk=DISK_B))), None)
        assert holds(catalog, esp)[1] == esp
        assert catalog.parts == ()

    def test_what_is_not_offered_stands_nowhere(self) -> None:
        """An incomplete D: is in no disk, and listed with its reason."""
        c, d = taken("C"), taken("D")
        catalog = plan(store(c, d), database(row(c), row(d, complete=False)))
        assert holds(catalog, c)[3] is None
        assert [each.name for each in catalog.skipped] == [d.name]


class TestChoice:
    """C: of one run, and several images of D: or the ESP to choose from."""

    C = taken("C")

    def chosen(self, facts: DatabaseFacts | None, *others: ImageFacts, number: int = 3) -> ImageFacts | None:
        for order in (others, others[::-1]):
            found = holds(plan(store(self.C, *order), facts), self.C)[number]
        first = holds(plan(store(self.C, *others), facts), self.C)[number]
        assert found == first, "the order of listing decides"
        return found

    def test_the_associated_image_comes_first(self) -> None:
        """What UrBackup itself recorded as this image's ESP beats one of the same backuptime, and a nearer one."""
        far, same, near = taken("ESP", "260227-0200"), taken("ESP", "260301-0100"), taken("ESP", "260301-0202")
        rows = database(row(far, -2 * DAY), row(same, 0), row(near, 60), row(self.C, 0, with_=(far,)))
        assert self.chosen(rows, far, same, near, number=1) == far

    def test_the_same_snapshot_group_comes_second(self) -> None:
        """An equal backuptime beats a stamp that is nearer; UrBackup gives it to all members of a snapshot group."""
        same, near = taken("D", "260301-0330"), taken("D", "260301-0202")
        assert self.chosen(database(row(self.C, 0), row(same, 0), row(near, 60)), same, near) == same

    @pytest.mark.parametrize(
        ("older", "newer", "winner"), [(-600, 300, "newer"), (-300, 600, "older"), (-50 * DAY, 2 * DAY, "newer")]
    )
    def test_the_nearest_comes_third_before_or_after(self, older: int, newer: int, winner: str) -> None:
        """D: is imaged after its C:, so the next one may be nearer than the one before."""
        d = {"older": taken("D", "260228-1200"), "newer": taken("D", "260301-1200")}
        rows = database(row(self.C, 0), row(d["older"], older), row(d["newer"], newer))
        assert self.chosen(rows, *d.values()) == d[winner]

    def test_each_run_gets_its_own(self) -> None:
        """Two runs C, D, C, D, without a database: each disk holds its own run's D, the first run's too."""
        runs = [(taken("C", f"26030{day}-0201"), taken("D", f"26030{day}-0212")) for day in (1, 2)]
        catalog = plan(store(*runs[0], *runs[1]), None)
        for c, d in runs:
            assert holds(catalog, c)[3] == d
            assert holds(catalog, d)[2] == c

    def test_stamps_that_run_backwards(self) -> None:
        """In the night when daylight saving ends, local stamps repeat an hour: UTC says which D: followed C:."""
        c = taken("C", "261025-0250")  # 00:50 UTC, still summer time
        before, after = taken("D", "261025-0205"), taken("D", "261025-0200")  # 00:05 and 01:00 UTC
        at = {c: 50 * 60, before: 5 * 60, after: 60 * 60}
        catalog = plan(store(c, before, after), database(*(row(each, time) for each, time in at.items())))
        assert holds(catalog, c)[3] == after

    @pytest.mark.parametrize(("seconds", "mixed"), [(DAY, False), (-DAY, False), (DAY + 1, True), (-DAY - 1, True)])
    def test_more_than_a_day_apart_is_marked(self, seconds: int, mixed: bool) -> None:
        """Up to 24 hours, in either direction, are one state of the machine; more is said by a warning on the disk."""
        d = taken("D", "260301-1200")
        disk = disk_of(plan(store(self.C, d), database(row(self.C, 0), row(d, seconds))), self.C)
        assert disk.mixed is mixed
        assert [note.warning for note in disk.notes if d.name in note.text] == [True] * mixed

    def test_without_a_database_stamps_tell_the_age(self) -> None:
        """A copied store: the distance is that of the stamps."""
        for stamp, mixed in (("260302-0201", False), ("260302-0202", True), ("260228-0201", False), ("260228-0200", True)):
            d = taken("D", stamp)
            assert disk_of(plan(store(self.C, d), None), self.C).mixed is mixed


def test_a_pending_deletion_is_noted_on_the_disk() -> None:
    """delete_pending=1 is offered, and whoever looks at it is warned."""
    c = taken("C")
    (disk,) = plan(store(c), database(row(c, pending=True))).disks
    assert [note.warning for note in disk.notes if "delet" in note.text] == [True]


def test_an_image_newer_than_the_database_is_judged_by_its_files() -> None:
    """The nightly copy does not know today's images: they are offered if their files say so."""
    old, new, broken = taken("C"), taken("C", "260302-0201"), image(letter="D", stamp="260302-0215", finished=False)
    catalog = plan(store(old, new, broken), database(row(old)))
    assert [disk.image for disk in catalog.disks] == [old, new]
    assert [each.name for each in catalog.skipped] == [broken.name]


def test_a_file_that_is_no_image_leaves_the_others_served() -> None:
    """A `.raw` shorter than its wrapper is skipped with one line that has its size; the rest is offered."""
    c, short = taken("C"), image(letter="E", length=-512, boot=ntfs_boot(0))
    catalog = plan(store(c, short), None)
    assert [disk.image for disk in catalog.disks] == [c]
    (skipped,) = catalog.skipped
    assert (skipped.name, "\n" in skipped.reason) == (short.name, False)
    assert str(short.raw.size) in skipped.reason


def test_editions_follow_the_bytes() -> None:
    """Another inode or device is the same disk; another sibling, or a changed file, is another one."""

    def edition(*images: ImageFacts) -> bytes:
        return disk_of(plan(store(*images), None), images[0]).edition

    c, d, later = taken("C"), taken("D"), taken("D", "260301-0202")
    assert edition(c, d) == edition(c, d)
    assert len({edition(c), edition(c, d), edition(c, later)}) == 3


def test_warnings_of_a_sibling_stand_on_every_disk_that_holds_it() -> None:
    """Who looks at C:'s disk reads that its D: is about to be deleted."""
    c, d = taken("C"), taken("D")
    catalog = plan(store(c, d), database(row(c), row(d, pending=True)))
    (text,) = [note.text for note in disk_of(catalog, c).notes if note.warning]
    assert text.startswith("partition 3:")
    assert "delet" in text


def dated(name: str, letter: str, clock: int, time: int | None, disputed: bool, others: tuple[str, ...] = ()) -> Dated:
    facts = image(letter=letter, name=name)
    layout = layouts.as_imaged(MIB, 512)
    volume = Volume(facts, layout, layout.partitions[0], MIB, disputed=disputed)
    return Dated(volume, ImageRow(name, time, True, False, others) if time is not None else None, clock)


HOURS = st.integers(0, 40).map(lambda number: number * HOUR)


@given(
    times=st.lists(
        st.tuples(st.sampled_from("DEF"), HOURS, st.none() | HOURS, st.booleans()), min_size=1, max_size=12
    ),
    own=st.tuples(HOURS, st.none() | HOURS),
    associated=st.sets(st.integers(0, 11), max_size=2),
)
def test_the_best_sibling_is_that_of_the_rules(
    times: list[tuple[str, int, int | None, bool]], own: tuple[int, int | None], associated: set[int]
) -> None:
    """What is found by looking where it must be is what comparing all of them with each other finds."""
    rivals = [dated(f"{number:02}", *each) for number, each in enumerate(times)]
    one = dated("own", "C", *own, False, tuple(f"{number:02}" for number in associated))
    assert Candidates(rivals).best_for(one) is expected(one, rivals)


def expected(one: Dated, rivals: list[Dated]) -> Dated:
    """The rules as they are told, without a thought for the time that they take."""

    def nearness(other: Dated, center: Dated = one) -> tuple[int, str]:
        return abs(center.distance(other)), other.name

    def sure_and_near(other: Dated) -> tuple[bool, int, str]:
        return other.volume.disputed, *nearness(other)

    def together(other: Dated) -> bool:
        return bool(one.row and other.row and one.row.backuptime == other.row.backuptime)

    def nearest_of(letter: str, center: Dated) -> Dated:
        return min((each for each in rivals if each.letter == letter), key=lambda each: nearness(each, center))

    chosen = [each for each in rivals if one.row and each.name in one.row.associated]
    if chosen:
        return min(chosen, key=lambda each: (not together(each), *sure_and_near(each)))
    if group := [each for each in rivals if together(each)]:
        return min(group, key=sure_and_near)
    nearest = min(rivals, key=nearness)
    run = [nearest]
    for letter in {each.letter for each in rivals} - {nearest.letter}:
        other = nearest_of(letter, one)
        there_and_back = nearest_of(letter, nearest) is other and nearest_of(nearest.letter, other) is nearest
        if there_and_back and abs(nearest.distance(other)) <= ONE_RUN:
            run.append(other)
    return min(run, key=sure_and_near)
