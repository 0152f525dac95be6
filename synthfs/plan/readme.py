"""The README.txt at the root of the mount: for the person who found the share and wants a disk out of it.

Not for: administrators; they have the documentation. Lines end in CR LF, since it is read on Windows.
"""

_TEXT = """\
Backups as disks
================

Each .vhd or .vhdx file here is a whole disk as it was backed up (so is an .img, and
a .vmdk with its -flat.vmdk, for other programs). Nothing that is done here can change or break a backup.

To look into one on Windows, open a command prompt as administrator and run:

    diskpart
    select vdisk file="\\\\SERVER\\SHARE\\{path}"
    attach vdisk readonly

SERVER and SHARE are those under which you found this file. When you are done: `detach vdisk`.

The disk stays offline, or the computer is the one that was backed up? Windows does not show two disks of one identity.
Take the file of the same name from the folder new-identity: the same disk under another identity, to read beside the
original. Restore and boot from the plain one.

A volume that Windows will not read, or that has to be written to: make a local disk that keeps its changes for itself:

    create vdisk file=C:\\difference.vhd parent="\\\\SERVER\\SHARE\\{path}"
    attach vdisk

(These commands are Microsoft's; they have not been run against this share by its makers, who have no Windows.)
"""


def readme(example: str | None) -> str:
    """The text, with the file at `example`, a path below the mount, as its example."""
    return _TEXT.format(path=(example or "client/disk.vhd").replace("/", "\\")).replace("\n", "\r\n")
