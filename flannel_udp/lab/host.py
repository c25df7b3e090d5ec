"""The lab's hosts and their containers: network namespaces with a real daemon in each host."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from flannel_udp.errors import LabError
from flannel_udp.host import subnet_env
from flannel_udp.host.netns import Namespace
from flannel_udp.lab.etcd import child_environment, tail
from flannel_udp.lab.service import ServiceManager
from flannel_udp.observe.status_socket import read_status, status_path

READY_WITHIN = 30.0  # seconds
STOPPED_WITHIN = 15.0
BRIDGE = "docker0"
ANYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Container:
    """A namespace behind a host's bridge, as docker wires it."""

    name: str
    netns: Namespace
    address: IPv4Address

    @property
    def ping_address(self) -> IPv4Address:
        return self.address

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return self.netns.run(argv, **options)


@dataclass(frozen=True, slots=True)
class DaemonSetup:
    """How every host's daemon is started."""

    python: str
    etcd_url: str
    prefix: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    keeps_descriptors: bool = False  # by the service manager of the host


class Host:
    """A namespace on the underlay, with ``address`` on its eth0.

    Its containers are created when its daemon is ready for the first time, and again if a later
    daemon has another subnet.
    """

    def __init__(
        self,
        name: str,
        netns: Namespace,
        address: IPv4Address,
        directory: Path,
        setup: DaemonSetup,
        container_count: int,
    ) -> None:
        self.name = name
        self.netns = netns
        self.address = address
        self.directory = directory
        self.subnet_file = directory / "subnet.env"
        self.log_path = directory / "daemon.log"
        self.daemon: subprocess.Popen[Any] | None = None
        self.containers: list[Container] = []
        self._setup = setup
        self._container_count = container_count
        self._bridged: IPv4Interface | None = None
        self.manager = ServiceManager(
            directory / "notify", keeps_descriptors=setup.keeps_descriptors
        )

    @property
    def env(self) -> subnet_env.SubnetEnv | None:
        """The contents of subnet.env; None if there is none."""
        return subnet_env.read(self.subnet_file)

    @property
    def subnet(self) -> IPv4Network | None:
        return self.env.subnet_with_gateway.network if self.env else None

    @property
    def ping_address(self) -> IPv4Address:
        """The address by which containers reach this host: its bridge's, else the underlay's."""
        return self._bridged.ip if self._bridged else self.address

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return self.netns.run(argv, **options)

    def daemon_command(self, extra_args: Sequence[str] = ()) -> list[str]:
        """The command that start_daemon runs in the namespace."""
        return [
            self._setup.python,
            "-m",
            "flannel_udp",
            "--iface=eth0",
            f"--etcd-endpoints={self._setup.etcd_url}",
            f"--etcd-prefix={self._setup.prefix}",
            f"--subnet-file={self.subnet_file}",
            *self._setup.arguments,
            *extra_args,
        ]

    def start_daemon(self, extra_args: Sequence[str] = (), *, wait: bool = True) -> None:
        """With ``wait=False``, call wait_until_ready() later: several daemons start at one time."""
        if self.daemon is not None and self.daemon.poll() is None:
            raise LabError(f"a daemon runs on {self.name} already: stop it first")
        self.manager.wait_until_handled()
        self.manager.receive()  # notices of the previous daemon
        environment = child_environment({**self.manager.environment, **self._setup.environment})
        with self.log_path.open("ab") as log:
            self.daemon = self.netns.popen(
                self.manager.command(self.daemon_command(extra_args)),
                env=environment,
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=self.manager.passed,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until the daemon sends READY=1, then connect the containers.

        Raises LabError with the end of its log if it exits, or is not ready ``within`` seconds.
        """
        assert self.daemon is not None
        notices = self.manager.fileno()
        with open(os.pidfd_open(self.daemon.pid)) as ended:
            deadline = time.monotonic() + within
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                woken = select.select((notices, ended.fileno()), (), (), remaining)[0]
                if "READY=1" in self.manager.receive():
                    break
                if ended.fileno() in woken:
                    raise self._failed(f"ended with exit code {self.daemon.wait()}")
                if not woken:
                    raise self._failed(f"was not ready after {within:g} s")
        self._connect_containers()

    def stop_daemon(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code; if it does not end, kills it and raises LabError."""
        if self.daemon is None:
            raise LabError(f"no daemon runs on {self.name}")
        self.daemon.send_signal(sig)
        try:
            return self.daemon.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill_daemon()
            raise self._failed(f"ignored {sig.name} for {STOPPED_WITHIN:g} s") from None

    def kill_daemon(self) -> None:
        """Simulates a crash: nothing is cleaned up."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()

    def status(self) -> dict[str, Any]:
        """The status of the daemon. Raises OSError if none answers."""
        return read_status(status_path(self.subnet_file))

    def peer_counters(self) -> list[dict[str, Any]]:
        """The daemon's counters of each peer; empty if no daemon answers."""
        try:
            peers: list[dict[str, Any]] = self.status()["peers"]
        except OSError:
            return []
        return peers

    def _connect_containers(self) -> None:
        env = self.env
        if env is None:
            raise LabError(f"the daemon on {self.name} is ready but wrote no {self.subnet_file}")
        if env.subnet_with_gateway == self._bridged:
            return
        if self._bridged is not None:
            self.netns.delete_link(BRIDGE)
            for number, container in enumerate(self.containers):
                # The kernel removes a namespace later, and until then its veth has this name.
                self.netns.delete_link(_port(number))
                container.netns.delete()
        self.netns.add_bridge(BRIDGE)
        self.netns.add_address(BRIDGE, env.subnet_with_gateway)
        self._bridged = env.subnet_with_gateway
        self.containers = [self._connect(number, env) for number in range(self._container_count)]

    def _connect(self, number: int, env: subnet_env.SubnetEnv) -> Container:
        gateway = env.subnet_with_gateway
        address = IPv4Interface((gateway.ip + 1 + number, gateway.network.prefixlen))
        if address.ip >= gateway.network.broadcast_address:
            raise LabError(f"{gateway.network} has no room for {self._container_count} containers")
        port = _port(number)
        netns = Namespace(f"{self.netns.name}-{port}")
        netns.create()
        self.netns.add_veth(port, netns, "eth0", mtu=env.mtu)
        self.netns.set_link(port, master=BRIDGE)
        netns.add_address("eth0", address)
        netns.add_route(ANYWHERE, via=gateway.ip)
        return Container(f"{self.name}-{port}", netns, address.ip)

    def _failed(self, how: str) -> LabError:
        return LabError(
            f"the daemon on {self.name} {how}; its log ends with:\n{tail(self.log_path)}"
        )


def _port(number: int) -> str:
    """The host's end of a container's veth."""
    return f"c{number + 1}"
