"""`/etc/synthfs.toml`: settings that a flag also sets, for everybody who does not want to repeat them.

    [mount]
    allow-other = true
    refresh = 300

A table for each verb, a key for each long option, with dashes or underscores. The command line has the last word; what no
verb knows is refused.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from synthfs.errors import FormatError, NotFoundError

USUAL_PLACE = "/etc/synthfs.toml"


Options = Mapping[str, Mapping[str, str]]
"""For each verb the long options, without their dashes, and the parameters that they set."""


def load(named: str | None, known: Callable[[], Options]) -> dict[str, dict[str, Any]]:
    """The settings of the file that was `named`, or of the usual one if it is there: for each verb, by parameter.

    `known` tells what there is to be set, and is asked only where there is a file. Raises NotFoundError where the named one is
    missing, FormatError where a file is no TOML or has what no verb knows.
    """
    path = named or USUAL_PLACE
    if not os.path.exists(path):
        if named:
            raise NotFoundError(f"{named} does not exist")
        return {}
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise FormatError(f"{path} cannot be used: {error}") from error
    options = known()
    return {verb: _translated(path, verb, table, options) for verb, table in settings.items()}


def _translated(path: str, verb: str, table: Any, options: Options) -> dict[str, Any]:
    if verb not in options or not isinstance(table, dict):
        raise FormatError(f"{path}: [{verb}] is no verb; there are {', '.join(options)}")
    found: dict[str, Any] = {}
    for key, value in table.items():
        option = key.replace("_", "-")
        if option not in options[verb]:
            raise FormatError(f"{path}: [{verb}] has no option {key}; there are {', '.join(options[verb])}")
        found[options[verb][option]] = value
    return found
