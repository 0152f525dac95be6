"""Sessions in the tree: disks that somebody has written to keep name and inode, whatever becomes of their backups.

    the backup is there                  the session is shown in its place
    the backup is gone                   the session is shown where it was
    another backup has its name now      that one is shown under a name with a tag beside it: a session is never
                                         attached to another edition than its own
    … and is a VMDK                      neither of its files is shown: a text that names a session's file, or a session's
                                         text that names its file, would lead to another disk's bytes
    its folder is another client's now   the session is shown in a folder with a tag: whoever has a name has all of it

After a session was discarded the backup is shown under a new inode. Not for: what a session holds (`engines/session`).
"""

from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass, replace

from synthfs import identity
from synthfs.extents import ExtentMap
from synthfs.model import Session, Sessions
from synthfs.plan.container import beside
from synthfs.plan.disk import Disk
from synthfs.plan.names import fold, with_tag
from synthfs.plan.tree import LOWER_HALF, ROOT_INODE, Directory, File, Node, Tree, apart, directory, file_inode, walk


def with_sessions(tree: Tree, sessions: Sessions, disks: Iterable[Disk]) -> Tree:
    """The same tree with all sessions in it, and with the inodes that discarded ones have left.

    `disks` are all that there are backups of, also those whose files the tree does not show, or not yet.
    """
    if not sessions.present and not sessions.generations:
        return tree
    paths = _paths(sessions, tree.owners)
    places = [(tuple(paths[session.inode].split("/")), session) for session in sessions.present]
    editions = {session.edition for session in sessions.present}
    backups = {node.edition: node.disk for _, node in walk(tree.root) if isinstance(node, File) and node.edition in editions}
    there = {disk.edition: disk for disk in disks}
    backups |= {one.edition: there[one.disk_edition] for one in sessions.present if one.disk_edition in there}
    root = _placed(tree.root, "", places, _World(sessions.generations, editions, backups))
    taken = {ROOT_INODE, *(session.inode & LOWER_HALF for session in sessions.present)}
    return replace(tree, root=apart(root, taken), places=paths)


def _paths(sessions: Sessions, owners: Mapping[str, str]) -> dict[int, str]:
    """Where each session is shown, by inode: where it was, unless that folder's name is another client's."""
    owners, paths = dict(owners), {}
    for session in sorted(sessions.present, key=lambda one: (one.began_ns, one.path)):
        folder, _, below = session.path.partition("/")
        client = session.image.partition("/")[0]
        if owners.setdefault(fold(folder), client) != client:
            folder = _own(folder, client, owners)
            owners[fold(folder)] = client
        paths[session.inode] = f"{folder}/{below}"
    return paths


def _own(folder: str, client: str, owners: Mapping[str, str]) -> str:
    """A folder for what a client has left in one that is another's now; the client's own one, if it is known and has a tag."""
    return with_tag(folder, identity.digest("name", client), lambda name: owners.get(fold(name), client) == client)


_Places = list[tuple[tuple[str, ...], Session]]
"""Sessions with what is left of their paths, from one directory on."""


@dataclass(frozen=True, slots=True)
class _World:
    """What is the same in every directory: generations, what is written to, and those of its disks whose backups are there."""

    generations: Mapping[bytes, int]
    written: Set[bytes]
    disks: Mapping[bytes, Disk | None]


def _placed(here: Directory, path: str, places: _Places, world: _World) -> Directory:
    mine = {fold(names[0]): session for names, session in places if len(names) == 1}
    below = {fold(names[0]): names[0] for names, _ in places if len(names) > 1}
    files = [node for node in here.entries if isinstance(node, File) and node.edition]
    taken = {name for node in files if (name := fold(node.name)) in mine and mine[name].edition != node.edition}
    used = {*mine, *(fold(node.name) for node in here.entries)} if taken else set[str]()
    entries: list[Node] = []
    for node in here.entries:
        match node:
            case Directory(name):
                below.pop(fold(name), None)
                entries.append(_placed(node, f"{path}/{name}", _inside(name, places), world))
            case File() if node.edition in world.written:
                pass  # shown below, at the place that its session remembers
            case File() if node.edition and taken and _is_torn(node.name, taken):
                pass
            case File() if node.edition:
                name = _beside(node, used) if fold(node.name) in taken else node.name
                entries.append(_shown(node, name, world.generations.get(node.edition, 0)))
            case File(name) if fold(name) in below:
                pass  # a text of ours, whose name is that of a folder
            case _:
                entries.append(node)
    for name in below.values():
        inside = _inside(name, places)
        empty = directory(name, (), max(session.mtime_ns for _, session in inside), f"{path}/{name}".lstrip("/"))
        entries.append(_placed(empty, f"{path}/{name}", inside, world))
    written = (_file(session, world.disks.get(session.edition)) for session in mine.values())
    return replace(here, entries=(*entries, *written))


def _inside(name: str, places: Iterable[tuple[tuple[str, ...], Session]]) -> _Places:
    return [(names[1:], session) for names, session in places if len(names) > 1 and fold(names[0]) == fold(name)]


def _beside(node: File, used: Container[str]) -> str:
    """The name of a file whose own one a session has."""
    stem, dot, suffix = node.name.rpartition(".")
    return f"{with_tag(stem, node.edition, lambda name: fold(name + dot + suffix) not in used)}{dot}{suffix}"


def _shown(node: File, name: str, generation: int) -> File:
    if not generation and name == node.name:
        return node
    return replace(node, name=name, inode=file_inode(name, node.edition, generation))


def _is_torn(name: str, taken: Set[str]) -> bool:
    """Whether a file is one of two that name each other, and sessions of another edition have a name of theirs."""
    other = beside(name)
    return other is not None and not taken.isdisjoint((fold(name), fold(other)))


def _file(session: Session, disk: Disk | None) -> File:
    name = session.path.rpartition("/")[2]
    what = session.length, session.mtime_ns, _no_map, disk, session.edition, session.may_resize
    return File(name, session.inode, *what, written=True)


def _no_map() -> ExtentMap:
    raise ValueError("the bytes of a session are not those of a map")
