"""Every command in README.md and docs/operations/ is run, on the sample store, page by page; or there is a reason why not.

A command is a line of an indented block that begins with one of COMMANDS. Words in capitals stand for places of the sample;
what stands in brackets is optional, and tried with and without. Not for: what the commands do in detail, which other tests
have.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import need
from lab import REPOSITORY, Lab, Scope
from ledger import detach, loops_below, mounts_below
from processes import Argument, wait_until

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs/operations").glob("*.md"))]
WITHOUT_WINDOWS = "there is no Windows to run it on"
WITHOUT_SYSTEMD = "there is no systemd to run it in"
NOT_RUN = {
    "scripts/run*": "it sets the whole machine up",
    "scripts/test*": "it is what runs this",
    "scripts/package*": "test_package builds and installs it",
    "*apt install*": "test_package installs the package; other packages come from Debian",
    "synthfs boot*": "test_boot runs it, on a disk that boots",
    "sudo adduser*": "a user of the machine that others make",
    "sudo systemctl*": WITHOUT_SYSTEMD,
    "sudo systemd-tmpfiles*": WITHOUT_SYSTEMD,
    "docker*": "there is no container engine",
    'synthfs sync "$@"': "test_sync_hook runs the script that it is a line of",
    "*/var/urbackup*": "it is about UrBackup's own directory; test_sync_hook runs the hook",
    "diskpart": WITHOUT_WINDOWS,
    "New-VHD*": WITHOUT_WINDOWS,
    "New-VM*": WITHOUT_WINDOWS,
    "Set-VHD*": WITHOUT_WINDOWS,
    "Convert-VHD*": WITHOUT_WINDOWS,
    "net use*": WITHOUT_WINDOWS,
    "wpeinit": WITHOUT_WINDOWS,
}
"""Patterns of commands that cannot run here, and why."""

COMMANDS = (
    *("synthfs", "scripts/", "sudo", "apt", "mkdir", "mount", "umount", "losetup", "partx", "ls", "cp ", "kill", "findmnt"),
    *("file=", "start=", "sectors=", "loop=", "qemu-img", "qemu-nbd", "qemu-system", "docker", "podman", "zfs ", "zpool"),
    *("smbclient", "chmod", "setfattr", "systemctl", "diskpart", "net use", "wpeinit"),
    *("New-VHD", "New-VM", "Set-VHD", "Convert-VHD"),
)
FAILS = {"synthfs share * --check": 1, "synthfs doctor*": 1}
"""Commands that may also end with this code: what they look at is not set up here, and they say so."""

NEWEST = "office-pc/Image_C_260302-0201.vhd"


@dataclass(slots=True)
class Page:
    """A place to run one page in: a store on BTRFS, and a shell that keeps its variables from line to line."""

    scope: Scope
    base: Path
    foreground: "subprocess.Popen[bytes] | None" = None
    variables: str = ""

    @property
    def mountpoint(self) -> Path:
        return self.base / "srv/synthfs/disks"

    @property
    def frozen(self) -> Path:
        return self.base / "frozen"

    @property
    def image(self) -> Path:
        return self.base / "urbackup/office-pc/260302-0201_Image_C/Image_C_260302-0201.raw"

    def words(self, verb: str) -> dict[str, Path | str]:
        """What the words in capitals stand for; a FILE is one of the mount where it is written to."""
        in_mount = verb in ("discard", "keep")
        return {
            "/srv/synthfs/disks": self.mountpoint,
            "/srv/urbackup-scratch": self.base / "scratch",
            "MOUNTPOINT": self.mountpoint,
            "STORE": self.base / "urbackup",
            "DIRECTORY": self.frozen,
            "SCRATCH": self.base / "scratch",
            "FILE": self.mountpoint / NEWEST if in_mount else self.frozen / Path(NEWEST).name,
            "IMAGE": self.image,
            "GLOB": "office-*",
            "@admins": "@root",
            "alice": "root",
        }

    def run(self, command: str) -> None:
        """One line; a foreground mount goes on in the background, until the page mounts anew."""
        verb = command.split()[1] if command.startswith("synthfs ") else ""
        self._prepare(command, verb)
        command = command.replace("mount … ", "mount --writable SCRATCH STORE MOUNTPOINT ")
        for word, meaning in self.words(verb).items():
            command = re.sub(rf"(?<![\w/]){word}(?!\w)", str(meaning), command)
        # mount(8) looks for its helper in /sbin alone, where test_package installs one.
        command = re.sub(r"^mount -t synthfs (-o \S+) (.*)", r"mount.synthfs \2 \1", command)
        if verb == "mount" and "--daemon" not in command:
            self.foreground = self.scope.start([sys.executable, "-m", "synthfs", *shlex.split(command)[1:]])
            assert wait_until(lambda: bool(mounts_below(self.mountpoint)), 20.0), command
            return
        variable = re.match(r"(\w+)=", command)
        told = f'\nprintf %s "${variable[1]}"' if variable else ""
        paths = {"PATH": f"{self.base}/bin:{os.environ['PATH']}", "STATE_DIRECTORY": str(self.base / "state")}
        began = time.monotonic()
        shell: list[Argument] = ["bash", "-euc", f"{self.variables}\n{command}{told}"]
        done = self.scope.run(shell, cwd=self.base, check=False, env=paths)
        if variable:
            self.variables += f"{variable[1]}={shlex.quote(done.stdout)}\n"
        print(f"{time.monotonic() - began:5.1f} s: {command}")
        allowed = {0, *(code for pattern, code in FAILS.items() if fnmatchcase(command, pattern))}
        assert done.returncode in allowed, f"{command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr

    def _prepare(self, command: str, verb: str) -> None:
        """What a reader would have done: an empty mountpoint, a disk that was written to, a file to compare with."""
        if "SCRATCH" in command or "mount …" in command:
            (self.base / "scratch").mkdir(exist_ok=True)
        if verb in ("discard", "keep"):
            self.scope.in_child("import sys; open(sys.argv[1], 'r+b').write(b'written')", self.mountpoint / NEWEST)
        if verb == "mount" or command.startswith("mount -t synthfs"):
            self.end()
        if verb == "materialize":
            (self.frozen / Path(NEWEST).name).unlink(missing_ok=True)
        if "--against" in command:
            self.scope.synthfs("materialize", "--force", self.image, "-o", self.frozen)

    def end(self) -> None:
        if self.foreground:
            self.foreground.send_signal(signal.SIGINT)
            self.foreground.wait(20)
            self.foreground = None
        elif mounts_below(self.mountpoint):
            self.scope.synthfs("umount", self.mountpoint, check=False)


def blocks(page: Path) -> Iterator[list[str]]:
    """The indented blocks of a page, outside of lists' paragraphs too."""
    block: list[str] = []
    for line in [*page.read_text().splitlines(), ""]:
        if re.match(r" {4,}\S", line):
            block.append(line)
        elif block:
            yield [one.strip() for one in block]
            block = []


def commands(page: Path) -> list[str]:
    """What a reader would type, without what is said about it."""
    found = []
    for block in blocks(page):
        for line in block:
            command = re.sub(r"\s+#\s.*$|\s{3,}.*$", "", line)
            if command.startswith(COMMANDS) and re.match(r"[\w/.-]+([= ]|$)", command):
                found.append(command)
    return found


def variants(command: str) -> list[str]:
    """Without what is optional, and with all of it."""
    optional = r" ?\[(-[^\]]*)\]"
    without, whole = re.sub(optional, "", command), re.sub(optional, r" \1", command)
    return [without] if without == whole else [without, re.sub(r"\bN\b", "2", whole)]


def why_not(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if fnmatchcase(command, pattern)), None)


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Path]:
    """The store that scripts/sample-store makes, on a BTRFS of its own; pages get snapshots of it."""
    need.root()
    need.fuse()
    need.tool("qemu-img", "ntfs-3g", "losetup")
    with lab.scope("sample") as scope:
        btrfs = scope.btrfs(1 << 30)
        scope.run([sys.executable, REPOSITORY / "scripts/sample-store", btrfs / "urbackup"], timeout=120.0)
        yield btrfs


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands(scope: Scope, sample: Path, path: Path) -> None:
    """Each command of a page succeeds, or is in the list of those that cannot run here."""
    base = sample / path.stem
    for name in ("bin", "frozen", "srv/synthfs/disks", "state"):
        (base / name).mkdir(parents=True)
    (base / "urbackup").symlink_to(sample / "urbackup")
    for name, module in (("synthfs", "main"), ("mount.synthfs", "fstab")):
        program = base / "bin" / name
        program.write_text(f"#!{sys.executable}\nfrom synthfs.cli.{module} import main\nmain()\n")
        program.chmod(0o755)
    page = Page(scope, base)
    try:
        for command in commands(path):
            for variant in variants(command) if why_not(command) is None else ():
                page.run(variant)
    finally:
        for loop in loops_below(page.mountpoint):
            detach(loop)
        page.end()


def test_every_reason_is_needed() -> None:
    """The list of what cannot run names nothing that is in no page."""
    everything = [command for path in PAGES for command in commands(path)]
    assert len(everything) > 40
    assert [pattern for pattern in NOT_RUN if not any(fnmatchcase(command, pattern) for command in everything)] == []
