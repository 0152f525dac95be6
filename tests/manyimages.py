"""A store of many clients and images, made of sparse files in seconds: what a scan, a plan and a listing are measured on.

Not for: anything that reads volumes; each has a real boot sector and holes behind it. Every client has a disk of its own (by
its GUID), every image a wrapper of its own (UrBackup rolls its signature anew), as on a real server.
Units: bytes. Source: facts/urbackup-format.md sections 1, 2 and 4.
"""

import os
import time
import uuid
import zlib
from pathlib import Path

import makeimage
import makembr
import sampledisks
from makedisk import OriginalDisk
from processes import run

VOLUMES = ((1, "ESP"), (3, "C"), (4, "D"))
"""Partition numbers of the sample disk, and the letters of their images."""

_FIRST = 1_600_000_000
_BOOT = 4096


def fill(root: Path, workshop: Path, *, clients: int = 200, images: int = 10_000, subvolumes: bool = False) -> None:
    """A new store at `root`, with as many images for each client; `workshop` is an empty directory for the original disk."""
    disk = sampledisks.gpt_disk(workshop / "original.img")
    boots = {number: disk.read(disk.partition(number).start, _BOOT) for number, _ in VOLUMES}
    lengths = {1: disk.partition(1).length, 3: disk.ntfs_length(3), 4: disk.ntfs_length(4)}
    root.mkdir()
    for client in range(clients):
        folder = root / f"pc{client:03}"
        folder.mkdir()
        _rename(disk, client)
        sidecars = {number: makembr.capture(disk, number) for number, _ in VOLUMES}
        for image in range(images // clients):
            number, letter = VOLUMES[image % len(VOLUMES)]
            moment = _FIRST + image // len(VOLUMES) * 86400 + client * 60 + number
            stamp = time.strftime("%y%m%d-%H%M", time.gmtime(moment))
            directory = folder / f"{stamp}_Image_{letter}"
            if subvolumes:
                run(["btrfs", "subvolume", "create", directory])
            else:
                directory.mkdir()
            raw = directory / f"Image_{letter}_{stamp}.raw"
            with raw.open("xb") as file:
                file.write(makeimage.fake_mbr(lengths[number], client << 16 | image))
                file.seek(makeimage.HEADER)
                file.write(boots[number])
                file.truncate(makeimage.HEADER + lengths[number])
            raw.with_name(f"{raw.name}.mbr").write_bytes(sidecars[number])
            for suffix in (".hash", ".cbitmap", ".bitmap", ".sync"):
                raw.with_name(raw.name + suffix).touch()
            os.utime(raw, (moment, moment))
            if subvolumes:
                run(["btrfs", "property", "set", "-f", "-ts", directory, "ro", "true"])


def _rename(disk: OriginalDisk, client: int) -> None:
    """Gives the disk another GUID, in both headers (UEFI 2.10, 5.3.2). sgdisk would have all of the machine synced for it."""
    with disk.path.open("r+b") as file:
        for place in (disk.sector_size, disk.length - disk.sector_size):
            file.seek(place)
            header = bytearray(file.read(92))
            header[56:72] = uuid.uuid5(uuid.NAMESPACE_DNS, f"pc{client}").bytes_le
            header[16:20] = bytes(4)
            header[16:20] = zlib.crc32(header).to_bytes(4, "little")
            file.seek(place)
            file.write(header)
