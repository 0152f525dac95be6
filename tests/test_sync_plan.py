"""The rules by which a directory of frozen disks is kept: what is made, what is removed, and what is left alone.

Not for: making or removing files (test_sync, test_sync_pruning). Expected values: the rules in words, counted by hand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

import handmade
from handmade import DISK_B, MIB, Slot, database, gpt, image, protective, row, sidecar_bytes, store
from makembr import GptCopy
from synthfs import identity
from synthfs.model import ImageFacts, Kind, Skipped
from synthfs.plan.catalog import Catalog, plan
from synthfs.plan.container import Format
from synthfs.plan.sync import RULES, Found, Frozen, SyncPlan, plan_sync

SECTORS = 1 << 19
ESP_SLOT, C_SLOT, D_SLOT = Slot(1, 2048, 22527, handmade.ESP), Slot(2, 22528, 182527), Slot(3, 182528, 342527)
TABLE = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT)
OTHER_TABLE = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT, disk=DISK_B)
NUMBERS = {"ESP": 1, "C": 2, "D": 3}
MADE = Found(268436480, 1_700_000_000)


def taken(letter: str = "C", day: int = 1, client: str = "pc", table: GptCopy = TABLE) -> ImageFacts:
    mbr = sidecar_bytes(NUMBERS[letter], protective(SECTORS), table)
    length = 20480 * 512 if letter == "ESP" else 60 * MIB
    return image(client, letter, f"2603{day:02}-0201", mbr=mbr, length=length)


def catalog(*images: ImageFacts, rows: Sequence[ImageFacts] = (), skipped: Iterable[Skipped] = ()) -> Catalog:
    facts = database(*map(row, (*images, *rows))) if rows else None
    return plan(replace(store(*images), skipped=tuple(skipped)), facts)


def frozen(*days: int, client: str = "pc", keep: int = 9) -> list[Frozen]:
    """The records of disks of C: of these days, as an earlier run left them."""
    images = [taken(day=day, client=client) for day in days]
    made = plan_sync(catalog(*images), [], {}, keep, Format.VHD).make
    return [replace(new.frozen, size=MADE.size, mtime_ns=MADE.mtime_ns) for new in made]


def intact(*records: Frozen) -> dict[str, Found]:
    return {each.place: MADE for each in records}


def days(records: Iterable[Frozen]) -> list[int]:
    return sorted(int(each.stamp[4:6]) for each in records)


def made(found: SyncPlan) -> list[int]:
    return days(new.frozen for new in found.make)


def removed(found: SyncPlan) -> list[int]:
    return days([*found.gone, *(old.frozen for old in found.outdated)])


class TestMaking:
    @pytest.mark.parametrize(("keep", "expected"), [(1, [3]), (2, [2, 3]), (5, [1, 2, 3])])
    def test_the_newest_of_each_disk(self, keep: int, expected: list[int]) -> None:
        """Of each disk the newest `keep`, under the client's folder and the image's name."""
        found = plan_sync(catalog(*(taken(day=day) for day in (2, 1, 3))), [], {}, keep, Format.VHD)
        assert made(found) == expected
        assert found.make[-1].frozen.place == "pc/Image_C_260303-0201.vhd"

    def test_c_stands_for_its_disk(self) -> None:
        """D: and the ESP are on the disk of C: and are not frozen again; the disk of another identity is."""
        mine = [taken("ESP"), taken("C"), taken("D"), taken("D", table=OTHER_TABLE, client="other")]
        places = [new.frozen.place for new in plan_sync(catalog(*mine), [], {}, 1, Format.VHD).make]
        assert places == ["other/Image_D_260301-0201.vhd", "pc/Image_C_260301-0201.vhd"]

    def test_clients(self) -> None:
        """Only clients that match are looked after; the files of others are neither removed nor counted."""
        images = [taken(client="pc-1"), taken(client="pc-2"), taken(client="mac")]
        others = frozen(1, 2, client="gone")
        found = plan_sync(catalog(*images), others, intact(*others), 1, Format.VHD, client="pc-*")
        assert [new.frozen.client for new in found.make] == ["pc-1", "pc-2"]
        assert (removed(found), found.kept, found.refused) == ([], (), False)

    def test_what_is_there_is_not_made_again(self) -> None:
        """A disk that is there, ours or not, is not made again; one that is not ours is mentioned."""
        (mine,) = frozen(1)
        assert plan_sync(catalog(taken()), [mine], intact(mine), 1, Format.VHD) == SyncPlan((), (), (), (mine,), (), False)
        found = plan_sync(catalog(taken()), [], intact(mine), 1, Format.VHD)
        assert (found.make, [mine.place in remark for remark in found.remarks]) == ((), [True])

    def test_only_a_better_edition_replaces(self) -> None:
        """A disk that gained a partition is made anew; one that lost one, or only changed, is not."""
        (poor,) = frozen(1)
        rich = plan_sync(catalog(taken("ESP"), taken()), [], {}, 1, Format.VHD).make[0].frozen
        rich = replace(rich, size=MADE.size, mtime_ns=MADE.mtime_ns)
        better = plan_sync(catalog(taken("ESP"), taken()), [poor], intact(poor), 1, Format.VHD)
        assert [new.replace for new in better.make] == [True]
        assert better.remarks == (f"{poor.place} is made anew: 1 more of its partitions has an image now",)
        for old, images in ((rich, [taken()]), (replace(poor, edition="other"), [taken()])):
            assert plan_sync(catalog(*images), [old], intact(old), 1, Format.VHD).make == ()

    def test_disks_of_equal_tables(self) -> None:
        """Two disks of one id are two disks, each with its newest; what was made of one before is not of the other."""

        def of(device: int, letter: str, day: int) -> ImageFacts:
            mbr = sidecar_bytes(2, protective(SECTORS), TABLE, device)
            return image("pc", letter, f"2603{day:02}-0201", mbr=mbr, length=60 * MIB)

        images = [of(device, letter, day) for device, letter in ((0, "C"), (1, "E")) for day in (1, 2)]
        first = plan_sync(catalog(*images), [], {}, 1, Format.VHD)
        assert [new.frozen.image[-24:] for new in first.make] == ["/Image_C_260302-0201.raw", "/Image_E_260302-0201.raw"]
        # By version 0.1.0, which took them for one disk.
        (old,) = frozen(1)
        again = plan_sync(catalog(*images), [old], intact(old), 1, Format.VHD, prune_anyway=True)
        assert (made(again), removed(again)) == ([2, 2], [1])
        assert again.outdated[0].newer == ("pc/Image_C_260302-0201.vhd",)

    def test_earlier_rules(self) -> None:
        """A disk that an earlier version laid out otherwise is made anew, once, and one line says why."""
        (now,) = frozen(1)
        old = replace(now, edition="other", rules=RULES - 1)
        found = plan_sync(catalog(taken()), [old], intact(old), 1, Format.VHD)
        ((new,), (remark,)) = found.make, found.remarks
        assert (new.replace, new.frozen.rules, new.frozen.edition) == (True, RULES, now.edition)
        assert remark.startswith(f"{now.place} is made anew: an earlier version of synthfs made it")
        again = replace(new.frozen, size=MADE.size, mtime_ns=MADE.mtime_ns)
        assert plan_sync(catalog(taken()), [again], intact(again), 1, Format.VHD) == SyncPlan((), (), (), (again,), (), False)

    def test_earlier_rules_and_the_same_disk(self) -> None:
        """A disk of earlier rules that is the same by those of now stays, and is recorded as one of these."""
        (now,) = frozen(1)
        old = replace(now, rules=RULES - 1)
        assert plan_sync(catalog(taken()), [old], intact(old), 1, Format.VHD) == SyncPlan((), (), (), (now,), (), False)

    def test_earlier_rules_replace_nothing_better(self) -> None:
        """A disk of earlier rules stays where it has more partitions, where it was written to, and in another store."""
        (now,) = frozen(1)
        old = replace(now, edition="other", rules=RULES - 1)
        better, written = replace(old, images=2), {old.place: replace(MADE, mtime_ns=5)}
        for record, there, same_store in ((better, intact(old), True), (old, written, True), (old, intact(old), False)):
            assert plan_sync(catalog(taken()), [record], there, 1, Format.VHD, same_store=same_store).make == ()

    def test_later_rules(self) -> None:
        """A disk of later rules stays as it is, and so does its record: an older synthfs does not undo what a newer one did."""
        (now,) = frozen(1)
        for later in (replace(now, rules=RULES + 1), replace(now, edition="other", rules=RULES + 1)):
            found = plan_sync(catalog(taken()), [later], intact(later), 1, Format.VHD)
            assert (found.make, found.kept) == ((), (later,))

    def test_a_file_written_to_is_left_alone(self) -> None:
        """It is neither replaced by a better one nor removed, by whatever option; that is said."""
        (mine,) = frozen(1)
        for found in ({mine.place: replace(MADE, mtime_ns=5)}, {mine.place: replace(MADE, size=5)}):
            for images in ([taken("ESP"), taken()], [taken(day=2)], [taken(client="other")]):
                result = plan_sync(catalog(*images), [mine], found, 1, Format.VHD, prune_anyway=True)
                assert not any(new.replace for new in result.make)
                assert removed(result) == []
                assert [mine.place in remark for remark in result.remarks] == [True]


class TestPruning:
    def test_outdated(self) -> None:
        """An older disk goes once `keep` newer ones are there; its successors are named."""
        old = frozen(1)
        found = plan_sync(catalog(taken(day=1), taken(day=2)), old, intact(*old), 1, Format.VHD)
        assert (made(found), removed(found), found.refused) == ([2], [1], False)
        assert found.outdated[0].newer == ("pc/Image_C_260302-0201.vhd",)
        assert removed(plan_sync(catalog(taken(day=1), taken(day=2)), old, intact(*old), 2, Format.VHD)) == []

    def test_another_container(self) -> None:
        """A disk that is wanted in another container than it is in goes once it is there, unless it holds more than that."""
        old = frozen(1, 2, 3)
        found = plan_sync(catalog(*(taken(day=day) for day in (1, 2, 3))), old, intact(*old), 3, Format.RAW)
        assert (made(found), removed(found), found.refused) == ([1, 2, 3], [1, 2, 3], False)
        assert found.outdated[0].newer == ("pc/Image_C_260301-0201.img",)
        richer = [replace(each, images=2) for each in old]
        assert removed(plan_sync(catalog(*(taken(day=day) for day in (1, 2, 3))), richer, intact(*old), 3, Format.RAW)) == []

    def test_deleted_by_urbackup(self) -> None:
        """A disk whose backup is gone goes as well, as long as the row is gone and so is the directory."""
        old = frozen(1, 2, 3)
        now = [taken(day=2), taken(day=3)]
        assert removed(plan_sync(catalog(*now), old, intact(*old), 5, Format.VHD)) == [1]
        assert removed(plan_sync(catalog(*now, rows=[taken(day=1)]), old, intact(*old), 5, Format.VHD)) == []
        assert removed(plan_sync(catalog(*now), old, intact(*old), 5, Format.VHD, is_there=lambda name: "0301-" in name)) == []

    def test_normal_succession_is_no_loss(self) -> None:
        """UrBackup that deletes the old backup when the new one is there is nothing to stop for."""
        old = frozen(1)
        found = plan_sync(catalog(taken(day=2)), old, intact(*old), 1, Format.VHD)
        assert (made(found), removed(found), found.refused) == ([2], [1], False)

    @pytest.mark.parametrize(("left", "goes"), [((3, 4), [1, 2]), ((4,), []), ((), [])])
    def test_half_of_a_client(self, left: tuple[int, ...], goes: list[int]) -> None:
        """Half of a client's files may go at once; of more, none does, and the run ends with an error."""
        old = frozen(1, 2, 3, 4)
        other = taken(client="other")
        found = plan_sync(catalog(other, *(taken(day=day) for day in left)), old, intact(*old), 9, Format.VHD)
        assert (removed(found), found.refused) == (goes, not goes)
        anyway = plan_sync(
            catalog(other, *(taken(day=day) for day in left)), old, intact(*old), 9, Format.VHD, prune_anyway=True
        )
        assert removed(anyway) == [day for day in (1, 2, 3, 4) if day not in left]

    def test_fewer_to_keep(self) -> None:
        """Keeping one of four instead of four is removing more than half, too: that takes the option."""
        old = frozen(1, 2, 3, 4)
        images = [taken(day=day) for day in (1, 2, 3, 4)]
        refused = plan_sync(catalog(*images), old, intact(*old), 1, Format.VHD)
        assert (removed(refused), refused.refused) == ([], True)
        assert removed(plan_sync(catalog(*images), old, intact(*old), 1, Format.VHD, prune_anyway=True)) == [1, 2, 3]

    def test_trouble_with_a_client(self) -> None:
        """Of a client that could not be read in full nothing is removed; the others are not affected."""
        mine, theirs = frozen(1, 2), frozen(1, 2, client="other")
        trouble = Skipped("pc", "pc", "cannot be listed: Permission denied", Kind.UNREADABLE)
        now = [taken(day=2), taken(day=2, client="other")]
        found = plan_sync(catalog(*now, skipped=[trouble]), [*mine, *theirs], intact(*mine, *theirs), 1, Format.VHD)
        assert [old.frozen.place for old in found.outdated] == ["other/Image_C_260301-0201.vhd"]
        assert found.refused

    def test_empty_store(self) -> None:
        """A store without images removes nothing, and the run ends with an error, even if there is nothing to lose."""
        old = frozen(1)
        found = plan_sync(catalog(), old, intact(*old), 1, Format.VHD)
        assert (removed(found), found.make, found.refused) == ([], (), True)
        assert plan_sync(catalog(), [], {}, 1, Format.VHD).refused
        assert removed(plan_sync(catalog(), old, intact(*old), 1, Format.VHD, prune_anyway=True)) == [1]

    def test_another_store(self) -> None:
        """A store that is not that of the last run removes and replaces nothing."""
        old = frozen(1)
        found = plan_sync(catalog(taken(day=2)), old, intact(*old), 1, Format.VHD, same_store=False)
        assert (made(found), removed(found), found.refused) == ([2], [], True)
        better = plan_sync(catalog(taken("ESP"), taken()), old, intact(*old), 1, Format.VHD, same_store=False)
        assert better.make == ()


def under(old: Frozen, place: str) -> Frozen:
    """The same record, of a file that has another name."""
    return replace(old, place=place)


class TestPlaces:
    """Which folder a client has, and which file an image: what is on record, and otherwise what the mount shows."""

    def test_old_tags(self) -> None:
        """What 0.1.0 made stays where it is, and is not made again; later disks go there, in other containers too."""
        image = taken(client="lab:3", day=1)
        (new,) = frozen(1, client="lab:3")
        old = under(new, "lab_3~9623417a/Image_C~01234567.vhd")
        assert len(new.place.partition("/")[0]) == len("lab_3~") + 32
        assert plan_sync(catalog(image), [old], intact(old), 1, Format.VHD) == SyncPlan((), (), (), (old,), (), False)
        # Also where it is made anew, and where somebody has taken it away.
        worse = replace(old, edition="other", rules=RULES - 1)
        for records, there in ((worse, intact(worse)), (old, {})):
            (made,) = plan_sync(catalog(image), [records], there, 1, Format.VHD).make
            assert made.frozen.place == old.place
        later = plan_sync(catalog(image, taken(client="lab:3", day=2)), [old], intact(old), 1, Format.VHD)
        assert [each.frozen.place for each in later.make] == ["lab_3~9623417a/Image_C_260302-0201.vhd"]
        other = plan_sync(catalog(image), [old], intact(old), 1, Format.RAW)
        assert [each.frozen.place for each in other.make] == ["lab_3~9623417a/Image_C_260301-0201.img"]

    @pytest.mark.parametrize("folder", ["lab_3~9623417a", "pc", "PC"])
    def test_a_folder_on_record_is_its_clients(self, folder: str) -> None:
        """No other client gets it, whatever it is called, in upper or lower case, and whatever the database says."""
        (old,) = frozen(1, client="gone")
        old = under(old, f"{folder}/Image_C_260301-0201.vhd")
        clients = ("pc", "LAB_3~9623417A", "lab_3~9623417a", "Pc")
        images = [taken(client=client) for client in clients]
        both = plan(store(*images), database(*map(row, images), clients=clients))
        for folders in ({}, {"gone": folder}):
            found = plan_sync(both, [] if folders else [old], {}, 1, Format.VHD, folders=folders)
            names = [new.frozen.place.partition("/")[0] for new in found.make]
            assert len({name.casefold() for name in (*names, folder)}) == len(clients) + 1

    def test_twins(self) -> None:
        """Of names that differ in case, who is on record goes on; otherwise the lowest number decides, as in the mount."""
        images = [taken(client=client) for client in ("PC", "pc")]
        names = [new.frozen.place.partition("/")[0] for new in plan_sync(catalog(*images), [], {}, 1, Format.VHD).make]
        assert [len(name) for name in names] == [35, 35]
        facts = database(*map(row, images), clients=("pc", "PC"))
        made = plan_sync(plan(store(*images), facts), [], {}, 1, Format.VHD).folders
        assert (made["pc"], len(made["PC"])) == ("pc", 35)
        (old,) = frozen(1, client="PC")
        made = plan_sync(plan(store(*images), facts), [old], intact(old), 1, Format.VHD).folders
        assert (made["PC"], len(made["pc"])) == ("PC", 35)

    def test_twins_of_earlier_versions(self) -> None:
        """0.1.0 gave both a folder. Nothing is made again; from then on one of them has another one, for good."""
        images = [taken(client=client) for client in ("PC", "pc")]
        both = [*frozen(1, client="PC"), *frozen(1, client="pc")]
        assert [old.place.partition("/")[0] for old in both] == ["PC", "pc"]
        found = plan_sync(catalog(*images), both, intact(*both), 1, Format.VHD)
        assert (found.make, found.kept) == ((), tuple(both))
        more = [taken(client=client, day=2) for client in ("pc", "PC")]
        later = plan_sync(catalog(*images, *more), both, intact(*both), 1, Format.VHD)
        assert sorted(len(new.frozen.place.partition("/")[0]) for new in later.make) == [2, 35]
        facts = database(*map(row, images), clients=("pc", "PC"))
        again = plan_sync(plan(store(*images), facts), both, intact(*both), 1, Format.VHD, folders=found.folders)
        assert again.folders == found.folders

    def test_files_that_differ_in_case(self) -> None:
        """Two volumes of one client are two files everywhere; what is on record keeps its name."""
        small, large = (image("pc", f"_dev_vg_{letter}", "260301-0201", length=60 * MIB) for letter in "aA")
        (first,) = plan_sync(catalog(small), [], {}, 1, Format.VHD).make
        assert first.frozen.place == "pc/Image__dev_vg_a_260301-0201.vhd"
        old = replace(first.frozen, size=MADE.size, mtime_ns=MADE.mtime_ns)
        (second,) = plan_sync(catalog(small, large), [old], intact(old), 1, Format.VHD).make
        assert second.frozen.image == large.name
        assert second.frozen.place.casefold() != old.place.casefold()
        gone = plan_sync(catalog(large), [old], intact(old), 1, Format.VHD).make
        assert [new.frozen.place.casefold() != old.place.casefold() for new in gone] == [True]
        both = plan_sync(catalog(small, large), [], {}, 1, Format.VHD).make
        assert len({new.frozen.place.casefold() for new in both}) == 2

    @pytest.mark.parametrize("bits", [0, 1])
    def test_whatever_the_hash(self, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """No two clients have one folder, and no two images one file, where nearly all hashes are alike."""
        real = identity.digest

        def digest(purpose: str, *parts: bytes | str | int) -> bytes:
            return bytes([real(purpose, *parts)[0] & bits] * 32) if purpose == "name" else real(purpose, *parts)

        monkeypatch.setattr(identity, "digest", digest)
        clients = ["pc", "PC", "pc:", "pc|", "pc. ", f"pc_~{'0' * 32}", f"PC_~{'0' * 31}1", "pc_"]
        images = [image(client, letter, length=60 * MIB) for client in clients for letter in ("x:", "x|", "X|")]
        found = plan_sync(catalog(*images), [], {}, 1, Format.VHD)
        assert len({new.frozen.place.casefold() for new in found.make}) == len(images)
        assert len({new.frozen.place.casefold().partition("/")[0] for new in found.make}) == len(clients)
