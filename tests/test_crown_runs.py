"""Proves that each disk is made of the images of its own run: C, D, C, D; after a repartition; and far apart.

Expected bytes are those of the original disk as it was at that run. Not for: single disks; see test_crown.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bytewise
import crown
import sampledisks
from lab import Lab, Scope
from makedisk import MIB, OriginalDisk, Partition, make_disk, rewrite_volume
from makestore import Client, Image, Store
from makevolume import KnownFile

WIDE = {"COLUMNS": "300"}


@pytest.fixture(scope="module")
def disk(lab: Lab) -> Iterator[OriginalDisk]:
    """C: and D: on one disk, which is not to be written."""
    with lab.scope("two-volumes") as scope:
        yield sampledisks.two_volume_disk(scope.path() / "disk.img")


@pytest.fixture
def client(scope: Scope) -> Client:
    """In a store of plain directories, where nothing but making images takes time."""
    return Store(scope.path("store") / "urbackup").client("pc")


@pytest.mark.parametrize("order", ["C first", "D first"])
def test_two_runs(scope: Scope, disk: OriginalDisk, order: str) -> None:
    """C, D, C, D an hour and a day apart: each disk, mounted or materialized, holds its own run's C and D."""
    disk = crown.copied(disk, scope)
    client = Store(scope.btrfs() / "urbackup").client("pc")
    early, late = "0201", "0259"
    times = {"C": (early, 1), "D": (late, 3)} if order == "C first" else {"D": (early, 3), "C": (late, 1)}
    runs: list[tuple[OriginalDisk, dict[str, Image]]] = []
    for day in ("260301", "260302"):
        if runs:
            disk = _another_day(disk, day)
        parents = runs[-1][1] if runs else {}
        images = {
            letter: client.backup(disk, number, letter, f"{day}-{time}", parent=parents.get(letter))
            for letter, (time, number) in times.items()
        }
        runs.append((crown.copied(disk, scope), images))
    (one, _), (two, _) = runs
    assert bytewise.differences(scope, one.path, two.path, one.length) != []
    mounted = scope.synthfs_mount(client.store.root) / "pc"
    for then, images in runs:
        for letter in times:
            file = mounted / f"{images[letter].raw.stem}.vhd"
            assert bytewise.differences(scope, file, then.path, then.length) == [], file
            if order != "C first":
                continue
            frozen = _materialized(scope, images[letter])
            assert bytewise.differences(scope, frozen, then.path, then.length) == [], frozen


@pytest.mark.parametrize("change", ["moved", "shrunk", "made anew"])
def test_repartition(scope: Scope, client: Client, disk: OriginalDisk, change: str) -> None:
    """A D: that was moved, shrunk or made anew between the runs is zero on the second disk, says a note; the first has it."""
    before = disk
    c1, d1 = client.backup(before, 1, "C"), client.backup(before, 3, "D", "260301-0231")
    c, d = before.partitions
    new_d = replace(d, fs=None)
    match change:
        case "moved":
            new_d = replace(new_d, start=d.start + MIB, length=d.length - MIB)
        case "shrunk":
            new_d = replace(new_d, length=d.length - 8 * MIB)
        case "made anew":
            new_d = replace(new_d, guid="12345678-4444-4222-8333-444455556666")
    after = make_disk(scope.path() / "disk.img", c, new_d, length=before.length, identity=before.identity)
    c2 = client.backup(after, 1, "C", "260301-0301")
    mounted = scope.synthfs_mount(client.store.root) / "pc"
    for image, expected in ((c1, before), (d1, before), (c2, after)):
        file = mounted / f"{image.raw.stem}.vhd"
        assert bytewise.differences(scope, file, expected.path, expected.length) == [], file
    facts = _show(scope, c2)
    assert [(one["number"], one["content"]) for one in facts["partitions"]] == [(1, "image"), (3, "zero")]
    assert any("partition 3" in note["text"] and "zero" in note["text"] for note in facts["notes"])
    assert [one["content"] for one in _show(scope, c1)["partitions"]] == ["image", "image"]
    assert not any("zero" in note["text"] for note in _show(scope, c1)["notes"])


def test_other_disk(scope: Scope, client: Client, disk: OriginalDisk) -> None:
    """A D: of another disk, though at the same place on it, is no part of C:'s disk."""
    c, d = disk.partitions
    d = replace(d, label="Fremd", guid=f"{disk.identity[:24]}{d.number:012}")
    identity = "00000001-2222-4222-8333-444455556666"
    other = make_disk(scope.path() / "disk.img", c, d, length=disk.length, identity=identity)
    image = client.backup(disk, 1, "C")
    client.backup(other, 3, "D", device_number=0)
    assert [part["content"] for part in _show(scope, image)["partitions"]] == ["image", "zero"]


def test_other_client(scope: Scope, client: Client, disk: OriginalDisk) -> None:
    """A D: of another machine with the same disk identity, as clones have, is no part of C:'s disk."""
    image = client.backup(disk, 1, "C")
    client.store.client("clone").backup(disk, 3, "D")
    assert [part["content"] for part in _show(scope, image)["partitions"]] == ["image", "zero"]


def test_zero_signature_groups_nothing(scope: Scope, client: Client) -> None:
    """MBR disks without a signature are not taken for one disk."""
    c = Partition(1, MIB, 24 * MIB, "7", active=True, fs="ntfs", label="Windows")
    d = Partition(2, 25 * MIB, 24 * MIB, "7", fs="ntfs", label="Daten")
    disk = make_disk(scope.path() / "disk.img", c, d, length=49 * MIB, scheme="mbr", gap=((440, bytes(4)),))
    images = [client.backup(disk, 1, "C"), client.backup(disk, 2, "D")]
    contents = [[part["content"] for part in _show(scope, image)["partitions"]] for image in images]
    assert contents == [["image", "zero"], ["zero", "image"]]


@pytest.mark.parametrize(
    ("stamp", "far"),
    [
        ("260301-0202", False),
        ("260301-0158", False),
        ("260228-0202", False),
        ("260302-0159", False),
        ("260228-0159", True),
        ("260302-0203", True),
        ("250301-0200", True),
    ],
)
def test_far_apart(scope: Scope, client: Client, disk: OriginalDisk, stamp: str, far: bool) -> None:
    """A D: of more than 24 hours before or after its C: is used, and marked in `list` and `show`; a nearer one is not."""
    c, d = client.backup(disk, 1, "C", "260301-0200"), client.backup(disk, 3, "D", stamp)
    facts = _show(scope, c)
    name = d.raw.relative_to(client.store.root)
    assert [one["image"] for one in facts["partitions"]] == [str(c.raw.relative_to(client.store.root)), str(name)]
    told = [note["text"] for note in facts["notes"] if note["warning"] and str(name) in note["text"]]
    assert (facts["mixed"], len(told)) == (far, int(far))
    listed = json.loads(scope.synthfs("list", client.store.root, "--json").stdout)
    assert [one["mixed"] for one in listed["disks"]] == [far, far]
    if far:
        assert ("older" if stamp < "260301-0200" else "newer") in told[0]
    # What a person reads.
    lines = scope.synthfs("list", client.store.root, env=WIDE).stdout.splitlines()
    (line,) = [one for one in lines if one.split()[1] == c.raw.stem]
    assert ("mixed dates" in line) == far
    assert ("warning: partition 3 is from" in scope.synthfs("show", c.raw, env=WIDE).stdout) == far


def test_nearest_in_either_direction(scope: Scope, client: Client, disk: OriginalDisk) -> None:
    """Of three D: the one nearest to C: is on its disk, be it older or newer."""
    c = client.backup(disk, 1, "C", "260301-1200")
    for stamp in ("260301-1130", "260301-1220", "260301-1300"):
        client.backup(disk, 3, "D", stamp)
    assert "Image_D_260301-1220.raw" in _show(scope, c)["partitions"][1]["image"]
    client.backup(disk, 3, "D", "260301-1145")
    assert "Image_D_260301-1145.raw" in _show(scope, c)["partitions"][1]["image"]


def test_incomplete_sibling_is_not_used(scope: Scope, client: Client, disk: OriginalDisk) -> None:
    """An aborted D:, though nearest, is on no disk."""
    c = client.backup(disk, 1, "C", "260301-1200")
    d = client.backup(disk, 3, "D", "260301-1100")
    client.backup(disk, 3, "D", "260301-1201", complete=False, parent=d)
    assert _show(scope, c)["partitions"][1]["image"] == str(d.raw.relative_to(client.store.root))


def _another_day(disk: OriginalDisk, day: str) -> OriginalDisk:
    """Both volumes change: files, labels, and what is written to a page file."""
    for number in (1, 3):
        files = (KnownFile(f"written on {day}.bin", 1_000_003, day), KnownFile("small.txt", 99, day))
        disk = rewrite_volume(disk, number, files=files, data=((30 * MIB, 3 * MIB),))
    return disk


def _materialized(scope: Scope, image: Image) -> Path:
    target = image.raw.parents[3] / f"{image.raw.stem}.vhd"
    scope.synthfs("materialize", image.raw, "-o", target)
    return target


def _show(scope: Scope, image: Image) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(scope.synthfs("show", image.raw, "--json").stdout)
    return facts


