"""The port of the pump's socket is kept on all addresses, and who has it already is named."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface

import pytest

from flannel_udp.backends.pump.port_guard import PortGuard
from flannel_udp.backends.pump.pump import open_udp
from flannel_udp.host.netns import Namespace

OWN_IP = IPv4Address("172.30.0.1")
PORT = 8285


@pytest.fixture
def udp_fd(namespace: Namespace) -> Iterator[int]:
    namespace.add_address("lo", IPv4Interface(OWN_IP))
    fd = namespace.call(open_udp, OWN_IP, PORT)
    yield fd
    os.close(fd)


@contextmanager
def held(namespace: Namespace, udp_fd: int) -> Iterator[PortGuard]:
    guard = PortGuard()
    namespace.call(guard.hold, udp_fd)
    yield guard
    guard.release()


def bind(namespace: Namespace, address: str, option: int = 0) -> socket.socket:
    s = namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    if option:
        s.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        s.bind((address, PORT))
    except OSError:
        s.close()
        raise
    return s


@pytest.mark.parametrize("option", [0, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", str(OWN_IP)])
def test_no_other_socket_can_have_the_port(
    namespace: Namespace, udp_fd: int, address: str, option: int, caplog: pytest.LogCaptureFixture
) -> None:
    with held(namespace, udp_fd), pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        bind(namespace, address, option)
    assert caplog.messages == []


def test_what_the_pump_receives_is_not_changed(namespace: Namespace, udp_fd: int) -> None:
    with held(namespace, udp_fd), bind_sender(namespace) as sender:
        sender.sendto(b"elsewhere", ("127.0.0.1", PORT))
        sender.sendto(b"here", (str(OWN_IP), PORT))
        with socket.socket(fileno=os.dup(udp_fd)) as pump:
            assert pump.recv(100) == b"here"


def bind_sender(namespace: Namespace) -> socket.socket:
    return namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)


def test_after_the_release_the_port_is_free_and_can_be_kept_again(
    namespace: Namespace, udp_fd: int
) -> None:
    with held(namespace, udp_fd):
        pass
    bind(namespace, "127.0.0.1").close()
    with held(namespace, udp_fd), pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        bind(namespace, "127.0.0.1")


@pytest.mark.parametrize("is_older", [True, False])
def test_a_program_that_has_the_port_already_is_named(
    namespace: Namespace, is_older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    namespace.add_address("lo", IPv4Interface(OWN_IP))
    other = bind(namespace, "127.0.0.1") if is_older else None
    fd = namespace.call(open_udp, OWN_IP, PORT)
    with other or bind(namespace, "127.0.0.1"), held(namespace, fd):
        (line,) = caplog.messages
    os.close(fd)
    assert f", process {os.getpid()} has UDP port {PORT} too" in line.replace(", of", " ")
