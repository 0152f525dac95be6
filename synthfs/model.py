"""The nouns that the rooms hand to each other: facts gathered from a store, and notes about what was made of them.

Facts are what the world said, taken once by `urbackup/storage` and `urbackup/database`; every judgement about them (which
image is complete, where a volume belongs) is made by `plan/`. Not for: behaviour, parsing, system calls.

Units: sizes and offsets in bytes, times in whole seconds since 1970 UTC unless the name says otherwise. Text that came
from file names may hold surrogate escapes (`os.fsdecode`).
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NamedTuple

from synthfs.extents import Source

VOLUME_OFFSET = 512 * 1024
"""Where the volume begins in a `.raw` file: a wrapper that UrBackup makes up lies before it (facts: layout of cowraw)."""


STATUS_DIRECTORY, STATUS = ".synthfs", "status.json"
"""Where a mount tells how it fares. No cache keeps that file: a look at it always reaches the process that serves it."""

MAX_SIDECAR = 1024 * 1024
"""Longer than any honest `.mbr`: two GPT tables of 1024 entries and the 63 sectors of extra data are 300 KiB."""


class Seal(Enum):
    """What keeps UrBackup, and everybody else, from changing an image directory."""

    SEALED = "read-only subvolume or @ro snapshot"
    OPEN = "writable subvolume, or dataset without @ro"
    NONE = "plain directory"


@dataclass(frozen=True, slots=True)
class Packed:
    """The bytes of a `.mbr`, deflated: 33 KiB of tables that are nearly all zeroes, for each partition of each machine."""

    deflated: bytes

    @classmethod
    def of(cls, content: bytes) -> "Packed":
        return cls(zlib.compress(content, 1))

    def unpacked(self) -> bytes:
        """Raises ValueError where `deflated` did not come from `of`."""
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(self.deflated, MAX_SIDECAR)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if not stream.eof or stream.unused_data:
            raise ValueError("not as deflated as it was")
        return content


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One `.raw` file with all that was read around it.

    `head` is the beginning of the file (the wrapper) without the zeroes that end it and without the disk signature, which
    says nothing; `boot` is the first 4 KiB of the volume.
    `sidecar` is the whole `.mbr`, None where there is none or where `mbr_problem` says why it was not taken.
    `finished` is UrBackup's `.sync` marker. `stamp` is `YYMMDD-HHMM` in the server's local time.
    """

    client: str
    letter: str
    stamp: str
    raw: Source
    sidecar: Packed | None
    mbr_problem: str | None
    head: bytes
    boot: bytes
    finished: bool
    seal: Seal

    @property
    def name(self) -> str:
        """`<client>/<dir>/<file>`, or `<client>/<file>` for an image that lies in the client's directory itself."""
        return self.raw.name

    @property
    def mbr(self) -> bytes | None:
        """The bytes of the sidecar."""
        return self.sidecar.unpacked() if self.sidecar is not None else None

    @property
    def stem(self) -> str:
        """The file's name without `.raw`, which is how UrBackup's web page and the mount call it."""
        return self.raw.name.rpartition("/")[2].removesuffix(".raw")

    @property
    def is_system_partition(self) -> bool:
        """SYSVOL and ESP are taken by UrBackup beside C:, as parts of the same disk."""
        return self.letter in ("SYSVOL", "ESP")


@dataclass(frozen=True, slots=True)
class Allocation:
    """Where a source has data: offset and length of everything that is no hole, in order. All else in it reads as zero.

    `block` is the unit in which its file system shares data: a file range is cloned only to a place that agrees with its
    own modulo that. A power of two.
    """

    block: int
    ranges: tuple[tuple[int, int], ...]


Ask = Callable[[Source], Allocation | None]
"""Asks where a source has data. None: that is not known yet."""


class Kind(StrEnum):
    """Why something is not offered, in a word: for counting."""

    INCOMPLETE = "incomplete"
    FORGOTTEN = "not in the database"
    LINKED = "hard link"
    UNREADABLE = "unreadable"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in the store that is no usable image, and why, in one line that a person can act on."""

    client: str
    name: str
    reason: str
    kind: Kind


class Known(NamedTuple):
    """What was read of an image once, and need not be read again while both of its files still bear `mark`.

    `image` is what was made of it, if that was in this process.
    """

    mark: bytes
    sidecar: Packed | None
    head: bytes
    boot: bytes
    image: ImageFacts | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Everything found in one store. `owner` and `group` are those of its root directory.

    `identity` tells the store from an empty directory in its place, and outlives a reboot (`host/handle`). `known` is for
    the next scan, by the names of images. `clients` are the names of all folders, also of those without an image. `clock` is
    what a clock on this host's wall showed at the scan, as seconds since 1970: the server stamps its images by such a one.
    """

    root: str
    owner: int
    group: int
    images: tuple[ImageFacts, ...]
    skipped: tuple[Skipped, ...]
    identity: str = ""
    known: Mapping[str, Known] = field(default_factory=dict, repr=False, compare=False)
    clients: tuple[str, ...] = ()
    clock: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """UrBackup's record of one image (`backup_images`). `name` is the end of its path: `<client>/<dir>/<file>`."""

    name: str
    backuptime: int
    complete: bool
    delete_pending: bool
    associated: tuple[str, ...] = ()
    """Names of the SYSVOL and ESP images that UrBackup took together with this one (`assoc_images`)."""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What UrBackup's database says of all images of its server, RAW or not; `clients` are its lowest `clients.id` by name."""

    path: str
    clients: Mapping[str, int | None]
    rows: Mapping[str, ImageRow]


@dataclass(frozen=True, slots=True)
class Session:
    """A disk that somebody has written to: what it is, and where a mount shows it for as long as the session lives.

    `edition` is that of the file as it was before, `generation` counts the sessions of this edition that were discarded
    before. `path` is its place in the mount, `image` the backup's name in the store. `length` and `mtime_ns` are those of
    the backup's disk; `began_ns` is the time of the first write. `disk_edition` is that of the disk in the file, whatever
    the container; empty in records from before there was such a field.
    """

    edition: bytes
    generation: int
    inode: int
    path: str
    image: str
    length: int
    mtime_ns: int
    began_ns: int
    may_resize: bool
    disk_edition: bytes = b""


@dataclass(frozen=True, slots=True)
class Sessions:
    """All sessions, and for each edition how many of them were discarded."""

    present: tuple[Session, ...] = ()
    generations: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """One decision about a disk that its user may want to know. A warning is one that may change what he does."""

    text: str
    warning: bool = False


class Fault(StrEnum):
    """What a check found, in a word; the worst first."""

    DIFFERS = "differs"
    UNREADABLE = "unreadable"
    BAD_INPUT = "bad input"
    CANNOT_CHECK = "cannot check"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found. `where` is a part of a disk or file by its name; `offset` counts from the beginning of
    that disk or file."""

    fault: Fault
    where: str
    text: str
    offset: int | None = None
    length: int | None = None
