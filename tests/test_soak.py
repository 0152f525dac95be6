"""The short form of scripts/soak: twenty seconds in which everything happens at least once."""

import need
import soak
from lab import Scope


def test_everything_at_once(scope: Scope) -> None:
    """Backups come, go, are frozen and spoiled, processes die and disks fill up: no byte is ever wrong."""
    need.root()
    need.fuse()
    result = soak.soak(scope, 20.0)
    print(result)
    assert result.problems() == []
