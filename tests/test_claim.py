"""Several at one place: one of those who mount there at once wins, and `umount` knows of a copy that goes on elsewhere.

Not for: mounts that follow each other (test_mount, test_fstab). Source: flock(2), mount_namespaces(7).
"""

import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import need
from lab import Lab, Scope
from ledger import mounts_below
from onmount import Sample, ask
from processes import Argument, wait_until

HELPER = "import sys; from synthfs.cli.fstab import main; main()"


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.root()
    need.fuse()
    with lab.scope("claim") as scope:
        sample = Sample.make(scope)
        scope.run(["chmod", "-R", "a+rX", sample.root])
        yield sample


def all_at_once(
    scope: Scope, commands: list[list[Argument]], cwd: Path | None = None, user: str | None = None
) -> list[CompletedProcess[str]]:
    python, added = scope.python_for_all() if user else (sys.executable, {})
    with ThreadPoolExecutor(len(commands)) as pool:
        runs = [
            pool.submit(scope.run, [python, *command], cwd=cwd, env=added, user=user, check=False) for command in commands
        ]
        return [run.result() for run in runs]


def check_one_won(done: list[CompletedProcess[str]], target: Path) -> None:
    """One of them has mounted, once; each of the others says in a line that it has not, and why."""
    assert sorted(one.returncode for one in done) == [0] + [9] * (len(done) - 1), [one.stderr for one in done]
    for one in done:
        if one.returncode:
            assert len(one.stderr.splitlines()) == 1, one.stderr
            assert "is a running synthfs mount" in one.stderr or "is being mounted by" in one.stderr
    assert [mount.target for mount in mounts_below(target)] == [target]


class TestMountedTwice:
    def test_at_once(self, scope: Scope, sample: Sample) -> None:
        """Daemons and mount(8)'s helper, at one place that each spells in its way: one mount, which is served."""
        here = scope.path("here")
        target = here / "served"
        target.mkdir()
        (here / "link").symlink_to("served")
        places = (target, f"{target}/", here / "link", "served", f"{here}/link/../served/.")
        commands: list[list[Argument]] = [["-m", "synthfs", "mount", "--daemon", sample.root, place] for place in places]
        commands += [["-c", HELPER, sample.copy(scope), target]]
        try:
            check_one_won(all_at_once(scope, commands, cwd=here), target)
            assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) is None
            scope.synthfs("umount", here / "link")
            assert mounts_below(target) == []
        finally:
            scope.umount(target)

    def test_in_the_foreground(self, scope: Scope, sample: Sample) -> None:
        """Whoever stays in the foreground wins like any other, or ends."""
        target = scope.path("served")
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "mount", sample.root, target]
        servers = [scope.start(argv) for _ in range(3)]
        try:
            assert wait_until(lambda: sum(server.poll() is not None for server in servers) == 2, 30.0)
            assert wait_until(lambda: len(mounts_below(target)) == 1, 30.0)
            assert [server.poll() for server in servers if server.poll() is not None] == [9, 9]
        finally:
            scope.umount(target)

    def test_as_a_user(self, scope: Scope, sample: Sample) -> None:
        """The same of an ordinary user, whom fusermount3 mounts for."""
        need.tool("fusermount3")
        target = scope.path("served")
        os.chown(target, 65534, 65534)
        commands: list[list[Argument]] = [["-m", "synthfs", "mount", "--daemon", sample.root, target]] * 3
        try:
            check_one_won(all_at_once(scope, commands, user="nobody"), target)
        finally:
            scope.umount(target)

    def test_dead_mount_replaced_at_once(self, scope: Scope, sample: Sample) -> None:
        """Of two who find a dead mount, none takes away what the other has just mounted."""
        target = scope.synthfs_mount(sample.root)
        scope.server(target).kill()
        scope.server(target).wait(10)
        commands: list[list[Argument]] = [["-m", "synthfs", "mount", "--daemon", sample.root, target]] * 4
        try:
            done = all_at_once(scope, commands)
            assert sum("detaching the dead mount" in one.stderr for one in done) == 1
            for one in done:
                one.stderr = one.stderr.replace(f"detaching the dead mount at {target}\n", "")
            check_one_won(done, target)
            assert ask(scope, "answer(failure(os.listdir, arguments[0]))", target) is None
        finally:
            scope.umount(target)

    def test_killed_amid(self, scope: Scope, sample: Sample) -> None:
        """Who has the place and stands still is named; once he is killed, nothing of him is in the way."""
        target = scope.path("served")
        source = """
import os, sys, time
from synthfs.host.claim import Claim
claim = Claim(sys.argv[1])
print("claimed", flush=True)
time.sleep(600)
"""
        log = scope.path("log") / "claim.log"
        other = scope.start([sys.executable, "-c", source, target], log=log)
        assert wait_until(lambda: "claimed" in log.read_text(), 20.0), log.read_text()
        os.kill(other.pid, signal.SIGSTOP)
        done = scope.synthfs("mount", "--daemon", sample.root, target, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (9, 1)
        assert f"is being mounted by process {other.pid};" in done.stderr
        other.kill()
        other.wait(10)
        scope.synthfs("mount", "--daemon", sample.root, target)
        scope.synthfs("umount", target)


class TestCopies:
    def test_in_another_namespace(self, scope: Scope, sample: Sample) -> None:
        """`umount` names the process whose mount namespace has a copy; what it says ends the mount's process."""
        need.tool("unshare", "nsenter")
        target = scope.path("to be served")
        scope.synthfs_mount(sample.root, target=target)
        holder = scope.start(["unshare", "--mount", "--propagation=private", "sleep", "600"])
        seen = Path(f"/proc/{holder.pid}/mountinfo")
        assert wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", 10.0)
        assert "fuse.synthfs" in seen.read_text()
        done = scope.synthfs("umount", target, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (9, 1)
        assert f"sleep ({holder.pid}) has a copy in another mount namespace" in done.stderr
        assert mounts_below(target) == []
        assert scope.server(target).poll() is None
        (command,) = re.findall("`(nsenter .*)`", done.stderr)
        scope.run(["sh", "-c", command])
        assert scope.server(target).wait(10) == 0

    def test_in_this_one(self, scope: Scope, sample: Sample) -> None:
        """A bind mount keeps it too, and is named with its place."""
        target = scope.synthfs_mount(sample.root)
        copy = scope.mount(target, options="bind")
        done = scope.synthfs("umount", target, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (9, 1)
        assert f"it is mounted at {copy} too" in done.stderr
        scope.umount(copy)
        assert scope.server(target).wait(10) == 0
