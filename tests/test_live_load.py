"""Nobody waits for a scan, and nobody hangs: readers against refreshes, slow scans and a large store.

Not for: what a refresh shows (test_live). Units: bytes and seconds.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator

import pytest

import need
import sparse
from lab import Lab, Scope
from makeimage import HEADER
from makestore import Store
from onmount import PRELUDE, Sample, ask, start_server
from processes import Argument, wait_until
from stock import NEXT, STATUS, Stock, is_there, status

MIB = 1 << 20


@pytest.fixture(scope="module")
def stock(lab: Lab) -> Iterator[Stock]:
    need.fuse()
    with lab.scope("stock") as scope:
        yield Stock.make(scope)


TRAFFIC = """
root, limit, seed, *originals = arguments
known = {name: opened(path) for name, path in (pair.split('=', 1) for pair in originals)}
dice, end = random.Random(seed), time.monotonic() + float(limit)
wrong, counts, errors = [], dict(listed=0, looked=0, read=0), set()
while time.monotonic() < end and not wrong:
    try:
        names = os.listdir(root)
        counts['listed'] += 1
        for client in dice.sample(sorted(known), len(known)):
            directory = f'{root}/{client}'
            for name in [f'{directory}/nothing', directory, *(e.path for e in os.scandir(directory))]:
                failure(os.stat, name)
                counts['looked'] += 1
            original = known[client]
            length = os.fstat(original).st_size
            fd = opened(f'{directory}/Image_C_260301-0201.vhd', dice.choice((0, os.O_DIRECT)))
            try:
                for _ in range(12):
                    size = dice.choice((512, 4096, 65536, 262144))
                    at = dice.randrange(0, length - size) // 512 * 512
                    if os.pread(fd, size, at) != os.pread(original, size, at):
                        wrong.append([client, at, size])
                    counts['read'] += 1
            except OSError as error:
                errors.add(f'read: {error.strerror}')
            finally:
                os.close(fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.add(f'{error.errno} {error.strerror}')
answer([wrong, counts, sorted(errors)])
"""


class TestUnderLoad:
    def test_refreshes_against_readers(self, scope: Scope, stock: Stock) -> None:
        """Ten seconds of a scan every 50 ms while backups come and go: eight readers never hang and see no wrong byte."""
        store = Store(scope.path("store") / "urbackup")
        away = scope.path("away")
        clients = [f"pc{number}" for number in range(6)]
        for client in clients:
            store.client(client).backup(stock.xp, 1)
        target = scope.synthfs_mount(store.root, "--refresh", "0.05")
        pairs = [f"{client}={stock.xp.path}" for client in clients]
        readers = []
        for number in range(8):
            result = scope.path("reader") / "result.json"
            argv: list[Argument] = [sys.executable, "-I", "-S", "-c", PRELUDE + TRAFFIC, target, "10", str(number), *pairs]
            readers.append((scope.start(argv, log=result), result))
        moves, end = 0, time.monotonic() + 9.5
        while time.monotonic() < end:
            client = clients[moves % 3]
            here, there = store.root / client, away / client
            (here if here.exists() else there).rename(there if here.exists() else here)
            moves += 1
            time.sleep(0.07)
        for reader, _ in readers:
            reader.wait(20)
        results = [json.loads(result.read_text()) for _, result in readers]
        assert [wrong for wrong, _, _ in results] == [[]] * 8
        # A backup that went between look-up and open cannot be opened; one that is open can be read.
        assert {error for _, _, errors in results for error in errors} <= {"5 Input/output error"}
        totals = {key: sum(counts[key] for _, counts, _ in results) for key in ("listed", "looked", "read")}
        facts = status(scope, target)
        print(f"{moves} moves, {facts['refreshes']} refreshes, {totals}, errors {facts['errors']}")
        assert all(counts["read"] > 50 for _, counts, _ in results)
        assert facts["refreshes"] > 30
        assert facts["bugs"] == facts["failed_refreshes"] == 0
        assert facts["open_handles"] == 0

    def test_slow_scan_delays_nobody(self, scope: Scope, stock: Stock) -> None:
        """While a scan takes three seconds, looking and reading take milliseconds."""
        store = stock.store(scope)
        target, switch = scope.path("served"), scope.path() / "on"
        server, _ = start_server(scope, "slow-scan", store.root, target, switch, ["--refresh", "0"])
        switch.touch()
        source = """
file, raw, status, server = arguments
fd, took = opened(file), []
def refreshes():
    return json.load(open(status))['refreshes']
done = refreshes()
os.kill(int(server), 1)
for number in range(60):
    forget(fd, opened(raw))
    began = time.perf_counter()
    os.pread(fd, 65536, (1 << 20) + number * 65536)
    os.stat(file + str(number)) if os.path.exists(file + str(number)) else None
    os.listdir(os.path.dirname(file))
    took.append(time.perf_counter() - began)
    time.sleep(0.02)
during = refreshes() == done
while refreshes() == done:
    time.sleep(0.05)
answer([during, took])
"""
        raw = store.root / "pc/260301-0201_Image_C/Image_C_260301-0201.raw"
        during, took = ask(scope, source, target / Sample.C, raw, target / STATUS, str(server.pid))
        print(f"during a scan: median {statistics.median(took) * 1000:.2f} ms, most {max(took) * 1000:.2f} ms")
        assert during, "the scan was over before the reads were"
        assert statistics.median(took) < 0.05
        assert max(took) < 1.0

    def test_large_store(self, scope: Scope, stock: Stock) -> None:
        """With 1500 images, scanned without a pause, a read takes milliseconds, and the scan sees one more image."""
        store = stock.store(scope)
        (first,) = (store.root / "pc").iterdir()
        for number in range(1500):
            stamp = time.strftime("%y%m%d-%H%M", time.gmtime(1_600_000_000 + number * 86400))
            directory = store.root / f"pc{number % 30}" / f"{stamp}_Image_C"
            directory.mkdir(parents=True)
            for file in first.iterdir():
                copy = directory / file.name.replace("260301-0201", stamp)
                if file.suffix == ".raw":
                    sparse.create(copy, file.stat().st_size)
                    sparse.copy(file, copy, offset=0, length=4096, to=0)
                    sparse.copy(file, copy, offset=HEADER, length=4096, to=HEADER)
                else:
                    shutil.copy2(file, copy)
        target = scope.synthfs_mount(store.root, "--refresh", "0.01", timeout=60.0)
        facts = status(scope, target)
        assert facts["disks"] == 1501, facts["skipped"]
        source = """
fd, raw, took = opened(arguments[0]), opened(arguments[1]), []
for number in range(100):
    forget(fd, raw)
    began = time.perf_counter()
    os.pread(fd, 65536, (1 << 20) + number * 65536)
    took.append(time.perf_counter() - began)
    time.sleep(0.01)
answer(took)
"""
        took = ask(scope, source, target / Sample.C, first / "Image_C_260301-0201.raw")
        stock.backup(store, stamp="260302-0201")
        assert wait_until(lambda: is_there(scope, target / NEXT) == [True], 20.0, 0.1)
        after = status(scope, target)
        print(
            f"1500 images: a scan takes {after['refresh_seconds']:.2f} s, a read beside it "
            f"{statistics.median(took) * 1000:.1f} ms, at most {max(took) * 1000:.1f} ms"
        )
        assert after["refreshes"] > facts["refreshes"]
        assert statistics.median(took) < 0.1
        assert max(took) < 2.0
