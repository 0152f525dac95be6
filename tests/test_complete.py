"""Which images are offered: the table of plan/complete, line by line.

Not for: what is made of those that are. Source: facts/urbackup-format.md sections 4.3 and 5.
"""

import pytest

from handmade import database, image, row
from synthfs.model import DatabaseFacts, ImageFacts, Kind, Seal
from synthfs.plan.complete import DAY, Judge, clock, stamp_of

IT = image(stamp="260301-0201")
OLDER, NEWER = image(stamp="260228-0201"), image(stamp="260302-0201")
WRITTEN = IT.raw.mtime_ns // 10**9
SAME_MINUTE = image(letter="D", stamp="260301-0201")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("seal", Seal)
@pytest.mark.parametrize(
    ("complete", "pending", "offered", "noted"),
    [(True, False, True, False), (True, True, True, True), (False, False, False, False), (False, True, False, False)],
)
def test_a_row_decides_whatever_the_files_say(
    complete: bool, pending: bool, offered: bool, noted: bool, seal: Seal, finished: bool
) -> None:
    """complete=1 is offered, with a note where it will be deleted; complete=0 is not, with a reason."""
    facts = image(seal=seal, finished=finished)
    found = Judge(database(row(facts, complete=complete, pending=pending))).verdict(facts)
    assert (found.offered, found.note is not None, bool(found.reason)) == (offered, noted, not offered)
    if found.note:
        assert "delet" in found.note.text


SOON = clock(IT.stamp) + DAY - 60
LATER = clock(IT.stamp) + DAY
PLAIN_BEFORE = image(client="other", stamp="260228-0201", seal=Seal.NONE)
SEALED_BEFORE = image(client="other", stamp="260228-0201")
SEALED_AFTER = image(client="other", stamp="260302-0201")
OPEN_BEFORE = image(client="other", stamp="260228-0201", seal=Seal.OPEN)


@pytest.mark.parametrize(
    ("finished", "seal", "now", "others", "offered"),
    [
        (True, Seal.SEALED, SOON, (), True),
        (True, Seal.SEALED, 0, (PLAIN_BEFORE,), True),
        (False, Seal.SEALED, LATER, (), False),
        (True, Seal.OPEN, LATER, (), False),
        (True, Seal.OPEN, LATER, (PLAIN_BEFORE, SEALED_AFTER), False),
        (False, Seal.NONE, LATER, (), False),
        (True, Seal.NONE, LATER, (), True),
        (True, Seal.NONE, LATER, (PLAIN_BEFORE,), True),
        (True, Seal.NONE, SOON, (PLAIN_BEFORE,), False),
        (True, Seal.NONE, 0, (), False),
        (True, Seal.NONE, LATER, (SEALED_BEFORE,), False),
        (True, Seal.NONE, LATER, (OPEN_BEFORE,), False),
        (True, Seal.NONE, LATER, (SEALED_AFTER,), True),
    ],
)
def test_without_a_row_and_older_it_has_to_be_whole_by_its_files(
    finished: bool, seal: Seal, now: int, others: tuple[ImageFacts, ...], offered: bool
) -> None:
    """Sealed or, where the server sealed nothing yet, with a `.sync` and a day old: offered and marked. Otherwise not."""
    facts = image(seal=seal, finished=finished)
    found = Judge(database(row(OLDER), row(NEWER)), (facts, *others), now).verdict(facts)
    assert (found.offered, found.unknown) == (offered, True)
    assert (found.note is not None, bool(found.reason)) == (offered, not offered)
    assert "database" in (found.note.text if found.note else found.reason)
    assert found.kind is Kind.FORGOTTEN or offered


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("seal", Seal)
def test_a_stamp_of_another_century_is_an_old_one(seal: Seal, finished: bool) -> None:
    """The clock of a server may have stood in 1970 at one backup: all others are newer, with a row or without."""
    facts = image(seal=seal, finished=finished)
    assert Judge(database(row(image(stamp="700101-0001"))), (facts,)).verdict(facts).unknown is False
    wrong = image(stamp="700101-0001", seal=seal, finished=finished)
    assert Judge(database(row(IT)), (wrong,), LATER).verdict(wrong).offered is (finished and seal is not Seal.OPEN)


def test_what_is_named_is_taken_with_its_reason() -> None:
    """Whatever there is to say against it; about all others nothing changes."""
    broken, other = image(finished=False), image(letter="D", finished=False)
    cases = (database(row(OLDER), row(NEWER)), "not in"), (database(row(broken, complete=False)), "incomplete"), (None, ".sync")
    for facts, told in cases:
        judge = Judge(facts, (broken, other), LATER, anyway=broken.name)
        found = judge.verdict(broken)
        assert found.offered
        assert found.note
        assert (found.note.warning, told in found.note.text) == (True, True)
        assert not judge.verdict(other).offered
    assert Judge(None, (IT,), anyway=IT.name).verdict(IT) == Judge(None, (IT,)).verdict(IT)


@pytest.mark.parametrize(
    ("finished", "seal", "offered", "marked"),
    [
        (False, Seal.SEALED, False, False),
        (False, Seal.OPEN, False, False),
        (False, Seal.NONE, False, False),
        (True, Seal.SEALED, True, False),
        (True, Seal.NONE, True, False),
        (True, Seal.OPEN, True, True),
    ],
)
@pytest.mark.parametrize(
    "judged_by",
    [None, database(), database(row(OLDER)), database(row(SAME_MINUTE, WRITTEN + 60))],
    ids=["no database", "empty", "older rows", "a row of the same minute"],
)
def test_otherwise_the_files_decide(
    judged_by: DatabaseFacts | None, finished: bool, seal: Seal, offered: bool, marked: bool
) -> None:
    """No `.sync`: not offered. With it: offered, and marked unless it is sealed or its directory cannot be."""
    found = Judge(judged_by).verdict(image(seal=seal, finished=finished))
    assert (found.offered, found.note is not None, bool(found.reason)) == (offered, marked, not offered)
    if found.note:
        assert "unconfirmed" in found.note.text


@pytest.mark.parametrize(
    ("newest", "time", "newer"),
    [
        ("260301-0259", WRITTEN - 60, True),
        ("260301-0301", WRITTEN - 60, True),
        ("260301-0302", WRITTEN - 60, False),
        ("260301-0259", WRITTEN + 60, False),
    ],
)
def test_in_the_hour_that_runs_twice_the_files_own_time_decides(newest: str, time: int, newer: bool) -> None:
    """When daylight saving ends, a newer image may have an older stamp, by an hour at most; file and row are in UTC."""
    found = Judge(database(row(image(letter="D", stamp=newest), time))).verdict(IT)
    assert found.unknown is not newer


def test_rows_are_found_by_the_whole_name() -> None:
    """An equal file name of another client, or in another directory, is another image."""
    for other in (image(client="other"), image(name=f"pc/{IT.stem}.raw")):
        judge = Judge(database(row(other, complete=False)))
        assert judge.row(IT) is None
        assert judge.verdict(IT).offered


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        (IT.name, "260301-0201"),
        ("pc/260301-0201_Image_C/Image_C_260301-0201.vhdz", "260301-0201"),
        ("pc/Image_SYSVOL_260301-0201.raw", "260301-0201"),
        ("pc/260301-0201_Image__dev_sda5/Image__dev_sda5_260301-0201.raw", "260301-0201"),
        ("pc/260301-0201_Image__mnt_data.old/Image__mnt_data.old_260301-0201.raw", "260301-0201"),
        ("pc.example.org/260301-0201_Image_C/Image_C_260301-0201.raw", "260301-0201"),
        ("pc/Image_C_latest.raw", ""),
        ("", ""),
    ],
)
def test_stamps_are_at_the_end_of_the_name(name: str, stamp: str) -> None:
    """Volume and client names may have dots and underlines of their own."""
    assert stamp_of(name) == stamp


def test_the_newest_row_may_be_of_a_volume_with_a_dot() -> None:
    """An image older than it is unknown all the same."""
    newest: ImageFacts = image(letter="_mnt_data.old", stamp="260302-0201")
    assert Judge(database(row(newest))).verdict(IT).unknown
