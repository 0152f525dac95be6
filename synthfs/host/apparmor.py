"""Where AppArmor lets fusermount3 mount, as its profile says. Not for: root's mounts, which do without fusermount3.

The profile is read, and nobody asked whether it is in force. In a container that of the host is, which cannot be read there.
Source: apparmor.d(5), mount rules; AppArmor 4.1's profiles/apparmor.d/fusermount3, which Ubuntu has since 24.10.
"""

import contextlib
import re

PROFILE = "/etc/apparmor.d/fusermount3"
LOCAL = "/etc/apparmor.d/local/fusermount3"
"""What the profile includes, for rules of the machine's own."""

USUAL = ("$HOME", "/mnt", "/media", "/tmp", "/run/user/$UID")

_RULE = re.compile(r"^\s*(?:audit\s+|allow\s+)*mount\b(?P<conditions>.*)->\s*\"?(?P<place>[^\s\",]+)", re.MULTILINE)
_KIND = re.compile(r"\bfstype\s*=\s*(\S+)")
_OURS = ("@{fuse_types}", "fuse.*", "fuse.synthfs")
_VARIABLES = (("@{HOME}", "$HOME"), ("@{run}", "/run"), ("@{uid}", "$UID"))


def places() -> tuple[str, ...]:
    """The directories below which fusermount3 may mount; empty where there is no profile, or none that is understood."""
    found: dict[str, None] = {}
    for file in (PROFILE, LOCAL):
        with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as profile:
            for rule in _RULE.finditer(profile.read()):
                kind = _KIND.search(rule["conditions"])
                if kind is None or any(ours in kind[1] for ours in _OURS):
                    found[_readable(rule["place"])] = None
    return tuple(found)


def _readable(place: str) -> str:
    """The directory that a pattern such as `@{HOME}/**/` begins with, in a shell's words."""
    for variable, word in _VARIABLES:
        place = place.replace(variable, word)
    return re.split(r"[*?\[{]", place, maxsplit=1)[0].rstrip("/") or "/"


def refusal() -> str:
    """What to say where fusermount3 may not mount."""
    if allowed := places():
        only = f"AppArmor's profile {PROFILE} lets fusermount3 mount below {', '.join(allowed)} only"
    else:
        only = f"where AppArmor confines fusermount3, as Ubuntu does since 24.10, it mounts below {', '.join(USUAL)} only"
    return f"{only}; mount there, or allow another place in {LOCAL}"
