"""Writes the `.raw` image of one volume and the sidecars that follow from its bytes.

Not for: directories, subvolumes and `.mbr`; see makestore and makembr. Units: bytes. Full images have holes where the
volume is zero; an incremental rewrites the chunks that changed, as the server does with its parent's copy.
Source: facts/urbackup-format.md sections 1.1 to 1.7 and 6.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import sparse

HEADER = 512 * 1024
CHUNK = 512 * 1024
SECTOR = 512
MIB = 1 << 20
TIB = 1 << 40
BASIC_DATA = bytes.fromhex("a2a0d0ebe5b9334487c068b6b72699c7")
BITMAP_BLOCK = 4096
ZERO_CHUNK_SHA256 = bytes.fromhex("07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541")
BOOT_CODE_SHA256 = "2b05e6b69b606894f940740ee299322c481dedf503107f4680e766202cbee212"
# The boot code that every image begins with: the well-known MBR code of Windows XP.
BOOT_CODE = bytes.fromhex(
    "33c08ed0bc007cfb5007501ffcbe1b7cbf1b065057b9e501f3a4cbbdbe07b104386e007c09751383c510e2f4cd188bf5"
    "83c610497419382c74f6a0b507b4078bf0ac3c0074fcbb0700b40ecd10ebf2884e10e84600732afe4610807e040b740b"
    "807e040c7405a0b60775d2804602068346080683560a00e821007305a0b607ebbc813efe7d55aa740b807e100074c8a0"
    "b707eba98bfc1e578bf5cbbf05008a5600b408cd1372238ac1243f988ade8afc43f7e38bd186d6b106d2ee42f7e23956"
    "0a77237205394608731cb80102bb007c8b4e028b5600cd1373514f744e32e48a5600cd13ebe48a560060bbaa55b441cd"
    "13723681fb55aa7530f6c101742b61606a006a00ff760aff76086a0068007c6a016a10b4428bf4cd136161730e4f740b"
    "32e48a5600cd13ebd661f9c3496e76616c696420706172746974696f6e207461626c65004572726f72206c6f6164696e"
    "67206f7065726174696e672073797374656d004d697373696e67206f7065726174696e672073797374656d0000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000000002c4463"
)


def fake_mbr(length: int, signature: int) -> bytes:
    """The server's own MBR in sector 0: one active partition of type 7 at LBA 1024, whatever the volume is."""
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 7, b"\xfe\xff\xff", 1024, length // SECTOR % 2**32)
    return (BOOT_CODE + struct.pack("<I", signature) + bytes(2) + entry).ljust(510, b"\0") + b"\x55\xaa"


def write_header(raw: Path, length: int, signature: int) -> None:
    """The fake MBR and 1023 sectors of zeroes, which are really written: no hole."""
    with raw.open("r+b") as file:
        file.write(fake_mbr(length, signature).ljust(HEADER, b"\0"))


def write_full(raw: Path, disk: Path, *, offset: int, length: int, block: int, signature: int) -> None:
    """A new image of the volume at `offset` of a disk; the residue after its last whole block is never sent."""
    sparse.create(raw, HEADER + length)
    write_header(raw, length, signature)
    sparse.copy(disk, raw, offset=offset, length=length // block * block, to=HEADER)


def write_whole_disk(raw: Path, disk: Path) -> None:
    """A version 100 image: the disk from offset 0, without a header, and as much slack behind it (section 2.3)."""
    length = disk.stat().st_size
    sparse.create(raw, length + HEADER)
    sparse.copy(disk, raw, offset=0, length=length, to=0)


def enlarge(raw: Path, length: int, signature: int) -> None:
    """Make of an image what 2.5.33 writes for a volume that ends above 2 TiB (Appendix A): a longer file, with a GPT."""
    end = HEADER + length
    rounded = end + MIB - end % MIB
    with raw.open("r+b") as file:
        file.truncate(rounded + 1024)
        if length <= 2 * TIB:
            return
        entry = BASIC_DATA + bytes(range(16)) + struct.pack("<QQQ", HEADER // SECTOR, end // SECTOR, 0)
        table = entry + "VOLUME BACKUP".encode("utf-16-le").ljust(72, b"\0")
        backup = rounded // SECTOR + 1
        record = bytearray(fake_mbr(length, signature))
        record[450], record[458:462] = 0xEE, bytes(4)
        file.write(bytes(record) + _gpt_header(1, backup, 2, table) + table)
        file.seek(rounded)
        file.write(table.ljust(SECTOR, b"\0") + _gpt_header(backup, 1, backup - 1, table))


def _gpt_header(own: int, other: int, at: int, table: bytes) -> bytes:
    places = struct.pack("<4Q16sQ", own, other, 3, 0, bytes(16), at)
    body = struct.pack("<8sIII4x", b"EFI PART", 0x10000, 92, 0) + places + struct.pack("<III", 1, 128, zlib.crc32(table))
    return (body[:16] + zlib.crc32(body).to_bytes(4, "little") + body[20:]).ljust(SECTOR, b"\0")


def write_incremental(raw: Path, disk: Path, *, offset: int, length: int, block: int, signature: int) -> None:
    """Turn a copy of the parent's image into the image of today, chunk by chunk."""
    with raw.open("r+b") as image, disk.open("rb") as original:
        image.truncate(HEADER + length)
        sent = length // block * block
        for chunk in range(0, sent, CHUNK):
            amount = min(CHUNK, sent - chunk)
            image.seek(HEADER + chunk)
            original.seek(offset + chunk)
            today = original.read(amount)
            if today != image.read(amount):
                image.seek(HEADER + chunk)
                image.write(today)
    write_header(raw, length, signature)


def hash_bytes(raw: Path, *, block: int, start: int = HEADER) -> bytes:
    """`.hash` of a raw transfer: SHA-256 of each 512 KiB of the volume, and an irregular last entry (section 6).

    The volume begins at `start`: a disk that was imaged as a whole has no header before it (section 2.3).
    """
    length = raw.stat().st_size - HEADER
    sent, unsent = length // block * block, length % block != 0
    entries = [ZERO_CHUNK_SHA256] * (sent // CHUNK)
    for index, content in _chunks(raw, sent, start):
        if len(content) == CHUNK:
            entries[index] = hashlib.sha256(content).digest()
    with raw.open("rb") as file:
        file.seek(start + sent // CHUNK * CHUNK)
        tail = file.read(sent % CHUNK) + bytes(block if unsent else 0)
    entries.append(hashlib.sha256(tail).digest())
    if len(tail) == CHUNK:
        entries.append(hashlib.sha256(b"").digest())
    return b"".join(entries)


def cbitmap_bytes(raw: Path, *, block: int) -> bytes:
    """`.cbitmap`: which blocks the client sent, here those that hold anything; least significant bit first."""
    length = raw.stat().st_size - HEADER
    bits = _bits(length, block)
    for index, content in _chunks(raw, length // block * block):
        for number in _used(content, block):
            place = index * (CHUNK // block) + number
            bits[place // 8] |= 1 << place % 8
    body = struct.pack("<I", block) + bytes(bits)
    return b"UrBBMM8C" + body + hashlib.sha256(body).digest()


def bitmap_bytes(raw: Path) -> bytes:
    """`.bitmap`: 4096-byte blocks of the whole file, header included; most significant bit first."""
    length = raw.stat().st_size
    bits = _bits(length, BITMAP_BLOCK)
    bits[: HEADER // BITMAP_BLOCK // 8] = b"\xff" * (HEADER // BITMAP_BLOCK // 8)
    for index, content in _chunks(raw, length - HEADER):
        for number in _used(content, BITMAP_BLOCK):
            place = (HEADER + index * CHUNK) // BITMAP_BLOCK + number
            bits[place // 8] |= 0x80 >> place % 8
    return bytes(bits)


def _bits(length: int, block: int) -> bytearray:
    """One bit a block, a last partial block and byte included."""
    blocks = (length + block - 1) // block
    return bytearray((blocks + 7) // 8)


def _chunks(raw: Path, length: int, begin: int = HEADER) -> Iterator[tuple[int, bytes]]:
    """(index, content) of the volume's chunks that are not wholly holes."""
    last = -1
    with raw.open("rb") as file:
        for start, amount in sparse.data(file, begin, length):
            first = (start - begin) // CHUNK
            for index in range(max(first, last + 1), (start + amount - begin - 1) // CHUNK + 1):
                file.seek(begin + index * CHUNK)
                yield index, file.read(min(CHUNK, length - index * CHUNK))
                last = index


def _used(content: bytes, block: int) -> Iterator[int]:
    zero = bytes(block)
    for start in range(0, len(content), block):
        piece = content[start : start + block]
        if piece != zero[: len(piece)]:
            yield start // block
