"""Real docker in a booted lab host: Debian's package with its units and our drop-in.

The only image is busybox.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

from systemd_host import UNITS, SystemdHost, documented

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import Container

UNPACKED = Path(sys.prefix, "docker")  # by tools/install-docker
OPTIONS = "/run/flannel/docker"
IMAGE = "busybox"
APPLETS = ("hostname", "ping", "sleep")  # the commands of the README's containers
LIFE = 300  # seconds after which a container ends, even if the test was killed

# The host's files are an overlay, and it has no D-Bus for control groups.
_SETTINGS = """\
DOCKER_OPTS="--storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs --shutdown-timeout 1"
"""


class Dockerd:
    """Installed on entry and started as the README describes, with its dependencies."""

    def __init__(self, booted: SystemdHost) -> None:
        self.booted = booted
        self.host = booted.host

    def __enter__(self) -> Dockerd:
        assert UNPACKED.is_dir(), f"docker is not unpacked in {UNPACKED}: run make deps-dev"
        # Debian 12 has the units in /lib, later releases have all in /usr.
        (units,) = (unit.parent for unit in UNPACKED.glob("**/system/docker.service"))
        self.booted.run_all(
            *(
                f"cp -rsn {UNPACKED}/{part}/. /{part}/"
                for part in ("usr", "lib")
                if (UNPACKED / part).is_dir()
            ),
            f"cp {units}/*.service {units}/docker.socket {UNITS}",
            "echo docker:x:4321: >> /etc/group",
        )
        self.booted.write("/etc/default/docker", _SETTINGS)
        drop_in = ("install ", "systemctl ")
        self.booted.run_all(
            *[line for line in documented("With docker") if line.startswith(drop_in)]
        )
        archive = self.host.directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(next(UNPACKED.glob("**/bin/busybox")), "bin/busybox")
            for name in APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        self.docker("import", str(archive), IMAGE)
        return self

    def __exit__(self, *_: object) -> None:
        self.booted.run("systemctl stop docker.socket docker containerd")

    @property
    def options(self) -> Mapping[str, str]:
        """The options that docker was started with."""
        words = shlex.split(self.booted.path(OPTIONS).read_text())
        return dict(word.split("=", 1) for word in words)

    def docker(self, *words: str) -> str:
        """The output of ``docker ...``."""
        return self.booted.run_all(shlex.join(["docker", *words])).strip()

    def run_container(self, name: str) -> Container:
        """A container that only sleeps, as a container of the lab."""
        sleep = ("/bin/busybox", "sleep", str(LIFE))
        self.docker(
            "run", "--detach", "--init", "--stop-timeout", "1", "--name", name, IMAGE, *sleep
        )
        return self._container(name)

    def start_container(self, name: str) -> Container:
        """Starts a container again that docker stopped."""
        self.docker("start", name)
        return self._container(name)

    def inside(self, name: str, *command: str) -> str:
        """The output of a busybox command in the container."""
        return self.docker("exec", name, "/bin/busybox", *command)

    def _container(self, name: str) -> Container:
        form = "{{.State.Pid}} {{.NetworkSettings.IPAddress}}"
        pid, address = self.docker("inspect", "--format", form, name).split()
        # With a name of the lab, so that the lab removes it.
        namespace = Namespace(f"{self.host.netns.name}-{name}")
        namespace.delete()
        namespace.path.touch()
        own = self.booted.path(f"/proc/{pid}/ns/net")
        subprocess.run(["mount", "--bind", own, namespace.path], check=True, timeout=30)
        return Container(f"{self.host.name}-{name}", namespace, IPv4Address(address))
