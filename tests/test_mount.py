"""The life of a mount: how it begins, how it ends, and what it never touches.

Not for: what is in it (test_mount_tree), or its laws (test_mount_laws).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import Lab, Scope
from ledger import mounts_below
from onmount import SERVER, Sample, ask, end, read_right, start_server
from processes import Argument, Identity, marked, wait_until

MOUNT_ERROR = 9
STAT = "answer(failure(os.stat, arguments[0]))"


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.fuse()
    with lab.scope("mount") as scope:
        yield Sample.make(scope)


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """A command failed with the exit code of mounts and one line that has these words."""
    assert done.returncode == MOUNT_ERROR, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("synthfs: ")
    assert "\\n" not in line, "a second line was squeezed into the first"
    assert [word for word in words if word not in line] == [], line


def servers(lab: Lab, target: Path) -> list[Identity]:
    """Living processes of this run that were told to serve `target`."""
    found = []
    for one in marked(lab.directory):
        words = Path(f"/proc/{one.pid}/cmdline").read_bytes().split(b"\0")
        if b"mount" in words and str(target).encode() in words:
            found.append(one)
    return found


class TestDaemon:
    def test_returns_once_it_serves(self, scope: Scope, lab: Lab, sample: Sample) -> None:
        """When the command returns, a name below can be stat'ed, also where the server is slow to begin."""
        target, report = scope.path("served"), scope.path() / "report.json"
        argv: list[Argument] = [sys.executable, SERVER, "late", "mount", "--daemon", sample.root, target]
        done = scope.run(argv, env={"FAULT_SWITCH": str(report)})
        assert ask(scope, STAT, target / Sample.C) is None
        assert (done.stdout, done.stderr) == ("", "")
        # The fork came before trio and before any thread.
        facts = json.loads(report.read_text())
        assert (facts["trio"], facts["threads"]) == (False, 1)
        assert [one.pid for one in servers(lab, target)] == [facts["pid"]]
        scope.synthfs("umount", target)
        assert not servers(lab, target)

    def test_is_nobodys_child(self, scope: Scope, lab: Lab, sample: Sample) -> None:
        """The daemon has a session of its own and nothing of the caller's terminal or directory."""
        target = scope.path("served")
        scope.synthfs("mount", "--daemon", sample.root, target)
        (server,) = servers(lab, target)
        # Field 6 of stat is the session, counted behind the command's name.
        assert Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[3] == str(server.pid)
        assert Path(f"/proc/{server.pid}/cwd").readlink() == Path("/")
        assert {Path(f"/proc/{server.pid}/fd/{fd}").readlink() for fd in (0, 1)} == {Path("/dev/null")}
        assert read_right(scope, target / Sample.D, sample.disk)
        scope.synthfs("umount", target)

    def test_failure_to_mount(self, scope: Scope, lab: Lab, sample: Sample) -> None:
        """Where the kernel refuses the mount: non-zero, one line with its reason, and no child left."""
        need.root()
        need.tool("setpriv")
        target = scope.path("served")
        unable = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
        done = scope.run([*unable, sys.executable, "-m", "synthfs", "mount", "--daemon", sample.root, target], check=False)
        assert not servers(lab, target)
        assert not mounts_below(target)
        refused(done, str(target), "Operation not permitted")

    def test_mount_that_never_answers(self, scope: Scope, lab: Lab, sample: Sample) -> None:
        """A server that mounts but does not answer is ended: non-zero, one line, no child and no dead mount."""
        target = scope.path("served")
        argv: list[Argument] = [sys.executable, SERVER, "never", "mount", "--daemon", sample.root, target]
        done = scope.run(argv, check=False, env={"FAULT_SWITCH": "/nonexistent"})
        refused(done, "did not answer within 2 seconds")
        assert not servers(lab, target)
        assert not mounts_below(target)


    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_told_to_end_while_it_starts(self, scope: Scope, lab: Lab, sample: Sample, number: signal.Signals) -> None:
        """Whoever gives up `mount --daemon`, as timeout(1) and systemd do, finds no mount afterwards."""
        target = scope.path("served")
        argv: list[Argument] = [sys.executable, SERVER, "never", "mount", "--daemon", sample.root, target]
        process = scope.start(argv, env={"FAULT_SWITCH": "/nonexistent"})
        assert wait_until(lambda: bool(mounts_below(target)), 20.0)
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else 128 + number)
        assert not servers(lab, target)
        assert not mounts_below(target)


class TestEnd:
    def test_umount_waits_for_the_server(self, scope: Scope, sample: Sample) -> None:
        """`umount` returns when the process that served has ended, not before."""
        target = scope.path("served")
        server, _ = start_server(scope, "slow-end", sample.root, target, Path("/nonexistent"))
        identity = Identity.of(server.pid)
        assert identity is not None
        scope.synthfs("umount", target)
        assert not identity.alive
        assert server.wait(0) == 0
        assert not mounts_below(target)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("busy", [False, True])
    def test_signal(self, scope: Scope, sample: Sample, number: signal.Signals, busy: bool) -> None:
        """In the foreground SIGINT and SIGTERM unmount cleanly, also while somebody has a file open."""
        target = scope.synthfs_mount(sample.root)
        server = scope.server(target)
        if busy:
            hold(scope, target / Sample.C)
        server.send_signal(number)
        assert server.wait(10) == 0
        assert not mounts_below(target)
        assert ask(scope, "answer(os.listdir(arguments[0]))", target) == []

    def test_busy(self, scope: Scope, sample: Sample) -> None:
        """`umount` of a mount in use names who holds it, and leaves it serving."""
        target = scope.synthfs_mount(sample.root)
        holder = hold(scope, target / Sample.C)
        refused(scope.synthfs("umount", target, check=False), str(target), f"({holder.pid})", "tail")
        assert read_right(scope, target / Sample.C, sample.disk)
        end(holder)
        scope.synthfs("umount", target)
        assert not mounts_below(target)

    def test_dead_mount_is_replaced(self, scope: Scope, sample: Sample) -> None:
        """After SIGKILL of the server the next `mount` takes the dead mount away and serves."""
        target = dead(scope, sample)
        done = scope.synthfs("mount", "--daemon", sample.root, target)
        assert "dead mount" in done.stderr
        assert len(mounts_below(target)) == 1
        assert read_right(scope, target / Sample.C, sample.disk)
        scope.synthfs("umount", target)

    def test_dead_mount_is_taken_away(self, scope: Scope, sample: Sample) -> None:
        """After SIGKILL of the server `umount` takes the dead mount away."""
        target = dead(scope, sample)
        scope.synthfs("umount", target)
        assert not mounts_below(target)
        assert ask(scope, STAT, target) is None

    def test_stuck_mount_is_not_a_dead_one(self, scope: Scope, sample: Sample) -> None:
        """A server that does not answer for a while keeps its mount: `mount` refuses, and it goes on when it can."""
        target = scope.synthfs_mount(sample.root)
        server = scope.server(target)
        server.send_signal(signal.SIGSTOP)
        try:
            refused(scope.synthfs("mount", "--daemon", sample.root, target, check=False), "running synthfs mount")
        finally:
            server.send_signal(signal.SIGCONT)
        assert server.poll() is None
        assert read_right(scope, target / Sample.C, sample.disk)


class TestPlaces:
    """A mountpoint that would do harm is refused, with one line, and nothing is mounted."""

    def test_inside_the_store(self, scope: Scope, sample: Sample) -> None:
        """A mountpoint inside the store, also one that is reached by a link, or the store itself."""
        root = sample.copy(scope)
        inside, link = root / "mnt", scope.path() / "link"
        inside.mkdir()
        link.symlink_to(root)
        for target in (inside, root, link / "mnt", root / "pc" / ".." / "mnt"):
            refused(scope.synthfs("mount", "--daemon", root, target, check=False), "inside the store")
        assert not mounts_below(root)

    def test_above_the_store(self, scope: Scope, sample: Sample) -> None:
        """A store inside the mountpoint would be hidden by the mount."""
        root = sample.copy(scope)
        refused(scope.synthfs("mount", "--daemon", root, root.parent, check=False), "contains the store")
        assert not mounts_below(root.parent)

    def test_link_as_mountpoint(self, scope: Scope, sample: Sample) -> None:
        """A mountpoint that is a link into the store does not get around the rule."""
        root = sample.copy(scope)
        (root / "mnt").mkdir()
        link = scope.path() / "link"
        link.symlink_to(root / "mnt")
        done = scope.synthfs("mount", "--daemon", root, link, check=False)
        assert not mounts_below(root)
        refused(done, "inside the store")

    def test_not_empty(self, scope: Scope, sample: Sample) -> None:
        """A directory with something in it stays as it is."""
        target = scope.path()
        (target / "precious").write_text("here")
        refused(scope.synthfs("mount", "--daemon", sample.root, target, check=False), "not empty")
        assert (target / "precious").read_text() == "here"

    def test_missing_or_file(self, scope: Scope, sample: Sample) -> None:
        """What is no directory is no mountpoint."""
        target = scope.path() / "absent"
        refused(scope.synthfs("mount", "--daemon", sample.root, target, check=False), str(target), "mkdir -p")
        target.write_text("")
        done = scope.synthfs("mount", "--daemon", sample.root, target, check=False)
        refused(done, "no directory")
        assert "mkdir" not in done.stderr

    def test_store_without_disks(self, scope: Scope) -> None:
        """A store whose file system is not there looks like an empty directory: that is told, and mounted."""
        target = scope.path()
        try:
            done = scope.synthfs("mount", "--daemon", scope.path("unmounted"), target)
            assert len(done.stderr.splitlines()) == 1
            assert "no disk to offer" in done.stderr
        finally:
            scope.synthfs("umount", target)

    def test_remedy_can_be_copied(self, scope: Scope, sample: Sample) -> None:
        """The command that an error recommends is quoted for the shell."""
        target = scope.path("m ü") / "a b"
        done = scope.synthfs("mount", "--daemon", sample.root, target, check=False)
        command = done.stderr.split("`")[1]
        scope.run(["sh", "-c", command])
        assert target.is_dir()

    def test_served_already(self, scope: Scope, sample: Sample) -> None:
        """A running mount is not mounted over."""
        target = scope.synthfs_mount(sample.root)
        refused(scope.synthfs("mount", "--daemon", sample.root, target, check=False), "running", "umount")
        assert len(mounts_below(target)) == 1
        assert scope.server(target).poll() is None


class TestOthers:
    """A mount of something else is never touched."""

    def test_no_mount(self, scope: Scope) -> None:
        """`umount` of a plain directory fails."""
        refused(scope.synthfs("umount", scope.path(), check=False), "no synthfs mount")

    def test_other_file_system(self, scope: Scope, sample: Sample) -> None:
        """A tmpfs, alone or on top of one of ours, survives `umount` and `mount`."""
        alone = scope.mount("tmpfs", fstype="tmpfs")
        (alone / "precious").write_text("here")
        refused(scope.synthfs("umount", alone, check=False), "no synthfs mount")
        refused(scope.synthfs("mount", "--daemon", sample.root, alone, check=False), "not empty")
        on_top = scope.mount("tmpfs", scope.synthfs_mount(sample.root), fstype="tmpfs")
        refused(scope.synthfs("umount", on_top, check=False), "no synthfs mount")
        assert [mount.fstype for mount in mounts_below(on_top)] == ["fuse.synthfs", "tmpfs"]
        assert (alone / "precious").read_text() == "here"

    def test_dead_mount_of_somebody_else(self, scope: Scope, sample: Sample) -> None:
        """Another program's dead FUSE mount is neither unmounted nor replaced."""
        target = scope.path("theirs")
        source = (
            "import os, signal, sys, pyfuse3\n"
            "pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {'fsname=x', 'subtype=other'})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        scope.run([sys.executable, "-c", source, target], check=False)
        assert [mount.fstype for mount in mounts_below(target)] == ["fuse.other"]
        refused(scope.synthfs("umount", target, check=False), "no synthfs mount")
        refused(scope.synthfs("mount", "--daemon", sample.root, target, check=False), str(target))
        assert [mount.fstype for mount in mounts_below(target)] == ["fuse.other"]


def hold(scope: Scope, file: Path) -> "subprocess.Popen[bytes]":
    """A process that has a file open and reads no more of it."""
    holder = scope.start(["tail", "-c", "1", "-f", file])
    assert wait_until(lambda: str(file) in opened_by(holder.pid), 10.0)
    return holder


def opened_by(process: int) -> list[str]:
    """What a process has open; descriptors that come and go meanwhile are left out."""
    found = []
    for number in range(3, 10):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{process}/fd/{number}"))
    return found


def dead(scope: Scope, sample: Sample) -> Path:
    """A mountpoint whose server was killed."""
    target = scope.synthfs_mount(sample.root)
    server = scope.server(target)
    server.kill()
    server.wait(10)
    # A stat may still be answered: the kernel remembers what the root looked like.
    assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) == "ENOTCONN"
    return target


def test_ctrl_c_says_so(scope: Scope) -> None:
    """Ctrl-C in the middle of a look at the store ends with one line and 130."""
    source = (
        "import os, signal, sys, time\n"
        # What is started in the background by a shell without job control has it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import synthfs.cli.list\n"
        "from synthfs.cli.main import main\n"
        "synthfs.cli.list.look_at = lambda *arguments: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5))\n"
        "sys.argv = ['synthfs', 'list', '/']\n"
        "main()\n"
    )
    done = scope.run([sys.executable, "-c", source], check=False)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "synthfs: interrupted"


def test_reads_far_ahead(scope: Scope, sample: Sample) -> None:
    """Mounted by root, whoever reads in sequence causes requests that are longer than the kernel's 128 KiB, up to 1 MiB."""
    need.root()
    target = scope.synthfs_mount(sample.root, target=scope.path("served"))
    device = target.stat().st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert wait_until(lambda: read_ahead.read_text() == "1024\n", 10.0)
    source = """
with open(arguments[0], 'rb', buffering=0) as file:
    while file.read(65536):
        pass
answer(json.load(open(arguments[1])))
"""
    told = ask(scope, source, target / sample.C, target / ".synthfs/status.json")
    assert told["read_bytes"] > 100 << 20
    assert told["read_bytes"] / told["reads"] > 512 << 10
