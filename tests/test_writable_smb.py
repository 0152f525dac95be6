"""Disks that are written to through a real smbd, by those whom `synthfs share --writable` names, and by nobody else.

Not for: reading (test_smb), writing without Samba (test_writable). No Windows was asked.
"""

from pathlib import Path

import pytest

import need
import smbd
from lab import Scope
from onmount import Sample
from smbd import OUTSIDER, USER
from smbwindows import GENERIC_WRITE, SMB_STATUS_ACCESS_DENIED, WRITES, Client, Failure, StatusFailure
from writer import SPOT, Writer, same


def shared(scope: Scope, writer: Writer) -> tuple[smbd.Share, Path]:
    """A writable mount, and a share of it that OUTSIDER may write to and USER only reads."""
    parent = scope.path("share")
    (parent / "disks").mkdir()
    target = writer.mount("--allow-other", "--group", smbd.GROUP, target=parent / "disks")
    return smbd.start(scope, scope.synthfs("share", target, "--writable", OUTSIDER).stdout), target


@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"])
def test_there_and_back(scope: Scope, filesystem: str) -> None:
    """A named user writes, flushes and reads back; a reader's older handle sees it; restart and discard do what they should."""
    need.fuse()
    need.root()
    writer = Writer.make(scope, filesystem)
    sums, model = writer.sums(), writer.model()
    share, target = shared(scope, writer)
    path, file = f"disks/{Sample.C}", target / Sample.C
    wanted = bytes(range(256)) * 273  # odd, and longer than a request
    with Client(share) as reader, reader.opened(path, share=0x7, lease=0) as older:
        # Without a lease: smbprotocol cannot be told that one is broken, as each is when somebody else writes.
        untouched = older.read(SPOT, 512)
        with pytest.raises(StatusFailure) as denied:
            reader.open(path, access=GENERIC_WRITE, share=0x7)
        assert denied.value.status == SMB_STATUS_ACCESS_DENIED
        with Client(share, user=OUTSIDER) as client, client.opened(path, access=WRITES["read and write"], share=0x7) as handle:
            handle.write(SPOT, wanted)
            handle.flush()
            with pytest.raises(Failure):
                handle.write(handle.length, b"more")
            assert handle.read(SPOT, len(wanted)) == wanted
            assert older.read(SPOT, len(wanted)) == wanted
        inode = older.internal_id()
    with model.open("r+b") as copy:
        copy.seek(SPOT)
        copy.write(wanted)
    assert writer.left() == ["vhd"]
    assert same(scope, file, model)
    with Client(share) as reader, reader.opened(path) as again:
        assert again.internal_id() == inode
        assert again.read(SPOT, len(wanted)) == wanted
    writer.remount(target, "--allow-other", "--group", smbd.GROUP)
    with Client(share) as reader, reader.opened(path) as again:
        assert again.read(SPOT, len(wanted)) == wanted
    scope.synthfs("discard", file)
    with Client(share) as reader, reader.opened(path) as original:
        assert original.read(SPOT, 512) == untouched
        assert original.internal_id() != inode
    assert same(scope, file, writer.sample.disk.path)
    assert writer.sums() == sums


def test_the_share(scope: Scope) -> None:
    """The share is as `--check` wants it on a writable mount; on a read-only one there is none, and `--check` objects."""
    need.tool("testparm")
    writer = Writer.make(scope)
    parent = scope.path("share")
    (parent / "disks").mkdir()
    target = writer.mount("--allow-other", "--group", smbd.GROUP, target=parent / "disks")
    stanza = scope.synthfs("share", target, "--writable", USER, "--writable", f"@{smbd.GROUP}").stdout
    assert f"write list = {USER} @{smbd.GROUP}\n" in stanza
    configuration = smbd.configure(scope, stanza)
    assert scope.synthfs("share", target, "--check", "--config-file", configuration).stdout.startswith("ok: ")
    refused = scope.synthfs("share", target, "--writable", "a, b", check=False)
    assert (refused.returncode, "no name" in refused.stderr) == (5, True)
    scope.umount(target)
    scope.synthfs_mount(writer.sample.root, "--allow-other", "--group", smbd.GROUP, target=target)
    refused = scope.synthfs("share", target, "--writable", USER, check=False)
    assert (refused.returncode, "read-only" in refused.stderr) == (9, True)
    checked = scope.synthfs("share", target, "--check", "--config-file", configuration, check=False)
    assert (checked.returncode, "write list" in checked.stdout) == (1, True)
