"""What a directory of frozen disks should hold: what to make, what to remove, and what better to leave alone.

A frozen disk outlives its backup, and pins the space that UrBackup wants to free by deleting it. So per disk only the
newest few are kept. Files are removed under rules that err on the side of keeping:

    1. only files that synthfs made and recorded, and that are still as they were made: by size and time of modification;
    2. only of a client whose folder was scanned without an error, in the store of the last run;
    3. only if the backup is gone from disk and database, or `keep` newer disks of it are there already;
    4. never more than half of a client's files at once for the first of these reasons: then something else is wrong.

Pure: facts in, a plan out. Not for: making or removing files (`cli/sync`). Times in seconds.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from synthfs.model import Kind
from synthfs.plan.catalog import Catalog
from synthfs.plan.disk import Disk
from synthfs.plan.names import windows_name


@dataclass(frozen=True, slots=True)
class Frozen:
    """A file that an earlier run made. `place` is `<client>/<file>` below the directory; `images` counts its partitions."""

    place: str
    client: str
    image: str
    group: str
    stamp: str
    edition: str
    images: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it is on disk now."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Make:
    """A disk to freeze as `frozen.place`, in place of an older file of that name if `replace`."""

    disk: Disk
    frozen: Frozen
    replace: bool


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What to do, in this order: remove `gone`, make, remove `outdated`. `remarks` are lines for the user.

    `refused` says that something was not removed because too much would have been: the run is to end with an error.
    """

    gone: tuple[Frozen, ...]
    make: tuple[Make, ...]
    outdated: tuple[Frozen, ...]
    kept: tuple[Frozen, ...]
    remarks: tuple[str, ...]
    refused: bool


def plan_sync(
    catalog: Catalog,
    frozen: Iterable[Frozen],
    found: Mapping[str, Found],
    rows: Collection[str],
    keep: int,
    suffix: str,
    client: str = "*",
    same_store: bool = True,
    prune_anyway: bool = False,
    is_there: Callable[[str], bool] = lambda name: False,
) -> SyncPlan:
    """The plan for one run.

    `found` are the files that are there, by place; `rows` the images that the database knows; `is_there` tells whether
    the directory of an image still exists. `same_store` is whether the store is the one of the last run.
    """
    remarks: list[str] = []
    recorded = {each.place: each for each in frozen if fnmatchcase(each.client, client)}
    intact = {place: each for place, each in recorded.items() if _untouched(each, found.get(place))}
    for place in recorded.keys() & found.keys() - intact.keys():
        remarks.append(f"{place} was written to after it was made, and is left alone from now on")
    wanted = _wanted(catalog, keep, suffix, client)
    make = []
    for new in wanted:
        old = intact.get(new.frozen.place)
        if new.frozen.place not in found:
            make.append(new)
        elif old and old.edition != new.frozen.edition and new.frozen.images > old.images:
            make.append(Make(new.disk, new.frozen, replace=True))
    wanted_places = {new.frozen.place for new in wanted}
    gone, refused = _gone(catalog, intact, rows, same_store, prune_anyway, is_there, remarks)
    outdated = [
        each
        for place, each in intact.items()
        if place not in wanted_places and each not in gone and sum(_newer(each, new.frozen) for new in wanted) >= keep
    ]
    kept = [each for each in intact.values() if each not in gone and each not in outdated]
    return SyncPlan(tuple(gone), tuple(make), tuple(outdated), tuple(kept), tuple(remarks), refused)


def _wanted(catalog: Catalog, keep: int, suffix: str, client: str) -> list[Make]:
    """The newest `keep` disks of each disk of each client. Of images of the same disk, C: stands for it."""
    groups: defaultdict[tuple[str, str], list[Disk]] = defaultdict(list)
    for disk in catalog.disks:
        if fnmatchcase(disk.image.client, client):
            groups[disk.image.client, group_of(disk)].append(disk)
    wanted = []
    for disks in groups.values():
        letters = {disk.image.letter for disk in disks}
        main = "C" if "C" in letters else min(letters)
        newest = sorted((disk for disk in disks if disk.image.letter == main), key=lambda disk: disk.image.stamp)[-keep:]
        wanted += [Make(disk, _frozen(disk, suffix), replace=False) for disk in newest]
    return wanted


def group_of(disk: Disk) -> str:
    """What images of one disk share over time: its identity, or the volume where it stands alone."""
    return disk.layout.disk_id if disk.layout.disk_id and not disk.layout.made_up else f"volume {disk.image.letter}"


def _frozen(disk: Disk, suffix: str) -> Frozen:
    """The record of `disk` once it is made; size and time are not known before."""
    images = sum(content.volume is not None for content in disk.contents)
    place = f"{windows_name(disk.image.client)}/{windows_name(disk.image.stem)}{suffix}"
    image = disk.image
    return Frozen(place, image.client, image.name, group_of(disk), image.stamp, disk.edition.hex(), images, 0, 0)


def _untouched(frozen: Frozen, found: Found | None) -> bool:
    return found is not None and (found.size, found.mtime_ns) == (frozen.size, frozen.mtime_ns)


def _newer(old: Frozen, new: Frozen) -> bool:
    return (new.client, new.group) == (old.client, old.group) and new.stamp > old.stamp


def _gone(
    catalog: Catalog,
    intact: Mapping[str, Frozen],
    rows: Collection[str],
    same_store: bool,
    prune_anyway: bool,
    is_there: Callable[[str], bool],
    remarks: list[str],
) -> tuple[list[Frozen], bool]:
    """Files whose backups are gone for good, and whether some were spared because they were too many."""
    if not same_store:
        remarks.append("this is not the store of the last run: no file is removed (--prune-anyway takes it for the right one)")
        return [], bool(intact)
    if not catalog.store.images:
        if intact:
            remarks.append("the store has no images at all, as if it were not mounted: no file is removed")
        return [], bool(intact)
    troubled = {skipped.client for skipped in catalog.skipped if skipped.kind is Kind.UNREADABLE}
    by_client: defaultdict[str, list[Frozen]] = defaultdict(list)
    for each in intact.values():
        by_client[each.client].append(each)
    gone: list[Frozen] = []
    refused = False
    for client, files in by_client.items():
        lost = [each for each in files if each.image not in rows and not is_there(each.image)]
        if client in troubled:
            remarks.append(f"{client} could not be read in full: none of its files is removed")
        elif len(lost) * 2 > len(files) and not prune_anyway:
            remarks.append(f"{client}: {len(lost)} of {len(files)} backups are gone, too many to believe; see --prune-anyway")
            refused = True
        else:
            gone += lost
    return gone, refused
