"""The lab: hosts and containers in network namespaces, a real etcd and real daemons.

The demo (``flannel-udp lab``), the tests and the benchmarks share it::

    switch namespace                      host namespaces               container namespaces
      bridge underlay 172.30.0.254/24       eth0 172.30.0.N/24
      etcd on port 2379          <-veth-->  docker0 10.1.5.1/24 <--veth-> eth0 10.1.5.2/24
                                            flannel0 10.1.5.0/32
"""

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Literal, Self

from flannel_udp.errors import DeviceError, LabError
from flannel_udp.host.netns import Namespace, settle, uninterrupted
from flannel_udp.lab import record as lab_record
from flannel_udp.lab.etcd import PORT, EtcdServer, find_program
from flannel_udp.lab.host import ANYWHERE, Container, DaemonSetup, Host
from flannel_udp.lab.record import LabRecord

__all__ = ["Container", "Host", "Lab", "Node"]

Node = Host | Container

UNDERLAY = IPv4Interface("172.30.0.254/24")
ETCD_URL = f"http://{UNDERLAY.ip}:{PORT}"
ROUTED_WITHIN = 10.0  # seconds from the last daemon being ready
DEFAULT_CONFIG: Mapping[str, object] = {"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}

# As a NIC does: frames of at most the MTU leave, and only received frames are merged.
_WIRE = ("tso", "off", "gso", "off", "tx-udp-segmentation", "off")


class Lab:
    """A context manager: builds everything on entry, removes everything on exit.

    ``underlay``: "direct" passes superpackets between hosts whole, as fast as the kernel can;
    "wire" sends frames of at most 1500 bytes and merges received ones (GRO), as real NICs do.
    ``config`` is the network config in etcd, as JSON or as a mapping; ``daemon_args`` are
    further flags and ``daemon_env`` further environment variables of every daemon; ``presets`` are
    the ``--offload`` of the first host's daemon, of the second's and so on.
    ``keeps_descriptors``: the hosts' service managers have a descriptor store, as systemd has.
    ``name`` (random by default) becomes part of the names of the namespaces. ``etcd_data`` is a
    directory for etcd's data, on another file system for example; the caller removes it.
    Raises LabError if the machine lacks something or a daemon does not start.
    """

    def __init__(
        self,
        hosts: int = 3,
        containers: int = 1,
        underlay: Literal["direct", "wire"] = "direct",
        config: Mapping[str, object] | str = DEFAULT_CONFIG,
        prefix: str = "/coreos.com/network",
        daemon_args: Sequence[str] = (),
        daemon_env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        start_daemons: bool = True,
        name: str | None = None,
        keeps_descriptors: bool = False,
        etcd_data: Path | None = None,
        presets: Sequence[str] = (),
    ) -> None:
        self.hosts: list[Host] = []
        self.prefix = prefix
        self._record: LabRecord | None = None
        self._etcd: EtcdServer | None = None
        self._host_count = hosts
        self._container_count = containers
        self._is_wire = underlay == "wire"
        self._config = config if isinstance(config, str) else json.dumps(config)
        self._setup = DaemonSetup(
            python, ETCD_URL, prefix, tuple(daemon_args), daemon_env or {}, keeps_descriptors
        )
        self._start_daemons = start_daemons
        self._name = name
        self._etcd_data = etcd_data
        self._presets = tuple(presets)

    def __enter__(self) -> Self:
        require_machine(("ethtool",) if self._is_wire else ())
        settle()  # starts its worker: what a signal interrupts from here on, settle() waits for
        try:
            self._claim()
            self._build()
        except (OSError, DeviceError) as error:
            self.close()
            raise LabError(
                f"the lab could not be built ({error.args[-1]}): run it as root on a machine"
                " or in a virtual machine, not in an unprivileged container"
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def _claim(self) -> None:
        def claim() -> None:  # assigns too, so that no signal separates claim and assignment
            self._record = lab_record.claim(self._name)

        try:
            lab_record.remove_dead()
            uninterrupted(claim)
        except OSError as error:
            raise LabError(f"the lab cannot write {error.filename}: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the daemons by SIGTERM, then remove everything."""
        for host in self.hosts:
            if host.daemon is not None:
                host.daemon.terminate()
        for host in self.hosts:
            with suppress(LabError):
                if host.daemon is not None:
                    host.stop_daemon()
            host.manager.close()
        settle()
        if self._etcd is not None:
            self._etcd.kill()
        if self._record is not None:
            lab_record.remove(self._record)

    @property
    def record(self) -> LabRecord:
        assert self._record is not None  # since __enter__
        return self._record

    @property
    def switch(self) -> Namespace:
        """The namespace of the underlay's bridge and of etcd."""
        return Namespace(f"{self.record.prefix}switch")

    @property
    def etcd(self) -> EtcdServer:
        assert self._etcd is not None  # since __enter__
        return self._etcd

    @property
    def nodes(self) -> list[Node]:
        """Every host and every container."""
        return [*self.hosts, *self.containers]

    @property
    def containers(self) -> list[Container]:
        return [container for host in self.hosts for container in host.containers]

    def start_daemons(self) -> None:
        """Start all at the same time; returns when all are ready."""
        for host in self.hosts:
            host.start_daemon(wait=False)
        for host in self.hosts:
            host.wait_until_ready()

    def _wait_for_routes(self) -> None:
        """Wait until every daemon has a route to every other host; LabError after a time limit."""
        everyone = {str(host.subnet) for host in self.hosts}
        deadline = time.monotonic() + ROUTED_WITHIN
        for host in self.hosts:
            while missing := everyone - {str(host.subnet)} - _routed(host):
                if time.monotonic() > deadline:
                    raise LabError(f"{host.name} has no route to {' and '.join(sorted(missing))}")
                time.sleep(0.01)

    def etcdctl(self, *arguments: str, input: str | None = None) -> str:
        return self.etcd.ctl(*arguments, input=input)

    def ping(self, source: Node, target: Node | IPv4Address, wait: int = 2) -> float | None:
        """One round trip in milliseconds, or None if nothing came back for ``wait`` seconds."""
        address = target if isinstance(target, IPv4Address) else target.ping_address
        answer = source.run(["ping", "-n", "-c", "1", "-W", str(wait), str(address)])
        _, found, rest = answer.stdout.partition(" time=")
        return float(rest.split()[0]) if found else None

    def ping_matrix(self, patience: float = 5.0) -> dict[tuple[str, str], float | None]:
        """Round trips between all pairs of nodes, by their names.

        Each ping is repeated for ``patience`` seconds: by then all daemons must have routes to
        each other.
        """
        deadline = time.monotonic() + patience
        pairs = list(itertools.permutations(self.nodes, 2))
        with ThreadPoolExecutor(max_workers=4) as pool:
            answers = pool.map(lambda pair: self._ping_until(deadline, *pair), pairs)
            return {(a.name, b.name): rtt for (a, b), rtt in zip(pairs, answers, strict=True)}

    def _ping_until(self, deadline: float, source: Node, target: Node) -> float | None:
        while True:
            round_trip = self.ping(source, target, wait=1)
            if round_trip is not None or time.monotonic() > deadline:
                return round_trip

    def throughput(self, source: Node, target: Node, seconds: int = 1) -> float:
        """Gigabits of TCP payload per second, measured by iperf3; raises LabError if it fails."""
        command = ("iperf3", "--server", "--one-off", "--forceflush")
        with target.netns.popen(command, stdout=-1, text=True, process_group=0) as server:
            try:
                for line in server.stdout or ():
                    if "Server listening" in line:
                        break
                client = ("iperf3", "--client", str(target.ping_address), "--json")
                limits = ("--time", str(seconds), "--connect-timeout", "3000")
                answer = json.loads(source.run([*client, *limits]).stdout)
            finally:
                server.kill()
        if "error" in answer:
            raise LabError(f"iperf3 from {source.name} to {target.name}: {answer['error']}")
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9

    def _build(self) -> None:
        self.switch.create()
        self.switch.add_bridge("underlay")
        self.switch.add_address("underlay", UNDERLAY)
        with suppress(FileNotFoundError):  # it exists only if br_netfilter is loaded
            # If on, every frame on the bridge passes iptables and costs as much as the overlay.
            self.switch.sysctl("bridge/bridge-nf-call-iptables", 0)
        self._etcd = EtcdServer(
            self.switch, UNDERLAY.ip, Path(self.record.directory), self._etcd_data
        )
        self._etcd.start()
        self.etcdctl("put", f"{self.prefix}/config", self._config)
        for number in range(1, self._host_count + 1):
            preset = [f"--offload={each}" for each in self._presets[number - 1 : number]]
            setup = replace(self._setup, arguments=(*self._setup.arguments, *preset))
            self.hosts.append(self._add_host(number, setup))
        if self._start_daemons:
            self.start_daemons()
            self._wait_for_routes()

    def _add_host(self, number: int, setup: DaemonSetup) -> Host:
        name = f"host{number}"
        directory = Path(self.record.directory, name)
        directory.mkdir()
        address = IPv4Interface((UNDERLAY.network[number], UNDERLAY.network.prefixlen))
        netns = Namespace(f"{self.record.prefix}{name}")
        netns.create()
        self.switch.add_veth(name, netns, "eth0")
        self.switch.set_link(name, master="underlay")
        netns.add_address("eth0", address)
        netns.add_route(ANYWHERE, via=UNDERLAY.ip)
        netns.sysctl("ipv4/ip_forward", 1)
        if self._is_wire:
            netns.run(["ethtool", "-K", "eth0", *_WIRE, "gro", "on"], check=True)
            self.switch.run(["ethtool", "-K", name, *_WIRE], check=True)
        return Host(name, netns, address.ip, directory, setup, self._container_count)


def require_machine(further_programs: Sequence[str] = ()) -> None:
    """Raises LabError, with what to install, unless this machine can run a lab."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and TUN devices: run it as root")
    if not Path("/dev/net/tun").is_char_device():
        raise LabError(
            "the lab needs /dev/net/tun: load the module (modprobe tun), or give the device to"
            " the container"
        )
    packages = {"ip": "iproute2", "ping": "iputils-ping", "setpriv": "util-linux"}
    for program in (*packages, *further_programs):
        if shutil.which(program) is None:
            package = packages.get(program, program)
            raise LabError(f"the lab needs {program}: apt-get install {package}")
    find_program("etcd")
    find_program("etcdctl")


def _routed(host: Host) -> set[str]:
    """The subnets to which the host's daemon has routes."""
    return {subnet for peer in host.status()["peers"] for subnet in peer["subnets"]}
