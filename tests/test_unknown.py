"""Backups that UrBackup's database should know and does not: a server that was installed anew over its old storage.

Not for: which of them are whole (test_complete). Times: stamps of March 2026; the database knows none before the 10th.
"""

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import need
from handmade import DISK_B, database, gpt, row, store
from lab import Lab, Scope
from makedatabase import Database
from makestore import Image, Store
from processes import wait_until
from stock import Stock, refresh
from synthfs.model import ImageFacts, Seal
from synthfs.plan.catalog import Catalog, plan
from synthfs.plan.container import Format
from synthfs.plan.garden import Gardener
from synthfs.plan.sync import plan_sync
from synthfs.plan.tree import File
from test_catalog import C_SLOT, D_SLOT, ESP_SLOT, SECTORS, disk_of, holds, taken

MARK = "unknown to UrBackup's database"
ANYWAY = "--even-if-incomplete"


def cataloged(
    known: Sequence[ImageFacts], unknown: Sequence[ImageFacts] = (), incomplete: Sequence[ImageFacts] = ()
) -> Catalog:
    """Of images with a row and without; and an image of another client, newer than all, that the database knows."""
    newest = taken("C", "260331-0201", client="newest")
    rows = [row(each, moment(each)) for each in (*known, newest)]
    rows += [row(each, moment(each), complete=False) for each in incomplete]
    return plan(store(*known, *unknown, *incomplete, newest), database(*rows))


def moment(facts: ImageFacts) -> int:
    day, hour, minute = int(facts.stamp[4:6]), int(facts.stamp[7:9]), int(facts.stamp[9:])
    return day * 86400 + hour * 3600 + minute * 60


class TestSiblings:
    def test_a_known_image_has_none_where_the_database_knows_one(self) -> None:
        """However much nearer in time an unknown one is. The unknown images have the nearest of all."""
        c, d = taken("C", "260312-0201"), taken("D", "260315-0201")
        old_c, old_d = taken("C", "260311-0201"), taken("D", "260312-0202")
        catalog = cataloged([c, d], [old_c, old_d])
        assert holds(catalog, c)[3] == d
        assert holds(catalog, d)[2] == c
        assert holds(catalog, old_c)[3] == old_d
        assert holds(catalog, old_d)[2] == c

    def test_a_known_image_has_one_where_the_database_knows_none(self) -> None:
        """And the disk says that it is unknown, beside how much older it is."""
        c, old_d, older_d = taken("C", "260312-0201"), taken("D", "260302-0202"), taken("D", "260301-0202")
        catalog = cataloged([c], [old_d, older_d])
        assert holds(catalog, c)[3] == old_d
        assert [MARK in note.text for note in disk_of(catalog, c).notes if "partition 3" in note.text] == [False, True]
        assert not disk_of(catalog, c).unknown

    def test_a_known_image_has_none_where_the_known_one_is_not_offered(self) -> None:
        """As when D: of its run is being made; the disk says why its partition is zero, and of which images."""
        c, d, old_d = taken("C", "260312-0201"), taken("D", "260312-0202"), taken("D", "260302-0202")
        catalog = cataloged([c], [old_d], incomplete=[d])
        assert holds(catalog, c)[3] is None
        (note,) = [note.text for note in disk_of(catalog, c).notes if "partition 3" in note.text]
        assert f"{d.name} is not used, since it is not offered" in note

    def test_the_reason_for_one_that_is_not_used_is_that_it_is_unknown(self) -> None:
        """Where it is the nearest of its volume."""
        c, d, old_d = taken("C", "260312-0201"), taken("D", "260320-0202"), taken("D", "260312-0202")
        catalog = cataloged([c], [old_d], incomplete=[d])
        assert any(f"{old_d.name} is not used, since it is {MARK}" in note.text for note in disk_of(catalog, c).notes)

    def test_another_partition_may_have_one(self) -> None:
        """It is partition by partition that the database knows an image or not."""
        c, d = taken("C", "260312-0201"), taken("D", "260312-0202")
        old_d, old_esp = taken("D", "260302-0202"), taken("ESP", "260302-0201")
        assert holds(cataloged([c, d], [old_d, old_esp]), c) == {1: old_esp, 2: c, 3: d}

    def test_another_disk_of_the_machine_is_another_disk(self) -> None:
        """That the database knows D: of another one says nothing about this one's."""
        other = gpt(SECTORS, ESP_SLOT, C_SLOT, D_SLOT, disk=DISK_B)
        c, d, old_d = taken("C", "260312-0201"), taken("D", "260312-0202", table=other), taken("D", "260302-0202")
        assert holds(cataloged([c, d], [old_d]), c)[3] == old_d

    @pytest.mark.parametrize(
        ("known", "unknown", "wins"),
        [
            ("260302-0400", "260302-0202", "known"),  # both of its run
            ("260303-0202", "260302-0202", "unknown"),  # nobody's run, and the nearest is not
            ("260301-0100", "260302-0900", "unknown"),  # more than twelve hours before
            ("260302-0400", "260303-0600", "known"),  # the nearest anyway
        ],
    )
    def test_among_those_of_an_unknown_image_being_known_decides_within_one_run(
        self, known: str, unknown: str, wins: str
    ) -> None:
        """Otherwise the nearest in time is taken, whatever the database knows of it."""
        c, d, old_d = taken("C", "260302-0201"), taken("D", known), taken("D", unknown)
        assert holds(cataloged([d], [c, old_d]), c)[3] == {"known": d, "unknown": old_d}[wins]

    def test_a_run_ends_where_another_begins(self) -> None:
        """A known D: that is nearer to the next C: is not of the run of this one."""
        c, next_c = taken("C", "260302-0201"), taken("C", "260302-0801")
        d, old_d = taken("D", "260302-0700"), taken("D", "260302-0202")
        assert holds(cataloged([d], [c, next_c, old_d]), c)[3] == old_d

    def test_in_a_folder_that_was_renamed_all_are_unknown(self) -> None:
        """The database knows another path: they are a machine of their own, as any folder is, and all of it is offered."""
        c, d = taken("C", "260312-0201", "pc-old"), taken("D", "260312-0202", "pc-old")
        there, new = (taken("C", "260312-0201"), taken("D", "260312-0202")), taken("C", "260313-0201")
        catalog = plan(store(c, d, new), database(*map(row, (*there, new))))
        assert holds(catalog, c)[3] == d
        assert holds(catalog, new)[3] is None
        assert [disk.unknown for disk in catalog.disks] == [False, True, True]

    def test_by_the_files_alone_there_is_no_difference(self) -> None:
        """Without a database nobody is unknown."""
        c, d, old_d = taken("C", "260312-0201"), taken("D", "260310-0201"), taken("D", "260312-0202")
        catalog = plan(store(c, d, old_d), None)
        assert holds(catalog, c)[3] == old_d
        assert not any(disk.unknown for disk in catalog.disks)
        assert catalog.notes == ()


class TestNewest:
    def test_is_a_known_one(self) -> None:
        """For the catalog and for the example in the mount's README, whatever the stamps and times of the others are."""
        c, old_c = taken("C", "260310-0201"), taken("C", "260320-0201")
        old_c = replace(old_c, raw=replace(old_c.raw, mtime_ns=c.raw.mtime_ns + 10**15))
        catalog = replace(cataloged([c], [old_c]), machines={"pc": cataloged([c], [old_c]).machines["pc"]})
        assert catalog.newest == disk_of(catalog, c)
        assert catalog.machines["pc"].newest_ns == c.raw.mtime_ns
        (readme,) = [node for node in Gardener().grow(catalog).root.entries if isinstance(node, File)]
        text = "".join(repr(extent) for _, extent in readme.extent_map())
        assert (c.stem in text, old_c.stem in text) == (True, False)

    def test_is_an_unknown_one_where_none_is_known(self) -> None:
        """A client that the new server has not backed up yet."""
        catalog = cataloged([], [taken("C", "260310-0201"), newest := taken("C", "260320-0201")])
        assert catalog.machines["pc"].newest_ns == newest.raw.mtime_ns

    @pytest.mark.parametrize(
        ("keep", "expected"),
        [(1, ["260310-0201"]), (2, ["260310-0201", "260320-0201"]), (9, ["260310-0201", "260302-0201", "260320-0201"])],
    )
    def test_sync_freezes_known_ones_first(self, keep: int, expected: list[str]) -> None:
        """Unknown ones only fill up, the newest of them first."""
        catalog = cataloged([taken("C", "260310-0201")], [taken("C", "260302-0201"), taken("C", "260320-0201")])
        made = plan_sync(catalog, [], {}, keep, Format.VHD, "pc").make
        assert sorted(new.frozen.stamp for new in made) == sorted(expected)

    def test_sync_freezes_the_disk_of_a_known_volume(self) -> None:
        """The new server backs up D: alone: its disk, with the old C: in it, and not the old disk of C:."""
        catalog = cataloged([d := taken("D", "260310-0201")], [old := taken("C", "260302-0201")])
        (new,) = plan_sync(catalog, [], {}, 1, Format.VHD, "pc").make
        assert new.disk.image == d
        assert holds(catalog, d)[2] == old

    def test_sync_freezes_an_unknown_one_where_none_is_known(self) -> None:
        """It is not lost either, while its files are there."""
        catalog = cataloged([], [taken("C", "260302-0201")])
        (new,) = plan_sync(catalog, [], {}, 1, Format.VHD, "pc").make
        assert new.frozen.stamp == "260302-0201"


def test_how_many_are_unknown_is_a_note() -> None:
    """Those that are offered, and those that are not."""
    whole, broken = taken("C", "260302-0201"), replace(taken("C", "260303-0201"), finished=False)
    (note,) = cataloged([taken("C", "260310-0201")], [whole, broken]).notes
    assert note.text.startswith(f"1 image is {MARK}")
    assert "1 more" in note.text
    assert cataloged([whole], []).notes == ()
    assert cataloged([whole], [broken]).notes == ()


def test_a_writable_subvolume_is_not_whole(scope: Scope) -> None:
    """By the catalog as a whole: it is where the others are sealed, and its row may be gone because it failed."""
    opened = replace(taken("C", "260302-0201"), seal=Seal.OPEN)
    (skipped,) = cataloged([taken("C", "260310-0201")], [opened]).skipped
    assert "not sealed" in skipped.reason


STAMPS = ("260301-0201", "260302-0201", "260310-0201")


@pytest.fixture(scope="module")
def stock(lab: Lab) -> Iterator[Stock]:
    with lab.scope("unknown") as scope:
        yield Stock.make(scope)


@pytest.fixture(params=["plain", "BTRFS"])
def anew(scope: Scope, stock: Stock, request: pytest.FixtureRequest) -> Store:
    """Three backups, of which the database in the store knows the last: plain directories, and sealed subvolumes."""
    root = (scope.btrfs() if request.param == "BTRFS" else scope.path("store")) / "urbackup"
    made = Store(root)
    images = [stock.backup(made, stamp=stamp) for stamp in STAMPS]
    know(root, images[-1])
    return made


def know(root: Path, *images: Image) -> None:
    """A database in the store that knows these images alone."""
    work = root.parent / "server.db"
    work.unlink(missing_ok=True)
    with Database(work) as server:
        for image in images:
            server.add(image)
    (root / "urbackup").mkdir(exist_ok=True)
    os.replace(work, root / "urbackup" / "backup_server.db")


def test_a_server_installed_anew(scope: Scope, anew: Store) -> None:
    """`list` offers and marks what the server does not know, and says how many, as do `doctor` and the log of a mount."""
    told = f"2 images are {MARK}"
    listed = scope.synthfs("list", anew.root)
    assert [stamp in listed.stdout for stamp in STAMPS] == [True] * 3
    assert [line.split(":")[0] for line in listed.stdout.splitlines() if MARK in line] == [
        f"pc, Image_C_{stamp}" for stamp in STAMPS[:2]
    ]
    assert told in listed.stderr
    facts = json.loads(scope.synthfs("list", anew.root, "--json").stdout)
    assert [disk["unknown"] for disk in facts["disks"]] == [True, True, False]
    assert f"ok: {told}" in scope.synthfs("doctor", anew.root, check=False).stdout
    alone = scope.synthfs("list", anew.root, "--database", "none")
    assert MARK not in alone.stdout + alone.stderr
    assert all(stamp in alone.stdout for stamp in STAMPS)
    assert "no UrBackup database was found" not in scope.synthfs(
        "doctor", anew.root, "--database", "none", check=False
    ).stdout


def test_a_mount_that_is_there_already(scope: Scope, stock: Stock) -> None:
    """It shows all of them before the server's first backup and after it, and its log says how many are unknown."""
    made, log = Store(scope.path("store") / "urbackup"), scope.path("logs") / "log"
    for stamp in STAMPS[:2]:
        stock.backup(made, stamp=stamp)
    target = scope.synthfs_mount(made.root, "--refresh", "0", "--log-file", log)
    know(made.root, stock.backup(made, stamp=STAMPS[2]))
    refresh(scope, target)
    assert sorted(os.listdir(target / "pc")) == [*(f"Image_C_{stamp}.vhd" for stamp in STAMPS), "new-identity"]
    assert wait_until(lambda: f"2 images are {MARK}" in log.read_text(), 5.0)
    scope.server(target).send_signal(signal.SIGTERM)
    scope.synthfs_mount(made.root, "--refresh", "0", "--log-file", log.with_name("again"))
    assert wait_until(lambda: f"2 images are {MARK}" in log.with_name("again").read_text(), 5.0)


BROKEN = {
    "broken off": "no .sync",
    "without .sync": "no .sync",
    "incomplete in the database": "incomplete",
    "not in the database": "not in UrBackup's database",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_named_can_always_be_had(scope: Scope, stock: Stock, kind: str) -> None:
    """Refused by default with its reason and the option; with it taken, and the reason is a warning."""
    made = Store(scope.path("store") / "urbackup")
    image = stock.backup(made, complete=kind == "without .sync", without=(".sync",))
    newer = stock.backup(made, stamp="260302-0201")
    if kind == "incomplete in the database":
        know(made.root, image, newer)
    if kind == "not in the database":
        know(made.root, newer)
    refused = scope.synthfs("show", image.raw, check=False)
    assert (refused.returncode, BROKEN[kind] in refused.stderr, ANYWAY in refused.stderr) == (3, True, True)
    shown = scope.synthfs("show", image.raw, ANYWAY)
    assert re.search(f"warning: .*{BROKEN[kind]}", shown.stdout)


def test_by_each_verb(scope: Scope, stock: Stock) -> None:
    """A backup that was broken off: refused by each, and taken by each."""
    need.tool("qemu-system-x86_64")
    made, out = Store(scope.path("store") / "urbackup"), scope.path("out")
    image = stock.backup(made, complete=False)
    how = ("--reflink", "never", "-o", f"{out}/disk.vhd")
    against = ("verify", image.raw, "--against", out / "disk.vhd")
    serial = ("--serial", out / "serial", "--after", "1", "--no-kvm")
    refused = [scope.synthfs(*verb, check=False) for verb in (("materialize", image.raw, *how), ("verify", image.raw))]
    assert [(each.returncode, ANYWAY in each.stderr) for each in refused] == [(3, True)] * 2
    assert "warning: taken in spite of this" in scope.synthfs("materialize", image.raw, ANYWAY, *how).stderr
    assert scope.synthfs(*against, ANYWAY).returncode == 0
    assert "no .sync" in scope.synthfs("verify", image.raw, ANYWAY, check=False).stdout
    alone = json.loads(scope.synthfs("show", image.raw, ANYWAY, "--volume-only", "--json").stdout)
    assert any("no .sync" in note["text"] for note in alone["notes"])
    assert scope.synthfs("boot", image.raw, *serial, check=False).returncode == 3
    booted = scope.synthfs("boot", image.raw, *serial, ANYWAY)
    assert "the machine was running" in booted.stderr
