"""How a tree grows: which files there are of each disk, and what is left for later.

What was worked out for one client, a bed, serves the next tree as well, while nothing new is known of that client. Not for:
what a tree is (`plan/tree`), sessions (`plan/written`).
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from synthfs.model import STATUS_DIRECTORY, Ask
from synthfs.plan import container, renew
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format, Outline
from synthfs.plan.disk import Disk
from synthfs.plan.machine import Machine
from synthfs.plan.names import fold, stems, windows_names
from synthfs.plan.readme import readme
from synthfs.plan.tree import (
    LOWER_HALF,
    NEW_IDENTITY,
    README,
    ROOT_FILES,
    ROOT_INODE,
    Directory,
    File,
    Live,
    Node,
    Tree,
    apart,
    bud,
    directory,
    file_inode,
    text_file,
)


@dataclass(frozen=True, slots=True)
class Bed:
    """The folder of one client, and what it was grown from. For each of the files that wait, `waiting` has their disk."""

    machine: Machine
    outlines: Mapping[tuple[bytes, Format], Outline]
    folder: Directory
    waiting: Sequence[Disk]


class Gardener:
    """Grows one tree after another, each disk in each of `formats`; `live` are the files of `.synthfs`.

    `ask` tells where a source has data, as far as that is known; `at_open` tells it, however long that takes, to whoever opens
    a file. What was worked out for an earlier tree is remembered: it spares work and changes nothing.
    """

    def __init__(
        self,
        formats: Sequence[Format] = (Format.VHD,),
        live: Sequence[Live] = (),
        ask: Ask = lambda source: None,
        at_open: Ask | None = None,
    ) -> None:
        self._formats = formats
        self._live = live
        self._ask = ask
        self._at_open = at_open or ask
        self._beds: dict[str, Bed] = {}

    def grow(self, catalog: Catalog) -> Tree:
        """The tree of all disks of `catalog`."""
        machines, names = _complete(catalog), _names(catalog)
        owners = {fold(name): client for client, name in names.items()}
        beds = {client: self._bed(names[client], client, one) for client, one in machines.items() if one.offer().disks}
        folders = [bed.folder for bed in beds.values()]
        waiting = [disk for bed in beds.values() for disk in bed.waiting]
        waiting.sort(key=lambda disk: disk.image.raw.mtime_ns, reverse=True)
        wanting = dict.fromkeys(source for disk in waiting for source in disk.sources if self._ask(source) is None)
        newest = max(map(_newest, machines.values()), default=0)
        status = directory(STATUS_DIRECTORY, self._live, newest, STATUS_DIRECTORY)
        example = max(folders, key=lambda folder: folder.mtime_ns, default=None)
        # Last: from here on, who unfolds a bud writes into it.
        self._beds = beds
        return Tree(_root((*folders, status), owners, example, newest), tuple(wanting), len(waiting), owners)

    def sketch(self, catalog: Catalog, live: Callable[[], Iterable[Live]]) -> Tree:
        """The same tree as far as it takes no planning. `live` is called when somebody looks into `.synthfs`.

        The folder of a client none of whose complete images is of use is in it as well, empty.
        """
        machines, names = _complete(catalog), _names(catalog)
        owners = {fold(name): client for client, name in names.items()}
        taken = {ROOT_INODE}
        unfolded: dict[str, tuple[Directory, set[int]]] = {}

        def entries(client: str) -> Iterable[Node]:
            bed = self._bed(names[client], client, machines[client])
            found = set(taken)
            # Of two threads that are asked at once, both have what the first one found.
            folder, found = unfolded.setdefault(client, (apart(bed.folder, found), found))
            taken.update(found)
            return folder.entries

        newest = max(map(_newest, machines.values()), default=0)
        buds = [bud(names[client], _newest(machine), partial(entries, client)) for client, machine in machines.items()]
        by_age = sorted(machines.items(), key=lambda each: _newest(each[1]), reverse=True)
        examples = (self._bed(names[client], client, machine).folder for client, machine in by_age if machine.offer().disks)
        root = _root((*buds, bud(STATUS_DIRECTORY, newest, live)), owners, next(examples, None), newest)
        taken |= {node.inode & LOWER_HALF for node in root.entries if not isinstance(node, Live)}
        return Tree(root, owners=owners)

    def _bed(self, name: str, client: str, machine: Machine) -> Bed:
        known = self._beds.get(client)
        if known and known.machine is machine and not known.waiting and known.folder.name == name:
            return known
        shown, waiting = _shown(machine, self._formats, self._ask, known.outlines if known else {})
        outlines = {(each.disk.edition, outline.form): outline for each in shown for outline in each.outlines}
        bed = self._beds[client] = Bed(machine, outlines, _client(name, machine, shown, self._at_open), waiting)
        return bed


def _complete(catalog: Catalog) -> dict[str, Machine]:
    """The clients that have a complete image, whatever can be made of it: as much as is known without planning."""
    return {client: machine for client, machine in catalog.machines.items() if machine.newest_ns is not None}


def _names(catalog: Catalog) -> dict[str, str]:
    """The folder of each client that is known, whether it has an image or not: a name must not change hands when one comes."""
    numbers = {client: number for client, number in catalog.clients.items() if number is not None}
    return windows_names({client: client for client in catalog.clients}, (STATUS_DIRECTORY,), numbers)


def _newest(machine: Machine) -> int:
    return machine.newest_ns or 0


_TEXTS = {README: readme}
"""What is in our files, given the path of a disk."""


def _root(folders: Iterable[Node], owners: Container[str], example: Directory | None, mtime_ns: int) -> Directory:
    """The root, with those of our files whose names are no client's; their example is the newest disk in `example`."""
    files = [node for node in example.entries if isinstance(node, File)] if example else []
    path = f"{example.name}/{max(files, key=_age).name}" if example and files else None
    texts = (text_file(name, _TEXTS[name](path), mtime_ns) for name in ROOT_FILES if fold(name) not in owners)
    return apart(Directory("", ROOT_INODE, mtime_ns, (*folders, *texts)), {ROOT_INODE})


def _age(file: File) -> tuple[bool, int]:
    """What orders files by their age; those of backups that the database does not know are older than all others."""
    return not (file.disk and file.disk.unknown), file.mtime_ns


@dataclass(frozen=True, slots=True)
class _Shown:
    """A disk with the outlines of the containers that are shown of it."""

    disk: Disk
    outlines: Sequence[Outline]


def _shown(
    machine: Machine, formats: Sequence[Format], ask: Ask, known: Mapping[tuple[bytes, Format], Outline]
) -> tuple[list[_Shown], list[Disk]]:
    """The disks of a machine with what is shown of them, and for each file that has to wait its disk."""
    shown: list[_Shown] = []
    waiting: list[Disk] = []
    for disk in machine.offer().disks:
        forms = dict.fromkeys(container.fitting(disk, form) for form in formats)
        outlines = (known.get((disk.edition, form)) or container.outline(disk, form, ask) for form in forms)
        found = [outline for outline in outlines if outline]
        shown.append(_Shown(disk, found))
        waiting += [disk] * (len(forms) - len(found))
    return shown, waiting


def _client(name: str, machine: Machine, shown: list[_Shown], ask: Ask) -> Directory:
    newest = _newest(machine)
    names = stems(image for image, _, _ in machine.judged)
    named = [(names[each.disk.image.name], each) for each in shown]
    plain = [file for stem, each in named for file in _plain(stem, each, ask)]
    renewed = (file for stem, each in named if renew.can_renew(each.disk) for file in _renewed(stem, each, ask))
    return directory(name, [*plain, directory(NEW_IDENTITY, renewed, newest, f"{name}/{NEW_IDENTITY}")], newest, name)


def _plain(stem: str, shown: _Shown, ask: Ask) -> Iterator[File]:
    return _files(stem, shown, shown.disk.edition, partial(_itself, shown.disk), ask)


def _itself(disk: Disk) -> Disk:
    return disk


def _renewed(stem: str, shown: _Shown, ask: Ask) -> Iterator[File]:
    return _files(stem, shown, renew.edition(shown.disk), partial(renew.new_identity, shown.disk), ask)


def _files(stem: str, shown: _Shown, disk_edition: bytes, disk: Callable[[], Disk], ask: Ask) -> Iterator[File]:
    mtime_ns = shown.disk.image.raw.mtime_ns
    for outline in shown.outlines:
        for each in container.files(outline, stem, disk_edition, disk, ask):
            inode = file_inode(each.name, each.edition)
            what = each.extent_map, shown.disk, each.edition, each.may_resize
            yield File(each.name, inode, each.length, mtime_ns, *what)
