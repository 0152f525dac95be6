"""Files with several names: taken where nobody else can have made the name, refused with a remedy everywhere else.

Not for: what stands in place of a file otherwise (test_store). Source: link(2), acl(5), the kernel's `posix_acl_xattr.h`.
"""

import grp
import os
import pwd
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import need
from lab import Scope
from makestore import Store
from processes import run
from stock import Stock
from synthfs.model import Kind, StoreFacts
from synthfs.urbackup import storage
from test_store import DAY, only, put

NOBODY = pwd.getpwnam("nobody").pw_uid
OTHER = pwd.getpwnam("daemon").pw_uid
GROUP = grp.getgrnam("daemon").gr_gid

USER_OBJ, USER, GROUP_OBJ, MASK, OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
UNDEFINED = 0xFFFFFFFF


@pytest.fixture(autouse=True)
def as_root() -> None:
    need.root()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The newer of two copies of a store that rotate by links."""
    put(tmp_path / "daily.1" / "pc" / f"{DAY}_Image_C")
    run(["cp", "-al", tmp_path / "daily.1", tmp_path / "daily.0"])
    for directory in (tmp_path / "daily.0", *(tmp_path / "daily.0").rglob("*/")):
        directory.chmod(0o755)
    return tmp_path / "daily.0"


def directories(copy: Path) -> dict[str, Path]:
    return {"image": copy / "pc" / f"{DAY}_Image_C", "client": copy / "pc", "store": copy}


def raw_of(copy: Path) -> Path:
    return directories(copy)["image"] / f"Image_C_{DAY}.raw"


def acl(path: Path, *entries: tuple[int, int, int]) -> None:
    """Gives `path` an access control list of (kind, permissions, id)."""
    packed = b"".join(struct.pack("<HHI", *each) for each in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def names_a_user(path: Path, mask: int = 7) -> None:
    """An access control list that lets another user write, as far as the mask does; the group itself may not."""
    own = (USER_OBJ, 7, UNDEFINED), (USER, 7, OTHER), (GROUP_OBJ, 5, UNDEFINED)
    acl(path, *own, (MASK, mask, UNDEFINED), (OTHERS, 5, UNDEFINED))


def refused(facts: StoreFacts) -> str:
    """The reason for the one image that is not there."""
    assert facts.images == ()
    (skipped,) = facts.skipped
    assert skipped.kind is Kind.LINKED
    assert "hard link" in skipped.reason
    return skipped.reason


def test_copies_that_rotate_by_links_are_taken(copy: Path) -> None:
    """Both of them, with their sidecars; their owner may be any one user."""
    for root in (copy, copy.with_name("daily.1")):
        image = only(storage.scan(str(root)))
        assert (image.mbr, image.mbr_problem, image.finished) == (b".mbr", None, True)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, NOBODY, GROUP)
    assert only(storage.scan(str(copy))).mbr == b".mbr"
    os.chown(copy, 0, 0)
    assert only(storage.scan(str(copy))).mbr == b".mbr"


WRITERS: dict[str, Callable[[Path], None]] = {
    "the group": lambda directory: directory.chmod(0o775),
    "the group alone, with a set-group-id bit": lambda directory: directory.chmod(0o2770),
    "others": lambda directory: directory.chmod(0o757),
    "all, with a sticky bit": lambda directory: directory.chmod(0o1777),
    "a user whom a list names": names_a_user,
}


@pytest.mark.parametrize("who", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("where", ["image", "client", "store"])
def test_where_others_can_write_they_are_refused(copy: Path, where: str, who: Callable[[Path], None]) -> None:
    """From the image's directory up to the store itself. The reason names the directory; its remedy, run as it is, helps."""
    before = storage.scan(str(copy))
    directory = directories(copy)[where]
    who(directory)
    reason = refused(storage.scan(str(copy), known=before.known))
    assert f"{directory} lets " in reason
    run(["sh", "-c", reason.split("`")[1]])
    assert only(storage.scan(str(copy))).mbr == b".mbr"


@pytest.mark.parametrize("where", ["image", "client", "store"])
def test_in_the_directory_of_another_user_they_are_refused(copy: Path, where: str) -> None:
    """He could have linked a file of root's; the remedy helps."""
    directory = directories(copy)[where]
    os.chown(directory, OTHER, 0)
    reason = refused(storage.scan(str(copy)))
    assert f"{directory} belongs to user {OTHER}" in reason
    run(["sh", "-c", reason.split("`")[1]])
    assert only(storage.scan(str(copy)))


def test_a_list_whose_mask_forbids_it_lets_nobody_write(copy: Path) -> None:
    """It is the mask that counts, and not what it masks."""
    for directory in directories(copy).values():
        names_a_user(directory, mask=5)
    assert only(storage.scan(str(copy)))


def test_owner_and_mode_of_the_file_are_no_evidence(copy: Path) -> None:
    """Who may write to the folder of A shows the image of B there: B's file is as closed as ever. It is refused."""
    victim = put(copy / "b" / f"{DAY}_Image_D", "D", size=1 << 20)
    victim.chmod(0o600)
    directory = directories(copy)["image"]
    os.chown(directory, OTHER, 0)
    raw_of(copy).unlink()
    raw_of(copy).hardlink_to(victim)
    facts = storage.scan(str(copy))
    assert [image.client for image in facts.images] == ["b"]
    assert [(skipped.client, skipped.kind) for skipped in facts.skipped] == [("pc", Kind.LINKED)]


def test_what_is_above_the_store_is_nobodys_business(copy: Path) -> None:
    """Who can write there can rename the store, and put his own in its place: but own all of it he then must."""
    copy.parent.chmod(0o777)
    assert only(storage.scan(str(copy)))


def test_a_file_with_one_name_is_taken_as_ever(tmp_path: Path) -> None:
    """UrBackup's own store may be writable for its group."""
    put(tmp_path / "pc" / f"{DAY}_Image_C").parent.chmod(0o770)
    assert only(storage.scan(str(tmp_path))).mbr == b".mbr"


class TestLinkedDirectories:
    """As with ZFS, an image's directory may be a symbolic link: then it counts where that leads, and where the link is."""

    @pytest.fixture
    def dataset(self, copy: Path) -> Path:
        """Where the directory is in truth; the store has a link to it."""
        real = copy.with_name("tank") / "images" / "dataset"
        real.parent.mkdir(parents=True, mode=0o755)
        directories(copy)["image"].rename(real)
        directories(copy)["image"].symlink_to(real)
        return real

    def test_are_taken(self, copy: Path, dataset: Path) -> None:
        """Where nobody else can write; /tmp with its sticky bit, above it all, does not matter."""
        dataset.parents[1].chmod(0o1777)
        assert only(storage.scan(str(copy)))

    @pytest.mark.parametrize("above", [0, 1, 2])
    def test_are_refused_where_others_can_write(self, copy: Path, dataset: Path, above: int) -> None:
        """To the directory itself, or to one above it."""
        (dataset, *dataset.parents)[above].chmod(0o775)
        reason = refused(storage.scan(str(copy)))
        assert f"{(dataset, *dataset.parents)[above]} lets " in reason
        run(["sh", "-c", reason.split("`")[1]])
        assert only(storage.scan(str(copy)))

    def test_are_refused_where_a_sticky_directory_holds_the_file(self, copy: Path, dataset: Path) -> None:
        """There anybody can make a name."""
        dataset.chmod(0o1777)
        refused(storage.scan(str(copy)))

    @pytest.mark.usefixtures("dataset")
    def test_are_refused_where_the_link_can_be_replaced(self, copy: Path) -> None:
        """In the client's folder."""
        (copy / "pc").chmod(0o775)
        refused(storage.scan(str(copy)))


class TestSidecars:
    def test_a_linked_mbr_is_not_read(self, tmp_path: Path) -> None:
        """Where others can write; the image is there without it, with the reason. Otherwise it is, also on a second look."""
        raw = put(tmp_path / "pc" / f"{DAY}_Image_C")
        (tmp_path / "secret").hardlink_to(raw.with_name(f"{raw.name}.mbr"))
        tmp_path.chmod(0o755)
        facts = storage.scan(str(tmp_path))
        assert only(facts).mbr == b".mbr"
        raw.parent.chmod(0o775)
        image = only(storage.scan(str(tmp_path), known=facts.known))
        assert image.mbr is None
        assert "hard link" in (image.mbr_problem or "")

    def test_a_linked_hash_proves_nothing(self, scope: Scope) -> None:
        """Where others can write, `verify` says that it cannot check the image, and why."""
        image = Stock.make(scope).backup(Store(scope.path("store") / "urbackup"))
        os.link(image.sidecar(".hash"), scope.path("elsewhere") / "hash")
        assert scope.synthfs("verify", image.raw).returncode == 0
        image.directory.chmod(0o775)
        done = scope.synthfs("verify", image.raw, check=False)
        assert done.returncode == 12
        assert "hard link" in done.stdout + done.stderr


def test_list_and_doctor_say_so(scope: Scope) -> None:
    """In a store of which all is refused, one line has the number, an example, and the remedy; after that, it is offered."""
    stock = Stock.make(scope)
    root = stock.store(scope).root
    root.chmod(0o755)
    other = root.with_name("daily.0")
    run(["cp", "-al", root, other])
    (other / "pc").chmod(0o775)
    listed = scope.synthfs("list", other)
    assert "1 might not be what they are called" in listed.stderr
    assert "-exec chmod go-w" in listed.stderr
    assert "1 might not be what they are called" in scope.synthfs("doctor", other, check=False).stdout
    run(["sh", "-c", listed.stderr.split("`")[1]])
    assert "Image_C_260301-0201" in scope.synthfs("list", other).stdout
