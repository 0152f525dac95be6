"""Is a backup good? Its bytes against UrBackup's hashes, and a file against the disk that it was made of.

Not for: tables (test_check). Expected values: the real UrBackup server's `.hash` files, SHA-256 by hashlib over what was put
there, the places of partitions on the original disk, BTRFS' own checksums.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import genuinedisks
import need
from genuine import GenuineStore
from lab import Lab, Scope
from makeimage import CHUNK, HEADER, ZERO_CHUNK_SHA256
from onmount import FOOTER, Sample
from processes import Argument
from synthfs.engines import verify
from synthfs.engines.crew import Crew
from synthfs.engines.read import Reader
from synthfs.engines.verify import EVERYTHING, Bad, Tally
from synthfs.errors import SourceError
from synthfs.host.files import OpenSource, source_at
from synthfs.model import Allocation
from synthfs.plan import container
from synthfs.plan.container import Format
from synthfs.plan.garden import Gardener
from synthfs.plan.tree import File, walk
from synthfs.survey import survey

KIB, MIB = 1 << 10, 1 << 20
OK, NOT_UNDERSTOOD, NOT_FOUND, BAD_INPUT, CANNOT_HOLD, UNREADABLE, DIFFERS, CANNOT_CHECK = 0, 2, 3, 4, 5, 6, 11, 12


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    with lab.scope("verify") as scope:
        yield Sample.make(scope)


@contextmanager
def flipped(path: Path, offset: int, bit: int = 0) -> Iterator[None]:
    """One bit of a file is another one for a while."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            (old,) = file.read(1)
            file.seek(offset)
            file.write(bytes([old ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


def hashes(raw: Path, length: int, tally: Tally | None = None, sidecar: Path | None = None) -> list[Bad]:
    """What `check_hashes` and `check_tail` find in the volume of an image."""
    tally = tally or Tally()
    with (
        Crew() as crew,
        closing(OpenSource(source_at(f"{raw}"))) as file,
        closing(OpenSource(source_at(f"{sidecar or raw}{'' if sidecar else '.hash'}"))) as entries,
    ):
        found = list(verify.check_hashes(crew, file, entries, (HEADER, length), tally, EVERYTHING, lambda done: None))
        tail = verify.check_tail(file, entries, (HEADER, length), tally)
    return [*found, *([tail] if tail else [])]


def asked(scope: Scope, *arguments: Argument) -> tuple[int, list[dict[str, Any]], dict[str, Any], str]:
    """Exit code, findings, summary and stderr of `verify --json`."""
    done = scope.synthfs("verify", "--json", *arguments, check=False)
    *findings, last = [json.loads(line) for line in done.stdout.splitlines()] or [{"summary": {}}]
    return done.returncode, findings, last["summary"], done.stderr


class TestGenuine:
    """The real server's hashes of its own images."""

    def test_every_complete_image_is_good(self, genuine: GenuineStore, scope: Scope) -> None:
        """All 18 of them, to the last byte of each volume, on a file system that is mounted read-only."""
        code, findings, summary, said = asked(scope, "--store", genuine.root, "--database", genuine.database)
        assert (code, findings, said) == (OK, [], "")
        images = {*genuinedisks.DISKS, *genuinedisks.PARTS}
        assert summary["checked"] == {"tables": len(genuinedisks.DISKS), "image": len(images)}
        sizes = (os.stat(genuine.root / genuinedisks.name(image)).st_size - HEADER for image in images)
        assert summary["unproven"] == 0
        assert sum(sizes) - CHUNK * len(images) <= summary["data"] + summary["holes"] <= sum(
            os.stat(genuine.root / genuinedisks.name(image)).st_size - HEADER for image in images
        )

    def test_hashes_of_an_aborted_transfer(self, genuine: GenuineStore) -> None:
        """A `.hash` that ends early is right as far as it goes, and what it says nothing about is counted."""
        raw = genuine.image("0312", "_dev_loop3")
        entries = raw.with_name(f"{raw.name}.hash").stat().st_size // 32
        length, tally = raw.stat().st_size - HEADER, Tally()
        assert 0 < entries < length // CHUNK
        assert hashes(raw, length, tally) == []
        assert tally.unproven == length - entries * CHUNK

    def test_every_flipped_bit_is_found(self, genuine: GenuineStore, scope: Scope) -> None:
        """60 bits of one image, one at a time, in data and in holes: each is found, in its chunk and nowhere else."""
        raw = genuine.image("0311", "C")
        copy = scope.path() / raw.name
        for suffix in ("", ".hash"):
            scope.run(["cp", "--sparse=always", "--reflink=never", f"{raw}{suffix}", f"{copy}{suffix}"])
        length, dice = raw.stat().st_size - HEADER, random.Random(20260301)
        for _ in range(60):
            offset, bit = dice.randrange(length // CHUNK * CHUNK), dice.randrange(8)
            with flipped(copy, HEADER + offset, bit):
                assert hashes(copy, length) == [Bad(offset // CHUNK * CHUNK, CHUNK)], f"offset {offset}, bit {bit}"
        assert hashes(copy, length) == []


class TestHashes:
    def test_bits_of_data_and_of_hashes(self, sample: Sample) -> None:
        """A flipped bit where the volume has data is found, and so is one in the hash of a chunk, complete or not."""
        image, dice = sample.c, random.Random(20260302)
        data = [HEADER + at for at in range(image.length) if at % 4096 == 0 and _byte(image.raw, HEADER + at)]
        for _ in range(40):
            offset = dice.choice(data)
            with flipped(image.raw, offset, dice.randrange(8)):
                assert [bad.offset for bad in hashes(image.raw, image.length)] == [(offset - HEADER) // CHUNK * CHUNK]
        entries = image.sidecar(".hash")
        for _ in range(20):
            offset = dice.randrange(image.length // CHUNK * 32)
            with flipped(entries, offset, dice.randrange(8)):
                assert hashes(image.raw, image.length) == [Bad(offset // 32 * CHUNK, CHUNK)]

    def test_neighbours_are_one_finding(self, sample: Sample, scope: Scope) -> None:
        """Wrong chunks side by side are told together, also where a hole and data meet."""
        root = sample.copy(scope)
        raw = sample.raw(root, sample.c)
        entries = raw.with_name(f"{raw.name}.hash")
        with entries.open("r+b") as file:
            file.seek(3 * 32)
            file.write(bytes(20 * 32))
        assert hashes(raw, sample.c.length) == [Bad(3 * CHUNK, 20 * CHUNK)]

    def test_a_hole_where_data_were(self, sample: Sample, scope: Scope) -> None:
        """Data that were lost to a hole are found, and where the hash says zeroes a hole is right without being read."""
        raw = sample.raw(sample.copy(scope), sample.c)
        before, after = Tally(), Tally()
        assert hashes(raw, sample.c.length, before) == []
        assert before.holes > before.data > 0
        scope.run(["fallocate", "--punch-hole", "--offset", f"{HEADER}", "--length", f"{CHUNK}", raw])
        assert hashes(raw, sample.c.length, after) == [Bad(0, CHUNK)]
        assert (before.data - after.data, after.holes - before.holes) == (CHUNK, CHUNK)

    @pytest.mark.parametrize(("block", "residue"), [(512, 0), (4096, 0), (4096, 512), (65536, 0), (65536, 61440)])
    @pytest.mark.parametrize("blocks", [0, 1, 7])
    def test_irregular_tails(self, scope: Scope, block: int, blocks: int, residue: int) -> None:
        """Each form of the last entries that UrBackup's bookkeeping leaves is accepted, and no other one."""
        path = scope.path() / "volume.raw"
        sent = random.Random(block).randbytes(blocks * block)
        path.write_bytes(bytes(HEADER) + bytes(CHUNK) + sent + bytes(residue))
        length = CHUNK + len(sent) + residue
        empty, zero_block = sha256(b"").digest(), sha256(bytes(block)).digest()
        forms = [[ZERO_CHUNK_SHA256], [sha256(sent).digest(), empty], [sha256(sent).digest(), zero_block]]
        if residue:
            forms += [[sha256(sent + bytes(block)).digest(), empty], [sha256(sent + bytes(residue)).digest()]]
        forms += [[sha256(bytes(len(sent))).digest()], []]
        for form in forms:
            entries = path.with_suffix(".hash")
            entries.write_bytes(b"".join((ZERO_CHUNK_SHA256, *form)))
            assert hashes(path, length, sidecar=entries) == []
        if not sent:
            return
        for form in forms[1:-2]:
            entries.write_bytes(b"".join((ZERO_CHUNK_SHA256, *form)))
            with flipped(path, HEADER + CHUNK + len(sent) // 2):
                assert hashes(path, length, sidecar=entries) == [Bad(CHUNK, length - CHUNK)]

    def test_an_unproven_tail_is_counted(self, scope: Scope) -> None:
        """Where the last entry is that of zeroes and there are data, they are not called wrong, and not proven either."""
        path = scope.path() / "volume.raw"
        path.write_bytes(bytes(HEADER + CHUNK) + b"x" * 4096)
        entries = path.with_suffix(".hash")
        entries.write_bytes(ZERO_CHUNK_SHA256 * 2)
        tally = Tally()
        assert hashes(path, CHUNK + 4096, tally, entries) == []
        assert tally.unproven == 4096

    def test_a_place_that_cannot_be_read(self, scope: Scope) -> None:
        """A block that BTRFS refuses to give, since its checksum is wrong, is a finding; everything else is checked."""
        mounted = scope.btrfs(256 * MIB, name="rotten")
        raw, content = mounted / "volume.raw", random.Random(7).randbytes(4 * CHUNK)
        raw.write_bytes(bytes(HEADER) + content)
        entries = [sha256(content[at : at + CHUNK]).digest() for at in range(0, len(content), CHUNK)]
        raw.with_name("volume.raw.hash").write_bytes(b"".join([*entries[:3], bytes(32)]))
        backing = next(path for path in scope.directory.glob("*rotten/rotten.img"))
        scope.run(["sync", "-f", mounted])
        place = backing.read_bytes().find(content[CHUNK : CHUNK + 4096])
        assert place > 0
        with backing.open("r+b") as file:
            file.seek(place + 100)
            file.write(b"rotten")
            os.fsync(file.fileno())
        with raw.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashes(raw, len(content))
        assert [(bad.offset, bad.length, bad.why is None) for bad in found] == [(CHUNK, CHUNK, False), (3 * CHUNK, CHUNK, True)]
        assert "cannot be read" in (found[0].why or "")

    def test_a_sample_says_what_it_left_out(self, sample: Sample, scope: Scope) -> None:
        """The holes and a part of the data are looked at; together with the rest this is all that there is."""
        _, _, whole, _ = asked(scope, sample.c.raw)
        code, _, part, _ = asked(scope, sample.c.raw, "--sample", "40%")
        assert (code, part["sample"]["share"]) == (OK, 0.4)
        assert 0 < part["data"] < whole["data"] == part["data"] + part["left_out"]
        assert part["holes"] == whole["holes"]
        said = scope.synthfs("verify", sample.c.raw, "--sample=1").stdout
        assert "NOT looked at" in said
        for text in ("0", "101%", "much"):
            assert scope.synthfs("verify", sample.c.raw, "--sample", text, check=False).returncode == NOT_UNDERSTOOD


class TestStore:
    def test_goes_on_after_a_bad_image(self, sample: Sample, scope: Scope) -> None:
        """Everything is checked, each fault told with its place, and the exit code is that of the worst."""
        root = sample.copy(scope)
        c, d = (sample.raw(root, image) for image in (sample.c, sample.d))
        place = HEADER + 5 * CHUNK + 4711
        with c.open("r+b") as file:
            file.seek(place)
            file.write(b"other bytes")
        d.with_name(f"{d.name}.hash").unlink()
        code, findings, summary, said = asked(scope, "--store", root)
        assert code == DIFFERS
        assert "verify" not in said
        assert len(said.splitlines()) == 1
        assert "Image_C" in said
        assert summary["checked"] == {"tables": 2, "image": 3}
        assert [(f["finding"], f["image"].split("/")[-1], f["offset"], f["length"]) for f in findings] == [
            ("differs", c.name, HEADER + 5 * CHUNK, CHUNK),
            ("cannot check", d.name, None, None),
        ]
        assert asked(scope, "--store", root, "--client", "p*")[0] == DIFFERS
        assert asked(scope, "--store", root, "--client", "q*")[0] == NOT_FOUND

    @pytest.mark.parametrize(
        ("spoil", "code"),
        [
            (lambda path: path.unlink(), CANNOT_CHECK),
            (lambda path: os.truncate(path, 64), CANNOT_CHECK),
            (lambda path: path.write_bytes(path.read_bytes() + b"x"), BAD_INPUT),
            (lambda path: path.write_bytes(path.read_bytes() + bytes(96)), OK),
            (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), UNREADABLE),
        ],
        ids=["none", "short", "ragged", "surplus", "link"],
    )
    def test_hash_files(self, sample: Sample, scope: Scope, spoil: Callable[[Path], object], code: int) -> None:
        """What is wrong with a `.hash` is not what is wrong with an image; surplus entries are nothing wrong."""
        raw = sample.raw(sample.copy(scope), sample.c)
        spoil(raw.with_name(f"{raw.name}.hash"))
        found, _, summary, said = asked(scope, raw, "--volume-only")
        assert (found, len(said.splitlines())) == (code, int(code != OK)), said
        assert (summary["unproven"] > 0) == (code == CANNOT_CHECK)

    def test_what_has_to_be_named(self, sample: Sample, scope: Scope) -> None:
        """Images or a store; a part of a disk only alone; a file of a mount is its image."""
        assert asked(scope)[0] == asked(scope, sample.c.raw, "--store", sample.root)[0] == NOT_UNDERSTOOD
        assert asked(scope, sample.c.raw, sample.d.raw, "--against", sample.c.raw)[0] == NOT_UNDERSTOOD
        assert asked(scope, sample.system.raw)[0] == NOT_FOUND
        assert asked(scope, sample.system.raw, "--volume-only")[0] == OK
        mounted = scope.synthfs_mount(sample.root)
        code, _, summary, _ = asked(scope, mounted / Sample.C, mounted / Sample.D)
        assert (code, summary["checked"]) == (OK, {"tables": 2, "image": 3})

    def test_what_a_person_reads(self, sample: Sample, scope: Scope) -> None:
        """One line for each thing that was checked, one for each fault, and the sums."""
        raw = sample.raw(sample.copy(scope), sample.c)
        with raw.open("r+b") as file:
            file.seek(HEADER)
            file.write(bytes(4096))
        done = scope.synthfs("verify", raw, check=False)
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["good", "good", "differs", "differs:", "good", "tables"]
        assert "512 KiB from offset 0 of the volume" in lines[3]
        assert done.stderr.count("\n") == 1
        assert done.returncode == DIFFERS


class TestAgainst:
    @pytest.fixture(scope="class")
    @staticmethod
    def copies(sample: Sample, lab: Lab) -> Iterator[dict[str, Path]]:
        """C: frozen in several ways, on a file system that shares nothing with the store."""
        with lab.scope("copies") as scope:
            out = scope.path("out")
            made = {"plain": [], "new-identity": ["--new-identity"], "volume-only": ["--volume-only"]}
            for name, options in made.items():
                scope.synthfs("materialize", sample.c.raw, "--reflink=never", "-o", out / f"{name}.vhd", *options)
            scope.run(["cp", "--sparse=always", out / "plain.vhd", out / "bare.img"])
            os.truncate(out / "bare.img", sample.disk.length)
            yield {name: out / name for name in ("plain.vhd", "new-identity.vhd", "volume-only.vhd", "bare.img")}

    @pytest.mark.parametrize(
        ("name", "options"),
        [("plain.vhd", []), ("bare.img", []), ("new-identity.vhd", ["--new-identity"]), ("volume-only.vhd", ["--volume-only"])],
    )
    def test_a_good_file(
        self, sample: Sample, scope: Scope, copies: dict[str, Path], name: str, options: list[Argument]
    ) -> None:
        """What was frozen is what it was frozen from, and not what it was not."""
        code, findings, summary, _ = asked(scope, sample.c.raw, "--against", copies[name], *options)
        assert (code, findings) == (OK, [])
        assert summary["data"] + summary["holes"] == copies[name].stat().st_size
        others = [] if options else ["--new-identity"]
        assert asked(scope, sample.c.raw, "--against", copies[name], *others)[0] == DIFFERS

    def test_every_flipped_bit_is_found_and_named(self, sample: Sample, scope: Scope, copies: dict[str, Path]) -> None:
        """A bit in any part of a file is told by the name of that part, the partition's offset included."""
        disk, size = sample.disk, sample.disk.length + FOOTER
        entries = 128 * 128
        places = {
            "boot record": (0, 512),
            "GPT header": (512, 512),
            "GPT entries": (1024, entries),
            "backup GPT entries": (disk.length - 512 - entries, entries),
            "backup GPT header": (disk.length - 512, 512),
            "footer": (disk.length, FOOTER),
            "space that belongs to no partition": (1024 + entries, disk.partition(1).start - 1024 - entries),
            **{f"partition {p.number} (": (p.start, p.length) for p in disk.partitions},
        }
        dice = random.Random(20260303)
        for name, (start, length) in places.items():
            offset = start + dice.randrange(length)
            with flipped(copies["plain.vhd"], offset, dice.randrange(8)):
                code, findings, _, said = asked(scope, sample.c.raw, "--against", copies["plain.vhd"])
            assert (code, [f["offset"] for f in findings]) == (DIFFERS, [offset]), name
            assert findings[0]["where"].startswith(name)
            assert ("into the partition" in findings[0]["text"]) == name.startswith("partition")
            if name.startswith("partition"):
                assert f" {offset - start} bytes into" in findings[0]["text"]
            assert len(said.splitlines()) == 1
        assert copies["plain.vhd"].stat().st_size == size

    def test_each_part_is_told_once(self, sample: Sample, scope: Scope, copies: dict[str, Path]) -> None:
        """The first difference of each part is told, in their order, and a wrong length is one, too."""
        spoiled = scope.path() / "disk.vhd"
        scope.run(["cp", "--sparse=always", copies["plain.vhd"], spoiled])
        c, d = sample.disk.partition(3), sample.disk.partition(4)
        with spoiled.open("r+b") as file:
            for offset in (d.start + 5 * MIB, c.start + 7, c.start + 9 * MIB, c.start + 30 * MIB):
                file.seek(offset)
                file.write(b"\xa5")
            file.truncate(sample.disk.length - MIB)
        code, findings, _, _ = asked(scope, sample.c.raw, "--against", spoiled)
        assert (code, [f["offset"] for f in findings]) == (DIFFERS, [c.start + 7, d.start + 5 * MIB, sample.disk.length - MIB])
        assert [f["where"].split(" (")[0] for f in findings] == ["partition 3", "partition 4", "length"]
        os.truncate(spoiled, sample.disk.length + MIB)
        assert asked(scope, sample.c.raw, "--against", spoiled)[1][-1]["where"] == "length"

    @pytest.mark.parametrize(("form", "structure"), [("vhd-dynamic", 1536), ("vhdx", 65536)])
    def test_other_containers(self, sample: Sample, scope: Scope, form: str, structure: int) -> None:
        """The same in containers that hold the disk in blocks of their own order, told by the partition's offset."""
        file = scope.path("out") / f"d.{form}"
        scope.synthfs("materialize", sample.c.raw, "--format", form, "--reflink=never", "-o", file)
        code, findings, summary, _ = asked(scope, sample.c.raw, "--against", file)
        assert (code, findings) == (OK, [])
        assert summary["data"] + summary["holes"] == file.stat().st_size
        c = sample.disk.partition(3)
        content, volume = file.read_bytes(), sample.disk.read(c.start, c.length)

        def alone(at: int) -> bool:
            """Whether these bytes are in C: only: the volumes hold the same files."""
            return content.count(volume[at : at + 4096]) == 1

        inside = next(at for at in range(5 * 4096, c.length, 4096) if volume[at] and volume[at + 100] and alone(at))
        place = content.index(volume[inside : inside + 4096]) + 100
        for offset in (place, structure):
            with flipped(file, offset):
                code, findings, _, _ = asked(scope, sample.c.raw, "--against", file)
            assert (code, [f["offset"] for f in findings]) == (DIFFERS, [offset])
            assert findings[0]["where"].startswith("partition 3 (") == (offset == place)
            assert (f" {inside + 100} bytes into the partition" in findings[0]["text"]) == (offset == place)

    @pytest.mark.parametrize(("form", "structure"), [("vhd-dynamic", 1000), ("vhdx", 65536)])
    def test_holes_are_not_what_they_were(self, sample: Sample, scope: Scope, form: str, structure: int) -> None:
        """A copy of the store has its own holes: files that were made before are good, and every difference is found."""
        cp: list[Argument] = ["cp", "-a", "--sparse=never", "--reflink=never"]
        filled = scope.path("filled") / sample.root.name
        scope.run([*cp, sample.root, filled])
        full, files = sample.raw(filled, sample.c), [scope.path("out") / f"{name}.{form}" for name in ("before", "after")]
        for raw, file in zip((sample.c.raw, full), files, strict=True):
            scope.synthfs("materialize", raw, "--format", form, "--reflink=never", "-o", file)
        before, after = files
        assert before.stat().st_size < after.stat().st_size
        assert asked(scope, full, "--against", before)[:2] == (OK, [])
        assert asked(scope, sample.c.raw, "--against", after)[:2] == (OK, [])
        content, c = before.read_bytes(), sample.disk.partition(3)
        boot = content.index(sample.disk.read(c.start, 512)) + 100
        for offset in (structure, boot):
            with flipped(before, offset):
                code, findings, _, _ = asked(scope, full, "--against", before)
            assert code == DIFFERS
            assert findings[0]["offset"] == offset
        table = {"vhd-dynamic": 1536, "vhdx": 3 * MIB + 5}[form]
        with flipped(before, table, bit=1):
            assert asked(scope, full, "--against", before)[0] == DIFFERS
        # In a block that is zero on the disk, and left out of the file.
        size = 2 * MIB
        empty = next(at for at in range(-(-c.start // size) * size, c.end - size, size) if not any(sample.disk.read(at, size)))
        times = full.stat()
        with flipped(full, HEADER + empty - c.start + 5000):
            os.utime(full, ns=(times.st_atime_ns, times.st_mtime_ns))
            code, findings, _, _ = asked(scope, full, "--against", before)
        assert (code, len(findings)) == (DIFFERS, 1)
        assert findings[0]["where"].startswith("partition 3 (")
        assert f"offset {empty + 5000} of the disk" in findings[0]["text"]

    def test_the_text_of_a_vmdk(self, sample: Sample, scope: Scope) -> None:
        """The small file of the pair is not taken for a disk that differs; the file with the disk in it is good."""
        file = scope.path("out") / "d.vmdk"
        scope.synthfs("materialize", sample.c.raw, "--format", "vmdk", "--reflink=never", "-o", file)
        assert file.stat().st_size < 512
        code, findings, _, said = asked(scope, sample.c.raw, "--against", file)
        assert (code, findings, len(said.splitlines())) == (CANNOT_HOLD, [], 1)
        assert "beside it" in said
        assert asked(scope, sample.c.raw, "--against", file.with_name("d-flat.vmdk"))[0] == OK

    def test_what_a_mount_serves(self, sample: Sample, scope: Scope) -> None:
        """A file of a mount is the disk of its image; another image's is not; what is no file is not looked at."""
        mounted = scope.synthfs_mount(sample.root)
        assert asked(scope, sample.c.raw, "--against", mounted / Sample.C)[0] == OK
        assert asked(scope, mounted / Sample.RENEWED, "--against", mounted / Sample.RENEWED)[0] == OK
        code, findings, _, _ = asked(scope, sample.c.raw, "--against", mounted / Sample.RENEWED)
        assert code == DIFFERS
        assert [f["where"] for f in findings][:2] == ["GPT header", "GPT entries"]
        assert asked(scope, sample.c.raw, "--against", mounted / "nothing.vhd")[0] == NOT_FOUND
        assert asked(scope, sample.c.raw, "--against", mounted)[0] == UNREADABLE


@pytest.mark.parametrize("form", [Format.VHD_DYNAMIC, Format.VHDX])
class TestOtherHoles:
    """A container's map by the table of its file, which was made when the file system had more to say, or something else."""

    def test_the_table_tells_the_layout(self, sample: Sample, form: Format) -> None:
        """Made from sparse files in units of 4096, and found again on a file system of other units that knows of no holes."""
        disk = next(disk for disk in survey(f"{sample.root}").disks if disk.image.name.endswith(sample.c.raw.name))
        sparse = {source: Allocation(4096, ((512 * KIB, 5 * MIB),)) for source in disk.sources}
        full = {source: Allocation(64 * KIB, ((0, source.size),)) for source in disk.sources}
        (made,) = container.of_disk(disk, form, "disk", sparse.get)
        extents = made.extent_map()
        with closing(Reader(extents)) as reader:

            def read(offset: int, length: int) -> bytes:
                raw = bytearray(length)
                return bytes(raw[: reader.read(offset, memoryview(raw))])

            found = container.of_table(disk, form, full.get, read)
            assert found is not None
            again, absent = found
            assert again == extents
            assert disk.length / 2 < sum(length for _, length in absent) < disk.length

    @pytest.mark.parametrize("wrong", [bytes([0, 6]), b"\xff", b"\0", b"\6\0\x30\0\0\0\0\0", b"\0\0\0\3", b""])
    def test_a_table_of_anything_is_not_believed(self, sample: Sample, form: Format, wrong: bytes) -> None:
        """Blocks out of order, twice, past the end, or in no table at all: there is no such map, or one without any block."""
        disk = next(disk for disk in survey(f"{sample.root}").disks if disk.image.name.endswith(sample.c.raw.name))
        full = {source: Allocation(4096, ((0, source.size),)) for source in disk.sources}
        found = container.of_table(disk, form, full.get, lambda offset, length: (wrong * length)[:length])
        assert found is None or found[1] == [(0, disk.length)]
        dice = random.Random(20261124)
        assert container.of_table(disk, form, full.get, lambda offset, length: dice.randbytes(length)) is None

    def test_a_mount_that_lists_other_holes_tells_the_remedy(self, sample: Sample, form: Format) -> None:
        """Listed with some holes and opened with others: an error that says what helps."""
        catalog = survey(f"{sample.root}")
        some = {source: Allocation(4096, ((0, MIB),)) for disk in catalog.disks for source in disk.sources}
        other = {source: Allocation(4096, ((0, source.size),)) for source in some}
        tree = Gardener([form], ask=some.get, at_open=other.get).grow(catalog)
        disks = [node for _, node in walk(tree.root) if isinstance(node, File) and node.disk]
        assert disks
        for file in disks:
            with pytest.raises(SourceError, match="mount again"):
                file.extent_map()


def test_nothing_is_written(sample: Sample, scope: Scope) -> None:
    """No file of the store is opened to be written, as strace sees it."""
    need.tool("strace")
    trace = scope.path() / "trace"
    argv: list[Argument] = ["strace", "-f", "-y", "-e", "trace=open,openat,creat,truncate,ftruncate,fallocate,pwrite64"]
    scope.run([*argv, "-o", trace, sys.executable, "-m", "synthfs", "verify", "--store", sample.root])
    seen = [line for line in trace.read_text().splitlines() if f"{sample.root}" in line]
    assert any(".hash" in line for line in seen)
    assert [line for line in seen if "O_RDONLY" not in line] == []


def _byte(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(1)[0]
