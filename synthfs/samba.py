"""The share through which Windows attaches the disks: what belongs into smb.conf, and what in it would hurt.

`stanza` writes the share, a reason above each line. `findings` reads a configuration as `testparm -s -v` prints it: all of
[global], and what a share has otherwise. Facts were observed with Samba 4.17 on Linux, none with Windows.

Not for: changing anybody's configuration.
"""

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from synthfs.errors import FormatError, NotFoundError, UnsupportedError
from synthfs.host.mounts import Admission
from synthfs.host.smb_users import all_get_in
from synthfs.host.smb_users import problems as users_problems
from synthfs.text import quoted

Section = Mapping[str, str]

_STANZA = """\
# Disks of UrBackup's images, as shown by synthfs. Include this in smb.conf; `synthfs share --check` looks at the result.
[{name}]
    # The directory above the mount: on the mount itself, clients would keep a dead directory when synthfs restarts.
    path = {parent}
{writing}    # Backups hold everything; Windows refuses guests anyway.
    valid users = {readers}{writers}
    # The mount lets this group in, and nobody else.
    force group = {group}
    # Permissions of Linux users mean nothing to Windows and confuse Explorer (a "corrupt" recycle bin).
    nt acl support = no
    # No stored DOS attributes: a file could never be taken for a sparse one, which Windows does not attach.
    store dos attributes = no
    # Saves the server a question for each file.
    ea support = no
    # Windows is not to keep offline copies of files of this size.
    csc policy = disable
    # Left at their defaults on purpose: oplocks, smb2 leases, durable handles, kernel oplocks, aio read size.
"""

_READING = """\
    # Nothing there can be written to; this also keeps Windows from asking.
    read only = yes
"""
_WRITING = """\
    # These may write to disks, and everybody else only reads them.
    write list ={writers}
    read only = yes
    # The mount keeps no permission bits for DOS attributes to be stored in.
    map archive = no
"""


_NAME = r"[^\s,;#%\"'=]*[^\s,;#%\"'=\\]"
"""Of a user or a group, in a list of such; of groups also several of these, in quotes."""

_NO_SHARES = frozenset(("global", "homes", "printers", "print$", "ipc$"))
_LIMIT = 20
"""Seconds that testparm has by far enough in."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about a configuration: `good` or not, and what to do."""

    good: bool
    text: str


def stanza(mountpoint: str, group: str, name: str = "backups", writers: Sequence[str] = ()) -> str:
    """The share for a mount at `mountpoint` whose files belong to `group`, and that `writers` may write to.

    A writer is a user, or with `@` before it a group. Raises UnsupportedError at the top directory, and for what smb.conf would
    take for something else, or for more than one name.
    """
    # What Samba refuses in the name of a share, and what is none.
    if not re.fullmatch(r"[^][%<>*?|/\\+=;:,\"]{1,80}", name) or not name.isprintable() or name.strip() != name:
        raise UnsupportedError(f"{name!r} is no name that Samba takes for a share")
    if name.lower() in _NO_SHARES:
        raise UnsupportedError(f"[{name}] means something else in smb.conf; choose another name for the share")
    for writer in writers:
        if not re.fullmatch(rf"[@+&]?{_NAME}", writer) or not writer.isprintable():
            raise UnsupportedError(f"{writer!r} is no name of a user, or of a group with @ before it")
    parent = os.path.dirname(mountpoint)
    if parent == "/":
        raise UnsupportedError(f"{mountpoint} has only / above it to share; mount at, say, /srv/synthfs/disks")
    # A backslash at the end goes on in the next line, % stands for what Samba puts there, quotes and blanks are taken off.
    if not parent.isprintable() or re.search(r"[%\"]|\\$|^\s|\s$", parent):
        raise UnsupportedError(f"smb.conf cannot hold the path {parent!r}; mount elsewhere")
    if not re.fullmatch(f"{_NAME}( {_NAME})*", group) or not group.isprintable():
        raise UnsupportedError(f"smb.conf cannot hold the group {group!r}; mount with another --group")
    named = "".join(f" {writer}" for writer in writers)
    writing = _WRITING.format(writers=named) if writers else _READING
    readers = f'@"{group}"' if " " in group else f"@{group}"
    return _STANZA.format(name=name, parent=parent, group=group, writing=writing, readers=readers, writers=named)


def active_configuration(named: str | None = None) -> str:
    """The active configuration as Samba understands it. Raises NotFoundError without Samba, or where it is not valid."""
    program = shutil.which("testparm")
    if program is None:
        raise NotFoundError("testparm is not installed; it comes with Samba (apt install samba)")
    # Without --verbose a `writeable = yes` in [global] would not show, though every share inherits it.
    command = [program, "--suppress-prompt", "--verbose", *([named] if named else [])]
    try:
        result = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise NotFoundError(f"testparm is not done after {_LIMIT} s; is {named or 'the configuration'} a file?") from None
    if result.returncode:
        said = os.fsdecode(result.stderr).strip().splitlines() or ["it does not say why"]
        raise NotFoundError(f"testparm does not accept the configuration: {said[-1]}")
    return os.fsdecode(result.stdout)


def share_paths(text: str, mountpoint: str) -> list[str]:
    """The directories of those shares in the configuration `text` that `mountpoint` lies in."""
    return [share["path"] for share in _shares(_parsed(text), mountpoint).values() if os.path.isdir(share["path"])]


def findings(text: str, mountpoint: str, writable: bool = False, admission: Admission | None = None) -> Iterator[Finding]:
    """Everything in the configuration `text` that matters to disks at `mountpoint`, which may be `writable`.

    With `admission`, also whom of the share's users the mount lets in.
    """
    parser = _parsed(text)
    common = dict(parser["global"]) if parser.has_section("global") else {}
    shares = {name: {**common, **share} for name, share in _shares(parser, mountpoint).items()}
    is_closed = False
    if admission is not None and not admission.is_open and not any(all_get_in(share, admission) for share in shares.values()):
        is_closed = True
        yield Finding(False, closed(mountpoint, admission.user))
    if not shares:
        yield Finding(False, f"no share leads to {mountpoint}; `synthfs share {quoted(mountpoint)}` prints one")
    if os.path.exists("/sys/class/ksmbd-control"):
        yield Finding(False, "ksmbd serves SMB here: to it every file is sparse, which Windows does not attach; use Samba")
    for name, share in shares.items():
        problems = list(_problems(share, mountpoint, writable))
        problems += users_problems(share, mountpoint, admission) if admission else ()
        yield from (Finding(False, f"[{name}] {problem}") for problem in problems)
        if not problems and not is_closed:
            yield Finding(True, f"[{name}] is as it should be")


def closed(mountpoint: str, user: int) -> str:
    """What to say of a mount that none of the share's users gets into, since `user` made it for itself."""
    whom = "nobody but root" if user == 0 else "nobody"
    why = "it was mounted without allow_other, and clients do not even see it"
    cure = f"`synthfs umount {quoted(mountpoint)}`, and mount it with --allow-other --group GROUP"
    return f"{mountpoint} lets {whom} in: {why}; {cure}"


def problems_of(stanza: str, mountpoint: str, admission: Admission) -> list[str]:
    """What keeps users of the share that `stanza` describes from the disks."""
    shares = _shares(_parsed(stanza), mountpoint).values()
    return [problem for share in shares for problem in users_problems(share, mountpoint, admission)]


def _parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"), strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise FormatError(f"what testparm prints is not understood: {str(error).splitlines()[0]}") from error
    return parser


def _shares(parser: configparser.ConfigParser, mountpoint: str) -> dict[str, Section]:
    return {name: parser[name] for name in parser.sections() if name != "global" and _covers(parser[name], mountpoint)}


def _covers(share: Section, mountpoint: str) -> bool:
    path = share.get("path", "").rstrip("/") or "/"
    is_for_files = "path" in share and not _is_on(share.get("printable", "no"))
    return is_for_files and f"{mountpoint}/".startswith(f"{path}/" if path != "/" else "/")


def _problems(share: Section, mountpoint: str, writable: bool) -> Iterator[str]:
    if share.get("path", "").rstrip("/") == mountpoint:
        yield "path is the mount itself: clients keep a dead directory when synthfs restarts; share the directory above"
    for parameter, harm in _HARMFUL_IF_ON.items():
        if _is_on(share.get(parameter, "no")):
            yield f"{parameter} = yes: {harm}"
    for parameter, harm in _HARMFUL_IF_OFF.items():
        if not _is_on(share.get(parameter, "yes")):
            yield f"{parameter} = no: {harm}"
    for module in share.get("vfs objects", "").replace(",", " ").split():
        if module in _HARMFUL_MODULES:
            yield f"vfs objects = {module}: {_HARMFUL_MODULES[module]}"
    if share.get("aio read size", "1") == "0":
        yield "aio read size = 0: allows sendfile, which turns read errors into zeroes; leave it at its default"
    if not writable and not _is_on(share.get("read only", "yes")):
        yield "read only = no: the disks are read-only, and Windows would be told otherwise"
    if not writable and share.get("write list"):
        yield "write list: the disks are read-only, unless they are mounted with --writable"
    if not share.get("valid users"):
        yield "no valid users: everybody with an account here may read every backup"
    elif not share.get("force group") and not share.get("force user"):
        yield "no force group: the mount lets its own group in only, and clients come as themselves"


_HARMFUL_IF_ON = {
    "fake oplocks": "clients cache without being told of changes, and durable handles are never granted",
    "use sendfile": "a read error becomes a file with zeroes in it",
    "guest ok": "everybody may read every backup, and Windows refuses guests",
    "kernel oplocks": "no durable handles: an attached disk is lost with the first hiccup of the network",
    "kernel share modes": "no durable handles: an attached disk is lost with the first hiccup of the network",
}
_HARMFUL_IF_OFF = {
    "oplocks": "no durable handles: an attached disk is lost with the first hiccup of the network",
    "smb2 leases": "clients cannot cache, every read goes over the network",
    "durable handles": "an attached disk is lost with the first hiccup of the network",
}
_HARMFUL_MODULES = {
    "btrfs": "files in compressed directories are called compressed, which Windows does not attach",
    "fruit": "adds questions to every file and streams that are not there",
    "streams_xattr": "adds questions to every file and streams that are not there",
    "acl_xattr": "wants to store permissions on files that cannot be changed",
}


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("yes", "true", "1", "on")


def is_flagged_sparse(path: str) -> bool:
    """Whether Samba would call the file sparse, by the DOS attributes that a client stored with it."""
    try:
        return is_sparse_mark(os.getxattr(path, "user.DOSATTRIB"))
    except OSError:
        return False


def is_sparse_mark(stored: bytes) -> bool:
    """Whether DOS attributes, as Samba stores them, have the sparse one; what Samba does not understand has none."""
    text, _, rest = stored.partition(b"\0")
    if re.fullmatch(rb"0x[0-9a-fA-F]{1,8}", text) and not rest:  # as Samba before 4 stored it
        return bool(int(text, 16) & _SPARSE)
    # xattr_DOSATTRIB: text (empty), version twice (2 + 4), flags (4), attributes (4) …
    known = len(stored) >= 16 and stored[0] == 0 and int.from_bytes(stored[2:4], "little") in _VERSIONS
    return known and bool(int.from_bytes(stored[12:16], "little") & _SPARSE)


_VERSIONS = range(2, 6)
_SPARSE = 0x200
