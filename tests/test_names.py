"""Whose name is whose: no client, whatever it is called, gets the folder or the file of another one.

Expected values: the rules in words (docs/security.md), bytes that were put into each image, and what Windows takes for one
name, by Python's tables of upper and lower case. Not for: what Windows accepts at all (test_hostile).
Units: bytes.
"""

import json
import os
import re
import signal
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import need
from handmade import database, image, ntfs_boot, row, store
from lab import Scope
from makedatabase import Database
from onmount import Sample, ask
from processes import wait_until
from synthfs import identity
from synthfs.cli.describe import disk_facts
from synthfs.engines import session
from synthfs.model import Kind, Session, Sessions, Skipped
from synthfs.plan import container, tree
from synthfs.plan.catalog import Catalog, plan
from synthfs.plan.container import Format
from synthfs.plan.garden import Gardener
from synthfs.plan.names import fold, stems, windows_names
from synthfs.plan.sync import plan_sync
from synthfs.plan.written import with_sessions
from synthfs.survey import survey
from test_hostile import STAMP, accepted, plant
from writer import Writer, same

MOST = 255
"""Bytes of a file name on Linux."""

HASHES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda seed: seed,
    "of one bit": lambda seed: bytes([seed[0] & 1] * 32),
    "of no bit": lambda seed: bytes(32),
    "that runs over": lambda seed: b"\xff" * 32,
}


def is_one(one: str, other: str) -> bool:
    """Whether Windows, Samba, or a Mac may take two names for one."""
    return any(
        unicodedata.normalize("NFC", case(one)) == unicodedata.normalize("NFC", case(other))
        for case in (str.upper, str.lower, str.casefold)
    )


@pytest.fixture(params=HASHES)
def hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names whose hashes are alike, as somebody who can search for them could choose them."""
    real, change = identity.digest, HASHES[request.param]

    def digest(purpose: str, *parts: bytes | str | int) -> bytes:
        return change(real(purpose, *parts)) if purpose == "name" else real(purpose, *parts)

    monkeypatch.setattr(identity, "digest", digest)


TAGS = ("~" + "0" * 32, "~" + "0" * 31 + "1", "~" + "f" * 32, "~" + "F" * 32, "~00000000", "~ABCDEF01", "~01")
LETTERS = ("é", "e\u0301", "É", "ß", "ss", "\u0131", "i", "I", "K", "\u212a", "\ufb00", "\udcff", "\U0001f600" * 60)
PARTS = st.sampled_from([*"aAbB.~: ", "pc", "PC", "con", ".synthfs", "...", *LETTERS, *TAGS])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("".join).filter(lambda name: name not in (".", ".."))
CLIENTS = st.lists(NAMES, min_size=1, max_size=9, unique=True)


def needs_no_change(name: str) -> bool:
    """Whether Windows takes a name as it is, it is not hidden, and does not look as if it had a tag."""
    plain = accepted(os.fsencode(name)) and unicodedata.is_normalized("NFC", name) and not name.startswith(".")
    return plain and len(os.fsencode(name)) <= 200 and not re.search(r"~([0-9a-f]{8}|[0-9a-f]{32})$", name.casefold())


@pytest.mark.usefixtures("hashes")
class TestRules:
    """Laws of the map from clients to folders, for any set of clients, with the hash as it is and with worse ones."""

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(clients=CLIENTS, ranked=st.sets(st.integers(0, 8)), newcomer=NAMES)
    def test_laws(self, clients: list[str], ranked: set[int], newcomer: str) -> None:
        ranks = {client: number for number, client in enumerate(clients) if number in ranked}
        wanted = {client: client for client in clients}
        shown = windows_names(wanted, (".synthfs",), ranks)
        names = [*shown.values(), ".synthfs"]
        # No two clients have one name, and none has that of our own folder.
        assert not any(is_one(one, other) for at, one in enumerate(names) for other in names[:at])
        assert len({fold(name) for name in names}) == len(names)
        # In whatever order the clients are found.
        assert windows_names(dict(reversed(wanted.items())), (".synthfs",), ranks) == shown
        for client, name in shown.items():
            # A name without a long tag is its owner's own one.
            assert name == client or re.fullmatch(r".*~[0-9a-f]{32}", name, re.DOTALL)
            assert len(os.fsencode(name)) <= MOST
            twins = [other for other in clients if other != client and is_one(client, other)]
            rivals = [other for other in twins if needs_no_change(other)]
            if needs_no_change(client):
                first = client in ranks and all(ranks[client] < ranks.get(other, 99) for other in rivals)
                assert (name == client) == (not rivals or first)
        # A client that comes later changes no name that was not changed.
        if newcomer not in wanted:
            after = windows_names({newcomer: newcomer} | wanted, (".synthfs",), ranks | {newcomer: 100})
            assert all(after[client] == client for client, name in shown.items() if name == client and client in ranks)
            if not any(is_one(newcomer, client) for client in clients):
                assert all(after[client] == client for client, name in shown.items() if name == client)

    def test_a_name_made_to_be_the_tagged_one_of_another(self) -> None:
        """Who calls himself what another one's folder is called, in capitals too, gets another name, and that one keeps his."""
        for _ in range(3):
            clients = ["office-pc", "office-pc."]
            shown = windows_names({client: client for client in clients})
            forged = [shown["office-pc."], shown["office-pc."].upper(), shown["office-pc."][:18], "office-pc~9623417A"]
            again = windows_names({client: client for client in (*clients, *forged)})
            assert {client: again[client] for client in clients} == shown
            assert shown["office-pc"] == "office-pc"
            assert len({fold(name) for name in again.values()}) == 6


def test_windows_and_samba_compare_as_fold_does() -> None:
    """No two characters are one in upper or lower case, or when folded, and two to `fold`."""
    characters = [chr(code) for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000]
    for case in (str.upper, str.lower, str.casefold):
        first: dict[str, str] = {}
        for character in characters:
            one = first.setdefault(unicodedata.normalize("NFC", case(character)), character)
            assert fold(one) == fold(character)


def test_nothing_is_longer_than_a_file_name_may_be() -> None:
    """The longest names, with all tags and suffixes that can come behind: in the mount, of files made of it, and in SCRATCH."""
    for character in ("x", "é", "€", "\U0001f600"):
        letter = character * (236 // len(character.encode()))
        one = image("pc", letter, STAMP, name=f"pc/{STAMP}_Image_C/Image_{letter}_{STAMP}.raw")
        (stem,) = stems([one]).values()
        beside = f"{stem}~{'f' * 32}"
        longest = max(container.suffixes(), key=len)
        for name in (f"{beside}{longest}", f"{stem}.volume.new-identity{longest}", f"{beside}.new-identity{longest}"):
            assert len(name.encode()) <= MOST
        written = Session(bytes(32), 10**9 - 1, 2, f"pc/{beside}.dynamic.vhd", one.name, 1, 1, 1, True)
        assert len(session._file_name(written).encode()) + len("gone") <= MOST


def folders(catalog: Catalog) -> list[str]:
    """What is in the root, by the whole tree and by the sketch, which have to agree on what both have."""
    whole, sketch = Gardener().grow(catalog), Gardener().sketch(catalog, tuple)
    names = [node.name for node in whole.root.entries]
    assert set(names) <= {node.name for node in sketch.root.entries}
    assert whole.left_out == sketch.left_out
    return sorted(name for name in names if name != ".synthfs")


def offered(*clients: str, facts: Iterable[str] | None = None, others: Iterable[str] = ()) -> Catalog:
    """A store with an image of each client, and empty folders of `others`; UrBackup knows `facts`, in that order."""
    images = [image(client, boot=ntfs_boot(64 << 20)) for client in clients]
    known = None if facts is None else database(*map(row, images), clients=facts)
    return plan(replace(store(*images), clients=(*clients, *others)), known)


def tag(name: str, client: str) -> str:
    return f"{name}~{identity.digest('name', client).hex()[:32]}"


class TestWhoKeepsIt:
    """Of names that differ only in case."""

    def test_without_a_database(self) -> None:
        """None does, in whatever order they come, and however old their images are."""
        for clients in (("pc", "PC"), ("PC", "pc")):
            assert folders(offered(*clients)) == sorted(["README.txt", tag("pc", "pc"), tag("PC", "PC")])

    def test_with_a_database(self) -> None:
        """The one with the lowest number, which has nothing to do with the alphabet; one without a number does not."""
        assert folders(offered("pc", "PC", facts=["pc", "PC"])) == sorted(["README.txt", "pc", tag("PC", "PC")])
        assert folders(offered("pc", "PC", facts=["PC", "pc"])) == sorted(["README.txt", "PC", tag("pc", "pc")])
        assert folders(offered("pc", "PC", facts=["pc"])) == sorted(["README.txt", "pc", tag("PC", "PC")])
        assert folders(offered("pc", "PC", facts=[])) == sorted(["README.txt", tag("pc", "pc"), tag("PC", "PC")])

    def test_what_has_no_disk_counts(self) -> None:
        """Also one whose folder is empty or unreadable, whose images are of no use, or who is only in the database."""
        tagged = ["README.txt", tag("pc", "pc")]
        assert folders(offered("pc", others=["PC"])) == tagged
        assert folders(offered("pc", facts=["PC", "pc"])) == tagged
        assert folders(offered("pc", facts=["pc", "PC"], others=["PC"])) == ["README.txt", "pc"]
        useless = image("PC", finished=False)
        catalog = plan(store(useless, image("pc", boot=ntfs_boot(64 << 20))), None)
        assert folders(catalog) == tagged
        unreadable = Skipped("PC", "PC", "cannot be listed: Permission denied", Kind.UNREADABLE)
        one = replace(store(image("pc", boot=ntfs_boot(64 << 20))), clients=("PC", "pc"), skipped=(unreadable,))
        assert folders(plan(one, None)) == tagged

    def test_a_changed_name_does_not_count(self) -> None:
        """Names that have to be changed disturb no plain one, wherever they stand in the database."""
        facts = ["Office-PC.", "office-pc:", "office-pc ", "office-pc", "office-pc~0123abcd"]
        for known in (facts, None):
            assert "office-pc" in folders(offered(*facts, facts=known))

    @pytest.mark.parametrize("name", ["README.txt", "readme.TXT"])
    def test_a_file_of_ours(self, name: str) -> None:
        """A client that is called like our file keeps its name, and our file is not there; two such clients get tags."""
        assert folders(offered("pc", name)) == sorted(["pc", name])
        assert Gardener().grow(offered("pc", name)).left_out == ("README.txt",)
        assert "README.txt" in folders(offered("pc", "README.txt", "readme.TXT"))
        assert ".synthfs" not in folders(offered("pc", ".synthfs", ".SYNTHFS"))

    def test_every_file_of_ours_gives_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever else there will be in the root does so as well."""
        from synthfs.plan import garden

        for module in (tree, garden):
            monkeypatch.setattr(module, "ROOT_FILES", ("README.txt", "index.html"))
        monkeypatch.setitem(garden._TEXTS, "index.html", lambda path: "page")
        assert folders(offered("pc")) == ["README.txt", "index.html", "pc"]
        assert folders(offered("Index.HTML")) == ["Index.HTML", "README.txt"]


def test_who_is_known(tmp_path: Path) -> None:
    """Every folder of a store, if there is an image in it or not, and every row of the database; no links, no files."""
    root, made = tmp_path / "urbackup", tmp_path / "backup_server.db"
    plant(os.fsencode(root / "pc"))
    (root / "empty").mkdir()
    (root / "broken" / f"{STAMP}_Image_C").mkdir(parents=True)
    (root / "link").symlink_to(root / "pc")
    (root / "file").touch()
    (root / "urbackup").mkdir()
    assert survey(str(root)).clients == dict.fromkeys(("broken", "empty", "pc"))
    filled(made, ["empty", "gone", "pc"])
    known = survey(str(root), str(made)).clients
    assert known == {"broken": None, "empty": 1, "gone": 2, "pc": 3}


class TestFilesOfOneClient:
    def test_volumes_that_differ_in_case(self) -> None:
        """Both get a tag, also while only one of them is complete: a file's name does not become another one's."""
        boot = ntfs_boot(64 << 20)
        small, large = (image("pc", f"_dev_vg_{letter}", boot=boot) for letter in "aA")
        for catalog in (plan(store(small, large), None), plan(store(small, replace(large, finished=False)), None)):
            grown = tree.walk(Gardener().grow(catalog).root)
            names = [path for path, node in grown if isinstance(node, tree.File) and node.disk]
            assert tag("pc/Image__dev_vg_a_260301-0201", small.name) + ".vhd" in names
            assert len({fold(name) for name in names}) == len(names)


    def test_one_name_everywhere(self) -> None:
        """What `show` tells and `sync` keeps is called as in the mount, tags included."""
        catalog = plan(store(image("lab:3", "x|", boot=ntfs_boot(64 << 20))), None)
        (disk,) = catalog.disks
        grown = tree.walk(Gardener().grow(catalog).root)
        (path,) = (path for path, node in grown if isinstance(node, tree.File) and node.disk and "new-identity" not in path)
        assert re.fullmatch(r"lab_3~[0-9a-f]{32}/Image_x__260301-0201~[0-9a-f]{32}\.vhd", path)
        assert [one["file"] for one in disk_facts(disk)["containers"]] == [path.partition("/")[2]]
        assert [new.frozen.place for new in plan_sync(catalog, [], {}, 1, Format.VHD).make] == [path]


def wrote(client: str, folder: str | None = None, inode: int = 1 << 61 | 5, began: int = 1) -> Session:
    """A session of a client's disk of C:, which began when its folder was called `folder`."""
    name = f"{client}/{STAMP}_Image_C/Image_C_{STAMP}.raw"
    return Session(inode.to_bytes(32, "big"), 0, inode, f"{folder or client}/Image_C_{STAMP}.vhd", name, 1, 1, began, False)


def shown(catalog: Catalog, *sessions: Session) -> dict[str, int]:
    """The inode of each file below the clients' folders."""
    grown = with_sessions(Gardener().grow(catalog), Sessions(sessions), catalog.disks)
    assert all(tree.find(grown, path) for path in grown.places.values())
    found = [(path, node.inode) for path, node in tree.walk(grown.root) if isinstance(node, tree.File) and "new-" not in path]
    for names in ([path for path, _ in found], [node.name for node in grown.root.entries]):
        assert len({fold(name) for name in names}) == len(names)
    return dict(found)


@pytest.mark.usefixtures("hashes")
class TestSessions:
    """What was written to a disk stays in reach, and in nobody else's folder."""

    def test_of_a_client_that_is_gone(self) -> None:
        """Its folder is another client's by now, which has all of its own; the session is beside it."""
        for heir in ("pc", "PC"):
            found = shown(offered(heir), left := wrote("Pc"))
            assert found[f"{heir}/Image_C_{STAMP}.vhd"] != left.inode
            (other,) = (path for path, inode in found.items() if inode == left.inode)
            assert re.fullmatch(rf"Pc~[0-9a-f]{{32}}/Image_C_{STAMP}\.vhd", other)

    def test_of_a_client_with_a_tag(self) -> None:
        """Where a name was everybody's before, the session of who lost it goes with its backup."""
        catalog = offered("pc", "PC", facts=["pc", "PC"])
        found = shown(catalog, wrote("PC"))
        assert sum(path.startswith("PC~") for path in found) == 2
        assert sum(path.startswith("pc/") for path in found) == 1

    def test_where_it_was(self) -> None:
        """While its folder is nobody's or its client's it stays there: with an old tag, and where nobody has the name."""
        for client, folder in (("lab:3", "lab_3~9623417a"), ("pc", "pc"), ("gone", "gone")):
            left = wrote(client, folder)
            assert shown(offered("lab:3", "pc"), left)[left.path] == left.inode

    def test_of_two_that_are_gone(self) -> None:
        """Of two whose clients are gone, the older one has the folder."""
        older, newer = wrote("pc", began=1), wrote("PC", inode=1 << 61 | 9, began=2)
        for sessions in ((older, newer), (newer, older)):
            found = shown(offered("desk"), *sessions)
            assert found[older.path] == older.inode
            assert newer.inode in found.values()

    def test_in_place_of_a_file_of_ours(self) -> None:
        """The folder of a client that was called like our file is a folder, and our file is not there."""
        found = shown(offered("pc"), left := wrote("readme.txt"))
        assert left.path in found
        assert "README.txt" not in found


SERVED = """
found = {}
for client in os.listdir(arguments[0]):
    file = f'{arguments[0]}/{client}/Image_C_260301-0201.vhd'
    if client not in ('README.txt', '.synthfs') and os.path.exists(file):
        fd = opened(file)
        found[client] = os.pread(fd, 64, 528384).hex()
        os.close(fd)
answer(found)
"""
"""The bytes of every client's disk that no other one has."""


def served(scope: Scope, target: Path) -> dict[str, str]:
    found: dict[str, str] = ask(scope, SERVED, target)
    return found


def filled(path: Path, clients: Iterable[str]) -> None:
    """A database with a row for each client, in that order, and for its image."""
    with Database(path) as made:
        for client in clients:
            number = made.add_client(client)
            place = f"/backup/{client}/{STAMP}_Image_C/Image_C_{STAMP}.raw"
            values = (number, place, "2026-03-01 01:01:00")
            made.execute("INSERT INTO backup_images (clientid, path, complete, backuptime) VALUES (?, ?, 1, ?)", *values)


def agree(scope: Scope, target: Path, found: Mapping[str, str], marks: Mapping[str, str], *options: Any) -> None:
    """`show` of what is mounted tells of the machine whose bytes are read there."""
    for folder, mark in found.items():
        told = scope.synthfs("show", target / folder / f"Image_C_{STAMP}.vhd", "--json", *options).stdout
        assert marks[json.loads(told)["client"]] == mark


class TestMounted:
    """A real mount of a store in which somebody wants to be somebody else."""

    VICTIM = "office-pc"
    OTHERS = ("Office-PC.", "office-pc:", "office-pc. .", "OFFICE-PC ", "office-pc~9623417a", "OFFICE-PC~9623417A")

    def test_nobody_takes_a_folder_over(self, scope: Scope) -> None:
        """At the victim's name are the victim's bytes, alone and beside all the others, with and without a database, whoever
        was there first; `show` agrees with the bytes at every name.
        """
        root, target = scope.path("urbackup"), scope.path("served")
        marks = {client: plant(os.fsencode(root / client)).hex() for client in (self.VICTIM, *self.OTHERS)}
        made = scope.path("database") / "backup_server.db"
        filled(made, (*reversed(self.OTHERS), self.VICTIM))
        names = []
        for options in ((), ("--database", made)):
            scope.synthfs_mount(root, *options, target=target)
            found = served(scope, target)
            assert found[self.VICTIM] == marks[self.VICTIM]
            assert sorted(found.values()) == sorted(marks.values())
            names.append(found)
            if not options:
                some = (name for name in found if name == self.VICTIM or name.startswith(("OFFICE-PC", "Office-PC")))
                agree(scope, target, {name: found[name] for name in some}, marks)
            scope.umount(target)
        # Nobody's name depends on the database but those that differ in case alone.
        assert names[0] == names[1]

    def test_twins(self, scope: Scope) -> None:
        """Who is lowest in the database keeps the name, in a mount that runs too; `show` agrees, also without a database."""
        root = scope.path("urbackup")
        made = scope.path("database") / "backup_server.db"
        marks = {"office-pc": plant(os.fsencode(root / "office-pc")).hex()}
        filled(made, ["office-pc", "Office-PC"])
        target = scope.synthfs_mount(root, "--database", made)
        assert served(scope, target) == {"office-pc": marks["office-pc"]}
        marks["Office-PC"] = plant(os.fsencode(root / "Office-PC")).hex()
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: len(served(scope, target)) == 2, 20.0)
        found = served(scope, target)
        assert found["office-pc"] == marks["office-pc"]
        agree(scope, target, found, marks)
        agree(scope, target, found, marks, "--database", made)
        scope.umount(target)
        scope.synthfs_mount(root, target=target)
        found = served(scope, target)
        assert "office-pc" not in found
        agree(scope, target, found, marks, "--database", made)

    def test_a_client_called_like_our_file(self, scope: Scope) -> None:
        """It is served under its name, by a daemon too, which answers; the log says once that our file is not there."""
        need.fuse()
        root, target = scope.path("urbackup"), scope.path("served")
        mark = plant(os.fsencode(root / "readme.TXT")).hex()
        log = scope.path("log") / "log"
        scope.synthfs("mount", "--daemon", "--log-file", log, root, target)
        assert served(scope, target) == {"readme.TXT": mark}
        number = json.loads(ask(scope, "answer(open(arguments[0]).read())", target / ".synthfs/status.json"))["pid"]
        for turn in range(2):
            plant(os.fsencode(root / f"another{turn}"))
            os.kill(number, signal.SIGHUP)
            assert wait_until(lambda: len(served(scope, target)) == turn + 2, 20.0)  # noqa: B023  # it is called at once
        assert log.read_text().count("README.txt of synthfs is left out") == 1
        scope.synthfs("umount", target)

    def test_a_session_of_a_client_that_is_gone(self, scope: Scope) -> None:
        """Whoever has its name now has its own disk there; the session is beside it, and is listed and discarded there."""
        writer = Writer.make(scope)
        target, model = writer.mount(), writer.model()
        path = target / Sample.C
        with open(path, "r+b", buffering=0) as file:
            file.seek(48 << 20)
            file.write(b"w" * 4096)
        with open(model, "r+b", buffering=0) as file:
            file.seek(48 << 20)
            file.write(b"w" * 4096)
        (writer.sample.root / "pc").rename(writer.sample.root / "PC")
        scope.server(target).send_signal(signal.SIGHUP)
        assert wait_until(lambda: (target / "PC").exists(), 20.0)
        heir = target / "PC" / path.name
        assert json.loads(scope.synthfs("show", heir, "--json").stdout)["client"] == "PC"
        (one,) = writer.sessions(target)
        assert re.fullmatch(rf"pc~[0-9a-f]{{32}}/{re.escape(path.name)}", one["path"])
        assert same(scope, target / one["path"], model)
        assert "its backup is gone" in scope.synthfs("show", target / one["path"], check=False).stderr
        scope.synthfs("discard", target / one["path"])
        assert not (target / one["path"]).exists()
        assert same(scope, heir, writer.sample.disk.path)
