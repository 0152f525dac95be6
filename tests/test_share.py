"""`synthfs share`: the share that it prints, and what `--check` finds in others.

Not for: what clients get from the share (test_smb). Expected findings are those that the issue and facts/samba-and-windows.md
name; testparm says what a configuration is.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import need
import smbd
from lab import Lab, Scope
from onmount import Sample
from smbwindows import Client
from synthfs import samba

GLOBAL_ONLY = ("smb2 leases = no",)
"""Samba says so, and ignores it in a share."""


@pytest.fixture(scope="module")
def lasting(lab: Lab) -> Iterator[Scope]:
    need.root()
    need.fuse()
    need.tool("testparm")
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


@pytest.fixture(scope="module")
def stanza(lasting: Scope, target: Path) -> str:
    return smbd.stanza(lasting, target)


def as_samba_sees_it(scope: Scope, configuration: Path) -> "subprocess.CompletedProcess[str]":
    return scope.run(["testparm", "--suppress-prompt", configuration], check=False)


def check(scope: Scope, configuration: Path, target: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and findings of `synthfs share --check`."""
    done = scope.synthfs("share", "--check", "--json", "--config-file", configuration, target, check=False)
    return done.returncode, json.loads(done.stdout)


class TestStanza:
    def test_testparm_accepts_it(self, scope: Scope, target: Path) -> None:
        """The printed share is valid, as it stands, and its path is the directory above the mount."""
        configuration = smbd.configure(scope, smbd.stanza(scope, target))
        done = as_samba_sees_it(scope, configuration)
        assert done.returncode == 0
        assert "Unknown parameter" not in done.stderr
        assert f"path = {target.parent}\n" in done.stdout
        for line in ("valid users = @backup", "force group = backup", "nt acl support = No"):
            assert line in done.stdout
        assert "read only = No" not in done.stdout

    def test_a_reason_for_each_line(self, scope: Scope, target: Path) -> None:
        """Above each setting stands a comment that says why."""
        lines = [line.strip() for line in smbd.stanza(scope, target).splitlines()]
        settings = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
        assert len(settings) >= 6
        assert [lines[number] for number in settings if not lines[number - 1].startswith("# ")] == []

    def test_json(self, scope: Scope, target: Path) -> None:
        """The same text, for scripts."""
        answer = json.loads(scope.synthfs("share", "--json", target).stdout)
        assert (answer["share"], answer["stanza"]) == ("backups", smbd.stanza(scope, target))

    def test_name_and_only_mount(self, scope: Scope, target: Path) -> None:
        """--name names the share; a path that is no mount is refused with one line."""
        assert "[disks]" in scope.synthfs("share", "--name", "disks", target).stdout
        done = scope.synthfs("share", scope.path("plain"), check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (9, "", 1)

    def test_dead_mount(self, scope: Scope, sample: Sample) -> None:
        """A dead mount gets one line, and no wrong share."""
        target = scope.synthfs_mount(sample.root)
        scope.server(target).kill()
        scope.server(target).wait(10)
        done = scope.synthfs("share", target, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (9, "", 1)
        assert "does not answer" in done.stderr


class TestCheck:
    def test_own_stanza(self, scope: Scope, target: Path) -> None:
        """Nothing is wrong with the share that is recommended."""
        code, found = check(scope, smbd.configure(scope, smbd.stanza(scope, target)), target)
        assert (code, [finding["text"] for finding in found if not finding["good"]]) == (0, [])
        assert found

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ("fake oplocks = yes", ("fake oplocks", "durable")),
            ("oplocks = no", ("oplocks", "durable")),
            ("smb2 leases = no", ("smb2 leases",)),
            ("durable handles = no", ("durable handles",)),
            ("kernel oplocks = yes", ("kernel oplocks", "durable")),
            ("kernel share modes = yes", ("kernel share modes", "durable")),
            ("use sendfile = yes", ("sendfile", "zero")),
            ("guest ok = yes", ("guest ok",)),
            ("public = yes", ("guest ok",)),
            ("vfs objects = btrfs", ("btrfs", "compressed")),
            ("vfs objects = fruit", ("fruit",)),
            ("vfs objects = catia streams_xattr", ("streams_xattr",)),
            ("vfs objects = acl_xattr", ("acl_xattr",)),
            ("writeable = yes", ("read only = no",)),
            ("valid users =", ("valid users",)),
            ("force group =", ("force group",)),
            ("aio read size = 0", ("aio read size",)),
        ],
    )
    @pytest.mark.parametrize("where", ["share", "global"])
    def test_harmful_setting(
        self, scope: Scope, target: Path, stanza: str, setting: str, words: tuple[str, ...], where: str
    ) -> None:
        """Each setting that hurts is found, in the share and as a default for all, with one line that says what it does."""
        name = setting.partition("=")[0].strip()
        if where == "share":
            configuration = smbd.configure(scope, stanza + f"    {setting}\n")
        else:
            # What the stanza itself says about it would win.
            own = [line for line in stanza.splitlines() if line.strip().partition("=")[0].strip() != name]
            configuration = smbd.configure(scope, "\n".join(own) + "\n")
            text = configuration.read_text().replace("[global]\n", f"[global]\n    {setting}\n", 1)
            if name == "writeable":  # the same parameter, said the other way round
                text = text.replace("    read only = yes\n", "")
            configuration.write_text(text)
        if where == "share" and setting in GLOBAL_ONLY:
            assert "Global parameter" in as_samba_sees_it(scope, configuration).stderr
            return
        found = samba.findings(samba.active_configuration(str(configuration)), str(target))
        bad = [finding.text for finding in found if not finding.good]
        assert len(bad) == 1, bad
        assert [word for word in words if word not in bad[0]] == [], bad
        assert "\n" not in bad[0]

    def test_path_is_the_mount(self, scope: Scope, target: Path) -> None:
        """A share whose path is the mount itself."""
        stanza = smbd.stanza(scope, target).replace(f"path = {target.parent}", f"path = {target}")
        code, found = check(scope, smbd.configure(scope, stanza), target)
        assert (code, len(found), "mount itself" in found[0]["text"]) == (1, 1, True)

    def test_no_share(self, scope: Scope, target: Path) -> None:
        """A configuration with no share that leads to the mount, or with one of another place only."""
        elsewhere = scope.path("elsewhere")
        for share in ("", smbd.plain_share(elsewhere)):
            code, found = check(scope, smbd.configure(scope, share), target)
            assert (code, len(found)) == (1, 1)
            assert str(target) in found[0]["text"]

    def test_all_at_once(self, scope: Scope, target: Path) -> None:
        """Several problems are one line each, on a terminal too, and the exit code tells."""
        bad = "    oplocks = no\n    guest ok = yes\n    vfs objects = fruit streams_xattr\n"
        configuration = smbd.configure(scope, smbd.stanza(scope, target) + bad)
        done = scope.synthfs("share", "--check", "--config-file", configuration, target, check=False)
        lines = done.stdout.splitlines()
        assert done.returncode == 1
        assert len(lines) == 4
        assert all(line.startswith("problem: [backups] ") for line in lines)

    def test_invalid_configuration(self, scope: Scope, target: Path) -> None:
        """A file that Samba itself cannot use is one line, no traceback."""
        done = scope.synthfs("share", "--check", "--config-file", scope.path() / "absent.conf", target, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)

    def test_sparse_mark(self, scope: Scope, sample: Sample) -> None:
        """A materialized file that Samba calls sparse is named, with a cure that works; one that is not is not."""
        need.tool("setfattr")
        place = scope.xfs()
        (place / "disks").mkdir()
        target = scope.synthfs_mount(sample.root, "--allow-other", "--group", smbd.GROUP, target=place / "disks")
        for name in ("well.vhd", "marked.vhd"):
            (place / name).write_bytes(bytes(4096))
            (place / name).chmod(0o644)
        # As Samba itself stores the mark (facts/samba-and-windows.md section 1.3).
        os.setxattr(place / "marked.vhd", "user.DOSATTRIB", b"0x220\0")
        # With stored attributes Samba tells clients of the mark: the finding is one.
        stanza = smbd.stanza(scope, target)
        share = smbd.start(scope, stanza.replace("    store dos attributes = no\n", ""))
        with Client(share) as client, client.opened("marked.vhd") as marked, client.opened("well.vhd") as well:
            assert (marked.attributes & 0x200, well.attributes & 0x200) == (0x200, 0)
        code, found = check(scope, share.configuration, target)
        (bad,) = [finding["text"] for finding in found if not finding["good"]]
        assert code == 1
        assert str(place / "marked.vhd") in bad
        command = bad.partition("`")[2].partition("`")[0]
        assert command.startswith("setfattr ")
        scope.run(["sh", "-c", command])
        assert check(scope, share.configuration, target)[0] == 0
        with Client(share) as client, client.opened("marked.vhd") as cured:
            assert cured.attributes & 0x200 == 0

    def test_sparse_mark_of_present_samba(self, scope: Scope, sample: Sample) -> None:
        """The mark as a client sets it through the present Samba is recognized too."""
        place = scope.xfs()
        (place / "disks").mkdir()
        target = scope.synthfs_mount(sample.root, "--allow-other", "--group", smbd.GROUP, target=place / "disks")
        file = place / "marked.vhd"
        file.write_bytes(bytes(4096))
        shutil.chown(file, smbd.USER, smbd.GROUP)
        stanza = smbd.stanza(scope, target).replace("    store dos attributes = no\n", "")
        share = smbd.start(scope, stanza.replace("read only = yes", "read only = no"))
        with Client(share) as client, client.opened("marked.vhd", access=0x12019F) as writable:
            writable.set_sparse()
        assert b"user.DOSATTRIB" in b"".join(name.encode() for name in os.listxattr(file))
        _, found = check(scope, share.configuration, target)
        assert [finding["text"] for finding in found if str(file) in finding["text"] and not finding["good"]]


class TestWhoGetsIn:
    """What is said of a mount and what smbd does are the same."""

    def test_check_agrees_with_smbd(self, scope: Scope, sample: Sample, target: Path) -> None:
        """For each of several shares: where clients get at the disks nothing is said, and where they do not, why not."""
        closed, hidden = scope.path("closed") / "disks", scope.path("hidden") / "disks"
        for place in (closed, hidden):
            place.mkdir()
        scope.synthfs_mount(sample.root, target=closed)
        scope.synthfs_mount(sample.root, "--allow-other", "--group", smbd.GROUP, target=hidden)
        hidden.parent.chmod(0o750)
        users = "valid users = @backup"
        shares: dict[str, tuple[Path, str, str | None]] = {
            "well": (target, f"{users}\nforce group = backup", None),
            "forced-user": (target, f"{users}\nforce user = backup", None),
            "several": (target, 'valid users = "backup", @users\nforce group = +backup', None),
            "other-group": (target, f"{users}\nforce group = nogroup\nforce user = games", "force group = backup"),
            "no-such-group": (target, f"{users}\nforce group = nobody-has-it", "no such group"),
            "hidden": (hidden, f"{users}\nforce group = backup", f"chmod o+x {hidden.parent}"),
            "closed": (closed, f"{users}\nforce group = backup", "allow_other"),
            "closed-forced": (closed, f"{users}\nforce user = root\nforce group = root", "root's group"),
        }
        lines = [f"[{name}]\npath = {place.parent}\n{text}\n" for name, (place, text, _) in shares.items()]
        share = smbd.start(scope, "".join(lines))
        for name, (place, _, words) in shares.items():
            done = replace(share, name=name).smbclient("ls disks\\pc\\*", check=False)
            assert (done.returncode == 0) == (words is None or name == "closed-forced"), (name, done.stdout)
            alone = share.configuration.with_name(f"{name}.conf")
            alone.write_text(share.configuration.read_text().partition("\n[well]")[0] + "\n" + lines[list(shares).index(name)])
            code, found = check(scope, alone, place)
            bad = [finding["text"] for finding in found if not finding["good"]]
            assert (code, len(bad)) == ((0, 0) if words is None else (1, 1)), (name, bad)
            assert words is None or words in bad[0]
            if name == "hidden":
                scope.run(["sh", "-c", bad[0].partition("`")[2].partition("`")[0]])
                replace(share, name=name).smbclient("ls disks\\pc\\*")
                assert check(scope, alone, place)[0] == 0

    def test_closed_mount(self, scope: Scope, sample: Sample) -> None:
        """`share` prints what is right once the mount is open to others, and says that it is not; exit code 1."""
        target = scope.synthfs_mount(sample.root, target=scope.path("srv"))
        done = scope.synthfs("share", target, check=False)
        assert done.returncode == 1
        assert "[backups]" in done.stdout
        last = done.stderr.splitlines()[-1]
        assert "--allow-other" in last
        assert "lets nobody but root in" in last

    def test_group_of_root(self, scope: Scope, sample: Sample) -> None:
        """Files of root's group are warned of, by both."""
        target = scope.synthfs_mount(sample.root, "--allow-other", "--group", "root", target=scope.path("srv"))
        done = scope.synthfs("share", target)
        assert ["warning: " in line and "--group" in line for line in done.stderr.splitlines()] == [True]
        code, found = check(scope, smbd.configure(scope, done.stdout), target)
        assert (code, ["root's group" in finding["text"] for finding in found]) == (1, [True])
