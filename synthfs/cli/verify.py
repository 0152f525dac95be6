"""`synthfs verify`: is this backup good? Its bytes against UrBackup's hashes, its tables, a file that was made of it."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any

import typer

from synthfs.cli.common import (
    Anyway,
    Database,
    Json,
    VolumeOnly,
    answer,
    find_disk,
    hole_maps,
    look_at,
    print_json,
    say_notes,
    unit_of,
    unreadable,
)
from synthfs.cli.findings import Audit, check_file, check_image, check_tables, not_usable
from synthfs.cli.progress import progress
from synthfs.engines.crew import Crew
from synthfs.engines.verify import EVERYTHING, Sample
from synthfs.errors import DiffersError, FormatError, NotFoundError, SourceError, SynthfsError, UncheckedError, UnsupportedError
from synthfs.extents import ExtentMap, Source
from synthfs.host.files import OpenSource, source_at
from synthfs.model import Fault, Finding, Kind, Skipped
from synthfs.plan import container
from synthfs.plan.align import aligned
from synthfs.plan.catalog import Catalog
from synthfs.plan.container import Format
from synthfs.plan.disk import Disk
from synthfs.plan.renew import new_identity as renewed_disk
from synthfs.plan.volume import Planner, Volume
from synthfs.text import quoted
from synthfs.units import SECTOR, human

_MOST_LINES = 20
_ERRORS: dict[Fault, type[SynthfsError]] = {
    Fault.DIFFERS: DiffersError,
    Fault.UNREADABLE: SourceError,
    Fault.BAD_INPUT: FormatError,
    Fault.CANNOT_CHECK: UncheckedError,
}
_REMEDIES = {
    Fault.DIFFERS: "what differs is not what was backed up: take another backup, and look after the storage (scrub, SMART)",
    Fault.UNREADABLE: "look at the storage (dmesg, scrub, SMART) before anything else",
    Fault.BAD_INPUT: "an older backup of the same disk may be sound",
    Fault.CANNOT_CHECK: "nothing is known to be wrong, and nothing to be right",
}


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise typer.BadParameter(f"{text!r} is no percentage above 0% and up to 100%")
    return share


def verify(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE…", help="A .raw file of the store, or a file of a running mount.")
    ] = None,
    store: Annotated[str | None, typer.Option(metavar="STORE", help="All backups of this store instead.")] = None,
    client: Annotated[str, typer.Option(metavar="GLOB", help="With --store: only these clients.")] = "*",
    against: Annotated[
        str | None, typer.Option(metavar="FILE", help="Compare FILE with the disk of IMAGE, byte by byte, instead.")
    ] = None,
    new_identity: Annotated[bool, typer.Option("--new-identity", help="With --against: FILE was made with this.")] = False,
    alone: VolumeOnly = False,
    anyway: Anyway = False,
    align: Annotated[
        int | None,
        typer.Option(parser=unit_of, metavar="SIZE", help="With --against: FILE was made with this.", show_default=False),
    ] = None,
    sample: Annotated[
        float, typer.Option(parser=_share, metavar="PERCENT", help="Look at that much of the data, chosen at random.")
    ] = "100%",  # type: ignore[assignment]  # as it is written; the parser makes the number
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Is it good? Check backups, or a file made of one.

    Every byte of the images is checked against UrBackup's hashes, and the disk's tables; or a file, byte by byte, against
    the disk.
    """
    if bool(images) == bool(store) or (against and len(images or ()) != 1):
        raise typer.BadParameter("name IMAGEs or --store STORE; with --against FILE, one IMAGE")
    part = Sample(sample, secrets.randbits(32)) if sample < 1 else EVERYTHING
    run = _Run(part, as_json)
    if against:
        disk = find_disk((images or [""])[0], database, alone, anyway)
        disk = renewed_disk(disk) if new_identity else disk
        run.file(aligned(disk, align or SECTOR), against)
    else:
        if store:
            catalog = look_at(store, database)
            say_notes(tuple(note for note in catalog.notes if note.warning))
            skipped = [skipped for skipped in catalog.skipped if fnmatchcase(skipped.client, client)]
            unusable = [each for each in skipped if each.kind is Kind.UNUSABLE]
            run.not_offered = len(skipped) - len(unusable)
            run.backups(*_offered(catalog, client, bool(unusable)), unusable)
        else:
            disks = [find_disk(image, database, alone, anyway) for image in images or ()]
            run.backups(disks, _volumes(disks))
    run.finish()


def _offered(catalog: Catalog, client: str, may_be_none: bool) -> tuple[list[Disk], list[Volume]]:
    """The disks of some clients, and their images, also those that stand on none of these disks."""
    disks = [disk for disk in catalog.disks if fnmatchcase(disk.image.client, client)]
    parts = [part.image for part in catalog.parts if fnmatchcase(part.image.client, client)]
    if not disks and not may_be_none:
        root = catalog.store.root
        why = unreadable(catalog, client) or f"`synthfs list {quoted(root)} --all` shows what there is"
        raise NotFoundError(f"{root} offers no disk{'' if client == '*' else f' of a client {client!r}'}; {why}")
    planner = Planner()
    return disks, _volumes(disks, [planner.volume(image) for image in parts])


def _volumes(disks: Sequence[Disk], more: Sequence[Volume] = ()) -> list[Volume]:
    """Each image once, in the order of the disks."""
    of_disks = [content.volume for disk in disks for content in disk.contents if content.volume]
    return list({volume.image.name: volume for volume in (*of_disks, *more)}.values())


@dataclass(slots=True)
class _Run:
    """What was checked so far, and how it is told."""

    sample: Sample
    as_json: bool
    audits: list[Audit] = field(default_factory=list)
    not_offered: int = 0
    began: float = field(default_factory=time.monotonic)

    def backups(self, disks: Sequence[Disk], volumes: Sequence[Volume], unusable: Sequence[Skipped] = ()) -> None:
        for disk in disks:
            self._tell(check_tables(disk))
        for each in unusable:
            self._tell(not_usable(each))
        lengths = {volume.image.name: _estimate(volume.image.raw) for volume in volumes}
        with Crew() as crew, progress("speed") as bar:
            task = bar.add_task("", total=sum(lengths.values()) * self.sample.share)
            for number, volume in enumerate(volumes, 1):
                bar.update(task, description=f"{number}/{len(volumes)} {volume.image.stem}")
                audit = check_image(crew, volume, self.sample, lambda done: bar.advance(task, done))
                # The estimate gives way to what there was, so that the time left is told ever better.
                lengths[volume.image.name] = audit.tally.data / self.sample.share
                bar.update(task, total=sum(lengths.values()) * self.sample.share)
                self._tell(audit)

    def file(self, disk: Disk, path: str) -> None:
        self._tell(check_tables(disk))
        with closing(OpenSource(source_at(path))) as file, Crew() as crew, progress("speed") as bar:
            form = _form_of(disk, file)
            extents, absent = _map_for(disk, form, file)
            task = bar.add_task(os.path.basename(path), total=_estimate(file.source) * self.sample.share)
            self._tell(
                check_file(crew, disk, form, extents, absent, file, self.sample, lambda done: bar.advance(task, done))
            )

    def finish(self) -> None:
        """Sums up, and raises the error of the worst that was found."""
        summary = self._summary()
        if self.as_json:
            print_json({"summary": summary}, indent=None)
        else:
            self._print_summary(summary)
        counts = Counter(audit.worst for audit in self.audits)
        for fault, error in _ERRORS.items():
            if counts[fault]:
                raise error(f"{_of(self.audits, fault)}: {fault}; {_remedy(self.audits, fault)}")

    def _tell(self, audit: Audit) -> None:
        """Says what came of one check. Plain lines, which a bar on the terminal makes way for."""
        self.audits.append(audit)
        if self.as_json:
            for finding in audit.findings:
                print_json(_as_json(audit, finding), indent=None)
            return
        speed = f" in {audit.seconds:.1f} s, {human(int(audit.tally.data / audit.seconds))}/s" if audit.seconds > 1 else ""
        looked_at = f": {human(audit.tally.data)} read{speed}" if audit.tally.data else ""
        verdict = audit.worst or ("good" if not audit.tally.left_out else "good so far")
        answer(f"{verdict:<12}  {audit.what:<6}  {audit.name}{looked_at}")
        for finding in audit.findings[:_MOST_LINES]:
            answer(f"{'':12}    {finding.fault}: {finding.where}: {finding.text}")
        if len(audit.findings) > _MOST_LINES:
            answer(f"{'':12}    and {len(audit.findings) - _MOST_LINES} more; --json has all of them")

    def _summary(self) -> dict[str, Any]:
        tallies = [audit.tally for audit in self.audits]
        sums = {word: sum(getattr(tally, word) for tally in tallies) for word in ("data", "holes", "left_out", "unproven")}
        faults = Counter(finding.fault.value for audit in self.audits for finding in audit.findings)
        checked = Counter(audit.what for audit in self.audits)
        sample = {"share": self.sample.share, "seed": self.sample.seed} if self.sample.share < 1 else None
        seconds = round(time.monotonic() - self.began, 3)
        found = {"checked": dict(checked), "not_offered": self.not_offered, "findings": dict(faults)}
        return found | sums | {"sample": sample, "seconds": seconds}

    def _print_summary(self, summary: dict[str, Any]) -> None:
        names = {"tables": "tables of {} disk{}", "image": "{} image{}", "file": "{} file{}"}
        counts = ", ".join(names[what].format(n, "" if n == 1 else "s") for what, n in summary["checked"].items())
        seconds = max(summary["seconds"], 0.001)
        answer(
            f"{counts} checked: {human(summary['data'])} read in {seconds:.1f} s "
            f"({human(int(summary['data'] / seconds))}/s), {human(summary['holes'])} are holes"
        )
        if self.sample.share < 1:
            left = summary["left_out"]
            rest = f"{human(left)} of {human(summary['data'] + left)} of data were NOT looked at"
            answer(f"a sample of {self.sample.share * 100:.3g}%: {rest} (seed {self.sample.seed})")
        if self.not_offered:
            are, were = ("is", "was") if self.not_offered == 1 else ("are", "were")
            rest = f"{self.not_offered} more {are} not offered and {were} not checked"
            answer(f"{rest}; `synthfs list --all` shows why")
        if summary["unproven"]:
            answer(f"{human(summary['unproven'])} have no hash that says anything about them")


def _map_for(disk: Disk, form: Format, file: OpenSource) -> tuple[ExtentMap, Sequence[tuple[int, int]]]:
    """The map of the file that holds the disk in such a container, and what of the disk has to be zero to be left out of it.

    One that leaves out what is empty may have been made when the sources had other holes: a copied store has its own.
    """
    container.check(disk, form)
    ask = hole_maps(disk, form)
    if form.is_sparse and (found := container.of_table(disk, form, ask, partial(_read, file))):
        return found
    *_, made = container.of_disk(disk, form, disk.image.stem, ask)
    return made.extent_map(), ()


def _read(file: OpenSource, offset: int, length: int) -> bytes:
    """So many bytes of a file; none where it ends before, or cannot be read, which the comparison will tell."""
    if offset + length > file.source.size:
        return b""
    raw = bytearray(length)
    try:
        file.read(offset, memoryview(raw))
    except SourceError:
        return b""
    return bytes(raw)


def _form_of(disk: Disk, file: OpenSource) -> Format:
    """By what it begins with, or else by its name, or by what it ends with: any of these may be what is damaged."""
    size, path = file.source.size, file.source.path
    front, back = bytearray(8), bytearray(8)
    if size >= len(front):
        file.read(0, memoryview(front))
    if size >= 512:
        file.read(size - 512, memoryview(back))
    if form := {b"vhdxfile": Format.VHDX, b"conectix": Format.VHD_DYNAMIC}.get(bytes(front)):
        return form
    for form in (Format.VHD_DYNAMIC, Format.VHDX, Format.VHD, Format.RAW):
        if path.endswith(form.suffix):
            return form
    if bytes(front) == b"# Disk D":
        raise UnsupportedError(f"{path} is the text of a VMDK; name the file beside it that holds the disk")
    return Format.VHD if back == b"conectix" or size == disk.length + 512 else Format.RAW


def _of(audits: Sequence[Audit], fault: Fault) -> str:
    """How many of which, and the name where it is one."""
    bad = [audit for audit in audits if audit.worst is fault]
    if len(bad) == 1:
        return f"{bad[0].name} ({bad[0].what})"
    return f"{len(bad)} of {len(audits)} checks"


def _remedy(audits: Sequence[Audit], fault: Fault) -> str:
    if fault is Fault.DIFFERS and all(audit.what == "file" for audit in audits if audit.worst is fault):
        return "that says nothing against the backup: was it made with --new-identity, --volume-only or --align, or written to?"
    return _REMEDIES[fault]


def _as_json(audit: Audit, finding: Finding) -> dict[str, Any]:
    place = {"offset": finding.offset, "length": finding.length}
    return {"finding": finding.fault, audit.what: audit.name, "where": finding.where, **place, "text": finding.text}


def _estimate(source: Source) -> float:
    """About how many bytes of a file are no holes. A compressed file has more of them than it takes space."""
    try:
        return float(min(os.stat(source.path).st_blocks * 512, source.size))
    except OSError:
        return 0.0
