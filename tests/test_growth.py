"""Nothing grows: what clients hold, ask for again and again, or make fail costs a mount no memory that it does not get back.

Not for: descriptors of deleted backups (test_status), ten minutes of it (`scripts/soak`). Units: bytes.
"""

import gc
import weakref
from pathlib import Path

import manyimages
import need
from lab import Scope
from onmount import Sample, ask, end, start_server
from processes import Argument, wait_until
from synthfs.host import collector
from writer import Writer

MIB = 1 << 20


def memory(pid: int) -> int:
    """What a process has in memory (proc(5), VmRSS is in KiB)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def test_open_directories(scope: Scope) -> None:
    """Everybody who has a directory open shares its listing: 900 handles of 800 names cost less than 900 bare copies of it."""
    need.fuse()
    store = scope.path("store") / "urbackup"
    manyimages.fill(store, scope.path("workshop"), clients=1, images=300)
    target = scope.synthfs_mount(store, "--format", "vhd", "--format", "raw", "--format", "vmdk")
    server, folder = scope.server(target).pid, target / "pc000"
    names = ask(scope, "answer(len(os.listdir(arguments[0])))", folder)
    assert names > 600
    before = memory(server)
    source = """
held = [os.open(arguments[0], os.O_RDONLY | os.O_DIRECTORY) for _ in range(900)]
names = len(os.listdir(held[-1]))
answer([names, [line for line in open(f'/proc/{arguments[1]}/status') if line.startswith('VmRSS')][0].split()[1]])
"""
    found, kilobytes = ask(scope, source, folder, str(server))
    print(f"900 handles of {names} names: {before >> 20} to {int(kilobytes) >> 10} MiB")
    assert found == names
    # A copy for each is 8 bytes a name at the least.
    assert int(kilobytes) * 1024 - before < 900 * names * 8


def test_garbage_of_a_scan() -> None:
    """What has become garbage by the end of a scan is freed, however it hangs together; what is kept is left alone later."""

    class Node:
        """Refers to itself, as an error does to the frames that refer to it."""

        def __init__(self) -> None:
            self.itself = self

    before = weakref.ref(Node())
    with collector.paused():
        meanwhile = weakref.ref(Node())
        kept = [[number] for number in range(1000)]
        assert not gc.isenabled()
    assert gc.isenabled()
    assert (before(), meanwhile()) == (None, None)
    assert gc.get_freeze_count() > len(kept)
    gc.unfreeze()


def test_requests_that_fail(scope: Scope) -> None:
    """An error that reached a client leaves no cycle behind: opens, reads and first writes that fail in their threads."""
    need.fuse()
    need.root()
    writer = Writer.make(scope, "xfs")
    target, switch = scope.path("served"), scope.path() / "on"
    options: list[Argument] = ["--writable", writer.scratch, "--min-free", "99%", "--refresh", "0"]
    server, log = start_server(scope, "uncollected", writer.sample.root, target, switch, options)
    source = """
import mmap
file, raw, switch = arguments
fd, page = os.open(file, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
failure(os.open, file + '.no', 0)
open(switch, 'w').close()
while not os.path.exists(switch + '.ready'):
    time.sleep(0.01)
found = [failure(os.pwrite, fd, page, 1 << 20) for _ in range(100)]
os.truncate(raw, 1 << 20)
found += [failure(os.preadv, fd, (page,), 45 << 20) for _ in range(100)]
os.close(fd)
while not failure(lambda: os.close(os.open(file, 0))):
    time.sleep(0.01)
found += [failure(os.open, file, 0) for _ in range(100)]
os.unlink(raw)
found += [failure(os.open, file, 0) for _ in range(100)]
os.unlink(switch)
answer(found)
"""
    found = ask(scope, source, target / Sample.C, writer.sample.c.raw, switch)
    assert found == [*["ENOSPC"] * 100, *["EIO"] * 300]
    count = Path(f"{switch}.found")
    assert wait_until(count.exists, 10.0), log.read_text()
    print(f"400 requests that failed left {count.read_text()} objects to the cycle collector")
    # Each of those errors was in a cycle of 60 to 90.
    assert int(count.read_text()) < 400
    assert end(server) == 0
