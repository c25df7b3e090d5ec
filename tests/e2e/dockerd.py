"""Real docker in a lab host: a dockerd of its own, with containers that hold busybox alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from etcd_server import wait_until

from flannel_udp.lab import Container, Host
from flannel_udp.lab_etcd import child_environment, tail
from flannel_udp.netns import Namespace

UNPACKED = Path(sys.prefix, "docker")  # by tools/install-docker
IMAGE = "busybox"
APPLETS = ("hostname", "ping", "sleep")  # what the README's containers run
LIFE = 300  # seconds after which a container ends, whatever became of the test

# In the mount namespace that ip netns exec makes: a /run and a cgroup tree as docker wants them.
_START = """\
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
. "$0"
exec dockerd "$@" $DOCKER_NETWORK_OPTIONS
"""


class Dockerd:
    """Runs with the options that mk-docker-opts writes for the host; a context manager."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._directory = host.directory / "docker"
        self._directory.mkdir()
        self._options = self._directory / "options"
        self._socket = f"unix://{self._directory}/docker.sock"
        self._log = self._directory / "dockerd.log"
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Dockerd:
        self.start()
        archive = self._directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(next(UNPACKED.glob("**/bin/busybox")), "bin/busybox")
            for name in APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        self.docker("import", str(archive), IMAGE)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Mapping[str, str]:
        """As the host's services do: first the options, which are returned, then docker."""
        program = Path(sys.executable).with_name("mk-docker-opts")
        files = ("-f", str(self.host.subnet_file), "-d", str(self._options))
        self.host.run([str(program), "-k", "DOCKER_NETWORK_OPTIONS", *files], check=True)
        command = (
            *("sh", "-e", "-c", _START, str(self._options), "--host", self._socket),
            *("--data-root", str(self._directory / "data"), "--storage-driver", "vfs"),
            *("--exec-root", str(self._directory / "exec")),
            *("--pidfile", str(self._directory / "pid"), "--shutdown-timeout", "1"),
        )
        with self._log.open("ab") as log:
            self._process = self.host.netns.popen(
                command, env=_environment(), stdout=log, stderr=log, process_group=0
            )
        wait_until(self._answers, "dockerd answering", 60)
        words = shlex.split(self._options.read_text())
        return dict(word.split("=", 1) for word in words)

    def stop(self) -> None:
        """Docker stops its containers."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def docker(self, *words: str) -> str:
        """What ``docker ...`` prints."""
        result = self._run(*words)
        said = f"docker {' '.join(words)}: {result.stderr}\n{tail(self._log)}"
        assert result.returncode == 0, said
        return result.stdout.strip()

    def run_container(self, name: str) -> Container:
        """One that does nothing, for the lab's instruments to use."""
        sleep = ("/bin/busybox", "sleep", str(LIFE))
        self.docker(
            "run", "--detach", "--init", "--stop-timeout", "1", "--name", name, IMAGE, *sleep
        )
        return self._container(name)

    def start_container(self, name: str) -> Container:
        """Again, after docker stopped it."""
        self.docker("start", name)
        return self._container(name)

    def inside(self, name: str, *command: str) -> str:
        """What busybox prints in the container."""
        return self.docker("exec", name, "/bin/busybox", *command)

    def _container(self, name: str) -> Container:
        form = "{{.State.Pid}} {{.NetworkSettings.IPAddress}}"
        pid, address = self.docker("inspect", "--format", form, name).split()
        # By a name of the lab's, under which the lab also sees to its end.
        namespace = Namespace(f"{self.host.netns.name}-{name}")
        namespace.delete()
        subprocess.run(["ip", "netns", "attach", namespace.name, pid], check=True, timeout=30)
        return Container(f"{self.host.name}-{name}", namespace, IPv4Address(address))

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"dockerd ended:\n{tail(self._log)}"
        return self._run("version").returncode == 0

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.run(["docker", "--host", self._socket, *words], env=_environment())


def _environment() -> dict[str, str]:
    """For the unpacked programs and their libraries."""
    assert UNPACKED.is_dir(), f"docker is not unpacked in {UNPACKED}: run make deps-dev"
    folders = [str(UNPACKED / "usr/sbin"), str(UNPACKED / "usr/bin"), os.environ["PATH"]]
    libraries = [str(folder) for folder in UNPACKED.glob("**/*-linux-gnu*")]
    return child_environment({"PATH": ":".join(folders), "LD_LIBRARY_PATH": ":".join(libraries)})
