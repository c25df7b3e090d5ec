"""A host with two cables, and one with a tunnel as well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network

import pytest

from flannel_udp.backends.pump.pump import open_tun
from flannel_udp.host import tunnel_device
from flannel_udp.host.netns import Namespace

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
MTU = 1472


@pytest.fixture
def host(namespace: Namespace) -> Namespace:
    """Interfaces eth0 (172.30.0.1) and eth1 (172.31.0.1), each cabled to an unused peer."""
    for name, address in (("eth0", "172.30.0.1/24"), ("eth1", "172.31.0.1/24")):
        namespace.add_veth(name, namespace, f"{name}peer")
        namespace.add_address(name, IPv4Interface(address))
    return namespace


@pytest.fixture
def tunnel_host(host: Namespace) -> Iterator[Namespace]:
    """The host with a tunnel that needs no repair."""
    fd, name = host.call(open_tun)
    assert name == "flannel0"
    host.call(tunnel_device.configure, name, SUBNET.network_address, MTU, NETWORK)
    yield host
    os.close(fd)
