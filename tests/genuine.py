"""The store that the real UrBackup server made, unpacked for one run of the tests.

Not for: judging it; the tests do. Nothing is written to it: the file system is mounted read-only, and tests that
need a writable database copy it. Source: ../shared/genuine/README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

import need
from lab import Scope

SOURCE_DISK = "diskA_gpt.img"


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """The disk that was backed up, as it was at one stage, and what was recorded of it."""

    image: Path
    records: Path

    @property
    def sha256(self) -> str:
        return (self.records / "sha256-disk.txt").read_text().split()[0]

    def files(self, partition: str) -> dict[str, str]:
        """Path -> SHA-256 of the files in a partition: `p1-fat32`, `p3-ntfs` or `p4-ext4`."""
        lines = (self.records / f"files-diskA-{partition}.sha256").read_text().splitlines()
        return {name.removeprefix("./"): digest for digest, name in (line.split("  ", 1) for line in lines)}


@dataclass(frozen=True, slots=True)
class GenuineStore:
    """Paths into the unpacked store."""

    root: Path
    """The UrBackup store: clients are its sub-directories."""
    database: Path
    """`backup_server.db` of the live server, with its -wal beside it."""
    nightly: Path
    """`backup_server.db` of the server's own nightly copy inside the store, with its -wal beside it."""
    _shared: Path
    _lab: Scope
    _disks: dict[int, SourceDisk] = field(default_factory=dict)

    @classmethod
    def unpack(cls, shared: Path, lab: Scope) -> "GenuineStore":
        need.tool("zstd")
        need.kernel("btrfs")
        image = _decompress(shared / "store.btrfs.img.zst", lab.path("genuine") / "store.btrfs.img", lab)
        root = lab.mount(lab.loop(image, read_only=True), fstype="btrfs", options="ro") / "urbackup"
        live = lab.path("server-db")
        lab.run(["tar", "--zstd", "-xf", shared / "server-db.tar.zst", "-C", live])
        database = next(live.rglob("backup_server.db"))
        return cls(root, database, root / "urbackup" / "backup_server.db", shared, lab)

    def source(self, stage: int) -> SourceDisk:
        """The source disk at a stage; unpacked once, sparsely. Not to be written."""
        if stage not in self._disks:
            records = self._shared / "source" / f"stage{stage}"
            target = self._lab.path(f"stage{stage}") / SOURCE_DISK
            self._disks[stage] = SourceDisk(_decompress(records / f"{SOURCE_DISK}.zst", target, self._lab), records)
        return self._disks[stage]

    def image(self, stamp: str, letter: str) -> Path:
        """The `.raw` file of an image; the stamp's date is that of all images in this store."""
        name = f"261123-{stamp}"
        return self.root / "gpthost" / f"{name}_Image_{letter}" / f"Image_{letter}_{name}.raw"


def _decompress(source: Path, target: Path, lab: Scope) -> Path:
    lab.run(["zstd", "-q", "-d", "--long=27", "--sparse", source, "-o", target], timeout=120)
    return target
