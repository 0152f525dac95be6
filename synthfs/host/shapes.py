"""JSON that somebody else wrote: read within bounds, and looked at for its shape before anything is done with it.

    str, int, bool, None     a value of exactly that type: text that can be a path, a number of at most 64 bits
    (A, B)                   one of several shapes
    [A]                      a list, each item of which has shape A
    {"key": A, …}            an object; what is beside these keys may be anything

Not for: what the values mean. Lengths are bytes.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

Shape = Any
"""One of the four forms above. A key that ends in "?" may be left out."""

_MOST = 2**63
_DEPTH = 50
"""Far beyond what is written by us, far below what Python can print again."""


def parse(raw: bytes | str) -> Any:
    """The value that JSON text stands for.

    Raises ValueError for whatever cannot be read or written again: no JSON, nested too deeply, numbers that are none.
    """
    try:
        value = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply, or too large") from error
    level = [value]
    for _ in range(_DEPTH):
        level = [inner for outer in level for inner in _within(outer) if isinstance(inner, (list, dict))]
        if not level:
            return value
    raise ValueError("nested too deeply")


def fits(value: Any, shape: Shape) -> bool:
    """Whether `value` has the shape."""
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            fits(value[key], wanted) if (key := name.removesuffix("?")) in value else name.endswith("?")
            for name, wanted in shape.items()
        )
    if shape is None:
        return value is None
    if type(value) is not shape:
        return False
    return is_usable(value) if shape is str else abs(value) < _MOST if shape is int else True


def is_usable(text: str) -> bool:
    """Whether text can be a path or an argument: no NUL, and nothing that no bytes stand for (os.fsencode)."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _within(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number")
    return number
