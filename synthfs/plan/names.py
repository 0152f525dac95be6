"""File names that Windows accepts over SMB, for clients and volumes called anything at all.

UrBackup takes client names from the backed-up machines and puts them on a Linux file system, which forbids only `/`. So a
name is chosen by whoever has the machine, and must not become that of another one:

    1. A name that Windows takes is shown as it is. Each other one is changed, and gets a tag.
    2. Of names that Windows takes for one, since they differ only in case, one stays as it is: that of the lowest rank.
       Without ranks none does.
    3. What looks like a name with a tag gets one itself. So a name without a tag is nobody's but its owner's, whatever
       other names there are.
    4. A tag is 128 bits of a hash of the original name, and no two names are equal even where hashes are.

Source: Microsoft, "Naming Files, Paths, and Namespaces". Not for: paths inside the store, which stay as they are.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from synthfs import identity
from synthfs.model import ImageFacts

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff\u2028\u2029\ufffe\uffff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_TAGGED = re.compile(r".*~(?:[0-9a-f]{32}|[0-9a-f]{8})", re.DOTALL)
"""What the fold of a name with a tag looks like; synthfs 0.1.0 had tags of 8 digits."""

_TAG_BITS = 128

MAX_FOLDER = 200
"""Bytes of a folder's name without its tag. File systems end at 255 bytes."""

MAX_STEM = 160
"""Bytes of a disk's name without its tag: what is left is room for that of `plan/written`, and for suffixes."""


def windows_names(
    wanted: Mapping[str, str], taken: Iterable[str] = (), ranks: Mapping[str, int] | None = None, longest: int = MAX_FOLDER
) -> dict[str, str]:
    """For each key of `wanted` the name to show in place of its value.

    The names are unique without regard to case, among themselves and beside `taken`; tags derive from the keys. `ranks` are
    those of keys. What has a tag is `longest` bytes without it, at most.
    """
    ranks = ranks or {}
    plain = {key: _acceptable(name, longest) for key, name in wanted.items()}
    used = {fold(name) for name in taken}
    good: defaultdict[str, list[str]] = defaultdict(list)
    for key, name in plain.items():
        if name == wanted[key] and not _TAGGED.fullmatch(folded := fold(name)) and folded not in used:
            good[folded].append(key)
    keeping = {one for keys in good.values() if (one := _first(keys, ranks)) is not None}
    used.update(fold(plain[key]) for key in keeping)
    shown = {key: plain[key] for key in keeping}
    # In an order that no directory and no clock has a say in.
    for key in sorted(plain.keys() - keeping, key=lambda key: (ranks.get(key, float("inf")), key)):
        shown[key] = with_tag(plain[key], identity.digest("name", key), lambda name: fold(name) not in used)
        used.add(fold(shown[key]))
    return {key: shown[key] for key in wanted}


def owner(name: str, clients: Iterable[str]) -> str | None:
    """Which of `clients` a folder called `name` is of, whoever else is there: it has that name, or that with its own tag."""
    for client in clients:
        if name in (client, with_tag(_acceptable(client, MAX_FOLDER), identity.digest("name", client), lambda name: True)):
            return client
    return None


def stems(images: Iterable[ImageFacts]) -> dict[str, str]:
    """What the disks of one client are called, by the names of their images; what a container adds to it comes behind."""
    return windows_names({image.name: image.stem for image in images}, longest=MAX_STEM)


def with_tag(name: str, seed: bytes, is_free: Callable[[str], bool]) -> str:
    """`name` with a tag from `seed`, or with the next tag that makes it one that `is_free`."""
    tag = int.from_bytes(seed[: _TAG_BITS // 8], "big")
    while not is_free(found := f"{name}~{tag:0{_TAG_BITS // 4}x}"):
        tag = (tag + 1) % (1 << _TAG_BITS)
    return found


def fold(name: str) -> str:
    """What is the same for all names that Windows, Samba or Python takes for one, whatever their case."""
    name = unicodedata.normalize("NFC", name)
    # Not in one step: the dotless i is no `i`, but both are `I` in capitals.
    return unicodedata.normalize("NFC", name.casefold().upper().casefold())


def _first(keys: list[str], ranks: Mapping[str, int]) -> str | None:
    """Whose name stays as it is, of keys whose names are one to Windows."""
    if len(keys) == 1:
        return keys[0]
    return min((key for key in keys if key in ranks), key=lambda key: (ranks[key], key), default=None)


def _acceptable(name: str, longest: int) -> str:
    shown = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", name))
    shown = shown.encode("utf-8")[:longest].decode("utf-8", "ignore")
    shown = shown.rstrip(". ") if shown.strip(". ") else shown.replace(".", "_").replace(" ", "_")
    # A leading dot hides a name on Samba, and the mount has one of its own.
    shown = f"_{shown[1:]}" if shown.startswith(".") else shown
    return f"_{shown}" if _RESERVED.fullmatch(shown) else shown
