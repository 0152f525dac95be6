"""Clients with names that are made to pass for another's, or to reach whoever reads them: what both soaks put into a store.

Not for: expectations of single names (`test_tree`, `test_hostile`).
"""

import os
import unicodedata

HOSTILE = (
    "pc0.",
    "pc1 ",
    "pc2:",
    ".pc0",
    "pc1. .",
    "pc0~01234567",
    "pc1~0123456789abcdef0123456789abcdef",
    "README.txt",
    "CON",
    "\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "two\nsynthfs[1]: a line of somebody else",
    "\u202egpj.0cp",
    os.fsdecode(b"pc2\xff\xfe\x80"),
    "n" * 250,
)
"""None of them is equal to `pc0` … `pc3` but for case: without a database neither would keep its name."""


def unsafe(text: str) -> str:
    """The characters of `text` that a terminal might act on, or that forge lines."""
    return "".join(c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
