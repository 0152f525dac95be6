"""Real OpenZFS, which no kernel of a test machine has: one start of a guest that runs tests/guest_zfs.py.

Not for: the tests themselves. Source: scripts/test-zfs.
"""

import os
import subprocess
import sys

import pytest

import need


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_zfs(capsys: pytest.CaptureFixture[str], which: str) -> None:
    """Everything in tests/guest_zfs.py passes under a kernel with OpenZFS; what it printed is shown."""
    need.guest()
    # Neither a child of the laboratory, whose pids the guest does not see, nor dependent on its environment.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), "SYNTHFS_PYTHON": sys.executable}
    if named := os.environ.get("SYNTHFS_UML"):
        environment["SYNTHFS_UML"] = named
    script = need.REPOSITORY / "scripts" / "test-zfs"
    done = subprocess.run(
        [script, "-q", "-rA", "--durations=3", "-m", which], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=1300, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print(f"\n{done.stdout}{done.stderr if done.returncode else ''}")
    assert done.returncode == 0
