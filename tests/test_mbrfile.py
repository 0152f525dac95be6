"""The `.mbr` parser, against files that another writer made (makembr), and against everything that is none.

Not for: judging the tables inside (test_layout).
"""

import contextlib
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makembr import GptCopy, mbr_bytes
from synthfs.errors import FormatError
from synthfs.urbackup import mbrfile
from synthfs.urbackup.mbrfile import CapturedGpt, MbrFile

laws = settings(max_examples=100, deadline=None)
i32, i64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=20)
blobs = st.binary(max_size=40)
copies = st.builds(GptCopy, i64, blobs, i64, blobs, i64, blobs, i64, blobs)
# makembr writes varints of up to eight bytes, which is 56 bits.
extras = st.none() | st.tuples(st.integers(0, 2**56 - 1), blobs)
SMALL_GPT = GptCopy(512, b"header", 1024, b"table", 9999, b"HEADER", 8888, b"TABLE")
FIELDS = {"device_number": 3, "serial": "1234567890", "volume_name": "OS", "filesystem": "NTFS", "mbr_data": b"\x33\xc0" * 9}


def sample(version: int = 1, message: str = "careful", extra: tuple[int, bytes] | None = (512, b"GRUB")) -> bytes:
    gpt = SMALL_GPT if version else None
    fields: dict[str, object] = {"partition_number": 2, "message": message, "extra": extra, "gpt": gpt, **FIELDS}
    return mbr_bytes(version=version, **fields)  # type: ignore[arg-type]  # values of several types in one dict


@laws
@given(i32, i32, texts, texts, texts, blobs, st.none() | copies, texts, extras)
def test_every_field_comes_out_as_it_went_in(
    device: int,
    number: int,
    serial: str,
    volume: str,
    system: str,
    boot: bytes,
    gpt: GptCopy | None,
    message: str,
    extra: tuple[int, bytes] | None,
) -> None:
    """What a client writes, negative numbers, empty strings and odd letters included, is what the parser finds."""
    raw = mbr_bytes(
        version=0 if gpt is None else 1,
        device_number=device,
        partition_number=number,
        serial=serial,
        volume_name=volume,
        filesystem=system,
        mbr_data=boot,
        gpt=gpt,
        message=message,
        extra=extra,
    )
    primary = backup = None
    if gpt is not None:
        primary = CapturedGpt(gpt.header_position, gpt.header, gpt.table_position, gpt.table)
        backup = CapturedGpt(gpt.backup_header_position, gpt.backup_header, gpt.backup_table_position, gpt.backup_table)
    version = 0 if gpt is None else 1
    position, content = extra or (0, b"")
    expected = (version, device, number, serial, volume, system, boot, primary, backup, message, position, content)
    assert mbrfile.parse(raw) == MbrFile(*expected)


def test_the_worked_example_of_the_format_description() -> None:
    """Facts 2.2: version 0, 558 bytes, and 32 819 with the boot loader's sectors behind it."""
    record = bytes(510) + b"\x55\xaa"
    head = b"\x01\x00" + struct.pack("<ii", 0, 2) + b"\x0a\0\0\x001234567890" + b"\2\0\0\0OS" + b"\4\0\0\0NTFS"
    raw = head + b"\0\2\0\0" + record + bytes(4)
    assert len(raw) == 558
    assert mbrfile.parse(raw) == MbrFile(0, 0, 2, "1234567890", "OS", "NTFS", record)
    longer = raw + b"\x84\x00" + b"\x81\xfc\x00" + b"G" * 32256
    assert len(longer) == 32819
    found = mbrfile.parse(longer)
    assert (found.extra_position, found.extra) == (512, b"G" * 32256)


@pytest.mark.parametrize(
    ("encoded", "value"),
    # SQLite's file format description, section "varint", and its sqlite3PutVarint.
    [
        *(("7f", 127), ("8100", 128), ("ff7f", 16383), ("818000", 16384), ("ffffffffffffff7f", 2**56 - 1)),
        *(("808080808080808001", 1), ("80c080808080808000", 2**56), ("ffffffffffffffffff", 2**64 - 1)),
    ],
)
def test_varints_are_sqlites(encoded: str, value: int) -> None:
    """Big-endian groups of seven bits; the ninth byte, if there is one, has all its eight."""
    assert mbrfile.parse(sample(extra=None) + bytes.fromhex(encoded) + b"\0").extra_position == value


def test_only_the_version_is_read_of_a_whole_disk() -> None:
    """Version 100 holds a ZIP of which nothing is known."""
    for tail in (b"", b"PK\x03\x04", bytes(100)):
        assert mbrfile.parse(b"\x01\x64" + tail) == MbrFile(100)


@pytest.mark.parametrize("version", [2, 99, 101, 255])
def test_an_unknown_version_is_a_format_error(version: int) -> None:
    """A layout that nobody described is not guessed at; the message has the number."""
    with pytest.raises(FormatError, match=str(version)):
        mbrfile.parse(b"\x01" + bytes([version]) + sample()[2:])


def test_the_first_byte_is_not_judged() -> None:
    """UrBackup's own reader ignores it."""
    assert mbrfile.parse(b"\x07" + sample()[1:]) == mbrfile.parse(sample())


@pytest.mark.parametrize("version", [0, 1])
def test_every_truncation_is_an_error_or_a_shorter_tail(version: int) -> None:
    """Cut anywhere, a file is a FormatError, unless the cut is between two of its optional fields at the end."""
    raw = sample(version)
    whole = mbrfile.parse(raw)
    must = len(raw) - len(b"\4GRUB" + b"\x84\x00" + b"\7\0\0\0careful")
    ends = {must: ("", 0, b""), must + 11: ("careful", 0, b""), must + 13: ("careful", 512, b"")}
    for length in range(len(raw)):
        if length in ends:
            found = mbrfile.parse(raw[:length])
            assert (found.error, found.extra_position, found.extra) == ends[length]
            assert (found.boot_record, found.primary, found.backup) == (whole.boot_record, whole.primary, whole.backup)
        else:
            with pytest.raises(FormatError):
                mbrfile.parse(raw[:length])


def test_bytes_behind_the_last_field_are_ignored() -> None:
    """A later version may add fields, as the extra data once were."""
    assert mbrfile.parse(sample() + b"more") == mbrfile.parse(sample())


@laws
@given(st.binary(max_size=200), st.integers(0, 1))
def test_garbage_is_a_format_error_or_a_value(raw: bytes, version: int) -> None:
    """No bytes whatever make the parser fail in another way, and none of its strings is longer than the file."""
    for attempt in (raw, bytes([1, version]) + raw):
        try:
            found = mbrfile.parse(attempt)
        except FormatError:
            continue
        assert len(found.boot_record) + len(found.extra) <= len(attempt)


@laws
@given(st.data(), st.integers(0, 1))
def test_a_damaged_file_is_a_format_error_or_a_value(data: st.DataObject, version: int) -> None:
    """A few bytes overwritten anywhere in a good file never do worse than that."""
    raw = bytearray(sample(version))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    with contextlib.suppress(FormatError):
        assert mbrfile.parse(bytes(raw)).version in (0, 1, 100)


@pytest.mark.parametrize("claim", [2**32 - 1, 100 * 2**20, 2**31])
def test_a_lying_length_costs_nothing(claim: int) -> None:
    """A string that claims 100 MiB in a file of a few hundred bytes is refused before anything is allocated for it."""
    files = [bytes([1, 0]) + bytes(8) + struct.pack("<I", claim) + b"x" * 300]
    files.append(sample(0, extra=None)[: -len("careful") - 4] + struct.pack("<I", claim) + b"x")
    files.append(sample(1, extra=None) + b"\x00" + b"\xff" * 9 + b"x")
    tracemalloc.start()
    try:
        for raw in files:
            with pytest.raises(FormatError, match="wanted"):
                mbrfile.parse(raw)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_text_that_is_no_utf8_does_not_matter() -> None:
    """Names come from the backed-up machine in whatever encoding; they are shown, not used."""
    raw = sample(0).replace(b"OS", b"\xff\xfe")
    assert mbrfile.parse(raw).partition_number == 2


def test_linux_clients_are_known_by_the_volume_name() -> None:
    """`LINUX:<device>` is what tells the two ways of numbering apart; the prefix has to be in front."""
    for name, linux in (("LINUX:/dev/sda2", True), ("LINUX", False), ("my LINUX:", False), ("", False)):
        assert MbrFile(0, volume_name=name).from_linux is linux
