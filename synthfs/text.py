"""How outside text is shown: nothing in it acts on a terminal, ends a line, or means more to a shell than a word.

Names, paths and error texts come from backed-up machines and from file systems. Whatever goes out as text passes through
`printable`; a path in a command that somebody is to run passes through `quoted` as well. Not for: where text goes
(`cli/common`, `cli/terminal`, `host/logs`), JSON, and files for other programs, which have rules of their own.
"""

import shlex


def printable(text: str) -> str:
    """`text` on one line, with escapes for all that a terminal would act on or that could not be seen.

    Control characters and line ends of every kind, marks of writing direction and bytes that are no UTF-8 are among these.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def quoted(path: str) -> str:
    """`path` as one word for a shell, which is no option. What cannot be seen is escaped, so that it can be copied."""
    path = f"./{path}" if path.startswith("-") else path
    if path.isprintable():
        return shlex.quote(path)
    # POSIX.1-2024, 2.2.4 "Dollar-Single-Quotes": octal, since the number of hexadecimal digits is not bounded there.
    return f"$'{''.join(_in_dollar_quotes(c) for c in path)}'"


def _in_dollar_quotes(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
