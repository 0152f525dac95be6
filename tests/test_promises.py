"""What docs/security.md promises and no other module shows; and that every test which it names is there.

Not for: single mechanisms, which have modules of their own.
"""

import ast
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import need
from lab import REPOSITORY, Lab, Scope
from onmount import Sample, ask

NAMED = re.compile(r"`(test_\w+\.py)((?:::\w+)*)`")


@pytest.fixture(scope="module")
def sample(lab: Lab) -> Iterator[Sample]:
    with lab.scope("promises") as scope:
        yield Sample.make(scope)


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall((REPOSITORY / "docs/security.md").read_text())
    assert len(named) > 40
    for file, path in named:
        body = ast.parse((REPOSITORY / "tests" / file).read_text()).body
        for name in path.split("::")[1:]:
            found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
            body = next((node.body for node in found if node.name == name), [])
            assert body, f"{file}{path}"


def test_no_sentence_names_a_test_in_part() -> None:
    """`TestThing::test_that` could be of any module."""
    text = (REPOSITORY / "docs/security.md").read_text()
    assert re.findall(r"`Test\w+(?:::\w+)?`", text) == []


def test_no_verb_changes_the_store(scope: Scope, sample: Sample) -> None:
    """Neither a byte, an owner, nor a time of anything in it but that of the last access; frozen files are for their owner."""
    need.root()
    need.fuse()
    before = state(sample.root)
    frozen, target = scope.path("frozen"), scope.path("served")
    for directory in (frozen / "one", frozen / "all"):
        directory.mkdir()
    for words in (
        ("list", "--all", sample.root),
        ("show", "--extents", sample.c.raw),
        ("doctor", sample.root),
        ("verify", "--store", sample.root),
        ("materialize", "--reflink", "never", sample.c.raw, "-o", frozen / "one"),
        ("mount", "--daemon", "--allow-other", "--group", "backup", sample.root, target),
        ("status",),
        ("sync", sample.root, "--to", frozen / "all", "--wait", "0", "--min-free", "0%"),
    ):
        # Where nothing can be shared, as here, sync ends with 1; what doctor finds is the machine's business.
        assert scope.synthfs(*words, check=False).returncode in (0, 1), words
    read = "answer(hashlib.sha256(open(arguments[0], 'rb').read()).hexdigest())"
    (one,) = (frozen / "one").iterdir()
    with one.open("rb") as file:
        made = hashlib.sha256(file.read()).hexdigest()
    assert ask(scope, read, target / Sample.C) == made
    scope.synthfs("umount", target)
    assert state(sample.root) == before
    assert (one.stat().st_mode & 0o777, one.stat().st_uid) == (0o640, os.geteuid())


def test_a_mount_has_all_descriptors_that_it_may_have(scope: Scope, sample: Sample) -> None:
    need.fuse()
    target = scope.synthfs_mount(sample.root)
    limits = Path(f"/proc/{scope.server(target).pid}/limits").read_text()
    soft, hard = re.search(r"Max open files\s+(\d+)\s+(\d+)", limits).groups()  # type: ignore[union-attr]
    assert soft == hard


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be known of a tree, but for times of access."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        at = path.lstat()
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        known = at.st_mode, at.st_uid, at.st_gid, at.st_size, at.st_nlink, at.st_ino, at.st_mtime_ns, at.st_ctime_ns
        found[str(path.relative_to(root))] = (*known, digest)
    return found
