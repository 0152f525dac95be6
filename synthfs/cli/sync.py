"""`synthfs sync`: keep the newest disks of each client frozen in a directory, by itself, after every backup."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from synthfs.cli.common import Database, Json, Store, look_at, print_json, say, say_notes
from synthfs.cli.materialize import Format
from synthfs.engines.materialize import Reflink, prepare
from synthfs.errors import SynthfsError, TargetError
from synthfs.host import state
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import wrap
from synthfs.plan.sync import Found, Frozen, Make, SyncPlan, plan_sync

_PARTIAL = 1


def sync(
    store: Store,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where the frozen disks are kept, a folder a client.")],
    form: Annotated[Format, typer.Option("--format", help="The container to make.")] = Format.VHD,
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many of each disk, newest first.")] = 1,
    min_free: Annotated[str, typer.Option(metavar="PERCENT", help="Make nothing that leaves less space free.")] = "10%",
    client: Annotated[str, typer.Option(metavar="GLOB", help="Only these clients.")] = "*",
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="Wait for a backup's SYSVOL and ESP.", min=0)] = 120.0,
    prune_anyway: Annotated[bool, typer.Option("--prune-anyway", help="Remove even more than half of a client's.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Freeze the newest disks of each client of STORE into DIR, and remove those whose backups are gone.

    Only files that synthfs made there and that nobody changed are ever removed.
    """
    directory = os.path.realpath(to)
    record = state.path_for("sync", directory)
    with state.alone(record):
        catalog = _settled(store, database, wait)
        say_notes(catalog.notes)
        run = _Run(catalog, directory, record, _percentage(min_free), dry_run, prune_anyway)
        run.check_place()
        plan = run.plan(form.value, keep, client, prune_anyway)
        for remark in plan.remarks:
            say(f"note: {remark}")
        run.carry_out(plan)
    summary = run.summary(plan)
    if as_json:
        print_json(summary)
    else:
        counts = ", ".join(f"{summary[word]} {word}" for word in ("made", "removed", "kept", "failed"))
        say(f"{directory}: {'would be ' if dry_run else ''}{counts}")
    if plan.refused or summary["failed"]:
        raise typer.Exit(_PARTIAL)


def _settled(store: str, database: str | None, wait: float) -> Catalog:
    """The catalog, once no new backup of C: waits for its SYSVOL and ESP to be recorded beside it, or `wait` is over."""
    deadline = time.monotonic() + wait
    while True:
        catalog = look_at(store, database)
        if not catalog.settling or time.monotonic() > deadline:
            return catalog
        time.sleep(2)


def _percentage(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise TargetError(f"--min-free {text}: a percentage from 0% to 99% is expected")
    return share


class _Run:
    """One run of `sync` over one directory."""

    def __init__(
        self, catalog: Catalog, directory: str, record: str, min_free: float, dry_run: bool, accept_store: bool
    ) -> None:
        self._catalog = catalog
        self._directory = directory
        self._record = record
        self._min_free = min_free
        self._dry_run = dry_run
        loaded = state.load(record)
        self._store = loaded.get("store") or self._identity()
        if accept_store:
            self._store = self._identity()
        self._frozen = {each.place: each for each in _frozen(loaded)}
        self._made: list[str] = []
        self._removed: list[str] = []
        self._failed: list[str] = []

    def check_place(self) -> None:
        """Raises TargetError for a directory that is not there, or where UrBackup's clean-up would find it."""
        root = self._catalog.store.root
        if f"{self._directory}/".startswith(f"{root}/"):
            raise TargetError(f"{self._directory} lies in UrBackup's storage, whose clean-up deletes what it does not know")
        if not os.path.isdir(self._directory):
            raise TargetError(f"{self._directory} is no directory; make one with `mkdir -p`")

    def plan(self, form: str, keep: int, client: str, prune_anyway: bool) -> SyncPlan:
        root = self._catalog.store.root
        return plan_sync(
            self._catalog,
            self._frozen.values(),
            dict(self._found()),
            self._catalog.rows,
            keep,
            f".{form}",
            client,
            same_store=self._store == self._identity(),
            prune_anyway=prune_anyway,
            is_there=lambda name: os.path.lexists(os.path.dirname(f"{root}/{name}")),
        )

    def carry_out(self, plan: SyncPlan) -> None:
        for each in plan.gone:
            self._remove(each)
        for new in plan.make:
            try:
                self._make(new, plan)
            except SynthfsError as error:
                say(f"synthfs: {new.frozen.place}: {error}")
                self._failed.append(new.frozen.place)
        for each in plan.outdated:
            self._remove(each)
        if not self._dry_run:
            self._save()

    def summary(self, plan: SyncPlan) -> dict[str, Any]:
        return {
            "directory": self._directory,
            "made": len(self._made),
            "removed": len(self._removed),
            "kept": len(plan.kept),
            "failed": len(self._failed),
            "files": {"made": self._made, "removed": self._removed, "failed": self._failed},
        }

    def _make(self, new: Make, plan: SyncPlan) -> None:
        path = f"{self._directory}/{new.frozen.place}"
        self._made.append(new.frozen.place)
        if self._dry_run:
            return
        self._make_room(plan)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with prepare(wrap(new.disk).extent_map(), os.path.dirname(path), Reflink.ALWAYS) as prepared:
            prepared.freeze(os.path.basename(path), new.replace)
        made = os.stat(path)
        self._frozen[new.frozen.place] = replace(new.frozen, size=made.st_size, mtime_ns=made.st_mtime_ns)
        self._save()

    def _make_room(self, plan: SyncPlan) -> None:
        """Removes the oldest unmodified files until `min_free` is free. Raises TargetError where that is not enough."""
        oldest = sorted(plan.kept, key=lambda each: each.stamp)
        while self._free() < self._min_free:
            victim = next((each for each in oldest if each.place in self._frozen), None)
            if victim is None:
                raise TargetError(f"less than {self._min_free:.0%} of {self._directory} is free; nothing more is made")
            self._remove(victim)

    def _free(self) -> float:
        found = os.statvfs(self._directory)
        return found.f_bavail / max(found.f_blocks, 1)

    def _remove(self, each: Frozen) -> None:
        self._removed.append(each.place)
        if self._dry_run:
            return
        os.unlink(f"{self._directory}/{each.place}")
        del self._frozen[each.place]
        self._save()

    def _found(self) -> Iterator[tuple[str, Found]]:
        """What is there of all that was recorded or might be made."""
        for client in os.scandir(self._directory):
            if client.is_dir(follow_symlinks=False):
                for file in os.scandir(client.path):
                    at = file.stat(follow_symlinks=False)
                    yield f"{client.name}/{file.name}", Found(at.st_size, at.st_mtime_ns)

    def _identity(self) -> dict[str, Any]:
        """What tells this store from an empty mountpoint and from another disk."""
        root = self._catalog.store.root
        return {"root": root, "inode": os.stat(root).st_ino, "file_system": os.statvfs(root).f_fsid}

    def _save(self) -> None:
        files = [asdict(each) for each in self._frozen.values()]
        state.save(self._record, {"store": self._store, "files": files})


def _frozen(record: dict[str, Any]) -> Iterator[Frozen]:
    """The files of a record; what is garbled is no file of ours."""
    for fields in record.get("files", []):
        try:
            yield Frozen(**fields)
        except TypeError:
            continue


