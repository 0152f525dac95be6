"""`/etc/synthfs.toml`: settings that a flag also sets, for everybody who does not want to repeat them.

    [mount]
    allow-other = true
    refresh = 300

A table for each verb, a key for each long option, with dashes or underscores. The command line has the last word; what no
verb knows is refused.
"""

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from synthfs.cli import options
from synthfs.errors import FormatError, NotFoundError
from synthfs.host.shapes import is_usable

USUAL_PLACE = "/etc/synthfs.toml"

_MOST = 65536
"""Bytes of the longest settings file: every option of every verb takes a tenth of that."""

Known = Mapping[str, Mapping[str, Any]]
"""For each verb the long options, without their dashes, and typer's parameters, which they set."""


def load(named: str | None, known: Callable[[], Known]) -> dict[str, dict[str, Any]]:
    """The settings of the file that was `named`, or of the usual one if it is there: for each verb, by parameter.

    `known` tells what there is to be set, and is asked only where there is a file. Raises NotFoundError where the named one is
    missing, FormatError where a file is no TOML or has what no verb knows or takes.
    """
    path = named or USUAL_PLACE
    if not is_usable(path) or not os.path.exists(path):
        if named:
            raise NotFoundError(f"{named} does not exist")
        return {}
    try:
        settings = tomllib.loads(_content(path))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise FormatError(f"{path} cannot be used: {why}; mend it, or name another with --config") from error
    there_are = known()
    return {verb: _translated(path, verb, table, there_are) for verb, table in settings.items()}


def _content(path: str) -> str:
    """The text of the file. Raises OSError, or ValueError for what no settings can be in; nothing is waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(kind := os.fstat(file.fileno()).st_mode) and not stat.S_ISCHR(kind):
            raise ValueError("it is no file")
        raw = file.read(_MOST + 1)
    if len(raw) > _MOST:
        raise ValueError(f"it is longer than {_MOST} bytes")
    return raw.decode()


def _translated(path: str, verb: str, table: Any, known: Known) -> dict[str, Any]:
    if verb not in known or not isinstance(table, dict):
        raise FormatError(f"{path}: [{verb}] is no verb; there are {', '.join(known)}")
    found: dict[str, Any] = {}
    for key, value in table.items():
        parameter = known[verb].get(key.replace("_", "-"))
        if parameter is None:
            raise FormatError(f"{path}: [{verb}] has no option {key}; there are {', '.join(known[verb])}")
        try:
            found[parameter.name] = _value(parameter, value)
        except ValueError as error:
            raise FormatError(f"{path}: [{verb}] {key}: {error}") from error
    return found


def _value(parameter: Any, value: Any) -> bool | str | list[str]:
    """What a verb is to get. Raises ValueError for what the command line would not take."""
    if isinstance(value, list) and parameter.multiple:
        return [options.usable(parameter, _text(one)) for one in value]
    if isinstance(value, bool) and parameter.is_flag:
        return value
    text = options.usable(parameter, _text(value))
    return [text] if parameter.multiple else text


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"a value of the kind {type(value).__name__} is not for this option")
    return str(value)
