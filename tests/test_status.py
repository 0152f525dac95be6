"""What a mount says of itself: status.json, metrics and `synthfs status`.

Not for: what systemd is told (test_service). Source: Prometheus' text exposition format 0.0.4.
"""

import json
import re
import sys
from collections.abc import Iterator

import pytest

import need
from lab import Lab, Scope
from makeimage import HEADER
from onmount import Sample, ask
from stock import STATUS, Stock, refresh, status

MIB = 1 << 20


@pytest.fixture(scope="module")
def stock(lab: Lab) -> Iterator[Stock]:
    need.fuse()
    with lab.scope("stock") as scope:
        yield Stock.make(scope)


class TestStatus:
    def test_counts(self, scope: Scope, stock: Stock) -> None:
        """What is read, opened, refreshed, skipped and goes wrong is counted, in status.json and metrics alike."""
        store = stock.store(scope)
        other = store.client("laptop").backup(stock.xp, 1)
        stock.backup(store, stamp="260305-0201", complete=False)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        before = status(scope, target)
        assert (before["disks"], before["pid"], before["store"]) == (2, scope.server(target).pid, str(store.root))
        assert sum(before["skipped"].values()) == 1
        source = """
file, other, raw, status, metrics = arguments
fd = opened(file, os.O_DIRECT)
read = sum(len(os.pread(fd, 65536, at)) for at in range(1 << 20, 9 << 20, 65536))
os.truncate(raw, 4096)
why = failure(os.open, other, os.O_RDONLY)
answer([read, why, json.load(open(status)), open(metrics).read()])
"""
        paths = [target / Sample.C, target / "laptop/Image_C_260301-0201.vhd", other.raw, target / STATUS]
        read, why, after, metrics = ask(scope, source, *paths, target / ".synthfs/metrics")
        assert (read, why) == (8 * MIB, "EIO")
        assert after["read_bytes"] >= before["read_bytes"] + read
        assert after["reads"] >= before["reads"] + 8
        assert after["errors"] == before["errors"] + 1
        # The status was written at its look-up, before it was open itself.
        assert after["open_handles"] == 1
        assert sum(after["buckets"]) == after["reads"]
        values = prometheus(metrics)
        assert values["synthfs_disks"] == 2
        assert values["synthfs_errors_total"] == after["errors"]
        assert values["synthfs_read_bytes_total"] >= after["read_bytes"]
        assert values['synthfs_read_seconds_bucket{le="+Inf"}'] == values["synthfs_read_seconds_count"]
        assert sum(value for name, value in values.items() if name.startswith("synthfs_skipped{")) == 1
        refresh(scope, target)
        assert status(scope, target)["refreshes"] == before["refreshes"] + 1

    def test_bytes_held(self, scope: Scope, stock: Stock) -> None:
        """The length of a deleted backup counts as held for as long as somebody has it open."""
        store = stock.store(scope)
        target = scope.synthfs_mount(store.root, "--refresh", "0")
        source = """
file, raw, status = arguments
held = lambda: json.load(open(status))['deleted_bytes_held']
fd = opened(file)
found = [held()]
os.unlink(raw)
found.append(held())
os.close(fd)
time.sleep(0.3)
answer([*found, held()])
"""
        raw = store.root / "pc/260301-0201_Image_C/Image_C_260301-0201.raw"
        length = stock.two.ntfs_length(1) + HEADER
        assert ask(scope, source, target / Sample.C, raw, target / STATUS) == [0, length, 0]

    def test_command(self, scope: Scope, stock: Stock) -> None:
        """`synthfs status --json` lists this mount with its process and counters, and a dead one as what it is."""
        store = stock.store(scope)
        target, dead = scope.synthfs_mount(store.root), scope.synthfs_mount(store.root)
        scope.server(dead).kill()
        scope.server(dead).wait(10)
        done = scope.synthfs("status", "--json", check=False)
        listed = {mount["mountpoint"]: mount for mount in json.loads(done.stdout)}
        assert done.returncode == 1
        mine = listed[str(target)]
        assert (mine["answers"], mine["pid"], mine["disks"], mine["store"]) == (
            True, scope.server(target).pid, 1, str(store.root),
        )  # fmt: skip
        assert (listed[str(dead)]["answers"], listed[str(dead)]["store"]) == (False, str(store.root))
        # On one line, however narrow the terminal.
        done = scope.synthfs("status", env={"COLUMNS": "40"}, check=False)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert [line for line in lines if str(target) in line and str(scope.server(target).pid) in line]
        assert [line for line in lines if str(dead) in line and "does not answer" in line]
        # The mount still answers when its store is gone. Of one that this user may not look at, nothing is said.
        opened = scope.synthfs_mount(store.root, "--allow-other", "--mode", "0444")
        store.root.parent.chmod(0o700)
        done = scope.synthfs("status", user="nobody", check=False)
        assert [line for line in done.stdout.splitlines() if str(opened) in line and str(scope.server(opened).pid) in line]
        assert "is not there" not in done.stderr
        store.root.rename(store.root.with_name("elsewhere"))
        said = scope.synthfs("status", check=False).stderr.splitlines()
        assert [line for line in said if f"{store.root} is not there" in line and str(target) in line]
        assert not [line for line in said if str(dead) in line]

    def test_mount_of_somebody_else(self, scope: Scope, stock: Stock) -> None:
        """A mount that does not let this user in is alive: nobody is told to clear it away."""
        target = scope.synthfs_mount(stock.store(scope).root)
        listing = scope.synthfs("status", "--json", user="nobody", check=False)
        listed = {one["mountpoint"]: one for one in json.loads(listing.stdout)}
        assert (listed[str(target)]["answers"], listed[str(target)]["closed"]) == (False, True)
        lines = scope.synthfs("status", user="nobody", check=False).stdout.splitlines()
        assert [line for line in lines if str(target) in line and "not open to you" in line]
        done = scope.synthfs("sessions", target, user="nobody", check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (9, 1)
        assert "clears it away" not in done.stderr


def test_interrupted_while_it_starts(scope: Scope) -> None:
    """Ctrl-C while Python still reads the program is a line and its exit code, as it is later."""
    source = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from synthfs.__main__ import main
main()
"""
    done = scope.run([sys.executable, "-c", source], check=False)
    assert (done.returncode, done.stderr) == (130, "synthfs: interrupted\n")


class TestStdout:
    @pytest.mark.parametrize("options", [("--version",), ("status", "--json"), ("--help",)])
    def test_full(self, scope: Scope, options: tuple[str, ...]) -> None:
        """An answer that does not fit where it goes is one line, and no bug."""
        argv = ["sh", "-c", 'exec "$0" -m synthfs "$@" >/dev/full', sys.executable, *options]
        done = scope.run(argv, check=False)
        assert done.returncode == 8, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "No space left on device" in done.stderr


def prometheus(text: str) -> dict[str, float]:
    """The samples of a text in exposition format 0.0.4; every line has to be one of its kinds."""
    kinds: dict[str, str] = {}
    values: dict[str, float] = {}
    for line in text.splitlines():
        if header := re.fullmatch(r"# TYPE ([a-z_]+) (counter|gauge|histogram)", line):
            kinds[header[1]] = header[2]
        elif not re.fullmatch(r"# HELP [a-z_]+ \S.*", line):
            sample = re.fullmatch(r'([a-z_]+)(\{[a-z]+="(?:[^"\\\n]|\\.)*"\})? (\S+)', line)
            assert sample, line
            name = re.sub(r"_(bucket|sum|count)$", "", sample[1])
            assert sample[1] in kinds or kinds.get(name) == "histogram", line
            values[sample[1] + (sample[2] or "")] = float(sample[3])
    assert text.endswith("\n")
    return values
