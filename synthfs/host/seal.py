"""What keeps an image directory from being changed: a read-only BTRFS subvolume, or ZFS's snapshot `@ro`.

No handle stays in the directory, and the snapshot itself is never entered: a handle there, while UrBackup deletes the
backup, leaves a dataset that its helper can never remove. Not for: what follows from it (`plan/complete`).
"""

import array
import fcntl
import os

from synthfs.model import Seal

_BTRFS_IOC_SUBVOL_GETFLAGS = 0x80089419
_BTRFS_SUBVOL_RDONLY = 1 << 1


def seal_of(directory: str) -> Seal:
    """The seal of `directory`; NONE where it is neither a subvolume nor a dataset, OPEN where it cannot be asked."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return Seal.OPEN
    flags = array.array("Q", [0])
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_SUBVOL_GETFLAGS, flags)
        return Seal.SEALED if flags[0] & _BTRFS_SUBVOL_RDONLY else Seal.OPEN
    except OSError:
        pass  # another file system, or no subvolume's root
    finally:
        os.close(fd)
    try:
        return Seal.SEALED if "ro" in os.listdir(f"{directory}/.zfs/snapshot") else Seal.OPEN
    except OSError:
        return Seal.NONE
