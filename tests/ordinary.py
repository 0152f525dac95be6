"""Commands as an ordinary user, on a machine as udev sets it up: everybody may open /dev/fuse.

Not for: users of the share (smbd). They run in a mount namespace of their own, where a file may also be hidden by another.
"""

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

import need
from lab import Scope
from processes import Argument

USER = "nobody"


def synthfs(scope: Scope, hidden: Mapping[str, Path] | None = None, user: str = USER) -> list[Argument]:
    """The first words of a command that is synthfs as `user`; its arguments are to follow.

    `hidden` are files of the machine and what is there instead for this command. The user root has all privileges.
    """
    need.root()
    need.fuse()
    need.tool("unshare", "setpriv")
    device = scope.path("device") / "fuse"
    os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
    device.chmod(0o666)
    lines = [["mount", "--bind", device, "/dev/fuse"]]
    lines += [["mount", "--bind", instead, place] for place, instead in (hidden or {}).items()]
    python, added = scope.python_for_all()
    become = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user != "root" else []
    become += ["env", *(f"{name}={value}" for name, value in added.items()), python, "-m", "synthfs"]
    script = "\n".join([*(shlex.join(map(str, line)) for line in lines), f'exec {shlex.join(become)} "$@"'])
    return ["unshare", "--mount", "sh", "-ec", script, "sh"]
