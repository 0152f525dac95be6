"""Nothing grows: what clients hold, ask for again and again, or make fail costs a mount no memory that it does not get back.

Not for: descriptors of deleted backups (test_status), ten minutes of it (`scripts/soak`). Units: bytes.
"""

from pathlib import Path

import manyimages
import need
from lab import Scope
from onmount import ask

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
