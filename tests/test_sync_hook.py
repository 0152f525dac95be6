"""The hooks that UrBackup runs after a backup: they wake synthfs up, and never cost a backup; and the check of both.

Not for: what sync does then (test_sync). Source: facts/urbackup-format.md section 8.1, the server's call by popen.
"""

import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from lab import REPOSITORY, Lab, Scope
from makestore import Store
from processes import Argument, wait_until

UNITS = REPOSITORY / "scripts" / "systemd"
WAKE_UNIT = UNITS / "synthfs-sync.wake.service"
HOOKS = ("post_full_imagebackup", "post_incr_imagebackup")
USER, UID = "daemon", 1

SHELLS = ("dash", "bash", "busybox sh")
"""What /bin/sh may be: the names of programs, and words before a script."""

# As ClientMain.cpp does it: popen reads both outputs to their end, then takes the exit status. `<&-` is a closed stdin.
CALL = 'exec <&-; out=$(sh -c "$1" 2>&1); code=$?; printf "%s|%s" "$code" "$out"'


@pytest.fixture
def var(scope: Scope) -> Path:
    """A server's working directory, with the hooks in it and all of it the server's own."""
    directory = scope.path("var") / "urbackup"
    directory.mkdir()
    for hook in HOOKS:
        shutil.copy(REPOSITORY / "scripts" / "urbackup" / hook, directory / hook)
    for path in (directory, *directory.iterdir()):
        os.chown(path, UID, UID)
    return directory


def called(scope: Scope, var: Path, hook: str, wake: Path, *, success: str = "1", before: str = "") -> tuple[str, float]:
    """Exit code and output of a hook, as the server's user sees them, and how long it took."""
    need.root()
    line = f'{before}"urbackup/{hook}" "/srv/pc/x/Image_C.raw" "C" "{success}"'
    began = time.monotonic()
    done = scope.run(["sh", "-c", CALL, "sh", line], cwd=var.parent, env={"SYNTHFS_WAKE": str(wake)}, user=USER)
    return done.stdout, time.monotonic() - began


class TestHook:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_wakes(self, scope: Scope, var: Path, hook: str) -> None:
        """After a good backup it makes the file that wakes synthfs, says nothing, and succeeds at once."""
        wake = var / "wake"
        answer, seconds = called(scope, var, hook, wake)
        assert answer == "0|"
        assert seconds < 5
        assert wait_until(wake.exists, 5.0)
        assert wake.stat().st_uid == UID

    def test_failed_backup(self, scope: Scope, var: Path) -> None:
        """A backup that failed wakes nobody."""
        assert called(scope, var, HOOKS[0], var / "wake", success="0")[0] == "0|"
        time.sleep(0.3)
        assert not (var / "wake").exists()

    @pytest.mark.parametrize("trouble", ["no directory", "not writable", "a directory", "a full disk"])
    def test_nothing_fails_it(self, scope: Scope, var: Path, trouble: str) -> None:
        """Whatever is the matter with the file: exit code 0, no output, and no waiting."""
        place = scope.path()
        wake = place / "wake"
        match trouble:
            case "no directory":
                wake = place / "absent" / "wake"
            case "a directory":
                wake.mkdir()
            case "a full disk":
                wake = Path("/dev/full")
        answer, seconds = called(scope, var, HOOKS[0], wake)
        assert answer == "0|"
        assert seconds < 5

    @pytest.mark.parametrize("shell", SHELLS)
    def test_follows_no_link(self, scope: Scope, var: Path, shell: str) -> None:
        """A link in place of the file keeps what it leads to, also where that is not there yet; one to nowhere is replaced."""
        need.tool(shell.split()[0])
        wake, target = var / "wake", var / "backup_server.db"
        target.write_text("rows")
        wake.symlink_to(target)
        assert called(scope, var, HOOKS[0], wake, before=f"{shell} ")[0] == "0|"
        wait_until(lambda: not target.read_text(), 0.5)
        assert target.read_text() == "rows"
        target.unlink()
        assert called(scope, var, HOOKS[0], wake, before=f"{shell} ")[0] == "0|"
        assert wait_until(lambda: wake.is_file() and not wake.is_symlink(), 5.0)
        assert not target.exists()

    @pytest.mark.parametrize("shell", SHELLS)
    def test_opens_no_pipe(self, scope: Scope, var: Path, shell: str) -> None:
        """A pipe that nobody reads, or a link to one, leaves no process behind that waits for a reader."""
        need.tool(shell.split()[0])
        os.mkfifo(var / "pipe")
        os.chown(var / "pipe", UID, UID)
        (var / "link").symlink_to("pipe")
        for wake in (var / "pipe", var / "link"):
            assert called(scope, var, HOOKS[0], wake, before=f"{shell} ")[0] == "0|"
        assert wait_until(lambda: not of_the_hook(var), 5.0)

    @pytest.mark.parametrize("place", ["environment", "first line"])
    def test_another_place(self, scope: Scope, var: Path, place: str) -> None:
        """The file can be put elsewhere, by the server's environment or in the hook itself."""
        wake = var / "volume" / "wake"
        wake.parent.mkdir()
        os.chown(wake.parent, UID, UID)
        if place == "first line":
            hook = var / HOOKS[0]
            text, count = re.subn(r"(?m)^wake=.*$", f"wake={wake}", hook.read_text())
            assert count == 1
            hook.write_text(text)
        assert called(scope, var, HOOKS[0], wake if place == "environment" else Path("/nonexistent/wake"))[0] == "0|"
        assert wait_until(wake.exists, 5.0)

    def test_no_process_to_be_had(self, scope: Scope, var: Path) -> None:
        """Where the server's user may start no more processes, the hook does nothing and succeeds."""
        need.tool("prlimit")
        # The backup's shell is there already: the limit is for what comes after.
        answer, _ = called(scope, var, HOOKS[0], var / "wake", before="exec prlimit --nproc=0 ")
        assert answer.startswith("0|")

    def test_units(self, scope: Scope, var: Path) -> None:
        """The units are well-formed, and watch and remove the file that the hook makes, in a place of UrBackup's user alone."""
        need.tool("systemd-analyze")
        directory = scope.path()
        for unit in UNITS.glob("synthfs-sync.*"):
            text = unit.read_text().replace("/usr/bin/synthfs", "/bin/true").replace("Documentation=", "#")
            (directory / unit.name).write_text(text)
        done = scope.run(["systemd-analyze", "verify", *sorted(directory.iterdir())], check=False)
        assert (done.returncode, done.stderr) == (0, "")
        wake = "/run/synthfs/wake"
        assert f"PathExists={wake}\n" in (UNITS / "synthfs-sync.path").read_text()
        assert f"Environment=WAKE={wake}\n" in WAKE_UNIT.read_text()
        assert f":-{wake}}}\n" in (var / HOOKS[0]).read_text()
        assert "\nd /run/synthfs 0700 urbackup -" in (UNITS / "synthfs.tmpfiles").read_text()
        # What starts sync at once, again and again, if sync could not even begin.
        for name in ("synthfs-sync.path", "synthfs-sync.timer"):
            assert f"Unit={WAKE_UNIT.name}\n" in (UNITS / name).read_text()
        assert not re.search("(?m)^(Requires|BindsTo|StateDirectory|EnvironmentFile)", WAKE_UNIT.read_text())


def of_the_hook(var: Path) -> list[str]:
    """The processes of the hooks in this directory that are still there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(var.parent) == os.readlink(entry / "cwd"):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


class TestRemoval:
    """The line of synthfs-sync.wake.service that takes the file away, with that unit's capabilities and no others."""

    def removed(self, scope: Scope, wake: Path) -> str:
        """What it says, and would go on without a sync for an hour; nothing where it did its work."""
        need.root()
        need.tool("setpriv")
        text = WAKE_UNIT.read_text().replace("\\\n", "")
        (line,) = re.findall(r"(?m)^ExecStart=/bin/sh -c '(.* rm .*)'$", text)
        (bound,) = re.findall(r"(?m)^CapabilityBoundingSet=(.*)$", text)
        kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in bound.split())
        script = line.replace("$$", "$").replace("sleep 3600", "true")
        argv = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", "sh", "-c", script]
        return scope.run(argv, env={"TRIGGER_PATH": str(wake), "WAKE": "/nonexistent/wake"}).stdout

    @pytest.mark.parametrize("kind", ["file", "mode 0", "link", "link to nowhere", "link to a directory", "pipe", "socket"])
    def test_anything(self, scope: Scope, kind: str) -> None:
        """Whatever UrBackup's user puts there is gone, and what a link leads to is not."""
        place, other = self.place(scope), scope.path("other")
        (other / "file").write_text("text")
        wake = place / "wake"
        match kind:
            case "file" | "mode 0":
                wake.touch(mode=0o644 if kind == "file" else 0)
            case "link" | "link to a directory":
                wake.symlink_to(other / "file" if kind == "link" else other)
            case "link to nowhere":
                wake.symlink_to("absent")
            case "pipe":
                os.mkfifo(wake)
            case "socket":
                with socket.socket(socket.AF_UNIX) as one:
                    one.bind(str(wake))
        os.lchown(wake, UID, UID)
        assert self.removed(scope, wake) == ""
        assert not os.path.lexists(wake)
        assert (other / "file").read_text() == "text"

    def test_tree(self, scope: Scope) -> None:
        """A directory is gone with all that is in it, closed to its owner or not; links in it are not followed."""
        place, other = self.place(scope), scope.path("other")
        (other / "file").write_text("text")
        wake = place / "wake"
        closed = wake / "a" / "closed"
        closed.mkdir(parents=True)
        (closed / "link").symlink_to(other)
        for number in range(3000):
            (closed / str(number)).touch()
        scope.run(["chown", "-R", "-h", f"{UID}:{UID}", wake])
        closed.chmod(0)
        assert self.removed(scope, wake) == ""
        assert not wake.exists()
        assert (other / "file").read_text() == "text"

    def test_what_is_mounted(self, scope: Scope) -> None:
        """A file system that is mounted there, or below, keeps its files; it is told in one line that names the place."""
        for name in ("wake", "wake/below"):
            place = self.place(scope)
            (place / name).mkdir(parents=True)
            scope.mount("tmpfs", place / name, fstype="tmpfs")
            (place / name / "file").touch()
            (line,) = self.removed(scope, place / "wake").splitlines()
            assert line.startswith(f"<3>{place}/wake cannot be removed")
            assert (place / name / "file").exists()

    def place(self, scope: Scope) -> Path:
        """A directory of UrBackup's user alone."""
        directory = scope.path("place")
        directory.chmod(0o700)
        os.chown(directory, UID, UID)
        return directory


class TestTwoContainers:
    """The script `sync-loop` of docs/operations/container.md, and UrBackup's hook: two mount namespaces share one directory."""

    def test_sync_after_a_backup(self, scope: Scope, var: Path) -> None:
        """It freezes what is there at its start, and the next disk when the hook of the other one has run."""
        need.root()
        need.tool("unshare", "setpriv")
        data = scope.btrfs(1 << 30)
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        client = Store(data / "urbackup").client("pc")
        client.backup(disk, 1)
        (data / "frozen").mkdir()
        wake = scope.path("wake")
        os.chown(wake, UID, UID)
        wake.chmod(0o700)
        sync = self.container(wake, self.loop(scope), data / "urbackup", "--to", data / "frozen")
        path = f"{scope.directory}/bin:{os.environ['PATH']}"
        scope.start(sync, env={"STATE_DIRECTORY": str(scope.path("record")), "PATH": path})

        def frozen() -> int:
            return len(list((data / "frozen").glob("pc/*.vhd")))

        assert wait_until(lambda: frozen() == 1, 30.0)
        before = list((data / "frozen").glob("pc/*.vhd"))
        client.backup(disk, 1, stamp="260302-0201")
        time.sleep(1.0)
        assert list((data / "frozen").glob("pc/*.vhd")) == before
        drop = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        scope.run(self.container(wake, *drop, var / HOOKS[0], "/srv/pc/x/Image_C.raw", "C", "1"))
        assert wait_until(lambda: frozen() == 1 and list((data / "frozen").glob("pc/*.vhd")) != before, 30.0)
        assert list(wake.iterdir()) == []

    def container(self, wake: Path, *argv: Argument) -> list[Argument]:
        """A command with a /run for itself, in which /run/synthfs is the shared directory."""
        enter = 'mount -t tmpfs tmpfs /run; mkdir /run/synthfs; mount --bind "$0" /run/synthfs; exec "$@"'
        return ["unshare", "--mount", "sh", "-ec", enter, wake, *argv]

    def loop(self, scope: Scope) -> Path:
        """The script as the page has it, but for its pause, with a `synthfs` beside it."""
        page = (REPOSITORY / "docs" / "operations" / "container.md").read_text()
        (text,) = re.findall(r"(?m)^    #!/bin/sh\n(?:(?:    .*)?\n)*?    done\n", page)
        programs = scope.directory / "bin"
        programs.mkdir()
        (programs / "sync-loop").write_text(text.replace("\n    ", "\n").lstrip().replace("while sleep 10", "while sleep 0.2"))
        (programs / "synthfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m synthfs "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        return programs / "sync-loop"


@pytest.fixture(scope="module")
def store(lab: Lab) -> Iterator[Path]:
    with lab.scope("hook-store") as scope:
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        root = scope.path() / "urbackup"
        Store(root).client("pc").backup(disk, 1)
        yield root


class TestDoctor:
    """In a mount namespace of its own, which has the directory as its /var/urbackup and a /run for itself."""

    def findings(self, scope: Scope, store: Path, var: Path | None, *, run: bool = True) -> dict[str, bool]:
        need.root()
        need.tool("unshare")
        fake = scope.path("fake")
        (fake / "tmp").mkdir()
        if var:
            (fake / "urbackup").mkdir()
        script = [
            f"mount --rbind /var/tmp {fake}/tmp",
            *([f"mount --bind {var} {fake}/urbackup"] if var else []),
            f"mount --rbind {fake} /var",
            "mount -t tmpfs tmpfs /run",
            *([f"mkdir /run/synthfs && chown {UID}:0 /run/synthfs && chmod 0700 /run/synthfs"] if run else []),
            'exec "$@"',
        ]
        argv = ["unshare", "--mount", "sh", "-ec", "\n".join(script), "sh"]
        done = scope.run([*argv, sys.executable, "-m", "synthfs", "doctor", store, "--json"], check=False)
        ours = ("/var/urbackup/", "/run/synthfs ", "no hook ")
        return {each["text"]: each["good"] for each in json.loads(done.stdout) if each["text"].startswith(ours)}

    def test_in_place(self, scope: Scope, store: Path, var: Path) -> None:
        """Both hooks that the server can read and run, and a place to wake synthfs at: all is well."""
        found = self.findings(scope, store, var)
        assert sorted(found.items()) == [
            (f"/var/urbackup/{hook} is in place, and runs as UrBackup's server", True) for hook in HOOKS
        ]

    @pytest.mark.parametrize("mode", [0o600, 0o300, 0o077])
    def test_cannot_run(self, scope: Scope, store: Path, var: Path, mode: int) -> None:
        """A hook that the server's user may not read, or not run, costs it its backups: that is a problem."""
        (var / HOOKS[0]).chmod(mode)
        found = self.findings(scope, store, var)
        assert [text for text, good in found.items() if not good] == [
            f"/var/urbackup/{HOOKS[0]} must be readable and executable by user {UID}, as whom UrBackup's server runs"
        ]

    def test_of_root_alone(self, scope: Scope, store: Path, var: Path) -> None:
        """The same for one that is root's, though root, who asks, can run it."""
        os.chown(var / HOOKS[1], 0, 0)
        (var / HOOKS[1]).chmod(0o750)
        assert [HOOKS[1] in text for text, good in self.findings(scope, store, var).items() if not good] == [True]

    def test_missing(self, scope: Scope, store: Path, var: Path) -> None:
        """One without the other is a problem, none is a choice; without a server nothing is said."""
        (var / HOOKS[1]).unlink()
        assert [HOOKS[1] in text for text, good in self.findings(scope, store, var).items() if not good] == [True]
        (var / HOOKS[0]).unlink()
        assert list(self.findings(scope, store, var).values()) == [True]
        assert self.findings(scope, store, None) == {}

    def test_dangling_link(self, scope: Scope, store: Path, var: Path) -> None:
        """A hook that is a link to nowhere is a problem."""
        (var / HOOKS[1]).unlink()
        (var / HOOKS[1]).symlink_to("absent")
        assert [HOOKS[1] in text for text, good in self.findings(scope, store, var).items() if not good] == [True]

    def test_nobody_to_wake(self, scope: Scope, store: Path, var: Path) -> None:
        """Hooks in place with no /run/synthfs would do nothing: that is a problem, with the remedy."""
        found = self.findings(scope, store, var, run=False)
        assert ["synthfs.tmpfiles" in text for text, good in found.items() if not good] == [True]

    def test_another_place(self, scope: Scope, store: Path, var: Path) -> None:
        """A hook that makes its file elsewhere needs that place, and not /run/synthfs."""
        for hook in HOOKS:
            (var / hook).write_text(re.sub("(?m)^wake=.*$", "wake=/var/urbackup/volume/wake", (var / hook).read_text()))
        found = self.findings(scope, store, var, run=False)
        assert ["/var/urbackup/volume is not there" in text for text, good in found.items() if not good] == [True]
        (var / "volume").mkdir(mode=0o700)
        os.chown(var / "volume", UID, UID)
        assert all(self.findings(scope, store, var, run=False).values())
