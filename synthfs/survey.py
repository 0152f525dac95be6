"""Surveys a store: gathers its facts and UrBackup's, and plans all its disks. The one place where both wings meet.

Not for: anything of its own. It asks `urbackup/` what is, hands that to `plan/`, and returns what should be.
"""

from collections.abc import Mapping

from synthfs.errors import FormatError
from synthfs.model import DatabaseFacts, Known, Note
from synthfs.plan.catalog import Catalog, plan
from synthfs.urbackup import database, storage

NO_DATABASE = "none"
"""Named as a database: images are judged by their files alone."""


def survey(
    root: str,
    named_database: str | None = None,
    before: Catalog | None = None,
    known: Mapping[str, Known] | None = None,
    anyway: str | None = None,
) -> Catalog:
    """The catalog of the store at `root`. The image called `anyway` is offered whatever there is to say against it.

    `named_database` is a database to go by instead of those in the usual places, or `NO_DATABASE`. `before` is the result of an
    earlier look at the same store, `known` what another process left of its own; both spare work and change nothing.

    Raises NotFoundError where the store or the named database is not there. One that cannot be read is a note, and the
    files decide.
    """
    paths, notes = ([], []) if named_database == NO_DATABASE else database.find(root, named_database)
    store = storage.scan(root, known=before.store.known if before else known)
    facts: DatabaseFacts | None = None
    for path in paths:
        try:
            found = database.read(path)
        except FormatError as error:
            # Also where it was named: a database that is damaged today has not to end a service, nor a nightly run.
            notes.append(Note(f"{error}; it is ignored, and --database names another", warning=True))
            continue
        if not found.clients.keys().isdisjoint(storage.OWN_DIRECTORIES):
            store = storage.scan(root, found.clients, store.known)
        if not store.images or storage.holds_any(store.root, found.rows):
            facts = found
            break
        notes.append(Note(f"{path} is about another server's backups (no image of this store is in it) and was ignored", True))
    return plan(store, facts, tuple(notes), before, anyway)
