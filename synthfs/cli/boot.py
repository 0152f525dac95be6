"""`synthfs boot`: start the machine whose disk this is, so that a backup can be seen to boot.

The disk gets to qemu through a mount that is made for this one purpose and ends with it. qemu writes nothing to it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated

import typer

from synthfs.cli import mount as mount_verb
from synthfs.cli import options
from synthfs.cli.common import Anyway, Database, Image, Json, find_disk, look_at, print_json, say, say_notes
from synthfs.cli.progress import progress
from synthfs.errors import NotFoundError, TargetError
from synthfs.formats import gpt
from synthfs.host import qemu
from synthfs.plan.container import Format
from synthfs.plan.disk import Disk
from synthfs.plan.garden import Gardener
from synthfs.plan.tree import NEW_IDENTITY, File, walk
from synthfs.units import human

_STEP = 0.5


def boot(
    image: Image,
    screenshot: Annotated[
        str | None, typer.Option("--screenshot", metavar="FILE", help="Where to put a PNG of the screen.", show_default=False)
    ] = None,
    after: Annotated[float, typer.Option(parser=options.amount, metavar="SECONDS", help="When to take it.")] = 60.0,
    window: Annotated[bool, typer.Option("--window", help="Sit before it: show the screen until the machine is off.")] = False,
    serial: Annotated[
        str | None, typer.Option("--serial", metavar="FILE", help="Where to put what its serial port says.", show_default=False)
    ] = None,
    firmware: Annotated[
        qemu.Firmware | None, typer.Option("--firmware", help="Instead of what the disk is made for.", show_default=False)
    ] = None,
    bus: Annotated[
        qemu.Bus | None, typer.Option("--bus", help="What the disk hangs on, instead of AHCI.", show_default=False)
    ] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help="How much memory the machine has.", min=64, max=1 << 24)] = 2048,
    snapshot_size: Annotated[
        int, typer.Option(metavar="MIB", help="How much it may write, at most half of what is free.", min=1)
    ] = 8192,
    no_kvm: Annotated[bool, typer.Option("--no-kvm", help="Emulate every instruction, slowly.")] = False,
    anyway: Anyway = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Boot the disk of IMAGE in a virtual machine.

    Needs qemu-system-x86_64, and OVMF for a disk with an EFI system partition. The machine has no network. Whatever it
    writes is gone when it ends. Called by root, qemu runs as nobody.
    """
    if not (screenshot or window or serial):
        raise typer.BadParameter("--screenshot FILE, --serial FILE or --window: otherwise there is nothing to see")
    qemu.check_user()
    most_written = min(snapshot_size << 20, qemu.space_for_writes() // 2)
    disk = find_disk(image, database, anyway=anyway)
    if f"/{NEW_IDENTITY}/" in image:
        say("note: it boots with the identity that it had, by which its loader finds its partitions")
    say_notes(tuple(note for note in disk.notes if note.warning))
    for place in filter(None, (screenshot, serial)):
        _check_target(place)
    firmware, accelerated = firmware or _firmware(disk), not no_kvm and _can_accelerate()
    sector_size = disk.layout.sector_size
    # AHCI, in qemu, has sectors of 512 bytes only.
    bus = bus or (qemu.Bus.AHCI if sector_size == 512 else qemu.Bus.NVME)
    hardware = qemu.Hardware(firmware, bus, memory, accelerated, window, serial, sector_size, most_written)
    runs, seconds = _watch(disk, hardware, partial(_mounted, disk, database, anyway), after, screenshot)
    taken = screenshot if runs else None
    if as_json:
        facts = {"image": disk.image.name, "firmware": firmware.value, "kvm": accelerated, "seconds": round(seconds, 1)}
        print_json(facts | {"runs": runs, "screenshot": taken, "serial": serial})
    elif not runs:
        say(f"the machine switched itself off after {seconds:.0f} s")
    else:
        say(f"after {seconds:.0f} s the machine was running{f'; its screen is in {taken}' if taken else ''}")


def _watch(
    disk: Disk,
    hardware: qemu.Hardware,
    mounted: Callable[[str], AbstractContextManager[str]],
    after: float,
    screenshot: str | None,
) -> tuple[bool, float]:
    """Boots and takes the picture; whether the machine ran until then, and for how many seconds.

    `mounted` mounts the disk below a directory, and knows its path there.
    """
    began = time.monotonic()
    # So that neither machine nor mount is left behind.
    signal.signal(signal.SIGTERM, _leave)
    with (
        TemporaryDirectory(prefix="synthfs-boot-") as workshop,
        mounted(workshop) as file,
        qemu.machine(file, disk.length, hardware, workshop) as machine,
    ):
        runs = _wait(machine, after)
        if runs and screenshot:
            machine.screenshot(screenshot)
        seconds = time.monotonic() - began
        if runs and hardware.window:
            machine.runs_for(None)
        if machine.is_full():
            limit = human(hardware.most_written)
            say(f"warning: the machine wrote all that it may ({limit}), and the rest failed; see --snapshot-size, TMPDIR")
    return runs, seconds


def _can_accelerate() -> bool:
    if not qemu.can_accelerate():
        say("note: KVM is not there for this user (/dev/kvm), so this is slow; --after should be several minutes for a Windows")
    return qemu.can_accelerate()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _check_target(place: str) -> None:
    """Raises TargetError before the long wait and not after it."""
    directory = os.path.dirname(os.path.abspath(place))
    if not os.access(directory, os.W_OK) or os.path.isdir(place):
        raise TargetError(f"{place} cannot be written: {directory} is no directory that may be written to")


def _firmware(disk: Disk) -> qemu.Firmware:
    """UEFI where there is an EFI system partition to begin with."""
    system = gpt.TYPE_NAMES[gpt.EFI_SYSTEM]
    found = next((content for content in disk.contents if content.partition.type == system), None)
    if disk.layout.scheme == "GPT" and found is None:
        say("warning: this disk has a GPT and no EFI system partition, and will hardly boot")
    elif found and found.volume is None:
        say("warning: the EFI system partition of this disk was not imaged, and is empty: it will hardly boot")
    return qemu.Firmware.UEFI if found else qemu.Firmware.BIOS


@contextmanager
def _mounted(disk: Disk, database: str | None, anyway: bool, workshop: str) -> Iterator[str]:
    """The path of the disk, bare, in a mount that ends with the context."""
    store = disk.image.raw.path.removesuffix(disk.image.name)
    named = disk.image.name if anyway else None
    tree = Gardener([Format.RAW]).grow(look_at(store, database, named))
    files = ((path, node) for path, node in walk(tree.root) if isinstance(node, File) and node.disk)
    path = next((path for path, node in files if node.disk and node.disk.image.name == disk.image.name), None)
    if path is None:
        raise NotFoundError(f"{disk.image.name} is not shown in a mount; `synthfs show` says why")
    place = f"{workshop}/disks"
    os.mkdir(place)
    mount_verb.start(store, place, daemon=True, refresh=0.0, formats=[Format.RAW], database=database, anyway=named)
    try:
        yield f"{place}/{path}"
    finally:
        mount_verb.umount(place)


def _wait(machine: qemu.Machine, seconds: float) -> bool:
    """Waits, with a bar on a terminal; False as soon as the machine is off."""
    with progress() as bar:
        task = bar.add_task("booting", total=seconds)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not machine.runs_for(min(_STEP, left)):
                return False
            bar.update(task, completed=seconds - left)
    return machine.runs_for(0)
