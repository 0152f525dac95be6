"""The front door: the verbs, and how each failure leaves the house.

Exit codes: 0 done; 1 and 3 to 10 an error that its one line explains (`errors.py` has the list); 2 the command line was
not understood; 70 a bug, with a traceback; 130 interrupted.
"""

import io
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from synthfs import __version__
from synthfs.cli import boot as boot_verb
from synthfs.cli import config
from synthfs.cli import doctor as doctor_verb
from synthfs.cli import list as list_verb
from synthfs.cli import materialize as materialize_verb
from synthfs.cli import mount as mount_verb
from synthfs.cli import sessions as sessions_verb
from synthfs.cli import share as share_verb
from synthfs.cli import show as show_verb
from synthfs.cli import status as status_verb
from synthfs.cli import sync as sync_verb
from synthfs.cli import verify as verify_verb
from synthfs.cli.common import say
from synthfs.errors import FullError, SynthfsError
from synthfs.host import publish

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("list")(list_verb.list_disks)
app.command("show")(show_verb.show)
app.command("mount")(mount_verb.mount)
app.command("umount")(mount_verb.umount)
app.command("status")(status_verb.status)
app.command("sessions")(sessions_verb.sessions)
app.command("discard")(sessions_verb.discard)
app.command("keep")(sessions_verb.keep)
app.command("share")(share_verb.share)
app.command("doctor")(doctor_verb.doctor)
app.command("sync")(sync_verb.sync)
app.command("materialize")(materialize_verb.materialize)
app.command("boot")(boot_verb.boot)
app.command("verify")(verify_verb.verify)

BUG, INTERRUPTED = 70, 130

def _version(wanted: bool) -> None:
    if wanted:
        print(f"synthfs {__version__}")
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
    context.default_map = config.load(settings, _options(context))


def _options(context: typer.Context) -> config.Options:
    """What the settings file may set."""
    verbs = getattr(context.command, "commands", {})
    return {
        name: {option[2:]: parameter.name for parameter in verb.params for option in parameter.opts if option[:2] == "--"}
        for name, verb in verbs.items()
    }


def main() -> None:
    run(lambda: sys.argv[1:])


def run(arguments: Callable[[], list[str] | None]) -> None:
    """Runs the command line that `arguments` gives, if any, and ends the process with the right code."""
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
    except SystemExit as end:
        # Typer turns Ctrl-C into this, without a word.
        if end.code == INTERRUPTED:
            say("synthfs: interrupted")
        raise
    except KeyboardInterrupt:
        say("synthfs: interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Of what fails in a place that a verb writes to, the verb makes such an error itself: what is left is stdout.
        if isinstance(error, OSError) and isinstance(publish.unwritable(error, ""), FullError):
            say(f"synthfs: the answer cannot be written out: {error.strerror}; make room, or write it elsewhere")
            _forget_the_rest()
            sys.exit(FullError.exit_code)
        traceback.print_exc()
        say("synthfs: this is a bug, please report it with the lines above")
        sys.exit(BUG)


def _answer(words: list[str]) -> None:
    """Runs the verb. What it printed is out afterwards: a failure at the exit of the interpreter would be nobody's."""
    try:
        app(words)
    finally:
        # There is none where the caller closed it.
        if sys.stdout:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                _forget_the_rest()


def _forget_the_rest() -> None:
    """Lets the interpreter's own last flush of stdout go nowhere."""
    sys.stdout = io.StringIO()
