from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.host import ports

LOOPBACK = IPv4Address("127.0.0.1")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_names_who_listens(family: socket.AddressFamily) -> None:
    with socket.create_server(("", 0), family=family, dualstack_ipv6=family != socket.AF_INET) as s:
        port = s.getsockname()[1]
        assert not ports.is_free(LOOPBACK, port)
        comm = Path("/proc/self/comm").read_text().strip()
        assert ports.listener(port).startswith(f"{comm}, process {os.getpid()}")
    assert ports.is_free(LOOPBACK, port)
    assert ports.listener(port) == "another program"


def test_a_udp_port_names_who_has_it_besides_us() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.bind(("::", 0))
        port = s.getsockname()[1]
        assert f", process {os.getpid()}" in ports.udp_holder(port, set())
        assert ports.udp_holder(port, {s.fileno()}) == ""
    assert ports.udp_holder(port, set()) == ""


def test_a_connected_port_is_no_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert ports.listener(client.getsockname()[1]) == "another program"
