"""`synthfs boot`: a backed-up Linux boots, sees its own disk, and its writes reach no backup.

Not for: Windows, of which there is none. Units: bytes and seconds. Under emulation, so that it runs everywhere.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import makeboot
import need
import ordinary
from lab import Lab, Scope
from makedisk import OriginalDisk
from makestore import Store
from processes import Argument, wait_until
from stock import Stock
from synthfs.errors import SynthfsError
from synthfs.host import qemu

SECTOR = 512
LIMIT = 150.0
QEMU = ("--no-kvm", "--memory", "256")


@dataclass(frozen=True, slots=True)
class Machines:
    """A store with the backups of two disks that boot, and of nothing else."""

    root: Path
    bios: OriginalDisk
    uefi: OriginalDisk

    def image(self, client: str) -> Path:
        return self.root / client / "260301-0201_Image_C" / "Image_C_260301-0201.raw"


@pytest.fixture(scope="module")
def machines(lab: Lab) -> Iterator[Machines]:
    need.fuse()
    need.tool("qemu-system-x86_64")
    with lab.scope("machines") as scope:
        bios, uefi = makeboot.bios_disk(scope.path("bios") / "bios.img"), makeboot.uefi_disk(scope.path("uefi") / "uefi.img")
        store = Store(scope.path("store") / "urbackup")
        store.client("bios").backup(bios, 1)
        store.client("uefi").backup(uefi, 1, "ESP", "260301-0200")
        store.client("uefi").backup(uefi, 2)
        yield Machines(store.root, bios, uefi)


def sums(root: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()}


def expected(disk: OriginalDisk) -> dict[str, str]:
    """What the guest has to say of its disk."""

    def sha256(offset: int, length: int) -> str:
        return hashlib.sha256(disk.read(offset, length)).hexdigest()

    found = {"size": str(disk.length), "first": sha256(0, SECTOR), "last": sha256(disk.length - SECTOR, SECTOR)}
    return found | {f"part{one.number}": sha256(one.start, 2048 * SECTOR) for one in disk.partitions}


def said(serial: Path) -> dict[str, str]:
    words = re.findall(rf"{makeboot.SEEN} (\w+)(?: (\S+))?", serial.read_text(errors="replace"))
    return dict(words)


class TestBoot:
    def test_boots(self, scope: Scope, machines: Machines) -> None:
        """Under BIOS from IDE, under UEFI from NVMe: Linux comes up, reads the original disk, writes, and switches itself off.

        A third one has its picture taken meanwhile, and a fourth may write one MiB only: it is told of an error, goes on, and
        the caller is warned. No byte of the store changes, and no mount is left.
        """
        before = sums(machines.root)
        few = ("--bus", "ide", "--after", str(LIMIT), "--snapshot-size", "1")
        bounded, heard = self.start(scope, machines.image("bios"), "--serial", "bounded", *few)
        disks, runs = {"bios": machines.bios, "uefi": machines.uefi}, {}
        for client, bus in (("bios", "ide"), ("uefi", "nvme")):
            runs[client] = self.start(scope, machines.image(client), "--serial", client, "--bus", bus, "--after", str(LIMIT))
        picture = scope.directory / "screen.png"
        # How soon there is something to see depends on the machine; between the firmware and Linux there is nothing.
        for seconds in ("10", "5", "15", "3", "25"):
            how = ("--screenshot", picture, "--after", seconds, *QEMU, "--json")
            facts = json.loads(scope.synthfs("boot", machines.image("uefi"), *how, timeout=LIMIT).stdout)
            assert (facts["firmware"], facts["kvm"]) == ("uefi", False)
            if facts["runs"] and len(set(pixels(picture))) > 4:
                break
        else:
            raise AssertionError("no picture has anything in it")
        for client, (process, serial) in runs.items():
            assert process.wait(LIMIT + 30) == 0
            assert said(serial) == expected(disks[client]) | {"scribbled": ""}
        assert bounded.wait(LIMIT + 30) == 0
        assert said(heard) == expected(machines.bios)
        warnings = {log.parent.name: text for log, text in scope.logs() if "--snapshot-size" in text}
        assert len(warnings) == 1, warnings
        assert sums(machines.root) == before
        assert left_behind() == []

    def test_ends_on_sigterm(self, scope: Scope, machines: Machines) -> None:
        """Asked to end, it takes machine and mount with it."""
        process, serial = self.start(scope, machines.image("bios"), "--serial", "bios")
        assert wait_until(serial.exists, 30.0)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert left_behind() == []

    @pytest.mark.parametrize("user", ["root", "nobody"])
    def test_qemu_is_confined(self, scope: Scope, machines: Machines, user: str) -> None:
        """Whoever calls: qemu is no root, has no capability and gets none, has a filter of system calls, and writes no more
        than it may to any file. The mount is for its caller alone."""
        file = scope.path("said") / "said"
        shutil.chown(file.parent, user)
        scope.run(["chmod", "-R", "o+rX", machines.root])
        how = ("--serial", file, *QEMU, "--after", str(LIMIT), "--snapshot-size", "64")
        process = scope.start([*ordinary.synthfs(scope, user=user), "boot", machines.image("bios"), *how])
        assert wait_until(lambda: file.exists() or process.poll() is not None, 30.0)
        assert wait_until(lambda: any(status(pid)["Seccomp"] == "2" for pid in machines_of(process.pid)), 10.0), scope.logs()
        (machine,) = machines_of(process.pid)
        assert wait_until(lambda: status(machine)["Uid"] == "65534\t" * 3 + "65534", 10.0), status(machine)
        found = status(machine)
        assert {found[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert (found["NoNewPrivs"], found["Gid"]) == ("1", "65534\t" * 3 + "65534")
        assert set(found["Groups"].split()) <= {"65534"}
        limit = next(line for line in Path(f"/proc/{machine}/limits").read_text().splitlines() if "file size" in line)
        assert limit.split()[3:5] == [str(64 << 20)] * 2
        table = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
        (mounted,) = [line for line in table if "/synthfs-boot-" in line]
        assert "allow_other" not in mounted
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert left_behind() == []

    def test_where_root_cannot_give_up_being_root(self, scope: Scope, machines: Machines) -> None:
        """With the capabilities of the installed unit, qemu would stay root: one line says so, and it is not started."""
        need.root()
        need.tool("setpriv")
        limited = ["setpriv", "--bounding-set=-all,+sys_admin,+dac_read_search", sys.executable, "-m", "synthfs"]
        done = scope.run([*limited, "boot", machines.image("bios"), "--serial", scope.directory / "said"], check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "not to run as root" in done.stderr
        assert left_behind() == []

    def start(self, scope: Scope, image: Path, option: str, name: str, *more: str) -> tuple["subprocess.Popen[bytes]", Path]:
        file = scope.path(name) / "said"
        argv: list[Argument] = [sys.executable, "-m", "synthfs", "boot", image, option, file, *QEMU, *more]
        return scope.start(argv), file


def machines_of(pid: int) -> list[int]:
    """The qemu processes that `synthfs boot` with this pid has."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if status(int(child)).get("Name", "").startswith("qemu")]


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status; empty where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def left_behind() -> list[str]:
    """Mounts of `synthfs boot`, and its machines."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/synthfs-boot-" in line]
    return [
        *mounted,
        *(str(left) for place in (tempfile.gettempdir(), "/var/tmp") for left in Path(place).glob("synthfs-boot-*")),
    ]


def pixels(file: Path) -> bytes:
    """The rows of a PNG, each with its filter; the checksums are looked at."""
    raw = file.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        kind, content = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == int.from_bytes(raw[at + 8 + length : at + 12 + length], "big")
        data += content if kind == b"IDAT" else b""
        at += 12 + length
    return zlib.decompress(data)


@pytest.fixture(scope="module")
def image(lab: Lab) -> Iterator[Path]:
    """Of a disk that boots nothing."""
    need.fuse()
    with lab.scope("image") as scope:
        yield next(Stock.make(scope).store(scope).root.rglob("*.raw"))


class TestWhereItCannot:
    def test_nothing_to_see(self, scope: Scope, image: Path) -> None:
        """Without a screenshot, a serial port or a window it says that one of them is wanted."""
        done = scope.synthfs("boot", image, check=False)
        assert done.returncode == 2
        assert "--screenshot" in done.stderr

    def test_without_qemu(self, scope: Scope, image: Path) -> None:
        """One line names the package; no mount is left."""
        programs = scope.path("bin")
        for name in ("umount", "head", "stat"):
            (programs / name).symlink_to(f"/usr/bin/{name}")
        done = scope.synthfs("boot", image, "--screenshot", programs / "x.png", check=False, env={"PATH": str(programs)})
        assert done.returncode == 1
        assert "apt install qemu-system-x86" in done.stderr
        assert "Traceback" not in done.stderr

    def test_where_qemu_fails(self, scope: Scope, image: Path) -> None:
        """Its last words are told, and no mount is left."""
        program = scope.path("bin") / "qemu-system-x86_64"
        program.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
        program.chmod(0o755)
        path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = scope.synthfs("boot", image, "--screenshot", scope.directory / "x.png", check=False, env=path)
        assert done.returncode == 1
        assert "no such luck" in done.stderr
        assert "Traceback" not in done.stderr
        assert left_behind() == []

    def test_where_it_cannot_write(self, scope: Scope, image: Path) -> None:
        """A picture that cannot be put where it is wanted is refused before the machine starts."""
        done = scope.synthfs("boot", image, "--screenshot", "/nonexistent/x.png", check=False)
        assert done.returncode == 8

    def test_without_firmware(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where qemu has no UEFI firmware, the message says how to get one."""
        monkeypatch.setattr(qemu, "_DESCRIPTIONS", ("/nonexistent",))
        with pytest.raises(SynthfsError, match="apt install ovmf"):
            qemu._uefi()
