"""Calls itself synthfs in the mount table, and is none: a file system whose `status.json` is what a test wants it to be.

    impostor.py MOUNTPOINT SOURCE CONTENT

CONTENT is a file, read anew at each look; or `endless`, a status.json that never ends; or `silent`, one that never answers.
"""

import errno
import os
import stat
import sys

import pyfuse3
import trio

ROOT, DIRECTORY, FILE = pyfuse3.ROOT_INODE, pyfuse3.InodeT(2), pyfuse3.InodeT(3)
NAMES = {(ROOT, b".synthfs"): DIRECTORY, (DIRECTORY, b"status.json"): FILE}


class Impostor(pyfuse3.Operations):
    def __init__(self, content: str) -> None:
        super().__init__()
        self._content = content

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = inode
        found.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444 if inode == FILE else stat.S_IFDIR | 0o755)
        found.attr_timeout = found.entry_timeout = 0
        return found

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if (inode := NAMES.get((parent_inode, name))) is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(inode)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        return None

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        if self._content == "silent":
            await trio.sleep_forever()
        if self._content == "endless":
            return b"[" * size
        with open(self._content, "rb") as file:
            return os.pread(file.fileno(), size, off)


def main() -> None:
    mountpoint, source, content = sys.argv[1:]
    options = {f"fsname={source}", "subtype=synthfs", "default_permissions"}
    pyfuse3.init(Impostor(content), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
