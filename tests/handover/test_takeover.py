"""A process goes on with descriptors only if they are what their state says."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.backends.pump.pump import open_tun, open_udp, pack
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import OwnLease, Snapshot
from flannel_udp.errors import DeviceError
from flannel_udp.handover import state as handover
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.state import Head
from flannel_udp.handover.takeover import Takeover, here, take_over
from flannel_udp.host.locks import hold
from flannel_udp.host.netns import Namespace
from flannel_udp.options import Options
from flannel_udp.routing.routes import Knowledge

OPTIONS = Options()
CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
ADDRESS = IPv4Address("127.0.0.1")
OWN = OwnLease(
    IPv4Network("10.1.5.0/24"),
    IPv4Address("172.30.0.1"),
    "/coreos.com/network/subnets/10.1.5.0-24",
    etcd_lease=1,
    mod_revision=1,
    deadline=1e9,
)
ROUTES = {IPv4Network("10.1.6.0/24"): IPv4Address("172.30.0.2")}


@dataclass
class Left:
    """What a last process left in the namespace."""

    namespace: Namespace
    head: Head
    table: bytes = field(default_factory=lambda: pack(ROUTES))
    descriptors: dict[str, int] = field(default_factory=dict)

    def record(self, head: Head) -> None:
        content = b"".join(handover.encode(head, self.table, Knowledge(Snapshot((), 1))))
        with MemoryFile(os.dup(self.descriptors["state"])) as memory:
            memory.write(content)

    @contextlib.contextmanager
    def taken(self, options: Options = OPTIONS) -> Iterator[Takeover | None]:
        taken = self.namespace.call(take_over, options, self.descriptors)
        try:
            yield taken
        finally:
            if taken:
                taken.carried.close()


@pytest.fixture
def left(namespace: Namespace) -> Iterator[Left]:
    tun, device = namespace.call(open_tun)
    udp = namespace.call(open_udp, ADDRESS, CONFIG.port)
    place = namespace.call(here)
    head = Head(place, OPTIONS.etcd_prefix, CONFIG, OWN, ADDRESS, device, vnet_header=True)
    left = Left(namespace, head)
    left.descriptors |= {"tun": tun, "udp": udp, "state": MemoryFile.create().descriptor}
    left.record(head)
    yield left
    for descriptor in left.descriptors.values():
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            pytest.fail("a descriptor was left open")


def test_packets_flow_with_the_last_table(left: Left) -> None:
    with left.taken() as taken:
        assert taken
        assert taken.pump.lookup(IPv4Address("10.1.6.9")) == ROUTES[IPv4Network("10.1.6.0/24")]
        assert taken.pump.failure is None
        with pytest.raises(DeviceError, match="already runs here"):
            left.namespace.call(hold(CONFIG.port).__enter__)


def without_tun(left: Left) -> None:
    os.close(left.descriptors.pop("tun"))


def another_device(left: Left) -> None:
    os.close(left.descriptors["tun"])
    left.descriptors["tun"], _ = left.namespace.call(open_tun, "other%d")


def no_device(left: Left) -> None:
    os.dup2(left.descriptors["udp"], left.descriptors["tun"])


def deleted_device(left: Left) -> None:
    left.namespace.delete_link(left.head.device)


def another_port(left: Left) -> None:
    os.close(left.descriptors["udp"])
    left.descriptors["udp"] = left.namespace.call(open_udp, ADDRESS, 9999)


def tcp_socket(left: Left) -> None:
    os.close(left.descriptors["udp"])
    left.descriptors["udp"] = socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def another_boot(left: Left) -> None:
    left.record(dataclasses.replace(left.head, place=dataclasses.replace(here(), boot_id="1")))


def torn_table(left: Left) -> None:
    left.table = left.table[:-1]
    left.record(left.head)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_tun, "the descriptor 'tun' is missing"),
        (another_device, "the TUN device is other0"),
        (no_device, "flannel0 is gone"),
        (deleted_device, "flannel0 is gone"),
        (another_port, "bound to ('127.0.0.1', 9999), not to 127.0.0.1 port 8285"),
        (tcp_socket, "the UDP socket is bound to"),
        (another_boot, "it is of an earlier boot"),
        (torn_table, "the pump does not start with it"),
    ],
)
def test_anything_else_is_given_up_with_a_sentence(
    change: Callable[[Left], None], sentence: str, left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    change(left)
    with left.taken() as taken:
        assert taken is None
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert line.startswith("cannot go on with what the last process left: ")
    assert sentence in line


def test_another_preset_needs_another_device(left: Left, caplog: pytest.LogCaptureFixture) -> None:
    with left.taken(dataclasses.replace(OPTIONS, offload="none")) as taken:
        assert taken is None
    assert "--offload" in caplog.text


def test_nothing_inherited_is_nothing_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    assert take_over(OPTIONS, {"http": 0}) is None
    assert not caplog.records
