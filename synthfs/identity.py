"""Identifiers that are the same today, after a restart and on another host: all derived, none rolled.

A disk's edition is a hash over everything that its bytes come from. Inode numbers, the VHD's unique id and other
containers' ids derive from it, so a disk whose bytes would change is another file to every client that caches by inode,
and another parent to every differencing disk.

Not for: choosing what goes into an edition (`plan/disk` does).
"""

from hashlib import blake2b
from uuid import UUID

_LENGTHS = [length.to_bytes(8, "little") for length in range(256)]
"""A large store takes a million of them."""


def digest(purpose: str, *parts: bytes | str | int) -> bytes:
    """32 bytes that stand for `parts`. Every part is framed by its length: no two lists give the same input."""
    framed: list[bytes] = []
    for part in parts:
        if isinstance(part, int):
            raw = b"%d" % part
        else:
            raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        framed += (_LENGTHS[len(raw)] if len(raw) < len(_LENGTHS) else len(raw).to_bytes(8, "little"), raw)
    return blake2b(b"".join(framed), digest_size=32, person=purpose.encode()[:16]).digest()


def guid(seed: bytes) -> UUID:
    """A UUID of version 8 (RFC 9562: the maker's own scheme) from the first 16 bytes of `seed`."""
    raw = bytearray(seed[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return UUID(bytes=bytes(raw))


def signature(seed: bytes) -> int:
    """An MBR disk signature, 32 bits, never 0: Windows takes 0 for a disk that was not initialised."""
    return int.from_bytes(seed[:4], "little") or 1


def inode(seed: bytes) -> int:
    """An inode number: 62 bits, so that it is positive wherever it is signed, and clear of the low ones."""
    return int.from_bytes(seed[:8], "little") >> 2 | 1 << 61
