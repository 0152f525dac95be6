"""The sessions of one mount: disks that somebody has written to, each a whole file in the scratch directory.

    STEM.EDITION.GENERATION.vhd     a session: all of the disk, frozen from the backup at the first write
    STEM.EDITION.GENERATION.gone    an empty mark: the sessions before that generation were discarded

What a session is stands in an attribute of its file, which is there before the file has a name, and the name comes all at
once (`host/publish`). To discard is to rename. So the directory alone tells what is so, and a process that is killed at
any moment leaves a session or none, and no part of one. What is in the directory and is none of ours stays untouched.

One mount at a time has the directory: it holds a lock for as long as it lives. `begin`, `add` and `remove` are separate,
so that the owner of the mount says when others see it. Not for: when to freeze (`fuse/writing`), places in the tree
(`plan/written`). Units: bytes, nanoseconds since 1970 UTC.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from synthfs.engines.idle import Idle
from synthfs.engines.materialize import Reflink, can_share_into, prepare
from synthfs.errors import ShareError, SourceError, TargetError
from synthfs.extents import ExtentMap, Source
from synthfs.host import shapes, zfs
from synthfs.host.publish import Draft, unwritable
from synthfs.host.scratch import ScratchFile
from synthfs.host.space import Reserve
from synthfs.model import Session, Sessions
from synthfs.text import quoted

log = logging.getLogger(__name__)

ATTRIBUTE = "user.synthfs.session"
_GONE = "gone"
_PATIENCE = 3.0
_MAX_STEM = 200
_NAME = re.compile(r"(.+\.([0-9a-f]{16}))\.(\d{1,9})\.([a-z]{2,5})", re.DOTALL)


@dataclass(slots=True)
class Written:
    """A session and its file."""

    session: Session
    file: ScratchFile
    idle: Idle
    own_space: int | None = None
    """Bytes that it shares with nothing, when they were last counted; `counted_at` is its mtime then."""
    counted_at: int = -1

    @property
    def name(self) -> str:
        """The file's name in the scratch directory."""
        return self.file.path.rpartition("/")[2]


class Scratch:
    """The scratch directory of a mount, and the sessions in it by inode."""

    def __init__(self, directory: str, min_free: float = 0.0) -> None:
        """Takes the directory for this process, and finds what is in it. `min_free` of its file system is left to others.

        Raises TargetError where another mount has it, or others than this user may put files there, which would be disks.
        """
        self.directory = directory
        self._by_inode: dict[int, Written] = {}
        self._generations: dict[bytes, int] = {}
        try:
            self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"{directory}: {error.strerror}; make it with `mkdir -p {quoted(directory)}`") from error
        self.reserve = Reserve(directory, self.fd, min_free)
        try:
            found = os.fstat(self.fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise TargetError(f"others may write to {directory}; take it for yourself with `chown` and `chmod go-w`")
            self._lock()
            with Draft(directory):
                pass  # takes away what a killed process left under a temporary name
            self._load()
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for written in self:
            written.idle.record()
        os.close(self.fd)

    def __contains__(self, inode: int) -> bool:
        return inode in self._by_inode

    def __iter__(self) -> Iterator[Written]:
        return iter(list(self._by_inode.values()))

    def get(self, inode: int) -> Written | None:
        return self._by_inode.get(inode)

    def facts(self) -> Sessions:
        """What the tree has to know of them."""
        return Sessions(tuple(written.session for written in self), dict(self._generations))

    def generation(self, edition: bytes) -> int:
        return self._generations.get(edition, 0)

    def begin(self, session: Session, extents: ExtentMap) -> Written:
        """Freezes `extents` into the file of a session that begins, and returns it, open once. Nobody sees it yet.

        Raises SourceError where the backup changed, ShareError where its data cannot be shared, FullError, TargetError;
        then nothing is left.
        """
        name = _file_name(session)
        # It takes hardly any space itself, but is made for what will.
        self.reserve.take()
        with prepare(extents, self.directory, Reflink.ALWAYS) as prepared:

            def keep_time(made: os.stat_result) -> None:
                # Until somebody has written, the file's time is the backup's.
                os.utime(prepared.fd, ns=(session.mtime_ns, session.mtime_ns))

            try:
                os.setxattr(prepared.fd, ATTRIBUTE, _packed(session))
            except OSError as error:
                raise unwritable(error, f"{self.directory} takes no attributes of files: {error.strerror}") from error
            prepared.freeze(name, overwrite=False, about_to_publish=keep_time)
        file = ScratchFile(f"{self.directory}/{name}", self.reserve)
        file.open()
        return Written(session, file, Idle(file.path))

    def add(self, written: Written) -> None:
        self._by_inode[written.session.inode] = written

    def remove(self, written: Written) -> None:
        """It was discarded: the next session of that edition is another generation."""
        del self._by_inode[written.session.inode]
        self._generations[written.session.edition] = written.session.generation + 1

    def discard(self, written: Written) -> None:
        """Lets go of what was written, for good. Raises FullError or TargetError, and then it is still there."""
        old = written.name
        stem, _, number, _ = _parsed(old)
        new = f"{stem}.{number + 1}.{_GONE}"
        try:
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            raise unwritable(error, f"{written.file.path} cannot be discarded: {error.strerror}") from error
        # From here on it is discarded; what follows is done again at the next start, if need be.
        with contextlib.suppress(OSError):
            os.fsync(self.fd)
            written.file.empty(f"{self.directory}/{new}")
            os.unlink(f"{stem}.{number}.{_GONE}", dir_fd=self.fd)

    def _lock(self) -> None:
        """Waits a moment for a mount that is just ending."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    message = f"{self.directory} is the scratch directory of another mount; each needs one of its own"
                    raise TargetError(message) from None
                time.sleep(0.05)

    def _load(self) -> None:
        found: list[tuple[str, int, bool, Session]] = []
        for name in sorted(os.listdir(self.fd)):
            if parts := _parts(name):
                path, (_, edition, number, kind) = f"{self.directory}/{name}", parts
                session = _record(path)
                if session and session.edition.hex()[:16] == edition and session.generation <= number:
                    found.append((path, number, kind == _GONE, session))
                else:
                    log.warning("%s is not understood, and left alone", path)
        for _, number, _, session in found:
            self._generations[session.edition] = max(number, self.generation(session.edition))
        for path, number, is_mark, session in found:
            is_latest = number == self.generation(session.edition)
            if is_mark:
                self._tidy(path, is_latest)
            elif is_latest and number == session.generation:
                self.add(Written(session, ScratchFile(path, self.reserve), Idle(path)))
            else:
                log.warning("%s is older than what was discarded, and left alone", path)

    def _tidy(self, path: str, is_latest: bool) -> None:
        """A mark keeps no data, and of several the latest says all."""
        with contextlib.suppress(OSError):
            if not is_latest:
                os.unlink(path)
            elif os.lstat(path).st_size:
                os.truncate(path, 0)


def check(directory: str, backup: Source | None) -> None:
    """Tries whether sessions of backups like `backup` can be kept in `directory`.

    Raises ShareError or TargetError, with the remedy, where they cannot.
    """
    if zfs.pool_of(directory):
        raise ShareError(
            f"{directory} is on ZFS, where sharing waits for the pool and may copy, longer than a writer waits; "
            "make a file to write to with `synthfs materialize`"
        )
    if backup:
        try:
            can_share_into(directory, backup)
        except ShareError as error:
            raise ShareError(f"{directory}: {error}; name a directory on the file system of the backups") from error


def _file_name(session: Session) -> str:
    stem, _, suffix = session.path.rpartition("/")[2].rpartition(".")
    # For people alone. With the rest it is to be no longer than a file system takes.
    stem = stem.encode("utf-8", "surrogateescape")[:_MAX_STEM].decode("utf-8", "ignore")
    return f"{stem}.{session.edition.hex()[:16]}.{session.generation}.{suffix}"


def _parts(name: str) -> tuple[str, str, int, str] | None:
    """What a name is made of: all before the generation, the edition, the generation, the suffix. None for another's."""
    matched = _NAME.fullmatch(name)
    return (matched[1], matched[2], int(matched[3]), matched[4]) if matched else None


def _parsed(name: str) -> tuple[str, str, int, str]:
    parts = _parts(name)
    assert parts, name
    return parts


def _packed(session: Session) -> bytes:
    return json.dumps({key: fact.hex() if isinstance(fact, bytes) else fact for key, fact in asdict(session).items()}).encode()


def _record(path: str) -> Session | None:
    """The session that a file is of; None where it says nothing that can be understood."""
    try:
        facts: dict[str, Any] = shapes.parse(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))
        editions = bytes.fromhex(facts["edition"]), bytes.fromhex(facts.get("disk_edition", ""))
        session = Session(**facts | dict(zip(("edition", "disk_edition"), editions, strict=True)))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    numbers = (session.generation, session.inode, session.length, session.mtime_ns, session.began_ns)
    names = session.path.split("/") if isinstance(session.path, str) else [""]
    sane = all(type(number) is int and abs(number) < 2**63 for number in numbers) and isinstance(session.image, str)
    return session if sane and all(name not in ("", ".", "..") for name in names) and len(names) > 1 else None


def source(directory: str, name: str) -> Source:
    """A scratch file as something to freeze from. Raises SourceError where it is not there."""
    path = f"{directory}/{name}"
    try:
        # The name is what a mount said, and nothing but a session's leads nowhere else.
        found = os.lstat(path) if "/" not in name and _parts(name) else None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    if found is None or not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{path} is no file that was written to; look at `synthfs sessions`")
    return Source(name, path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
