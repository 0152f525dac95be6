"""The first seeds of the fuzz target: one honest `.mbr` of each kind, and some that lie in a known way.

    python tests/makeseeds.py tests/seeds

Not for: what the fuzzer found by itself; that lies beside these, under the names that libFuzzer gives. Units: bytes.
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import handmade
import makembr
from fuzz_target import REPAIR, SIBLING, SYSTEM, encode
from handmade import HEADER, MIB, Slot
from makeimage import fake_mbr

SECTORS = 256 * MIB // 512
MSR = UUID("E3C9E316-0B5C-4DB8-817D-F92DF00215AE")
WINDOWS = (
    Slot(1, 2048, 83967, handmade.ESP, "EFI system partition"),
    Slot(2, 83968, 116735, MSR, "Microsoft reserved partition"),
    Slot(3, 116736, 247807, name="Basic data partition"),
    Slot(4, 256000, 321535, name="Basic data partition"),
)


def seeds() -> Iterator[tuple[str, bytes]]:
    copy = handmade.gpt(SECTORS, *WINDOWS)
    record = handmade.protective(SECTORS)
    c = (247808 - 116736) * 512 - 512
    boot = handmade.ntfs_boot(c, 116736)
    honest = handmade.sidecar_bytes(3, record, copy)
    size = HEADER + c
    yield "gpt", encode(honest, boot=boot, head=fake_mbr(c, 1), size=size)
    yield "gpt-sibling", encode(honest, boot=boot, size=size, flags=REPAIR | SIBLING)
    yield "gpt-esp", encode(handmade.sidecar_bytes(1, record, copy), size=HEADER + 40 * MIB, flags=REPAIR | SYSTEM)
    yield "gpt-other-number", encode(handmade.sidecar_bytes(1, record, copy), boot=boot, size=size)
    yield "gpt-too-long", encode(honest, boot=boot, size=size + 512 * MIB)
    yield "gpt-no-record", encode(handmade.sidecar_bytes(3, b"", copy), boot=boot, size=size)
    short = handmade.gpt(SECTORS, *WINDOWS, lies={"own": 7})
    yield "gpt-wrong-place", encode(handmade.sidecar_bytes(3, record, short), boot=boot, size=size)
    yield "gpt-checksum", encode(honest.replace(b"EFI PART", b"EFI PARK", 1), boot=boot, size=size, flags=0)
    twice = makembr.GptCopy(*[getattr(copy, name) for name in copy.__slots__[:4]] * 2)
    yield "gpt-copies", encode(handmade.sidecar_bytes(3, record, twice), boot=boot, size=size)
    large = handmade.gpt(SECTORS // 8, Slot(1, 256, 16383), sector=4096)
    c = 63 * MIB - 4096
    boot_4096 = handmade.ntfs_boot(c, 256, 4096)
    yield "gpt-4096", encode(handmade.sidecar_bytes(1, b"", large), boot=boot_4096, size=HEADER + c)
    many = handmade.gpt(SECTORS, Slot(256, 2048, 83967), count=256)
    yield "gpt-256", encode(handmade.sidecar_bytes(1, record, many), size=HEADER + 40 * MIB)
    huge = handmade.gpt(1 << 33, Slot(1, 2048, (1 << 33) - 2048))
    yield "gpt-huge", encode(handmade.sidecar_bytes(1, record, huge), size=(1 << 42) - 4 * MIB)
    lvm = handmade.gpt(SECTORS, Slot(1, 2048, 83967, handmade.LVM))
    yield "gpt-lvm", encode(handmade.sidecar_bytes(1, record, lvm), boot=handmade.ext_boot(), size=HEADER + 20 * MIB)

    plain = handmade.record((7, 2048, 49152), (7, 51200, 131072))
    volume = 131072 * 512 - 512
    boot = handmade.ntfs_boot(volume, 51200)
    yield "mbr", encode(handmade.sidecar_bytes(2, plain), boot=boot, head=fake_mbr(volume, 1), size=HEADER + volume)
    hybrid = handmade.record((0xEE, 1, 2047), (7, 116736, 131072), signature=7)
    yield "hybrid", encode(handmade.sidecar_bytes(3, hybrid, copy), boot=boot, size=size)
    yield "mbr-protective", encode(handmade.sidecar_bytes(1, record), size=HEADER + 20 * MIB)
    extended = handmade.record((7, 2048, 49152), (0xF, 51200, 131072))
    yield "mbr-extended", encode(handmade.sidecar_bytes(2, extended), boot=boot, size=HEADER + 20 * MIB)
    grub = makembr.mbr_bytes(
        version=0,
        device_number=0,
        partition_number=5,
        serial="e0000000-0000-0000-0000-000000000000",
        volume_name="LINUX:/dev/sda1",
        filesystem="ext4",
        mbr_data=plain,
        extra=(512, b"GRUB Geom Read Error".ljust(63 * 512, b"\0")),
    )
    yield "mbr-grub", encode(grub, boot=handmade.ext_boot(), size=HEADER + 24 * MIB)
    dynamic = makembr.mbr_bytes(
        version=0,
        device_number=-1,
        partition_number=-1,
        serial="1",
        volume_name="",
        filesystem="NTFS",
        mbr_data=handmade.record((0x42, 63, 409600)),
        message="Dynamic volumes are not supported.",
    )
    yield "mbr-dynamic", encode(dynamic, boot=boot, size=HEADER + volume)
    yield "short-record", encode(handmade.sidecar_bytes(1, plain[:300]), boot=boot, size=HEADER + volume)
    yield "whole-disk", encode(b"\x01\x64PK\x03\x04", head=record + copy.header + copy.table[:128], size=SECTORS * 512 + HEADER)
    yield "none", encode(b"", size=HEADER + volume)
    above = (2 << 40) + MIB
    end = (HEADER + above) // 512
    wrapper = fake_mbr(above, 1) + b"EFI PART".ljust(512, b"\0") + bytes(32) + struct.pack("<QQ", 1024, end)
    yield "enlarged", encode(b"", head=wrapper, size=HEADER + above + MIB + 1024)


def main() -> None:
    for name, data in seeds():
        Path(sys.argv[1], name).write_bytes(data)


if __name__ == "__main__":
    main()
