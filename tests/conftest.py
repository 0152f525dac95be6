"""The fixtures that every test may use: `lab` for the session, `scope` for one test; and what the summary says.

Not for: sample data, which the tests make with makedisk, makestore and genuine.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import need
from genuine import GenuineStore
from lab import REPOSITORY, Lab, Scope


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Owns every device, mount and process of this run; the session fails when one of them is left."""
    with Lab() as laboratory:
        yield laboratory


@pytest.fixture
def scope(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Scope]:
    """What one test makes; gone when the test ends, whichever way it ends."""
    with lab.scope(request.node.name) as one:
        yield one


@pytest.fixture(scope="session")
def genuine(lab: Lab) -> GenuineStore:
    """The store of the real UrBackup server, unpacked and mounted read-only once for the session."""
    return GenuineStore.unpack(need.genuine(), lab)


@pytest.fixture(scope="session")
def package(lab: Lab) -> Path:
    """The .deb, as scripts/package makes it, in a directory of its own."""
    need.root()
    need.tool("dpkg-shlibdeps", "systemd-analyze")
    directory = lab.path("dist")
    lab.run([REPOSITORY / "scripts" / "package", directory], timeout=300.0)
    (found,) = directory.glob("synthfs_*.deb")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the logs of the processes that its scope started."""
    report = yield
    one = getattr(item, "funcargs", {}).get("scope")
    if report.failed and isinstance(one, Scope):
        report.sections.extend((f"log of {log.name}", text) for log, text in one.logs())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if need.absent:
        words = ", ".join(f"{word} ({reason})" for word, reason in sorted(need.absent.items()))
        terminalreporter.write_line(f"not run here: {words}", yellow=True)
