"""Finds the images in UrBackup's backup storage and gathers every fact about them, once.

    <store>/<client>/<YYMMDD-HHMM>_Image_<L>/Image_<L>_<YYMMDD-HHMM>.raw    + .mbr .sync .hash .bitmap .cbitmap
    <store>/<client>/Image_<L>_<YYMMDD-HHMM>.raw                            older layout

The image directory is a BTRFS subvolume, a symbolic link to the mountpoint of a ZFS dataset, or a plain directory; that
link is the only one ever followed. While UrBackup starts an incremental, the directory shows its parent's files, so the
stamp and letter of file and directory have to agree. The store's root also holds directories of UrBackup's own.

A scan fails for the store as a whole only if its root cannot be read. Anything else that cannot be used is a `Skipped`.
Not for: judging completeness or parsing what was read (`plan/`).
Source: UrBackup's `ImageBackup.cpp` (names), `snapshot_helper/main.cpp` (containers).
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator

from synthfs.errors import NotFoundError, SourceError
from synthfs.extents import Source
from synthfs.host import files
from synthfs.host.handle import lasting
from synthfs.host.seal import seal_of
from synthfs.model import MAX_SIDECAR, VOLUME_OFFSET, ImageFacts, Kind, Seal, Skipped, StoreFacts

OWN_DIRECTORIES = frozenset(("clients", "urbackup", "urbackup_tmp_files", "user_views"))
"""Directories that UrBackup keeps beside those of its clients."""

_DIRECTORY = re.compile(r"(\d{6}-\d{4})_Image_(.+)", re.DOTALL)
_FILE = re.compile(r"Image_(.+)_(\d{6}-\d{4})\.raw", re.DOTALL)
_HEAD = 8192
_BOOT = 4096


def scan(root: str, clients: Collection[str] = ()) -> StoreFacts:
    """All images below `root`. `clients` are names that the database knows, should one be that of an own directory.

    Raises NotFoundError where `root` is no readable directory.
    """
    root = files.real_directory(root)
    owner = os.stat(root)
    finder = _Finder(root)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise NotFoundError(f"{root} cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name not in OWN_DIRECTORIES or entry.name in clients:
            finder.client(entry)
    return StoreFacts(root, owner.st_uid, owner.st_gid, tuple(finder.images), tuple(finder.skipped), lasting(root))


def is_client(directory: str) -> bool:
    """Whether `directory` holds images as the folder of a client does, and not clients as a store does."""
    with os.scandir(directory) as entries:
        return any(_DIRECTORY.fullmatch(entry.name) for entry in entries)


def split_path(path: str) -> tuple[str, str]:
    """The store that the image at the absolute `path` would lie in, and its name there: `<client>/<dir>/<file>`."""
    directory, _, file = path.rpartition("/")
    parent, _, last = directory.rpartition("/")
    if _DIRECTORY.fullmatch(last):
        store, _, client = parent.rpartition("/")
        return store or "/", f"{client}/{last}/{file}"
    return parent or "/", f"{last}/{file}"


def holds_any(root: str, names: Iterable[str]) -> bool:
    """Whether one of the images called `names` (`<client>/<dir>/<file>`) lies in the store at `root`."""
    return any(os.path.lexists(f"{root}/{name}") for name in names)


class _Finder:
    """Walks a store and collects what it finds. Equal contents are kept once: most backups repeat their last one."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._known: dict[bytes, bytes] = {}
        self.images: list[ImageFacts] = []
        self.skipped: list[Skipped] = []

    def client(self, found: os.DirEntry[str]) -> None:
        client = found.name
        if found.is_symlink():
            self._skip(client, client, "is a symbolic link; only those of image directories are followed")
        if not found.is_dir(follow_symlinks=False):
            return
        for entry in self._entries(client, client):
            if matched := _DIRECTORY.fullmatch(entry.name):
                if _is_directory(entry):
                    self._directory(client, entry.name, *matched.groups())
                # An empty file of that name is what UrBackup's ZFS mode has there before the dataset exists.
                elif not entry.is_file(follow_symlinks=False):
                    self._skip(client, f"{client}/{entry.name}", "is no directory, and leads to none")
            elif matched := _FILE.fullmatch(entry.name):
                self._image(client, f"{client}/{entry.name}", matched[1], matched[2], Seal.NONE)

    def _directory(self, client: str, directory: str, stamp: str, letter: str) -> None:
        name = f"{client}/{directory}/Image_{letter}_{stamp}.raw"
        found = [e.name for e in self._entries(client, f"{client}/{directory}") if e.name.endswith(".raw")]
        if f"Image_{letter}_{stamp}.raw" in found:
            self._image(client, name, letter, stamp, seal_of(f"{self._root}/{client}/{directory}"))
        elif found:
            reason = f"holds {found[0]}, not an image of its own name: a backup that is just starting"
            self._skip(client, f"{client}/{directory}", reason, Kind.INCOMPLETE)

    def _entries(self, client: str, name: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(f"{self._root}/{name}") as entries:
                yield from sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(client, name, f"cannot be listed: {error.strerror}")

    def _image(self, client: str, name: str, letter: str, stamp: str, seal: Seal) -> None:
        path = f"{self._root}/{name}"
        try:
            raw, head, boot = _open_image(name, path)
        except SourceError as error:
            self._skip(client, name, str(error))
            return
        sidecar, problem = self._sidecar(f"{path}.mbr")
        finished = os.path.lexists(f"{path}.sync")
        head, boot = self._once(head.rstrip(b"\0")), self._once(boot)
        self.images.append(ImageFacts(client, letter, stamp, raw, sidecar, problem, head, boot, finished, seal))

    def _sidecar(self, path: str) -> tuple[bytes | None, str | None]:
        try:
            content = files.read_small(path, MAX_SIDECAR)
        except SourceError as error:
            return None, str(error)
        return (None if content is None else self._once(content)), None

    def _once(self, content: bytes) -> bytes:
        return self._known.setdefault(content, content)

    def _skip(self, client: str, name: str, reason: str, kind: Kind = Kind.UNREADABLE) -> None:
        self.skipped.append(Skipped(client, name, reason, kind))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one or, as with ZFS, a symbolic link to one."""
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError:  # a link to itself
        return False


def _open_image(name: str, path: str) -> tuple[Source, bytes, bytes]:
    """The file as a source, its head, and the beginning of its volume. Raises SourceError."""
    fd = files.open_regular(path)
    try:
        found = os.fstat(fd)
        if found.st_nlink > 1:
            raise SourceError(f"{path} is a hard link: it may be any file of this file system, and UrBackup makes none")
        head, boot = os.pread(fd, _HEAD, 0), os.pread(fd, _BOOT, VOLUME_OFFSET)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    return Source(name, path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), head, boot
