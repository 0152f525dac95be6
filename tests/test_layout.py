"""Rebuilding the tables of a disk from what was captured, against tables made by hand; and from captures that lie.

Not for: where volumes go on it (test_place), generated disks (test_disk). Units: LBAs of 512 bytes where a name says so.
"""

import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handmade
from handmade import DISK_A, MIB, Slot, gpt, gpt_sidecar, image, mbr_sidecar, protective, record, sidecar_bytes
from makembr import GptCopy
from synthfs.errors import FormatError
from synthfs.plan.align import lengthened
from synthfs.plan.layout import Layout, captured
from synthfs.plan.volume import Planner
from synthfs.urbackup.mbrfile import CapturedGpt, MbrFile

DISK = 1 << 18
"""Sectors: 128 MiB."""
GOOD = (Slot(1, 2048, 4095, handmade.ESP, "EFI"), Slot(4, 8192, 199999, name="Däta"))
COPY = gpt(DISK, *GOOD)


def tables(layout: Layout) -> dict[int, bytes]:
    return {offset: data for _, offset, data in layout.tables}


def both(copy: GptCopy, sectors: int = DISK) -> dict[int, bytes]:
    """What the disk had: boot record and both copies, at their places."""
    return {
        0: protective(sectors),
        copy.header_position: copy.header,
        copy.table_position: copy.table,
        copy.backup_header_position: copy.backup_header,
        copy.backup_table_position: copy.backup_table,
    }


def notes(layout: Layout) -> list[tuple[str, bool]]:
    return [(note.text, note.warning) for note in layout.notes]


class TestGpt:
    @pytest.mark.parametrize(
        ("count", "size", "sector"), [(128, 128, 512), (256, 128, 512), (128, 256, 512), (4, 128, 512), (128, 128, 4096)]
    )
    def test_both_copies_come_back_byte_for_byte(self, count: int, size: int, sector: int) -> None:
        """Everything that was captured is on the rebuilt disk, at its place, and nothing needs a note."""
        copy = gpt(DISK, *GOOD[:1], count=count, size=size, sector=sector)
        layout = captured(gpt_sidecar(copy))
        assert tables(layout) == both(copy)
        assert (layout.length, layout.sector_size, layout.notes) == (DISK * sector, sector, ())

    def test_partitions_are_what_the_table_says(self) -> None:
        """Slot, place, name and GUID of every entry in use; inclusive LBAs become half-open bytes."""
        found = [(p.number, p.start, p.end, p.label, p.guid) for p in captured(gpt_sidecar(COPY)).partitions]
        assert found == [
            (1, 2048 * 512, 4096 * 512, "EFI", GOOD[0].guid),
            (4, 8192 * 512, 200000 * 512, "Däta", GOOD[1].guid),
        ]

    def test_a_backup_that_is_the_primary_twice_is_made_anew(self) -> None:
        """A client that cannot read the backup stores the primary in its fields: the true backup is computed, and noted."""
        sidecar = gpt_sidecar(COPY)
        layout = captured(replace(sidecar, backup=sidecar.primary))
        assert tables(layout) == both(COPY)
        assert [warning for _, warning in notes(layout)] == [False]
        assert "backup" in notes(layout)[0][0]

    def test_a_primary_with_a_wrong_checksum_is_made_from_the_backup(self) -> None:
        """One damaged bit in the primary header, or its table: both copies come from the backup, with a warning."""
        header = COPY.header[:60] + b"?" + COPY.header[61:]
        table = b"?" + COPY.table[1:]
        for damaged in (replace(COPY, header=header), replace(COPY, table=table), replace(COPY, header=b"")):
            layout = captured(gpt_sidecar(damaged))
            assert tables(layout) == both(COPY)
            assert any("backup" in text and warning for text, warning in notes(layout))

    def test_a_damaged_backup_is_made_from_the_primary(self) -> None:
        """One damaged bit in the backup: it is made anew, with a note."""
        layout = captured(gpt_sidecar(replace(COPY, backup_table=b"?" + COPY.table[1:])))
        assert tables(layout) == both(COPY)
        assert len(layout.notes) == 1

    def test_a_backup_of_other_days_is_made_anew(self) -> None:
        """A sound backup that does not match the primary is not kept beside it, and that is a warning."""
        old = gpt(DISK, GOOD[0])
        mixed = replace(COPY, backup_header=old.backup_header, backup_table=old.backup_table)
        layout = captured(gpt_sidecar(mixed))
        assert tables(layout) == both(COPY)
        assert [warning for _, warning in notes(layout)] == [True]

    def test_with_both_copies_damaged_there_is_no_layout(self) -> None:
        """Two wrong checksums are a FormatError; a table is not guessed."""
        with pytest.raises(FormatError, match="CRC"):
            captured(gpt_sidecar(replace(COPY, table=b"?" + COPY.table[1:], backup_table=b"!" + COPY.table[1:])))

    @pytest.mark.parametrize("raw", [b"", b"\x33\xc0", protective(DISK)[:511], bytes(512), bytes(4096)])
    def test_a_short_or_empty_boot_record_is_made_anew(self, raw: bytes) -> None:
        """Disks of 4096-byte sectors come without one: a protective record takes its place, and a note says so."""
        layout = captured(gpt_sidecar(COPY, boot_record=raw))
        made = tables(layout)[0]
        assert made[450] == 0xEE
        assert struct.unpack_from("<II", made, 454) == (1, DISK - 1)
        assert made[510:] == b"\x55\xaa"
        assert len(layout.notes) == 1

    def test_a_hybrid_boot_record_is_kept(self) -> None:
        """Boot code, signature and the entries that mirror some of the GPT's partitions stay as they were."""
        hybrid = record((0xEE, 1, 2047), (7, 8192, 191808), signature=0xC0FFEE, boot_code=b"\xeb\x63\x90GRUB")
        layout = captured(gpt_sidecar(COPY, boot_record=hybrid))
        assert tables(layout) == both(COPY) | {0: hybrid}
        assert len(layout.partitions) == 2

    @pytest.mark.parametrize(("count", "size", "sector"), [(128, 128, 512), (256, 128, 512), (4, 256, 512), (128, 128, 4096)])
    @pytest.mark.parametrize("more", [1, 8, 40000])
    def test_a_longer_disk_has_the_tables_of_its_length(self, count: int, size: int, sector: int, more: int) -> None:
        """Lengthened, it has what a partitioner would have given a disk of that length, in both copies and the boot record."""
        short, long = (gpt(n, *GOOD[:1], count=count, size=size, sector=sector) for n in (DISK, DISK + more))
        before = captured(gpt_sidecar(short))
        layout = lengthened(before, (DISK + more) * sector)
        found, expected = tables(layout), both(long, DISK + more)
        # CHS of the last sector: as far as CHS goes, or a bit less (UEFI 5.2.3).
        assert found[0][451:454] in (b"\xff\xff\xff", b"\xfe\xff\xff")
        assert found | {0: found[0][:451] + bytes(3) + found[0][454:]} == expected
        assert (layout.length, layout.partitions) == ((DISK + more) * sector, before.partitions)

    @pytest.mark.parametrize(
        "raw",
        [
            record((0xEE, 1, 2047), (7, 2048, 2048)),
            record((0xEE, 1, 0xFFFFFFFF), signature=0),
            record((0xEE, 1, DISK // 2), signature=0),
        ],
        ids=["hybrid", "as Windows makes it", "of a smaller disk"],
    )
    def test_other_boot_records_stay_on_a_longer_disk(self, raw: bytes) -> None:
        """A boot record whose protective entry does not end where the disk ends is none of ours."""
        layout = lengthened(captured(gpt_sidecar(COPY, boot_record=raw)), (DISK + 100) * 512)
        assert tables(layout)[0] == raw

    def test_a_boot_record_beyond_32_bits(self) -> None:
        """A disk that grows past 2 TiB has the most that 32 bits can name, and one beyond keeps it."""
        for sectors in (1 << 32, (1 << 32) + 5000):
            layout = captured(gpt_sidecar(gpt(sectors, *GOOD), boot_record=protective(sectors)))
            (_, _, *entry) = struct.unpack_from("<4xB3xII", tables(lengthened(layout, (sectors + 7) * 512))[0], 446)
            assert entry == [0xFFFFFFFF]

    def test_a_backup_table_that_would_lie_on_a_partition(self) -> None:
        """Its entries need not lie right before its header: where the same move takes them onto a partition, none is made."""
        copy = gpt(DISK, Slot(1, 2048, 4095), lies={"last_usable": DISK - 2})
        apart = 1000
        header = handmade.header(
            own=DISK - 1, other=1, first_usable=34, last_usable=DISK - 2, disk=DISK_A, at=apart, count=128, size=128,
            crc=zlib.crc32(copy.table),
        )  # fmt: skip
        layout = captured(gpt_sidecar(replace(copy, backup_header=header, backup_table_position=apart * 512)))
        assert apart * 512 in tables(layout)
        with pytest.raises(FormatError, match="overlaps"):
            lengthened(layout, (DISK + 2048) * 512)

    def test_a_disk_is_grouped_by_its_guid(self) -> None:
        """The GPT's disk GUID is the disk's id, whatever its boot record says; a GUID of zero groups nothing."""
        assert captured(gpt_sidecar(COPY, boot_record=record((0xEE, 1, 9), signature=7))).disk_id == str(DISK_A)
        assert captured(gpt_sidecar(gpt(DISK, *GOOD, disk=UUID(int=0)))).disk_id is None


DIGEST_OF_0_1_0 = "289b9a37e3b2efb30b714c929db608d72d430e12e64083df70dc7b4212d08357"
"""What version 0.1.0 made of the tables of a disk with one partition of 4096 sectors from sector 2048 on."""


class TestMbr:
    RAW = record((7, 63, 4032), (0, 0, 0), (0x0F, 8192, 20000), boot_code=b"\xfa\x33\xc0")

    def test_the_boot_record_comes_back_byte_for_byte(self) -> None:
        """Boot code, signature and entries; the extended partition begins with a record without logical drives."""
        layout = captured(mbr_sidecar(self.RAW))
        assert tables(layout) == {0: self.RAW, 8192 * 512: bytes(510) + b"\x55\xaa"}
        assert [(p.number, p.start, p.length) for p in layout.partitions] == [(1, 32256, 4032 * 512), (3, 4194304, 10240000)]

    @pytest.mark.parametrize(
        ("end", "length"), [(28192, 14), (2048, 1), (2049, 2), (4095, 2), (4096, 2), (2040 * 2**21, 2040 * 1024)]
    )
    def test_it_ends_at_a_whole_mib_behind_its_last_partition(self, end: int, length: int) -> None:
        """`end` sectors, `length` in MiB: never less, and said in a note, since nothing records the original's length."""
        layout = captured(mbr_sidecar(record((7, 63, 100), (0, 0, 0), (7, 1024, end - 1024))))
        assert layout.length == length * MIB
        assert ["length is not recorded" in text and not warning for text, warning in notes(layout)] == [True]

    def test_an_edition_changes_where_the_length_does(self) -> None:
        """Tables that are alike are of one edition only with one length; what ends at a whole MiB has that of version 0.1.0."""
        whole, longer = (captured(mbr_sidecar(record((7, 2048, sectors)))) for sectors in (4096, 4097))
        assert replace(whole, length=whole.length + MIB).digest != whole.digest
        assert replace(longer, length=(2048 + 4097) * 512).digest != longer.digest
        assert whole.digest.hex() == DIGEST_OF_0_1_0

    @pytest.mark.parametrize("at", range(4))
    @pytest.mark.parametrize("status", [0x01, 0x7F, 0x81, 0xFF, 0x20])
    def test_a_status_is_00_or_80(self, at: int, status: int) -> None:
        """Anything else is no boot record, but text, such as that of a boot sector; in an entry that is not used as well."""
        raw = bytearray(record((7, 63, 100)))
        raw[446 + 16 * at] = status
        with pytest.raises(FormatError, match="status"):
            captured(mbr_sidecar(bytes(raw)))

    def test_sectors_of_4096_bytes(self) -> None:
        """The same record on a disk of such sectors: everything is eight times as far, but for the record."""
        layout = captured(mbr_sidecar(record((7, 256, 1000), (0x05, 2048, 512))), 4096)
        assert [(p.start, p.length) for p in layout.partitions] == [(MIB, 1000 * 4096), (8 * MIB, 2 * MIB)]
        assert (layout.sector_size, layout.length) == (4096, 10 * MIB)
        assert set(tables(layout)) == {0, 8 * MIB}

    def test_it_is_grouped_by_its_signature(self) -> None:
        """The signature is the disk's id; a signature of zero groups nothing."""
        assert captured(mbr_sidecar(self.RAW)).disk_id == "5eed1234"
        assert captured(mbr_sidecar(record((7, 63, 4032), signature=0))).disk_id is None

    def test_a_boot_loaders_sectors_come_back(self) -> None:
        """GRUB's or VeraCrypt's 63 sectors lie behind the boot record; inside a partition they are left out, with a warning."""
        extra = bytes(range(256)) * 126
        raw = record((7, 2048, 4096))
        layout = captured(replace(mbr_sidecar(raw), extra_position=512, extra=extra))
        assert tables(layout) == {0: raw, 512: extra}
        assert not any(warning for _, warning in notes(layout))
        for position in (0, 511, 2048 * 512 - 1, 2**63):
            layout = captured(replace(mbr_sidecar(raw), extra_position=position, extra=extra))
            assert tables(layout) == {0: raw}
            assert [text for text, warning in notes(layout) if warning] == [
                "captured boot loader sectors lie inside a partition and were left out"
            ]

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"", RAW[:511], bytes(512), record()),
            protective(DISK),  # a GPT that the client did not see
            record((7, 0, 100)),
            record((7, 63, 4000), (7, 4000, 100)),
            record((7, 8192, 100), (7, 63, 9000)),
            record((7, 63, 4000), (7, 63, 4000)),
        ],
    )
    def test_what_cannot_be_a_disk_is_a_format_error(self, raw: bytes) -> None:
        """No record, no partition, a GPT that is missing, partitions over each other or over the boot record."""
        with pytest.raises(FormatError):
            captured(mbr_sidecar(raw))


LIES: dict[str, GptCopy] = {
    "overlap": gpt(DISK, Slot(1, 2048, 4095), Slot(2, 4095, 5000)),
    "inside": gpt(DISK, Slot(1, 2048, 9999), Slot(2, 3000, 4000)),
    "over the primary": gpt(DISK, Slot(1, 20, 4095)),
    "over the boot record": gpt(DISK, Slot(1, 0, 1)),
    "over the backup": gpt(DISK, Slot(1, 2048, DISK - 20)),
    "past the end": gpt(DISK, Slot(1, 2048, DISK)),
    "far past the end": gpt(DISK, Slot(1, 2**63, 2**63 + 1)),
    "first > last": gpt(DISK, Slot(1, 4096, 2048)),
    "length 0": gpt(DISK, Slot(1, 4096, 4095)),
    "2^64 - 1": gpt(DISK, Slot(1, 2048, 2**64 - 1)),
}


def lying(**fields: int) -> GptCopy:
    """Both headers claim this, with right CRCs."""
    places = {"own": (24, "<Q"), "other": (32, "<Q"), "at": (72, "<Q"), "count": (80, "<I"), "size": (84, "<I")}

    def lie(raw: bytes) -> bytes:
        changed = bytearray(raw)
        for name, value in fields.items():
            offset, form = places[name]
            struct.pack_into(form, changed, offset, value)
        changed[16:20] = bytes(4)
        changed[16:20] = zlib.crc32(changed[:92]).to_bytes(4, "little")
        return bytes(changed)

    return replace(COPY, header=lie(COPY.header), backup_header=lie(COPY.backup_header))


LIES |= {f"count {n}": lying(count=n) for n in (0, 127, 129, 2**32 - 1)}
LIES |= {f"size {n}": lying(size=n) for n in (0, 1, 127, 129, 4104, 2**32 - 1)}
LIES |= {f"own LBA {n}": lying(own=n) for n in (0, 2, 2**63, 2**64 - 1)}
LIES |= {f"other LBA {n}": lying(other=n) for n in (0, 2, 3, 32, 40, 4000, 2**55, 2**63, 2**64 - 1)}
LIES |= {f"table at {n}": lying(at=n) for n in (0, 1, 2040, DISK, 2**63, 2**64 - 1)}
LIES |= {
    f"headers at {n}": replace(COPY, header_position=n, backup_header_position=n) for n in (0, 513, -512, -(2**63), 2**63 - 1)
}
LIES |= {"no header": replace(COPY, header=b"", backup_header=b""), "no table": replace(COPY, table=b"", backup_table=b"")}


class TestLies:
    """Captures that no disk can have: a FormatError from the layout, and a generated disk for the volume."""

    @pytest.mark.parametrize("copy", LIES.values(), ids=LIES)
    def test_are_format_errors(self, copy: GptCopy) -> None:
        """Every one of them, at once, and without allocating for what it claims."""
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                captured(gpt_sidecar(copy, boot_record=protective(DISK)))
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("copy", LIES.values(), ids=LIES)
    def test_give_a_generated_disk(self, copy: GptCopy) -> None:
        """The volume is offered all the same, alone on its disk, with a warning that names the `.mbr` file."""
        facts = image(mbr=sidecar_bytes(1, protective(DISK), copy), length=MIB)
        volume = Planner().volume(facts)
        assert [partition.start for partition in volume.layout.partitions] == [512 * 1024]
        assert any(".mbr" in note.text and note.warning for note in volume.notes)

    @pytest.mark.parametrize("other", [0, 1, 2, 2**63, 2**64 - 1])
    def test_of_a_primary_do_not_hurt_a_good_backup(self, other: int) -> None:
        """A primary that puts its backup where none can be loses against the backup that was captured."""
        layout = captured(gpt_sidecar(replace(COPY, header=lying(other=other).header)))
        assert tables(layout) == both(COPY)
        assert any(warning for _, warning in notes(layout))

    def test_one_lie_is_told_once_for_each_image(self) -> None:
        """The planner remembers bad tables as well as good ones: the second image with them gets its own note."""
        planner, raw = Planner(), sidecar_bytes(1, protective(DISK), LIES["overlap"])
        for stamp in ("260301-0201", "260302-0201"):
            (note,) = planner.volume(image(stamp=stamp, mbr=raw, length=MIB)).notes
            assert stamp in note.text

    u64 = st.sampled_from((0, 1, 2, 33, 34, 2047, DISK - 1, DISK, 2**32, 2**63 - 1, 2**63, 2**64 - 1)) | st.integers(0, DISK)

    @settings(max_examples=200, deadline=None)
    @given(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("own", "other", "at"), u64)),
        st.lists(st.tuples(u64, u64), max_size=3),
    )
    def test_no_numbers_break_it(self, fields: dict[str, int], slots: list[tuple[int, int]]) -> None:
        """Headers and entries of any numbers, with right checksums, give a sound disk or a FormatError, nothing else."""
        copy = gpt(DISK, *(Slot(n, first, last) for n, (first, last) in enumerate(slots, 1)), lies=fields)
        try:
            layout = captured(gpt_sidecar(copy, boot_record=protective(DISK)))
        except FormatError:
            return
        places = sorted([(at, at + len(raw)) for _, at, raw in layout.tables] + [(p.start, p.end) for p in layout.partitions])
        ends = [0, *(end for _, end in places)]
        assert all(end <= start for end, (start, _) in zip(ends, places, strict=False))
        assert ends[-1] <= layout.length

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=600), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300))
    def test_no_bytes_break_it(self, raw: bytes, position: int, table: bytes) -> None:
        """Nor does garbage in place of tables and boot record."""
        copy: Any = CapturedGpt(position, raw, position, table)
        for sidecar in (MbrFile(1, boot_record=raw, primary=copy, backup=copy), MbrFile(0, boot_record=raw)):
            with pytest.raises(FormatError):
                captured(sidecar)
