"""The fuzz target: bytes that become an `.mbr`, a wrapper and a boot sector, and the laws that hold whatever they are.

    input      u8 flags, u64 size of the `.raw`, then packed bytes
    packed     a zero byte and a u16 stand for that many zero bytes; any other byte is itself
    unpacked   2048 bytes from the start of the volume, 1152 of the wrapper, and the `.mbr` to the end

`check` holds the laws and knows nothing of fuzzers; test_seeds replays it. `main` lets atheris (libFuzzer)
drive it; `scripts/fuzz` starts that. Flag 1 has the checksums of both GPT copies made right before the package
sees them, or hardly any input would get past them. No reader of the package helps to find them here.
Not for: files, mounts, the command line (test_hostile). Units: bytes.
"""

import importlib
import random
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from synthfs.errors import UnsupportedError
from synthfs.extents import Bytes, ExtentMap, FileRange, Source
from synthfs.model import MAX_SIDECAR, Allocation, ImageFacts, Packed, Seal, StoreFacts
from synthfs.plan.catalog import plan
from synthfs.plan.container import Format, of_disk
from synthfs.plan.disk import Disk, volume_only
from synthfs.plan.renew import can_renew, new_identity
from synthfs.plan.volume import Volume

REPAIR, SIBLING, SYSTEM = 1, 2, 4
BOOT, HEAD = 2048, 1152
MAX_SIZE = 1 << 44
_PREFIX = struct.Struct("<BQ")
_VOLUME_AT = 512 * 1024


def encode(mbr: bytes, *, boot: bytes = b"", head: bytes = b"", size: int, flags: int = REPAIR) -> bytes:
    """The input that stands for these bytes; `size` is that of the `.raw` file."""
    return _PREFIX.pack(flags, size) + _packed(boot[:BOOT].ljust(BOOT, b"\0") + head[:HEAD].ljust(HEAD, b"\0") + mbr)


def decode(data: bytes) -> tuple[int, int, bytes, bytes, bytes]:
    """Flags, size, boot, head and `.mbr` of any input at all."""
    flags, size = _PREFIX.unpack(data[: _PREFIX.size].ljust(_PREFIX.size, b"\0"))
    raw = _unpacked(data[_PREFIX.size :])
    mbr = raw[BOOT + HEAD :]
    return flags, size % MAX_SIZE, raw[:BOOT], raw[BOOT : BOOT + HEAD], repaired(mbr) if flags & REPAIR else mbr


def check(data: bytes) -> str:
    """Raises AssertionError, or whatever else escapes, where a law is broken; says in a word what became of the input."""
    flags, size, boot, head, mbr = decode(data)
    image = _image("ESP" if flags & SYSTEM else "C", size, mbr, head, boot)
    images = [image]
    if flags & SIBLING and len(mbr) >= 10:
        (number,) = struct.unpack_from("<i", mbr, 6)
        other = mbr[:6] + struct.pack("<i", min(number + 1, 0x7FFFFFFF)) + mbr[10:]
        images.append(_image("D", size, other, head, boot))
    catalog = plan(StoreFacts("/store", 0, 0, tuple(images), ()), None)
    told = len(catalog.disks) + len(catalog.parts) + len(catalog.skipped)
    assert told == len(images), "an image was neither offered nor skipped with a reason"
    for disk in catalog.disks:
        _check_disk(disk)
    for disk in catalog.disks:
        try:
            _check_disk(volume_only(disk.image))
        except UnsupportedError:
            assert disk.layout.scheme in ("as imaged", "none")
    if catalog.skipped:
        return "refused"
    return "alone" if any("disk of its own" in note.text for disk in catalog.disks for note in disk.notes) else "placed"


def _check_disk(disk: Disk) -> None:
    extents = disk.extent_map()
    _check_map(extents, disk.length)
    for content in disk.contents:
        if content.volume:
            _check_volume(extents, content.volume)
    _check_tables(disk, extents)
    for form in Format:
        if form.is_sparse and disk.length > 1 << 36:
            continue  # tables of MiB, made again for every input, would leave no time for inputs
        try:
            *_, file = of_disk(disk, form, disk.image.stem, lambda source: Allocation(4096, ((0, min(source.size, 1 << 20)),)))
        except UnsupportedError:
            assert disk.layout.sector_size != 512 or disk.length > 2040 << 30
        else:
            _check_map(file.extent_map(), file.length)
            if form is Format.VHD:
                assert file.length == disk.length + 512
    if can_renew(disk):
        _check_renewed(disk, new_identity(disk))


def _check_map(extents: ExtentMap, length: int) -> None:
    """It covers the disk exactly, and leaves no file."""
    end = 0
    for offset, extent in extents:
        assert offset == end
        assert extent.length > 0
        end += extent.length
        if isinstance(extent, FileRange):
            assert 0 <= extent.offset <= extent.offset + extent.length <= extent.source.size
    assert end == length == extents.length


def _check_volume(extents: ExtentMap, volume: Volume) -> None:
    """All bytes of the volume are there once, in order, and nowhere but in its partition."""
    found = [(o, e) for o, e in extents if isinstance(e, FileRange) and e.source == volume.image.raw]
    ((offset, extent),) = found
    assert offset == volume.partition.start
    assert (extent.offset, extent.length) == (volume.offset, volume.length)
    assert extent.offset in (0, _VOLUME_AT)
    assert extent.length <= volume.partition.length


def _check_tables(disk: Disk, extents: ExtentMap) -> None:
    """No table lies on another one or in a partition, both GPT checksums hold, and the copies name each other.

    An extended partition alone begins with a table.
    """
    tables = [(offset, offset + len(data)) for _, offset, data in disk.layout.tables]
    ends = dict(tables)
    places = tables + [(ends.get(p.start, p.start), p.end) for p in disk.layout.partitions if p.type == "extended"]
    places += [(partition.start, partition.end) for partition in disk.layout.partitions if partition.type != "extended"]
    places.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    assert places[0][0] >= 0
    assert places[-1][1] <= disk.length
    for _, offset, data in disk.layout.tables:
        assert b"".join(_content(extents, offset, len(data))) == data
    if disk.layout.scheme != "GPT":
        return
    sector = disk.layout.sector_size
    last = disk.length // sector - 1
    for own, other in ((1, last), (last, 1)):
        header = b"".join(_content(extents, own * sector, sector))
        size, crc = struct.unpack_from("<II", header, 12)
        assert header[:8] == b"EFI PART"
        assert zlib.crc32(header[:16] + bytes(4) + header[20:size]) == crc
        assert struct.unpack_from("<QQ", header, 24) == (own, other)
        at, count, entry, table_crc = struct.unpack_from("<QIII", header, 72)
        assert zlib.crc32(b"".join(_content(extents, at * sector, count * entry))) == table_crc


def _check_renewed(disk: Disk, renewed: Disk) -> None:
    """Other identifiers, the same everything else: on MBR disks four bytes differ, and none inside a partition."""
    before, after = disk.extent_map(), renewed.extent_map()
    _check_map(after, disk.length)
    _check_tables(renewed, after)
    assert renewed.edition != disk.edition
    assert renewed.layout.disk_id != disk.layout.disk_id
    assert [p for p in before if isinstance(p[1], FileRange)] == [p for p in after if isinstance(p[1], FileRange)]
    old, new = (b"".join(_content(extents, 0, 512)) for extents in (before, after))
    assert old[:440] + old[444:] == new[:440] + new[444:]
    if disk.layout.scheme == "MBR":
        assert new[440:444] not in (bytes(4), old[440:444])
        assert disk.layout.extra == renewed.layout.extra


def _content(extents: ExtentMap, offset: int, length: int) -> Iterator[bytes]:
    for extent in extents.pieces(offset, length):
        assert not isinstance(extent, FileRange), "a table reads from an image"
        yield extent.data if isinstance(extent, Bytes) else bytes(extent.length)


def _image(letter: str, size: int, mbr: bytes, head: bytes, boot: bytes) -> ImageFacts:
    name = f"pc/260301-0201_Image_{letter}/Image_{letter}_260301-0201.raw"
    raw = Source(name, f"/store/{name}", 42, 257 + len(letter) + ord(letter[0]), size, 1772330460 * 10**9)
    sidecar, problem = (Packed.of(mbr), None) if len(mbr) <= MAX_SIDECAR else (None, "too long")
    room = max(min(size - _VOLUME_AT, len(boot)), 0)
    return ImageFacts(
        "pc", letter, "260301-0201", raw, sidecar, problem, head[:size].rstrip(b"\0"), boot[:room], True, Seal.SEALED
    )


# -- the bytes of an input


def _packed(raw: bytes) -> bytes:
    return re.sub(rb"\0{1,65535}", lambda run: b"\0" + len(run[0]).to_bytes(2, "little"), raw)


def _unpacked(packed: bytes) -> bytes:
    out: list[bytes] = []
    length, at = 0, 0
    while at < len(packed) and length <= 2 * MAX_SIDECAR:
        end = packed.find(b"\0", at)
        end = len(packed) if end < 0 else end
        out += [packed[at:end], bytes(int.from_bytes(packed[end + 1 : end + 3], "little"))]
        length += len(out[-2]) + len(out[-1])
        at = end + 3
    return b"".join(out)


def fields(mbr: bytes | bytearray) -> list[tuple[int, int]]:
    """Where the numbers are that decide things, as (offset, bytes); as far as the file can be followed."""
    found, at = [(1, 1), (2, 4), (6, 4)], 10
    in_header = ((8, 4), (12, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4))

    def string() -> int:
        nonlocal at
        (length,) = struct.unpack_from("<I", mbr, at)
        found.append((at, 4))
        start, at = at + 4, at + 4 + length
        if at > len(mbr):
            raise struct.error
        return start

    try:
        for _ in range(3):
            string()
        record = string()
        entry = ((4, 1), (8, 4), (12, 4))
        found += [(record + 446 + 16 * slot + place, size) for slot in range(4) for place, size in entry]
        for _ in range(2 if mbr[1] == 1 else 0):
            found.append((at, 8))
            at += 8
            header = string()
            found += [(header + place, size) for place, size in in_header]
            found.append((at, 8))
            at += 8
            table = string()
            found += [(table + 128 * slot + place, 8) for slot in range(8) for place in (0, 32, 40)]
        string()
        found += [(at, 1), (at + 2, 1)]
    except (struct.error, IndexError):
        pass
    return [(place, size) for place, size in found if place + size <= len(mbr)]


def repaired(mbr: bytes) -> bytes:
    """The same file with right checksums in both GPT copies, wherever these can be found."""
    out, at = bytearray(mbr), 10

    def string() -> tuple[int, int]:
        nonlocal at
        (length,) = struct.unpack_from("<I", out, at)
        start, at = at + 4, at + 4 + length
        if at > len(out):
            raise struct.error
        return start, at

    try:
        for _ in range(4):
            string()
        for _ in range(2 if out[1] == 1 else 0):
            at += 8
            header, header_end = string()
            at += 8
            table, table_end = string()
            count, entry = struct.unpack_from("<II", out, header + 80)
            (size,) = struct.unpack_from("<I", out, header + 12)
            if header_end - header < 92 or size > header_end - header:
                continue
            struct.pack_into("<I", out, header + 88, zlib.crc32(out[table : min(table + count * entry, table_end)]))
            struct.pack_into("<I", out, header + 16, 0)
            struct.pack_into("<I", out, header + 16, zlib.crc32(out[header : header + size]))
    except (struct.error, IndexError):
        pass
    return bytes(out)


# -- the fuzzer

_INTERESTING = (0, 1, 2, 3, 4, 33, 34, 63, 64, 91, 92, 100, 127, 128, 129, 255, 256, 512, 1024, 2048, 4096, 2**15, 2**31)
_FAR = (2**31 - 1, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 34, 2**64 - 2, 2**64 - 1)


def mutator(any_mutation: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Half of the time libFuzzer's own mutation, else another value for one or two numbers of the `.mbr`."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.5:
            return any_mutation(data, max_size)
        flags, size, boot, head, _ = decode(data)
        mbr = bytearray(_unpacked(data[_PREFIX.size :])[BOOT + HEAD :])
        places = fields(mbr)
        for _ in range(dice.randint(1, 3)):
            if not places:
                break
            place, width = dice.choice(places)
            old = int.from_bytes(mbr[place : place + width], "little")
            near = old + dice.choice((-64, -33, -32, -8, -2, -1, 1, 2, 8, 32, 33, 64))
            any_number = dice.getrandbits(dice.randint(1, 64))
            value = dice.choice((near, near, dice.choice(_INTERESTING), dice.choice(_FAR), any_number))
            mbr[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        if dice.random() < 0.2:
            size = dice.choice((size - 512, size + 512, 2**41 + 1024, size * 2, dice.getrandbits(42)))
        if dice.random() < 0.1:
            flags ^= 1 << dice.randrange(3)
        return encode(bytes(mbr), boot=boot, head=head, size=size % MAX_SIZE, flags=flags)[:max_size]

    return mutate


def main() -> None:
    """Fuzz until libFuzzer's options, in `sys.argv`, say stop. The package has to be imported under atheris by then."""
    atheris: Any = importlib.import_module("atheris")  # not installed where mypy and the tests run

    def own(data: bytes, max_size: int) -> bytes:
        return bytes(atheris.Mutate(data, max_size))

    atheris.Setup(sys.argv, lambda data: check(data) and None, custom_mutator=mutator(own))
    atheris.Fuzz()
