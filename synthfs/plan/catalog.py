"""Every disk of a store: which images are offered, and which of them stand in each other's disks.

Machines have nothing to do with each other: each is planned by itself, when somebody first asks what it offers, and one about
which nothing new is known stays as it was. In a store that is looked at every minute, that is nearly all of them; and of
10,000 images that a mount begins to show, nobody has to wait for more than those of the machine that he looks at.

Not for: the disks of one machine (`plan/machine`), completeness (`plan/complete`). Times in seconds.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from synthfs.model import DatabaseFacts, ImageFacts, Note, Skipped, StoreFacts
from synthfs.plan.complete import Judge, Verdict
from synthfs.plan.disk import Disk
from synthfs.plan.machine import Judged, Machine, Part
from synthfs.plan.unused import machine_of


@dataclass(frozen=True)
class Catalog:
    """What a store has to offer, by client and time; `skipped` is everything else, with reasons.

    `database` is the path of the one that had its say, None where none had, and `rows` are the images that it knows.
    `machines` are the clients that have images. `clients` are all that are known, each with its number in the database, None
    where it has none. What is gathered from all machines is worked out at the first look, and kept.
    """

    store: StoreFacts
    database: str | None
    notes: tuple[Note, ...]
    rows: frozenset[str]
    machines: Mapping[str, Machine] = field(repr=False)
    clients: Mapping[str, int | None] = field(repr=False)

    @cached_property
    def disks(self) -> tuple[Disk, ...]:
        return tuple(disk for machine in self.machines.values() for disk in machine.offer().disks)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for machine in self.machines.values() for part in machine.offer().parts)

    @cached_property
    def skipped(self) -> tuple[Skipped, ...]:
        skipped = [*self.store.skipped, *(each for machine in self.machines.values() for each in machine.offer().skipped)]
        return tuple(sorted(skipped, key=lambda each: (each.client, each.name)))

    @cached_property
    def settling(self) -> tuple[str, ...]:
        """Images of C: whose SYSVOL or ESP UrBackup has not recorded as complete yet, as it will in a moment."""
        return tuple(name for machine in self.machines.values() for name in machine.offer().settling)

    @property
    def newest(self) -> Disk | None:
        """The disk with the newest stamp, of those that the database knows if there are any."""
        return max(self.disks, key=lambda disk: (not disk.unknown, disk.image.stamp), default=None)

    def note_of(self, image: ImageFacts) -> Note | None:
        """What is to be said of an image that is offered."""
        judged = self.machines[image.client].judged
        return next((verdict.note for each, _, verdict in judged if each.name == image.name), None)

    @property
    def is_empty(self) -> bool:
        """Whether there is no disk. It takes no more than the first machine that has one."""
        return not any(machine.offer().disks for machine in self.machines.values())


def plan(
    store: StoreFacts,
    database: DatabaseFacts | None,
    notes: tuple[Note, ...] = (),
    before: Catalog | None = None,
    anyway: str | None = None,
) -> Catalog:
    """The catalog of `store` as `database` judges it; `notes` are about the store as a whole and passed on.

    `before` is an earlier catalog. It spares work and changes nothing. The image called `anyway` is offered in any case.
    """
    judge = Judge(database, store.images, store.clock, anyway)
    judged: defaultdict[str, list[Judged]] = defaultdict(list)
    for image in store.images:
        judged[image.client].append(Judged(image, row := judge.row(image), judge.verdict(image, row)))
    unfinished = _unfinished(database)
    machines: dict[str, Machine] = {}
    families: defaultdict[str, list[str]] = defaultdict(list)
    for client in judged:
        families[machine_of(client)].append(client)
    for client in sorted(judged):
        others = (each for other in families[machine_of(client)] if other != client for each in judged[other])
        new = Machine(tuple(judged[client]), tuple(unfinished.get(client, ())), tuple(others))
        known = before.machines.get(client) if before else None
        machines[client] = known if known == new else new
    rows = frozenset(database.rows) if database else frozenset[str]()
    notes = (*notes, *_about_unknown(each.verdict for machine in judged.values() for each in machine))
    numbers = database.clients if database else {}
    clients = {client: numbers.get(client) for client in sorted({*judged, *store.clients, *numbers})}
    return Catalog(store, database.path if database else None, notes, rows, machines, clients)


def _about_unknown(verdicts: Iterable[Verdict]) -> Iterator[Note]:
    """How many images the database does not know that it should know: those that are offered, and those that are not."""
    unknown = Counter(verdict.offered for verdict in verdicts if verdict.unknown)
    if offered := unknown[True]:
        are, they = ("1 image is", "it is") if offered == 1 else (f"{offered} images are", "they are")
        rest = f", and {unknown[False]} more that may not be whole are not" if unknown[False] else ""
        yield Note(f"{are} unknown to UrBackup's database, and offered since {they} whole by the files{rest}")


def _unfinished(database: DatabaseFacts | None) -> Mapping[str, list[int]]:
    """By client, when the images of SYSVOL and ESP began that UrBackup calls incomplete."""
    waiting: defaultdict[str, list[int]] = defaultdict(list)
    for row in database.rows.values() if database else ():
        if not row.complete and ("Image_SYSVOL_" in row.name or "Image_ESP_" in row.name):
            client, _, file = row.name.partition("/")
            if "Image_SYSVOL_" in file or "Image_ESP_" in file:
                waiting[client].append(row.backuptime)
    return waiting
