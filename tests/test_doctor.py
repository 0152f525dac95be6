"""`synthfs doctor`: what is well and what is not, on good and on broken set-ups, each problem with what to do.

Not for: Samba's settings one by one (test_share).
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import need
import ordinary
import smbd
from lab import Lab, Scope
from onmount import Sample
from processes import Argument, wait_until


@pytest.fixture(scope="module")
def lasting(lab: Lab) -> Iterator[Scope]:
    need.root()
    need.fuse()
    with lab.scope("share") as scope:
        yield scope


@pytest.fixture(scope="module")
def sample(lasting: Scope) -> Sample:
    return Sample.make(lasting)


@pytest.fixture(scope="module")
def target(lasting: Scope, sample: Sample) -> Path:
    """A mount, as the documentation wants it: below a directory that is to be shared."""
    parent = lasting.path("srv")
    (parent / "disks").mkdir()
    return lasting.synthfs_mount(sample.root, "--allow-other", "--group", smbd.GROUP, target=parent / "disks")


class TestDoctor:
    def findings(self, scope: Scope, *arguments: Argument) -> tuple[int, dict[bool, list[str]]]:
        done = scope.synthfs("doctor", "--json", *arguments, check=False)
        found: dict[bool, list[str]] = {True: [], False: []}
        for finding in json.loads(done.stdout):
            found[finding["good"]].append(finding["text"])
        return done.returncode, found

    def test_good_store(self, scope: Scope) -> None:
        """On BTRFS: FUSE, disks and a real trial clone are well, nothing is left of the clone; what is not well is named."""
        place = scope.btrfs()
        sample = Sample.make(scope, place)
        before = sorted(str(path) for path in place.rglob("*"))
        _, found = self.findings(scope, sample.root, "--to", place)
        assert [text for text in found[True] if "FUSE" in text]
        assert [text for text in found[True] if text.startswith("2 disks")]
        assert [text for text in found[True] if "materialize can share" in text]
        assert [text for text in found[True] if "% full" in text]
        assert sorted(str(path) for path in place.rglob("*")) == before

    def test_no_clones(self, scope: Scope, sample: Sample) -> None:
        """Where data cannot be shared with the target's file system, that is a problem with a reason."""
        code, found = self.findings(scope, sample.root, "--to", scope.ext4())
        assert code == 1
        assert [text for text in found[False] if "materialize cannot share" in text]

    def test_no_database(self, scope: Scope, sample: Sample) -> None:
        """A store without a database is told so, and how to name it."""
        code, found = self.findings(scope, sample.root)
        assert code == 1
        assert [text for text in found[False] if "--database" in text]

    def test_empty_store(self, scope: Scope) -> None:
        """A directory without a single image is a problem."""
        code, found = self.findings(scope, scope.path("empty"))
        assert code == 1
        assert [text for text in found[False] if text.startswith("0 disks")]

    def test_full_store(self, scope: Scope) -> None:
        """Free space below UrBackup's limit, where it deletes backups at any time."""
        place = scope.ext4()
        sample = Sample.make(scope, place)
        free = os.statvfs(place)
        with (place / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, int(free.f_bavail * free.f_frsize - free.f_blocks * free.f_frsize * 0.03))
        code, found = self.findings(scope, sample.root)
        assert code == 1
        assert [text for text in found[False] if "deletes old backups" in text]

    def test_as_an_ordinary_user(self, scope: Scope, sample: Sample) -> None:
        """A user who may not read the store, nor let others in, is told of both."""
        root = sample.copy(scope)
        for image in (sample.system, sample.c, sample.d):
            sample.raw(root, image).chmod(0o600)
        done = scope.synthfs("doctor", "--json", root, user="nobody", check=False)
        bad = [finding["text"] for finding in json.loads(done.stdout) if not finding["good"]]
        assert done.returncode == 1
        assert [text for text in bad if "cannot be read" in text]
        said = scope.synthfs("list", root, user="nobody", check=False).stderr
        assert "cannot be read" in said
        configured = "user_allow_other" in Path("/etc/fuse.conf").read_text().splitlines()
        assert bool([text for text in bad if "user_allow_other" in text]) != configured

    def test_samba(self, scope: Scope, sample: Sample, target: Path) -> None:
        """While a mount runs, the settings of the machine's Samba for it are among the findings."""
        _, found = self.findings(scope, sample.root)
        assert [text for text in (*found[False], *found[True]) if str(target) in text or "testparm" in text]

    def test_store_that_is_not_there(self, scope: Scope) -> None:
        """One line and the exit code of what was not found."""
        done = scope.synthfs("doctor", scope.path() / "absent", check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


REFUSED = "#!/bin/sh\necho 'fusermount3: mount failed: Permission denied' >&2\nexit 1\n"
"""A fusermount3 that AppArmor keeps from mounting says this."""
PROFILE = """\
# mount fstype=fuse -> /not/this/**/,
profile fusermount3 /usr/bin/fusermount3 {
  mount fstype=@{fuse_types} options=(nosuid,nodev) options in (ro,rw,noatime,dirsync) -> @{HOME}/**/,
  mount fstype=@{fuse_types} options=(nosuid,nodev,ro) -> /mnt/{,**/},
  mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> @{run}/user/@{uid}/**/,
  umount /nor/that/**/,
  mount fstype=fuse.rofiles-fuse options=(nosuid,nodev,rw) {rofiles-fuse,/dev/fuse} -> /var/tmp/test-flatpak-*/**/,
  include if exists <local/fusermount3>
}
"""
"""In the words of AppArmor's own."""


class TestMounting:
    """The trial of `doctor` and `mount` come to the same, whoever asks and whatever is in the way; nothing is left mounted."""

    @pytest.mark.parametrize("user", ["root", ordinary.USER])
    def test_where_it_works(self, scope: Scope, sample: Sample, user: str) -> None:
        """For root and an ordinary user, in a temporary directory and at a place; that is empty and free afterwards."""
        root = sample.copy(scope)
        scope.run(["chmod", "-R", "o+rX", root])
        place = scope.path("place")
        shutil.chown(place, user)
        program = ordinary.synthfs(scope, user=user)
        for arguments in ([root], [root, place]):
            found = findings_of(scope, [*program, "doctor", "--json", *arguments])
            assert found[0]["good"], found[0]
            assert "FUSE works" in found[0]["text"]
        log = scope.path("log") / "mount.log"
        server = scope.start([*program, "mount", root, place], log=log)
        assert wait_until(lambda: f"at {place}." in log.read_text(), 30.0), log.read_text()
        server.terminate()
        assert server.wait(15) == 0

    @pytest.mark.parametrize("profile", ["none", "its own"])
    def test_apparmor(self, scope: Scope, sample: Sample, profile: str) -> None:
        """A refused fusermount3: one line names AppArmor's profile, and the places that it allows where it can be read."""
        refused = scope.path("refused") / "fusermount3"
        refused.write_text(REFUSED)
        refused.chmod(0o755)
        hidden = {"/usr/bin/fusermount3": refused}
        allowed = "/mnt, /media, /tmp"
        if profile != "none":
            hidden["/etc/apparmor.d"] = directory = scope.path("apparmor")
            (directory / "local").mkdir()
            (directory / "fusermount3").write_text(PROFILE)
            (directory / "local/fusermount3").write_text("mount fstype=fuse.* -> /srv/disks/{,**/},\n")
            allowed = "$HOME, /mnt, /run/user/$UID, /srv/disks only"
        program = ordinary.synthfs(scope, hidden)
        root = self.agree(scope, sample, program, "/etc/apparmor.d/local/fusermount3", allowed)
        anywhere = findings_of(scope, [*program, "doctor", "--json", root])[0]
        assert (anywhere["good"], allowed in anywhere["text"]) == (False, True)

    @pytest.mark.parametrize("missing", ["CAP_SYS_ADMIN", "setuid"])
    def test_without_the_right_to_mount(self, scope: Scope, sample: Sample, missing: str) -> None:
        """Root of a container without CAP_SYS_ADMIN, and a fusermount3 that is not setuid."""
        if missing == "setuid":
            plain = scope.path("plain") / "fusermount3"
            shutil.copyfile("/usr/bin/fusermount3", plain)
            plain.chmod(0o755)
            program = ordinary.synthfs(scope, {"/usr/bin/fusermount3": plain})
            self.agree(scope, sample, program, "Operation not permitted", "setuid")
        else:
            program = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-m", "synthfs"]
            self.agree(scope, sample, program, "Operation not permitted", "CAP_SYS_ADMIN")

    def test_place_that_mount_refuses(self, scope: Scope, sample: Sample) -> None:
        """One that is not empty, or inside of the store; what is in it stays."""
        program = [sys.executable, "-m", "synthfs"]
        full = scope.path("full")
        (full / "file").touch()
        for place, words in ((full, "is not empty"), (sample.root / "pc", "inside the store")):
            self.agree(scope, sample, program, words, at=place)
        assert (full / "file").exists()

    def agree(self, scope: Scope, sample: Sample, program: Sequence[Argument], *words: str, at: Path | None = None) -> Path:
        """`mount` and `doctor` fail with the same line, which has `words`; returns the store."""
        root = sample.copy(scope) if at is None else sample.root
        place = at or scope.path("place")
        if at is None:
            scope.run(["chmod", "-R", "o+rX", root])
            shutil.chown(place, ordinary.USER)
        done = scope.run([*program, "mount", root, place], check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (9, 1), done.stderr
        told = findings_of(scope, [*program, "doctor", "--json", root, place])[0]
        assert (told["good"], told["text"]) == (False, done.stderr.strip().removeprefix("synthfs: "))
        assert [word for word in words if word not in told["text"]] == []
        return root


def findings_of(scope: Scope, argv: Sequence[Argument]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(scope.run(argv, check=False).stdout)
    return found
