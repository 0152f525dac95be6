"""Finding images in a real store: names, containers, seals, and everything that stands in place of a file.

Not for: judging what was found (test_complete). Source: facts/urbackup-format.md section 4.
"""

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import makestore
import need
from lab import Scope
from processes import run
from synthfs.errors import NotFoundError
from synthfs.model import ImageFacts, Seal, StoreFacts
from synthfs.urbackup import storage

HEADER = 512 * 1024
DAY = "260301-0201"


def put(
    directory: Path, letter: str = "C", stamp: str = DAY, *, suffixes: str = ".mbr .sync", size: int = HEADER + 4096
) -> Path:
    """A `.raw` and its sidecars; their bytes do not matter here."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = directory / f"Image_{letter}_{stamp}.raw"
    with raw.open("xb") as file:
        file.write(b"head")
        file.truncate(size)
    for suffix in suffixes.split():
        raw.with_name(raw.name + suffix).write_bytes(suffix.encode())
    return raw


def names(facts: StoreFacts) -> list[str]:
    return sorted(image.name for image in facts.images)


def only(facts: StoreFacts) -> ImageFacts:
    (image,) = facts.images
    return image


STRANGE = [b"tab\tname", b"new\nline", b"\x1b[31mred", b"caf\xe9", b"dot. ", b"a:b", b"\xf0\x9f\x96\xab", b"n" * 255, b'*?"<>|']


class TestNames:
    @pytest.mark.parametrize(
        "letter", ["C", "SYSVOL", "ESP", "_dev_sda5", "_mnt_data.old", "_dev_mapper_vg-root", "a_b_260228-0101"]
    )
    def test_of_volumes(self, tmp_path: Path, letter: str) -> None:
        """Any volume's name, escaped as the server does it, between stamp and stamp."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_{letter}", letter)
        image = only(storage.scan(str(tmp_path)))
        assert (image.client, image.letter, image.stamp, image.stem) == ("pc", letter, DAY, raw.stem)
        assert image.name == f"pc/{raw.parent.name}/{raw.name}"
        assert image.raw.path == str(raw)
        assert image.is_system_partition is (letter in ("SYSVOL", "ESP"))

    def test_facts_are_those_of_the_files(self, tmp_path: Path) -> None:
        """Fingerprint, sidecar, marker and the beginnings of wrapper and volume."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C")
        with raw.open("r+b") as file:
            file.seek(HEADER)
            file.write(b"NTFS here")
        there, image = raw.stat(), only(storage.scan(str(tmp_path)))
        found = (image.raw.device, image.raw.inode, image.raw.size, image.raw.mtime_ns)
        assert found == (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns)
        assert (image.mbr, image.mbr_problem, image.finished) == (b".mbr", None, True)
        assert image.head.rstrip(b"\0") == b"head"
        assert (image.boot.rstrip(b"\0"), len(image.boot)) == (b"NTFS here", 4096)

    def test_images_in_the_clients_directory(self, tmp_path: Path) -> None:
        """Old servers had no directory for each image."""
        put(tmp_path / "pc")
        image = only(storage.scan(str(tmp_path)))
        assert (image.name, image.seal, image.finished) == (f"pc/Image_C_{DAY}.raw", Seal.NONE, True)

    @pytest.mark.parametrize(("letter", "stamp"), [("C", "260228-0201"), ("D", DAY)])
    def test_a_file_of_another_stamp_or_letter_is_no_image(self, tmp_path: Path, letter: str, stamp: str) -> None:
        """While an incremental starts, its directory shows the parent's files: it is skipped, and the reason names the file."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C", letter, stamp)
        facts = storage.scan(str(tmp_path))
        assert names(facts) == []
        (skipped,) = facts.skipped
        assert (skipped.client, skipped.name) == ("pc", f"pc/{DAY}_Image_C")
        assert raw.name in skipped.reason

    def test_a_marker_of_another_stamp_does_not_count(self, tmp_path: Path) -> None:
        """The parent's `.sync` does not finish the child."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C", suffixes="")
        raw.with_name("Image_C_260228-0201.raw.sync").touch()
        assert not only(storage.scan(str(tmp_path))).finished

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        """File backups, `current`, mount points, transient names and files of other kinds are neither images nor errors."""
        client = tmp_path / "pc"
        for name in ("260301-0300", "current", ".directory_pool", f"{DAY}_Image_C_mnt", f"{DAY}_Image_D_new", f"{DAY}_Image_"):
            (client / name).mkdir(parents=True)
        (client / f"{DAY}_Image_E").touch()  # ZFS, before the dataset exists
        put(client / f"{DAY}_Image_F" / "deeper", "F")
        for name in (f"Image_C_{DAY}.vhdz", f"Image_C_{DAY}.raw.mbr", "Image_C_26030-0201.raw", f"image_C_{DAY}.raw"):
            (client / name).touch()
        (tmp_path / "a file").touch()
        facts = storage.scan(str(tmp_path))
        assert (facts.images, facts.skipped) == ((), ())

    @pytest.mark.parametrize("own", ["clients", "urbackup", "urbackup_tmp_files", "user_views"])
    def test_the_servers_own_directories_are_clients_only_by_name(self, tmp_path: Path, own: str) -> None:
        """Unless the database knows a client of that name, nothing in them is an image."""
        put(tmp_path / own / f"{DAY}_Image_C")
        put(tmp_path / "pc" / f"{DAY}_Image_C")
        assert [name.split("/")[0] for name in names(storage.scan(str(tmp_path)))] == ["pc"]
        assert [name.split("/")[0] for name in names(storage.scan(str(tmp_path), {own}))] == sorted([own, "pc"])

    @pytest.mark.parametrize("name", STRANGE)
    def test_of_any_bytes(self, tmp_path: Path, name: bytes) -> None:
        """Clients and volumes called anything that a file system takes are found, byte for byte, and can be opened."""
        client = os.fsdecode(name)
        letter = os.fsdecode(name[: 255 - len(f"Image__{DAY}.raw")])
        put(tmp_path / client / f"{DAY}_Image_{letter}", letter, suffixes="")
        image = only(storage.scan(str(tmp_path)))
        assert (image.client, image.letter) == (client, letter)
        assert os.path.getsize(image.raw.path) == image.raw.size

    def test_of_the_store(self, tmp_path: Path) -> None:
        """A root that is missing or a file is said so; one that is reached by a link is its real directory."""
        (tmp_path / "file").touch()
        for missing in ("nothing", "file"):
            with pytest.raises(NotFoundError, match=missing):
                storage.scan(str(tmp_path / missing))
        put(tmp_path / "store" / "pc")
        (tmp_path / "link").symlink_to("store")
        assert storage.scan(str(tmp_path / "link")) == storage.scan(str(tmp_path / "store"))


class TestContainers:
    def test_seals_on_btrfs(self, scope: Scope) -> None:
        """A read-only subvolume is sealed, a writable one open, a plain directory neither."""
        root = scope.btrfs()
        for letter in "CDE":
            directory = root / "pc" / f"{DAY}_Image_{letter}"
            directory.parent.mkdir(exist_ok=True)
            if letter != "E":
                run(["btrfs", "subvolume", "create", directory])
            put(directory, letter)
            if letter == "C":
                makestore.seal(directory)
        seals = {image.letter: image.seal for image in storage.scan(str(root)).images}
        assert seals == {"C": Seal.SEALED, "D": Seal.OPEN, "E": Seal.NONE}

    def test_a_linked_image_directory_is_followed(self, tmp_path: Path) -> None:
        """ZFS: the name in the client's directory is a link to the dataset; the image keeps the link's name."""
        put(tmp_path / "pool" / "dataset")
        (tmp_path / "store" / "pc").mkdir(parents=True)
        (tmp_path / "store" / "pc" / f"{DAY}_Image_C").symlink_to(tmp_path / "pool" / "dataset")
        image = only(storage.scan(str(tmp_path / "store")))
        assert image.name == f"pc/{DAY}_Image_C/Image_C_{DAY}.raw"

    def test_no_other_link_is_followed(self, tmp_path: Path) -> None:
        """Neither a client, nor an image in the client's directory, nor one in its own directory may be a link."""
        outside = put(tmp_path / "outside" / f"{DAY}_Image_C")
        store = tmp_path / "store"
        (store / "pc" / f"{DAY}_Image_C").mkdir(parents=True)
        (store / "linked").symlink_to(tmp_path / "outside")
        for link in (store / "pc" / outside.name, store / "pc" / f"{DAY}_Image_C" / outside.name):
            link.symlink_to(outside)
        facts = storage.scan(str(store))
        assert facts.images == ()
        skipped = {each.name for each in facts.skipped if "link" in each.reason}
        assert skipped >= {f"pc/{DAY}_Image_C/{outside.name}", f"pc/{outside.name}"}

    @pytest.mark.parametrize("target", ["nowhere", f"{DAY}_Image_C", "/dev/null"])
    def test_a_link_that_leads_to_no_directory_hurts_nobody(self, tmp_path: Path, target: str) -> None:
        """Dangling, to itself, or to a device: the other images are found all the same."""
        put(tmp_path / "pc" / f"{DAY}_Image_D", "D")
        (tmp_path / "pc" / f"{DAY}_Image_C").symlink_to(target)
        assert only(storage.scan(str(tmp_path))).letter == "D"


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    need.root()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: reading it never ends


def _hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(HEADER + 512))
    path.hardlink_to(other)
    path.parent.chmod(0o775)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "dangling link": lambda path: path.symlink_to("nothing"),
    "directory": os.mkdir,
    "socket": _socket,
    "device": _device,
    "hard link": _hard_link,
}


@pytest.fixture
def guarded() -> Iterator[None]:
    """Ends a test that waits for a FIFO: a failure is better than a run that hangs."""

    def late(*_: object) -> None:
        pytest.fail("the scan waits for something that never comes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("guarded")
class TestWhatStandsInPlaceOfAFile:
    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_of_an_image(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        """It is skipped with a reason, nothing waits for it, and the other images are found."""
        put(tmp_path / "pc" / f"{DAY}_Image_D", "D")
        directory = tmp_path / "pc" / f"{DAY}_Image_C"
        directory.mkdir()
        make(directory / f"Image_C_{DAY}.raw")
        facts = storage.scan(str(tmp_path))
        assert only(facts).letter == "D"
        (skipped,) = facts.skipped
        assert skipped.name.endswith(f"Image_C_{DAY}.raw")
        assert skipped.reason

    @pytest.mark.parametrize("make", [make for make in KINDS.values() if make is not _hard_link])
    def test_of_a_sidecar(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        """The image is found, without its `.mbr`, and with the reason for that."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C", suffixes=".sync")
        make(raw.with_name(raw.name + ".mbr"))
        image = only(storage.scan(str(tmp_path)))
        assert image.mbr is None
        assert image.mbr_problem

    def test_a_sidecar_too_long_is_not_read(self, tmp_path: Path) -> None:
        """One of 100 GiB (a hole) is refused by its length."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C", suffixes="")
        with raw.with_name(raw.name + ".mbr").open("xb") as file:
            file.truncate(100 << 30)
        image = only(storage.scan(str(tmp_path)))
        assert image.mbr is None
        assert "longer" in (image.mbr_problem or "")

    SCAN = """
import sys
from synthfs.urbackup import storage
facts = storage.scan(sys.argv[1])
for image in facts.images:
    print(image.letter, image.mbr_problem)
for each in facts.skipped:
    print(f"skipped {each.name}: {each.reason}")
"""

    def test_unreadable_files_as_another_user(self, scope: Scope) -> None:
        """A client, an image directory, an image, a sidecar, a link's target: each unreadable one costs only itself."""
        need.root()
        root = scope.path("store")
        for letter in "CDEF":
            put(root / "pc" / f"{DAY}_Image_{letter}", letter)
        (root / "pc" / f"{DAY}_Image_C" / f"Image_C_{DAY}.raw").chmod(0)
        (root / "pc" / f"{DAY}_Image_D" / f"Image_D_{DAY}.raw.mbr").chmod(0)
        (root / "pc" / f"{DAY}_Image_E").chmod(0)
        put(root / "closed" / f"{DAY}_Image_C")
        (root / "pc" / f"{DAY}_Image_G").symlink_to(root / "closed" / f"{DAY}_Image_C")
        (root / "closed").chmod(0)
        python, added = scope.python_for_all()
        said = scope.run([python, "-c", self.SCAN, root], env=added, user="nobody").stdout.splitlines()
        assert "F None" in said
        assert any(line.startswith("D ") and "denied" in line for line in said)
        skipped = [line.split(":")[0] for line in said if line.startswith("skipped") and "denied" in line]
        expected = {"closed", f"pc/{DAY}_Image_C/Image_C_{DAY}.raw", f"pc/{DAY}_Image_E"}
        assert {name.removeprefix("skipped ") for name in skipped} >= expected
