"""A private smbd: configuration, passwords, locks and logs of its own, on a free port of the loopback.

Not for: what a client asks (smbwindows). The share is the one that `synthfs share` prints, or a test's own. Accounts are
system accounts that every Debian has, since smbd wants one behind each of its users; nothing is added to the machine.
Units: seconds. Source: smb.conf(5), smbpasswd(8).
"""

import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import need
from lab import Scope
from processes import wait_until

USER, GROUP, PASSWORD = "backup", "backup", "Correct-Horse-7"
"""The account that may read the share, as a member of its group."""
OUTSIDER = "games"
"""An account with the same password that is in no group of the share."""

GLOBAL = """\
[global]
    workgroup = SYNTHFSTEST
    netbios name = SYNTHFSTEST
    server role = standalone server
    interfaces = 127.0.0.1/8
    bind interfaces only = yes
    smb ports = {port}
    disable netbios = yes
    server min protocol = SMB3_11
    server signing = mandatory
    passdb backend = tdbsam:{directory}/private/passdb.tdb
    private dir = {directory}/private
    lock directory = {directory}/lock
    state directory = {directory}/state
    cache directory = {directory}/cache
    pid directory = {directory}/pid
    ncalrpc dir = {directory}/ncalrpc
    usershare max shares = 0
    rpc start on demand helpers = no
    load printers = no
    printing = bsd
    printcap name = /dev/null
    disable spoolss = yes
    log level = 1
"""


@dataclass(frozen=True, slots=True)
class Share:
    """A running smbd and the name of its share."""

    scope: Scope
    port: int
    configuration: Path
    process: "subprocess.Popen[bytes]"
    name: str = "backups"

    def smbclient(
        self, command: str, *, user: str = USER, password: str = PASSWORD, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of smbclient on the share. An empty `user` is a guest."""
        who = ["--user", f"{user}%{password}"] if user else ["--no-pass", "--user", "%"]
        argv = ["smbclient", f"//127.0.0.1/{self.name}", "--port", str(self.port), *who, "--max-protocol=SMB3_11"]
        return self.scope.run([*argv, "--command", command], check=check, timeout=timeout)

    def get(self, path: str) -> Path:
        """A downloaded copy of a file of the share."""
        target = self.scope.path("download") / "file"
        self.smbclient(f'get "{path}" "{target}"')
        return target


def stanza(scope: Scope, mountpoint: Path) -> str:
    """The share as `synthfs share` prints it, word for word."""
    return scope.synthfs("share", mountpoint).stdout


def plain_share(directory: Path) -> str:
    """The recommended share for real files (facts/samba-and-windows.md section 2.9)."""
    lines = (f"path = {directory}", "read only = yes", f"valid users = @{GROUP}", "nt acl support = no")
    return "\n    ".join(("[backups]", *lines)) + "\n"


def configure(scope: Scope, share: str, *, port: int = 4450) -> Path:
    """An smb.conf with directories of its own and this share in it."""
    directory = scope.path("smbd")
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
        (directory / name).mkdir(mode=0o755)
    configuration = directory / "smb.conf"
    configuration.write_text(GLOBAL.format(port=port, directory=directory) + "\n" + share)
    return configuration


def start(scope: Scope, share: str) -> Share:
    """Serve a share, or several, until the scope ends; what is returned is the first."""
    need.root()
    need.tool("smbd", "smbclient", "smbpasswd")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = configure(scope, share, port=port)
    for user in (USER, OUTSIDER):
        scope.run(["smbpasswd", "-c", str(configuration), "-L", "-s", "-a", user], input=f"{PASSWORD}\n{PASSWORD}\n")
    process = scope.start(
        ["smbd", "--foreground", "--no-process-group", "--debug-stdout", f"--configfile={configuration}"],
        log=configuration.with_name("smbd.log"),
    )

    def answers() -> bool:
        with socket.socket() as client:
            return process.poll() is not None or client.connect_ex(("127.0.0.1", port)) == 0

    assert wait_until(answers, 15.0), "smbd does not listen"
    assert process.poll() is None, configuration.with_name("smbd.log").read_text()
    name, *_ = re.findall(r"^\[(.*)\]$", share, re.MULTILINE)
    return Share(scope, port, configuration, process, name)
