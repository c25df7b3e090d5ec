"""Sets up the compared datapaths between the two hosts of a lab, all at the same time.

Each has a bridge on either host, and a veth pair of its own into the same container::

    auto, tso ..  10.101.0.0/16 ..  daemons; each pair has its own etcd prefix and port
    vxlan         10.2.0.0/16       vxlan1 over eth0, as flannel's vxlan backend sets it up
    plain         10.3.0.0/16       no overlay: routed over eth0
    loop          10.4.0.0/16       simple_loop.c: one read and one send per packet
    copies        10.5.0.0/16       simple_loop.c: one read and one send per superpacket

The lab's own daemons are idle; they are only needed for the containers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from bench.plan import Daemons
from flannel_udp.lab.etcd import tail
from flannel_udp.lab.host import DaemonSetup, Host
from flannel_udp.lab.lab import Lab

LOOP_PORT = 8385
COPIES_PORT = 8386
COPIES_SEGMENT = 1472
COPIES_SUPERPACKET = 60_000  # with its vnet header it fits into one send, of 65,507 bytes at most
VXLAN_PORT = 8472
FIRST_PORT = 8286  # of daemons
READY_WITHIN = 30.0  # seconds


class DatapathError(Exception):
    """A datapath could not be set up; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Datapath:
    """``target`` is the address of the second host's container; ``daemons`` may be empty."""

    name: str
    target: IPv4Address
    daemons: tuple[Host, ...] = ()

    def pump_seconds(self) -> float:
        """CPU seconds of all its pumps so far."""
        return sum(float(each.status()["stats"]["cpu_ns"]) for each in self.daemons) / 1e9


def add_daemons(lab: Lab, name: str, number: int, daemons: Daemons) -> Datapath:
    """A pair of daemons; ``number`` (0, 1, ..) gives each pair its own network and port."""
    prefix = f"/bench/{name}"
    network = IPv4Network((f"10.{101 + number}.0.0", 16))
    backend = {"Type": "udp", "Port": FIRST_PORT + number}
    config = {"Network": str(network), "Backend": backend}
    lab.etcdctl("put", f"{prefix}/config", json.dumps(config))
    # PYTHONPATH alone selects the flannel_udp that runs, not the current directory.
    environment = {"PYTHONSAFEPATH": "1"} | dict(daemons.environment)
    setup = DaemonSetup(sys.executable, lab.etcd.url, prefix, daemons.arguments, environment)
    pair = []
    for host in lab.hosts:
        directory = host.directory / name
        directory.mkdir()
        daemon = Host(f"{host.name} ({name})", host.netns, host.address, directory, setup, 0)
        daemon.start_daemon(wait=False)
        pair.append(daemon)
    for host, daemon in zip(lab.hosts, pair, strict=True):
        _wait_until_ready(daemon)
        assert daemon.env is not None
        link = _Link(f"more{number}", network, daemon.env.mtu)
        target = link.add_to(host, daemon.env.subnet_with_gateway.network)
    return Datapath(name, target, tuple(pair))


def add_plain(lab: Lab) -> Datapath:
    """No overlay: a route over the underlay to the other host's subnet."""
    link = _Link("plain", IPv4Network("10.3.0.0/16"), 1500)
    for host, peer in _both(lab):
        host.netns.add_route(_subnet(link, peer), via=peer.address)
    return Datapath("plain", _add_to_all(lab, link))


def add_vxlan(lab: Lab) -> Datapath:
    """Kernel VXLAN from host to host."""
    link = _Link("vxlan", IPv4Network("10.2.0.0/16"), 1450)
    for host, peer in _both(lab):
        ends = ("local", str(host.address), "remote", str(peer.address), "dev", "eth0")
        kind = ("type", "vxlan", "id", "1", "dstport", str(VXLAN_PORT))
        _ip(host, "link", "add", "vxlan1", *kind, *ends)
        _ip(host, "addr", "add", f"{_subnet(link, host)[0]}/32", "dev", "vxlan1")
        _ip(host, "link", "set", "vxlan1", "up", "mtu", str(link.mtu))
        gateway = ("via", str(_subnet(link, peer)[0]), "onlink")
        _ip(host, "route", "add", str(_subnet(link, peer)), *gateway, "dev", "vxlan1")
    return Datapath("vxlan", _add_to_all(lab, link))


def add_loop(lab: Lab, program: Path) -> Datapath:
    """One read and one send per packet, which the preset ``none`` must exceed."""
    link = _Link("loop", IPv4Network("10.4.0.0/16"), 1472)
    _start_loops(lab, link, program, LOOP_PORT)
    return Datapath("loop", _add_to_all(lab, link))


def add_copies(lab: Lab, program: Path) -> Datapath:
    """One read and one send per superpacket: what four copies of each byte cost by themselves."""
    link = _Link("copies", IPv4Network("10.5.0.0/16"), 1472)
    _start_loops(lab, link, program, COPIES_PORT, COPIES_SEGMENT)
    target = _add_to_all(lab, link)
    for container in lab.containers:
        superpacket = ("gso_max_size", str(COPIES_SUPERPACKET))
        container.netns.run(["ip", "link", "set", link.name, *superpacket], check=True)
    return Datapath("copies", target)


def _start_loops(lab: Lab, link: _Link, program: Path, port: int, *segment: int) -> None:
    device = f"{link.name}0"
    for host, peer in _both(lab):
        ends = (str(host.address), str(peer.address))
        command = [str(program), device, *ends, *(str(number) for number in (port, *segment))]
        simple_loop = host.netns.popen(command, stdout=subprocess.PIPE)
        assert simple_loop.stdout is not None
        if simple_loop.stdout.readline() != b"ready\n":
            raise DatapathError(f"{program.name} did not start on {host.name}")
        host.netns.add_address(device, IPv4Interface((_subnet(link, host)[0], 32)))
        host.netns.set_link(device, state="up", mtu=link.mtu)
        host.netns.add_route(link.network, device=device)


@dataclass(frozen=True, slots=True)
class _Link:
    """One more bridge on a host, and a veth pair from it into the host's container."""

    name: str
    network: IPv4Network
    mtu: int

    def add_to(self, host: Host, subnet: IPv4Network) -> IPv4Address:
        """Returns the address of the new interface in the container."""
        bridge, container = f"br-{self.name}", host.containers[0]
        gateway, inside = subnet[1], subnet[2]
        host.netns.add_bridge(bridge)
        host.netns.add_address(bridge, IPv4Interface((gateway, subnet.prefixlen)))
        host.netns.add_veth(self.name, container.netns, self.name, mtu=self.mtu)
        host.netns.set_link(self.name, master=bridge)
        container.netns.add_address(self.name, IPv4Interface((inside, subnet.prefixlen)))
        container.netns.add_route(self.network, via=gateway)
        return inside


def _both(lab: Lab) -> tuple[tuple[Host, Host], tuple[Host, Host]]:
    """Each host with its peer."""
    first, second = lab.hosts
    return (first, second), (second, first)


def _subnet(link: _Link, host: Host) -> IPv4Network:
    """10.3.2.0/24 for 172.30.0.2."""
    number = int(host.address) & 0xFF
    return IPv4Network((int(link.network.network_address) + (number << 8), 24))


def _add_to_all(lab: Lab, link: _Link) -> IPv4Address:
    return [link.add_to(host, _subnet(link, host)) for host in lab.hosts][-1]


def _wait_until_ready(daemon: Host) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while True:
        try:
            if daemon.status()["ready"]:
                return
        except OSError:
            pass  # it does not listen yet
        if time.monotonic() > deadline:
            raise DatapathError(f"{daemon.name} is not ready:\n{tail(daemon.log_path)}")
        time.sleep(0.1)


def _ip(host: Host, *arguments: str) -> None:
    host.netns.run(["ip", *arguments], check=True)
