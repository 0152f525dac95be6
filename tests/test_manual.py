"""The man pages and the shells' completions, which are made from the command line itself.

Not for: how they get onto a machine (test_package). Source: man(1), `--warnings`; each shell's own completion.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import REPOSITORY, Lab, Scope


@pytest.fixture(scope="module")
def lasting(lab: Lab) -> Iterator[Scope]:
    with lab.scope("manual") as scope:
        yield scope


@pytest.fixture(scope="module")
def pages(lasting: Scope) -> dict[str, Path]:
    """Every page by its name: `synthfs-list` and the like."""
    directory = lasting.path("man")
    lasting.run([sys.executable, REPOSITORY / "scripts" / "manual", directory])
    return {page.stem: page for page in directory.glob("man?/*")}


@pytest.fixture(scope="module")
def program(lasting: Scope) -> Path:
    """A directory for PATH with this checkout's `synthfs`."""
    directory = lasting.path("bin")
    (directory / "synthfs").write_text(f"#!{sys.executable}\nfrom synthfs.cli.main import main\nmain()\n")
    (directory / "synthfs").chmod(0o755)
    return directory


HELP = """
import sys
from synthfs.cli.main import app
for verb in sys.argv[1:]:
    print(f'=== {verb}')
    try:
        app([verb, '--help'])
    except SystemExit:
        pass
"""
WIDE = {"COLUMNS": "200"}


def options_of(scope: Scope) -> dict[str, set[str]]:
    """Each verb that `--help` lists, and the options that its own `--help` does."""
    listed = scope.synthfs("--help", env=WIDE).stdout.partition("Commands:")[2]
    verbs = re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE)
    said = scope.run([sys.executable, "-c", HELP, *verbs], env=WIDE).stdout.split("=== ")[1:]
    texts = {text.split("\n")[0]: text.partition("Options:")[2] for text in said}
    assert list(texts) == verbs
    return {verb: set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)) for verb, text in texts.items()}


def rendered(scope: Scope, page: Path) -> str:
    """The page as a reader sees it; what man(1) warns of is a failure."""
    need.tool("man")
    wide = {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    done = scope.run(["man", "--warnings", "--local-file", page], env=wide)
    assert done.stderr == ""
    return re.sub(".\x08", "", done.stdout)


class TestManPages:
    def test_names_every_verb_and_option(self, scope: Scope, pages: dict[str, Path]) -> None:
        """A page for each verb, listed in synthfs(1), with every option that its `--help` has; none renders with a warning."""
        found = options_of(scope)
        assert len(found) > 8
        assert set(pages) == {"synthfs", "mount.synthfs", *(f"synthfs-{verb}" for verb in found)}
        overview, see_also = rendered(scope, pages["synthfs"]).partition("\nVERBS\n")[2].split("\nSEE ALSO\n")
        for verb, options in found.items():
            assert f"synthfs-{verb}(1)" in overview
            assert f"synthfs-{verb}(1)" in see_also
            text = rendered(scope, pages[f"synthfs-{verb}"])
            assert "--help" in options
            assert {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)} == set()

    def test_names_every_exit_code(self, scope: Scope, pages: dict[str, Path]) -> None:
        """Those that the README lists."""
        table = re.findall(r"^\| (\d+) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
        status = rendered(scope, pages["synthfs"]).partition("EXIT STATUS")[2]
        assert len(table) > 10
        assert re.findall(r"^ {7}(\d+) ", status, re.MULTILINE) == table

    def test_mount_helper(self, scope: Scope, pages: dict[str, Path]) -> None:
        """mount.synthfs(8) has the options that it understands."""
        text = rendered(scope, pages["mount.synthfs"])
        assert all(option in text for option in ("allow_other", "group=", "log-file=", "refresh="))


class TestCompletion:
    def completion(self, scope: Scope, program: Path, shell: str) -> str:
        env = {"PATH": f"{program}:/usr/bin:/bin", "_SYNTHFS_COMPLETE": f"source_{shell}"}
        return scope.run(["synthfs"], env=env).stdout

    def ask(self, scope: Scope, program: Path, shell: str, source: str) -> str:
        """What a shell without start-up files says, after its completion of `synthfs` was read."""
        need.tool(shell)
        script = scope.path(shell) / "script"
        script.write_text(f"{self.completion(scope, program, shell)}\n{source}\n")
        options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
        home = {"PATH": f"{program}:/usr/bin:/bin", "HOME": str(script.parent), "TERM": "dumb"}
        return scope.run([shell, *options, script], env=home).stdout

    def test_bash(self, scope: Scope, program: Path) -> None:
        """`synthfs mat<TAB>` is materialize, `synthfs mount --all<TAB>` is --allow-other."""
        source = 'COMP_WORDS=({}); COMP_CWORD={}; _synthfs_completion synthfs; echo "${{COMPREPLY[@]}}"'
        assert self.ask(scope, program, "bash", source.format("synthfs mat", 1)).split() == ["materialize"]
        assert self.ask(scope, program, "bash", source.format("synthfs mount --all", 2)).split() == ["--allow-other"]

    def test_fish(self, scope: Scope, program: Path) -> None:
        said = self.ask(scope, program, "fish", 'complete --do-complete "synthfs mat"')
        assert said.split()[0] == "materialize"

    def test_zsh(self, scope: Scope, program: Path) -> None:
        """What it hands to zsh's own `_arguments` names the verb."""
        # compdef, of the interactive shell's completion system, is not there in a script.
        script = self.completion(scope, program, "zsh").replace("compdef _synthfs_completion", ": _synthfs_completion")
        assert script != self.completion(scope, program, "zsh")
        need.tool("zsh")
        source = '_arguments() { print -r -- "$@" }\nwords=(synthfs mat); CURRENT=2; _synthfs_completion\n'
        file = scope.path("zsh") / "script"
        file.write_text(script + source)
        assert "materialize" in scope.run(["zsh", "-f", file], env={"PATH": f"{program}:/usr/bin:/bin"}).stdout
