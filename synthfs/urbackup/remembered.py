"""What a scan read, in the form in which a cache keeps it for the next process.

    ["bytes", base64, …]                                      contents, each once: heads, boot sectors, deflated `.mbr`
    ["images", [name, mark, sidecar, head, boot], …]          the mark in base64, contents by their number

Lines of both kinds, a few hundred values each. Whatever does not look like that was not written here, and then nothing is
known. Device numbers, seals and the presence of a `.sync` are not in it: every scan asks for them.

Not for: the file (`host/state`), or whether any of it still holds (`urbackup/storage`).
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from synthfs.errors import FormatError
from synthfs.model import MAX_SIDECAR, Known, Packed
from synthfs.urbackup.storage import BOOT, HEAD, MARK

PURPOSE, VERSION = "scan", 1
"""Name of the cache, and version of this form."""

_LINE = 200


def pack(known: Mapping[str, Known]) -> Iterator[list[Any]]:
    """The lines that say what is `known`."""
    numbers: dict[bytes, int] = {}
    for entry in known.values():
        for content in (entry.head, entry.boot, *((entry.sidecar.deflated,) if entry.sidecar else ())):
            numbers.setdefault(content, len(numbers))
    contents, entries = iter(numbers), iter(known.items())
    while part := [_text(content) for content in islice(contents, _LINE)]:
        yield ["bytes", *part]
    while rows := [_row(name, entry, numbers) for name, entry in islice(entries, _LINE)]:
        yield ["images", *rows]


def _row(name: str, known: Known, numbers: Mapping[bytes, int]) -> list[Any]:
    sidecar = numbers[known.sidecar.deflated] if known.sidecar else None
    return [name, _text(known.mark), sidecar, numbers[known.head], numbers[known.boot]]


def unpack(lines: Iterable[Any]) -> dict[str, Known]:
    """What `pack` was given; nothing where one of `lines` is none of its."""
    try:
        return _unpacked(lines)
    except (FormatError, ValueError, TypeError, LookupError):
        return {}


def _unpacked(lines: Iterable[Any]) -> dict[str, Known]:
    contents: list[bytes] = []
    packed: dict[int, Packed] = {}
    known: dict[str, Known] = {}
    for kind, *values in lines:
        if kind == "bytes":
            contents += [b64decode(value, validate=True) for value in values]
            continue
        if kind != "images":
            raise FormatError(f"{kind!r} is no kind of line")
        for name, mark, sidecar, head, boot in values:
            if sidecar is not None and sidecar not in packed:
                packed[sidecar] = _sidecar(_content(contents, sidecar, MAX_SIDECAR))
            known[_name(name)] = Known(
                _exactly(b64decode(mark, validate=True), MARK),
                None if sidecar is None else packed[sidecar],
                _content(contents, head, HEAD),
                _content(contents, boot, BOOT),
            )
    return known


def _content(contents: list[bytes], number: object, limit: int) -> bytes:
    if type(number) is not int or number < 0 or len(contents[number]) > limit:
        raise FormatError(f"{number!r} is no number of a content of at most {limit} bytes")
    return contents[number]


def _sidecar(deflated: bytes) -> Packed:
    packed = Packed(deflated)
    packed.unpacked()
    return packed


def _exactly(content: bytes, length: int) -> bytes:
    if len(content) != length:
        raise FormatError(f"{len(content)} bytes where {length} were expected")
    return content


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise FormatError(f"{name!r} is no name")
    return name


def _text(content: bytes) -> str:
    return b64encode(content).decode()
