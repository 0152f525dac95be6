"""Which images are whole backups, and may be offered.

UrBackup writes an image under its final name and final size from the first second, so neither says anything. Its database
knows; where it is silent, the files around the image tell as much as they can.

    database says complete              offered; with a note where a deletion is pending
    database says not complete          not offered
    no row, older than its newest row   not offered: UrBackup has forgotten it
    no row and newer, or no database    by the files:
        no `.sync`                      not offered: the transfer did not finish
        `.sync`, and sealed or plain    offered
        `.sync`, but writable           offered, and marked: finished, but not confirmed

Not for: reading either (`urbackup/`), disks (`plan/disk`).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from synthfs.model import DatabaseFacts, ImageFacts, ImageRow, Kind, Note, Seal


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image is offered. `note` goes with one that is, `reason` and `kind` with one that is not."""

    offered: bool
    reason: str = ""
    kind: Kind = Kind.INCOMPLETE
    note: Note | None = None


_OFFERED = Verdict(True)
_DELETED_SOON = Verdict(True, note=Note("marked for deletion: UrBackup will remove it at its next clean-up", warning=True))
_INCOMPLETE = Verdict(False, "UrBackup's database calls it incomplete: running, failed or waiting for its C: image")
_FORGOTTEN = Verdict(False, "not in UrBackup's database: deleted or never finished", Kind.FORGOTTEN)
_UNFINISHED = Verdict(False, "no .sync file beside it: the backup is still running or was broken off")
_NOT_SEALED = Note("finished, unconfirmed: its directory is not sealed (read-only or @ro) as UrBackup leaves it", warning=True)
_UNCONFIRMED = Verdict(True, note=_NOT_SEALED)


class Judge:
    """Judges images by one database, or by none."""

    def __init__(self, database: DatabaseFacts | None) -> None:
        self._database = database
        rows = database.rows.values() if database else ()
        self._newest_stamp = max((stamp_of(row.name) for row in rows), default="")
        self._newest_time = max((row.backuptime for row in rows), default=0)

    def row(self, image: ImageFacts) -> ImageRow | None:
        return self._database.rows.get(image.name) if self._database else None

    def verdict(self, image: ImageFacts, row: ImageRow | None = None) -> Verdict:
        """`row` spares looking for the image's row."""
        if row := row or self.row(image):
            return _by_row(row)
        if self._database and not self._is_newer(image):
            return _FORGOTTEN
        return _by_files(image)

    def _is_newer(self, image: ImageFacts) -> bool:
        """Whether the image may have been made after the database's newest row.

        A stamp has minutes, and an image gets its row some seconds after its directory: an equal one may be newer. In the
        hour after daylight saving time ends, local stamps run a second time; there the file's own time, in UTC, decides.
        """
        if image.stamp >= self._newest_stamp:
            return True
        again = clock(self._newest_stamp) - clock(image.stamp) <= 3600
        return again and image.raw.mtime_ns // 10**9 > self._newest_time


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
