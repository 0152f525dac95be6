"""`mount.synthfs`, as mount(8) and /etc/fstab call it, and the settings file.

Not for: how a mount lives and ends (test_mount).
"""

import grp
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from inprocess import answer, answer_to, is_one_line
from lab import Lab, Scope
from ledger import mounts_below
from onmount import Sample, ask
from synthfs.cli.fstab import arguments
from synthfs.cli.main import options_of


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
        "words",
        [
            *(["-q"], ["third"], ["-o", "frobnicate"], ["-o", "group"], ["-o", "group="], ["-o", "mode=rw"]),
            *(["-o", "group=no-such-group"], ["-o", "refresh=nan"], ["-o", "format=zip"], ["-o", "log-level=5"]),
            *(["-o", "allow_other=perhaps"], ["-o", "allow_other="], ["-o", "allow_other,allow_other=no"]),
            *(["-o", "noallow_other", "-o", "allow_other=yes"], ["-o", "daemon=no"], ["-o", "remount"]),
            *(["-o", "ro,writable=/tmp"], ["-o", "writable=/tmp", "-o", "ro"], ["-r", "-o", "writable=/tmp"]),
        ],
    )
    def test_not_understood(self, scope: Scope, sample: Sample, words: list[str]) -> None:
        """An option that is not known, has no sense or contradicts another is one line and an error, and nothing is mounted."""
        target = scope.path("served")
        code, _, said = answer_to(lambda: arguments([str(sample.root), str(target), *words]))
        assert is_one_line(code, said, 9), said
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


    def test_closed(self, scope: Scope, sample: Sample, helper: Path) -> None:
        """`allow_other=no` and `ro` mean what they say, also where the settings file says otherwise."""
        settings, target, scratch = scope.path("etc") / "synthfs.toml", scope.path("served"), scope.path("scratch")
        settings.write_text(f'[mount]\nallow-other = true\nmode = "0444"\nwritable = "{scratch}"\n')
        # What the helper runs, with these settings.
        words = arguments([str(sample.root), str(target), "-o", "ro,allow_other=no"])
        scope.synthfs("--config", settings, *(words or ()))
        assert scope.run(["ls", target], user="nobody", check=False).returncode != 0
        (mine,) = [one for one in json.loads(scope.synthfs("status", "--json", check=False).stdout)
                   if one["mountpoint"] == str(target)]  # fmt: skip
        assert mine["scratch"] is None
        scope.synthfs("umount", target)

    def test_by_type_of_fuse(self, scope: Scope, sample: Sample) -> None:
        """`fuse.synthfs` in an fstab, as with sshfs: mount.fuse3 runs `synthfs`; spaces, commas and two formats arrive."""
        need.tool("mount.fuse3")
        programs = scope.path("bin")
        program = programs / "synthfs"
        program.write_text(f"#!{sys.executable}\nfrom synthfs.__main__ import main\nmain()\n")
        program.chmod(0o755)
        here = scope.path("places")
        store, target, log = here / "a store, of ours", here / "served here", here / "a,b.log"
        store.symlink_to(sample.root)
        target.mkdir()
        options = f'allow_other=1,mode=0444,format=vhd,format=raw,log-file="{log}",log_level=info,refresh=0'
        fstab = here / "fstab"
        source, place = (str(path).replace(" ", "\\040") for path in (store, target))
        fstab.write_text(f"{source} {place} fuse.synthfs {options},nofail,_netdev,users,noauto,x-systemd.automount 0 0\n")
        # mount(8) gives its helpers no PATH, and the shell then has the system's.
        script = """
mount -t overlay overlay -o "lowerdir=$1:/usr/local/bin" /usr/local/bin && mount -T "$2" "$3" && exec umount "$3"
"""
        script = script.replace("exec umount", 'ls "$3/pc" && cat "$3/.synthfs/status.json" >&2 && exec umount')
        done = scope.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "-", programs, fstab, target], check=False
        )
        if "overlay" in done.stderr:
            pytest.skip(f"no overlay file system here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        names = done.stdout.split()
        assert {"Image_C_260301-0201.vhd", "Image_C_260301-0201.img"} <= set(names), names
        assert json.loads(done.stderr)["store"] == str(sample.root)
        assert log.exists()

    @pytest.mark.parametrize("parameter", [*options_of("mount")])
    def test_each_option_has_its_word(self, parameter: str) -> None:
        """Whatever `synthfs mount` can do, a line in /etc/fstab can, with dashes and with underscores."""
        of = options_of("mount")[parameter]
        value = {"format": "vhdx", "log-level": "debug", "discard-after": "3", "refresh": "5"}.get(parameter, "x")
        for word in {parameter, parameter.replace("-", "_")}:
            words = arguments(["/", "/mnt", "-o", word if of.is_flag else f"{word}={value}"])
            assert words is not None
            assert (f"--{parameter}" if of.is_flag else f"--{parameter}={value}") in words
            if of.is_flag and parameter != "daemon":
                for option in (f"no{word}", f"{word}=no", f"{word}=0", f"{word}=false"):
                    assert f"--no-{parameter}" in (arguments(["/", "/mnt", "-o", option]) or ())

    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            ("refresh=5,refresh=6", ["--refresh=6"]),
            ("format=vhd,format=raw", ["--format=vhd", "--format=raw"]),
            ('log-file="/a,b",log-file=/a\\,b,owner=alice', ["--log-file=/a,b", "--owner=alice"]),
            ("allow_other,allow_other=yes,allow_other=TRUE,allow_other=1", ["--allow-other"]),
            ("rw,writable=/x", ["--writable=/x"]),
            ("ro,rw,writable=/x", ["--writable=/x"]),
            ("rw,ro", ["--writable="]),
            (
                "rw,dev,suid,exec,nodev,nosuid,noexec,auto,noauto,user,user=root,users,nouser,owner,_netdev,nofail,defaults,"
                "x-systemd.requires=/x,X-mount.mkdir=0755,comment=x-gvfs-show,async,noatime,relatime,default_permissions",
                [],
            ),
        ],
    )
    def test_what_they_become(self, options: str, wanted: list[str]) -> None:
        """The last of two counts, formats add up, and what is meant for others than synthfs changes nothing."""
        assert arguments(["/", "/mnt", "-sn", "-o", options]) == ["mount", *wanted, "--daemon", "--", "/", "/mnt"]


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

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            (None, 3),
            ("[mount\n", 4),
            (b"[mount]\n# \xff\n", 4),
            ("a = " + "[" * 100_000, 4),
            ("a = " + "{a=" * 100_000, 4),
            ("[list]\njson = 5\n", 4),
            ("[list]\njson = [true]\n", 4),
            ("[list]\nclient = true\n", 4),
            ("[list]\nclient = {a = 1}\n", 4),
            ("[list]\nclient = 1979-05-27\n", 4),
            ('[list]\nclient = ["a"]\n', 4),
            ('[list]\ndatabase = "a\\u0000b"\n', 4),
            ("[mount]\nrefresh = nan\n", 4),
            ("[mount]\nrefresh = 1e400\n", 4),
            ("[mount]\nrefresh = -1\n", 4),
            (f"[mount]\nrefresh = 0x{'f' * 9000}\n", 4),
            ('[mount]\nformat = ["vhd", 5]\n', 4),
            ('[mount]\nformat = [["vhd"]]\n', 4),
            ("[sync]\nkeep = 2.5\n", 4),
            ("mount = 5\n", 4),
            ("#" * 200_000, 4),
        ],
    )
    def test_unusable(self, scope: Scope, sample: Sample, text: str | bytes | None, code: int) -> None:
        """A settings file that is missing, no TOML, or not what a verb takes is one line with the right exit code."""
        settings = scope.path("etc") / "synthfs.toml"
        if text is not None:
            settings.write_bytes(text if isinstance(text, bytes) else text.encode())
        found, _, said = answer("--config", settings, "list", sample.root)
        assert is_one_line(found, said, code), said

    def test_no_file(self, scope: Scope, sample: Sample) -> None:
        """A directory, a pipe that nobody writes to, or an endless device in the place of the settings is no settings file."""
        place = scope.path("etc")
        os.mkfifo(place / "pipe")
        for path in (place, place / "pipe", "/dev/zero"):
            code, _, said = answer("--config", path, "list", sample.root)
            assert is_one_line(code, said, 4), said
        assert answer("--config", "/dev/null", "list", sample.root)[0] == 0

    def test_as_in_010(self, scope: Scope, sample: Sample) -> None:
        """What the command line would make the same of, such as a number for a text, may be written either way."""
        settings = scope.path("etc") / "synthfs.toml"
        mount = '[mount]\nmode = 444\nrefresh = "300"\nformat = "raw"\n'
        settings.write_text(f'{mount}[list]\njson = "yes"\n[sync]\nmin_free = 5\n')
        json.loads(answer("--config", settings, "list", sample.root)[1])
        target = scope.path("served")
        scope.synthfs("--config", settings, "mount", "--daemon", sample.root, target)
        source = "answer([os.listdir(arguments[0]), os.stat(arguments[0] + '/Image_C_260301-0201.img').st_mode & 0o777])"
        names, mode = ask(scope, source, target / "pc")
        assert ("Image_C_260301-0201.img" in names, mode) == (True, 0o444)
        scope.synthfs("umount", target)
