"""The Debian package: built once, installed beside this machine's own packages and into a clean root, and used there.

Not for: the man pages and completions themselves (test_manual). Units: bytes and seconds.
"""

from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import need
from lab import REPOSITORY, Lab, Scope
from ledger import mounts_below
from makedisk import OriginalDisk
from onmount import FOOTER, Sample
from processes import Argument

FILE = "/srv/disks/pc/Image_C_260301-0201.vhd"
COMPARE = "import sys; sys.stdout.write(str(open(sys.argv[1], 'rb').read()[:-512] == open(sys.argv[2], 'rb').read()))"

COMPLETION = """
. /usr/share/bash-completion/completions/synthfs
COMP_WORDS=(synthfs mat); COMP_CWORD=1; _synthfs_completion synthfs; echo "${COMPREPLY[@]}"
"""
QUICKLY = ("--force-unsafe-io", "--no-triggers")
"""Without the care for the disk, and the indexes of all man pages, that would take longer than all else."""


@pytest.fixture(scope="module")
def lasting(lab: Lab) -> Iterator[Scope]:
    need.root()
    need.fuse()
    with lab.scope("package") as scope:
        yield scope


class Root:
    """A root directory with programs of its own, in which a store is and nothing of this checkout."""

    def __init__(self, scope: Scope, directory: Path, sample: Sample) -> None:
        self.scope = scope
        self.directory = directory
        scope.mount("proc", directory / "proc", fstype="proc")
        scope.mount("/dev", directory / "dev", options="bind")
        for name in ("urbackup", "original", "disks", "frozen"):
            (directory / "srv" / name).mkdir(parents=True)
        scope.mount(sample.root, directory / "srv/urbackup", options="bind,ro")
        scope.mount(sample.disk.path.parent, directory / "srv/original", options="bind,ro")

    def run(self, *words: Argument, check: bool = True, timeout: float = 60.0) -> CompletedProcess[str]:
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        clean = {"PYTHONPATH": "", "LC_ALL": "C.UTF-8", "PATH": path, "DEBIAN_FRONTEND": "noninteractive"}
        return self.scope.run(["chroot", self.directory, *words], env=clean, check=check, timeout=timeout)

    def install(self, package: Path) -> None:
        (self.directory / "synthfs.deb").write_bytes(package.read_bytes())
        self.run("dpkg", *QUICKLY, "--install", "/synthfs.deb")

    def holds(self, file: str, disk: OriginalDisk) -> bool:
        """Whether a VHD there is, but for its footer, the original disk."""
        assert disk.length + FOOTER == int(self.run("stat", "--format=%s", file).stdout)
        return self.run("/usr/bin/python3", "-c", COMPARE, file, f"/srv/original/{disk.path.name}").stdout == "True"


def use(root: Root, disk: OriginalDisk) -> None:
    """List, show, mount in both ways, read, copy out, and take all of it away again: nothing is left."""
    assert "pc" in root.run("synthfs", "list", "/srv/urbackup").stdout
    root.run("synthfs", "mount", "--daemon", "/srv/urbackup", "/srv/disks")
    assert "Image_C_260301-0201" in root.run("synthfs", "show", FILE).stdout
    assert root.holds(FILE, disk)
    root.run("synthfs", "umount", "/srv/disks")
    root.run("mount", "-t", "synthfs", "/srv/urbackup", "/srv/disks", "-o", "allow_other,refresh=0")
    assert [mount.fstype for mount in mounts_below(root.directory / "srv/disks")] == ["fuse.synthfs"]
    assert root.holds(FILE, disk)
    root.run("synthfs", "materialize", "--reflink", "auto", FILE, "-o", "/srv/frozen")
    root.run("umount", "/srv/disks")
    assert root.holds("/srv/frozen/Image_C_260301-0201.vhd", disk)
    assert root.run("bash", "-c", COMPLETION).stdout == "materialize\n"
    for place in ("man/man1/synthfs-mount.1.gz", "man/man8/mount.synthfs.8.gz", "bash-completion/completions/synthfs"):
        root.run("test", "-s", f"/usr/share/{place}")
    root.run("grep", "-q", "ExecStart=/usr/bin/synthfs mount", "/usr/lib/systemd/system/synthfs@.service")
    assert root.run("dpkg", "--verify", "synthfs").stdout == ""
    root.run("test", "-d", "/var/cache/synthfs")
    root.run("dpkg", *QUICKLY, "--purge", "synthfs")
    for place in ("/usr/lib/synthfs", "/var/cache/synthfs"):
        assert root.run("ls", place, check=False).returncode != 0


@pytest.fixture(scope="module")
def sample(lasting: Scope) -> Sample:
    return Sample.make(lasting)


class TestDebianPackage:
    def test_beside_other_packages(self, scope: Scope, package: Path, sample: Sample) -> None:
        """Installed over this machine's root, seen through an overlay, it works with the Debian packages that it depends on."""
        need.kernel("overlay")
        layers = scope.mount("tmpfs", fstype="tmpfs")
        (layers / "upper").mkdir()
        (layers / "work").mkdir()
        options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
        root = Root(scope, scope.mount("overlay", fstype="overlay", options=options), sample)
        root.install(package)
        # It looks for the programs and man pages that the units name, which are there now.
        sync = (f"synthfs-sync.{kind}" for kind in ("service", "wake.service", "timer", "path"))
        units = ("synthfs@test.service", *sync)
        done = root.run("systemd-analyze", "verify", *(f"/usr/lib/systemd/system/{unit}" for unit in units), check=False)
        about_them = [line for line in done.stderr.splitlines() if "synthfs" in line]
        assert (done.returncode, about_them) == (0, [])
        use(root, sample.disk)

    @pytest.mark.slow
    def test_in_a_clean_root(self, scope: Scope, package: Path, sample: Sample) -> None:
        """In a root directory of debootstrap it has all that it needs from the packages that it names."""
        need.tool("debootstrap")
        directory = scope.path("root")
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())["VERSION_CODENAME"]
        scope.run(["debootstrap", "--variant=minbase", release, directory], timeout=900.0)
        root = Root(scope, directory, sample)
        root.run("apt-get", "update", timeout=300.0)
        (directory / "synthfs.deb").write_bytes(package.read_bytes())
        root.run("apt-get", "install", "--yes", "--no-install-recommends", "/synthfs.deb", timeout=600.0)
        use(root, sample.disk)


@pytest.mark.slow
def test_pipx(scope: Scope, sample: Sample) -> None:
    """`pipx install .` gives a program that works."""
    need.tool("pipx")
    places = {"PIPX_HOME": str(scope.path("home")), "PIPX_BIN_DIR": str(scope.path("bin")), "PYTHONPATH": ""}
    scope.run(["pipx", "install", "."], cwd=REPOSITORY, env=places, timeout=300.0)
    program = Path(places["PIPX_BIN_DIR"]) / "synthfs"
    assert "Image_C" in scope.run([program, "list", sample.root], env={"PYTHONPATH": ""}).stdout
    target = scope.path("served")
    scope.run([program, "mount", "--daemon", sample.root, target], env={"PYTHONPATH": ""})
    try:
        assert (target / Sample.C).stat().st_size == sample.disk.length + FOOTER
    finally:
        scope.run([program, "umount", target], env={"PYTHONPATH": ""})
