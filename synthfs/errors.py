"""What can go wrong that a person can mend: one line, with the remedy, and an exit code.

Not for bugs: any exception that is no `SynthfsError` is one, and gets a traceback.
The errno that the kernel gets to see for each of these is chosen in `fuse/operations`, nowhere else.
"""

from typing import ClassVar


class SynthfsError(Exception):
    """Something failed in a way that the person at the keyboard can do something about."""

    exit_code: ClassVar[int] = 1


class NotFoundError(SynthfsError):
    """A store, an image or a mount that was named is not there."""

    exit_code = 3


class FormatError(SynthfsError):
    """Bytes that do not follow their format: says which structure, which value, and where."""

    exit_code = 4


class UnsupportedError(SynthfsError):
    """A backup that is fine, but that the requested form cannot hold."""

    exit_code = 5


class SourceError(SynthfsError):
    """A backup file changed, shrank, vanished or could not be read while it was in use."""

    exit_code = 6


class ShareError(SynthfsError):
    """Data cannot be shared between two files, and no copy was asked for."""

    exit_code = 7


class TargetError(SynthfsError):
    """The place to write to exists already, is not writable, or lies where nothing may be put."""

    exit_code = 8


class FullError(TargetError):
    """There is no space left, or no quota, for what is to be written."""


class MountError(SynthfsError):
    """A file system could not be mounted or unmounted."""

    exit_code = 9


class BusyError(SynthfsError):
    """Something is in use by somebody, and nobody said that it may be taken away all the same."""

    exit_code = 10


class DiffersError(SynthfsError):
    """A backup or a file holds other bytes than it has to."""

    exit_code = 11


class UncheckedError(SynthfsError):
    """What was to be checked cannot be: that for which it would be compared is not there."""

    exit_code = 12
