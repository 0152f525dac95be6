"""`synthfs doctor`: what is well and what is not, on good and on broken set-ups, each problem with what to do.

Not for: Samba's settings one by one (test_share).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
import smbd
from lab import Lab, Scope
from onmount import Sample
from processes import Argument


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
