"""The tree that a mount shows: inodes that stay apart even for those who see half of them, and the sketch that comes first.

Not for: its names (test_hostile), a real mount of it (test_mount_tree).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import trio
from pyfuse3 import FileNameT, InodeT, RequestContext

from handmade import image, ntfs_boot, store
from synthfs import identity
from synthfs.errors import SourceError
from synthfs.fuse import refresh
from synthfs.fuse.inodes import Inodes
from synthfs.fuse.metrics import Metrics
from synthfs.fuse.operations import FOREVER, Access, Operations
from synthfs.fuse.refresh import Refresher
from synthfs.model import Allocation, ImageFacts, StoreFacts
from synthfs.plan import garden, machine, tree
from synthfs.plan.catalog import Catalog, plan
from synthfs.plan.container import Format
from synthfs.plan.garden import Gardener
from test_catalog import taken


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
    grown = Gardener().grow(catalog)
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

    shown = Gardener().grow(first)
    operations = Operations(shown, Access(0, 0, 0o440), Metrics())
    refresher = Refresher(operations, lambda before: second, grow, Metrics(), 0.0, first)
    trio.run(refresher.refresh)
    trio.run(refresher.show)
    assert [catalog is second for catalog in asked] == [True, False]


CLIENTS = ("desk", "laptop", "server")
LIVE = [tree.Live("status.json", lambda: "{}")]


def several(*more: ImageFacts) -> Catalog:
    """What three clients offer, each with a C: and a D: of two days; `laptop` has the newest."""
    images = [taken(letter, f"2603{day:02}-0201", client) for client in CLIENTS for day in (1, 2) for letter in "CD"]
    newest = replace(images[5].raw, mtime_ns=images[5].raw.mtime_ns + 1)
    return plan(store(*images[:5], replace(images[5], raw=newest), *images[6:], *more), None)


def buds(root: tree.Directory) -> list[tree.Bud]:
    return [node for node in root.entries if isinstance(node, tree.Bud)]


def facts(nodes: Iterable[tree.Node]) -> list[tuple[str, int, int]]:
    return [(node.name, node.inode, node.mtime_ns) for node in nodes if not isinstance(node, tree.Live)]


def below(folder: tree.Directory) -> list[tuple[str, int, int]]:
    return facts(node for _, node in tree.walk(folder))


def places(folder: tree.Directory) -> Iterator[tuple[tuple[int, str], int]]:
    """Every name below, with its directory's inode, and the inode that it leads to."""
    for node in folder.entries:
        if not isinstance(node, tree.Live):
            yield (folder.inode, node.name), node.inode
        if isinstance(node, tree.Directory):
            yield from places(node)


class TestSketch:
    def test_is_the_tree_as_far_as_it_goes(self) -> None:
        """The same names, inodes and times at the root, and in each folder once it is entered: nothing has to be told."""
        catalog = several()
        sketch, whole = Gardener(live=LIVE).sketch(catalog, lambda: LIVE), Gardener(live=LIVE).grow(catalog)
        assert facts(sketch.root.entries) == facts(whole.root.entries)
        assert [bud.name for bud in buds(sketch.root)] == [*CLIENTS, ".synthfs"]
        for bud in buds(sketch.root):
            grown = tree.find(whole, bud.name)
            assert isinstance(grown, tree.Directory)
            assert below(bud.unfolded()) == below(grown)
        assert tree.changes(sketch, whole) == []

    def test_plans_one_client_and_then_what_is_entered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one with the newest image, for the README; the status takes nothing but what it is given."""
        planned: list[str] = []
        original = machine._offer

        def noting(one: machine.Machine) -> machine.Offer:
            planned.append(one.judged[0].image.client)
            return original(one)

        monkeypatch.setattr(machine, "_offer", noting)
        catalog = several()
        desk, laptop, server, status = buds(Gardener().sketch(catalog, lambda: LIVE).root)
        assert planned == ["laptop"]
        assert all(bud.unfolded().entries for bud in (server, status, laptop))
        assert planned == ["laptop", "server"]
        assert not catalog.is_empty
        assert planned == ["laptop", "server", "desk"]
        assert len(catalog.disks) == 12
        assert desk.unfolded().entries
        assert planned == ["laptop", "server", "desk"]

    def test_with_a_client_whose_images_are_of_no_use(self) -> None:
        """Its folder is there and empty, until the whole tree takes it away, which the kernel is told. Nothing else differs:
        not the name beside it that only differs in case, and no time, although its image is the newest.
        """
        useless = image("Desk", "E", length=-512, boot=ntfs_boot(0))
        catalog = several(replace(useless, raw=replace(useless.raw, mtime_ns=useless.raw.mtime_ns + 2)))
        gardener = Gardener(live=LIVE)
        sketch, whole = gardener.sketch(catalog, lambda: LIVE), gardener.grow(catalog)
        (gone,) = (node for node in buds(sketch.root) if node.name.startswith("Desk~"))
        assert [node.name for _, node in tree.walk(gone.unfolded())] == ["new-identity"]
        assert facts(node for node in sketch.root.entries if node is not gone) == facts(whole.root.entries)
        assert sketch.root.mtime_ns == whole.root.mtime_ns == gone.mtime_ns
        assert tree.changes(sketch, whole) == [(tree.ROOT_INODE, gone.name)]

    def test_with_files_that_wait(self) -> None:
        """Where nothing is known of holes, one client is planned, and its folder is empty."""
        catalog = several()
        gardener = Gardener([Format.VHDX])
        sketch = gardener.sketch(catalog, lambda: ())
        assert [client for client, machine in catalog.machines.items() if "_offer" in vars(machine)] == ["laptop"]
        desk, *_ = buds(sketch.root)
        assert [node.name for _, node in tree.walk(desk.unfolded())] == ["new-identity"]

    def test_that_two_look_into_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody's files are moved away from the other's: not when the second comes later, nor when he overtakes the first."""
        catalog = several()
        desk, *_ = buds(Gardener().sketch(catalog, lambda: ()).root)
        expected = tree.find(Gardener().grow(catalog), "desk")
        assert isinstance(expected, tree.Directory)
        seen: list[tree.Directory] = []

        def overtaken(folder: tree.Directory, taken: set[int]) -> tree.Directory:
            found = tree.apart(folder, taken)
            monkeypatch.setattr(garden, "apart", tree.apart)
            seen.append(desk.unfolded())
            return found

        monkeypatch.setattr(garden, "apart", overtaken)
        seen += [desk.unfolded(), desk.unfolded()]
        assert [below(folder) for folder in seen] == [below(expected)] * 3

    @pytest.mark.parametrize("order", [1, -1])
    def test_whose_inodes_meet(self, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever is entered first keeps its inodes; where the whole tree has others, it is told to the kernel."""
        real = identity.inode
        monkeypatch.setattr(identity, "inode", lambda seed: real(seed) & ~0xFFFFFFFF | real(seed) & 0x7F)
        catalog = several()
        gardener = Gardener()
        inodes = Inodes(gardener.sketch(catalog, lambda: ()))
        for bud in buds(inodes.tree.root)[::order]:
            assert inodes.children(bud.inode) is None
            inodes.unfold(bud, bud.unfolded())
            assert inodes.children(bud.inode) is not None
        assert not buds(inodes.tree.root)
        nodes = [node for _, node in tree.walk(inodes.tree.root) if not isinstance(node, tree.Live)]
        assert len({node.inode & 0xFFFFFFFF for node in nodes} | {tree.ROOT_INODE}) == len(nodes) + 1
        whole = gardener.grow(catalog)
        before, after = (set(places(each.root)) for each in (inodes.tree, whole))
        assert set(tree.changes(inodes.tree, whole)) == {place for place, _ in before ^ after}


class TestUnfolding:
    def test_is_for_the_tree_that_has_the_bud(self) -> None:
        """One that comes late, after a whole tree took the sketch's place, changes nothing."""
        catalog = several()
        gardener = Gardener()
        inodes = Inodes(gardener.sketch(catalog, lambda: ()))
        bud, *_ = buds(inodes.tree.root)
        inodes.remember(bud)
        whole = gardener.grow(catalog)
        inodes.replace(whole)
        inodes.unfold(bud, bud.unfolded())
        assert inodes.tree is whole
        assert inodes.node(bud.inode) is tree.find(whole, bud.name)

    def test_of_a_client_that_is_gone(self) -> None:
        """Its folder is one in which nothing is, for as long as the kernel remembers it."""
        inodes = Inodes(Gardener().sketch(several(), lambda: ()))
        bud, *_ = buds(inodes.tree.root)
        inodes.remember(bud)
        inodes.replace(Gardener().grow(plan(store(), None)))
        assert inodes.children(bud.inode) == {}
        inodes.forget(bud.inode, 1)
        assert inodes.node(bud.inode) is None

    def test_while_the_whole_tree_is_compared_with_the_sketch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who looked into a folder before holes were known, and is told late that a file is not there, is told that it is."""
        told: list[tuple[int, str]] = []
        monkeypatch.setattr(refresh, "_notify", told.extend)
        known = {"holes": False}
        catalog = several()
        gardener = Gardener([Format.VHDX], LIVE, lambda source: Allocation(4096, ((0, 1 << 16),)) if known["holes"] else None)
        operations = Operations(gardener.sketch(catalog, lambda: LIVE), Access(0, 0, 0o440), Metrics())
        desk, *_ = buds(operations.tree.root)
        begun = desk.unfolded()
        monkeypatch.setattr(tree.Bud, "unfolded", lambda bud: begun)
        wanted, answers = "Image_C_260301-0201.vhdx", list[tuple[int, float]]()

        async def look() -> None:
            found = await operations.lookup(InodeT(desk.inode), FileNameT(wanted.encode()), RequestContext())
            answers.append((found.st_ino, found.entry_timeout))

        def compared(old: tree.Tree, new: tree.Tree) -> list[tuple[int, str]]:
            found = tree.changes(old, new)
            if not answers:
                trio.from_thread.run(look)
            return found

        def grow(catalog: Catalog) -> tree.Tree:
            known["holes"] = True
            return gardener.grow(catalog)

        monkeypatch.setattr(refresh, "changes", compared)
        refresher = Refresher(operations, lambda before: catalog, grow, Metrics(), 0.0, catalog)
        assert trio.run(refresher.complete)
        assert answers == [(0, FOREVER)]
        assert tree.find(operations.tree, f"desk/{wanted}")
        assert (desk.inode, wanted) in told
