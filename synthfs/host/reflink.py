"""Shares blocks between files: FICLONERANGE of BTRFS, XFS and whatever else implements it, copy_file_range for ZFS.

The two files may lie in different subvolumes or be reached through different mounts of one file system; their device
numbers then differ, so only trying tells. Alignment is the file system's block on both sides, except at the end of the
source, where the target has to end too.

Not for: choosing ranges (`plan/recipe`). Units: bytes. Source: ioctl_ficlonerange(2), the kernel's fiemap.rst, and
observation on BTRFS and XFS.
"""

import array
import ctypes
import errno
import fcntl
import os
import struct

from synthfs.errors import FullError, ShareError, SourceError, SynthfsError, TargetError
from synthfs.units import GiB

_FICLONERANGE = 0x4020940D
_RANGE = struct.Struct("qQQQ")
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000
_PUNCH_HOLE = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE, which only goes with FALLOC_FL_KEEP_SIZE."""

_COPY_AT_ONCE = GiB
"""Some kernels cut a longer copy_file_range to 2 GiB less one page, and ZFS shares nothing of a call that ends in a block."""

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("QQIIIxxxx")
"""start, length, flags, mapped extents, room for extents."""
_FIEMAP_EXTENT = struct.Struct("Q8xQ16xI12x")
"""logical offset, length, flags; left out: the physical offset and what is reserved."""
_FIEMAP_EXTENT_LAST, _FIEMAP_EXTENT_SHARED = 0x1, 0x2000
_EXTENTS_AT_ONCE = 1024
_TO_THE_END = 2**64 - 1

_libc = ctypes.CDLL(None, use_errno=True)

_REASONS: dict[int, str] = {
    errno.EXDEV: "they are on different file systems (on ZFS: different datasets)",
    errno.EOPNOTSUPP: "the file system cannot share blocks",
    errno.ENOTTY: "the file system cannot share blocks",
    errno.EINVAL: "the file system refuses this alignment, or one of the files is excluded from copy-on-write (chattr +C)",
    errno.EAGAIN: "the source was written to a moment ago and is not on disk yet; try again in a few seconds",
    errno.EROFS: "the target is on a read-only file system",
}


def clone_range(source: int, offset: int, length: int, target: int, at: int) -> None:
    """Makes [at, at + length) of descriptor `target` share the blocks of [offset, offset + length) of `source`.

    Raises ShareError with the reason where the file system does not.
    """
    try:
        fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source, offset, length, at))
    except OSError as error:
        raise _refusal(error) from error


def copy_range(source: int, offset: int, length: int, target: int, at: int) -> None:
    """The same by copy_file_range: between ZFS datasets it shares whole blocks where it can, and copies where it cannot.

    Raises ShareError where it does neither.
    """
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(source, target, min(length - done, _COPY_AT_ONCE), offset + done, at + done)
        except OSError as error:
            raise _refusal(error) from error
        if count == 0:
            raise ShareError("the source ended early")
        done += count


def _refusal(error: OSError) -> SynthfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"the new file cannot be written: {error.strerror}")
    return ShareError(f"data cannot be shared: {_REASONS.get(error.errno or 0, str(error.strerror))}")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Makes [offset, offset + length) of a file a hole. Raises TargetError where that cannot be done."""
    if _libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)):
        raise TargetError(f"no hole can be made in the new file: {os.strerror(ctypes.get_errno())}")


def empty(fd: int) -> None:
    """Takes everything out of a file. Raises TargetError: ZFS wants space even for that, and has a quota refuse it."""
    try:
        os.ftruncate(fd, 0)
    except OSError as error:
        raise _refusal(error) from error


def allocated(fd: int) -> int:
    """Bytes that the file system has allocated for a file, shared ones included."""
    return os.fstat(fd).st_blocks * 512


def block_size(fd: int) -> int:
    """The unit in which data of the file at `fd` can be shared: the file system's block, on ZFS the file's own."""
    return os.fstat(fd).st_blksize


def excluded_from_cow(fd: int) -> bool:
    """Whether the file has BTRFS's `+C`. Such files share blocks only with each other."""
    flags = array.array("L", [0])
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    except OSError:
        return False
    return bool(flags[0] & _FS_NOCOW_FL)


def exclude_from_cow(fd: int) -> None:
    """Gives an empty file `+C`. Raises ShareError where it cannot be had."""
    flags = array.array("L", [0])
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        flags[0] |= _FS_NOCOW_FL
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags)
    except OSError as error:
        raise ShareError(f"the backup has chattr +C and the new file cannot get it: {error.strerror}") from error


def own_space(path: str) -> int:
    """Bytes of a file that it shares with no other file, what is not on disk yet included. Raises SourceError.

    BTRFS and XFS tell that by FIEMAP; others (ZFS) count all of it as its own.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        return _unshared(fd)
    except OSError:
        return allocated(fd)
    finally:
        os.close(fd)


def _unshared(fd: int) -> int:
    own = at = 0
    request = bytearray(_FIEMAP.size + _EXTENTS_AT_ONCE * _FIEMAP_EXTENT.size)
    while True:
        _FIEMAP.pack_into(request, 0, at, _TO_THE_END - at, 0, 0, _EXTENTS_AT_ONCE)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        mapped = _FIEMAP.unpack_from(request)[3]
        if not mapped:
            return own
        for number in range(mapped):
            logical, length, flags = _FIEMAP_EXTENT.unpack_from(request, _FIEMAP.size + number * _FIEMAP_EXTENT.size)
            own += 0 if flags & _FIEMAP_EXTENT_SHARED else length
            at = logical + length
            if flags & _FIEMAP_EXTENT_LAST:
                return own
