"""`mount.synthfs`, as mount(8) and /etc/fstab call it, and the settings file.

Not for: how a mount lives and ends (test_mount).
"""

import grp
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import Lab, Scope
from ledger import mounts_below
from onmount import Sample, ask


@pytest.fixture(scope="module")
def lasting(lab: Lab) -> Iterator[Scope]:
    need.root()
    need.fuse()
    with lab.scope("share") as scope:
        yield scope


@pytest.fixture(scope="module")
def sample(lasting: Scope) -> Sample:
    return Sample.make(lasting)


class TestFstab:
    @pytest.fixture
    def helper(self, scope: Scope) -> Path:
        """mount.synthfs of this checkout."""
        path = scope.path("sbin") / "mount.synthfs"
        path.write_text(f"#!{sys.executable}\nimport sys\nfrom synthfs.cli.fstab import main\nmain()\n")
        path.chmod(0o755)
        return path

    def test_options(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """What mount(8) passes is understood: lists, flags, and options for others, which are ignored."""
        target = scope.path("served")
        options = "ro,nofail,_netdev,x-systemd.automount,noauto,rw,allow_other,group=backup,mode=0444,refresh=300"
        try:
            scope.run([helper, sample.root, target, "-s", "-n", "-v", "-o", options.replace("rw,", ""), "-o", "defaults"])
            assert [mount.fstype for mount in mounts_below(target)] == ["fuse.synthfs"]
            found = ask(scope, "s = os.stat(arguments[0]); answer([s.st_mode & 0o777, s.st_gid])", target / Sample.C)
            assert found == [0o444, grp.getgrnam("backup").gr_gid]
        finally:
            scope.umount(target)

    def test_writable(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """`writable` is what `--writable` is: here its refusal, since the directory shares nothing with the store."""
        target, scratch = scope.path("served"), scope.path("scratch")
        done = scope.run([helper, sample.root, target, "-o", f"writable={scratch},min_free=5%,discard-after=30"], check=False)
        assert (done.returncode, "file system of the backups" in done.stderr) == (7, True)
        assert mounts_below(target) == []

    def test_pretend(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """-f does everything but mount."""
        target = scope.path("served")
        scope.run([helper, sample.root, target, "-f"])
        assert mounts_below(target) == []

    @pytest.mark.parametrize(
        "words", [["-o", "frobnicate"], ["-o", "group"], ["-q"], ["third"], ["-o", "mode=rw"], ["-o", "group=no-such-group"]]
    )
    def test_not_understood(self, scope: Scope, sample: Sample, helper: Path, words: list[str]) -> None:
        """An option that is not known, or has no sense, is one line and an error, and nothing is mounted."""
        target = scope.path("served")
        done = scope.run([helper, sample.root, target, *words], check=False)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert mounts_below(target) == []

    def test_twice(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """The second of two equal calls finds the mount there and is content; another store is refused."""
        target, other = scope.path("served"), sample.copy(scope)
        try:
            for _ in range(2):
                scope.run([helper, sample.root, target])
            assert len(mounts_below(target)) == 1
            done = scope.run([helper, other, target], check=False)
            assert done.returncode != 0
            assert len(mounts_below(target)) == 1
        finally:
            scope.umount(target)

    def test_dead_mount(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """`mount -a` after a crash replaces the dead mount."""
        target = scope.synthfs_mount(sample.root)
        scope.server(target).kill()
        scope.server(target).wait(10)
        try:
            scope.run([helper, sample.root, target])
            assert len(mounts_below(target)) == 1
            assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) is None
        finally:
            scope.umount(target)

    def test_mount_all(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """Through mount(8) and an fstab, in a mount namespace whose /sbin has the helper: `mount -a` twice is one mount."""
        need.tool("unshare")
        target = scope.path("served")
        fstab = scope.path("etc") / "fstab"
        fstab.write_text(f"{sample.root} {target} synthfs allow_other,group=backup,nofail,_netdev 0 0\n")
        script = f"""
set -e
mount -t overlay overlay -o lowerdir={helper.parent}:/usr/sbin /usr/sbin
mount -a -T {fstab}
mount -a -T {fstab}
grep -c ' {target} .*fuse.synthfs' /proc/self/mountinfo
mount -t synthfs -o remount,ro {sample.root} {target} 2>/dev/null || true
stat -c %s {target / Sample.C}
umount {target}
grep -c ' {target} .*fuse.synthfs' /proc/self/mountinfo || true
"""
        done = scope.run(["unshare", "--mount", "--propagation=private", "sh", "-c", script], check=False)
        if "overlay" in done.stderr:
            pytest.skip(f"no overlay file system here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["1", str(sample.disk.length + 512), "0"]


class TestSettings:
    def test_file_and_flag(self, scope: Scope, sample: Sample) -> None:
        """`--config` sets what a flag sets, and a flag has the last word."""
        settings = scope.path("etc") / "synthfs.toml"
        settings.write_text('[mount]\nallow_other = true\nmode = "0444"\ngroup = "backup"\nrefresh = 300.0\n')
        source = "s = os.stat(arguments[0]); answer([s.st_mode & 0o777, s.st_gid])"
        group = grp.getgrnam("backup").gr_gid
        for options, wanted in (([], [0o444, group]), (["--mode", "0400"], [0o400, group])):
            target = scope.path("served")
            scope.synthfs("--config", settings, "mount", "--daemon", *options, sample.root, target)
            assert ask(scope, source, target / Sample.C) == wanted
            # allow_other came from the file: who has the group's right gets in.
            assert (scope.run(["ls", target], user="nobody", check=False).returncode == 0) == (wanted[0] == 0o444)
            scope.synthfs("umount", target)

    @pytest.mark.parametrize(("text", "code"), [("[mount\n", 4), (None, 3)])
    def test_unusable(self, scope: Scope, sample: Sample, text: str | None, code: int) -> None:
        """A settings file that is missing or no TOML is one line with the right exit code."""
        settings = scope.path("etc") / "synthfs.toml"
        if text is not None:
            settings.write_text(text)
        done = scope.synthfs("--config", settings, "list", sample.root, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
