"""The mounts of this program: found in the kernel's table, tuned, taken down again, never touched when they are not ours.

Every look at the mount itself goes through `host/probe`; paths are resolved without a question to their last component,
since that may be a mount that no longer answers. Not for: making mounts (`fuse/mount`).
Source: proc(5), mountinfo.
"""

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from synthfs.errors import MountError
from synthfs.host import probe, shapes
from synthfs.model import STATUS, STATUS_DIRECTORY
from synthfs.text import quoted

TYPE = "fuse.synthfs"
READ_AHEAD = 1024 * 1024
"""Median of 7 rounds, MiB/s: 1738 with the kernel's 128 KiB, 2477 with 256, 2560 with 512, 2931 with this, 2977 with 4096."""

_SESSION = {
    "path": str, "image": str, "began_ns": int, "written_ns": int, "own_space": (int, None), "open": [int], "backup": bool,
}  # fmt: skip
_STATUS = {
    "pid": int, "store": str, "disks": int, "scratch?": (str, None), "sessions?": [_SESSION],
    "open_handles?": int, "errors?": int,
}  # fmt: skip
"""What is used of `status.json`. Whoever may mount can call himself synthfs, and write what he likes."""

_MOST_COPIES = 3
"""How many of them are named."""

_SOON = 2.0
"""Seconds that a process needs to end by far, once its mount is gone everywhere."""

_PAUSE = 0.1
"""Seconds between looks into the mount tables of all processes."""

_PRINTABLE = "".join(map(chr, range(33, 127))).translate({ord(c): None for c in "%,\\"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table. `store` is the absolute path that the mount was given as its source."""

    mountpoint: str
    store: str


def encode_source(store: str) -> str:
    """A path as a mount source: percent-encoded where libfuse's option parser or the mount table would garble it."""
    return quote_from_bytes(os.fsencode(store), safe=_PRINTABLE)


def resolve(path: str) -> str:
    """The absolute path of a mountpoint with all symbolic links resolved, without asking what is mounted there."""
    parent, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(parent), name)
    try:
        # Of a directory the kernel itself says that it is no link, also of one that a dead process serves.
        target = os.readlink(place)
    except OSError:
        return place
    if os.path.realpath(place) == place:
        raise MountError(f"{path} is a symbolic link that leads to itself")
    return resolve(os.path.join(os.path.dirname(place), target))


def table() -> list[Mount]:
    """Every synthfs mount that this process sees, in the order of mounting."""
    return [Mount(row.place, _decode_source(row.source)) for row in _rows() if row.kind == TYPE]


def at(path: str) -> Mount | None:
    """The synthfs mount whose mountpoint is `path`; None where something else, or nothing, is mounted on top."""
    top = _top(resolve(path))
    return Mount(top.place, _decode_source(top.source)) if top and top.kind == TYPE else None


def init_sees(path: str) -> bool:
    """Whether process 1 has a synthfs mount at `path`, and so everybody with its view. True where it cannot be asked."""
    try:
        return any(row.place == path and row.kind == TYPE for row in _rows("1"))
    except PermissionError:
        return True


def containing(path: str) -> Mount | None:
    """The synthfs mount that `path` lies in."""
    absolute = resolve(path)
    inside = [mount for mount in table() if absolute.startswith(f"{mount.mountpoint}/")]
    return max(inside, key=lambda mount: len(mount.mountpoint), default=None)


def file_system(path: str) -> tuple[str, str]:
    """Type and source of the mount that `path` lies in, with links followed: `("zfs", "tank/images")`.

    Both are empty where the mount table does not tell: below chroot(2), the root may be no mount point.
    """
    real = os.path.realpath(path)
    inside = [row for row in _rows() if f"{real}/".startswith(f"{row.place.rstrip('/')}/")]
    innermost = max(inside, key=lambda row: len(row.place), default=None)
    return (innermost.kind, innermost.source) if innermost else ("", "")


def raise_read_ahead(mountpoint: str) -> bool:
    """Makes the kernel read ahead of whoever reads a file of this mount in sequence, as far as one request can ask.

    False where that is not allowed, as to ordinary users. To be called once the kernel and the server have greeted each other:
    then the kernel goes back to its default. What is opened later gets the longer one. The mount itself is not asked.
    """
    top = _top(mountpoint)
    try:
        with open(f"/sys/class/bdi/{top and top.device}/read_ahead_kb", "w") as file:
            file.write(str(READ_AHEAD // 1024))
    except OSError:
        return False
    return True


def is_dead(mount: Mount) -> bool:
    """Whether nobody serves the mount any more. One that is slow, stuck or closed to this user is alive.

    The mountpoint itself would be found in the kernel's caches for a long time yet.
    """
    return probe.is_disconnected(f"{mount.mountpoint}/{STATUS_DIRECTORY}/{STATUS}")


def is_closed(mount: Mount) -> bool:
    """Whether the mount does not let this user in, and so says nothing of how it fares."""
    return probe.is_denied(f"{mount.mountpoint}/{STATUS_DIRECTORY}/{STATUS}")


def status(mount: Mount) -> dict[str, Any] | None:
    """What the process of a mount tells of itself; None where it does not answer, or not as synthfs does."""
    told = probe.read(f"{mount.mountpoint}/{STATUS_DIRECTORY}/{STATUS}")
    return parsed_status(told) if told else None


def parsed_status(told: bytes) -> dict[str, Any] | None:
    """What `status.json` says, with what older versions do not say; None for what no synthfs writes."""
    try:
        facts = shapes.parse(told)
    except ValueError:
        return None
    return {"scratch": None, "sessions": []} | facts if shapes.fits(facts, _STATUS) else None


def is_writable(mount: Mount) -> bool:
    """Whether its disks can be written to."""
    return bool((status(mount) or {}).get("scratch"))


@dataclass(frozen=True, slots=True)
class Admission:
    """Whom a mount lets in: everybody whom the files' permissions allow, or who mounted it alone.

    Then FUSE asks for all of a process' real, effective and saved ids to be `user` and `group`. `files` and `directories` are
    the permissions in the mount, None where this user may not know them.
    """

    is_open: bool
    user: int
    group: int
    files: probe.Permissions | None
    directories: probe.Permissions | None


def admission(mount: Mount) -> Admission:
    """Whom `mount` lets in, by the mount table and by its own files."""
    top = _top(mount.mountpoint)
    options = top.options if top else ()
    ids = {name: int(value) for name, _, value in (option.partition("=") for option in options) if name.endswith("_id")}
    files = probe.permissions(f"{mount.mountpoint}/{STATUS_DIRECTORY}/{STATUS}")
    directories = probe.permissions(mount.mountpoint) if files else None
    return Admission("allow_other" in options, ids.get("user_id", 0), ids.get("group_id", 0), files, directories)


def detach(mount: Mount) -> None:
    """Takes a dead mount out of the tree, whoever may still hold it. Raises MountError."""
    _run_umount(mount.mountpoint, lazy=True)


def unmount(mount: Mount, server: int | None, limit: float = 30.0) -> None:
    """Unmounts and waits until process `server` has ended.

    Raises MountError, with who holds it, where it is busy, or where a copy of it is mounted elsewhere and so goes on.
    """
    watch, before = _pidfd(server), _top(mount.mountpoint)
    try:
        _run_umount(mount.mountpoint, lazy=False)
        # Somebody may be just about to end with a copy, as a container that stops.
        if _wait(watch, before, _SOON):
            return
        if before and (copies := list(islice(_copies(before), _MOST_COPIES))):
            raise MountError(f"{mount.mountpoint} is unmounted here, and goes on elsewhere: {'; '.join(copies)}")
        if not _wait(watch, before, limit - _SOON):
            raise MountError(f"{mount.mountpoint} is unmounted, but process {server} is still finishing after {limit:.0f} s")
    finally:
        if watch is not None:
            os.close(watch)


def _wait(watch: int | None, before: "_Row | None", limit: float) -> bool:
    """Whether the process behind `watch` ends within `limit` seconds; where there is none, whether all copies go."""
    if watch is not None:
        return bool(select.select((watch,), (), (), limit)[0])
    until = time.monotonic() + limit
    while is_left := before is not None and any(True for _ in _copies(before)):
        if time.monotonic() > until:
            break
        time.sleep(_PAUSE)
    return not is_left


def users_may_allow_other() -> bool:
    """Whether an ordinary user's mount may be opened to others here (fuse.conf)."""
    try:
        with open("/etc/fuse.conf") as configuration:
            return any(line.strip() == "user_allow_other" for line in configuration)
    except OSError:
        return False


def _pidfd(process: int | None) -> int | None:
    """To wait for a process that serves a mount; None for any other, whatever a mount says of itself."""
    try:
        fds = f"/proc/{process}/fd"
        serves = process and any(os.readlink(f"{fds}/{fd}") == "/dev/fuse" for fd in os.listdir(fds))
        return os.pidfd_open(process) if process and serves else None
    except (OSError, OverflowError):
        return None


def _run_umount(mountpoint: str, lazy: bool) -> None:
    if os.geteuid() == 0:
        command = ["umount", "--no-canonicalize", *(["--lazy"] if lazy else []), mountpoint]
    else:
        helper = shutil.which("fusermount3")
        if helper is None:
            raise MountError("fusermount3 is not installed; it comes with the package fuse3")
        command = [helper, "-u", *(["-z"] if lazy else []), mountpoint]
    result = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode == 0:
        return
    users = ", ".join(_users(mountpoint))
    if users:
        raise MountError(f"{mountpoint} is in use by {users}; end these and try again, or detach it with umount --lazy")
    whose = "" if os.geteuid() == 0 else "; only root and the user who mounted it can do that"
    raise MountError(f"{mountpoint} cannot be unmounted: {os.fsdecode(result.stderr).strip() or 'umount failed'}{whose}")


def _users(mountpoint: str) -> Iterator[str]:
    """Processes that have a file or their working directory below `mountpoint`, as far as this user may see."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [f"/proc/{process}/cwd", *(f"/proc/{process}/fd/{fd}" for fd in os.listdir(f"/proc/{process}/fd"))]
            if any(f"{os.readlink(link)}/".startswith(f"{mountpoint}/") for link in links):
                yield _name(process)
        except OSError:
            continue


class _Row(NamedTuple):
    """A mount in a process's table. The device is a number such as `0:53`, the options are those of the file system."""

    place: str
    device: str
    kind: str
    source: str
    options: tuple[str, ...]


def _rows(process: str = "self") -> Iterator[_Row]:
    """The mounts that a process sees, in the order of mounting."""
    with open(f"/proc/{process}/mountinfo", "rb") as mountinfo:
        for line in mountinfo:
            before, _, after = line.partition(b" - ")
            _, _, device, _, place, *_ = before.split(b" ")
            kind, source, *options = (os.fsdecode(_unescape(field)) for field in after.rstrip(b"\n").split(b" "))
            yield _Row(os.fsdecode(_unescape(place)), device.decode(), kind, source, tuple(options[-1].split(",")))


def _top(mountpoint: str) -> _Row | None:
    """What is mounted on top at `mountpoint`."""
    return next((row for row in reversed(list(_rows())) if row.place == mountpoint), None)


def _copies(of: _Row) -> Iterator[str]:
    """Where a file system is mounted, in this mount namespace and in those of other processes, with how to end that."""
    own, seen, is_here = _namespace("self"), set(), False
    for process in ("self", *filter(str.isdigit, os.listdir("/proc"))):
        try:
            # The number of its device is given away again once it has ended everywhere.
            same = (row for row in _rows(process) if (row.device, row.kind, row.source) == (of.device, of.kind, of.source))
            place = next((row.place for row in same), None)
            namespace = _namespace(process)
            # Of a process that this user may not look into, that namespace may be this one.
            if place is None or namespace in seen or (namespace is None and is_here):
                continue
            seen |= {namespace} - {None}
            if namespace == own:
                is_here = True
                yield f"it is mounted at {place} too, which `umount {quoted(place)}` ends"
            else:
                remedy = f"end that process, or run `nsenter --target {quoted(process)} --mount umount {quoted(place)}`"
                yield f"{_name(process)} has a copy in another mount namespace; {remedy}"
        except OSError:
            continue


def _namespace(process: str) -> int | None:
    """The mount namespace of a process; None where this user may not ask."""
    try:
        return os.stat(f"/proc/{process}/ns/mnt").st_ino
    except PermissionError:
        return None


def _name(process: str) -> str:
    with open(f"/proc/{process}/comm") as comm:
        return f"{comm.read().strip()} ({process})"


def _unescape(field: bytes) -> bytes:
    """Undoes the octal escapes that the kernel writes for space, tab, newline and backslash."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)


def _decode_source(source: str) -> str:
    """What `encode_source` made a source of; one with a NUL was made by somebody else, and stays as it is."""
    path = unquote_to_bytes(os.fsencode(source))
    return source if b"\0" in path else os.fsdecode(path)
