"""The short form of scripts/smb-soak: fifteen seconds of eight SMB clients."""

import need
import smbsoak
from lab import Scope


def test_eight_clients(scope: Scope) -> None:
    """While backups come and go every byte is right, and the process gains neither memory, descriptors nor threads."""
    need.fuse()
    result = smbsoak.soak(scope, 15.0)
    print(result)
    assert result.problems() == []
