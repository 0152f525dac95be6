"""Finds the images in UrBackup's backup storage and gathers every fact about them, once.

    <store>/<client>/<YYMMDD-HHMM>_Image_<L>/Image_<L>_<YYMMDD-HHMM>.raw    + .mbr .sync .hash .bitmap .cbitmap
    <store>/<client>/Image_<L>_<YYMMDD-HHMM>.raw                            older layout

The image directory is a BTRFS subvolume, a symbolic link to the mountpoint of a ZFS dataset, or a plain directory; that
link is the only one ever followed. While UrBackup starts an incremental, the directory shows its parent's files, so the
stamp and letter of file and directory have to agree. The store's root also holds directories of UrBackup's own.

A scan fails for the store as a whole only if its root cannot be read. Anything else that cannot be used is a `Skipped`.

What was read of an image is not read again while the inode, size, mtime and ctime of its `.raw` and its `.mbr` are what they
were: no write, link, rename or change of access leaves the ctime alone, and nobody can set it. They are asked for at every
scan, as is what bears no such witness: whether a `.sync` is there, and the seal. A file that was written to within `_JUST_NOW`
of being read may be written to once more within one tick of its file system's clock, and is read again.
A file with several names is taken only where nobody else can have given it this one (`host/links`): asked at each scan as well.
Not for: judging completeness or parsing what was read (`plan/`).
Source: UrBackup's `ImageBackup.cpp` (names), `snapshot_helper/main.cpp` (containers).
"""

import calendar
import os
import re
import struct
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping

from synthfs.errors import NotFoundError, SourceError
from synthfs.extents import Source
from synthfs.host import files
from synthfs.host.handle import lasting
from synthfs.host.links import Links
from synthfs.host.seal import seal_of
from synthfs.model import MAX_SIDECAR, VOLUME_OFFSET, ImageFacts, Kind, Known, Packed, Seal, Skipped, StoreFacts

OWN_DIRECTORIES = frozenset(("clients", "urbackup", "urbackup_tmp_files", "user_views"))
"""Directories that UrBackup keeps beside those of its clients."""

_DIRECTORY = re.compile(r"(\d{6}-\d{4})_Image_(.+)", re.DOTALL)
_FILE = re.compile(r"Image_(.+)_(\d{6}-\d{4})\.raw", re.DOTALL)
HEAD = 8192
BOOT = 4096

_ROLLED = 440
"""Offset of the disk signature in a boot record: UrBackup makes up another one for each image."""

_JUST_NOW = 2 * 10**9
"""Nanoseconds: longer than a tick on any file system that UrBackup can use (ext3 counts whole seconds)."""

_MARK = struct.Struct("<QQQQ")
_64_BITS = (1 << 64) - 1

MARK = 2 * _MARK.size
"""Bytes of an image's mark: inode, size, mtime and ctime of the `.raw`, and those of the `.mbr`, 0 where there is none."""


def scan(root: str, clients: Collection[str] = (), known: Mapping[str, Known] | None = None) -> StoreFacts:
    """All images below `root`. `clients` are names that the database knows, should one be that of an own directory.

    `known` is what an earlier scan left. It spares reading and changes nothing: images that did not change are the same
    objects. Raises NotFoundError where `root` is no readable directory.
    """
    root = files.real_directory(root)
    owner = os.stat(root)
    finder = _Finder(root, known or {})
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise NotFoundError(f"{root} cannot be listed: {error.strerror}") from error
    for entry in entries:
        # An image's directory is no client: then `root` is the folder of one (`is_client`).
        if (entry.name not in OWN_DIRECTORIES or entry.name in clients) and not _DIRECTORY.fullmatch(entry.name):
            finder.client(entry)
    images, skipped = tuple(finder.images), tuple(finder.skipped)
    clock, clients = calendar.timegm(time.localtime()), tuple(finder.clients)
    return StoreFacts(root, owner.st_uid, owner.st_gid, images, skipped, lasting(root), finder.known, clients, clock)


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

    def __init__(self, root: str, known: Mapping[str, Known]) -> None:
        self._root = root
        self._links = Links(root)
        self._before = known
        self._contents: dict[bytes, bytes] = {}
        self._packed: dict[bytes, Packed] = {}  # of one client, by what is packed
        self._device = 0
        self.known: dict[str, Known] = {}
        self.images: list[ImageFacts] = []
        self.skipped: list[Skipped] = []
        self.clients: list[str] = []

    def client(self, found: os.DirEntry[str]) -> None:
        client = found.name
        if found.is_symlink():
            self._skip(client, client, "is a symbolic link; only those of image directories are followed")
        if not found.is_dir(follow_symlinks=False):
            return
        self.clients.append(client)
        self._packed.clear()
        for entry in self._entries(client, client):
            if matched := _DIRECTORY.fullmatch(entry.name):
                if _is_directory(entry):
                    self._directory(client, entry.name, matched[1], sys.intern(matched[2]))
                # An empty file of that name is what UrBackup's ZFS mode has there before the dataset exists.
                elif not entry.is_file(follow_symlinks=False):
                    self._skip(client, f"{client}/{entry.name}", "is no directory, and leads to none")
            elif matched := _FILE.fullmatch(entry.name):
                name = f"{client}/{entry.name}"
                if why := self._image(client, name, sys.intern(matched[1]), matched[2], None):
                    self._skip(client, name, f"{self._root}/{name} cannot be opened: {why}")

    def _directory(self, client: str, directory: str, stamp: str, letter: str) -> None:
        file = f"Image_{letter}_{stamp}.raw"
        name = f"{client}/{directory}/{file}"
        why = self._image(client, name, letter, stamp, f"{self._root}/{client}/{directory}")
        if why is None:
            return
        found = [e.name for e in self._entries(client, f"{client}/{directory}") if e.name.endswith(".raw")]
        if file in found:
            self._skip(client, name, f"{self._root}/{name} cannot be opened: {why}")
        elif found:
            reason = f"holds {found[0]}, not an image of its own name: a backup that is just starting"
            self._skip(client, f"{client}/{directory}", reason, Kind.INCOMPLETE)

    def _entries(self, client: str, name: str) -> Iterator[os.DirEntry[str]]:
        path = f"{self._root}/{name}"
        try:
            if name == client:
                self._device = os.stat(path).st_dev
            with os.scandir(path) as entries:
                yield from sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(client, name, f"cannot be listed: {error.strerror}")

    def _image(self, client: str, name: str, letter: str, stamp: str, directory: str | None) -> str | None:
        """Takes down the image called `name`, or why it cannot be used. Returns why there is none that could be looked at."""
        path = f"{self._root}/{name}"
        try:
            found = os.lstat(path)
        except OSError as error:
            return error.strerror
        if why := self._links.why_not(path, found):
            self._skip(client, name, why, Kind.LINKED)
            return None
        known, problem = self._before.get(name), None
        if known is None or not self._holds(known, path, found):
            try:
                found, problem, known, settled = self._read(path)
            except SourceError as error:
                self._skip(client, name, str(error))
                return None
        else:
            settled = True
        finished, seal = os.path.lexists(f"{path}.sync"), self._seal(found.st_dev, directory)
        image = known.image
        if image is None or (image.finished, image.seal, image.raw.device) != (finished, seal, found.st_dev):
            raw = Source(name, path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            content = known.sidecar, problem, known.head, known.boot
            image = ImageFacts(client, letter, stamp, raw, *content, finished, seal)
            known = known._replace(image=image)
        self.images.append(image)
        if settled and not problem:
            self.known[name] = known
        return None

    def _holds(self, known: Known, path: str, found: os.stat_result) -> bool:
        """Whether what is known of an image is what reading it would tell."""
        sidecar = _lstat(f"{path}.mbr")
        if sidecar and sidecar.st_nlink > 1 and self._links.why_not(f"{path}.mbr", sidecar):
            return False
        return known.mark == _mark(found) + _mark(sidecar)

    def _read(self, path: str) -> tuple[os.stat_result, str | None, Known, bool]:
        """What the `.raw` is, why its `.mbr` was not taken, what is in both, and whether a later change is sure to show.

        Raises SourceError where the `.raw` cannot be used.
        """
        now = time.time_ns()
        found, head, boot = _open_image(path)
        if why := self._links.why_not(path, found):  # since a moment ago
            raise SourceError(why)
        sidecar: Packed | None = None
        problem: str | None = None
        small: tuple[bytes, os.stat_result] | None = None
        try:
            small = files.read_small(f"{path}.mbr", MAX_SIDECAR)
        except SourceError as error:
            problem = str(error)
        problem = problem or (small and self._links.why_not(f"{path}.mbr", small[1]))
        if small and not problem:
            sidecar = self._pack(small[0])
        both = (found, small[1] if small else None)
        settled = all(abs(now - each.st_ctime_ns) > _JUST_NOW for each in both if each)
        known = Known(b"".join(map(_mark, both)), sidecar, self._same(head), self._same(boot))
        return found, problem, known, settled

    def _seal(self, device: int, directory: str | None) -> Seal:
        """The seal of an image's directory: subvolumes and datasets have a device number of their own, nothing else a seal."""
        return Seal.NONE if directory is None or device == self._device else seal_of(directory)

    def _pack(self, content: bytes) -> Packed:
        if (found := self._packed.get(content)) is None:
            found = Packed.of(content)
            found = self._packed[content] = Packed(self._same(found.deflated))
        return found

    def _same(self, content: bytes) -> bytes:
        """`content`, as the object that it is everywhere else."""
        if not self._contents:
            for known in self._before.values():
                for each in (known.head, known.boot, *((known.sidecar.deflated,) if known.sidecar else ())):
                    self._contents.setdefault(each, each)
        return self._contents.setdefault(content, content)

    def _skip(self, client: str, name: str, reason: str, kind: Kind = Kind.UNREADABLE) -> None:
        self.skipped.append(Skipped(client, name, reason, kind))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one or, as with ZFS, a symbolic link to one."""
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError:  # a link to itself
        return False


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _mark(found: os.stat_result | None) -> bytes:
    if found is None:
        return bytes(_MARK.size)
    # Modulo 2^64: XFS has times later than 2262.
    times = found.st_mtime_ns & _64_BITS, found.st_ctime_ns & _64_BITS
    return _MARK.pack(found.st_ino, found.st_size, *times)


def _open_image(path: str) -> tuple[os.stat_result, bytes, bytes]:
    """What the file is, its head without what says nothing, and the beginning of its volume. Raises SourceError."""
    fd = files.open_regular(path)
    try:
        found = os.fstat(fd)
        head, boot = os.pread(fd, HEAD, 0).rstrip(b"\0"), os.pread(fd, BOOT, VOLUME_OFFSET)
        # All else in the wrapper is the same in thousands of images, which then share it.
        return found, head[:_ROLLED] + bytes(6) + head[_ROLLED + 6 :] if len(head) > _ROLLED + 6 else head, boot
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
