"""A virtual machine that looks at a disk: qemu-system-x86_64, started and asked through QMP, its monitor protocol.

The disk is never written to: what the guest writes goes to a temporary file of qemu's own, whose size has a bound. The guest
has no network, so that a restored machine does not appear beside its original. Its code may be hostile, and qemu may have
holes: so qemu has a filter of system calls, and root's qemu becomes another user before the guest runs. Not for: which disk
(`cli/boot`).

Units: bytes, seconds; memory in MiB. Source: qemu(1), qemu-qmp-ref(7); docs/interop/firmware.json for where UEFI firmware is.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from synthfs.errors import SynthfsError

PROGRAM = "qemu-system-x86_64"
_DESCRIPTIONS = ("/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware")
_START = 20.0
"""By far long enough for qemu to listen, also on a machine with better things to do."""

_NOBODY = "65534:65534"
"""The user and group that root's qemu becomes. Numbers, since distributions differ in the group's name."""
_CAP_SETGID, _CAP_SETUID = 6, 7
_DISK, _SCREEN = "/dev/fdset/1", "/dev/fdset/2"
"""What qemu gets as open descriptors: it may not look for them by name once it is another user."""
_ROOM = 16 << 20
"""Bytes without which not even the empty file and a picture would fit."""
_NEARLY = 128 << 10
"""Bytes below its bound at which qemu's file for the guest's writes counts as full; it grows by less than that at a time."""


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class Bus(StrEnum):
    """What the disk hangs on; every Windows since 7 brings a driver for AHCI, and since 8.1 for NVMe."""

    AHCI = "ahci"
    IDE = "ide"
    NVME = "nvme"
    VIRTIO = "virtio"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What machine to make. `serial` is a file for what it says on its first serial port.

    No file that qemu writes gets longer than `most_written` bytes: neither that one, nor the one for the disk's changes.
    """

    firmware: Firmware
    bus: Bus = Bus.AHCI
    memory: int = 2048
    accelerated: bool = True
    window: bool = False
    serial: str | None = None
    sector_size: int = 512
    most_written: int = 8 << 30


def check_user() -> None:
    """Raises SynthfsError where qemu would run as root, for want of the right to become somebody else."""
    if os.geteuid() != 0:
        return
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    if not effective >> _CAP_SETUID & effective >> _CAP_SETGID & 1:
        why = "this root may not become another user (CAP_SETUID, CAP_SETGID), and qemu is not to run as root"
        raise SynthfsError(f"{why}; call `synthfs boot` as a member of the store's group")


def space_for_writes() -> int:
    """Bytes that are free where qemu keeps what a guest writes."""
    try:
        found = os.statvfs(_temporary())
    except OSError as error:
        raise SynthfsError(f"{_temporary()} cannot take what the machine writes: {error.strerror}; set TMPDIR") from error
    free = found.f_bavail * found.f_frsize
    if free < _ROOM:
        raise SynthfsError(f"{_temporary()} is full, and has no room for what the machine writes; set TMPDIR")
    return free


def _temporary() -> str:
    """Where what a guest writes is to go: as qemu has it, not where /tmp may be a part of the memory."""
    return os.environ.get("TMPDIR") or "/var/tmp"


def can_accelerate() -> bool:
    """Whether KVM is there for this user; without it, every instruction is emulated."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


class Machine:
    """A machine that runs."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", monitor: socket.socket, log: Path, screen: Path, hardware: Hardware
    ) -> None:
        self._process = process
        self._hardware = hardware
        self._socket = monitor
        self._lines = monitor.makefile("rb")
        self._log = log
        self._screen = screen
        self._answer()  # the greeting
        self._execute("qmp_capabilities")
        self._changes = _changes(process.pid)
        self._execute("cont")

    def close(self) -> None:
        if self._changes is not None:
            os.close(self._changes)
        self._lines.close()

    def is_full(self) -> bool:
        """Whether the guest wrote more to its disk than `most_written` allows; the rest of it failed."""
        if self._changes is None:
            return False
        return os.fstat(self._changes).st_size > self._hardware.most_written - _NEARLY

    def runs_for(self, seconds: float | None) -> bool:
        """Waits; False as soon as the machine has switched itself off. None waits for that."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        if self._process.returncode:
            raise SynthfsError(f"{PROGRAM} failed: {self._last_words()}")
        return False

    def screenshot(self, path: str) -> None:
        """What is on the screen, as a PNG, once."""
        self._execute("screendump", filename=_SCREEN, format="png")
        shutil.copyfile(self._screen, path)

    def _execute(self, command: str, **arguments: str) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._answer()
            if "error" in answer:
                raise SynthfsError(f"{PROGRAM} refused {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionError:
            line = b""
        except OSError as error:
            raise SynthfsError(f"{PROGRAM} does not answer: {error}") from error
        if not line:
            raise SynthfsError(f"{PROGRAM} ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        return _last_words(self._log, self._hardware.accelerated)


def _changes(process: int) -> int | None:
    """A descriptor of qemu's file for what the guest writes, which has no name any more; None where it is not found."""
    with suppress(OSError):
        for fd in Path(f"/proc/{process}/fd").iterdir():
            target = os.readlink(fd)
            if os.path.basename(target).startswith("vl.") and target.endswith(" (deleted)"):
                return os.open(fd, os.O_RDONLY | os.O_CLOEXEC)
    return None


@contextmanager
def machine(disk: str, length: int, hardware: Hardware, workshop: str) -> Iterator[Machine]:
    """A machine with the first `length` bytes of the file `disk`, which ends with the context.

    Its own files go to the directory `workshop`.

    Raises SynthfsError where qemu or a firmware is missing, or qemu fails.
    """
    program, limiter = shutil.which(PROGRAM), shutil.which("prlimit")
    if program is None:
        raise SynthfsError(f"{PROGRAM} is not installed; on Debian: apt install qemu-system-x86 ovmf")
    if limiter is None:
        raise SynthfsError("prlimit is not installed; it comes with util-linux")
    monitor, log, screen = f"{workshop}/monitor", Path(workshop, "log"), Path(workshop, "screen")
    # Past the limit a write fails with EFBIG, which the guest sees as a broken disk.
    command = [limiter, f"--fsize={hardware.most_written}", program, *_options(length, hardware, workshop)]
    command += [*_confined(program), "-qmp", f"unix:{_value(monitor)},server=on,wait=off"]
    with (
        # qemu removes its file for the guest's writes right after making it; where it fails in between, the file would stay.
        TemporaryDirectory(prefix="synthfs-boot-", dir=_temporary()) as changes,
        _process(command, disk, screen, log, changes) as process,
        _connected(monitor, process, log, hardware.accelerated) as connection,
        closing(Machine(process, connection, log, screen, hardware)) as running,
    ):
        yield running


@contextmanager
def _process(command: list[str], disk: str, screen: Path, log: Path, changes: str) -> "Iterator[subprocess.Popen[bytes]]":
    """qemu, which ends with the context. It has the disk and a file for a picture as descriptors."""
    with log.open("wb") as out, open(disk, "rb") as source, screen.open("wb") as picture:
        for number, file in enumerate((source, picture), 1):
            command = [*command, "-add-fd", f"fd={file.fileno()},set={number}"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "TMPDIR": changes},
            pass_fds=(source.fileno(), picture.fileno()),
            # Python ignores SIGXFSZ, by which the kernel would otherwise end qemu at its limit; qemu inherits that.
            restore_signals=False,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _confined(program: str) -> list[str]:
    """What keeps a guest that broke out of qemu from the rest of the machine.

    Root's qemu opens its files and becomes nobody before the guest starts. It does so by itself and not before: of a file of
    a FUSE mount not even a descriptor can be asked for its length by others than the user who mounted.
    """
    filtered = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    if os.geteuid() != 0:
        return ["-sandbox", f"{filtered},elevateprivileges=deny"]
    told = subprocess.run((program, "-help"), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    # Since 9.1 it is called otherwise.
    become = ["-runas", _NOBODY] if "\n-runas " in told.stdout else ["-run-with", f"user={_NOBODY}"]
    return ["-sandbox", filtered, *become]


def _options(length: int, hardware: Hardware, workshop: str) -> list[str]:
    """Only what is named here is in the machine: no network, no floppy, no other disk. It waits for `cont`."""
    kind = "pc" if hardware.bus is Bus.IDE else "q35"
    options = ["-S", "-nodefaults", "-no-user-config", "-name", "synthfs", "-machine", kind, "-cpu", "max"]
    options += ["-m", str(hardware.memory), "-vga", "std", "-rtc", "base=localtime"]
    for accelerator in ("kvm", "tcg") if hardware.accelerated else ("tcg",):
        options += ["-accel", accelerator]
    options += [] if hardware.window else ["-display", "none"]
    if hardware.serial:
        options += ["-chardev", f"file,id=serial,path={_value(hardware.serial)}", "-serial", "chardev:serial"]
    if hardware.firmware is Firmware.UEFI:
        code, variables = _uefi()
        # The guest writes there; each time it begins with none, and so with the boot loader in the usual place.
        own = shutil.copyfile(variables, f"{workshop}/variables")
        options += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_value(code)}"]
        options += ["-drive", f"if=pflash,unit=1,format=raw,file={_value(own)}"]
    # The format is named: never let the guest's bytes choose it.
    drive = f"if=none,id=disk,snapshot=on,format=raw,size={length},file.driver=file,file.filename={_DISK}"
    # By default a full disk would stop the machine until somebody makes room.
    options += ["-drive", f"{drive},rerror=report,werror=report"]
    size = f"logical_block_size={hardware.sector_size},physical_block_size={max(hardware.sector_size, 512)}"
    devices = {Bus.AHCI: "ide-hd", Bus.IDE: "ide-hd", Bus.NVME: "nvme,serial=synthfs", Bus.VIRTIO: "virtio-blk-pci"}
    return [*options, "-device", f"{devices[hardware.bus]},drive=disk,{size},bootindex=0"]


def _value(text: str) -> str:
    """A value among others that commas part."""
    return text.replace(",", ",,")


def _uefi() -> tuple[str, str]:
    """Code and empty variables of a UEFI firmware without Secure Boot, by the descriptions that come with it."""
    for directory in _DESCRIPTIONS:
        for description in sorted(Path(directory).glob("*.json")):
            try:
                facts = json.loads(description.read_bytes())
                mapping, features = facts["mapping"], facts["features"]
                fits = any(target["architecture"] == "x86_64" for target in facts["targets"])
                if fits and "uefi" in facts["interface-types"] and not {"secure-boot", "requires-smm"} & {*features}:
                    places = mapping["executable"]["filename"], mapping["nvram-template"]["filename"]
                    if all(map(os.path.exists, places)) and mapping["executable"]["format"] == "raw":
                        return places
            except (OSError, ValueError, KeyError, TypeError):
                continue
    raise SynthfsError("this disk needs UEFI, and no such firmware is installed for qemu; on Debian: apt install ovmf")


@contextmanager
def _connected(path: str, process: "subprocess.Popen[bytes]", log: Path, accelerated: bool) -> Iterator[socket.socket]:
    deadline = time.monotonic() + _START
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_START)
        while True:
            try:
                connection.connect(path)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SynthfsError(f"{PROGRAM} did not start: {_last_words(log, accelerated)}") from None
                time.sleep(0.05)
        yield connection


def _last_words(log: Path, accelerated: bool) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    words = lines[-1] if lines else "it does not say why"
    return f"{words}; --no-kvm does without the processor's virtualization" if accelerated else words
