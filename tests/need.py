"""What a test needs from the machine: absent, it is a skip that names it, or a failure where it is required.

Not for: anything that a test makes itself. Source: the environment variable SYNTHFS_REQUIRE, a comma list of
`all` (everything that apt can give, and privileges) and the words below, each required only when named.
"""

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LINUX = "linux-image-cloud-amd64"
DEBIAN = ("systemd", "systemd-sysv", "python3", "fuse3")
MASKED = ("console-getty.service", "getty.target", "systemd-networkd.service", "apt-daily.timer", "apt-daily-upgrade.timer")
"""Units that would only fail in a root directory without terminals and networks, or use the network."""
WORDS = ("genuine", "zfs", "cifs")
PACKAGES = {
    "mkntfs": "ntfs-3g",
    "ntfscp": "ntfs-3g",
    "ntfs-3g": "ntfs-3g",
    "ntfsfix": "ntfs-3g",
    "sgdisk": "gdisk",
    "sfdisk": "fdisk",
    "mkfs.btrfs": "btrfs-progs",
    "btrfs": "btrfs-progs",
    "btrfstune": "btrfs-progs",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mkfs.exfat": "exfatprogs",
    "mcopy": "mtools",
    "mmd": "mtools",
    "qemu-img": "qemu-utils",
    "vhdiinfo": "libvhdi-utils",
    "vhdimount": "libvhdi-utils",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "smbd": "samba",
    "smbclient": "smbclient",
    "smbpasswd": "samba-common-bin",
    "testparm": "samba-common-bin",
    "setfattr": "attr",
    "strace": "strace",
    "mount.cifs": "cifs-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "syslinux": "syslinux",
    "dpkg-shlibdeps": "dpkg-dev",
    "debootstrap": "debootstrap",
    "busybox": "busybox",
    "pipx": "pipx",
    "man": "man-db",
    "zsh": "zsh",
    "fish": "fish",
}

# A user's PATH often lacks sbin, where most of these live.
os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

absent: dict[str, str] = {}
"""Word -> reason, for the words that a test of this run asked for in vain; the terminal summary lists them."""


def required(word: str) -> bool:
    return word in os.environ.get("SYNTHFS_REQUIRE", "").replace(" ", "").split(",")


def tool(*names: str) -> None:
    """Each named program is installed."""
    for name in names:
        if shutil.which(name) is None:
            _missing(f"{name} is not installed (apt install {PACKAGES.get(name, name)})", "all")


def root() -> None:
    if os.geteuid() != 0:
        _missing("needs root", "all")


def loop() -> None:
    root()
    tool("losetup")
    if not Path("/dev/loop-control").exists():
        _missing("no loop devices (/dev/loop-control)", "all")


def fuse() -> None:
    tool("fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        _missing("no access to /dev/fuse", "all")


def kernel(filesystem: str) -> None:
    """The kernel can mount this file system, loading its module if it must."""
    if not _kernel_has(filesystem):
        _missing(f"the kernel has no {filesystem}", filesystem if filesystem in WORDS else "all")


def zfs() -> None:
    kernel("zfs")
    if shutil.which("zpool") is None:
        _missing("no zpool command", "zfs")


def guest(word: str = "zfs") -> None:
    """The kernel that scripts/uml-run starts: unpacked already, or ready to be; a test never builds it."""
    root()
    unpacked = Path(os.environ.get("SYNTHFS_UML", "/var/cache/synthfs/uml")) / "complete"
    if not unpacked.is_file() and not (REPOSITORY.parent / "shared" / "guest" / "uml-kernel.tar.zst").is_file():
        _missing("no kernel for scripts/uml-run (scripts/uml-build makes it)", word)


def cifs() -> list[str]:
    """The command that runs another one under a kernel with an SMB client and ntfs3."""
    guest("cifs")
    subprocess.run([REPOSITORY / "scripts" / "uml-build"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return [str(REPOSITORY / "scripts" / "uml-run"), "-t", "110"]


def linux() -> Path:
    """Where Debian's cloud kernel and its busybox are unpacked.

    Fetched once and never installed: that would put a kernel into this machine's boot menu.
    """
    tool("apt-get", "dpkg-deb")
    usual = Path("/var/cache/synthfs/linux") if os.geteuid() == 0 else Path.home() / ".cache/synthfs/linux"
    place = Path(os.environ.get("SYNTHFS_LINUX", usual))
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        listed = subprocess.run(["apt-cache", "depends", "--important", LINUX], capture_output=True, text=True, check=False)
        kernel = next((word for word in listed.stdout.split() if word.startswith("linux-image-") and word != LINUX), LINUX)
        fetch = ["apt-get", "download", "--quiet", kernel, "busybox-static"]
        if subprocess.run(fetch, cwd=place, capture_output=True, check=False).returncode:
            _missing(f"apt-get cannot download {kernel} and busybox-static", "all")
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, place], check=True)
        (place / "complete").touch()
    return place


def debian() -> Path:
    """A Debian root directory with systemd and what the package needs, of the release that the tests run on.

    Made once, which takes two minutes; nothing is mounted in it, and it may be deleted at any time.
    """
    root()
    tool("debootstrap")
    place = Path(os.environ.get("SYNTHFS_DEBIAN", "/var/cache/synthfs/debian"))
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN)}", release, str(place / "root")]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            _missing(f"debootstrap cannot make a root directory of {release}", "all")
        for unit in MASKED:
            (place / "root/etc/systemd/system" / unit).symlink_to("/dev/null")
        subprocess.run(["chroot", place / "root", "useradd", "--system", "--user-group", "urbackup"], check=True)
        (place / "complete").touch()
    return place / "root"


def genuine() -> Path:
    """The directory with the store that the real UrBackup server made."""
    named = os.environ.get("SYNTHFS_GENUINE")
    directory = Path(named) if named else REPOSITORY.parent / "shared" / "genuine"
    if not (directory / "store.btrfs.img.zst").is_file():
        _missing(f"no {named or '../shared/genuine'}", "genuine")
    return directory


def _kernel_has(filesystem: str) -> bool:
    def listed() -> bool:
        return filesystem in Path("/proc/filesystems").read_text().split()

    if not listed() and os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["modprobe", filesystem], check=False, capture_output=True)
    return listed()


def _missing(reason: str, word: str) -> NoReturn:
    if required(word):
        pytest.fail(f"{reason}, and SYNTHFS_REQUIRE={word} asks for it", pytrace=False)
    if word in WORDS:
        absent[word] = reason
    pytest.skip(reason, allow_module_level=True)
