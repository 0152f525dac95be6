"""Where a frozen disk may go, what it may replace, and how an image is named.

Not for: what is shared and what it costs (test_materialize).
"""

import shutil
import threading
from collections.abc import Iterator

import pytest

import need
import sampledisks
from frozen import Frozen, guid, materialize
from lab import Lab, Scope
from onmount import FOOTER, read_right

BAD_NAME, EXISTS = 4, 8


@pytest.fixture(scope="module")
def small(lab: Lab) -> Iterator[Frozen]:
    with lab.scope("small") as scope:
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        yield Frozen.make(scope, scope.btrfs(), disk)


class TestTargets:
    def test_file_or_directory(self, scope: Scope, small: Frozen) -> None:
        """`-o` names a directory to put the usual name into, or the file itself."""
        out = small.out("names")
        assert materialize(scope, small.image.raw, out)["file"] == str(out / small.name)
        assert materialize(scope, small.image.raw, out / "my disk.vhd")["file"] == str(out / "my disk.vhd")
        assert sorted(path.name for path in out.iterdir()) == [small.name, "my disk.vhd"]
        assert read_right(scope, out / "my disk.vhd", small.disk)

    @pytest.mark.parametrize("name", ['a "b".vmdk', "a\nb.vmdk", "a\udcffb.vmdk"])
    def test_name_that_a_vmdk_cannot_tell(self, scope: Scope, small: Frozen, name: str) -> None:
        """Its text names the file beside it: where it cannot, neither is made."""
        out = small.mounted / "vmdk"
        out.mkdir(exist_ok=True)
        done = scope.synthfs("materialize", small.image.raw, "-o", out / name, "--format", "vmdk", check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (BAD_NAME, 1)
        assert list(out.iterdir()) == []

    def test_existing_target(self, scope: Scope, small: Frozen) -> None:
        """What is there is refused without --force, and with it replaced in one step: its name is never missing."""
        out = small.out("existing")
        target = out / small.name
        target.write_text("precious")
        done = scope.synthfs("materialize", small.image.raw, "-o", out, check=False)
        assert (done.returncode, "--force" in done.stderr, len(done.stderr.splitlines())) == (EXISTS, True, 1)
        assert target.read_text() == "precious"

        sizes: set[int] = set()
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                sizes.add(target.stat().st_size if target.exists() else -1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with target.open() as old:
            materialize(scope, small.image.raw, out, "--force")
            assert old.read() == "precious"
        stop.set()
        watcher.join()
        assert sizes <= {len("precious"), small.disk.length + FOOTER}
        assert list(out.iterdir()) == [target]
        assert read_right(scope, target, small.disk)

    def test_existing_directory_or_link(self, scope: Scope, small: Frozen) -> None:
        """A directory of the target's name, or a link that leads nowhere, is no reason for a traceback."""
        out = small.out("odd")
        (out / small.name).mkdir()
        for options in ([], ["--force"]):
            done = scope.synthfs("materialize", small.image.raw, "-o", out, *options, check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (EXISTS, 1), done.stderr
        (out / small.name).rmdir()
        (out / small.name).symlink_to("nowhere")
        assert scope.synthfs("materialize", small.image.raw, "-o", out, check=False).returncode == EXISTS
        assert [path.name for path in out.iterdir()] == [small.name]

    def test_inside_the_clients_directories(self, scope: Scope, small: Frozen) -> None:
        """Nothing is put where UrBackup's clean-up would find it, by whatever path; beside the clients is fine."""
        client = small.image.directory.parent
        link = scope.path() / "link"
        link.symlink_to(client)
        for out in (client, client / "x.vhd", link, link / "x.vhd", client.parent / "other" / ".." / "pc"):
            done = scope.synthfs("materialize", small.image.raw, "-o", out, "--force", check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (EXISTS, 1), (out, done.stderr)
        assert [path.name for path in client.iterdir()] == [small.image.directory.name]

    def test_no_such_directory(self, scope: Scope, small: Frozen) -> None:
        """A directory that is not there, or a file for one, is one line."""
        (small.mounted / "file").write_text("")
        for out in (small.mounted / "absent" / "x.vhd", small.mounted / "file" / "x.vhd"):
            done = scope.synthfs("materialize", small.image.raw, "-o", out, check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (EXISTS, 1), done.stderr


class TestImages:
    def test_path_in_a_mount(self, scope: Scope, small: Frozen) -> None:
        """IMAGE may be a file of a running mount; one of new-identity gives a disk of that other identity."""
        need.fuse()
        need.tool("sgdisk")
        target, out = scope.synthfs_mount(small.mounted / "urbackup"), small.out("mounted")
        plain, renewed = target / "pc" / small.name, target / "pc" / "new-identity" / small.name
        materialize(scope, plain, out / "plain.vhd")
        materialize(scope, renewed, out / "renewed.vhd")
        materialize(scope, small.image.raw, out / "option.vhd", "--new-identity")
        assert read_right(scope, out / "plain.vhd", small.disk)
        assert not read_right(scope, out / "renewed.vhd", small.disk)
        for mounted, frozen in ((plain, "plain"), (renewed, "renewed"), (renewed, "option")):
            assert scope.run(["cmp", mounted, out / f"{frozen}.vhd"], check=False).returncode == 0
        with (out / "renewed.vhd").open("r+b") as file:
            file.truncate(small.disk.length)
        assert "No problems found" in scope.run(["sgdisk", "-v", out / "renewed.vhd"]).stdout
        ids = [guid(scope, path) for path in (small.disk.path, out / "plain.vhd", out / "renewed.vhd")]
        assert ids[0] == small.disk.identity.upper() != ids[2]

    def test_file_that_is_gone_from_the_store(self, scope: Scope, small: Frozen) -> None:
        """A file of a mount whose backup was deleted meanwhile is one line."""
        need.fuse()
        root = scope.path("copy") / "urbackup"
        shutil.copytree(small.mounted / "urbackup", root)
        target = scope.synthfs_mount(root)
        shutil.rmtree(root / "pc" / small.image.directory.name)
        done = scope.synthfs("materialize", target / "pc" / small.name, "-o", scope.path(), check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
