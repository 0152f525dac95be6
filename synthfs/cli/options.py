"""The options of the verbs as text, wherever the text comes from: command line, settings file, /etc/fstab.

Each value is what the command line makes of it, so that all three know the same options, and refuse the same. Not for:
what an option does.
"""

import math
from typing import Any

import typer

from synthfs.host.shapes import is_usable

MOST = 10**9
"""Of seconds (31 years) and days: beyond that a number is a mistake, and no clock can add to it."""


def amount(text: Any) -> float:
    """A number of seconds or days; typer's error for what is none."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST:
        raise typer.BadParameter(f"{text!r} is no number from 0 to {MOST}")
    return number


def usable(parameter: Any, text: str) -> str:
    """The text again, if the parameter of a verb takes it. Raises ValueError, with the reason, if it does not."""
    if not is_usable(text):
        raise ValueError("has a character that cannot be there")
    try:
        parameter.type.convert(text, parameter, None)
    except typer.BadParameter as error:
        raise ValueError(error.message.rstrip(".")) from error
    return text
