"""The units as they are installed, under a systemd of their own: sync after a backup, a mount, and what must not go on and on.

Not for: the hook and the units' single lines (test_sync_hook), what a mount tells systemd (test_service). Units: seconds.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import need
import sampledisks
from lab import Lab, Scope
from makestore import Store
from processes import wait_until
from systemd_root import SystemdRoot, systemd_root

pytestmark = pytest.mark.slow

PATH, WAKE, SYNC = "synthfs-sync.path", "synthfs-sync.wake.service", "synthfs-sync.service"
FROZEN = "/srv/frozen/pc/Image_C_260301-0201.vhd"
HOOK = '/usr/share/synthfs/urbackup/post_full_imagebackup "/srv/pc/x/Image_C.raw" C 1'
STORE_LINE = "/mnt/data/urbackup /srv/urbackup none bind,nofail 0 0\n"
GOOD_LINE = "/mnt/data/frozen /srv/frozen none bind,nofail 0 0\n"
BAD_LINES = {
    "file system that is unknown": "frozen /srv/frozen nosuchfs nofail 0 0\n",
    "device that is absent": "/dev/absent /srv/frozen ext4 nofail,x-systemd.device-timeout=1s 0 0\n",
}


@pytest.fixture(scope="module")
def data(lab: Lab) -> Iterator[Path]:
    """A BTRFS with a store and an empty directory `frozen`."""
    need.root()
    with lab.scope("systemd-data") as scope:
        mounted = scope.btrfs(1 << 30)
        disk = sampledisks.small_ntfs_disk(scope.path() / "original.img")
        Store(mounted / "urbackup").client("pc").backup(disk, 1)
        (mounted / "frozen").mkdir()
        yield mounted


@pytest.fixture
def system(scope: Scope, package: Path, data: Path) -> Iterator[SystemdRoot]:
    """With the package installed, and nothing enabled. The store is mounted where the units expect it."""
    for left in (data / "frozen").iterdir():
        scope.run(["rm", "-r", left])
    with systemd_root(scope, [(package.parent, "mnt/dist"), (data, "mnt/data")]) as root:
        root.install(f"/mnt/dist/{package.name}")
        root.shell("mkdir -p /srv/urbackup /srv/frozen /srv/disks")
        fstab(root, "")
        root.from_now_on()
        yield root


def fstab(root: SystemdRoot, line: str) -> None:
    root.write("/etc/fstab", STORE_LINE + line)
    root.run("systemctl", "daemon-reload")
    root.run("systemctl", "start", "srv-urbackup.mount")


def backup_ends(root: SystemdRoot) -> None:
    """UrBackup's server calls the hook, as its own user."""
    root.shell(HOOK, user="urbackup")


def rounds(root: SystemdRoot) -> int:
    """How often a sync was attempted."""
    return sum("Freeze the newest disks" in line and "Starting" not in line for line in root.logged("UNIT", SYNC))


def has(root: SystemdRoot, path: str) -> bool:
    return root.run("test", "-e", path, check=False).returncode == 0


def waiting(root: SystemdRoot) -> bool:
    """The path unit watches, and what it starts is not at work."""
    return root.state(PATH, "SubState") == "waiting" and root.state(WAKE, "ActiveState") == "inactive"


def said(root: SystemdRoot) -> list[str]:
    return root.logged("_SYSTEMD_UNIT", WAKE)


class TestSync:
    def test_after_a_backup(self, system: SystemdRoot) -> None:
        """The hook of UrBackup's user wakes it: the disk is frozen, the file is gone, and nothing more happens."""
        fstab(system, GOOD_LINE)
        system.run("systemctl", "enable", "--now", PATH)
        assert system.shell("stat -c '%U %a' /run/synthfs").split() == ["urbackup", "700"]
        backup_ends(system)
        assert wait_until(lambda: has(system, FROZEN), 60.0, pause=0.5), system.logged()
        assert wait_until(lambda: waiting(system), 30.0, pause=0.5)
        assert not has(system, "/run/synthfs/wake")
        assert (rounds(system), said(system)) == (1, [])

    @pytest.mark.parametrize("line", [*BAD_LINES])
    def test_failed_mount(self, system: SystemdRoot, line: str) -> None:
        """A mount that fails is one attempt and one message; when it is back, the next backup starts a sync."""
        fstab(system, BAD_LINES[line])
        system.run("systemctl", "enable", "--now", PATH)
        backup_ends(system)
        assert wait_until(lambda: bool(said(system)) and waiting(system), 60.0, pause=0.5), system.logged()
        # Another round would begin at once, and end by another message.
        assert not wait_until(lambda: not waiting(system) or len(said(system)) > 1, 12.0, pause=0.5)
        assert rounds(system) == 1
        assert "the next backup tries again" in said(system)[0]
        assert not has(system, FROZEN)
        fstab(system, GOOD_LINE)
        backup_ends(system)
        assert wait_until(lambda: has(system, FROZEN), 60.0, pause=0.5), system.logged()
        assert wait_until(lambda: waiting(system), 30.0, pause=0.5)

    def test_without_the_service_between(self, system: SystemdRoot) -> None:
        """What that is for: a path unit that starts sync itself tries it a hundred times at once."""
        system.shell(f"sed '/^Unit=/d' /usr/lib/systemd/system/{PATH} >/etc/systemd/system/{PATH}")
        fstab(system, BAD_LINES["file system that is unknown"])
        system.run("systemctl", "enable", "--now", PATH)
        backup_ends(system)
        assert wait_until(lambda: rounds(system) > 100, 60.0, pause=0.5), system.logged()[-40:]

    def test_sync_that_fails(self, system: SystemdRoot) -> None:
        """A sync that fails is tried once for each backup."""
        system.write(f"/etc/systemd/system/{SYNC}.d/x.conf", "[Service]\nEnvironment=STORE=/nonexistent\n")
        fstab(system, GOOD_LINE)
        system.run("systemctl", "enable", "--now", PATH)
        for _ in range(2):
            system.from_now_on()
            backup_ends(system)
            assert wait_until(lambda: len(said(system)) == 1 and waiting(system), 60.0, pause=0.5)
            assert rounds(system) == 1

    def test_state_directory_that_cannot_be_made(self, system: SystemdRoot) -> None:
        """A service that fails before its first command is tried once as well."""
        system.shell("touch /var/lib/synthfs")
        fstab(system, GOOD_LINE)
        system.run("systemctl", "enable", "--now", PATH)
        backup_ends(system)
        assert wait_until(lambda: bool(said(system)) and waiting(system), 60.0, pause=0.5)
        assert not has(system, "/run/synthfs/wake")
        assert rounds(system) == 1

    def test_file_that_cannot_be_removed(self, system: SystemdRoot) -> None:
        """It is told once, and is no reason to try again at once; removed by hand, all is as before."""
        fstab(system, GOOD_LINE)
        # Not even root removes a file that something is mounted on.
        system.shell("touch /run/synthfs/wake; mount --bind /run/synthfs/wake /run/synthfs/wake")
        system.run("systemctl", "enable", "--now", PATH)
        assert wait_until(lambda: bool(said(system)), 60.0, pause=0.5)
        assert not wait_until(lambda: len(said(system)) > 1, 15.0, pause=1.0)
        assert "remove it by hand" in said(system)[0]
        assert rounds(system) == 0
        system.shell(f"umount /run/synthfs/wake; rm /run/synthfs/wake; systemctl restart {WAKE}")
        assert has(system, FROZEN)
        assert waiting(system)

    def test_directory_full_of_things(self, system: SystemdRoot) -> None:
        """Thousands of them instead of a file, as UrBackup's user could make: sync runs, and all of them are gone."""
        fstab(system, GOOD_LINE)
        make = "mkdir -p /run/synthfs/wake/a/b; cd /run/synthfs/wake/a; seq 5000 | xargs touch; chmod 0 b ."
        system.shell(make, user="urbackup")
        system.run("systemctl", "enable", "--now", PATH)
        assert wait_until(lambda: has(system, FROZEN), 60.0, pause=0.5), system.logged()
        assert wait_until(lambda: waiting(system), 30.0, pause=0.5)
        assert not has(system, "/run/synthfs/wake")

    def test_another_place(self, system: SystemdRoot) -> None:
        """The file may be elsewhere, such as in a volume of UrBackup's container: the path unit alone has to know."""
        fstab(system, GOOD_LINE)
        system.shell("mkdir /srv/wake; chown urbackup /srv/wake")
        system.write(f"/etc/systemd/system/{PATH}.d/x.conf", "[Path]\nPathExists=\nPathExists=/srv/wake/wake\n")
        system.run("systemctl", "daemon-reload")
        system.run("systemctl", "enable", "--now", PATH)
        system.shell(f"SYNTHFS_WAKE=/srv/wake/wake {HOOK}", user="urbackup")
        assert wait_until(lambda: has(system, FROZEN), 60.0, pause=0.5), system.logged()
        assert wait_until(lambda: waiting(system), 30.0, pause=0.5)
        assert not has(system, "/srv/wake/wake")
        assert rounds(system) == 1

    def test_daily(self, system: SystemdRoot) -> None:
        """What the timer starts freezes the disk as well."""
        fstab(system, GOOD_LINE)
        system.run("systemctl", "start", system.state("synthfs-sync.timer", "Unit"))
        assert has(system, FROZEN)


class TestMount:
    UNIT = "synthfs@main.service"

    @staticmethod
    def configure(root: SystemdRoot, options: str = "", store: str = "/srv/urbackup") -> None:
        root.write("/etc/synthfs/main.conf", f"STORE={store}\nMOUNTPOINT=/srv/disks\nOPTIONS={options}\n")

    def restarts(self, root: SystemdRoot) -> int:
        return int(root.state(self.UNIT, "NRestarts"))

    def test_serves(self, system: SystemdRoot) -> None:
        """When the service has started the disks can be read outside of it, and when it has stopped nothing is mounted."""
        self.configure(system, "--group backup")
        system.run("systemctl", "start", self.UNIT)
        assert system.state(self.UNIT, "ActiveState") == "active"
        assert system.shell("stat -c '%G' /srv/disks/pc/*.vhd").split() == ["backup"]
        system.run("systemctl", "stop", self.UNIT)
        assert system.shell("ls /srv/disks") == ""

    @pytest.mark.parametrize("settings", ["STORE=/srv/urbackup\nOPTIONS=--gruop backup\n", "STOER=/srv/urbackup\n"])
    def test_typo(self, system: SystemdRoot, settings: str) -> None:
        """A command line that is not understood, for a typo in OPTIONS or in the name of a setting, is not tried again."""
        system.write("/etc/synthfs/main.conf", f"{settings}MOUNTPOINT=/srv/disks\n")
        assert system.run("systemctl", "start", self.UNIT, check=False).returncode != 0
        assert not wait_until(lambda: self.restarts(system) > 0, 10.0, pause=0.5)
        assert system.state(self.UNIT, "ActiveState") == "failed"
        assert system.state(self.UNIT, "ExecMainStatus") == "2"

    def test_no_configuration(self, system: SystemdRoot) -> None:
        """A name without a file in /etc/synthfs is an error, and is not tried again either."""
        assert system.run("systemctl", "start", self.UNIT, check=False).returncode != 0
        assert not wait_until(lambda: self.restarts(system) > 0, 10.0, pause=0.5)
        assert system.state(self.UNIT, "ActiveState") != "activating"

    def test_store_that_comes_later(self, system: SystemdRoot) -> None:
        """What may mend itself is tried again: a store that is not there yet."""
        self.configure(system, store="/srv/later/urbackup")
        system.run("systemctl", "start", self.UNIT, check=False)
        assert wait_until(lambda: self.restarts(system) > 0, 30.0, pause=0.5)
        system.shell("mkdir /srv/later; ln -s /mnt/data/urbackup /srv/later/urbackup")
        assert wait_until(lambda: system.state(self.UNIT, "ActiveState") == "active", 30.0, pause=0.5)


def test_without_urbackup(scope: Scope, package: Path) -> None:
    """Where there is no user urbackup the package installs, the system boots, and other directories of tmpfiles are made."""
    with systemd_root(scope, [(package.parent, "mnt/dist")]) as root:
        root.run("userdel", "urbackup")
        root.install(f"/mnt/dist/{package.name}")
        assert not has(root, "/run/synthfs")
        root.run("rmdir", "/run/lock/subsys")
        code = root.run("systemd-tmpfiles", "--create", check=False).returncode
        assert has(root, "/run/lock/subsys")
        # What the service does at boot, which takes this for success.
        assert str(code) in root.state("systemd-tmpfiles-setup.service", "SuccessExitStatus").split()
