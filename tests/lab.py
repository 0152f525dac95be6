"""The laboratory: one object that owns all loop devices, mounts and processes of a test run.

Not for: sample data. A `Scope` makes things and takes them down in reverse order of birth when it closes; a `Lab` is
the scope of the whole run, in a directory of its own under BASE, which fails when anything is left at its end.
Everything that can hang on a mount runs in a child with a limit. Units: bytes and seconds.
"""

import contextlib
import os
import re
import secrets
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import ledger
import need
from ledger import Ledger, Loop, mounts_below
from processes import MARK, Argument, CommandFailedError, Identity, in_child, run, wait_until
from terminals import Terminal

# One for each user: what root left, others could not clean.
BASE = Path("/var/tmp/synthfs-lab" if os.geteuid() == 0 else f"/var/tmp/synthfs-lab-{os.geteuid()}")
REPOSITORY = Path(__file__).resolve().parent.parent
MIB = 1 << 20
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


class LeftoverError(AssertionError):
    """A run of the tests left something on the machine."""


class Scope:
    """Makes devices, mounts and processes below one directory; closing it takes them down in reverse order."""

    def __init__(self, directory: Path, run_directory: Path, record: Ledger) -> None:
        self.directory = directory
        self._run_directory = run_directory
        self._ledger = record
        self._stack = ExitStack()
        self._logs: list[Path] = []
        self._servers: dict[Path, subprocess.Popen[bytes]] = {}
        self._count = 0

    def close(self) -> None:
        self._stack.close()
        # What a command mounted by itself (a daemon, a script) is not in the stack.
        self.umount(self.directory)

    @contextmanager
    def scope(self, name: str) -> "Iterator[Scope]":
        """A part of this scope with a directory of its own, which ends before this one does."""
        inner = Scope(self.path(name), self._run_directory, self._ledger)
        try:
            yield inner
        finally:
            inner.close()
            # A run that keeps the sample disks of all its tests would fill the machine.
            if not mounts_below(inner.directory):
                shutil.rmtree(inner.directory, ignore_errors=True)

    # -- files, devices, mounts

    def path(self, name: str = "dir") -> Path:
        """A fresh sub-directory."""
        self._count += 1
        directory = self.directory / f"{self._count:02}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:60]}"
        directory.mkdir(mode=0o755)
        return directory

    def sparse(self, length: int, name: str) -> Path:
        """A file of holes."""
        file = self.path(name) / f"{name}.img"
        with file.open("xb") as out:
            out.truncate(length)
        return file

    def loop(
        self,
        file: Path,
        *,
        partscan: bool = False,
        read_only: bool = False,
        sector_size: int = 512,
        part: tuple[int, int] | None = None,
    ) -> str:
        """Attach a file of this run, or a part of it (offset, length), to a free loop device; returns the device's path."""
        need.loop()
        file = self._ours(file)
        self._ledger.write("intend", "loop", backing=str(file))
        options = [*["--partscan"] * partscan, *["--read-only"] * read_only, f"--sector-size={sector_size}"]
        options += [f"--offset={part[0]}", f"--sizelimit={part[1]}"] if part else []
        device = run(["losetup", "--find", "--show", *options, str(file)], timeout=20).stdout.decode().strip()
        self._ledger.write("made", "loop", device=device, backing=str(file))
        self._stack.callback(self._detach, Loop(device, file))
        return device

    def mount(
        self, source: Argument, target: Path | None = None, *, fstype: str | None = None, options: str = ""
    ) -> Path:
        """Mount a device (or, with `bind` among the options, a directory); returns the mount point."""
        need.root()
        target = self._ours(target or self.path("mnt"))
        argv: list[Argument] = ["mount", *(["-t", fstype] if fstype else []), *(["-o", options] if options else [])]
        self._ledger.write("intend", "mount", target=str(target))
        self._stack.callback(self.umount, target)
        run([*argv, source, str(target)])
        self._ledger.write("made", "mount", target=str(target))
        return target

    def umount(self, target: Path) -> None:
        """Unmount everything at or below a mount point of this run, lazily if it is busy or hangs."""
        for mount in reversed(mounts_below(self._ours(target))):
            ledger.unmount(mount)
            self._ledger.write("gone", "mount", target=str(mount.target))

    def btrfs(self, length: int = 512 * MIB, *, name: str = "btrfs", options: str = "") -> Path:
        need.tool("mkfs.btrfs", "btrfs")
        return self._filesystem("btrfs", ["mkfs.btrfs", "-q"], length, name, options)

    def xfs(self, length: int = 512 * MIB, *, name: str = "xfs", options: str = "") -> Path:
        need.tool("mkfs.xfs")
        return self._filesystem("xfs", ["mkfs.xfs", "-q", "-m", "reflink=1"], length, name, options)

    def ext4(self, length: int = 256 * MIB, *, name: str = "ext4", options: str = "") -> Path:
        need.tool("mkfs.ext4")
        return self._filesystem("ext4", ["mkfs.ext4", "-q", "-m", "0"], length, name, options)

    # -- commands and processes

    @property
    def environment(self) -> dict[str, str]:
        """For children: marked as this run's, finding the checked-out synthfs first, and caches of this run alone."""
        caches = str(self._run_directory / "caches")
        return {**os.environ, MARK: str(self._run_directory), "PYTHONPATH": str(REPOSITORY), "CACHE_DIRECTORY": caches}

    def run(
        self,
        argv: Sequence[Argument],
        *,
        timeout: float = 60.0,
        check: bool = True,
        input: str = "",
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, at most `timeout` seconds; `env` adds to the environment, `user` drops root."""
        done = run(
            argv,
            timeout=timeout,
            check=check,
            input=input.encode(**TEXT),
            cwd=cwd,
            env={**self.environment, **(env or {})},
            user=user,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(**TEXT), done.stderr.decode(**TEXT)
        )

    def start(
        self,
        argv: Sequence[Argument],
        *,
        log: Path | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that ends, at the latest, with this scope; its output goes to a log file."""
        log = log or self.path("log") / f"{Path(os.fspath(argv[0])).name}.log"
        self._logs.append(log)
        with log.open("ab") as out:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self.environment, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        identity = Identity.of(child.pid)
        if identity is not None:
            self._ledger.process("process", identity)
        self._stack.callback(self._end, child, identity)
        return child

    def in_child(self, source: str, *arguments: Argument, timeout: float = 20.0) -> bytes:
        """The stdout of Python source run in a child with a limit; the arguments are its `sys.argv[1:]`."""
        return in_child(source, *arguments, timeout=timeout, env=self.environment)

    def logs(self) -> list[tuple[Path, str]]:
        """The ends of the log files of the processes that this scope started."""
        return [(log, log.read_text(errors="replace")[-8000:]) for log in self._logs if log.exists()]

    # -- synthfs, the program under test

    def synthfs(
        self,
        *arguments: Argument,
        timeout: float = 60.0,
        check: bool = True,
        env: dict[str, str] | None = None,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        python, added = self.python_for_all() if user else (sys.executable, {})
        argv = [python, "-m", "synthfs", *arguments]
        return self.run(argv, timeout=timeout, check=check, env={**added, **(env or {})}, user=user)

    def synthfs_mount(
        self,
        store: Path,
        *options: Argument,
        target: Path | None = None,
        timeout: float = 30.0,
        env: dict[str, str] | None = None,
        terminal: Terminal | None = None,
    ) -> Path:
        """Serve a store in a recorded foreground process, on a `terminal` if one is given; returns the mount point once
        its root answers."""
        need.fuse()
        target = self._ours(target or self.path("served"))
        log = self.path("log") / "synthfs-mount.log"
        self._stack.callback(self.umount, target)
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "mount", *options, store, target]
        server = self._servers[target] = self.start(terminal.argv(argv) if terminal else argv, log=log, env=env)

        def served() -> bool:
            return server.poll() is not None or any(mount.target == target for mount in mounts_below(target))

        if not wait_until(served, timeout) or server.poll() is not None:
            raise CommandFailedError(f"synthfs mount (exit code {server.poll()}): {_tail(log)}")
        if [mount.fstype for mount in mounts_below(target)] != ["fuse.synthfs"]:
            raise CommandFailedError(f"not mounted as fuse.synthfs: {mounts_below(target)}\n{_tail(log)}")
        self.in_child("import os, sys; os.stat(sys.argv[1])", target)
        return target

    def server(self, target: Path) -> subprocess.Popen[bytes]:
        """The process that serves a mount point of `synthfs_mount`."""
        return self._servers[target]

    def python_for_all(self) -> tuple[str, dict[str, str]]:
        """This Python for every user, and the environment it needs: what lies below /root is closed to others."""
        base = Path(sys.base_prefix)
        home = self._reachable(base)
        python = home / Path(sys.executable).resolve().relative_to(base)
        path = [REPOSITORY, *(Path(entry) for entry in site.getsitepackages())]
        # A Python with a shared library of its own must not find the system's, which has the same name.
        own = {"PYTHONPATH": ":".join(str(self._reachable(entry)) for entry in path), "LD_LIBRARY_PATH": str(home / "lib")}
        return str(python), own

    def _reachable(self, directory: Path) -> Path:
        if all(parent.stat().st_mode & 0o001 for parent in (directory, *directory.parents)):
            return directory
        return self.mount(directory, options="bind,ro")

    # -- how it is done

    def _ours(self, path: Path) -> Path:
        # Lexical on purpose: resolving a path asks the file system, which may be a dead mount.
        path = Path(os.path.abspath(path))
        if not path.is_relative_to(self._run_directory):
            raise ValueError(f"{path} is not below {self._run_directory}: nobody would clean it up")
        return path

    def _filesystem(self, fstype: str, mkfs: list[str], length: int, name: str, options: str) -> Path:
        need.kernel(fstype)
        image = self.sparse(length, name)
        run([*mkfs, str(image)])
        return self.mount(self.loop(image), self.path(f"mnt-{name}"), fstype=fstype, options=options)

    def _detach(self, loop: Loop) -> None:
        # The test may have detached it, and the kernel given the device to somebody else.
        if loop in ledger.loops_below(self._run_directory):
            ledger.detach(loop)
        self._ledger.write("gone", "loop", device=loop.device, backing=str(loop.backing))

    def _end(self, child: subprocess.Popen[bytes], identity: Identity | None) -> None:
        if identity is not None:
            identity.terminate()
            self._ledger.write("gone", "process", pid=identity.pid, start=identity.start)
        # A process of several threads looks like a zombie before the last of them has ended.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5.0)


class Lab(Scope):
    """The scope of a whole run: cleans up after dead runs at its start, and fails when something is left at its end."""

    def __init__(self, base: Path = BASE) -> None:
        base = ledger.own_directory(base)
        self.resisted = ledger.sweep(base)
        me = Identity.of(os.getpid())
        assert me is not None
        directory = base / f"{me.pid}-{secrets.token_hex(4)}"
        directory.mkdir(mode=0o755)
        record = Ledger(directory)
        record.process("run", me)
        super().__init__(directory, directory, record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down; what no scope took down, or could not, is removed by force and reported."""
        super().close()
        # A daemon whose mount has just gone needs a moment to end.
        wait_until(lambda: not ledger.remains(self.directory), 5.0, pause=0.1)
        left = ledger.remains(self.directory)
        still = ledger.remove(self.directory)
        self._ledger.close()
        if left:
            raise LeftoverError("left at the end of the run: " + "; ".join(left) + _resisting(still))


def _resisting(still: list[str]) -> str:
    return f" -- and could not be removed: {'; '.join(still)}" if still else " (removed now)"


def _tail(log: Path) -> str:
    return f"{log}:\n{log.read_text(errors='replace')[-8000:]}"
