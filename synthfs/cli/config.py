"""`/etc/synthfs.toml`: settings that a flag also sets, for everybody who does not want to repeat them.

    [mount]
    allow_other = true
    refresh = 300

A table for each verb, a key for each long option, with underscores. What the command line says has the last word.
"""

import os
import tomllib
from typing import Any

from synthfs.errors import FormatError, NotFoundError

USUAL_PLACE = "/etc/synthfs.toml"


def load(named: str | None) -> dict[str, Any]:
    """The settings of the file that was `named`, or of the usual one if it is there.

    Raises NotFoundError where the named one is missing, FormatError where a file is no TOML.
    """
    path = named or USUAL_PLACE
    if not os.path.exists(path):
        if named:
            raise NotFoundError(f"{named} does not exist")
        return {}
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise FormatError(f"{path} cannot be used: {error}") from error
