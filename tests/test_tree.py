"""The tree that a mount shows: inodes that stay apart even for those who see half of them.

Not for: its names (test_hostile), a real mount of it (test_mount_tree).
"""

import pytest
import trio

from synthfs import identity
from synthfs.errors import SourceError
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.operations import Access, Operations
from synthfs.fuse.refresh import Refresher
from synthfs.model import StoreFacts
from synthfs.plan import tree
from synthfs.plan.catalog import Catalog, plan


def test_inodes_whose_lower_halves_meet_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samba makes file ids of the lower 32 bits: two nodes never share them, and the earlier one keeps its inode."""
    real = identity.inode
    # Every inode but those that are dealt out again ends alike.
    monkeypatch.setattr(identity, "inode", lambda seed: real(seed) if seed in again else real(seed) & ~0xFFFFFFFF | 7)
    again: set[bytes] = set()
    digest = identity.digest

    def remembered(purpose: str, *parts: bytes | str | int) -> bytes:
        found = digest(purpose, *parts)
        if purpose == "apart":
            again.add(found)
        return found

    monkeypatch.setattr(identity, "digest", remembered)
    catalog = plan(StoreFacts("/store", 0, 0, (), ()), None)
    grown = tree.grow(catalog)
    first, second = (node for _, node in tree.walk(grown.root) if not isinstance(node, tree.Live))
    assert first.inode & 0xFFFFFFFF == 7
    assert second.inode & 0xFFFFFFFF not in (7, tree.ROOT_INODE)


def test_catalog_that_no_tree_grows_of_is_not_kept() -> None:
    """What is shown next, without a scan, is what was shown before the one that failed."""
    first, second = (plan(StoreFacts(root, 0, 0, (), ()), None) for root in ("/store", "/another"))
    asked: list[Catalog] = []

    def grow(catalog: Catalog) -> tree.Tree:
        asked.append(catalog)
        if catalog is second:
            raise SourceError("no tree of that")
        return shown

    shown = tree.grow(first)
    operations = Operations(shown, Access(0, 0, 0o440), Metrics())
    refresher = Refresher(operations, lambda before: second, grow, Metrics(), 0.0, first)
    trio.run(refresher.refresh)
    trio.run(refresher.show)
    assert [catalog is second for catalog in asked] == [True, False]
