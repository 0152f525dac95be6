"""Windows' questions, asked of a real smbd: about the mount, and about materialized files on BTRFS and XFS.

Not for: what happens when the store or the mount fails under a copy (test_smb_faults), or `synthfs share` (test_share).
No Windows was asked: what is known of its questions is in facts/samba-and-windows.md.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import need
import sampledisks
import smbd
from lab import Lab, Scope
from makedisk import OriginalDisk
from makestore import Store
from onmount import FOOTER, Sample, ask
from smbd import OUTSIDER, Share
from smbwindows import (
    ARCHIVE,
    FORBIDDEN,
    NORMAL,
    RH,
    SMB_STATUS_ACCESS_DENIED,
    SMB_STATUS_OBJECT_NAME_NOT_FOUND,
    WRITES,
    Client,
    Failure,
    StatusFailure,
)

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Served:
    """A disk that a share offers, and the disk that it has to be."""

    share: Share
    path: str
    local: Path
    disk: OriginalDisk

    @property
    def length(self) -> int:
        return self.disk.length + FOOTER


def serve(scope: Scope, root: Path, *options: str) -> tuple[Share, Path]:
    """Mount a store for the share's group and share it, as the documentation says; the share and the mount."""
    parent = scope.path("share")
    (parent / "disks").mkdir()
    target = scope.synthfs_mount(root, "--allow-other", "--group", smbd.GROUP, *options, target=parent / "disks")
    return smbd.start(scope, smbd.stanza(scope, target)), target


def materialized(scope: Scope, store: Path, sample: Sample) -> Served:
    """The same disk, frozen into a file that shares its data with the backup, and shared from where it lies."""
    directory = store / "frozen"
    directory.mkdir()
    scope.synthfs("materialize", sample.c.raw, "-o", directory)
    (file,) = directory.glob("*.vhd")
    file.chmod(0o644)
    return Served(smbd.start(scope, smbd.plain_share(directory)), file.name, file, sample.disk)


@pytest.fixture(scope="module", params=["mount", "btrfs", "xfs"])
def served(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Served]:
    """One disk behind a share: from the mount, or as a materialized file on a file system that shares blocks."""
    need.fuse()
    with lab.scope(f"smb-{request.param}") as scope:
        match request.param:
            case "mount":
                sample = Sample.make(scope)
                share, target = serve(scope, sample.root)
                yield Served(share, f"disks/{Sample.C}", target / Sample.C, sample.disk)
            case "btrfs":
                place = scope.btrfs()
                yield materialized(scope, place, Sample.make(scope, place))
            case _:
                place = scope.xfs()
                yield materialized(scope, place, Sample.make(scope, place))


def is_mount(served: Served) -> bool:
    return served.path.startswith("disks/")


def local_stat(served: Served, field: str) -> int:
    """What the kernel says of the file here, which is what Samba has to pass on."""
    return int(ask(served.share.scope, f"answer(os.stat(arguments[0]).st_{field})", served.local))


def expected(served: Served, offset: int, length: int, footer: bytes) -> bytes:
    """What has to be read: the original disk, then the footer, then nothing."""
    behind = offset - served.disk.length
    disk = served.disk.read(offset, max(0, min(length, -behind)))
    return disk + footer[max(0, behind) : max(0, behind + length)]


def check_footer(footer: bytes, length: int) -> None:
    """A VHD footer as Microsoft's specification 1.0 has it, of a fixed disk of this length."""
    cookie, features, version = struct.unpack_from(">8sII", footer)
    original, current, kind, checksum = struct.unpack_from(">QQ4xII", footer, 40)
    assert (cookie, features & 2, version, kind) == (b"conectix", 2, 0x10000, 2)
    assert (original, current) == (length, length)
    assert checksum == ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF


class TestBytes:
    def test_download(self, served: Served, scope: Scope) -> None:
        """smbclient's copy has the SHA-256 of the original disk, a footer of 512 bytes behind it, and qemu reads it alike."""
        need.tool("qemu-img")
        file = served.share.get(served.path)
        with file.open("rb") as copy, served.disk.path.open("rb") as original:
            wanted = hashlib.file_digest(original, "sha256").hexdigest()
            disk = copy.read(served.disk.length)
            assert hashlib.sha256(disk).hexdigest() == wanted
            check_footer(copy.read(), served.disk.length)
        scope.run(["qemu-img", "compare", "-f", "vpc", "-F", "raw", file, served.disk.path])

    def test_reads_as_windows_does(self, served: Served) -> None:
        """Unbuffered, signed reads of 512 bytes to 1 MiB, at sectors and at odd places, are right to the last byte."""
        with Client(served.share) as client, client.opened(served.path) as file:
            assert client.signing_required
            assert file.length == served.length
            footer = file.read(served.disk.length, FOOTER)
            check_footer(footer, served.disk.length)
            edges = [one for part in served.disk.partitions for one in (part.start, part.end)]
            places = (0, 512, 1536, 4096, 65536, MIB - 512, 12_345, 77 * MIB + 1, *edges, served.disk.length, served.length)
            wrong = []
            for size in (512, 1024, 4096, 4097, 65536, 65537, MIB - 1, MIB):
                for place in places:
                    offset = max(0, min(place, served.length - size))
                    for start in (offset, max(0, offset - size // 2)):
                        if file.read(start, size) != expected(served, start, size, footer):
                            wrong.append((start, size))
            assert wrong == []

    def test_last_sector(self, served: Served) -> None:
        """The footer can be read by itself and with what is before it; behind it there is nothing."""
        with Client(served.share) as client, client.opened(served.path) as file:
            check_footer(file.read(served.length - 512, 512), served.disk.length)
            before = served.disk.read(served.disk.length - 512, 512)
            assert file.read(served.length - 1024, 1024)[:512] == before
            with pytest.raises(Failure, match="END_OF_FILE"):
                file.read(served.length, 512)


class TestQuestions:
    def test_attributes(self, served: Served) -> None:
        """Every way to ask gives NORMAL or ARCHIVE, and never SPARSE, COMPRESSED or ENCRYPTED, which are not attached."""
        with Client(served.share) as client, client.opened(served.path) as file:
            answers = {file.attributes, file.basic_attributes(), file.network_open()[2]}
            print(f"attributes {answers}, allocated {file.allocated} of {file.length}")
            assert answers <= {NORMAL, ARCHIVE}
            assert [name for name, bit in FORBIDDEN.items() for answer in answers if answer & bit] == []

    def test_allocation_size(self, served: Served) -> None:
        """The allocation size is what the kernel counts; of the mount's files nothing seems to be missing."""
        with Client(served.share) as client, client.opened(served.path) as file:
            blocks = local_stat(served, "blocks")
            assert file.allocated == blocks * 512
            assert file.network_open()[:2] == file.standard() == (file.allocated, served.length)
            if is_mount(served):
                assert served.length <= file.allocated < served.length + MIB

    def test_allocated_ranges(self, served: Served) -> None:
        """Asked for allocated ranges, the server names the whole file as one."""
        with Client(served.share) as client, client.opened(served.path) as file:
            assert file.allocated_ranges() == [(0, served.length)]

    def test_identity(self, served: Served) -> None:
        """The file's id follows from its inode, and is the same however one asks; sectors are of 512 bytes.

        On another device than the share's directory, as the mount is, Samba makes the id of the low 32 bits of inode and
        device (vfs_default.c, vfswrap_fs_file_id).
        """
        with Client(served.share) as client, client.opened(served.path) as file:
            inode = local_stat(served, "ino")
            wanted = inode & 0xFFFFFFFF | local_stat(served, "dev") << 32 if is_mount(served) else inode
            assert file.internal_id() == file.disk_id == wanted
            assert set(file.sector_sizes()) == {512}

    def test_other_case(self, served: Served) -> None:
        """A path in another case is found, and one that is not there is not."""
        with Client(served.share) as client:
            for path in (served.path.upper(), served.path.lower(), served.path.swapcase()):
                with client.opened(path) as file:
                    assert file.read(0, 512) == served.disk.read(0, 512)
            with pytest.raises(StatusFailure) as absent:
                client.open(served.path.replace("260301", "260302"))
            assert absent.value.status == SMB_STATUS_OBJECT_NAME_NOT_FOUND

    def test_two_openers(self, served: Served) -> None:
        """Two computers open the disk for reading, with share mode read and leases, and both read it."""
        one, two = Client(served.share), Client(served.share)
        with one, two, one.opened(served.path) as first, two.opened(served.path) as second:
            assert (first.leased, second.leased) == (RH, RH)
            assert (first.durable, second.durable) == (True, True)
            for offset in (0, MIB, served.disk.length - 512):
                assert first.read(offset, 512) == second.read(offset, 512) == served.disk.read(offset, 512)

    def test_no_writing(self, served: Served, scope: Scope) -> None:
        """No open that could change anything is granted, and nothing can be made, renamed or deleted."""
        with Client(served.share) as client:
            for name, access in WRITES.items():
                with pytest.raises(StatusFailure) as refused:
                    client.open(served.path, access=access)
                assert refused.value.status == SMB_STATUS_ACCESS_DENIED, name
        (scope.path("new") / "new").write_text("x")
        upper = os.path.dirname(served.path)
        for command in ("put /etc/hostname new.txt", f'del "{served.path}"', f'rename "{served.path}" x', "mkdir x"):
            done = served.share.smbclient(f'cd "{upper}"; {command}' if command.startswith("put") else command, check=False)
            assert "NT_STATUS" in done.stdout + done.stderr, command
        with Client(served.share) as client, client.opened(served.path) as file:
            assert file.length == served.length

    def test_cut_connection(self, served: Served) -> None:
        """A durable handle survives a cut connection: the client comes back with it and reads on."""
        client = Client(served.share)
        file = client.open(served.path)
        assert file.durable
        assert file.read(0, MIB) == served.disk.read(0, MIB)
        client.cut()
        with Client(served.share, guid=client.guid) as again:
            back = again.open(served.path, again=file)
            # Persistent and volatile part: the first is the handle's, the second the connection's.
            assert back.handle.file_id[:8] == file.handle.file_id[:8]
            assert back.read(58 * MIB, MIB) == served.disk.read(58 * MIB, MIB)
            check_footer(back.read(served.disk.length, FOOTER), served.disk.length)
            back.close()


@pytest.fixture(scope="module")
def share(lab: Lab) -> Iterator[Served]:
    need.fuse()
    with lab.scope("smb-access") as scope:
        sample = Sample.make(scope)
        share, target = serve(scope, sample.root)
        yield Served(share, f"disks/{Sample.C}", target / Sample.C, sample.disk)


class TestAccess:
    """Who is neither the user nor in the group gets nothing."""

    @pytest.mark.parametrize(("user", "password"), [("", ""), (OUTSIDER, smbd.PASSWORD), (smbd.USER, "wrong"), ("nobody", "")])
    def test_refused(self, share: Served, user: str, password: str) -> None:
        """A guest, a user outside `valid users`, a wrong password: not even a list of names."""
        for command in ("ls", "ls disks/*", f'get "{share.path}" /dev/null'):
            done = share.share.smbclient(command, user=user, password=password, check=False)
            assert done.returncode != 0
            assert "NT_STATUS_ACCESS_DENIED" in done.stdout + done.stderr or "LOGON_FAILURE" in done.stdout + done.stderr
            assert "pc" not in done.stdout.split()

    def test_admitted(self, share: Served) -> None:
        """The same list is given to the user of the group: the refusals above are not for want of a share."""
        assert "pc" in share.share.smbclient("ls disks/*").stdout.split()

    def test_no_way_round_by_force_group(self, share: Served) -> None:
        """On the machine itself, the user outside the group cannot even list the mount; the user of the group reads it."""
        scope = share.share.scope
        assert scope.run(["ls", share.local.parents[1]], user=OUTSIDER, check=False).returncode != 0
        assert scope.run(["ls", share.local.parents[1]], check=False).returncode == 0


def test_end_of_a_huge_disk(scope: Scope) -> None:
    """Of a sparse disk of 400 GiB the tables and the data at its end, and the footer, are right over SMB."""
    disk = sampledisks.large_disk(scope.path("original") / "huge.img", length=400 * GIB, data=4 * MIB)
    store = Store(scope.path("store") / "urbackup")
    store.client("pc").backup(disk, 1, without=(".bitmap", ".cbitmap"))
    share, _ = serve(scope, store.root)
    (volume,) = disk.partitions
    with Client(share) as client, client.opened(f"disks/{Sample.C}") as file:
        assert file.length == disk.length + FOOTER
        assert file.attributes in (NORMAL, ARCHIVE)
        assert file.allocated >= disk.length
        check_footer(file.read(disk.length, FOOTER), disk.length)
        data = [volume.start + offset for offset, _ in volume.data]
        assert max(data) > 300 * GIB
        ends = [disk.length - MIB, disk.length - 33 * 512, disk.length - 34 * 512, volume.end - 512, volume.end - MIB]
        footer = file.read(disk.length, FOOTER)
        wrong = [at for at in (0, *data, *ends) if file.read(at, 4096) != (disk.read(at, 4096) + footer)[:4096]]
        assert wrong == []
        assert any(file.read(at, 4096) != bytes(4096) for at in data)
