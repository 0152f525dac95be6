"""`mount.synthfs`: what mount(8) runs for `mount -t synthfs STORE MOUNTPOINT` and for a line in /etc/fstab.

    /srv/urbackup  /srv/synthfs/disks  synthfs  allow_other,group=backup,nofail,_netdev  0 0

With `fuse.synthfs` as type mount.fuse3(8) runs `synthfs STORE MOUNTPOINT -o OPTIONS`, which comes here too.

Each option of `synthfs mount` has a word of its name, with dashes or underscores. Of an option that is there twice the last
one counts, as with mount(8); `format` adds up, as in `synthfs mount`. What contradicts itself is refused, so that nobody has
to know which of two counts where a mount is opened or written to. A comma in a value is written `\\,`, or within `"`. What is
for mount(8) or systemd is ignored where it means nothing here, and what nobody knows is refused.
"""

import re
import sys
from typing import Any

from synthfs.cli.main import options_of, run
from synthfs.cli.options import usable
from synthfs.errors import MountError
from synthfs.host import files, mounts
from synthfs.host.shapes import is_usable

_IGNORED = frozenset((
    # for mount(8) and systemd: when to mount, and who may
    "auto", "noauto", "nofail", "_netdev", "defaults", "user", "nouser", "users", "nousers", "owner", "noowner", "nogroup",
    # what every mount here is: there are no devices, and nothing can be executed
    "suid", "nosuid", "dev", "nodev", "exec", "noexec",
    # of times and buffers that are kept nowhere
    "async", "atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime", "diratime", "nodiratime", "lazytime",
    "nolazytime", "silent", "loud", "default_permissions",
))  # fmt: skip
_IGNORED_VALUES = frozenset(("user", "comment", "uhelper", "helper"))
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_OPTION = re.compile(r'((?:\\.|"[^"]*"?|[^,"\\]|\\$)*)(?:,|$)', re.DOTALL)


def arguments(given: list[str]) -> list[str] | None:
    """The command line of `synthfs` that does what `mount.synthfs` was asked; None where nothing is to be done.

    Raises MountError for anything that is not understood.
    """
    words = iter(given)
    places: list[str] = []
    options: list[str] = []
    pretend = False
    for word in words:
        if word.startswith("-o"):
            options += _split(word[2:] or next(words, ""))
        elif word == "-t":
            next(words, None)
        elif word.startswith("-"):
            if unknown := set(word[1:]) - set("snvfrw"):
                raise MountError(f"mount.synthfs does not know -{'-'.join(sorted(unknown))}")
            pretend |= "f" in word
            options += ["ro"] if "r" in word else []
        else:
            places.append(word)
    if len(places) != 2 or not all(map(is_usable, places)):
        raise MountError("usage: mount.synthfs STORE MOUNTPOINT [-sfnvrw] [-o OPTION,…]")
    translated = _translated(options)
    store, mountpoint = places
    running = mounts.at(mountpoint)
    # A dead mount is for `synthfs mount` to replace.
    if pretend or (running and running.store == files.real_directory(store) and not mounts.is_dead(running)):
        return None
    return ["mount", *translated, "--daemon", "--", store, mountpoint]


def _split(text: str) -> list[str]:
    """The options of a list, as libmount takes it apart, each without the quotes and the escapes that protected its commas."""
    found, at = [], 0
    while at < len(text):
        option = _OPTION.match(text, at)
        assert option  # it can be empty
        found.append(re.sub(r'\\([,"\\])|"', lambda each: each[1] or "", option[1]))
        at = max(option.end(), at + 1)
    return found


def _translated(options: list[str]) -> list[str]:
    """The options of `synthfs mount`. Raises MountError for one that is not known, has no sense, or contradicts another."""
    known = {"--format" if parameter.multiple else f"--{name}": parameter for name, parameter in options_of("mount").items()}
    flags: dict[str, bool] = {}
    values: dict[str, list[str]] = {}
    read_only = None
    for option in filter(None, options):
        name, is_value, value = option.partition("=")
        word, opposite = (f"--{each.replace('_', '-')}" for each in (name, name.removeprefix("no")))
        if option in ("ro", "rw"):
            # "rw" is what mount(8) passes where nothing is said; only `writable=SCRATCH` lets disks be written to.
            read_only = option == "ro"
        elif word in known and known[word].is_flag:
            _agree(flags, word, _flag(option, value) if is_value else True)
        elif word not in known and opposite in known and known[opposite].is_flag and not is_value:
            _agree(flags, opposite, False)
        elif word in known and is_value:
            values[word] = [*(values.get(word, ()) if known[word].multiple else ()), _value(option, known[word], value)]
        elif not _is_for_others(name, is_value):
            raise MountError(f"mount.synthfs does not know the option {option!r}; `synthfs mount --help` lists what there is")
    if read_only and "--writable" in values:
        raise MountError("ro contradicts writable=…; leave one of them out, here or in /etc/fstab")
    if not flags.pop("--daemon", True):
        raise MountError("daemon=no: mount(8) waits for its helper to end; `synthfs mount` stays in the foreground")
    # What is not so here is not so, whatever the settings file says.
    read_only_words = ["--writable="] if read_only else []
    words = [word if on else known[word].secondary_opts[0] for word, on in flags.items()]
    return words + read_only_words + [f"{word}={one}" for word, each in values.items() for one in each]


def _agree(flags: dict[str, bool], word: str, on: bool) -> None:
    if flags.setdefault(word, on) != on:
        name = word[2:].replace("-", "_")
        raise MountError(f"{name} is there, and its opposite too; leave one of them out, here or in /etc/fstab")


def _flag(option: str, value: str) -> bool:
    if value.lower() in _YES:
        return True
    if value.lower() in _NO:
        return False
    raise MountError(f"{option}: say yes or no, or leave it out")


def _value(option: str, parameter: Any, value: str) -> str:
    if not value:
        raise MountError(f"{option} needs a value")
    try:
        return usable(parameter, value)
    except ValueError as error:
        raise MountError(f"{option}: {error}; `synthfs mount --help` lists what there is") from error


def _is_for_others(name: str, is_value: str) -> bool:
    """Whether an option is one that mount(8) or systemd understand, and that says nothing to us."""
    return name in (_IGNORED_VALUES if is_value else _IGNORED) or name.startswith(("x-", "X-"))


def main() -> None:
    run(lambda: arguments(sys.argv[1:]))
