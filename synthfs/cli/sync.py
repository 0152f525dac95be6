"""`synthfs sync`: keep the newest disks of each client frozen in a directory, by itself, after every backup."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, get_type_hints

import typer

from synthfs.cli import options
from synthfs.cli.common import (
    Database,
    Json,
    Store,
    answer,
    hole_maps,
    is_among,
    look_at,
    percentage,
    print_json,
    say,
    say_notes,
)
from synthfs.cli.materialize import NOT_PROVEN
from synthfs.cli.progress import progress
from synthfs.engines.materialize import Reflink, prepare
from synthfs.errors import NotFoundError, SynthfsError, TargetError, UnsupportedError
from synthfs.host import shapes, state
from synthfs.host.space import free_share, settle, space_share
from synthfs.plan import container
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format
from synthfs.plan.sync import Found, Frozen, Make, Outdated, SyncPlan, plan_sync

_PARTIAL = 1
_FIELDS: dict[str, type] = get_type_hints(Frozen)


def sync(
    store: Store,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where the frozen disks are kept, a folder a client.")],
    form: Annotated[Format, typer.Option("--format", help="The container to make; no vmdk, which is two files.")] = Format.VHD,
    keep: Annotated[int, typer.Option(min=1, max=10**9, metavar="N", help="How many of each disk, newest first.")] = 1,
    min_free: Annotated[str, typer.Option(metavar="PERCENT", help="Make nothing that leaves less space free.")] = "10%",
    client: Annotated[str, typer.Option(metavar="GLOB", help="Only these clients.")] = "*",
    wait: Annotated[
        float, typer.Option(parser=options.amount, metavar="SECONDS", help="Wait for a backup's SYSVOL and ESP.")
    ] = 120.0,
    prune_anyway: Annotated[bool, typer.Option("--prune-anyway", help="Remove even more than half of a client's.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Keep the newest disks of each client frozen in DIR.

    Those whose backups are gone are removed. Only files that synthfs made there and that nobody changed are ever removed.
    """
    if form is Format.VMDK:
        raise UnsupportedError("sync keeps one file a disk, and a vmdk is two; choose another --format")
    directory = os.path.realpath(to)
    record = state.path_for("sync", directory)
    share_free = percentage(min_free)
    with nullcontext() if dry_run else state.alone(record):
        catalog = _settled(store, database, wait)
        say_notes(catalog.notes)
        run = _Run(catalog, directory, record, form, share_free, dry_run)
        run.check_place()
        plan = run.plan(keep, client, prune_anyway)
        clients = {disk.image.client for disk in catalog.disks}
        clients |= {each.client for each in (*plan.gone, *plan.kept)} | {skipped.client for skipped in catalog.skipped}
        if client != "*" and not any(is_among(name, client) for name in clients):
            raise NotFoundError(f"neither {store} nor {to} has anything of a client {client!r}")
        for remark in plan.remarks:
            say(f"note: {remark}")
        run.carry_out(plan)
    summary = run.summary(plan)
    if as_json:
        print_json(summary)
    else:
        for word, done in (("remove", "removed"), ("make", "made")) if dry_run else ():
            for place in summary["files"][done]:
                answer(f"{word:<6} {place}")
        counts = ", ".join(f"{summary[word]} {word}" for word in ("made", "removed", "kept", "failed"))
        say(f"{directory}: {'would be ' if dry_run else ''}{counts}")
    if plan.refused or summary["failed"]:
        raise typer.Exit(_PARTIAL)


def _settled(store: str, database: str | None, wait: float) -> Catalog:
    """The catalog, once no new backup of C: waits for its SYSVOL and ESP to be recorded beside it, or `wait` is over."""
    deadline, told = time.monotonic() + wait, False
    while True:
        catalog = look_at(store, database)
        if not catalog.settling or time.monotonic() > deadline:
            return catalog
        if not told:
            names = ", ".join(catalog.settling)
            say(f"note: waiting, {wait:.0f} seconds at most, for UrBackup to record SYSVOL or ESP beside {names}")
            told = True
        time.sleep(2)


class _Run:
    """One run of `sync` over one directory."""

    def __init__(
        self, catalog: Catalog, directory: str, record: str, form: Format, min_free: float, dry_run: bool
    ) -> None:
        self._catalog = catalog
        self._directory = directory
        self._record = record
        self._form = form
        self._min_free = min_free
        self._dry_run = dry_run
        self._loaded = state.load(record)
        self._store: Any = self._loaded.get("store")
        self._folders: Mapping[str, str] = {}
        self._found: dict[str, Found] = {}
        self._frozen: dict[str, Frozen] = {}
        self._made: list[str] = []
        self._removed: list[str] = []
        self._failed: list[str] = []

    def check_place(self) -> None:
        """Raises TargetError for a directory that is not there, or where UrBackup's clean-up would find it."""
        self._keep_out(self._directory)
        if not os.path.isdir(self._directory):
            raise TargetError(f"{self._directory} is no directory; make one with `mkdir -p`")

    def _keep_out(self, directory: str) -> None:
        """Raises TargetError inside the store, by whatever links `directory` leads there."""
        if f"{os.path.realpath(directory)}/".startswith(f"{self._catalog.store.root}/"):
            raise TargetError(f"{directory} lies in UrBackup's storage, whose clean-up deletes what it does not know")

    def plan(self, keep: int, client: str, prune_anyway: bool) -> SyncPlan:
        root = self._catalog.store.root
        self._found = dict(_found(self._directory))
        self._frozen = _recorded(self._loaded, self._found)
        self._folders = self._recorded_folders()
        if prune_anyway or self._store is None:
            self._store = self._identity()
        return plan_sync(
            self._catalog,
            self._frozen.values(),
            self._found,
            keep,
            self._form,
            client,
            same_store=self._is_the_same(),
            prune_anyway=prune_anyway,
            is_there=lambda name: os.path.lexists(os.path.dirname(f"{root}/{name}")),
            folders=self._folders,
        )

    def _recorded_folders(self) -> dict[str, str]:
        """The clients' folders of earlier runs, but those of clients of which nothing is left."""
        folders = self._loaded.get("folders")
        return {
            client: folder
            for client, folder in (folders.items() if isinstance(folders, dict) else ())
            if isinstance(folder, str) and "/" not in folder and folder not in ("", ".", "..")
            if client in self._catalog.clients or os.path.isdir(f"{self._directory}/{folder}")
        }

    def carry_out(self, plan: SyncPlan) -> None:
        names = self._folders.keys() | {each.client for each in (*self._frozen.values(), *(new.frozen for new in plan.make))}
        self._folders = {client: plan.folders[client] for client in sorted(names) if client in plan.folders}
        self._frozen |= {each.place: each for each in plan.kept}
        for each in plan.gone:
            self._remove(each)
        self._make_all(plan)
        for old in plan.outdated:
            if self._is_replaced(old):
                self._remove(old.frozen)
        if self._is_the_same():
            self._store = self._identity()
        if not self._dry_run:
            self._save()

    def summary(self, plan: SyncPlan) -> dict[str, Any]:
        spared = sum(old.frozen.place not in self._removed for old in plan.outdated)
        return {
            "directory": self._directory,
            "made": len(self._made),
            "removed": len(self._removed),
            "kept": len(plan.kept) - sum(new.replace for new in plan.make) + spared,
            "failed": len(self._failed),
            "files": {"made": self._made, "removed": self._removed, "failed": self._failed},
            "made_anew": {new.frozen.place: new.reason for new in plan.make if new.replace and new.frozen.place in self._made},
        }

    def _make_all(self, plan: SyncPlan) -> None:
        """With a progress bar on a terminal. One that fails does not keep the others from being made."""
        with progress("count") as bar:
            task = bar.add_task("", total=len(plan.make))
            for new in plan.make:
                bar.update(task, description=new.frozen.place)
                try:
                    self._make(new, plan)
                except SynthfsError as error:
                    say(f"synthfs: {new.frozen.place}: {error}")
                    self._failed.append(new.frozen.place)
                bar.advance(task)

    def _make(self, new: Make, plan: SyncPlan) -> None:
        place, path = new.frozen.place, f"{self._directory}/{new.frozen.place}"
        if not self._dry_run:
            self._make_room(plan)
            client_directory = os.path.dirname(path)
            self._keep_out(client_directory)
            try:
                os.makedirs(client_directory, exist_ok=True)
            except OSError as error:
                raise TargetError(f"{client_directory} cannot be made: {error.strerror}") from error

            def announce(made: os.stat_result) -> None:
                pending = replace(new.frozen, size=made.st_size, mtime_ns=made.st_mtime_ns)
                self._save(pending)
                self._frozen[place] = pending

            before = self._frozen.get(place)
            try:
                form = container.fitting(new.disk, self._form)
                stem = os.path.basename(path).removesuffix(form.suffix)
                (file,) = container.of_disk(new.disk, form, stem, hole_maps(new.disk, form))
                with prepare(file.extent_map(), client_directory, Reflink.ALWAYS) as prepared:
                    prepared.freeze(file.name, new.replace, about_to_publish=announce)
                    if not prepared.measure():
                        say(f"note: {place}: {NOT_PROVEN}")
            except SynthfsError:
                if before is None:
                    self._frozen.pop(place, None)
                else:
                    self._frozen[place] = before
                raise
        self._made.append(place)

    def _is_replaced(self, old: Outdated) -> bool:
        """Whether the newer disks are there, ours and as they were made; in a dry run whether they would be."""
        ours = (each.place for each in self._frozen.values() if self._found.get(each.place) == Found(each.size, each.mtime_ns))
        return {*ours, *self._made}.issuperset(old.newer)

    def _make_room(self, plan: SyncPlan) -> None:
        """Removes the oldest unmodified files until `min_free` is free. Raises TargetError where all would not be enough.

        Only outdated ones: the others would be made anew by the next run, and share their blocks with a backup that is
        still there, so that removing them frees nothing.
        """
        while free_share(self._directory) < self._min_free:
            victims = [old.frozen for old in plan.outdated if old.frozen.place in self._frozen]
            at_most = sum(space_share(f"{self._directory}/{each.place}") for each in victims)
            if free_share(self._directory) + at_most < self._min_free or not victims:
                raise TargetError(f"less than {self._min_free:.0%} of {self._directory} is free; nothing more is made")
            victim = min(victims, key=lambda each: each.stamp)
            say(f"note: {victim.place} is removed, to have {self._min_free:.0%} of the space free")
            self._remove(victim)
            settle(self._directory)

    def _remove(self, each: Frozen) -> None:
        """Removes a file, if it is still the one that was recorded, and has not been removed to make room."""
        path = f"{self._directory}/{each.place}"
        if each.place not in self._frozen:
            return
        if not self._dry_run:
            try:
                at = os.stat(path, follow_symlinks=False)
                if (at.st_size, at.st_mtime_ns) != (each.size, each.mtime_ns):
                    say(f"note: {each.place} is being written to, and is left alone")
                    return
                os.unlink(path)
            except OSError as error:
                say(f"synthfs: {each.place} cannot be removed: {error.strerror}")
                self._failed.append(each.place)
                return
        self._removed.append(each.place)
        del self._frozen[each.place]

    def _identity(self) -> dict[str, Any]:
        """What tells this store from an empty mountpoint, from another disk, and from itself without its database."""
        return {"identity": self._catalog.store.identity, "database": bool(self._catalog.database)}

    def _is_the_same(self) -> bool:
        """Whether the store is that of the last run. One that has a database now, and had none then, is."""
        now = self._identity()
        return bool(self._store in (now, now | {"database": False}))

    def _save(self, pending: Frozen | None = None) -> None:
        """`pending` is the file that is published next: whether it was, the next run will see."""
        files = [_fields(each) for each in self._frozen.values()]
        extra = {"pending": _fields(pending)} if pending else {}
        state.save(self._record, {"store": self._store, "files": files, "folders": self._folders, **extra})


def _found(directory: str) -> Iterator[tuple[str, Found]]:
    """The files of all folders below `directory`. What cannot be looked at is not there: it is neither made nor removed."""
    for client in _entries(directory):
        if client.is_dir(follow_symlinks=False):
            for file in _entries(client.path):
                with contextlib.suppress(OSError):
                    at = file.stat(follow_symlinks=False)
                    yield f"{client.name}/{file.name}", Found(at.st_size, at.st_mtime_ns)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _recorded(record: dict[str, Any], found: Mapping[str, Found]) -> dict[str, Frozen]:
    """The files of a record by their places; what is garbled is no file of ours."""
    files = record.get("files")
    known = {each.place: each for fields in (files if isinstance(files, list) else ()) if (each := _frozen(fields))}
    pending = _frozen(record.get("pending"))
    if pending and found.get(pending.place) == Found(pending.size, pending.mtime_ns):
        known[pending.place] = pending
    return known


def _fields(frozen: Frozen) -> dict[str, Any]:
    return {name: getattr(frozen, name) for name in _FIELDS}


def _frozen(fields: object) -> Frozen | None:
    """A record's entry, if each of its fields is there and of its type. Version 0.1.0 had no `rules`."""
    if not isinstance(fields, dict) or {*fields, "rules"} != _FIELDS.keys():
        return None
    return Frozen(**fields) if all(shapes.fits(fact, _FIELDS[name]) for name, fact in fields.items()) else None
