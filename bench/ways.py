"""The ways a packet can go between the two hosts of a lab, all of them there at the same time.

Each has a bridge on either host, and a cable of its own into the same container::

    auto, tso ..  10.101.0.0/16 ..  daemons, each pair with a prefix in etcd and a port of its own
    vxlan         10.2.0.0/16       vxlan1 over eth0, as flannel's vxlan backend sets it up
    plain         10.3.0.0/16       no overlay: routed straight over eth0
    loop          10.4.0.0/16       rival.c: one read and one send for every packet

The lab's own daemons only make the containers, and are idle.
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

RIVAL_PORT = 8385
VXLAN_PORT = 8472
FIRST_PORT = 8286  # of daemons
READY_WITHIN = 30.0  # seconds


class WayError(Exception):
    """A way could not be built; the message says why."""


@dataclass(frozen=True, slots=True)
class Way:
    """``target`` is the address of the second host's container; ``daemons`` carry the packets."""

    name: str
    target: IPv4Address
    daemons: tuple[Host, ...] = ()

    def pump_seconds(self) -> float:
        """The CPU seconds that all its pumps have used so far."""
        return sum(float(each.status()["stats"]["cpu_ns"]) for each in self.daemons) / 1e9


def add_daemons(lab: Lab, name: str, number: int, daemons: Daemons) -> Way:
    """A pair of daemons; ``number`` (0, 1, ..) tells it from others."""
    prefix = f"/bench/{name}"
    network = IPv4Network((f"10.{101 + number}.0.0", 16))
    backend = {"Type": "udp", "Port": FIRST_PORT + number}
    config = {"Network": str(network), "Backend": backend}
    lab.etcdctl("put", f"{prefix}/config", json.dumps(config))
    # PYTHONPATH alone says which flannel_udp runs, not the directory we happen to be in.
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
        cable = _Cable(f"more{number}", network, daemon.env.mtu)
        target = cable.plug(host, daemon.env.subnet_with_gateway.network)
    return Way(name, target, tuple(pair))


def add_plain(lab: Lab) -> Way:
    """No overlay: the underlay itself, with a route to the other host's subnet."""
    cable = _Cable("plain", IPv4Network("10.3.0.0/16"), 1500)
    for host, peer in _both(lab):
        host.netns.add_route(_subnet(cable, peer), via=peer.address)
    return Way("plain", _plug_all(lab, cable))


def add_vxlan(lab: Lab) -> Way:
    """Kernel VXLAN from host to host."""
    cable = _Cable("vxlan", IPv4Network("10.2.0.0/16"), 1450)
    for host, peer in _both(lab):
        ends = ("local", str(host.address), "remote", str(peer.address), "dev", "eth0")
        kind = ("type", "vxlan", "id", "1", "dstport", str(VXLAN_PORT))
        _ip(host, "link", "add", "vxlan1", *kind, *ends)
        _ip(host, "addr", "add", f"{_subnet(cable, host)[0]}/32", "dev", "vxlan1")
        _ip(host, "link", "set", "vxlan1", "up", "mtu", str(cable.mtu))
        gateway = ("via", str(_subnet(cable, peer)[0]), "onlink")
        _ip(host, "route", "add", str(_subnet(cable, peer)), *gateway, "dev", "vxlan1")
    return Way("vxlan", _plug_all(lab, cable))


def add_rival(lab: Lab, program: Path) -> Way:
    """The loop that the preset ``none`` has to beat."""
    cable = _Cable("loop", IPv4Network("10.4.0.0/16"), 1472)
    for host, peer in _both(lab):
        command = [str(program), "loop0", str(host.address), str(peer.address), str(RIVAL_PORT)]
        rival = host.netns.popen(command, stdout=subprocess.PIPE)
        assert rival.stdout is not None
        if rival.stdout.readline() != b"ready\n":
            raise WayError(f"{program.name} did not start on {host.name}")
        host.netns.add_address("loop0", IPv4Interface((_subnet(cable, host)[0], 32)))
        host.netns.set_link("loop0", state="up", mtu=cable.mtu)
        host.netns.add_route(cable.network, device="loop0")
    return Way("loop", _plug_all(lab, cable))


@dataclass(frozen=True, slots=True)
class _Cable:
    """A further bridge on a host, and a cable from it into the host's container."""

    name: str
    network: IPv4Network
    mtu: int

    def plug(self, host: Host, subnet: IPv4Network) -> IPv4Address:
        """The container's address at the new cable's end."""
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


def _subnet(cable: _Cable, host: Host) -> IPv4Network:
    """10.3.2.0/24 for 172.30.0.2."""
    number = int(host.address) & 0xFF
    return IPv4Network((int(cable.network.network_address) + (number << 8), 24))


def _plug_all(lab: Lab, cable: _Cable) -> IPv4Address:
    return [cable.plug(host, _subnet(cable, host)) for host in lab.hosts][-1]


def _wait_until_ready(daemon: Host) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while True:
        try:
            if daemon.status()["ready"]:
                return
        except OSError:
            pass  # it does not answer yet
        if time.monotonic() > deadline:
            raise WayError(f"{daemon.name} is not ready:\n{tail(daemon.log_path)}")
        time.sleep(0.1)


def _ip(host: Host, *arguments: str) -> None:
    host.netns.run(["ip", *arguments], check=True)
