"""Writes an UrBackup store from original disks: clients, image directories and everything beside a `.raw` file.

Not for: the database (makedatabase) or the bytes of single files (makeimage, makembr). Units: bytes; stamps are the
server's local time, `YYMMDD-HHMM`. Source: facts/urbackup-format.md sections 1.7, 4.1 to 4.3.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import makeimage
import makembr
from makedisk import OriginalDisk, Partition
from processes import run

Layout = Literal["auto", "subvolume", "plain", "symlink", "client"]
"""Where an image's files are: `auto` is a subvolume on BTRFS and a plain directory elsewhere; `symlink` is ZFS' way, a
link in the client's directory; `client` has the files in the client's directory itself, as old servers did."""

Form = Literal["volume", "whole disk", "enlarged"]

SIDECARS = (".mbr", ".hash", ".cbitmap", ".bitmap", ".sync")


@dataclass(frozen=True, slots=True)
class Image:
    """One backup of one volume."""

    raw: Path
    client: str
    stamp: str
    letter: str
    """As the database has it: `C:`, `SYSVOL`, `/dev/sda5`."""
    disk: OriginalDisk
    partition: Partition
    length: int
    """Of the volume: the file has 512 KiB more."""
    complete: bool
    incremental: int = 0

    @property
    def directory(self) -> Path:
        return self.raw.parent

    @property
    def started(self) -> datetime:
        """The time that the stamp names, which is the server's local time."""
        return datetime.strptime(self.stamp, "%y%m%d-%H%M").astimezone()

    @property
    def backuptime(self) -> str:
        """As the database has it: UTC."""
        return self.started.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")

    def sidecar(self, suffix: str) -> Path:
        return self.raw.with_name(self.raw.name + suffix)


class Store:
    """A directory with a sub-directory for each client."""

    def __init__(self, root: Path, *, owner: tuple[int, int] | None = None) -> None:
        root.mkdir(mode=0o755, exist_ok=True)
        self.root = root
        self.owner = owner
        self.is_btrfs = run(["stat", "--file-system", "--format=%T", root]).stdout.strip() == b"btrfs"
        self._own(root)

    def client(self, name: str) -> "Client":
        directory = self.root / name
        directory.mkdir(mode=0o750, exist_ok=True)
        self._own(directory)
        return Client(self, directory)

    def delete(self, image: Image) -> None:
        """As the server's cleanup does it."""
        link = self.root / image.client / f"{image.stamp}_Image_{escaped(image.letter)}"
        if self.is_btrfs and link.stat().st_ino == 256:
            run(["btrfs", "subvolume", "delete", "--commit-each", link])
        else:
            shutil.rmtree(link.resolve())
            if link.is_symlink():
                link.unlink()

    def _own(self, path: Path) -> None:
        if self.owner is not None:
            os.chown(path, *self.owner)


@dataclass(frozen=True, slots=True)
class Client:
    """A machine's directory in a store."""

    store: Store
    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    def backup(
        self,
        disk: OriginalDisk,
        number: int,
        letter: str = "C",
        stamp: str = "260301-0201",
        *,
        client: makembr.Client = "windows",
        device: str = "/dev/sda",
        device_number: int = 0,
        parent: Image | None = None,
        layout: Layout = "auto",
        complete: bool = True,
        sealed: bool | None = None,
        without: tuple[str, ...] = (),
        mbr: bytes | None = None,
        block: int | None = None,
        form: Form = "volume",
    ) -> Image:
        """Image partition `number` of a disk, as it is now.

        parent: the previous image of that volume, which makes this an incremental; on BTRFS a snapshot of it.
        complete: False is an aborted backup: the final name and size, but no `.hash` and no `.sync`.
        sealed: whether a subvolume is read-only; by default if complete. `without`: suffixes to leave out.
        mbr: the sidecar's bytes, where they are not those that `client` would send.
        block: what the client reads at a time; by default the file system's cluster or block.
        form: whether the `.raw` is that of a volume, of the whole disk (version 100), or enlarged as by 2.5.33.
        """
        partition = disk.partition(number)
        length = disk.ntfs_length(number) if partition.fs == "ntfs" else partition.length
        block = block or _block_length(partition)
        name = f"Image_{escaped(letter)}_{stamp}.raw"
        directory, is_subvolume = self._directory(f"{stamp}_Image_{escaped(letter)}", layout, parent)
        depth = 0 if parent is None else parent.incremental + 1
        shown = letter if len(letter) > 1 else f"{letter.upper()}:"
        image = Image(directory / name, self.name, stamp, shown, disk, partition, length, complete, depth)

        signature = int.from_bytes(os.urandom(4), "little")
        place = {"offset": partition.start, "length": length, "block": block, "signature": signature}
        match form:
            case "whole disk":
                makeimage.write_whole_disk(image.raw, disk.path)
            case _ if parent is None:
                makeimage.write_full(image.raw, disk.path, **place)
            case _:
                _become(parent, image)
                makeimage.write_incremental(image.raw, disk.path, **place)
        if form == "enlarged":
            makeimage.enlarge(image.raw, length, signature)
        if mbr is None and ".mbr" not in without:
            mbr = makembr.capture(disk, number, client=client, device=device, device_number=device_number)
        contents: dict[str, Callable[[], bytes]] = {".mbr": lambda: mbr or b""}
        contents[".bitmap"] = lambda: makeimage.bitmap_bytes(image.raw)
        if complete:
            begin = 0 if form == "whole disk" else makeimage.HEADER
            contents[".hash"] = lambda: makeimage.hash_bytes(image.raw, block=block, start=begin)
            contents[".cbitmap"] = lambda: makeimage.cbitmap_bytes(image.raw, block=block)
            contents[".sync"] = bytes
        for suffix, content in contents.items():
            if suffix not in without:
                image.sidecar(suffix).write_bytes(content())
        self._finish(image)
        if is_subvolume and (complete if sealed is None else sealed):
            seal(directory)
        return image

    def _directory(self, name: str, layout: Layout, parent: Image | None) -> tuple[Path, bool]:
        directory = self.directory / name
        match layout:
            case "auto" | "subvolume" if layout == "subvolume" or self.store.is_btrfs:
                snapshot = parent is not None and parent.directory.stat().st_ino == 256
                verb = ["snapshot", parent.directory] if snapshot and parent is not None else ["create"]
                run(["btrfs", "subvolume", *verb, directory])
                return directory, True
            case "symlink":
                dataset = self.store.root.with_name(f"{self.store.root.name}.datasets") / self.name / name
                dataset.mkdir(mode=0o755, parents=True)
                directory.symlink_to(dataset)
                return dataset, False
            case "client":
                return self.directory, False
            case _:
                directory.mkdir(mode=0o755)
                return directory, False

    def _finish(self, image: Image) -> None:
        """Owner, mode and times as the server leaves them."""
        moment = image.started.timestamp()
        paths = [image.raw, *(image.sidecar(suffix) for suffix in SIDECARS), image.directory]
        for path in paths:
            if path.is_file():
                path.chmod(0o750)
            if path.exists() and path != self.directory:
                self.store._own(path)
                os.utime(path, (moment, moment))


def escaped(letter: str) -> str:
    """A volume's name as directories and files have it."""
    if len(letter) in (2, 3) and letter[0].isalpha() and letter[1:] in (":", ":\\", ":/"):
        return letter[0]
    return "".join("_" if character in ':|&\\/?*"<>' else character for character in letter)


def seal(directory: Path, *, read_only: bool = True) -> None:
    """Make a subvolume read-only, or writable again."""
    run(["btrfs", "property", "set", "-f", "-ts", directory, "ro", "true" if read_only else "false"])


def _become(parent: Image, image: Image) -> None:
    """In a snapshot the parent's files are there under their old names; elsewhere the image is copied."""
    inherited = image.directory / parent.raw.name
    if image.directory != parent.directory and inherited.exists():
        for suffix in SIDECARS:
            (image.directory / parent.sidecar(suffix).name).unlink(missing_ok=True)
        inherited.rename(image.raw)
    else:
        run(["cp", "--reflink=auto", "--sparse=always", parent.raw, image.raw])


def _block_length(partition: Partition) -> int:
    match partition.fs:
        case "ext4":
            return 1024
        case "vfat" | None if partition.length % 4096:
            return 512
        case _:
            return 4096
