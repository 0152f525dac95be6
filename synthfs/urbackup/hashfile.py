"""UrBackup's `.hash` sidecar: the SHA-256 of each 512 KiB of a volume, as the server computed it during the backup.

    entry i, 32 bytes: SHA-256 of volume bytes [i * 512 KiB, (i + 1) * 512 KiB); no header

Every complete chunk has its entry, which holds for what is stored, stale bytes of freed clusters included. The rest is
irregular. Behind the last complete chunk there may be an entry too many (of no bytes at all, or of one block of zeroes), so
that the file's length says nothing about the volume's. The entry of a last chunk that is not complete covers only the
blocks that the client sent, or these and a block of zeroes for the residue that it could not send, or zeroes.

Source: UrBackup's `ImageBackup.cpp` (dev 90da741), around `updateNextblock`; and what its server wrote into the store that
the tests use. Not for: reading anything. Units: bytes.
"""

from collections.abc import Iterator
from hashlib import sha256

from synthfs.units import KiB

CHUNK = 512 * KiB
ENTRY = 32
ZERO_CHUNK = sha256(bytes(CHUNK)).digest()
"""The entry of a chunk of zeroes, a hole for example."""

_BLOCKS = [512 << power for power in range(11)]
"""What clients read at a time: a cluster, at most 512 KiB."""


def covers(tail: bytes, entry: bytes) -> int | None:
    """How many bytes of `tail`, a last and incomplete chunk, are proven to be right by its `entry`; None: it contradicts.

    The size of a block is not asked for: an entry that holds for some size was made with it, or hashes are worth nothing.
    """
    for length, digest in _forms(tail):
        if digest == entry:
            return length
    return None


def _forms(tail: bytes) -> Iterator[tuple[int, bytes]]:
    """What the entry may be, the forms that prove most first: (bytes proven, SHA-256)."""
    yield len(tail), sha256(tail).digest()
    for block in _BLOCKS:
        sent = len(tail) - len(tail) % block
        if sent < len(tail):
            yield sent, sha256(tail[:sent]).digest()
            yield sent, sha256(tail[:sent] + bytes(block)).digest()
    # UrBackup takes a last chunk that the client left out, since its parent had the same, for one of zeroes.
    for length in {len(tail), CHUNK, *(len(tail) - len(tail) % block for block in _BLOCKS)}:
        yield 0, sha256(bytes(length)).digest()
