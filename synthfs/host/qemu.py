"""A virtual machine that looks at a disk: qemu-system-x86_64, started and asked through QMP, its monitor protocol.

The disk is never written to: what the guest writes goes to a temporary file of qemu's own. The guest has no network, so that a
restored machine does not appear beside its original. Not for: which disk (`cli/boot`).

Units: seconds; memory in MiB. Source: qemu's qemu-qmp-ref(7); docs/interop/firmware.json for where UEFI firmware is found.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from synthfs.errors import SynthfsError

PROGRAM = "qemu-system-x86_64"
_DESCRIPTIONS = ("/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware")
_START = 20.0
"""By far long enough for qemu to listen, also on a machine with better things to do."""


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
    """What machine to make. `serial` is a file for what it says on its first serial port."""

    firmware: Firmware
    bus: Bus = Bus.AHCI
    memory: int = 2048
    accelerated: bool = True
    window: bool = False
    serial: str | None = None
    sector_size: int = 512


def can_accelerate() -> bool:
    """Whether KVM is there for this user; without it, every instruction is emulated."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


class Machine:
    """A machine that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", monitor: socket.socket, log: Path, accelerated: bool) -> None:
        self._process = process
        self._accelerated = accelerated
        self._socket = monitor
        self._lines = monitor.makefile("rb")
        self._log = log
        self._answer()  # the greeting
        self._execute("qmp_capabilities")

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
        """What is on the screen, as a PNG."""
        self._execute("screendump", filename=path, format="png")

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
        return _last_words(self._log, self._accelerated)


@contextmanager
def machine(disk: str, length: int, hardware: Hardware, workshop: str) -> Iterator[Machine]:
    """A machine with the first `length` bytes of the file `disk`, which ends with the context.

    Its own files go to the directory `workshop`.

    Raises SynthfsError where qemu or a firmware is missing, or qemu fails.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise SynthfsError(f"{PROGRAM} is not installed; on Debian: apt install qemu-system-x86 ovmf")
    monitor, log = f"{workshop}/monitor", Path(workshop, "log")
    command = [program, *_options(disk, length, hardware, workshop), "-qmp", f"unix:{_value(monitor)},server=on,wait=off"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        with _connected(monitor, process, log, hardware.accelerated) as connection:
            yield Machine(process, connection, log, hardware.accelerated)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _options(disk: str, length: int, hardware: Hardware, workshop: str) -> list[str]:
    """Only what is named here is in the machine: no network, no floppy, no other disk."""
    kind = "pc" if hardware.bus is Bus.IDE else "q35"
    options = ["-nodefaults", "-no-user-config", "-name", "synthfs", "-machine", kind, "-cpu", "max"]
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
    options += ["-drive", f"if=none,id=disk,snapshot=on,format=raw,size={length},file.driver=file,file.filename={_value(disk)}"]
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
