"""What a directory is known by again after a reboot, on another device, or through another mount of its file system.

Its file system's UUID, and the file handle by which NFS would find it there: inode and generation, so that a directory
made anew under the number of a deleted one is another. Nothing is written for it. Not for: files in use (`host/files`),
which are known by less and more often. Source: name_to_handle_at(2), statfs(2), ioctl_xfs_fsgeometry(2).
"""

import ctypes
import fcntl
import os
import struct

from synthfs.errors import NotFoundError
from synthfs.host.files import file_system_magic

_XFS_MAGIC = 0x58465342
_XFS_IOC_FSGEOMETRY_V1 = 0x80705864
_XFS_GEOMETRY = struct.Struct("=64x16s32x")
"""struct xfs_fsop_geom_v1, of which only `uuid` is wanted."""

_MAX_HANDLE = 128
_AT_FDCWD = -100


class _Handle(ctypes.Structure):
    """struct file_handle: `length` says how much of `data` there may be, and then how much there is."""

    _fields_ = (("length", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * _MAX_HANDLE))


_libc = ctypes.CDLL(None, use_errno=True)


def lasting(directory: str) -> str:
    """A text that is equal for the same directory for as long as it exists, and for no other. Raises NotFoundError."""
    try:
        return f"{_file_system(directory)}:{_handle(directory)}"
    except OSError as error:
        raise NotFoundError(f"{directory} cannot be opened: {error.strerror}") from error


def _file_system(directory: str) -> str:
    """The UUID, or what the file system derives from it (BTRFS, ZFS, ext4); XFS has a device number in that place."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if file_system_magic(fd) == _XFS_MAGIC:
            raw = fcntl.ioctl(fd, _XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY.size))
            return str(_XFS_GEOMETRY.unpack(raw)[0].hex())
        return f"{os.fstatvfs(fd).f_fsid:x}"
    finally:
        os.close(fd)


def _handle(directory: str) -> str:
    handle, mount = _Handle(length=_MAX_HANDLE), ctypes.c_int()
    if _libc.name_to_handle_at(_AT_FDCWD, os.fsencode(directory), ctypes.byref(handle), ctypes.byref(mount), 0) == 0:
        return f"{handle.type:x}:{bytes(handle.data[: handle.length]).hex()}"
    # A file system that NFS could not export has inodes.
    return f"inode:{os.stat(directory).st_ino:x}"
