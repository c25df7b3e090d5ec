"""A real systemd as the init of a lab host, for the units of ``packaging/``.

It runs in its own process, mount and control group namespaces and has only the units that a test
installs, so it is independent of this machine's systemd. The files that it and its services write
disappear with it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Self

from etcd_server import wait_until

from flannel_udp.lab.lab import Host, Lab

ROOT = Path(__file__).parent.parent.parent
UNITS = "/etc/systemd/system"
UNIT = "flannel-udp.service"
SETTINGS = "/etc/default/flannel-udp"
_PROGRAM = (str(ROOT), sys.prefix, sys.base_prefix)  # the directories of the tested program

# Runs in the lab host's network namespace: enter a new control group ($0).
_ENTER = """\
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/$0
echo 0 > /sys/fs/cgroup/$0/cgroup.procs
exec unshare --cgroup sh -ec "$BOOT" "$@"
"""
# Then: an overlay on this machine's files as root, the file systems that an init expects, and the
# targets that units refer to. $0 is systemd, $1 becomes /opt/flannel-udp, $2 is shared with the
# tests, and the others hold the program: they are read-only, and in the overlay already if they are
# on the root file system. Of the sysctls, only those of the network are the host's own; systemd
# raises fs.nr_open if it can.
_BOOT = f"""\
init=$0 installed=$1 shared=$2
shift 2
mount -t tmpfs tmpfs /run
mkdir /run/root /run/changes /run/work
mount -t overlay -o lowerdir=/,upperdir=/run/changes,workdir=/run/work overlay /run/root
cd /run/root
mount -t proc proc proc
for each in fs kernel vm; do
    mount --bind -o ro proc/sys/$each proc/sys/$each
done
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount --rbind /dev dev
mkdir -p opt/flannel-udp
mount --bind -o ro $installed opt/flannel-udp
mkdir -p ./$shared
mount --bind $shared ./$shared
for each; do
    [ $(findmnt --noheadings --output TARGET --target $each) = / ] && continue
    mkdir -p ./$each
    mount --bind -o ro $each ./$each
done
mount -t tmpfs tmpfs .{UNITS}
for each in basic default multi-user network-online shutdown sockets sysinit; do
    echo '[Unit]' > .{UNITS}/$each.target
done
mkdir -p mnt
pivot_root . mnt
umount --lazy /mnt
exec $init --system --log-target=null
"""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_UNIT_PATH": UNITS,
    "container": "lab",
}
# Remove the control groups, which is possible when all their processes have ended.
_LEAVE = """\
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
while [ -e $0 ]; do find $0 -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.05; done
"""
# The tested program is in a checkout, maybe in a home directory or below /tmp, where the unit's
# sandbox would hide it. Its log goes to the file that the lab's other daemons use.
_EXCEPTIONS = """\
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={paths}
StandardOutput=append:{log}
StandardError=append:{log}
"""


def documented(heading: str) -> list[str]:
    """The shell commands in a section of the README."""
    text = (ROOT / "README.md").read_text()
    section = re.split(r"\n##+ ", text.partition(f"\n### {heading}\n")[2])[0]
    return "".join(re.findall("```sh\n(.*?)```", section, re.DOTALL)).splitlines()


class SystemdHost:
    """Boots on entry; on exit systemd and all its services are killed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._group = f"fltest-{uuid.uuid4().hex[:8]}"
        self._process: subprocess.Popen[Any] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        program = next(filter(os.path.exists, ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")))
        paths = [sys.prefix, str(self.host.directory), *_PROGRAM]
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
        self._process = self.host.netns.popen(
            ["unshare", *namespaces, "sh", "-ec", _ENTER, self._group, program, *paths],
            env=_ENVIRONMENT | {"BOOT": _BOOT},
        )
        try:
            wait_until(self._is_up, "systemd being up", 20)
        except BaseException:
            self.close()
            raise
        self.host.subnet_file = self.path("/run/flannel/subnet.env")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.host.netns.run(["sh", "-c", _LEAVE, self._group], timeout=20, check=True)

    def path(self, inside: str) -> Path:
        """The path in this process's file system of a file of the booted host."""
        return Path(f"/proc/{self._init}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a shell command in the booted host, in the checkout."""
        inside = ("nsenter", f"--target={self._init}", "--all", "sh", "-c")
        return subprocess.run(
            [*inside, f"cd {shlex.quote(str(ROOT))}; {command}"],
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def run_all(self, *commands: str) -> str:
        """Returns the output of the commands; each of them must succeed."""
        output = ""
        for command in commands:
            result = self.run(command)
            output += result.stdout
            assert result.returncode == 0, f"{command}: {output}{result.stderr}\n{self.log}"
        return output

    def install_service(self, lab: Lab, *settings: str) -> list[str]:
        """Installs as the README describes, with these settings; returns the commands to start."""
        commands = documented("As a service")
        copies = [line for line in commands if line.startswith("install ")]
        self.run_all(*copies)
        lines = (f"FLANNELD_ETCD_ENDPOINTS={lab.etcd.url}", "FLANNELD_IFACE=eth0", *settings)
        with self.path(SETTINGS).open("a") as file:
            file.write("\n".join(lines) + "\n")
        self.allow_the_checkout()
        return [line for line in commands if line not in copies]

    def allow_the_checkout(self, unit: str = UNIT) -> None:
        """Lets the unit read the tested program, which its sandbox would hide."""
        text = _EXCEPTIONS.format(paths=" ".join(_PROGRAM), log=self.host.log_path)
        self.write(f"{UNITS}/{unit}.d/test.conf", text)

    def property_of(self, name: str, unit: str = UNIT) -> str:
        """A property of the unit, as systemctl shows it."""
        return self.run_all(f"systemctl show --value -p {name} {unit}").strip()

    @property
    def log(self) -> str:
        """The output of all services."""
        path = self.host.log_path
        return path.read_text(errors="replace") if path.exists() else ""

    def _is_up(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"systemd ended with {self._process.returncode}"
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._init = int(children[0]) if children else 0
        return bool(self._init) and self.run("systemctl is-system-running").returncode == 0
