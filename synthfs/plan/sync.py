"""What a directory of frozen disks should hold: what to make, what to remove, and what better to leave alone.

A frozen disk outlives its backup, and pins the space that UrBackup wants to free by deleting it. So per disk only the
newest few are kept. Files are removed under rules that err on the side of keeping:

    1. only files that synthfs made and recorded, and that are still as they were made: by size and time of modification;
    2. only of a client whose folder was scanned without an error, in the store of the last run, with its database;
    3. only if the backup is gone from disk and database, or `keep` newer disks of it are there already, or the same one in
       another container;
    4. never more than half of a client's files at once, those just made included: then something else is wrong.

What is on record keeps its name: a folder belongs to its client, and a file to its image, whatever the names would be today.

A file is made anew where its disk has gained a partition, or where an earlier version of synthfs planned it by other rules
(`RULES`), and never where it would lose a partition.

Pure: facts in, a plan out. Not for: making or removing files (`cli/sync`). Times in seconds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from synthfs import identity
from synthfs.model import Kind
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format, fitting, suffixes
from synthfs.plan.disk import Disk
from synthfs.plan.names import fold, stems, windows_names, with_tag

RULES = 1
"""The version of the rules by which disks are planned: to be raised with each change that gives a disk of the same images
other bytes. The records of synthfs 0.1.0 name none, which is 0."""


_NOT_READ = (Kind.UNREADABLE, Kind.LINKED)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A file that an earlier run made. `place` is `<client>/<file>` below the directory; `images` counts its partitions.

    `rules` is the newest version of `RULES` that was seen to plan the disk that is in the file.
    """

    place: str
    client: str
    image: str
    group: str
    stamp: str
    edition: str
    images: int
    size: int
    mtime_ns: int
    rules: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it is on disk now."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Make:
    """A disk to freeze as `frozen.place`, in place of an older file of that name where `reason` says why."""

    disk: Disk
    frozen: Frozen
    reason: str = ""

    @property
    def replace(self) -> bool:
        return bool(self.reason)


@dataclass(frozen=True, slots=True)
class Outdated:
    """A file to be removed once all of `newer`, its successors, are there."""

    frozen: Frozen
    newer: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What to do, in this order: remove `gone`, make, remove those of `outdated` whose newer disks are there.

    `kept` is what stays, as it is to be recorded from now on. `remarks` are lines for the user. `refused` says that
    something was not removed because of the rules 2 and 4: the run is to end with an error. `folders` are the clients' folders
    by their names, also of those that have no file yet.
    """

    gone: tuple[Frozen, ...]
    make: tuple[Make, ...]
    outdated: tuple[Outdated, ...]
    kept: tuple[Frozen, ...]
    remarks: tuple[str, ...]
    refused: bool
    folders: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


def plan_sync(
    catalog: Catalog,
    frozen: Iterable[Frozen],
    found: Mapping[str, Found],
    keep: int,
    form: Format,
    client: str = "*",
    same_store: bool = True,
    prune_anyway: bool = False,
    is_there: Callable[[str], bool] = lambda name: False,
    folders: Mapping[str, str] | None = None,
) -> SyncPlan:
    """The plan for one run over the clients that match `client`.

    `found` are the files that are there, by place. `is_there` tells whether the directory of an image still exists.
    `same_store` is whether store and database are those of the last run. `folders` are those on record, by client.
    """
    everything = list(frozen)
    recorded = {each.place: each for each in everything if fnmatchcase(each.client, client)}
    places = _Places(catalog, everything, found, folders or {})
    wanted = _wanted(catalog, keep, form, client, places)
    editions = {new.frozen.place: new.frozen.edition for new in wanted}
    intact = {
        place: replace(each, rules=max(each.rules, RULES)) if editions.get(place) == each.edition else each
        for place, each in recorded.items()
        if _untouched(each, found.get(place))
    }
    make = list(_to_make(wanted, intact, found, same_store))
    pruning = _Pruning(catalog, intact, wanted, keep, is_there)
    remarks = [
        f"{place} was written to after it was made, and is left alone from now on"
        for place in sorted(recorded.keys() & found.keys() - intact.keys())
    ]
    remarks += [
        f"{new.frozen.place} was there already, synthfs has no record of it, and it is left alone"
        for new in wanted
        if new.frozen.place in found.keys() - recorded.keys()
    ]
    remarks += [f"{new.frozen.place} is made anew: {new.reason}" for new in make if new.replace]
    if not catalog.store.images and not prune_anyway:
        remarks.append("the store has no images at all, as if it were not mounted: no file is removed (see --prune-anyway)")
        return SyncPlan((), (), (), tuple(intact.values()), tuple(remarks), True, places.folders)
    if not same_store and not prune_anyway:
        remarks.append("store or database are not those of the last run: no file is removed (--prune-anyway accepts them)")
        return SyncPlan((), tuple(make), (), tuple(intact.values()), tuple(remarks), True, places.folders)
    gone, outdated, refused = pruning.allowed(make, prune_anyway, remarks)
    removed = {each.place for each in gone} | {each.frozen.place for each in outdated}
    kept = tuple(each for place, each in intact.items() if place not in removed)
    return SyncPlan(tuple(gone), tuple(make), tuple(outdated), kept, tuple(remarks), refused, places.folders)


def _to_make(
    wanted: Iterable[Make], intact: Mapping[str, Frozen], found: Mapping[str, Found], may_replace: bool
) -> Iterator[Make]:
    """What is missing, and what there is a reason to make anew."""
    for new in wanted:
        old = intact.get(new.frozen.place)
        if new.frozen.place not in found:
            yield new
        elif old and may_replace and (reason := _reason(old, new.frozen)):
            yield replace(new, reason=reason)


def _reason(old: Frozen, new: Frozen) -> str:
    """Why `new` takes the place of `old`; empty where it does not. A worse edition never takes a better one's place."""
    if old.edition == new.edition or new.images < old.images:
        return ""
    if gained := new.images - old.images:
        return f"{gained} more of its partitions {'has' if gained == 1 else 'have'} an image now"
    if old.rules < RULES:
        return "an earlier version of synthfs made it, which laid disks out by other rules; its length and ids may change"
    return ""


class _Places:
    """Where frozen disks are, or are to be. `folders` are those of all clients.

    No two clients have one folder, and no two images one file, also where upper and lower case are the same.
    """

    def __init__(
        self, catalog: Catalog, frozen: Iterable[Frozen], found: Mapping[str, Found], folders: Mapping[str, str]
    ) -> None:
        frozen = sorted(frozen, key=lambda each: (each.stamp, each.place))
        self._catalog = catalog
        self._found = found
        self._names: dict[str, dict[str, str]] = {}
        self._files: dict[tuple[str, str, str], str] = {}
        self._used: dict[str, tuple[str, str]] = {}
        numbers = {client: number for client, number in catalog.clients.items() if number is not None}
        on_record = {each.client: each.place.partition("/")[0] for each in frozen} | dict(folders)
        owners: dict[str, str] = {}
        # Of 0.1.0, which looked at each client alone, two clients may have one folder.
        for client in sorted(on_record, key=lambda client: (numbers.get(client, float("inf")), client)):
            owners.setdefault(fold(on_record[client]), client)
        kept = {client: on_record[client] for client in owners.values()}
        others = {client: client for client in catalog.clients if client not in kept}
        self.folders: Mapping[str, str] = kept | windows_names(others, kept.values(), numbers)
        for each in sorted(frozen, key=lambda each: (each.place in found, each.place)):
            self._files[each.client, each.image, _suffix(each.place)] = each.place
            self._used[fold(each.place)] = each.client, each.image

    def of(self, disk: Disk, form: Format) -> str:
        image, suffix = disk.image, fitting(disk, form).suffix
        folder = self.folders[image.client]
        place = self._files.get((image.client, image.name, suffix), "")
        if place in self._found or place.startswith(f"{folder}/"):
            return place
        if image.client not in self._names:
            self._names[image.client] = stems(image for image, _, _ in self._catalog.machines[image.client].judged)
        mine = image.client, image.name

        def is_free(stem: str) -> bool:
            return self._used.get(fold(f"{folder}/{stem}{suffix}"), mine) == mine

        stem = self._names[image.client][image.name]
        stem = stem if is_free(stem) else with_tag(stem, identity.digest("name", image.name), is_free)
        self._used[fold(f"{folder}/{stem}{suffix}")] = mine
        return f"{folder}/{stem}{suffix}"


def _suffix(place: str) -> str:
    """What the container has added to a file's name."""
    return next((suffix for suffix in suffixes() if place.endswith(suffix)), "")


def _wanted(catalog: Catalog, keep: int, form: Format, client: str, places: _Places) -> list[Make]:
    """The newest `keep` disks of each disk of each client. Of images of the same disk, C: stands for it.

    Those that the database does not know come last, whatever their stamps are: others are the newest.
    """
    groups: defaultdict[tuple[str, str], list[Disk]] = defaultdict(list)
    for disk in catalog.disks:
        if fnmatchcase(disk.image.client, client):
            groups[disk.image.client, group_of(disk)].append(disk)
    wanted = []
    for disks in groups.values():
        known = [disk for disk in disks if not disk.unknown]
        letters = {disk.image.letter for disk in known or disks}
        main = "C" if "C" in letters else min(letters)
        of_main = (disk for disk in disks if disk.image.letter == main)
        newest = sorted(of_main, key=lambda disk: (not disk.unknown, disk.image.stamp))[-keep:]
        wanted += [Make(disk, _frozen(disk, places.of(disk, form))) for disk in newest]
    return wanted


def group_of(disk: Disk) -> str:
    """What images of one disk share over time: its identity, with the device where several have it; the volume of one alone."""
    if not disk.layout.disk_id or disk.layout.made_up:
        return f"volume {disk.image.letter}"
    return f"{disk.layout.disk_id} on {disk.device}" if disk.device else disk.layout.disk_id


def _frozen(disk: Disk, place: str) -> Frozen:
    """The record of `disk` once it is made; size and time are not known before."""
    images = sum(content.volume is not None for content in disk.contents)
    image = disk.image
    return Frozen(place, image.client, image.name, group_of(disk), image.stamp, disk.edition.hex(), images, 0, 0, RULES)


def _untouched(frozen: Frozen, found: Found | None) -> bool:
    return found is not None and (found.size, found.mtime_ns) == (frozen.size, frozen.mtime_ns)


class _Pruning:
    """What may be removed, by the rules above."""

    def __init__(
        self,
        catalog: Catalog,
        intact: Mapping[str, Frozen],
        wanted: Iterable[Make],
        keep: int,
        is_there: Callable[[str], bool],
    ) -> None:
        self._troubled = {skipped.client for skipped in catalog.skipped if skipped.kind in _NOT_READ}
        self._groups = {disk.image.name: group_of(disk) for disk in catalog.disks}
        self._known = catalog.rows | {image.name for image in catalog.store.images}
        self._keep = keep
        self._is_there = is_there
        self._wanted: defaultdict[tuple[str, str], list[Frozen]] = defaultdict(list)
        for new in wanted:
            self._wanted[new.frozen.client, new.frozen.group].append(new.frozen)
        self._by_client: defaultdict[str, list[Frozen]] = defaultdict(list)
        for each in intact.values():
            self._by_client[each.client].append(each)

    def allowed(
        self, make: Iterable[Make], prune_anyway: bool, remarks: list[str]
    ) -> tuple[list[Frozen], list[Outdated], bool]:
        """Files of lost backups, outdated files, and whether some were spared; why goes into `remarks`."""
        made = Counter(new.frozen.client for new in make if not new.replace)
        gone: list[Frozen] = []
        outdated: list[Outdated] = []
        refused = False
        for client, files in self._by_client.items():
            old = [Outdated(each, newer) for each in files if (newer := self._newer(each))]
            lost = [each for each in files if not self._newer(each) and self._lost(each)]
            removed, of = len(old) + len(lost), len(files) + made[client]
            if not removed:
                continue
            if client in self._troubled:
                remarks.append(f"{client} could not be read in full: none of its files is removed")
                refused = True
            elif removed * 2 > of and not prune_anyway:
                remarks.append(f"{client}: {removed} of {of} files would be removed, too many to believe; see --prune-anyway")
                refused = True
            else:
                gone += lost
                outdated += old
        return gone, outdated, refused

    def _newer(self, old: Frozen) -> tuple[str, ...]:
        """The places of what is there instead: the same disk in another container, or `keep` newer disks of its kind."""
        # Its image may be of another group by now: an earlier version may have placed it elsewhere.
        same = self._wanted[old.client, self._groups.get(old.image, old.group)]
        for new in same:
            if new.image == old.image and new.place != old.place and new.images >= old.images:
                return (new.place,)
        newer = tuple(new.place for new in same if new.stamp > old.stamp)
        return newer if len(newer) >= self._keep else ()

    def _lost(self, each: Frozen) -> bool:
        return each.image not in self._known and not self._is_there(each.image)
