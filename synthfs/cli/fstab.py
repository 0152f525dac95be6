"""`mount.synthfs`: what mount(8) runs for `mount -t synthfs STORE MOUNTPOINT` and for a line in /etc/fstab.

    /srv/urbackup  /srv/synthfs/disks  synthfs  allow_other,group=backup,nofail,_netdev  0 0

Options that are none of ours and mean nothing here (nofail, _netdev, x-…) are ignored, unknown ones refused.
"""

import sys

from synthfs.errors import MountError
from synthfs.host import files, mounts

# "rw" is what mount(8) passes where a line in fstab says nothing; only `writable=SCRATCH` lets disks be written to.
_IGNORED = frozenset((
    "ro", "rw", "nofail", "_netdev", "auto", "noauto", "user", "nouser", "users", "defaults",
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "relatime", "noatime",
))  # fmt: skip
FLAGS = frozenset(("allow_other",))
VALUES = frozenset((
    "owner", "group", "mode", "refresh", "writable", "min-free", "discard-after", "log-level", "log-file", "database",
))  # fmt: skip


def arguments(given: list[str]) -> list[str] | None:
    """The command line of `synthfs` that does what `mount.synthfs` was asked; None where nothing is to be done.

    Raises MountError for anything that is not understood.
    """
    words = iter(given)
    places: list[str] = []
    options: list[str] = []
    pretend = False
    for word in words:
        if word == "-o":
            options += next(words, "").split(",")
        elif word.startswith("-o"):
            options += word[2:].split(",")
        elif word == "-t":
            next(words, None)
        elif word.startswith("-"):
            if unknown := set(word[1:]) - set("snvfw"):
                raise MountError(f"mount.synthfs does not know -{'-'.join(sorted(unknown))}")
            pretend |= "f" in word
        else:
            places.append(word)
    if len(places) != 2:
        raise MountError("usage: mount.synthfs STORE MOUNTPOINT [-sfnv] [-o OPTION,…]")
    store, mountpoint = places
    running = mounts.at(mountpoint)
    # A dead mount is for `synthfs mount` to replace.
    if pretend or (running and running.store == files.real_directory(store) and not mounts.is_dead(running)):
        return None
    return ["mount", store, mountpoint, "--daemon", *_translated(options)]


def _translated(options: list[str]) -> list[str]:
    found: list[str] = []
    for option in filter(None, options):
        name, _, value = option.partition("=")
        name = "min-free" if name == "min_free" else name
        if name in FLAGS:
            found.append(f"--{name.replace('_', '-')}")
        elif name in VALUES and value:
            found += [f"--{name}", value]
        elif name not in _IGNORED and not name.startswith("x-"):
            raise MountError(f"mount.synthfs does not know the option {option!r}; `synthfs mount --help` lists what there is")
    return found


def main() -> None:
    from synthfs.cli.main import run

    run(lambda: arguments(sys.argv[1:]))
