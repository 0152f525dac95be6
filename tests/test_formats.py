"""The codecs for boot record, GPT and VHD footer: inverse to themselves, and of one mind with other tools.

Not for: what plans make of the values. `.mbr` and boot sectors have their own modules. Units: bytes, LBAs where a name says so.
"""

import json
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import need
import sparse
from lab import Scope
from processes import run
from synthfs.errors import FormatError
from synthfs.formats import gpt, mbr, vhd

laws = settings(max_examples=60, deadline=None)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
MIB = 1 << 20


def blob(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def flipped(raw: bytes, bit: int) -> bytes:
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


mbr_entries = st.builds(mbr.Entry, st.integers(0, 255), u32, u32, st.integers(0, 255), blob(3), blob(3))
records = st.builds(mbr.MasterBootRecord, st.tuples(*[mbr_entries] * 4), u32, blob(440), blob(2))
uuids = st.builds(UUID, int=st.integers(0, 2**128 - 1))


@st.composite
def headers(draw: st.DrawFn) -> gpt.Header:
    sector = draw(st.sampled_from((512, 4096)))
    # Zero bytes for most of the sector, or hypothesis is out of entropy.
    rest = draw(st.binary(max_size=40)).ljust(sector - 92, b"\0")
    count, size = draw(st.sampled_from((1, 4, 128, 256, 1024))), draw(st.sampled_from((128, 136, 256, 512, 4096)))
    numbers = [draw(u64) for _ in range(5)]
    own, other, first, last, at = numbers
    size_of_header, revision, reserved = draw(st.integers(92, sector)), draw(u32), draw(u32)
    ids = (draw(uuids), at, count, size, draw(u32))
    return gpt.Header(own, other, first, last, *ids, size_of_header, revision, reserved, rest)


@st.composite
def tables(draw: st.DrawFn) -> tuple[gpt.Header, tuple[gpt.Entry, ...]]:
    size, count = draw(st.sampled_from((128, 256))), draw(st.sampled_from((4, 128, 256)))
    fields = (uuids, uuids, u64, u64, u64, blob(72), blob(size - 128))
    some = draw(st.dictionaries(st.integers(0, count - 1), st.builds(gpt.Entry, *fields), max_size=4))
    nobody = UUID(int=0)
    row = tuple(some.get(n, gpt.Entry(nobody, nobody, 0, 1, tail=bytes(size - 128))) for n in range(count))
    blank = replace(draw(headers()), entry_count=count, entry_size=size)
    return gpt.with_entries(blank, gpt.pack_entries(row)), row


class TestBootRecord:
    @laws
    @given(records)
    def test_comes_back_as_it_was(self, record: mbr.MasterBootRecord) -> None:
        """parse is the inverse of pack."""
        assert mbr.parse(record.pack()) == record

    @laws
    @given(blob(510))
    def test_keeps_every_byte(self, raw: bytes) -> None:
        """pack is the inverse of parse for every sector that ends with 55 AA, boot code and reserved bytes included."""
        assert mbr.parse(raw + b"\x55\xaa").pack() == raw + b"\x55\xaa"

    def test_needs_its_mark_and_its_length(self) -> None:
        """Any flipped bit of 55 AA, and any length but 512, is a FormatError."""
        good = bytes(510) + b"\x55\xaa"
        for bad in (*(flipped(good, bit) for bit in range(510 * 8, 4096)), b"", good[:-1], good + b"\0", good * 8):
            with pytest.raises(FormatError):
                mbr.parse(bad)

    def test_says_what_sfdisk_says(self, tmp_path: Path) -> None:
        """An MBR that sfdisk wrote has the partitions, flags and signature that sfdisk reads back."""
        need.tool("sfdisk")
        disk = sparse.create(tmp_path / "disk", 64 * MIB)
        lines = b"2 : start=63, size=4032, type=7, bootable\n4 : start=8192, size=65536, type=f\n"
        run(["sfdisk", "--quiet", "--no-tell-kernel", disk], input=b"label: dos\nlabel-id: 0xdeadbeef\n" + lines)
        said = json.loads(run(["sfdisk", "-J", disk]).stdout)["partitiontable"]
        found = mbr.parse(read(disk, 0, 512))
        assert found.signature == int(said["id"], 16) == 0xDEADBEEF
        used = [(n, e.first_lba, e.sectors, e.type, e.status == 0x80) for n, e in enumerate(found.entries, 1) if e.used]
        assert used == [
            (int(p["node"][-1]), p["start"], p["size"], int(p["type"], 16), p.get("bootable", False))
            for p in said["partitions"]
        ]
        assert [entry.extended for entry in found.entries] == [False, False, False, True]

    @pytest.mark.parametrize("sectors", [64 * 2048, 2**32, 2**32 + 1, 2**40])
    def test_protective_covers_the_disk(self, sectors: int) -> None:
        """UEFI 5.2.3: one entry of type EE, not active, from LBA 1 to the end, or as far as 32 bits go."""
        raw = mbr.protective(sectors).pack()
        assert (raw[446], raw[450]) == (0, 0xEE)
        assert struct.unpack_from("<II", raw, 454) == (1, min(sectors - 1, 2**32 - 1))
        assert (raw[:446], raw[462:]) == (bytes(446), bytes(48) + b"\x55\xaa")


class TestGpt:
    @laws
    @given(headers())
    def test_header_comes_back_as_it_was(self, header: gpt.Header) -> None:
        """parse_header is the inverse of pack, for sectors of 512 and of 4096 bytes, reserved fields included."""
        assert gpt.parse_header(header.pack()) == header

    @laws
    @given(tables())
    def test_entries_come_back_as_they_were(self, table: tuple[gpt.Header, tuple[gpt.Entry, ...]]) -> None:
        """parse_entries is the inverse of pack_entries: up to 256 entries, of 128 bytes and larger."""
        header, entries = table
        raw = gpt.pack_entries(entries)
        assert len(raw) == header.entry_count * header.entry_size
        assert gpt.parse_entries(header, raw) == entries

    def test_every_flipped_bit_of_a_header_is_found(self) -> None:
        """One wrong bit anywhere in the 92 bytes, or in what a longer header size covers, is a FormatError."""
        for size in (92, 100):
            raw = gpt.Header(1, 99, 34, 66, UUID(int=7), 2, 128, 128, 5, header_size=size).pack()
            for bit in range(size * 8):
                with pytest.raises(FormatError):
                    gpt.parse_header(flipped(raw, bit))

    @laws
    @given(tables(), st.data())
    def test_every_flipped_bit_of_a_table_is_found(
        self, table: tuple[gpt.Header, tuple[gpt.Entry, ...]], data: st.DataObject
    ) -> None:
        """One wrong bit anywhere in the entry array, or a byte less of it, is a FormatError."""
        header, entries = table
        raw = gpt.pack_entries(entries)
        for bad in (flipped(raw, data.draw(st.integers(0, len(raw) * 8 - 1))), raw[:-1]):
            with pytest.raises(FormatError):
                gpt.parse_entries(header, bad)

    @given(st.binary(max_size=600))
    def test_garbage_is_a_format_error(self, raw: bytes) -> None:
        """No bytes, with or without the signature, make the parser fail in another way."""
        for attempt in (raw, b"EFI PART" + raw):
            with pytest.raises(FormatError):
                gpt.parse_header(attempt)

    def test_says_what_sfdisk_says(self, tmp_path: Path) -> None:
        """A GPT of 256 entries that sgdisk wrote holds what sfdisk reads from it, in both copies."""
        need.tool("sgdisk", "sfdisk")
        disk = sparse.create(tmp_path / "disk", 64 * MIB)
        new = ["-n", "1:2048:4095", "-t", "1:EF00", "-n", "200:8192:+1M", "-c", "200:Dåta 日本"]
        new += ["-A", "200:set:63", "-A", "200:set:0"]
        run(["sgdisk", "--clear", "--resize-table=256", *new, disk])
        said = json.loads(run(["sfdisk", "-J", disk]).stdout)["partitiontable"]
        _agree(said, disk, 512)
        record = mbr.parse(read(disk, 0, 512)).entries[0]
        ours = mbr.protective(64 * 2048).entries[0]
        assert (ours.type, ours.first_lba, ours.sectors) == (record.type, record.first_lba, record.sectors)

    def test_reads_4096_byte_sectors(self, tmp_path: Path) -> None:
        """A GPT that fdisk wrote for 4096-byte sectors holds what partx reads from it."""
        need.tool("fdisk", "partx")
        disk = sparse.create(tmp_path / "disk", 64 * MIB)
        run(["fdisk", "-b", "4096", disk], input=b"g\nn\n1\n256\n+512\nn\n7\n2048\n4000\nw\n")
        header = gpt.parse_header(read(disk, 4096, 4096))
        found = gpt.parse_entries(header, read(disk, header.entries_lba * 4096, header.entries_length))
        columns = "NR,START,END,UUID,TYPE"
        said = run(["partx", "--sector-size", "4096", "--pairs", "--output", columns, disk]).stdout.decode()
        used = [(n, e.first_lba, e.end_lba - 1, str(e.guid), str(e.type)) for n, e in enumerate(found, 1) if e.used]
        rows = [re.findall(r'="([^"]*)"', line) for line in said.splitlines()]
        # partx counts sectors of 512 whatever it is told of the disk's.
        scale = 8 if int(rows[0][1]) == 256 * 8 else 1
        theirs = [(int(n), int(a) // scale, (int(b) + 1) // scale - 1, guid, kind) for n, a, b, guid, kind in rows]
        assert used == theirs
        assert [number for number, *_ in used] == [1, 7]


def _agree(said: dict[str, object], disk: Path, sector: int) -> None:
    primary = gpt.parse_header(read(disk, sector, sector))
    backup = gpt.parse_header(read(disk, primary.other_lba * sector, sector))
    assert backup == gpt.twin(primary, backup.entries_lba)
    assert (str(primary.disk_guid).upper(), str(primary.entry_count)) == (said["id"], said["table-length"])
    assert (primary.first_usable, primary.last_usable) == (said["firstlba"], said["lastlba"])
    partitions = said["partitions"]
    assert isinstance(partitions, list)
    for header in (primary, backup):
        entries = gpt.parse_entries(header, read(disk, header.entries_lba * sector, header.entries_length))
        found = [
            (n, e.first_lba, e.end_lba - e.first_lba, str(e.type).upper(), str(e.guid).upper(), e.name, e.attributes)
            for n, e in enumerate(entries, 1)
            if e.used
        ]
        assert found == [
            (
                int(p["node"].removeprefix(str(disk))),
                p["start"],
                p["size"],
                p["type"],
                p["uuid"],
                p.get("name", ""),
                _bits(p.get("attrs", "")),
            )
            for p in partitions
        ]


def _bits(attributes: str) -> int:
    """sfdisk's words for attribute bits, as a number (UEFI 5.3.3, table 24)."""
    words = attributes.replace("RequiredPartition", "0").replace("GUID:", "")
    return sum(1 << int(bit) for bit in re.findall(r"\d+", words))


# Where the specification's algorithm changes from one number of sectors per track to the next.
_BORDERS = [n + d for n in (69632, 278528, 507904, 1032192, 66059280) for d in (-1, 0, 1)] + [267382800]


class TestVhdFooter:
    footers = st.builds(
        vhd.Footer, st.integers(0, 2**32).map(lambda n: n * 512), uuids, st.integers(946684800, 946684800 + 2**32 - 1), u32, u64
    )

    @laws
    @given(footers)
    def test_comes_back_as_it_was(self, footer: vhd.Footer) -> None:
        """parse is the inverse of pack."""
        assert vhd.parse(footer.pack()) == footer

    def test_every_flipped_bit_is_found(self) -> None:
        """One wrong bit anywhere in the 512 bytes is a FormatError; so is any other length."""
        raw = vhd.Footer(300 * MIB, UUID(int=1 << 100), 1772330460).pack()
        for bad in (*(flipped(raw, bit) for bit in range(4096)), raw[:-1], raw + b"\0"):
            with pytest.raises(FormatError):
                vhd.parse(bad)

    @pytest.mark.parametrize("sectors", [1, 68, 160 * 2048, 20 << 21, 127 << 21, *_BORDERS])
    def test_geometry_and_size_are_qemus(self, scope: Scope, sectors: int) -> None:
        """For the sizes that a geometry can express, the footer has the CHS that qemu-img writes, and parses to its size."""
        need.tool("qemu-img")
        file = scope.path("vhd") / "disk.vhd"
        run(["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=off", file, str(sectors * 512)])
        raw = read(file, file.stat().st_size - 512, 512)
        cylinders, heads, per_track = struct.unpack_from(">HBB", raw, 56)
        footer = vhd.parse(raw)
        assert (footer.size, footer.disk_type, footer.data_offset) == (file.stat().st_size - 512, 2, 2**64 - 1)
        assert vhd.geometry(footer.size // 512) == (cylinders, heads, per_track)

    @pytest.mark.parametrize("size", [512, 300 * MIB + 512, 20 * 1024 * MIB, 2040 * 1024 * MIB])
    def test_qemu_believes_the_size(self, scope: Scope, size: int) -> None:
        """A disk of any number of sectors, up to 2040 GiB, has exactly that size for qemu: no byte is rounded off."""
        need.tool("qemu-img")
        file = scope.sparse(size + 512, "disk")
        with file.open("r+b") as out:
            out.seek(size)
            out.write(vhd.Footer(size, UUID(int=5), 1772330460).pack())
        said = json.loads(run(["qemu-img", "info", "-f", "vpc", "--output=json", file]).stdout)
        assert said["virtual-size"] == size

    def test_time_is_cut_to_what_the_field_holds(self) -> None:
        """A time before 2000, or after 2136, is the nearest one that fits; never another century."""
        for time, kept in ((0, 946684800), (-5, 946684800), (2**40, 946684800 + 2**32 - 1)):
            assert vhd.parse(vhd.Footer(512, UUID(int=0), time).pack()).timestamp == kept
