"""Is a volume all there? Its length, beside what its file system and the number of its hashes say.

UrBackup's own record of a length, the wrapper in a `.raw`, may be gone; then a file that was cut looks like a shorter volume.
Two others know better: the file system at its beginning, and the `.hash`, which has an entry for each 512 KiB. A file system
may end before its volume does. It cannot end behind it.

Values in, findings out; `as_notes` makes of them what `show` and `list` tell. Not for: hashes themselves (`engines/verify`),
and whether the volume fits into its partition (`plan/place`). Units: bytes.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from synthfs.formats import bootsector, superblock
from synthfs.formats.bootsector import BootSector
from synthfs.formats.superblock import Superblock
from synthfs.model import Fault, Finding, Note
from synthfs.urbackup.hashfile import CHUNK, ENTRY

MAX_SURPLUS = 8
"""Entries that a `.hash` may have behind those of the complete chunks.

UrBackup leaves one to three behind the last complete chunk. Three more are those of an image of a whole disk that 2.5.33
made longer by 1 MiB + 1024 bytes, where the disk's own GPT says that it ends before. The rest is room.
"""


def of_volume(boot: bytes, length: int) -> Iterator[Finding]:
    """What is wrong with the length of a volume whose first 4 KiB are `boot`: nothing, or that its end is missing."""
    said: BootSector | Superblock | None = bootsector.parse(boot)
    if said is None or not said.length:
        said = superblock.parse(boot)
    if said and said.length > length:
        text = f"has {length} bytes, and its {said.file_system} says that it has {said.length}: its end is missing"
        yield Finding(Fault.BAD_INPUT, "volume", text)


@lru_cache(maxsize=1024)
def notes_of_volume(boot: bytes, length: int) -> tuple[Note, ...]:
    """`of_volume` as warnings. Kept: each disk that a volume is on asks, and most images of a volume begin alike."""
    return as_notes(of_volume(boot, length))


def of_hashes(size: int, length: int) -> Iterator[Finding]:
    """What is wrong with the length of a `.hash` of `size` bytes, beside a volume (or whole disk) of `length` bytes."""
    entries, chunks = size // ENTRY, length // CHUNK
    if size % ENTRY:
        yield Finding(Fault.BAD_INPUT, ".hash", f"has {size} bytes, which are no whole number of hashes")
    if entries > chunks + MAX_SURPLUS:
        text = f"has hashes for {entries} chunks of 512 KiB, and the image has {chunks}"
        yield Finding(Fault.BAD_INPUT, ".hash", f"{text}: the end of the image is missing, or the .hash is not its own")
    elif entries < chunks:
        why = ": the backup or the .hash was broken off" if entries < chunks - MAX_SURPLUS else ""
        text = f"has hashes for {entries} of {chunks} chunks{why}; the others cannot be checked"
        yield Finding(Fault.CANNOT_CHECK, ".hash", text)


def as_notes(findings: Iterable[Finding]) -> tuple[Note, ...]:
    """The same as warnings about a disk."""
    return tuple(Note(f"the {finding.where} {finding.text}", warning=True) for finding in findings)
