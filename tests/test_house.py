"""The laws of the house (design.md): you may only look down, the pure wing is pure, and each thing has its one room.

Not for: what the rooms do. The table below is the only list of modules: a new one needs its place in it first.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from processes import run

REPOSITORY = Path(__file__).resolve().parent.parent

PURE, WORLD, BOTH = "pure", "world", "both"
HOUSE: dict[str, tuple[int, str]] = {
    # Bottom first: on one floor, a room's modules may use those of their room that stand above them here.
    # -- 0 foundation
    "synthfs": (0, BOTH),
    "synthfs.units": (0, BOTH),
    "synthfs.errors": (0, BOTH),
    "synthfs.text": (0, BOTH),
    "synthfs.extents": (0, BOTH),
    "synthfs.model": (0, BOTH),
    "synthfs.identity": (0, BOTH),
    # -- 1 pattern shop
    "synthfs.formats": (1, PURE),
    "synthfs.formats.bootsector": (1, PURE),
    "synthfs.formats.superblock": (1, PURE),
    "synthfs.formats.mbr": (1, PURE),
    "synthfs.formats.gpt": (1, PURE),
    "synthfs.formats.vhd": (1, PURE),
    "synthfs.formats.vhdx": (1, PURE),
    "synthfs.formats.vmdk": (1, PURE),
    "synthfs.urbackup": (1, BOTH),
    "synthfs.urbackup.mbrfile": (1, PURE),
    "synthfs.urbackup.rawfile": (1, PURE),
    "synthfs.urbackup.hashfile": (1, PURE),
    "synthfs.host": (1, WORLD),
    "synthfs.host.streams": (1, WORLD),
    "synthfs.host.logs": (1, WORLD),
    "synthfs.host.shapes": (1, WORLD),
    "synthfs.host.limits": (1, WORLD),
    "synthfs.host.notify": (1, WORLD),
    "synthfs.host.state": (1, WORLD),
    "synthfs.host.collector": (1, WORLD),
    "synthfs.host.hooks": (1, WORLD),
    "synthfs.host.background": (1, WORLD),
    "synthfs.host.probe": (1, WORLD),
    "synthfs.host.mounts": (1, WORLD),
    "synthfs.host.smb_users": (1, WORLD),
    "synthfs.host.apparmor": (1, WORLD),
    "synthfs.host.claim": (1, WORLD),
    "synthfs.host.qemu": (1, WORLD),
    "synthfs.host.files": (1, WORLD),
    "synthfs.host.readonly": (1, WORLD),
    "synthfs.host.sqlitefile": (1, WORLD),
    "synthfs.host.handle": (1, WORLD),
    "synthfs.host.links": (1, WORLD),
    "synthfs.host.seal": (1, WORLD),
    "synthfs.host.zfs": (1, WORLD),
    "synthfs.host.reflink": (1, WORLD),
    "synthfs.host.publish": (1, WORLD),
    "synthfs.host.space": (1, WORLD),
    "synthfs.host.holes": (1, WORLD),
    "synthfs.host.scratch": (1, WORLD),
    "synthfs.host.control": (1, WORLD),
    # -- 2 drawing room
    "synthfs.plan": (2, PURE),
    "synthfs.plan.layout": (2, PURE),
    "synthfs.plan.place": (2, PURE),
    "synthfs.plan.lengths": (2, PURE),
    "synthfs.plan.volume": (2, PURE),
    "synthfs.plan.bootloader": (2, PURE),
    "synthfs.plan.disk": (2, PURE),
    "synthfs.plan.complete": (2, PURE),
    "synthfs.plan.nearest": (2, PURE),
    "synthfs.plan.siblings": (2, PURE),
    "synthfs.plan.claims": (2, PURE),
    "synthfs.plan.logical": (2, PURE),
    "synthfs.plan.unused": (2, PURE),
    "synthfs.plan.machine": (2, PURE),
    "synthfs.plan.catalog": (2, PURE),
    "synthfs.plan.sparse": (2, PURE),
    "synthfs.plan.container": (2, PURE),
    "synthfs.plan.renew": (2, PURE),
    "synthfs.plan.align": (2, PURE),
    "synthfs.plan.names": (2, PURE),
    "synthfs.plan.readme": (2, PURE),
    "synthfs.plan.tree": (2, PURE),
    "synthfs.plan.garden": (2, PURE),
    "synthfs.plan.written": (2, PURE),
    "synthfs.plan.recipe": (2, PURE),
    "synthfs.plan.parts": (2, PURE),
    "synthfs.plan.check": (2, PURE),
    "synthfs.plan.sync": (2, PURE),
    "synthfs.urbackup.storage": (2, WORLD),
    "synthfs.urbackup.remembered": (2, WORLD),
    "synthfs.urbackup.database": (2, WORLD),
    # -- 3 engine hall
    "synthfs.survey": (3, BOTH),
    "synthfs.engines": (3, WORLD),
    "synthfs.engines.read": (3, WORLD),
    "synthfs.engines.crew": (3, WORLD),
    "synthfs.engines.verify": (3, WORLD),
    "synthfs.engines.sharing": (3, WORLD),
    "synthfs.engines.materialize": (3, WORLD),
    "synthfs.engines.idle": (3, WORLD),
    "synthfs.engines.session": (3, WORLD),
    # -- 4 windows
    "synthfs.samba": (4, WORLD),
    "synthfs.fuse": (4, WORLD),
    "synthfs.fuse.inodes": (4, WORLD),
    "synthfs.fuse.metrics": (4, WORLD),
    "synthfs.fuse.threads": (4, WORLD),
    "synthfs.fuse.operations": (4, WORLD),
    "synthfs.fuse.writing": (4, WORLD),
    "synthfs.fuse.refresh": (4, WORLD),
    "synthfs.fuse.control": (4, WORLD),
    "synthfs.fuse.supervision": (4, WORLD),
    "synthfs.fuse.polling": (4, WORLD),
    "synthfs.fuse.mount": (4, WORLD),
    # -- 5 front door
    "synthfs.cli": (5, WORLD),
    "synthfs.cli.options": (5, WORLD),
    "synthfs.cli.config": (5, WORLD),
    "synthfs.cli.terminal": (5, WORLD),
    "synthfs.cli.progress": (5, WORLD),
    "synthfs.cli.common": (5, WORLD),
    "synthfs.cli.describe": (5, WORLD),
    "synthfs.cli.mount": (5, WORLD),
    "synthfs.cli.doctor": (5, WORLD),
    "synthfs.cli.list": (5, WORLD),
    "synthfs.cli.materialize": (5, WORLD),
    "synthfs.cli.sessions": (5, WORLD),
    "synthfs.cli.boot": (5, WORLD),
    "synthfs.cli.share": (5, WORLD),
    "synthfs.cli.picture": (5, WORLD),
    "synthfs.cli.show": (5, WORLD),
    "synthfs.cli.status": (5, WORLD),
    "synthfs.cli.sync": (5, WORLD),
    "synthfs.cli.findings": (5, WORLD),
    "synthfs.cli.verify": (5, WORLD),
    "synthfs.cli.main": (5, WORLD),
    "synthfs.cli.fstab": (5, WORLD),
    "synthfs.__main__": (5, WORLD),
}
ORDER = list(HOUSE)

PURE_STANDARD_LIBRARY = frozenset(
    (
        *("abc", "array", "bisect", "collections", "collections.abc", "dataclasses", "datetime", "enum", "fnmatch"),
        *("functools", "hashlib", "itertools", "math", "re", "shlex", "struct", "types", "typing", "unicodedata", "uuid"),
        "zlib",
    )
)
"""What the pure wing may use of it: nothing here reads a file or a clock, rolls dice or logs, but for the names below."""

IMPURE_NAMES = {
    "datetime": frozenset(("now", "today", "utcnow", "fromtimestamp")),
    "uuid": frozenset(("uuid1", "uuid4", "getnode")),
}
IMPURE_BUILTINS = frozenset(("open", "print", "input", "exec", "eval", "breakpoint", "__import__"))
KEEPERS = {"trio": ("synthfs.fuse",), "pyfuse3": ("synthfs.fuse",), "errno": ("synthfs.host", "synthfs.fuse")}
KEEPERS["bisect"] = ("synthfs.extents", "synthfs.plan.nearest")
KEEPERS["rich"] = ("synthfs.cli.terminal", "synthfs.cli.progress")
SPEAKERS = {
    "synthfs.cli.common": "say, answer and print_json, through which all plain text goes",
    "synthfs.cli.progress": "which looks whether they are terminals",
    "synthfs.cli.main": "which ends what was printed, and prints nothing itself",
    "synthfs.host.logs": "what is printed while a mount is served",
    "synthfs.host.streams": "opens what the caller closed",
    "synthfs.host.background": "closes what a daemon inherited",
    "synthfs.__main__": "one constant line, before anything can be imported",
}
"""The modules that may lay hands on stdout and stderr."""
SPEECH = frozenset(("stdout", "stderr", "__stdout__", "__stderr__", "echo", "secho"))
SPEECH |= {"print_exc", "print_exception", "StreamHandler", "basicConfig"}


@cache
def modules() -> dict[str, Path]:
    """Every module that is there, by its dotted name."""
    found = {}
    for path in sorted((REPOSITORY / "synthfs").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Everything that is imported anywhere in a module, functions and conditions included, by its dotted name."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in modules() else base


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "synthfs"}


def room(module: str) -> str:
    """A package; `python -m synthfs` is another way to the front door."""
    return "synthfs.cli" if module == "synthfs.__main__" else ".".join(module.split(".")[:2])


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in rooms)


def test_every_module_has_its_place() -> None:
    """The table lists each module that is there, and none that is not."""
    assert set(modules()) == set(HOUSE)


def test_the_table_is_in_order() -> None:
    """Bottom first: its order within a room means something only then."""
    floors = [floor for floor, _ in HOUSE.values()]
    assert floors == sorted(floors)


PRESENT = [module for module in modules() if module in HOUSE]


@pytest.mark.parametrize("module", PRESENT)
class TestEachModule:
    def test_looks_only_down(self, module: str) -> None:
        """It imports from lower floors, and of its own room what stands below it; so there are no circles either."""
        floor, _ = HOUSE[module]
        for name in ours(module):
            if HOUSE[name][0] == floor and floor == 0:
                assert ORDER.index(name) < ORDER.index(module), f"{name} does not stand below"
            elif HOUSE[name][0] == floor:
                assert room(name) == room(module), f"{name} is another room of the same floor"
                assert ORDER.index(name) < ORDER.index(module), f"{name} does not stand below"
            else:
                assert HOUSE[name][0] < floor, f"{name} is above"

    def test_keeps_to_its_wing(self, module: str) -> None:
        """Below floor 3, pure and worldly modules share the nouns of floor 0 and nothing else."""
        floor, wing = HOUSE[module]
        other = {PURE: WORLD, WORLD: PURE}.get(wing)
        if floor < 3:
            assert [name for name in ours(module) if HOUSE[name][1] == other] == []

    def test_is_pure_where_it_has_to_be(self, module: str) -> None:
        """The pure wing, and the foundation of both, does no I/O, reads no clock, rolls no dice and logs nothing."""
        floor, wing = HOUSE[module]
        if wing == WORLD or floor > 2:
            return
        foreign = {name for name in imports(module) if name.split(".")[0] != "synthfs"}
        assert foreign - PURE_STANDARD_LIBRARY == set()
        forbidden = frozenset[str]().union(*(names for key, names in IMPURE_NAMES.items() if key in foreign))
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute):
                assert node.attr not in forbidden, f"line {node.lineno}: .{node.attr}"
            elif isinstance(node, ast.alias):
                assert node.name not in forbidden, f"line {node.lineno}: {node.name}"
            elif isinstance(node, ast.Name):
                assert node.id not in IMPURE_BUILTINS, f"line {node.lineno}: {node.id}()"

    def test_leaves_special_things_to_their_keepers(self, module: str) -> None:
        """trio and pyfuse3 only in fuse/, errno only there and in host/, bisect in extents, and for times."""
        for name in imports(module):
            keepers = KEEPERS.get(name.split(".")[0])
            assert keepers is None or within(module, keepers), f"{name} belongs to {keepers}"
        attributes = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
        assert "to_thread" not in attributes or module == "synthfs.fuse.threads", "an error that comes through it is a cycle"
        if not within(module, KEEPERS["errno"]):
            lines = [n.lineno for n in ast.walk(tree(module)) if isinstance(n, ast.Attribute) and n.attr == "errno"]
            assert lines == [], "an errno is understood in host/ and spoken in fuse/"

    def test_text_goes_out_in_one_place(self, module: str) -> None:
        """Nobody else prints: there, nothing in a text acts on a terminal, makes another line, or keeps a mount waiting."""
        for node in () if module in SPEAKERS else ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("sys", "typer", "click", "traceback", "logging"):
                assert node.attr not in SPEECH, f"line {node.lineno}: {ast.unparse(node)}"
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"line {node.lineno}: print()"

    def test_commands_are_quoted(self, module: str) -> None:
        """A command that a message proposes, between backticks, has nothing in it but words and what `quoted` made."""
        strings = [node for node in ast.walk(tree(module)) if isinstance(node, ast.JoinedStr)]
        for string in strings:
            inside = False
            for part in string.values:
                if isinstance(part, ast.Constant):
                    inside ^= str(part.value).count("`") % 2 == 1
                elif inside and isinstance(part, ast.FormattedValue):
                    name = ast.unparse(part.value)
                    assert name.startswith("quoted(") or name.isupper(), f"line {string.lineno}: `…{{{name}}}…`"

    def test_engines_know_no_formats(self, module: str) -> None:
        """An engine consumes a map; which bytes a table or footer has is not its business."""
        if within(module, ("synthfs.engines",)):
            assert not any(within(name, ("synthfs.formats",)) for name in ours(module))

    def test_says_what_it_is_for(self, module: str) -> None:
        """Every module has a docstring."""
        assert ast.get_docstring(tree(module))

    def test_is_not_asking_to_be_two(self, module: str) -> None:
        """No module of more than 350 lines, no function of more than 60."""
        assert len(modules()[module].read_text().splitlines()) <= 350
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name}, line {node.lineno}"


def test_the_command_line_needs_no_fuse() -> None:
    """`materialize`, `list` and `show` work on a host without libfuse: importing the front door imports neither library."""
    source = "import sys, synthfs.cli.main; print(*sorted({'trio', 'pyfuse3', 'synthfs.fuse'} & set(sys.modules)))"
    assert run([sys.executable, "-c", source], cwd=REPOSITORY, timeout=30).stdout == b"\n"


def test_the_tests_of_the_house_can_fail() -> None:
    """The walk sees imports in functions, of names and of modules; otherwise the laws above would hold for nothing."""
    assert "synthfs.urbackup.storage" in ours("synthfs.survey")
    assert "synthfs.identity" in ours("synthfs.plan.disk")
    assert {"os", "re"} <= set(imports("synthfs.urbackup.storage"))
