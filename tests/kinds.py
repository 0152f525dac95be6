"""Every kind of disk that is found in the field, all of them backed up into one store: the clients are named by kind.

Not for: what becomes of them; test_kinds has that, and `docs/disk-kinds.md` tells it. Units: bytes. Disks are made by
sgdisk, sfdisk and the mkfs tools; what no tool makes (an image of 2.5.33) follows facts/urbackup-format.md.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import makembr
import makevolume
import sampledisks
import sparse
from lab import Lab, Scope
from makedisk import BASIC_DATA, ESP, LINUX, MIB, MSR, OriginalDisk, Partition, make_disk
from makeimage import HEADER
from makestore import Image, Store, seal
from makevolume import SECTOR, Filesystem, KnownFile
from processes import run

GIB = 1 << 30
TIB = 1 << 40
LVM = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
FEW = (KnownFile("resident.txt", 217), KnownFile("odd.bin", 70_001))
STAMP = "260301-0201"
CUT = 6 * MIB
"""What is left of a volume whose image was cut."""
PV_UUID = "Zt5wTn-aaaa-bbbb-cccc-dddd-eeee-ffffff"


class Workshop:
    """The original disks, each made once."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def _path(self, name: str) -> Path:
        return self._scope.path(name) / "disk.img"

    @cached_property
    def uefi(self) -> OriginalDisk:
        """ESP, MSR, C:, a gap, D: as sampledisks has it, with less in it."""
        esp = Partition(1, MIB, 34 * MIB, ESP, "EFI system partition", fs="vfat", label="SYSTEM", files=FEW)
        msr = Partition(2, 35 * MIB, 4 * MIB, MSR, "Microsoft reserved partition")
        c = Partition(3, 39 * MIB, 12 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Windows", files=FEW)
        d = Partition(4, 53 * MIB, 8 * MIB, BASIC_DATA, "Basic data partition", fs="ntfs", label="Daten", files=FEW)
        return make_disk(self._path("uefi"), esp, msr, c, d, length=64 * MIB, boot_code=sampledisks.GPT_BOOT_CODE)

    def one(self, number: int, *, length: int = 8 * MIB, fs: Filesystem = "ntfs", kind: str = BASIC_DATA) -> OriginalDisk:
        """One partition on a GPT disk of its own, whose identity has `number` in it."""
        identity = f"0E{number:06}-0000-4222-8333-444455556666"
        c = Partition(1, MIB, length, kind, "", fs=fs, label=f"one{number}", files=FEW)
        return make_disk(self._path(f"one{number}"), c, length=length + 2 * MIB, identity=identity)

    @cached_property
    def gaps(self) -> OriginalDisk:
        """Slots 2 and 5 are used, and the one with the higher number comes first on the disk. The lengths are equal."""
        c = Partition(2, 12 * MIB, 8 * MIB, BASIC_DATA, "C", fs="ntfs", label="Windows", files=FEW)
        d = Partition(5, MIB, 8 * MIB, BASIC_DATA, "D", fs="ntfs", label="Daten", files=FEW)
        return make_disk(self._path("gaps"), c, d, length=22 * MIB, identity="6A950000-0000-4222-8333-444455556666")

    @cached_property
    def linux_gaps(self) -> OriginalDisk:
        """The same for Linux: ext4 does not know where it lies."""
        root = Partition(3, 12 * MIB, 8 * MIB, LINUX, "root", fs="ext4", label="root", files=FEW)
        home = Partition(7, MIB, 8 * MIB, LINUX, "home", fs="ext4", label="home", files=FEW)
        return make_disk(self._path("linux-gaps"), root, home, length=22 * MIB, identity="6A951100-0000-4222-8333-444455556666")

    @cached_property
    def hybrid(self) -> OriginalDisk:
        """A GPT whose boot record names a partition as well, and has a signature."""
        disk = self.one(4)
        run(["sgdisk", "--hybrid=1:EE", disk.path])
        with disk.path.open("r+b") as file:
            file.seek(440)
            file.write(bytes.fromhex("78563412"))
        return disk

    @cached_property
    def many(self) -> OriginalDisk:
        """A table of 256 entries, with a second partition in slot 200."""
        disk = self.one(5, length=6 * MIB)
        second = Partition(200, 4 * MIB, 3 * MIB, BASIC_DATA, "slot 200", fs="ntfs", label="many", files=FEW)
        first = replace(disk.partition(1), length=3 * MIB, fs=None)
        run(["sgdisk", "--delete=1", "--resize-table=256", disk.path])
        places = [f"--new={p.number}:{p.start // SECTOR}:{p.end // SECTOR - 1}" for p in (first, second)]
        run(["sgdisk", "--set-alignment=1", *places, "--typecode=1:0700", "--typecode=200:0700", disk.path])
        self._fill(disk.path, second)
        return replace(disk, partitions=(first, second))

    @cached_property
    def big_sectors(self) -> OriginalDisk:
        """4096-byte logical sectors: sgdisk asks the loop device for them."""
        path = sparse.create(self._path("4096"), 64 * MIB)
        with self._scope.scope("4096") as scope:
            device = scope.loop(path, sector_size=4096)
            identity = "40960000-0000-4222-8333-444455556666"
            run(["sgdisk", "--clear", f"--disk-guid={identity}", "--new=1:256:4351", "--typecode=1:0700", device])
        c = Partition(1, MIB, 16 * MIB, BASIC_DATA, "", fs="ntfs", label="4Kn")
        volume = sparse.create(path.with_name("volume"), c.length)
        run(["mkntfs", "-F", "-q", "-f", "-s", "4096", "-c", "4096", "-p", "256", "-H", "255", "-S", "63", volume, "4096"])
        sparse.copy(volume, path, offset=0, length=c.length, to=c.start)
        return OriginalDisk(path, 64 * MIB, "gpt", identity, (c,), b"", 4096)

    @cached_property
    def huge(self) -> OriginalDisk:
        """More than 2040 GiB, with a small volume at its beginning and a bare one of above 2 TiB behind it."""
        c = Partition(1, MIB, 8 * MIB, BASIC_DATA, "C", fs="ntfs", label="Windows", files=FEW)
        length = 2 * TIB + 64 * MIB
        data = ((0, 70_000), (TIB, 70_000), (length - 70_000, 70_000))
        d = Partition(2, 16 * MIB, length, BASIC_DATA, "D", label="Daten", data=data)
        disk = make_disk(
            self._path("huge"), c, d, length=3 * TIB, identity="1A46E000-0000-4222-8333-444455556666"
        )
        # A client tells the length of a volume by its boot sector, and NTFS does not make such a one quickly.
        boot = bytearray(disk.boot_sector(1))
        struct.pack_into("<Q", boot, 0x28, length // SECTOR - 1)
        struct.pack_into("<I", boot, 0x1C, d.start // SECTOR)
        with disk.path.open("r+b") as file:
            file.seek(d.start)
            file.write(boot)
        return disk

    @cached_property
    def grub(self) -> OriginalDisk:
        """A Linux machine with BIOS: GRUB in the sectors behind the MBR, its text as the client looks for it."""
        core = b"GRUB \0Geom\0Hard Disk\0Read\0 Error".ljust(1000, b"\xeb") + bytes(range(1, 256)) * 120
        root = Partition(1, MIB, 8 * MIB, "83", active=True, fs="ext4", label="root", files=FEW)
        code = b"\xeb\x63\x90GRUB".ljust(440, b"\x90")
        gap = ((SECTOR, core),)
        return make_disk(
            self._path("grub"), root, length=9 * MIB, scheme="mbr", identity="96000001", boot_code=code, gap=gap
        )

    @cached_property
    def veracrypt(self) -> OriginalDisk:
        """Windows with BIOS behind VeraCrypt's boot loader."""
        c = Partition(1, MIB, 8 * MIB, "7", active=True, fs="ntfs", label="Windows", files=FEW)
        code, gap = b"\xea VeraCrypt Boot Loader".ljust(440, b"\x90"), ((SECTOR, bytes(range(1, 253)) * 128),)
        return make_disk(
            self._path("veracrypt"), c, length=9 * MIB, scheme="mbr", identity="7e4ac001", boot_code=code, gap=gap
        )

    @cached_property
    def xp(self) -> OriginalDisk:
        return sampledisks.xp_disk(self._path("xp"))

    @cached_property
    def extended(self) -> OriginalDisk:
        """C:, and E: and F: of its length in an extended partition, all of them beginning 2048 sectors behind something."""
        c = Partition(1, MIB, 8 * MIB, "7", active=True, fs="ntfs", label="Windows", files=FEW)
        container = Partition(2, 9 * MIB, 20 * MIB, "f")
        e = Partition(5, 10 * MIB, 8 * MIB, "7", fs="ntfs", label="E", files=FEW)
        f = Partition(6, 19 * MIB, 8 * MIB, "7", fs="ntfs", label="F", files=FEW)
        disk = make_disk(self._path("extended"), c, container, e, f, length=29 * MIB, scheme="mbr", identity="e87e0001")
        # As Windows writes it: hidden sectors count from the logical drive's own table.
        for one in (e, f):
            for offset in (one.start, one.end - SECTOR):
                with disk.path.open("r+b") as file:
                    file.seek(offset + 0x1C)
                    file.write(struct.pack("<I", 2048))
        return disk

    def bare(self, name: str, fs: Filesystem | None, length: int = 8 * MIB) -> OriginalDisk:
        """A volume that is a device of its own: a logical volume, a dynamic one, or one whose disk is lost."""
        partition = Partition(1, 0, length, fs=fs, label=name, files=FEW)
        path = sparse.create(self._path(name), length)
        self._fill(path, partition)
        return OriginalDisk(path, length, "gpt", "", (partition,), b"")

    def xfs(self) -> OriginalDisk:
        disk = self.bare("xfs", None, 300 * MIB)
        run(["mkfs.xfs", "-q", disk.path])
        return disk

    def _fill(self, path: Path, partition: Partition) -> None:
        if partition.fs:
            volume = sparse.create(path.with_name("volume"), partition.length)
            makevolume.make(
                partition.fs, volume, label=partition.label, start=partition.start, length=None, files=partition.files
            )
            sparse.copy(volume, path, offset=0, length=partition.length, to=partition.start)


@dataclass(slots=True)
class Kinds:
    """The store, and who is in it: images by (client, letter as in the file's name)."""

    scope: Scope
    work: Workshop
    store: Store
    images: dict[tuple[str, str], Image] = field(default_factory=dict)

    def add(
        self, machine: str, disk: OriginalDisk, number: int, letter: str = "C", stamp: str = STAMP, **how: object
    ) -> None:
        image = self.store.client(machine).backup(disk, number, letter, stamp, **how)  # type: ignore[arg-type]  # passed on
        self.images[machine, image.raw.name.removeprefix("Image_").rpartition("_")[0]] = image

    def fill(self) -> None:
        for part in (self._unknown, self._numbers, self._groups, self._tables, self._far):
            part()

    def _unknown(self) -> None:
        """Volumes whose disk is not known."""
        work, uefi = self.work, self.work.uefi
        self.add("no-mbr", uefi, 3, without=(".mbr",))
        self.add("no-mbr", uefi, 1, "ESP", without=(".mbr",))
        self.add("no-mbr", work.bare("usb", "vfat", 34 * MIB), 1, "U", without=(".mbr",))
        self.add("no-mbr", work.bare("home", "ext4"), 1, "/dev/sdb", without=(".mbr",))
        self.add("no-mbr", work.xfs(), 1, "/dev/sdc", without=(".mbr",), block=4096)
        whole = makembr.capture(uefi, 3)
        self.add("unusable-mbr", uefi, 3, mbr=whole[: len(whole) // 2])
        self.add("unusable-mbr", uefi, 4, "D", mbr=b"")
        self._volume_managers()
        device = Partition(1, 0, uefi.length)
        sidecar = _sidecar(uefi, -1, "LINUX:/dev/loop3", "")
        self.add("whole-device", replace(uefi, partitions=(device,)), 1, "/dev/loop3", mbr=sidecar, client="linux")
        small, long = work.one(1, length=4 * MIB), work.bare("long", "ntfs")
        self.add("too-long", long, 1, mbr=makembr.capture(small, 1))
        extended = work.extended
        for number, letter in ((1, "C"), (5, "E"), (6, "F")):
            self.add("logical", extended, number, letter)
        self.add("logical-linux", extended, 5, "/dev/sda5", client="linux")

    def _volume_managers(self) -> None:
        work = self.work
        root = work.bare("lv-root", "ext4")
        for number, machine, kind in ((2, "lvm", LVM), (3, "lvm-untyped", LINUX)):
            physical = work.one(number, kind=kind, fs="ext4", length=20 * MIB)
            self.add(machine, root, 1, mbr=_sidecar(physical, 1, "LINUX:/dev/sda1", PV_UUID), client="linux")
        dynamic = makembr.mbr_bytes(
            version=0,
            device_number=0,
            partition_number=1,
            serial="1",
            volume_name="Stripe",
            filesystem="NTFS",
            mbr_data=work.xp.read(0, 512),
            message="Warning: Dynamic volumes are not supported. It may not be possible to restore it",
        )
        self.add("dynamic", work.bare("dynamic", "ntfs"), 1, "S", mbr=dynamic)

    def _numbers(self) -> None:
        """Which partition a number means."""
        gaps, linux = self.work.gaps, self.work.linux_gaps
        for number, letter in ((2, "C"), (5, "D")):
            self.add("windows-gaps", gaps, number, letter)
        for number in (3, 7):
            self.add("linux-gaps", linux, number, f"/dev/sda{number}", client="linux")
        # The number of C: on the volume of D:, which has another length than C:.
        self.add("disagreement", self.work.uefi, 4, "D", mbr=makembr.capture(self.work.uefi, 3))

    def _groups(self) -> None:
        """Which images belong to one disk."""
        uefi, work = self.work.uefi, self.work
        for letter in ("SYSVOL", "ESP"):
            self.add("sysvol-is-esp", uefi, 1, letter)
        self.add("sysvol-is-esp", uefi, 3)
        linux = work.linux_gaps
        self.add("two-names", linux, 3, "C", client="linux")
        self.add("two-names", linux, 3, "/dev/sda3", "260301-0203", client="linux")
        self.add("two-names", linux, 7, "/dev/sda7", "260301-0204", client="linux")
        first, second = work.one(6), work.one(7)
        # nvme0n1 and nvme1n1 both have number 1 (section 2.5).
        self.add("two-disks", first, 1, "C", device_number=1)
        self.add("two-disks", second, 1, "D", device_number=1)
        self.add("clone-1", uefi, 1, "ESP")
        self.add("clone-1", uefi, 3)
        self.add("clone-2", uefi, 3)

    def _tables(self) -> None:
        """Strange tables, and strange copies of them."""
        work, uefi = self.work, self.work.uefi
        for number, letter in ((1, "ESP"), (3, "C"), (4, "D")):
            self.add("backup-copies", uefi, number, letter, mbr=makembr.capture(uefi, number, backup_readable=False))
        honest = makembr.capture(uefi, 3)
        self.add("bad-primary", uefi, 3, mbr=honest.replace(b"EFI PART\0\0\1\0", b"EFI PART\0\0\1\1", 1))
        record = struct.pack("<I", 512) + uefi.read(0, 512)
        self.add("short-record", uefi, 3, mbr=honest.replace(record, struct.pack("<I", 300) + uefi.read(0, 300), 1))
        self.add("empty-record", uefi, 3, mbr=honest.replace(record, bytes(4), 1))
        self.add("hybrid", work.hybrid, 1)
        self.add("256-entries", work.many, 200)
        extra = (SECTOR, work.grub.read(SECTOR, 63 * SECTOR))
        self.add("grub", work.grub, 1, mbr=makembr.capture(work.grub, 1, client="linux", extra=extra), client="linux")
        extra = (SECTOR, work.veracrypt.read(SECTOR, 63 * SECTOR))
        self.add("veracrypt", work.veracrypt, 1, mbr=makembr.capture(work.veracrypt, 1, extra=extra))
        self.add("xp", work.xp, 1)

    def _far(self) -> None:
        """Disks that hold what a VHD cannot, and images that are no volume behind 512 KiB."""
        work = self.work
        self.add("version-100", work.gaps, 2, "hda", mbr=b"\x01\x64PK\x03\x04" + bytes(300), form="whole disk")
        self.add("version-100", work.xp, 1, "hdb", mbr=b"\x01\x64PK\x03\x04" + bytes(300), form="whole disk")
        self.add("4096-sectors", work.big_sectors, 1, block=4096)
        huge = work.huge
        self.add("huge", huge, 1)
        big = (".hash", ".bitmap", ".cbitmap")
        d = replace(huge, partitions=tuple(replace(p, fs="ntfs") if p.number == 2 else p for p in huge.partitions))
        self.add("enlarged", d, 2, "D", form="enlarged", without=big)
        self.add("enlarged", d, 2, "E", form="enlarged", without=(*big, ".mbr"))
        # So near to 2 TiB, the file is longer but has no table of its own.
        near = work.bare("near", None, 2 * TIB - 256 * 1024)
        self.add("enlarged", near, 1, "F", form="enlarged", without=(*big, ".mbr"))
        self._cut()

    def _cut(self) -> None:
        """Half of C:, and nothing before it that tells."""
        self.add("cut", self.work.uefi, 3)
        image = self.images["cut", "C"]
        moment = image.started.timestamp()
        seal(image.directory, read_only=False)
        with image.raw.open("r+b") as file:
            file.write(bytes(HEADER))
            file.truncate(HEADER + CUT)
        os.utime(image.raw, (moment, moment))
        seal(image.directory)


def _sidecar(disk: OriginalDisk, number: int, name: str, serial: str) -> bytes:
    return makembr.mbr_bytes(
        version=1,
        device_number=0,
        partition_number=number,
        serial=serial,
        volume_name=name,
        filesystem="ext4",
        mbr_data=disk.read(0, 512),
        gpt=makembr.GptCopy.read(disk.path),
    )


def lay(lab: Lab) -> Iterator[Kinds]:
    """Make all disks, and back them up."""
    with lab.scope("kinds") as scope:
        root = scope.btrfs(1024 * MIB)
        kinds = Kinds(scope, Workshop(scope), Store(root / "urbackup"))
        kinds.fill()
        yield kinds

