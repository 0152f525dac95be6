"""What `synthfs show` draws and says: partitions to scale, what is in them, and where it comes from.

Expected values: the original disk, SEEK_DATA of the kernel on its image (through `sparse`), the table as sgdisk made it.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

import sampledisks
import sparse
from lab import Lab, Scope
from makedisk import BASIC_DATA, MIB, Partition, make_disk
from makeimage import HEADER
from makestore import Image, Store
from onmount import Sample
from synthfs.cli.picture import ASCII, UNICODE, Cell, Glyphs, draw, left_out


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    with lab.scope("show") as scope:
        yield Sample.make(scope)


def shown(scope: Scope, raw: Path, columns: int, **env: str) -> str:
    return scope.synthfs("show", raw, env={"COLUMNS": f"{columns}", **env}).stdout


def bar(text: str) -> list[str]:
    """The five lines of the picture."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(("┌", "+")))
    return lines[first : first + 5]


def data(image: Image) -> list[tuple[int, int]]:
    with image.raw.open("rb") as file:
        return [(at - HEADER, length) for at, length in sparse.data(file, HEADER, image.length)]


class TestBar:
    """The picture alone, of made-up partitions."""

    @pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
    @pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
    @pytest.mark.parametrize("lengths", [(1,), (10**12, 1, 1), (5, 0, 5), tuple(range(1, 129)), (7,) * 300])
    def test_fits(self, lengths: tuple[int, ...], width: int, glyphs: Glyphs) -> None:
        """However many partitions there are, no line is longer than the terminal, all are equally long, walls stand in line."""
        cells = [Cell(length, f"{number} name", "1 MiB", [(0, length)]) for number, length in enumerate(lengths, 1)]
        lines = draw(cells, width, glyphs).plain.splitlines()
        assert {len(line) for line in lines} == {len(lines[0])}
        assert 0.8 * width - 4 <= len(lines[0]) <= width
        drawn = lines[1].count(glyphs.wall) - 1
        assert drawn + left_out(cells, width) == len(cells)
        walls = {i for i, c in enumerate(lines[3]) if c == glyphs.wall}
        assert all(line[i] == glyphs.wall for line in lines[1:4] for i in walls)
        assert [i for i, c in enumerate(lines[0]) if c != glyphs.line] == sorted(walls)

    def test_is_to_scale(self) -> None:
        """A partition of twice the length is twice as wide, give or take what a name needs."""
        cells = [Cell(200, "1"), Cell(400, "2"), Cell(100, "3")]
        first, second, third = (len(cell) for cell in draw(cells, 120, UNICODE).plain.splitlines()[1][1:-1].split("│"))
        assert abs(second - 2 * first) <= 6
        assert abs(first - 2 * third) <= 6
        assert first + second + third + 4 in range(115, 121)

    @pytest.mark.parametrize(
        ("ranges", "filled"),
        [
            ([], "░░░░░░░░░░"),
            ([(0, 1000)], "██████████"),
            ([(0, 100), (900, 100)], "█░░░░░░░░█"),
            ([(0, 1)], "▒░░░░░░░░░"),
            ([(150, 100), (410, 30), (450, 40)], "░▓▓░▓░░░░░"),
            ([(n, 1) for n in range(0, 1000, 10)], "▒▒▒▒▒▒▒▒▒▒"),
            ([(999, 1)], "░░░░░░░░░▒"),
        ],
    )
    def test_data_lie_where_they_are_drawn(self, ranges: list[tuple[int, int]], filled: str) -> None:
        """Ten columns of a hundred bytes each: any data is seen, and only a column full of them is full."""
        assert draw([Cell(1000, "1", "", ranges)], 12, UNICODE).plain.splitlines()[3] == f"│{filled}│"

    def test_what_is_not_imaged_and_what_is_no_partition(self) -> None:
        lines = draw([Cell(50, "1", "", []), Cell(50, ""), Cell(50, "2")], 40, UNICODE).plain.splitlines()
        imaged, gap, zero = lines[3][1:-1].split("│")
        assert (set(imaged), set(gap), set(zero)) == ({"░"}, {" "}, {"·"})

    def test_names_do_no_harm(self) -> None:
        """Control characters of a name do not reach the terminal, and a long one is cut."""
        lines = draw([Cell(50, "1 \x1b[31m" + "x" * 100, "\n")], 30, UNICODE).plain.splitlines()
        assert len(lines) == 5
        assert "\x1b" not in "".join(lines)
        assert lines[1].endswith("…│")


class TestVerb:
    @pytest.mark.parametrize("columns", [20, 40, 80, 120])
    def test_fits_into_the_terminal(self, sample: Sample, scope: Scope, columns: int) -> None:
        """No line of the picture is too long, and every partition is in it and below it."""
        text = shown(scope, sample.c.raw, columns)
        assert max(len(line) for line in bar(text)) <= columns
        for partition in sample.disk.partitions:
            assert re.search(rf"^ *{partition.number} \S", text, re.MULTILINE), text
        table = text[text.index(bar(text)[4]) :].partition("\nvhd:")[0]
        assert max(len(line) for line in table.splitlines()) <= columns

    def test_has_no_colours_in_a_pipe(self, sample: Sample, scope: Scope) -> None:
        """Nor with NO_COLOR on a terminal; there it has them otherwise."""
        assert "\x1b" not in shown(scope, sample.c.raw, 80)
        forced = shown(scope, sample.c.raw, 80, FORCE_COLOR="1", TERM="xterm-256color")
        assert re.search(r"\x1b\[[0-9;]*3[1-6]m", forced)
        without = shown(scope, sample.c.raw, 80, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", without)
        assert Text.from_ansi(forced).plain.split() == Text.from_ansi(without).plain.split()

    def test_speaks_ascii_where_it_has_to(self, sample: Sample, scope: Scope) -> None:
        text = shown(scope, sample.c.raw, 80, PYTHONIOENCODING="ascii")
        assert bar(text)[0].startswith("+--")
        assert text.isascii()

    def test_facts(self, sample: Sample, scope: Scope) -> None:
        """JSON has what the picture shows: data and holes by the kernel's word, images, dates, tables."""
        facts = json.loads(scope.synthfs("show", "--json", sample.c.raw).stdout)
        images = {1: sample.system, 3: sample.c, 4: sample.d}
        for found in facts["partitions"]:
            partition = sample.disk.partition(found["number"])
            assert (found["start"], found["length"]) == (partition.start, partition.length)
            if image := images.get(partition.number):
                used = sum(length for _, length in data(image))
                assert (found["data"], found["holes"]) == (used, image.length - used)
                assert used > 0
                assert (found["stamp"], found["letter"]) == (image.stamp, image.letter.rstrip(":"))
                assert found["synthesized"] == (512 if partition.fs == "ntfs" else 0)
            else:
                assert found["content"] == "zero"
                assert "data" not in found
        length = sample.disk.length
        tables = {(one["name"], one["offset"], one["length"]) for one in facts["tables"]}
        assert tables == {
            ("boot record", 0, 512),
            ("GPT header", 512, 512),
            ("GPT entries", 1024, 16384),
            ("backup GPT entries", length - 512 - 16384, 16384),
            ("backup GPT header", length - 512, 512),
        }

    def test_words(self, sample: Sample, scope: Scope) -> None:
        """A person reads when each image was taken, what is not imaged, and what is synthesized."""
        text = " ".join(shown(scope, sample.c.raw, 200).split())
        assert "pc · Image_C_260301-0201 · 2026-03-01 02:01" in text
        assert "Image_D_260301-0203, 2026-03-01 02:03:" in text
        assert "zero: not imaged" in text
        assert "boot record, GPT, backup GPT · 33.5 KiB synthesized, after Image_C_260301-0201.raw.mbr" in text

    def test_data_of_a_real_disk(self, scope: Scope) -> None:
        """Random data in the middle of a volume are drawn in the middle of its cell."""
        c = Partition(1, MIB, 200 * MIB, BASIC_DATA, "C", fs="ntfs", data=((150 * MIB, 20 * MIB),))
        disk = make_disk(scope.path() / "original.img", c, length=202 * MIB)
        image = Store(scope.path("store")).client("pc").backup(disk, 1)
        cell = max(bar(shown(scope, image.raw, 100))[3][1:].split("│"), key=len)
        middle = cell[int(0.76 * len(cell)) : int(0.84 * len(cell))]
        assert set(middle) == {"█"}
        assert "█" not in cell[int(0.6 * len(cell)) : int(0.74 * len(cell))] + cell[int(0.87 * len(cell)) :]

    def test_a_disk_without_an_mbr_file(self, scope: Scope) -> None:
        """Tables that no disk ever had are called so."""
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        image = Store(scope.path("store")).client("pc").backup(disk, 1, without=(".mbr",))
        text = shown(scope, image.raw, 80)
        assert "synthesized, made up" in text
        assert "warning: shown as a disk of its own" in " ".join(text.split())
        os.unlink(image.sidecar(".hash"))
        assert shown(scope, image.raw, 80) == text
