"""Over SMB: a disk of the mount beside a plain file with the same bytes, in one share of one smbd, read through libsmbclient.

The share is the one that `synthfs share` prints, for a directory that holds both. Units: bytes and seconds.
Source: smb.conf(5), libsmbclient.h.
"""

import ctypes
from collections.abc import Iterator
from functools import partial

import smbd
from bench.floor import build, serve
from bench.rig import Rig, forget, warm
from bench.row import FLOOR, OURS, Goal, Row
from lab import MIB
from makedisk import BASIC_DATA, Partition, make_disk
from makestore import Store
from processes import in_child

PLAIN = "plain file"
_AGAIN = ", read before"
_DATA_AT = 64 * MIB

# In a child: libsmbclient is not to stay in this process, and a child can be given up. Its shape is that of libsmbclient.h.
_CLIENT = """
import ctypes, random, sys, time
url, user, password, configuration, how = sys.argv[1:6]
start, length, seconds = int(sys.argv[6]), int(sys.argv[7]), float(sys.argv[8])
library = ctypes.CDLL("libsmbclient.so.0", use_errno=True)
PROMPT = ctypes.CFUNCTYPE(None, *[ctypes.c_char_p] * 2, *[ctypes.POINTER(ctypes.c_char), ctypes.c_int] * 3)
def asked(server, share, workgroup, w, name, n, secret, s):
    ctypes.memmove(name, user.encode() + b"\\0", len(user) + 1)
    ctypes.memmove(secret, password.encode() + b"\\0", len(password) + 1)
prompt = PROMPT(asked)
for name, result, arguments in (
    ("smbc_new_context", ctypes.c_void_p, []), ("smbc_init_context", ctypes.c_void_p, [ctypes.c_void_p]),
    ("smbc_setFunctionAuthData", None, [ctypes.c_void_p, PROMPT]), ("smbc_set_context", ctypes.c_void_p, [ctypes.c_void_p]),
    ("smbc_setConfiguration", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    ("smbc_setPort", None, [ctypes.c_void_p, ctypes.c_uint16]),
    ("smbc_open", ctypes.c_int, [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    ("smbc_lseek", ctypes.c_int64, [ctypes.c_int, ctypes.c_int64, ctypes.c_int]),
    ("smbc_read", ctypes.c_ssize_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t])):
    getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
context = library.smbc_new_context()
library.smbc_setConfiguration(context, configuration.encode())
library.smbc_setFunctionAuthData(context, prompt)
assert library.smbc_init_context(context)
library.smbc_set_context(context)
fd = library.smbc_open(url.encode(), 0, 0)
assert fd >= 0, (url, ctypes.get_errno())
buffer = ctypes.create_string_buffer(1 << 20)
dice = random.Random(7)
done = count = 0
began = time.monotonic()
if how == "sequential":
    library.smbc_lseek(fd, start, 0)
    while done < length:
        got = library.smbc_read(fd, buffer, 1 << 20)
        assert got > 0
        done += got
    print(done / (1 << 20) / (time.monotonic() - began))
else:
    while time.monotonic() - began < seconds:
        library.smbc_lseek(fd, start + dice.randrange(length // 4096) * 4096, 0)
        assert library.smbc_read(fd, buffer, 4096) == 4096
        count += 1
    print(count / (time.monotonic() - began))
"""


def rows(rig: Rig) -> Iterator[Row]:
    if not rig.has("over SMB", "smbd", "smbpasswd", "mkntfs", "fincore"):
        return
    try:
        ctypes.CDLL("libsmbclient.so.0")
    except OSError:
        rig.skip("over SMB", "libsmbclient.so.0 is not installed (apt install libsmbclient)")
        return
    with rig.scope.scope("smb") as scope:
        volume = Partition(1, MIB, _DATA_AT + rig.data + 16 * MIB, BASIC_DATA, fs="ntfs", data=((_DATA_AT, rig.data),))
        disk = make_disk(scope.path() / "original.img", volume, length=volume.end + 2 * MIB)
        image = Store(scope.path("store") / "urbackup").client("pc").backup(disk, 1)
        shared = scope.path("shared")
        target = shared / "served"
        target.mkdir()
        scope.synthfs_mount(image.raw.parents[2], "--allow-other", "--group", smbd.GROUP, target=target)
        disk_file = target / "pc" / f"{image.raw.stem}.vhd"
        plain = shared / "plain.vhd"
        scope.run(["cp", "--sparse=never", disk_file, plain])
        plain.chmod(0o644)
        mounted = {OURS: disk_file}
        if server := build(rig, scope):
            (shared / "floor").mkdir()
            mounted[FLOOR], _ = serve(scope, server, shared / "floor", disk_file.stat().st_size)
        files = mounted | {name + _AGAIN: file for name, file in mounted.items()} | {PLAIN: plain}
        stanza = smbd.stanza(scope, target).replace(str(target), str(shared))
        share = smbd.start(scope, stanza)
        backing = [image.raw, plain]

        def measure(how: str, name: str) -> float:
            path = files[name].relative_to(shared)
            url = f"smb://127.0.0.1:{share.port}/{share.name}/{path}"
            start, length = volume.start + _DATA_AT, rig.data
            words = (url, smbd.USER, smbd.PASSWORD, share.configuration, how, str(start), str(length), str(rig.seconds))
            return float(in_child(_CLIENT, *words, timeout=120))

        def prepare(name: str) -> None:
            if name in mounted:
                forget(files[name])
            elif name.endswith(_AGAIN):
                measure("sequential", name)
            warm(scope, backing)

        goals = (Goal("at least", 0.95, (PLAIN,)), Goal("at least", 0.95, (PLAIN,), of=OURS + _AGAIN))
        for how, title, unit in (("sequential", "sequential, 1 MiB", "MiB/s"), ("random", "random 4 KiB", "IOPS")):
            contestants = {name: partial(measure, how, name) for name in files}
            yield Row(f"over SMB, {title}", unit, contestants, goals=goals, prepare=prepare)
