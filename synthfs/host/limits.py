"""What the system does not give more of: descriptors, memory. It can be run into anywhere, so it is understood in one place.

Not for: space on disks (`host/publish`).
"""

import errno

from synthfs.errors import SynthfsError

_LACKS = {
    errno.EMFILE: "this process may not open more files; raise the limit, with `ulimit -n` or LimitNOFILE=",
    errno.ENFILE: "nobody may open more files on this machine; raise the limit (sysctl fs.file-max), or end what has them open",
    errno.ENOMEM: "the memory of this machine, or what this process may take of it, does not suffice",
}


def lacking(error: BaseException | None) -> SynthfsError | None:
    """What to say of an error, or of one that caused it, where it is such a limit; None for all others."""
    while error is not None:
        number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno if isinstance(error, OSError) else None
        if number in _LACKS:
            return SynthfsError(_LACKS[number])
        error = error.__cause__ or error.__context__
    return None
