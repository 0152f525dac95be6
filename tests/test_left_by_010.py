"""What synthfs 0.1.0 left is of use to this version: sessions, frozen disks, files, records, caches and settings.

Expected values: what 0.1.0 showed when the installation was made (make_installation_010 has it, and fixtures/0.1.0.json the
figures), and the original disks of that time. Not for: what 0.1.0 never wrote, or how disks are planned today. Bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installation import DISKS, FACTS, FROZEN, HOME, MADE, SETTINGS, STORE, Installation, installed, unpacked
from lab import Scope
from make_installation_010 import DYNAMIC, PLAIN, STAMP
from onmount import ask

DIFFERS = 11
FOOTER = 512
OLD: dict[str, dict[str, dict[str, Any]]] = json.loads(FACTS.read_text())
"""What 0.1.0 showed, by the place of each file: length, SHA-256, inode, time, and the unique id of a VHD."""

LAB = next(name for name in OLD["sessions"] if name.startswith("lab_3~")).partition("/")[0]
LONGER = {f"{folder}/{PLAIN}": client for folder, client in (("till", "till"), (LAB, "lab:3"))}
"""The MBR disks whose last partition ends inside of a MiB, and their machines: 0.1.0 ended them there, and now they end
with that MiB, as the original disks did."""

SAME = f"office-pc/{PLAIN}"
"""A GPT disk, about which nothing has changed."""

SMALL = [name for name, fact in OLD["frozen"].items() if fact["length"] < 64 << 20]
"""The frozen disks that are read; the others are generated ones of 256 MiB."""

GLOB = """
import glob
answer(glob.glob(arguments[0]))
"""

TAG = "[0-9a-f]" * 32

PREFIX = """
found = {}
for name, length in zip(arguments[1::2], arguments[2::2]):
    with open(f'{arguments[0]}/{name}', 'rb') as file:
        found[name] = hashlib.sha256(file.read(int(length))).hexdigest(), os.stat(file.fileno()).st_size
answer(found)
"""


@pytest.fixture
def place(scope: Scope) -> Iterator[Installation]:
    """A copy of the installation, at the place that its records name."""
    with installed(scope, unpacked(scope)) as installation:
        yield installation


def image(client: str) -> Path:
    return STORE / client / f"{STAMP}_Image_C" / f"Image_C_{STAMP}.raw"


def contents(facts: dict[str, dict[str, Any]], *keys: str) -> dict[str, list[Any]]:
    return {name: [fact[key] for key in keys] for name, fact in facts.items()}


def is_original(place: Installation, directory: Path, name: str, client: str) -> bool:
    """Whether a fixed VHD is the machine's original disk, with its very length."""
    original = OLD["originals"][client]
    found = ask(place.scope, PREFIX, place.seen(directory), name, str(original["length"]))
    return bool(found == {name: [original["sha256"], original["length"] + FOOTER]})


class TestSessions:
    def test_shown(self, place: Installation) -> None:
        """Each is shown at its old name with its own bytes, under its inode and UUID, and is listed; the log is empty."""
        with place.mounted():
            shown = place.what(DISKS, *OLD["sessions"])
            listed = place.synthfs("sessions", DISKS).stdout
        assert shown == OLD["sessions"]
        rows = {row.split()[0]: row for row in listed.splitlines()[1:]}
        assert rows.keys() == shown.keys()
        assert [name for name, row in rows.items() if "deleted" in row] == []
        assert [(" there " in rows[name], " changed " in rows[name]) for name in (SAME, *LONGER)] == [
            (True, False),
            (False, True),
            (False, True),
        ]
        assert [text for _, text in place.scope.logs() if "warning" in text.lower() or "not understood" in text] == []

    def test_new_disk_beside_it(self, place: Installation) -> None:
        """A disk that is laid out otherwise now is shown beside its session, under a name with a tag: the original disk. Where
        the client's folder has a longer tag by now, it is in that one, and `show` says of each what it is.
        """
        with place.mounted() as disks:
            for name, client in LONGER.items():
                other = self.today(place, disks, name) if LAB in name else f"{name.removesuffix('.vhd')}~{TAG}.vhd"
                (found,) = ask(place.scope, GLOB, disks / other)
                assert is_original(place, DISKS, str(Path(found).relative_to(disks)), client)
            told = place.synthfs("show", DISKS / self.today(place, disks, f"{LAB}/{PLAIN}"), "--json")
            assert json.loads(told.stdout)["image"].startswith("lab:3/")
            changed = place.synthfs("show", DISKS / LAB / PLAIN, "--json", check=False)
        assert (changed.returncode, "makes another disk now" in changed.stderr) == (3, True)
        assert str(image("lab:3")) in changed.stderr

    def today(self, place: Installation, disks: Path, name: str) -> str:
        """Where a disk is shown that 0.1.0 showed as `name`: the tag of the client's folder was of 8 digits then."""
        (folder,) = ask(place.scope, GLOB, disks / f"lab_3~{TAG}")
        return name.replace(LAB, Path(folder).name)

    def test_kept(self, place: Installation) -> None:
        """What is kept of each has the session's bytes, and a differencing disk would know it for its parent."""
        with place.mounted():
            for name in OLD["sessions"]:
                directory = HOME / "kept" / name.replace("/", "-")
                place.seen(directory).mkdir(parents=True)
                place.synthfs("keep", DISKS / name, "-o", directory)
            listed = place.synthfs("sessions", DISKS, "--json").stdout
        kept = {str(Path(name).parent): fact for name, fact in place.what(HOME / "kept").items()}
        wanted = {name.replace("/", "-"): fact for name, fact in OLD["sessions"].items()}
        assert contents(kept, "length", "sha256", "uuid") == contents(wanted, "length", "sha256", "uuid")
        assert json.loads(listed) == []

    def test_discarded(self, place: Installation) -> None:
        """Afterwards the disk is that of the backup as it is laid out now, under an inode that no client has cached."""
        renewed = f"till/new-identity/{PLAIN}"
        with place.mounted() as disks:
            for name in (SAME, *LONGER, renewed):
                place.synthfs("discard", DISKS / name)
            now = {self.today(place, disks, name): name for name in (SAME, *LONGER, renewed)}
            shown = {now[name]: fact for name, fact in place.what(DISKS, *now).items()}
            originals = {name: client for name, old in now.items() if (client := LONGER.get(old))}
            assert [name for name, client in originals.items() if not is_original(place, DISKS, name, client)] == []
        old = {name: (OLD["disks"][name], OLD["sessions"][name]) for name in shown}
        assert [name for name, fact in shown.items() if fact["inode"] in [before["inode"] for before in old[name]]] == []
        # To a differencing disk it is another parent, but where the bytes are the same.
        assert [name for name, fact in shown.items() if fact["uuid"] == old[name][0]["uuid"]] == [SAME]
        assert shown[SAME]["sha256"] == old[SAME][0]["sha256"]

    def test_discarded_before(self, place: Installation) -> None:
        """A disk whose session was discarded keeps the inode that it had after that."""
        with place.mounted():
            assert place.what(DISKS, *OLD["discarded"]) == OLD["discarded"]


class TestFrozen:
    def test_made_anew_once(self, place: Installation) -> None:
        """What is laid out otherwise now is made anew, and one line says why, beforehand too; then there is nothing to do."""
        wanted = {f"{folder}/{PLAIN}" for folder in ("till", LAB)}
        before, marks = place.what(FROZEN, *SMALL), place.marks(FROZEN)
        assert before == {name: OLD["frozen"][name] for name in SMALL}
        for options in (["--dry-run"], []):
            done = place.synthfs("--config", SETTINGS, "sync", STORE, "--json", *options)
            found = json.loads(done.stdout)
            assert (found["removed"], found["failed"], wanted - {*found["made_anew"]}) == (0, 0, set())
            assert found["files"]["made"] == [*found["made_anew"]]
            for name in wanted:
                (line,) = (line for line in done.stderr.splitlines() if name in line)
                assert "made anew: an earlier version of synthfs made it" in line
                assert found["made_anew"][name] in line
            assert (place.marks(FROZEN) == marks) == bool(options)
        after = place.what(FROZEN, *SMALL)
        assert place.marks(FROZEN).keys() == marks.keys()
        assert after[SAME] == before[SAME]
        for name, client in LONGER.items():
            assert is_original(place, FROZEN, name, client)
            assert after[name]["uuid"] != before[name]["uuid"]
        marks = place.marks(FROZEN)
        done = place.synthfs("--config", SETTINGS, "sync", STORE)
        assert done.stderr.splitlines()[-1].endswith(f": 0 made, 0 removed, {len(marks)} kept, 0 failed")
        assert "anew" not in done.stderr
        assert place.marks(FROZEN) == marks

    def test_parent_of_a_differencing_disk(self, place: Installation) -> None:
        """A frozen disk that was moved away before stays what it was, and the new one is made in its place."""
        name = f"till/{PLAIN}"
        place.seen(FROZEN / name).rename(place.seen(MADE / "parent.vhd"))
        place.synthfs("--config", SETTINGS, "sync", STORE)
        assert contents(place.what(MADE, "parent.vhd"), "sha256", "mtime_ns") == {
            "parent.vhd": [OLD["frozen"][name]["sha256"], OLD["frozen"][name]["mtime_ns"]]
        }
        assert is_original(place, FROZEN, name, "till")

    def test_compared_with_their_disks(self, place: Installation) -> None:
        """`verify` says of each file whether it is the disk of today: no longer, or still; and `show` shows that disk."""
        for client, folder, code in (("till", "till", DIFFERS), ("lab:3", LAB, DIFFERS), ("office-pc", "office-pc", 0)):
            done = place.synthfs("verify", image(client), "--against", FROZEN / folder / PLAIN, check=False)
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stderr
            assert json.loads(place.synthfs("show", image(client), "--json").stdout)

    def test_files_of_their_own(self, place: Installation) -> None:
        """What `materialize` made is what it was, and is told from today's disk."""
        place.synthfs("--config", SETTINGS, "sync", STORE)
        assert place.what(MADE) == OLD["made"]
        against = {"office-pc": Path(PLAIN).with_suffix(".vhdx"), "till": Path(PLAIN), "xp": Path(DYNAMIC)}
        codes = {
            client: place.synthfs("verify", image(client), "--against", MADE / client / file, check=False).returncode
            for client, file in against.items()
        }
        assert codes == {"office-pc": 0, "till": DIFFERS, "xp": DIFFERS}


class TestSettings:
    def test_configuration(self, place: Installation) -> None:
        """The settings are read: which formats a mount shows and where it writes, and whom `sync` leaves out."""
        with place.mounted() as disks:
            both = [disks / name for name in (SAME, f"office-pc/{DYNAMIC}")]
            shown = ask(place.scope, "answer([*map(os.path.exists, arguments)])", *both)
            status = ask(place.scope, "answer(json.load(open(arguments[0])))", disks / ".synthfs/status.json")
        assert (shown, status["scratch"]) == ([True, True], str(HOME / "scratch"))
        found = json.loads(place.synthfs("--config", SETTINGS, "sync", STORE, "--json").stdout)
        assert found["directory"] == str(FROZEN)
        assert not any(name.startswith("xp/") for name in found["files"]["made"])

    def test_caches(self, place: Installation) -> None:
        """Caches of 0.1.0 lead to the same answers as none, without a word."""
        answers = []
        for _ in range(2):
            shown = [place.synthfs("show", image(client), "--json") for client in ("till", "office-pc")]
            dry = ("--dry-run", "--json", "-o", HOME)
            shown.append(place.synthfs("materialize", image("xp"), "--format", "vhd-dynamic", *dry))
            listed = place.synthfs("list", STORE, "--all", "--json")
            answers.append([json.loads(done.stdout) for done in (*shown, listed)])
            assert [done.stderr for done in (*shown[:2], listed)] == [""] * 3
            for cache in place.seen(HOME / "cache").iterdir():
                cache.unlink()
        for answer in answers:
            answer[2].pop("seconds")
        assert answers[0] == answers[1]
