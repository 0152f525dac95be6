"""Whether a file with several names is what its name says: only if nobody else can have given it that name.

A hard link gives any file of the file system another name, and who makes one needs no more than a directory to write to: a
member of a group could show UrBackup's own database, or another machine's image, as a disk that he may read. Owner and mode of
the file say nothing, since a link changes neither. The kernel's `fs.protected_hardlinks` stops those who may not write to the
file; a member of its group often may, and the copy may come from a host without it. What counts is who can write to the
directory, and to those above it, which could be moved.

Copies that rotate by links (`rsync --link-dest`, rsnapshot, `cp -al`) are root's, or of one user, and closed to others.
Not for: files with one name.
"""

import os
import stat
from collections.abc import Iterator

from synthfs.text import quoted


class Links:
    """Judges files with several names in the store at `root`, an absolute path without symbolic links.

    What a directory is like is asked once.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._directories: dict[str, os.stat_result | None] = {}

    def why_not(self, path: str, found: os.stat_result) -> str | None:
        """Why the file at `path`, with what stat says of it, may be another one, and the remedy; None if it cannot be."""
        if found.st_nlink < 2:
            return None
        directory = os.path.dirname(path)
        places = [*self._upwards(directory)]
        if os.path.islink(directory):  # as with ZFS; the link could be replaced as well as what it leads to
            directory = os.path.realpath(directory)
            places = [*self._upwards(directory), *places[1:]]
        why = next((why for each in places if (why := self._why(each, found.st_uid, each == directory))), None)
        return why and f"{path} is a hard link, and may be any file of this file system: {why}"

    def _upwards(self, directory: str) -> Iterator[str]:
        """A directory and those above it, to the root of the store or, outside of it, of its file system."""
        while True:
            yield directory
            above = os.path.dirname(directory)
            if directory in (self._root, "/") or not (self._is_inside(directory) or self._is_one_device(directory, above)):
                return
            directory = above

    def _why(self, directory: str, owner: int, holds_it: bool) -> str | None:
        """Why a directory is no good, with a remedy; None where nobody but root and `owner` can write to it."""
        found = self._stat(directory)
        if found is None:
            return f"{directory} cannot be looked at"
        if found.st_uid not in (0, owner):
            cure = f"`chown {quoted(str(owner))} {quoted(directory)}` if that is right"
            return f"{directory} belongs to user {found.st_uid}, the file to {owner}; {cure}"
        # Where there is an access control list, the group's bits are its mask: whoever it names has no more than that (acl(5)).
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # Above the store, as in /tmp: there nobody can put anything in the place of a directory that is not his own.
        is_sticky = found.st_mode & stat.S_ISVTX and not holds_it and not self._is_inside(directory)
        if not others or is_sticky:
            return None
        who = "everybody" if others & stat.S_IWOTH else "its group, or an access control list,"
        all_of_it = f"`find {quoted(self._root)} -type d -exec chmod go-w {{}} +`"
        cure = all_of_it if self._is_inside(directory) else f"`chmod go-w {quoted(directory)}`"
        return f"{directory} lets {who} write to it; {cure} ends that"

    def _is_inside(self, directory: str) -> bool:
        return f"{directory}/".startswith(f"{self._root.rstrip('/')}/")

    def _is_one_device(self, one: str, other: str) -> bool:
        here, there = self._stat(one), self._stat(other)
        return here is None or there is None or here.st_dev == there.st_dev

    def _stat(self, directory: str) -> os.stat_result | None:
        if directory not in self._directories:
            try:
                self._directories[directory] = os.stat(directory)
            except OSError:
                self._directories[directory] = None
        return self._directories[directory]
