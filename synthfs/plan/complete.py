"""Which images are whole backups, and may be offered.

UrBackup writes an image under its final name and final size from the first second, so neither says anything. Its database
knows; where it is silent, the files around the image tell as much as they can.

    database says complete              offered; with a note where a deletion is pending
    database says not complete          not offered
    no row and newer, or no database    by the files:
        no `.sync`                      not offered: the transfer did not finish
        `.sync`, and sealed or plain    offered
        `.sync`, but writable           offered, and marked: finished, but not confirmed
    no row, older than its newest row   the same, but strictly, and marked: unknown to the database

A server that was installed anew over its old storage knows none of the older backups. But UrBackup also deletes the row of a
backup that failed where it cannot delete the files. So an unknown image is offered only if it has a `.sync` and is sealed or,
where the server had sealed none of its images by then, is a day old by its stamp: SYSVOL and ESP, which have a `.sync` before
they are complete, are deleted after twelve hours if their C: fails.

Not for: reading either (`urbackup/`), disks (`plan/disk`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

from synthfs.model import DatabaseFacts, ImageFacts, ImageRow, Kind, Note, Seal

DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image is offered. `note` goes with one that is, `reason` and `kind` with one that is not.

    `unknown`: there is a database, and it should know the image, and does not.
    """

    offered: bool
    reason: str = ""
    kind: Kind = Kind.INCOMPLETE
    note: Note | None = None
    unknown: bool = False


_OFFERED = Verdict(True)
_DELETED_SOON = Verdict(True, note=Note("marked for deletion: UrBackup will remove it at its next clean-up", warning=True))
_INCOMPLETE = Verdict(False, "UrBackup's database calls it incomplete: running, failed or waiting for its C: image")
_UNFINISHED = Verdict(False, "no .sync file beside it: the backup is still running or was broken off")
_NOT_SEALED = Note("finished, unconfirmed: its directory is not sealed (read-only or @ro) as UrBackup leaves it", warning=True)
_UNCONFIRMED = Verdict(True, note=_NOT_SEALED)

_UNKNOWN = Verdict(True, note=Note("unknown to UrBackup's database, and whole by its files", warning=True), unknown=True)


def _forgotten(why: str) -> Verdict:
    return Verdict(False, f"not in UrBackup's database, {why}: deleted or never finished", Kind.FORGOTTEN, unknown=True)


_NO_SYNC = _forgotten("and without a .sync file")
_OPEN = _forgotten("and its directory is not sealed (read-only or @ro)")
_PLAIN = _forgotten("and its directory is plain, though the server seals those of whole backups (read-only or @ro)")
_YOUNG = _forgotten("and less than a day old")


class Judge:
    """Judges images by one database, or by none.

    `images` are all of the store, which tell since when its server seals them. `now` is the time on the server's clock, as that
    of stamps. An image called `anyway` is taken whatever there is to say against it.
    """

    def __init__(
        self, database: DatabaseFacts | None, images: Iterable[ImageFacts] = (), now: int = 0, anyway: str | None = None
    ) -> None:
        self._database = database
        self._now = now
        self._anyway = anyway
        rows = database.rows.values() if database else ()
        self._newest_clock = max((clock(stamp_of(row.name)) for row in rows), default=0)
        self._newest_time = max((row.backuptime for row in rows), default=0)
        sealing = (clock(image.stamp) for image in images if image.seal is not Seal.NONE) if database else ()
        self._seals_since = min(sealing, default=None)

    def row(self, image: ImageFacts) -> ImageRow | None:
        return self._database.rows.get(image.name) if self._database else None

    def verdict(self, image: ImageFacts, row: ImageRow | None = None) -> Verdict:
        """`row` spares looking for the image's row."""
        found = self._verdict(image, row or self.row(image))
        if found.offered or image.name != self._anyway:
            return found
        return replace(found, offered=True, note=Note(f"taken in spite of this: {found.reason}", warning=True))

    def _verdict(self, image: ImageFacts, row: ImageRow | None) -> Verdict:
        if row:
            return _by_row(row)
        if self._database and not self._is_newer(image):
            return self._unknown(image)
        return _by_files(image)

    def _unknown(self, image: ImageFacts) -> Verdict:
        if not image.finished:
            return _NO_SYNC
        match image.seal:
            case Seal.SEALED:
                return _UNKNOWN
            case Seal.OPEN:
                return _OPEN
        made = clock(image.stamp)
        if self._seals_since is not None and self._seals_since <= made:
            return _PLAIN
        return _UNKNOWN if made + DAY <= self._now else _YOUNG

    def _is_newer(self, image: ImageFacts) -> bool:
        """Whether the image may have been made after the database's newest row.

        A stamp has minutes, and an image gets its row some seconds after its directory: an equal one may be newer. In the
        hour after daylight saving time ends, local stamps run a second time; there the file's own time, in UTC, decides.
        """
        earlier = self._newest_clock - clock(image.stamp)
        if earlier <= 0:
            return True
        return earlier <= 3600 and image.raw.mtime_ns // 10**9 > self._newest_time


def _by_row(row: ImageRow) -> Verdict:
    if not row.complete:
        return _INCOMPLETE
    return _DELETED_SOON if row.delete_pending else _OFFERED


def _by_files(image: ImageFacts) -> Verdict:
    if not image.finished:
        return _UNFINISHED
    return _UNCONFIRMED if image.seal is Seal.OPEN else _OFFERED


def clock(stamp: str) -> int:
    """Seconds of a stamp on the server's own clock: good for differences only, since its time zone is not known."""
    try:
        hour, minute = int(stamp[7:9]), int(stamp[9:])
        return _day(stamp[:6]) + hour * 3600 + minute * 60 if hour < 24 and minute < 60 else 0
    except ValueError:
        return 0


@lru_cache(maxsize=4096)
def _day(day: str) -> int:
    """When the day `YYMMDD` begins. Kept: strptime takes as long as all else that is done for an image."""
    return int(datetime.strptime(day, "%y%m%d").replace(tzinfo=UTC).timestamp())


def stamp_of(name: str) -> str:
    """The `YYMMDD-HHMM` in the name of an image file; empty where it has none."""
    stamp = name.rpartition("/")[2].rpartition(".")[0][-11:]
    return stamp if len(stamp) == 11 and stamp[6] == "-" and stamp.replace("-", "", 1).isdigit() else ""
