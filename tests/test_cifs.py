"""The nearest thing to Windows: the Linux kernel's own SMB client and its NTFS, in a user-mode kernel with both.

The guest (need.cifs) sees this machine's files, and has its own mounts, /run and loopback. Not for: smbd's answers one by
one (test_smb).
"""

import sys

import need
import smbd
from lab import REPOSITORY, Scope
from onmount import FOOTER, Sample

SCRIPT = r"""
set -e
export PATH=$PATH:/usr/sbin:/sbin PYTHONPATH={repository}
mkdir -p /run/srv/disks /run/cifs /run/volume /run/smbd/{{private,lock,state,cache,pid,ncalrpc}}
{python} -m synthfs mount --daemon --allow-other --group {group} {store} /run/srv/disks >&2
cat {head} > /run/smbd/smb.conf
{python} -m synthfs share /run/srv/disks >> /run/smbd/smb.conf
printf '%s\n%s\n' '{password}' '{password}' | smbpasswd -c /run/smbd/smb.conf -L -s -a {user} >&2
smbd --foreground --no-process-group --debug-stdout --configfile=/run/smbd/smb.conf > /run/smbd.log 2>&1 &
for n in $(seq 100); do (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.1; done
how=ro,vers=3.1.1,sign,port={port},username={user},password={password}
mount -t cifs //127.0.0.1/backups /run/cifs -o $how || {{ cat /run/smbd.log >&2; exit 1; }}
file=/run/cifs/disks/{path}
echo "length $(stat -c %s "$file")"
loop=$(losetup --find --show --read-only --partscan "$file")
echo "partitions $(ls /sys/block/${{loop#/dev/}} | grep -c "^${{loop#/dev/}}p")"
for number in {numbers}; do
    mount -t ntfs3 -o ro ${{loop}}p$number /run/volume
    (cd /run/volume && find . -maxdepth 1 -type f -not -name '$*' -exec sha256sum {{}} + | sed "s/^/file $number /")
    umount /run/volume
done
losetup --detach "$loop"
echo "disk $(head -c {length} "$file" | sha256sum | cut -d ' ' -f 1)"
umount /run/cifs
{python} -m synthfs umount /run/srv/disks
"""


def test_disk_on_a_share_as_a_block_device(scope: Scope) -> None:
    """Over mount.cifs a .vhd becomes a loop device with the disk's partitions; ntfs3 finds each file of C: and D: in them."""
    need.root()
    command = need.cifs()
    need.tool("smbd", "smbpasswd", "mount.cifs", "losetup")
    sample = Sample.make(scope)
    head = scope.path("conf") / "smb.conf"
    head.write_text(smbd.GLOBAL.format(port=4450, directory="/run/smbd") + "\n")
    script = SCRIPT.format(
        repository=REPOSITORY,
        python=sys.executable,
        group=smbd.GROUP,
        user=smbd.USER,
        password=smbd.PASSWORD,
        store=sample.root,
        head=head,
        port=4450,
        path=Sample.C,
        numbers="3 4",
        length=sample.disk.length,
    )
    file = scope.path("guest") / "inside.sh"
    file.write_text(script)
    done = scope.run([*command, "bash", file], timeout=120.0, check=False)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    answers = dict(line.split(" ", 1) for line in said if line.startswith(("length", "partitions", "disk")))
    original = scope.run(["sha256sum", sample.disk.path]).stdout.split()[0]
    assert answers == {
        "length": str(sample.disk.length + FOOTER),
        "partitions": str(len(sample.disk.partitions)),
        "disk": original,
    }
    for number in (3, 4):
        found = [line.split(" ", 3)[2:] for line in said if line.startswith(f"file {number} ")]
        names = {name.strip().removeprefix("./"): digest for digest, name in found}
        assert names == {one.name: one.sha256 for one in sample.disk.partition(number).files}
