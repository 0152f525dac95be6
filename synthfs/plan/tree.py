"""The tree that the mount shows: names, inodes and sizes of every file, before anything is opened.

    README.txt                                how to attach, for the person who found the share
    .synthfs/status.json, metrics             what this mount serves, for programs; written anew at every look
    <client>/Image_C_260301-0201.vhd          the disk as it was: to restore, clone, boot
    <client>/new-identity/…                   the same disks with other identifiers: to attach beside the original

A disk has a file for each format that the mount was asked for; what does not fit into one of them is shown as a VHDX. A
format that leaves out what is empty appears once it is known where its sources have holes.

A tree is immutable; a changed store gives a new one. The first one of a mount is a sketch, in no time also for 10,000 images:
what is in a client's folder is worked out when somebody looks into it, until the whole tree takes the sketch's place.

A file's inode derives from its disk's edition, so a file whose bytes would differ is another file. Samba makes its file ids of
the lower half of an inode where a share begins above the mount, so that even those halves differ within a tree. Everything in
a node is constant: Samba's durable handles and Windows' caches rest on it.

Not for: FUSE (`fuse/`). Units: bytes; times in nanoseconds since 1970 UTC.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from synthfs import identity
from synthfs.extents import Bytes, ExtentMap, Source
from synthfs.plan.disk import Disk

ROOT_INODE = 1
NEW_IDENTITY = "new-identity"
README = "README.txt"
ROOT_FILES = (README,)
"""Our files in the root. Where a client is called like one of them, it keeps its name, and our file is not there."""
METRICS = "metrics"

LOWER_HALF = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class File:
    """A file of `length` bytes. `extent_map` makes its map; it costs more than a look-up, so it is made at open.

    `disk` is the disk that it shows, None for texts; below `new-identity` it is the original one. `edition` stands for all
    that its bytes come from, empty for texts. A file that is `written` is a session's: its bytes come from there.
    """

    name: str
    inode: int
    length: int
    mtime_ns: int
    extent_map: Callable[[], ExtentMap] = field(repr=False)
    disk: Disk | None = None
    edition: bytes = b""
    may_resize: bool = False
    written: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory and everything in it, in the order in which it is listed."""

    name: str
    inode: int
    mtime_ns: int
    entries: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Bud:
    """A directory of which nobody has worked out yet what is in it; see `unfolded`."""

    name: str
    inode: int
    mtime_ns: int
    entries: Callable[[], Iterable["Node"]] = field(repr=False)

    def unfolded(self) -> Directory:
        """The same directory with all that is in it: a matter of milliseconds, or longer. Any thread may ask."""
        return Directory(self.name, self.inode, self.mtime_ns, tuple(self.entries()))


@dataclass(frozen=True, slots=True)
class Live:
    """A text that is made anew at each look-up. What was made then is a `File` of its own: see `rendered`."""

    name: str
    text: Callable[[], str] = field(repr=False)

    def rendered(self, mtime_ns: int) -> File:
        return text_file(self.name, self.text(), mtime_ns)


Numbered = File | Directory | Bud
"""What has an inode for as long as it is there."""

Node = Numbered | Live


@dataclass(frozen=True, slots=True)
class Tree:
    """The root, and what is left out of it until the holes of the sources `wanting` are known.

    These are in the order in which they are missed most, the newest disk's first. `pending` counts the files that wait.
    `owners` has the client that each folder's name belongs to, by the fold of that name (`plan/names`): of all clients that
    are known, whether the folder is there or not. `places` has the paths of sessions, by inode.
    """

    root: Directory
    wanting: tuple[Source, ...] = ()
    pending: int = 0
    owners: Mapping[str, str] = field(default_factory=dict, repr=False)
    places: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Our files that are not in the root, since a client has their name."""
        return tuple(name for name in ROOT_FILES if not isinstance(find(self, name), File))

    @property
    def is_sketch(self) -> bool:
        """Whether there is a bud left in it."""
        return any(isinstance(node, Bud) for node in self.root.entries)


def apart(directory: Directory, taken: set[int]) -> Directory:
    """The same directory, with other inodes for the files whose lower halves are `taken`; adds all that it has to those.

    The inode of a file that is written to is known to clients and stays; it is for the caller to have it in `taken`.
    """
    entries: list[Node] = []
    for node in directory.entries:
        if isinstance(node, Live) or (isinstance(node, File) and node.written):
            entries.append(node)
            continue
        inode = node.inode
        while inode & LOWER_HALF in taken:
            inode = identity.inode(identity.digest("apart", inode))
        taken.add(inode & LOWER_HALF)
        moved = node if inode == node.inode else replace(node, inode=inode)
        entries.append(apart(moved, taken) if isinstance(moved, Directory) else moved)
    is_same = all(one is other for one, other in zip(entries, directory.entries, strict=True))
    return directory if is_same else replace(directory, entries=tuple(entries))


def directory(name: str, entries: Iterable[Node], mtime_ns: int, path: str) -> Directory:
    return Directory(name, _directory_inode(path), mtime_ns, tuple(entries))


def bud(name: str, mtime_ns: int, entries: Callable[[], Iterable[Node]]) -> Bud:
    """A directory right below the root."""
    return Bud(name, _directory_inode(name), mtime_ns, entries)


def _directory_inode(path: str) -> int:
    return identity.inode(identity.digest("directory", path))


def file_inode(name: str, edition: bytes, generation: int = 0) -> int:
    """The inode of a disk's file. After a session was discarded it is another one: clients may remember its bytes."""
    return identity.inode(identity.digest("file", name, edition, *([generation] if generation else [])))


def text_file(name: str, text: str, mtime_ns: int) -> File:
    """A file that holds `text`, under an inode of that text."""
    data = text.encode("utf-8", "surrogateescape")
    return File(
        name, identity.inode(identity.digest("text", name, data)), len(data), mtime_ns, lambda: ExtentMap([Bytes(data)])
    )


def changes(old: Tree, new: Tree) -> list[tuple[int, str]]:
    """Every name that leads elsewhere in `new` than in `old`, or is in one of them alone, with its directory's inode.

    What a bud of `old` would have unfolded to is not among them: nobody has seen it.
    """
    same = {id(each) for each in _directories(old.root)} & {id(each) for each in _directories(new.root)}
    unseen = {node.inode for node in old.root.entries if isinstance(node, Bud)}
    before, after = (_by_place(tree.root, same, unseen) for tree in (old, new))
    return [place for place in before.keys() | after.keys() if before.get(place) != after.get(place)]


def _directories(directory: Directory) -> Iterator[Directory]:
    yield directory
    for node in directory.entries:
        if isinstance(node, Directory):
            yield from _directories(node)


def _by_place(directory: Directory, same: Set[int], unseen: Set[int]) -> dict[tuple[int, str], int]:
    """The inode behind each (directory's inode, name), but for what is in directories that are in both trees (`same`, by
    identity) or that nobody has seen (`unseen`, by inode).
    """
    found: dict[tuple[int, str], int] = {}
    for node in () if id(directory) in same or directory.inode in unseen else directory.entries:
        if not isinstance(node, Live):
            found[directory.inode, node.name] = node.inode
        if isinstance(node, Directory):
            found |= _by_place(node, same, unseen)
    return found


def find(tree: Tree, path: str) -> Node | None:
    """The node at `path`, which is relative to the root."""
    node: Node | None = tree.root
    for name in path.split("/"):
        if not isinstance(node, Directory):
            return None
        node = next((entry for entry in node.entries if entry.name == name), None)
    return node


def walk(directory: Directory, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below `directory` with its path, parents first."""
    for node in directory.entries:
        here = f"{path}/{node.name}" if path else node.name
        yield here, node
        if isinstance(node, Directory):
            yield from walk(node, here)
