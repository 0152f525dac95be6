"""Every container of every kind of disk is that disk, to others: qemu-img, libvhdi, and readers written here from the papers.

Expected values are the original disks. Not for: what a disk consists of (test_crown, test_kinds).
"""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import boxes
import bytewise
import need
import sparse
from boxes import EDGES, GIB, QEMU, SAMPLED, SHAPES, SUFFIX, Boxes
from frozen import exclusive, extents
from kinds import TIB
from lab import Lab, Scope
from makevolume import SECTOR
from onmount import ask

MIB = 1 << 20
BLOCK = 2 * MIB
TOO_LONG = ("huge", "2040 GiB+1", *(f"2 TiB{by:+}" for by in (-1, 0, 1)))


def holds(name: str, form: str) -> bool:
    if form in ("vhd", "vhd-dynamic"):
        return name not in (*TOO_LONG, "4096-sectors")
    return form != "vmdk" or name != "4096-sectors"


LONG = [name for name in SHAPES if ("iB" in name and "MiB" not in name) or name == "huge"]
PAIRS = [
    (name, form)
    for name in SHAPES
    for form in QEMU
    if holds(name, form) and (form != "vmdk" or name not in LONG)  # a terabyte of it is one of the bare disk
]
UNMAPPED = [(name, "vhdx") for name in LONG]
"""qemu does not know what is not in a VHDX, and would read terabytes of zeroes: it is asked for what is on the original."""
NOT_CAPTURED = {"4096-sectors": SECTOR}
"""Windows gives nothing when asked for 512 bytes of such a disk, so that its boot record is ours."""
FROZEN = [(name, form) for name, form in PAIRS if name in (*SAMPLED, "empty", "4096-sectors", "2 MiB+1", *LONG)]


def units(path: Path) -> set[int]:
    """The MiB of a sparse file that hold data, by their numbers; a last one that is not whole is left out."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        ranges = sparse.data(file, 0, length)
        return {unit for at, amount in ranges for unit in range(at // MIB, -(-(at + amount) // MIB)) if unit < length // MIB}


@pytest.fixture(scope="module")
def laid(lab: Lab) -> Iterator[Boxes]:
    need.fuse()
    need.tool("qemu-img", "vhdiinfo", "vhdimount", "filefrag")
    yield from boxes.lay(lab)


def told(scope: Scope, *words: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(scope.run(["qemu-img", *words]).stdout)
    return answer


@pytest.mark.parametrize(("name", "form"), [pair for pair in PAIRS if pair != ("4096-sectors", "vhdx")])
class TestQemu:
    """What qemu-img says of the mounted files; of frozen ones where it would read terabytes of zeroes, which have holes."""

    def test_finds_the_disk(self, laid: Boxes, name: str, form: str) -> None:
        """It is of exactly the original's length, and every byte is the original's."""
        disk = laid.disks[name]
        file = laid.file(name, form) if disk.length < GIB else laid.frozen(name, form)
        info = told(laid.scope, "info", "-f", QEMU[form], "--output=json", file)
        assert info["virtual-size"] == disk.served_length
        if name in NOT_CAPTURED:
            assert bytewise.differences(laid.scope, file, disk.path, disk.length, start=NOT_CAPTURED[name]) == []
            return
        if (name, form) not in UNMAPPED:
            laid.scope.run(["qemu-img", "compare", "-f", QEMU[form], "-F", "raw", file, disk.path], timeout=60)
            return
        unit = laid.scope.path("unit") / "unit"
        for start in sorted(units(disk.path)):
            # Its `count` is from the beginning, not from where `skip` ends.
            words = ["bs=1M", f"skip={start}", f"count={start + 1}", f"if={file}", f"of={unit}"]
            laid.scope.run(["qemu-img", "dd", "-f", "vhdx", "-O", "raw", *words])
            assert unit.read_bytes() == disk.read(start * MIB, MIB)
            unit.unlink()

    def test_finds_no_error(self, laid: Boxes, name: str, form: str) -> None:
        """Its check is content, with the formats that it can check."""
        if form in ("vhdx", "vmdk"):
            laid.scope.run(["qemu-img", "check", "-f", QEMU[form], laid.file(name, form)])


@pytest.mark.parametrize("name", [name for name in SHAPES if holds(name, "vhd")])
@pytest.mark.parametrize("form", ["vhd", "vhd-dynamic"])
def test_libvhdi_finds_the_disk(laid: Boxes, name: str, form: str) -> None:
    """It names the kind and the original's length, whatever the geometry says."""
    said = laid.scope.run(["vhdiinfo", laid.file(name, form)]).stdout
    assert f"({laid.disks[name].served_length} bytes)" in said
    assert ("Dynamic" if form == "vhd-dynamic" else "Fixed") in said


@pytest.mark.parametrize(
    ("name", "form"), [("xp", "vhd-dynamic"), ("gpt", "vhd-dynamic"), ("gpt", "vhdx"), ("4096-sectors", "vhdx")]
)
def test_libvhdi_reads_the_disk(laid: Boxes, name: str, form: str) -> None:
    """Every byte that libvhdi finds in a sparse container is the original's, with 4096-byte sectors too."""
    with laid.scope.scope("vhdi") as scope:
        place = scope.path("vhdi")
        scope.start(["vhdimount", "-v", laid.frozen(name, form), place], log=scope.path("log") / "vhdimount.log")
        shown = "import time\nwhile not os.listdir(arguments[0]): time.sleep(0.05)\nanswer(sorted(os.listdir(arguments[0])))"
        (found,) = ask(scope, shown, place)
        disk = laid.disks[name]
        assert bytewise.size(scope, place / found) == disk.served_length
        start = NOT_CAPTURED.get(name, 0)
        assert bytewise.differences(scope, place / found, disk.path, disk.length, start=start) == []


@pytest.mark.parametrize(("name", "form"), FROZEN)
def test_mounted_is_materialized(laid: Boxes, name: str, form: str) -> None:
    """The file in the mount and the one frozen of it are the same bytes, the container's own among them."""
    mounted, frozen = laid.file(name, form), laid.frozen(name, form)
    assert mounted.name == frozen.name
    length = bytewise.size(laid.scope, mounted)
    assert frozen.stat().st_size == length
    data_of = (frozen,) if length > GIB else ()
    assert bytewise.differences(laid.scope, mounted, frozen, length, data_of=data_of) == []


def test_a_vmdk_is_two_files(laid: Boxes) -> None:
    """The text names the file beside it, which is the bare disk."""
    disk, flat = laid.disks["gpt"], laid.frozen("gpt", "vmdk").with_name(f"{laid.images['gpt'].raw.stem}-flat.vmdk")
    assert f'RW {disk.served_length // SECTOR} FLAT "{flat.name}" 0' in laid.frozen("gpt", "vmdk").read_text()
    assert bytewise.differences(laid.scope, flat, disk.path, disk.length) == []


def test_a_sparse_container_is_about_as_long_as_its_data(laid: Boxes) -> None:
    """3 TiB with 8 MiB in use are some MiB of VHDX; an empty disk is next to nothing in any sparse container."""
    assert bytewise.size(laid.scope, laid.file("huge", "vhdx")) < 128 * MIB
    for form in ("vhdx", "vhd-dynamic"):
        assert bytewise.size(laid.scope, laid.file("empty", form)) <= 8 * MIB


@pytest.mark.parametrize("form", ["vhdx", "vhd-dynamic", "vmdk", "raw"])
def test_new_identities_are_the_same_in_each(laid: Boxes, form: str) -> None:
    """A disk with other identifiers is the same disk in whatever container, and another one than the original."""
    one, other = (laid.file("gpt", each, renewed=True) for each in (form, "vhd"))
    laid.scope.run(["qemu-img", "compare", "-f", QEMU[form], "-F", "vpc", one, other])
    said = laid.scope.run(
        ["qemu-img", "compare", "-f", QEMU[form], "-F", "raw", one, laid.disks["gpt"].path], check=False
    )
    assert said.returncode == 1


@pytest.mark.parametrize("name", ["gpt", "4096-sectors", "huge"])
def test_show_tells_each_length(laid: Boxes, name: str) -> None:
    """`show` names the file and the length of every container that can hold the disk."""
    facts = json.loads(laid.scope.synthfs("show", "--json", laid.images[name].raw).stdout)
    expected = {form for form in QEMU if holds(name, form)}
    assert {row["format"] for row in facts["containers"]} == expected
    for row in facts["containers"]:
        flat = row["file"].replace(".vmdk", "-flat.vmdk")
        assert row["length"] == bytewise.size(laid.scope, laid.mountpoint / name / flat)


@pytest.mark.parametrize("name", ["xp", "two-volumes"])
def test_a_dynamic_vhd_is_cloned(laid: Boxes, name: str) -> None:
    """Whatever sector its partitions begin at: nearly every block of the backup is in the file, and next to nothing else."""
    frozen = laid.frozen(name, "vhd-dynamic")
    laid.scope.run(["sync", "-f", frozen.parent])
    blocks = len(present(frozen))
    # A bitmap's block, what straddles its border, and the tables.
    assert exclusive(laid.scope, frozen) <= 2 * 4096 * blocks + 64 * 1024
    raws = sorted(laid.store.root.glob(f"{name}/*/*.raw"))
    mine = [(physical, physical + length) for _, physical, length in extents(laid.scope, frozen)]
    for raw in raws:
        # The wrapper before the volume is no part of the disk.
        theirs = [(at, physical, length) for at, physical, length in extents(laid.scope, raw) if at >= 512 * 1024]
        shared = sum(
            max(min(end, physical + length) - max(start, physical), 0) for _, physical, length in theirs for start, end in mine
        )
        assert shared >= sum(length for _, _, length in theirs) - 2 * 4096 * blocks


def test_bitmaps_cost_nothing(laid: Boxes) -> None:
    """All blocks of an aligned disk share the block that holds one bitmap."""
    frozen = laid.frozen("two-volumes", "vhd-dynamic")
    places = sorted(present(frozen).values())
    physical = {at: where for at, where, _ in flat(laid.scope, frozen)}
    assert len({physical[(place - 3584) // 4096 * 4096] for place in places[1:]}) == 1


def flat(scope: Scope, file: Path) -> Iterator[tuple[int, int, int]]:
    """The extents of a file, block by block."""
    for at, where, length in extents(scope, file):
        for skip in range(0, length, 4096):
            yield at + skip, where + skip, 4096


def present(file: Path) -> dict[int, int]:
    """The blocks of a dynamic VHD and where they lie in it, by the specification; its structures are sound."""
    with file.open("rb") as opened:
        raw = opened.read(1536)
        opened.seek(-512, 2)
        footer, length = opened.read(512), opened.tell()
        header = raw[512:]
        assert raw[:512] == footer
        assert footer[:8] == b"conectix"
        assert struct.unpack(">I", footer[60:64]) == (3,)
        assert struct.unpack(">Q", footer[16:24]) == (512,)
        for structure, at in ((footer, 64), (header, 36)):
            said = structure[at : at + 4]
            assert struct.pack(">I", ~(sum(structure) - sum(said)) & 0xFFFFFFFF) == said
        (bat_at, version, entries, size) = struct.unpack(">QIII", header[16:36])
        assert (header[:8], version, size) == (b"cxsparse", 0x10000, BLOCK)
        (disk,) = struct.unpack(">Q", footer[48:56])
        assert entries == -(-disk // BLOCK)
        opened.seek(bat_at)
        bat = opened.read(-(-entries * 4 // SECTOR) * SECTOR)
        assert set(bat[entries * 4 :]) <= {0xFF}
        found = {
            number: sector * SECTOR
            for number, sector in enumerate(struct.unpack(f">{entries}I", bat[: entries * 4]))
            if sector != 0xFFFFFFFF
        }
        edges = sorted(found.values())
        assert all(after - before >= SECTOR + BLOCK for before, after in zip(edges, [*edges[1:], length - 512], strict=True))
        assert not edges or edges[0] >= bat_at + len(bat)
        for place in edges:
            opened.seek(place)
            assert opened.read(SECTOR) == b"\xff" * SECTOR
    return found


@pytest.mark.parametrize("name", [name for name, form in FROZEN if form == "vhd-dynamic"])
def test_a_dynamic_vhd_is_sound(laid: Boxes, name: str) -> None:
    """Checksums, sizes, the table: as the specification has them, no two blocks overlap, and every bitmap is full."""
    assert all(number * BLOCK < laid.disks[name].length for number in present(laid.frozen(name, "vhd-dynamic")))


def crc32c(raw: bytes) -> int:
    """Castagnoli's, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in raw:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c_is_castagnolis() -> None:
    """The check value that every description of it gives."""
    assert crc32c(b"123456789") == 0xE3069283


GUIDS = {
    "bat": "6677c22d23f600429d64115e9bfd4a08",
    "metadata": "06a27c8b90479a4bb8fe575f050f886e",
    "file parameters": "3767a1ca36fa434db3b633f0aa44e76b",
    "size": "2442a52f1bcd7648b2115dbed83bf4b8",
    "id": "ab12cabee6b22345 93efc309e000c746".replace(" ", ""),
    "logical": "1dbf41816fa90947ba47f233a8faab5f",
    "physical": "c748a3cd5d4471449cc9e9885251c556",
}
"""As they stand in the file ([MS-VHDX] 2.2.3.2 and 2.6.2)."""


@pytest.mark.parametrize("name", [name for name, form in FROZEN if form == "vhdx"])
def test_a_vhdx_is_sound(laid: Boxes, name: str) -> None:
    """Headers, regions, metadata and table: as [MS-VHDX] has them, all offsets aligned and none used twice."""
    disk = laid.disks[name]
    with laid.frozen(name, "vhdx").open("rb") as file:

        def at(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        assert at(0, 8) == b"vhdxfile"
        headers = [at(offset, 4096) for offset in (64 << 10, 128 << 10)]
        tables = [at(offset, 64 << 10) for offset in (192 << 10, 256 << 10)]
        for structure in (*headers, tables[0]):
            assert structure[4:8] == struct.pack("<I", crc32c(structure[:4] + bytes(4) + structure[8:]))
        assert tables[0] == tables[1]
        sequences = [struct.unpack("<Q", header[8:16])[0] for header in headers]
        assert len(set(sequences)) == 2
        for header in headers:
            assert header[:4] == b"head"
            assert header[16:48] == headers[0][16:48]
            assert len({bytes(16), header[16:32], header[32:48]}) == 3
            assert struct.unpack("<16sHHIQ", header[48:80]) == (bytes(16), 0, 1, MIB, MIB)
        assert struct.unpack("<4sxxxxII", tables[0][:16]) == (b"regi", 2, 0)
        regions = {}
        for entry in (tables[0][16:48], tables[0][48:80]):
            guid, offset, length, required = struct.unpack("<16sQII", entry)
            assert (offset % MIB, length % MIB, required) == (0, 0, 1)
            assert offset >= MIB
            regions[guid.hex()] = offset, length
        assert set(regions) == {GUIDS["bat"], GUIDS["metadata"]}
        items = _items(at(*regions[GUIDS["metadata"]]))
        assert {key: flags for key, (flags, _) in items.items()} == {
            GUIDS["file parameters"]: 4,
            **{GUIDS[word]: 6 for word in ("size", "id", "logical", "physical")},
        }
        size, flags = struct.unpack("<II", items[GUIDS["file parameters"]][1])
        assert (size & size - 1, size % MIB, flags) == (0, 0, 0)
        assert struct.unpack("<Q", items[GUIDS["size"]][1]) == (disk.served_length,)
        (sector,) = struct.unpack("<I", items[GUIDS["logical"]][1])
        assert sector == disk.sector_size
        assert items[GUIDS["id"]][1] != bytes(16)

        blocks, ratio = -(-disk.served_length // size), (1 << 23) * sector // size
        offset, length = regions[GUIDS["bat"]]
        entries = struct.unpack(f"<{length // 8}Q", at(offset, length))
        assert not any(entries[blocks + (blocks - 1) // ratio :])
        payload = {number - number // (ratio + 1): entry >> 20 << 20 for number, entry in enumerate(entries) if entry}
        for number, place in payload.items():
            rest = min(size, disk.served_length - number * size)
            skip = NOT_CAPTURED.get(name, 0) if number == 0 else 0
            assert at(place + skip, size - skip) == disk.read(number * size + skip, rest - skip).ljust(size - skip, b"\0")
        assert {unit * MIB // size for unit in units(disk.path)} <= set(payload)
        taken = sorted([(0, MIB), (MIB, MIB), *regions.values()])
        for number, entry in enumerate(entries):
            state, place = entry & 7, entry >> 20 << 20
            assert entry & 0xFFFF8 == 0
            assert state in ((0,) if number % (ratio + 1) == ratio else (0, 6))
            if state:
                taken.append((place, size))
        taken.sort()
        assert all(start + length <= after for (start, length), (after, _) in pairwise(taken))
        assert sum(taken[-1]) == file.seek(0, 2)


def _items(region: bytes) -> dict[str, tuple[int, bytes]]:
    magic, _, count = struct.unpack("<8sHH", region[:12])
    assert (magic, region[12:32]) == (b"metadata", bytes(20))
    found = {}
    for number in range(count):
        guid, offset, length, flags, _ = struct.unpack("<16sIIII", region[32 + 32 * number : 64 + 32 * number])
        assert 64 << 10 <= offset <= offset + length <= len(region)
        found[guid.hex()] = flags, region[offset : offset + length]
    return found


def test_edges_are_edges() -> None:
    """The lengths that are tried are those at which something in a container begins or ends."""
    assert [EDGES[edge] % size for edge, size in (("1 MiB", MIB), ("2 MiB", BLOCK), ("32 MiB", 32 * MIB))] == [0, 0, 0]
    assert EDGES["2 TiB"] == TIB * 2
    assert set(SUFFIX) == set(QEMU)
