"""File systems with known files in them, made by the real tools: mkntfs, mkfs.vfat, mkfs.ext4.

Not for: partition tables; see makedisk. Units: bytes; the tools' own options count sectors of 512.
Source: mkntfs(8), ntfscp(8), mkfs.fat(8), mcopy(1), mke2fs(8).
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid5

import need
from processes import Argument, run

SECTOR = 512
Filesystem = Literal["ntfs", "vfat", "ext4"]
_NAMESPACE = UUID("5e5ce75f-0000-4000-8000-73796e746866")


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file to put into a volume's root directory; its content follows from its name, length and seed."""

    name: str
    length: int
    seed: str = ""

    @property
    def content(self) -> bytes:
        return random.Random(f"{self.seed}/{self.name}").randbytes(self.length)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


# Odd sizes on purpose: empty, resident in the MFT record, one byte around a cluster and a sector.
SOME_FILES = (
    KnownFile("empty.txt", 0),
    KnownFile("resident.txt", 217),
    KnownFile("sector.bin", 511),
    KnownFile("cluster.bin", 4097),
    KnownFile("report final (1).docx", 300_001),
    KnownFile("big.bin", 3_000_003),
)


def make(
    filesystem: Filesystem,
    path: Path,
    *,
    label: str,
    start: int,
    length: int | None = None,
    files: tuple[KnownFile, ...] = SOME_FILES,
) -> None:
    """Format the existing file `path` as a volume that begins `start` bytes into its disk.

    `length` makes the file system end before the file does; it counts what Windows would call the partition: an
    NTFS volume has one sector less, and its backup boot sector in that last sector.
    """
    length = path.stat().st_size if length is None else length
    match filesystem:
        case "ntfs":
            _ntfs(path, label, start, length)
            _ntfs_files(path, files)
        case "vfat":
            _vfat(path, label, start, length)
            _vfat_files(path, files)
        case "ext4":
            _ext4(path, label, length, files)


def _ntfs(path: Path, label: str, start: int, length: int) -> None:
    need.tool("mkntfs", "ntfscp")
    hidden = ["-p", f"{start // SECTOR}", "-H", "255", "-S", "63"]
    volume = ["-s", f"{SECTOR}", "-c", "4096", "-L", label]
    run(["mkntfs", "-F", "-q", "-f", *volume, *hidden, path, f"{length // SECTOR}"])
    with path.open("r+b") as file:
        boot = bytearray(file.read(SECTOR))
        # mkntfs draws the serial number; a fixed one makes failures comparable.
        boot[0x48:0x50] = hashlib.sha256(f"{label}/{start}".encode()).digest()[:8]
        for offset in (0, int.from_bytes(boot[0x28:0x30], "little") * SECTOR):
            file.seek(offset)
            file.write(boot)


def _ntfs_files(path: Path, files: tuple[KnownFile, ...]) -> None:
    for known in files:
        source = _written(path, known)
        run(["ntfscp", "-f", "-q", path, source, known.name])
        source.unlink()


def _vfat(path: Path, label: str, start: int, length: int) -> None:
    need.tool("mkfs.vfat", "mcopy")
    serial = hashlib.sha256(f"{label}/{start}".encode()).hexdigest()[:8]
    hidden = ["-h", f"{start // SECTOR}", "-g", "255/63"]
    # mkfs.vfat counts the volume in KiB of 1024 bytes.
    volume = ["-F", "32", "-s", "1", "-i", serial, "-n", label, "--invariant"]
    run(["mkfs.vfat", *volume, *hidden, path, f"{length // 1024}"])


def _vfat_files(path: Path, files: tuple[KnownFile, ...]) -> None:
    for known in files:
        source = _written(path, known)
        run(["mcopy", "-i", path, source, f"::{known.name}"])
        source.unlink()


def _ext4(path: Path, label: str, length: int, files: tuple[KnownFile, ...]) -> None:
    need.tool("mkfs.ext4")
    directory = path.with_name(f"{path.name}.files")
    directory.mkdir()
    for known in files:
        (directory / known.name).write_bytes(known.content)
    uuid = str(uuid5(_NAMESPACE, label))
    options: list[Argument] = ["-L", label, "-U", uuid, "-E", f"hash_seed={uuid},lazy_itable_init=0", "-d", directory]
    run(["mkfs.ext4", "-q", "-F", "-b", "1024", *options, path, f"{length // 1024}k"])
    run(["rm", "-r", directory])


def _written(path: Path, known: KnownFile) -> Path:
    source = path.with_name(f"{path.name}.file")
    source.write_bytes(known.content)
    return source
