"""A Debian root directory with systemd as its process 1, in namespaces of its own: where units run as they are installed.

Not for: expectations; test_systemd has those. What it is made of is in need.debian(), below an overlay whose upper layer is
memory, so nothing that happens in it stays. Its network is a loopback device that is down, and the machine's own kernel
settings are read-only. Its control groups are of version 2, which every kernel has, also where the machine uses version 1.
Units: seconds.
Source: systemd's "Container Interface" (CONTAINER_INTERFACE.md), unshare(1).
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import need
from lab import Scope
from processes import Argument, CommandFailedError, wait_until

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
PREFIX = "synthfs-test-"
"""Of our control groups."""

# Arguments: the lower layer, a directory to begin in, then pairs SOURCE and TARGET to bind.
BOOT = r"""
lower=$1 place=$2
shift 2
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" overlay "$place/root"
cd "$place/root"
while [ $# -gt 0 ]; do
    mkdir -p "./$2"
    mount --bind "$1" "./$2"
    shift 2
done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty fuse; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mkdir old
pivot_root . old
umount -l /old
hostname synthfs-test
exec env -i container=synthfs-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init --unit=multi-user.target
"""


class SystemdRoot:
    """A system that has booted. Commands run in it as its root, and find nothing of this machine but what was bound."""

    def __init__(self, scope: Scope, init: int) -> None:
        self._scope = scope
        self._enter = ["nsenter", "--target", str(init), "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        self._cursor = ""

    def run(
        self, *words: Argument, input: str = "", check: bool = True, timeout: float = 60.0, user: str | None = None
    ) -> CompletedProcess[str]:
        clean = ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        drop = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        return self._scope.run([*self._enter, "--", *clean, *drop, *words], input=input, check=check, timeout=timeout)

    def shell(self, script: str, *, check: bool = True, user: str | None = None) -> str:
        return self.run("sh", "-ec", script, check=check, user=user).stdout

    def write(self, path: str, text: str) -> None:
        """Makes the directories above as well."""
        self.run("sh", "-ec", 'mkdir -p "${1%/*}"; cat >"$1"', "sh", path, input=text)

    def install(self, package: str) -> None:
        """A .deb that was bound into the root."""
        self.run("dpkg", "--force-unsafe-io", "--no-triggers", "--install", package)

    def state(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def from_now_on(self) -> None:
        """What was logged until now is not in `logged` any more."""
        (last,) = self._journal("--lines=1")
        self._cursor = last["__CURSOR"]

    def logged(self, field: str = "", value: str = "") -> list[str]:
        """The lines of the journal, with `_SYSTEMD_UNIT` those of a unit itself, with `UNIT` what systemd said about it."""
        # journalctl's own filter, together with a cursor, leaves out the first line that it should give.
        lines = self._journal(*([f"--after-cursor={self._cursor}"] if self._cursor else []))
        return [line["MESSAGE"] for line in lines if not field or line.get(field) == value]

    def _journal(self, *words: str) -> list[dict[str, str]]:
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "--output=json", "--all", *words).stdout.splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def systemd_root(scope: Scope, binds: Sequence[tuple[Path, str]] = ()) -> Iterator[SystemdRoot]:
    """Boots one, with directories of the machine (real path, path there) bound into it, and ends all of it."""
    need.fuse()
    need.kernel("overlay")
    need.tool("unshare", "nsenter")
    lower = need.debian()
    hierarchy = scope.mount("cgroup2", fstype="cgroup2")
    _remove_stale(hierarchy)
    group = hierarchy / f"{PREFIX}{os.getpid()}-{scope.directory.name}"[:200]
    group.mkdir()
    pairs = [str(word) for pair in binds for word in pair]
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--kill-child", "--propagation=private"]
    argv: list[Argument] = ["sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"', group, "unshare", *namespaces]
    child = scope.start([*argv, "sh", "-ec", BOOT, "boot", lower, scope.path("systemd"), *pairs])
    try:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        if not wait_until(lambda: child.poll() is not None or bool(children.read_text()), 10.0) or child.poll() is not None:
            raise CommandFailedError("systemd was not started; the log has the reason")
        root = SystemdRoot(scope, int(children.read_text()))

        def booted() -> bool:
            if child.poll() is not None:
                raise CommandFailedError("systemd ended while it booted")
            done = root.run("systemctl", "is-system-running", check=False)
            return done.stdout.strip() in ("running", "degraded")

        if not wait_until(booted, 60.0, pause=0.1):
            raise CommandFailedError("systemd did not boot in a minute")
        yield root
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(children.read_text()), signal.SIGKILL)
        # All of its processes end with it, before it is gone itself.
        child.wait(20.0)
        wait_until(lambda: _removed(group), 10.0)


def _removed(group: Path) -> bool:
    """Takes a control group and those in it away; False while there are processes in one."""
    try:
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)
    except OSError:
        return not group.exists()
    return True


def _remove_stale(hierarchy: Path) -> None:
    """Control groups of runs that were killed; those of living ones cannot be removed."""
    for group in hierarchy.glob(f"{PREFIX}*"):
        _removed(group)

