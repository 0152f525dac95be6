"""The front door: the verbs, and how each failure leaves the house.

Exit codes: 0 done; 1 and 3 to 10 an error that its one line explains (`errors.py` has the list); 2 the command line was
not understood; 70 a bug, with a traceback; 130 interrupted.
"""

import io
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from synthfs import __version__
from synthfs.cli import config
from synthfs.cli.common import answer, say, say_bug
from synthfs.errors import FullError, SynthfsError
from synthfs.host import publish, streams
from synthfs.host.limits import lacking
from synthfs.host.shapes import is_usable
from synthfs.text import quoted

BUG, INTERRUPTED = 70, 130

_UsageError: Any = typer.BadParameter.__base__
"""Of click, or from Typer 0.28 on of Typer itself."""

VERBS = {
    "list": "list.list_disks",
    "show": "show.show",
    "mount": "mount.mount",
    "umount": "mount.umount",
    "status": "status.status",
    "sessions": "sessions.sessions",
    "discard": "sessions.discard",
    "keep": "sessions.keep",
    "share": "share.share",
    "doctor": "doctor.doctor",
    "sync": "sync.sync",
    "materialize": "materialize.materialize",
    "boot": "boot.boot",
    "verify": "verify.verify",
}
"""In the order in which help lists them: where each is, below `synthfs.cli`."""

_STYLE: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}


class UsageError(SynthfsError):
    """The command line was not understood."""

    exit_code = 2


class _Verbs(TyperGroup):
    """Imports a verb when it is asked for: to import all fourteen takes a fifth of what a command takes to start."""

    def list_commands(self, context: typer.Context) -> list[str]:  # type: ignore[override]  # what Typer hands on
        return [*VERBS]

    def get_command(self, context: typer.Context, name: str) -> Any:  # type: ignore[override]
        return verb(name) if name in VERBS else None


@cache
def verb(name: str) -> Any:
    """The command that a verb is, as Typer makes it: with its parameters and its help."""
    module, function = VERBS[name].split(".")
    alone = typer.Typer(add_completion=False, **_STYLE)
    alone.command(name)(getattr(import_module(f"synthfs.cli.{module}"), function))
    return typer.main.get_command(alone)


app = typer.Typer(cls=_Verbs, no_args_is_help=True, **_STYLE)


def _version(wanted: bool) -> None:
    if wanted:
        answer(f"synthfs {__version__}")
        raise typer.Exit


@app.callback()
def synthfs(
    context: typer.Context,
    settings: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help=f"Instead of {config.USUAL_PLACE}.", show_default=False)
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """UrBackup's RAW image backups as whole disks that Windows can attach."""
    context.default_map = config.load(settings, lambda: {name: options_of(name) for name in VERBS})


def options_of(name: str) -> dict[str, Any]:
    """The long options of a verb, without their dashes, each with its parameter."""
    return {option[2:]: parameter for parameter in verb(name).params for option in parameter.opts if option[:2] == "--"}


def main() -> None:
    run(lambda: sys.argv[1:])


def run(arguments: Callable[[], list[str] | None]) -> None:
    """Runs the command line that `arguments` gives, if any, and ends the process with the right code."""
    streams.complete()
    # Not every terminal can show every name: it gets a question mark rather than an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        words = arguments()
        if words is not None:
            _answer(words)
    except SynthfsError as error:
        say(f"synthfs: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("synthfs: interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Of what fails in a place that a verb writes to, the verb makes such an error itself: what is left is stdout.
        if isinstance(error, OSError) and isinstance(publish.unwritable(error, ""), FullError):
            say(f"synthfs: the answer cannot be written out: {error.strerror}; make room, or write it elsewhere")
            _forget_the_rest()
            sys.exit(FullError.exit_code)
        if lack := lacking(error):
            say(f"synthfs: {lack}")
            sys.exit(lack.exit_code)
        say_bug()
        sys.exit(BUG)


def _answer(words: list[str]) -> None:
    """Runs the verb. What it printed is out afterwards: a failure at the exit of the interpreter would be nobody's."""
    if bad := [word for word in words if not is_usable(word)]:
        raise UsageError(f"{bad[0]!r} has a character that cannot be there")
    try:
        # It would print its errors itself, with whatever the words hold.
        code = app(words, prog_name="synthfs", standalone_mode=False)
    except _UsageError as error:
        _refuse(error, words)
    finally:
        # There is none where the caller closed it.
        if sys.stdout:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                _forget_the_rest()
    # Typer turns Ctrl-C into this, without a word.
    if code == INTERRUPTED:
        say("synthfs: interrupted")
    if code:
        sys.exit(code)


def _refuse(error: Any, words: list[str]) -> NoReturn:
    """Ends with what Typer says of a command line that it does not understand, in one line; of an empty one with the help."""
    if not words:
        for line in error.format_message().split("\n"):
            say(line)
        sys.exit(UsageError.exit_code)
    manual = f"`synthfs {quoted(error.ctx.info_name)} --help`" if error.ctx and error.ctx.parent else "`synthfs --help`"
    raise UsageError(f"{error.format_message().rstrip('.')}; {manual} tells what there is") from error


def _forget_the_rest() -> None:
    """Lets the interpreter's own last flush of stdout go nowhere."""
    sys.stdout = io.StringIO()
