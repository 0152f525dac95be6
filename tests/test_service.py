"""The service: what a mount tells systemd, through a socket that the test holds, and what the unit file may not say.

Not for: systemd itself, which does not run here; its own checker reads the unit. Units: seconds.
"""

import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import REPOSITORY, Lab, Scope
from ledger import mounts_below
from onmount import Sample, ask
from processes import Argument, wait_until

UNIT = REPOSITORY / "scripts" / "systemd" / "synthfs@.service"
MAKES_A_NAMESPACE = (
    "ProtectSystem", "ProtectHome", "ProtectKernel*", "ProtectControlGroups", "ProtectProc", "ProtectClock", "ProtectHostname",
    "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork", "PrivateUsers", "PrivateIPC", "PrivatePIDs",
    "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths", "BindReadOnlyPaths",
    "ReadOnlyDirectories", "ReadWriteDirectories", "InaccessibleDirectories", "TemporaryFileSystem",
    "RootDirectory", "RootImage", "RootHash*", "MountImages", "ExtensionImages", "ExtensionDirectories", "MountFlags",
    "MountAPIVFS", "DynamicUser", "LogNamespace", "ProcSubset", "NetworkNamespacePath", "IPCNamespacePath", "JoinsNamespaceOf",
    "LoadCredential*", "SetCredential*", "ImportCredential",
)  # fmt: skip
"""What systemd.exec(5) and exec_needs_mount_namespace() in its source make a mount namespace for."""

HOLD = "import os, sys, time; os.dup2(os.open(sys.argv[1], os.O_RDONLY), 9); time.sleep(60)"


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    need.fuse()
    with lab.scope("service") as scope:
        yield Sample.make(scope)


class Supervisor:
    """What systemd is to a service: a datagram socket, and here a memory of what came."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.told: list[dict[str, str]] = []

    def hear(self) -> list[str]:
        """The states that were told so far, in order; repeated signs of life once."""
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except BlockingIOError:
                break
            self.told.append(dict(line.split("=", 1) for line in message.splitlines()))
        found: list[str] = []
        for told in self.told:
            state = next((name for name in ("READY", "RELOADING", "STOPPING", "WATCHDOG") if name in told), None)
            if state and found[-1:] != [state]:
                found.append(state)
        return found

    def waits_for(self, *states: str, limit: float = 10.0) -> bool:
        return wait_until(lambda: self.hear()[-len(states) :] == list(states), limit)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(lab: Lab) -> Iterator[Supervisor]:
    # Not below the test's own directory: the path of a socket has no more than 107 bytes.
    one = Supervisor(lab.path("notify"))
    yield one
    one.close()


def test_whole_life(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """READY when a file can be stat'ed, then signs of life, RELOADING and READY around a SIGHUP, STOPPING at the end."""
    environment = {"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": "400000"}
    target = scope.synthfs_mount(sample.root, env=environment)
    assert supervisor.waits_for("READY", "WATCHDOG")
    assert ask(scope, "answer(failure(os.stat, arguments[0]))", target / Sample.C) is None
    assert "2 disks of" in supervisor.told[0]["STATUS"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    scope.server(target).send_signal(signal.SIGHUP)
    assert supervisor.waits_for("RELOADING", "READY", "WATCHDOG")
    (reloading,) = [told for told in supervisor.told if "RELOADING" in told]
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    signs = len([told for told in supervisor.told if "WATCHDOG" in told])
    time.sleep(1.2)
    supervisor.hear()
    assert len([told for told in supervisor.told if "WATCHDOG" in told]) >= signs + 3
    scope.server(target).terminate()
    assert scope.server(target).wait(10) == 0
    assert supervisor.hear() == ["READY", "WATCHDOG", "RELOADING", "READY", "WATCHDOG", "STOPPING"]


def test_status_follows_the_store(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """The line that `systemctl status` shows has the present number of disks after a reload."""
    root = sample.copy(scope)
    target = scope.synthfs_mount(root, env={"NOTIFY_SOCKET": str(supervisor.path)})
    assert supervisor.waits_for("READY")
    shutil.rmtree(sample.raw(root, sample.d).parent)
    scope.server(target).send_signal(signal.SIGHUP)
    assert supervisor.waits_for("READY", "RELOADING", "READY")
    assert "1 disks of" in supervisor.told[-1]["STATUS"]


def test_no_mount_is_not_ready(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """A mount that the kernel refuses ends with an error, and nothing is told."""
    need.root()
    need.tool("setpriv")
    argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-m", "synthfs", "mount"]
    done = scope.run([*argv, sample.root, scope.path("served")], check=False, env={"NOTIFY_SOCKET": str(supervisor.path)})
    assert done.returncode == 9
    assert supervisor.hear() == []


def test_mount_that_fails_its_own_look(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """A mount through which nothing can be stat'ed is not ready, and one that ceases to answer gives no more signs of life."""
    target, switch = scope.path("served"), scope.path() / "on"
    switch.touch()
    environment = {"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": "400000", "FAULT_SWITCH": str(switch)}
    log = scope.path("log") / "server.log"
    server = Path(__file__).with_name("faulty_server.py")
    scope.start([sys.executable, server, "bug:lookup", "mount", sample.root, target], log=log, env=environment)
    assert wait_until(lambda: "injected into lookup" in log.read_text(), 20.0)
    # The tracer takes itself away after one exception, so that the next look succeeds.
    assert supervisor.waits_for("READY", "WATCHDOG")


def test_mount_that_nobody_reaches_starves_the_watchdog(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """The process runs, but the mount is gone from where clients look for it: no more signs of life."""
    environment = {"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": "400000"}
    target = scope.synthfs_mount(sample.root, env=environment)
    assert supervisor.waits_for("READY", "WATCHDOG")
    # A file that is open keeps the detached mount, and its process, alive.
    reader = scope.start([sys.executable, "-c", HOLD, target / Sample.C])
    assert wait_until(lambda: any(Path(f"/proc/{reader.pid}/fd").glob("9")), 10.0)
    scope.run(["umount", "--lazy", target])
    time.sleep(0.3)
    supervisor.hear()
    signs = len(supervisor.told)
    time.sleep(1.2)
    supervisor.hear()
    assert len(supervisor.told) == signs
    assert scope.server(target).poll() is None


def test_mount_namespace_is_never_ready(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """In a mount namespace of its own, where smbd could not see the mount, the service says so and is not ready."""
    need.root()
    need.tool("unshare")
    target = scope.path("served")
    argv: list[Argument] = [
        "unshare",
        "--mount",
        "--propagation=private",
        sys.executable,
        "-m",
        "synthfs",
        "mount",
        sample.root,
        target,
    ]
    server = scope.start(argv, env={"NOTIFY_SOCKET": str(supervisor.path)})
    assert wait_until(lambda: bool(supervisor.hear() or supervisor.told), 15.0)
    time.sleep(0.6)
    assert supervisor.hear() == []
    assert "namespace" in supervisor.told[0]["STATUS"]
    assert not mounts_below(target)
    assert server.poll() is None


def test_supervisor_that_went_away(scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
    """A notification socket that vanished does not end the mount."""
    target = scope.synthfs_mount(sample.root, env={"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": "200000"})
    assert supervisor.waits_for("READY", "WATCHDOG")
    supervisor.close()
    supervisor.path.unlink()
    time.sleep(0.5)
    assert scope.server(target).poll() is None
    assert ask(scope, "answer(failure(os.stat, arguments[0]))", target / Sample.C) is None


class TestUnit:
    @staticmethod
    def settings() -> dict[str, str]:
        lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#;["]
        return dict(line.split("=", 1) for line in lines)

    def test_no_mount_namespace(self) -> None:
        """No directive that makes a mount namespace, which would hide the mount from smbd."""
        patterns = [pattern.replace("*", ".*") for pattern in MAKES_A_NAMESPACE]
        assert [key for key in self.settings() for pattern in patterns if re.fullmatch(pattern, key)] == []

    def test_is_a_service_that_notifies(self) -> None:
        """It waits for READY, reloads by SIGHUP, has a watchdog, stays in the foreground and is restarted."""
        settings = self.settings()
        assert settings["Type"] == "notify"
        assert "-HUP $MAINPID" in settings["ExecReload"]
        assert int(settings["WatchdogSec"]) > 0
        assert settings["Restart"] in ("on-failure", "always")
        assert "--daemon" not in settings["ExecStart"]
        # fusermount3 is setuid, so this is for root alone.
        assert "User" not in settings or "NoNewPrivileges" not in settings

    def test_restarts_what_may_mend_itself(self, scope: Scope) -> None:
        """A command line that is not understood is not tried again (test_systemd.py), a store that is not there yet is."""
        hopeless = {int(code) for code in self.settings()["RestartPreventExitStatus"].split()}
        target = scope.path("served")
        assert scope.synthfs("mount", "--gruop", "backup", target, target, check=False).returncode in hopeless
        for words in (("", target), (target, "")):
            assert scope.synthfs("mount", *words, check=False).returncode in hopeless
        assert scope.synthfs("mount", target / "absent", target, check=False).returncode not in hopeless
        assert self.settings()["AssertPathExists"] == self.settings()["EnvironmentFile"]

    def test_systemd_accepts_it(self, scope: Scope) -> None:
        """systemd's own checker has nothing to say about the unit."""
        need.tool("systemd-analyze")
        text = UNIT.read_text().replace("/usr/local/bin/synthfs", "/bin/true")
        copy = scope.path("unit") / "synthfs@test.service"
        copy.write_text(text)
        done = scope.run(["systemd-analyze", "verify", "--man=no", copy], check=False)
        about_it = [line for line in done.stderr.splitlines() if "synthfs" in line]
        assert (done.returncode, about_it) == (0, [])

    def test_system_calls(self, scope: Scope, sample: Sample, supervisor: Supervisor) -> None:
        """Every system call of a life from mount to unmount, with reads and a refresh, is one that the filter lets through."""
        need.root()
        need.tool("systemd-analyze", "strace")
        allowed = set()
        for group in self.settings()["SystemCallFilter"].split():
            allowed |= system_calls(scope, group)
        trace = scope.path("trace") / "trace"
        target = scope.path("served")
        argv: list[Argument] = [
            "strace",
            "--follow-forks",
            "--output",
            trace,
            sys.executable,
            "-m",
            "synthfs",
            "mount",
            sample.root,
            target,
        ]
        tracer = scope.start(argv, env={"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": "1000000"})
        assert supervisor.waits_for("READY", "WATCHDOG", limit=60.0)
        ask(scope, "drop_caches(); answer(len(os.pread(opened(arguments[0]), 1 << 20, 60 << 20)))", target / Sample.C)
        (child,) = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()
        scope.run(["kill", "-HUP", child])
        assert supervisor.waits_for("RELOADING", "READY", "WATCHDOG", limit=30.0), supervisor.told
        scope.run(["kill", "-TERM", child])
        assert tracer.wait(20) == 0
        made = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)[( ]", trace.read_text(), re.MULTILINE))
        assert {"mount", "openat", "umount2"} <= made
        assert made - allowed == set()

    def test_capabilities(self, scope: Scope, sample: Sample) -> None:
        """With the unit's capabilities and no others, the store of another user can be mounted, read and unmounted."""
        need.root()
        need.tool("setpriv")
        root = sample.copy(scope)
        scope.run(["chown", "-R", "backup:backup", root])
        scope.run(["chmod", "-R", "go=", root])
        kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in self.settings()["CapabilityBoundingSet"].split())
        target = scope.path("served")
        argv = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", sys.executable, "-m", "synthfs"]
        server = scope.start([*argv, "mount", "--allow-other", root, target])
        assert wait_until(lambda: server.poll() is not None or bool(mounts_below(target)), 20.0)
        source = "answer(open(arguments[0], 'rb').read(1 << 20) == open(arguments[1], 'rb').read(1 << 20))"
        assert ask(scope, source, target / Sample.C, sample.disk.path)
        server.terminate()
        assert server.wait(10) == 0
        assert not mounts_below(target)


def system_calls(scope: Scope, group: str) -> set[str]:
    """The system calls of one of systemd's groups, and of the groups in it."""
    found: set[str] = set()
    for line in scope.run(["systemd-analyze", "syscall-filter", group]).stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            found |= system_calls(scope, name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found
