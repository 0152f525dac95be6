"""File names that Windows accepts over SMB, for clients and volumes called anything at all.

UrBackup takes client names from the backed-up machines and puts them on a Linux file system, which forbids only `/`. What
Windows does not take is replaced, and a name that had to change gets a tag derived from the original one, so that it stays
unique and the same. Names that only differ in case, which Windows takes for one, get the tag as well.

Source: Microsoft, "Naming Files, Paths, and Namespaces". Not for: paths inside the store, which stay as they are.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from synthfs import identity

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff\u2028\u2029\ufffe\uffff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_TAGGED = re.compile(r".*~[0-9a-f]{8}", re.DOTALL)
"""What a name with a tag looks like. One that was made to look so gets another tag, lest it be that of a second name."""

_MAX_BYTES = 200
"""File systems end at 255 bytes; what is left is room for a tag and the suffixes of containers."""


def windows_names(wanted: Mapping[str, str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For each key of `wanted` the name to show in place of its value.

    The names are unique without regard to case, among themselves and beside `taken`; tags derive from the keys.
    """
    plain = {key: _acceptable(name) for key, name in wanted.items()}
    count = Counter(_fold(name) for name in (*plain.values(), *taken))

    def keeps(key: str, name: str) -> bool:
        return name == wanted[key] and count[_fold(name)] == 1 and not _TAGGED.fullmatch(name)

    return {
        key: name if keeps(key, name) else f"{name}~{identity.digest('name', key).hex()[:8]}" for key, name in plain.items()
    }


def windows_name(wanted: str) -> str:
    """The name to show for `wanted` where no other is near."""
    return windows_names({wanted: wanted})[wanted]


def _acceptable(name: str) -> str:
    shown = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", name))
    shown = shown.encode("utf-8")[:_MAX_BYTES].decode("utf-8", "ignore")
    shown = shown.rstrip(". ") if shown.strip(". ") else shown.replace(".", "_").replace(" ", "_")
    # A leading dot hides a name on Samba, and the mount has one of its own.
    shown = f"_{shown[1:]}" if shown.startswith(".") else shown
    return f"_{shown}" if _RESERVED.fullmatch(shown) else shown


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
