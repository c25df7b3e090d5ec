"""Notices of the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from flannel_udp.host.kernel_events import HostChanges, host_changes
from flannel_udp.host.netns import Namespace

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
PATIENCE = 5.0  # seconds


@pytest.fixture
def changes(namespace: Namespace) -> Iterator[HostChanges]:
    """Opened in the namespace, and to be read from anywhere."""
    opened = host_changes(NETWORK)
    yield namespace.call(opened.__enter__)
    opened.__exit__(None, None, None)


def ip(namespace: Namespace, words: str) -> None:
    namespace.run(["ip", *words.split()], check=True)


def is_reported(changes: HostChanges) -> bool:
    """Whether a change so far is reported as one that matters."""
    return bool(select.select([changes], [], [], 0)[0]) and changes.drain()


@pytest.mark.parametrize(
    "change",
    [
        "link set flannel0 down",
        "link del flannel0",
        "address add 172.30.0.2/24 dev eth0",
        "route del 10.1.0.0/16",
        "route add 10.1.7.0/24 via 172.30.0.7",
    ],
)
def test_changes_that_may_concern_the_tunnel_are_reported(
    tunnel_host: Namespace, changes: HostChanges, change: str
) -> None:
    ip(tunnel_host, change)
    assert is_reported(changes)


@pytest.mark.parametrize(
    "change", ["route add 192.0.0.0/8 dev lo", "route add 10.1.7.0/24 dev lo table 7"]
)
def test_routes_outside_the_network_are_not_reported(
    namespace: Namespace, changes: HostChanges, change: str
) -> None:
    ip(namespace, change)
    assert select.select([changes], [], [], PATIENCE)[0]
    assert not changes.drain()


def test_lost_notices_are_reported_as_a_change(namespace: Namespace, changes: HostChanges) -> None:
    with socket.socket(fileno=os.dup(changes.fileno())) as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    lines = "".join(f"route add 192.0.{n}.0/24 dev lo table 7\n" for n in range(200))
    namespace.run(["ip", "-batch", "-"], input=lines, check=True)
    assert changes.drain()
