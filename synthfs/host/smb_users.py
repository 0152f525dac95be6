"""Whom of a share's users smbd gets into a mount: by the mount's options, the files' permissions, the directories above.

smbd works for a client under that user's ids, those that `valid users`, `force user` and `force group` make of it, but keeps
root's real and saved ones. So a mount without allow_other is closed to all of them, also to the one who mounted; but for
root's own sessions in a mount of root's. Seen with Samba 4.17. What cannot be told (users of a domain that are not known
here, access control lists) is not complained of.

Not for: other settings of the share (`samba`). Source: smb.conf(5); fuse_allow_current_process in Linux.
"""

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from synthfs.host.mounts import Admission
from synthfs.host.probe import Permissions
from synthfs.text import quoted


@dataclass(frozen=True, slots=True)
class Session:
    """What smbd works under, by number; `name` is for people. The user is None where it is not known here."""

    name: str
    user: int | None
    group: int
    groups: frozenset[int]

    def may(self, wanted: int, of: Permissions) -> bool:
        """Whether it has the rights `wanted` (4 to read, 1 to enter) on a file."""
        if self.user == 0:
            return True
        shift = 6 if self.user == of.user else 3 if of.group in self.groups else 0
        return of.mode >> shift & wanted == wanted


def all_get_in(share: Mapping[str, str], admission: Admission) -> bool:
    """Whether a mount that is not open to others lets the share's users in all the same, as root by `force user`."""
    is_forced = bool(share.get("force user", "").strip())
    return is_forced and admission.user == 0 and any((one.user, one.group) == (0, admission.group) for one in _sessions(share))


def problems(share: Mapping[str, str], mountpoint: str, admission: Admission) -> Iterator[str]:
    """What keeps users of the share from the disks at `mountpoint`, each with what to do."""
    forced = share.get("force group", "").strip().lstrip("+")
    if forced and "%" not in forced and _group(forced) is None:
        yield f"force group = {forced}: there is no such group here, and no client gets in"
        return
    if forced and _group(forced) == 0:
        yield f"force group = {forced}: this is root's group, which nobody should act with; mount with --group GROUP"
    sessions = _sessions(share)
    for directory in _above(mountpoint):
        if outside := [one.name for one in sessions if (of := _of(directory)) and not one.may(1, of)]:
            cure = f"`chmod o+x {quoted(directory)}` lets them pass"
            yield f"{_named(outside)} may not enter {directory}, which the disks lie below; {cure}"
            return
    files, directories = admission.files, admission.directories
    if not admission.is_open or files is None or directories is None or not (forced or share.get("force user")):
        return
    if outside := [one.name for one in sessions if not (one.may(4, files) and one.may(5, directories))]:
        whose = f"{_user_name(files.user)}:{_group_name(files.group)} (mode {files.mode:04o})"
        cure = f"force group = {_group_name(files.group)}, or mount with another --group"
        yield f"{_named(outside)} may not read the disks, which belong to {whose}; {cure}"


def _sessions(share: Mapping[str, str]) -> list[Session]:
    """What smbd works under for those users of the share that are known here; for somebody of the forced group if none is."""
    forced = share.get("force user", "").strip()
    names = [forced] if forced else _users(share.get("valid users", ""))
    barred = set(_users(share.get("invalid users", "")))
    setting = share.get("force group", "").strip()
    group = _group(setting.lstrip("+"))
    found = []
    for name in dict.fromkeys(names):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        groups = os.getgrouplist(name, user.pw_gid)
        # With + before it, only those are given the group who are in it.
        first = group if group is not None and (not setting.startswith("+") or group in groups) else user.pw_gid
        if name not in barred:
            found.append(Session(name, user.pw_uid, first, frozenset((first, *groups))))
    if not found and group is not None:
        found.append(Session("a client", None, group, frozenset((group,))))
    return found


def _users(setting: str) -> list[str]:
    """The names in a list such as `alice, @staff "DOMAIN\\bob"`, groups resolved as far as they are known here."""
    names: list[str] = []
    for in_quotes, plain in re.findall(r'"([^"]*)"|([^\s,"]+)', setting):
        word = in_quotes or plain
        name = word.lstrip("@+&")
        names += [name] if name == word else _members(name)
    return names


def _members(name: str) -> Sequence[str]:
    try:
        group = grp.getgrnam(name)
    except KeyError:
        return ()
    return [*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == group.gr_gid)]


def _above(mountpoint: str) -> Iterator[str]:
    """The directories above it, from the top."""
    parts = mountpoint.strip("/").split("/")
    yield from ("/" + "/".join(parts[:count]) for count in range(len(parts)))


def _of(directory: str) -> Permissions | None:
    """None where the permission bits do not tell, or nobody here may look."""
    try:
        found = os.stat(directory)
        if "system.posix_acl_access" in os.listxattr(directory):
            return None
    except OSError:
        return None
    return Permissions(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
