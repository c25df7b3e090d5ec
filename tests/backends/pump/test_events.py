"""Refusals and the pump's end, seen from the log and the daemon."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannel_udp.backends.pump import events
from flannel_udp.backends.pump.events import PumpWatch
from flannel_udp.backends.pump.pump import STAT_NAMES, Pump, PumpConfig, Refusal, open_tun, open_udp
from flannel_udp.host import tunnel_device
from flannel_udp.host.netns import Namespace

NETWORK = IPv4Network("10.1.0.0/16")
OWN_SUBNET = IPv4Network("10.1.5.0/24")
OWN_IP = IPv4Address("172.30.0.1")
STRANGER = "172.30.0.66"
PORT = 8285
PATIENCE = 5.0  # seconds


@dataclass
class Rig:
    namespace: Namespace
    pump: Pump
    device: str
    udp_fd: int
    failed: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> PumpWatch:
        return PumpWatch(self.pump, self.failed.set)

    def send(self, source: str, data: bytes = b"no packet") -> None:
        before = sum(self.drops())
        with self.namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(data, (str(OWN_IP), PORT))
        eventually(lambda: sum(self.drops()) > before)

    def drops(self) -> list[int]:
        return [n for name, n in self.pump.stats().items() if name.startswith("drop_udp")]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s"
        time.sleep(0.005)


@pytest.fixture
def rig(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Rig]:
    monkeypatch.setattr(events, "_GRACE", 0.3)
    caplog.set_level(logging.INFO)
    for address in (OWN_IP, IPv4Address(STRANGER)):
        namespace.add_address("lo", IPv4Interface(f"{address}/32"))
    tun_fd, device = namespace.call(open_tun)
    udp_fd = namespace.call(open_udp, OWN_IP, PORT)
    tun_address = OWN_SUBNET.network_address
    namespace.call(tunnel_device.configure, device, tun_address, 1472, NETWORK)
    with Pump(PumpConfig(tun_fd, udp_fd, NETWORK, OWN_SUBNET, OWN_IP, tun_address)) as pump:
        pump.start()
        yield Rig(namespace, pump, device, udp_fd)
    for fd in (tun_fd, udp_fd):
        with suppress(OSError):
            os.close(fd)


def packet(source: str, destination: str = "10.1.5.2") -> bytes:
    """An IPv4 header and nothing else."""
    header = bytes.fromhex("4500 0014 0000 0000 40fd 0000")
    return header + IPv4Address(source).packed + IPv4Address(destination).packed


def test_an_unknown_source_is_logged_once_with_advice(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with rig.watch():
        for _ in range(3):
            rig.send(STRANGER, packet("10.1.6.2"))
        eventually(lambda: bool(caplog.messages))
        rig.send(STRANGER, packet("10.1.6.2"))
    assert caplog.messages == [
        f"refused a packet from {STRANGER}, inner 10.1.6.2 to 10.1.5.2: udp_unknown_peer;"
        " further such packets from there are only counted; if a host of this network sends from"
        " another address than its PublicIP, start this daemon with --source-check off"
    ]


def test_two_strangers_who_share_a_slot_of_the_workers_memory_are_named_once_each(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    reason = [name for name in STAT_NAMES if name.startswith("drop_")].index(
        "drop_udp_unknown_peer"
    )

    def slot(address: IPv4Address) -> int:  # as place_of in refusal.c
        return ((int(address) ^ reason << 27) * 2654435761 & 0xFFFFFFFF) >> 24

    stranger = IPv4Address(STRANGER)
    twin = next(a for a in IPv4Network("172.31.0.0/16") if slot(a) == slot(stranger))
    rig.namespace.add_address("lo", IPv4Interface(f"{twin}/32"))
    with rig.watch():
        for _ in range(3):
            rig.send(STRANGER, packet("10.1.6.2"))
            rig.send(str(twin), packet("10.1.6.2"))
        eventually(lambda: len(caplog.messages) >= 2)
        rig.send(STRANGER, packet("10.1.6.2"))
        rig.send(str(twin), packet("10.1.6.2"))
        rig.namespace.add_address("lo", IPv4Interface("172.30.0.67/32"))
        rig.send("172.30.0.67", packet("10.1.6.2"))  # its line would come after theirs
        eventually(lambda: any("172.30.0.67" in message for message in caplog.messages))
    assert len(caplog.messages) == 3


def test_a_datagram_from_another_port_is_logged_with_its_port(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = Refusal(
        IPv4Address(STRANGER), 4242, IPv4Address(0), IPv4Address(0), "drop_udp_wrong_port"
    )
    rig.pump.refusals = lambda: [refusal]  # type: ignore[method-assign]  # the rig checks no port
    with rig.watch():
        rig.send(STRANGER)
        eventually(lambda: bool(caplog.messages))
    assert caplog.messages == [
        f"refused a datagram from {STRANGER} port 4242: udp_wrong_port; further such datagrams from"
        " there are only counted; the daemons of this network send from the overlay's port, so"
        " another program sent it: look for it there, or, if the network rewrites ports, start this"
        " daemon with --source-check address"
    ]


def test_garbage_is_named_without_advice_that_does_not_help(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with rig.watch():
        rig.send(STRANGER, b"\xff" * 40)
        eventually(lambda: bool(caplog.messages))
    assert "udp_not_ip" in caplog.messages[0]
    assert "--source-check" not in caplog.messages[0]


def test_a_host_that_sends_before_its_lease_has_arrived_is_not_worth_a_line(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with rig.watch():
        rig.send(STRANGER, packet("10.1.6.2"))
        rig.pump.update({IPv4Network("10.1.6.0/24"): IPv4Address(STRANGER)})
        # A second stranger, whose line comes later than the first one's would.
        rig.namespace.add_address("lo", IPv4Interface("172.30.0.67/32"))
        rig.send("172.30.0.67", packet("10.1.6.2"))
        eventually(lambda: bool(caplog.messages))
    assert len(caplog.messages) == 1
    assert "172.30.0.67" in caplog.messages[0]


def test_a_host_that_has_joined_is_named_when_it_sends_from_others_subnets(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with rig.watch():
        rig.send(STRANGER, packet("10.1.6.2"))
        rig.pump.update({IPv4Network("10.1.6.0/24"): IPv4Address(STRANGER)})
        rig.send(STRANGER, packet("10.1.7.2"))
        eventually(lambda: bool(caplog.messages))
    assert len(caplog.messages) == 1
    assert "inner 10.1.7.2 to 10.1.5.2: udp_spoofed_source;" in caplog.messages[0]
    assert "--source-check off" in caplog.messages[0]


def test_forged_sources_do_not_fill_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "_MOST_REMEMBERED", 3)
    for number in range(8):
        rig.namespace.add_address("lo", IPv4Interface(f"172.31.0.{number}/32"))
    with rig.watch():
        for number in range(8):
            rig.send(f"172.31.0.{number}", packet("10.1.6.2"))
        eventually(lambda: len(caplog.messages) >= 3)
        rig.send("172.31.0.7", packet("10.1.6.2"))
    assert len(caplog.messages) == 3


def test_a_restarted_pump_is_watched_further(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with rig.watch():
        rig.namespace.delete_link(rig.device)
        assert rig.failed.wait(PATIENCE)
        tun_fd, device = rig.namespace.call(open_tun)
        rig.pump.restart(tun_fd, rig.udp_fd)
        rig.failed.clear()
        rig.send(STRANGER)
        eventually(lambda: bool(caplog.messages))
        rig.namespace.delete_link(device)
        assert rig.failed.wait(PATIENCE)
    rig.pump.close()
    os.close(tun_fd)


def test_stopping_ends_the_thread_and_closes_its_descriptors(rig: Rig) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with rig.watch():
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert "pump-watch" not in {thread.name for thread in threading.enumerate()}


def test_after_an_internal_error_the_pump_is_watched_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = rig.pump.refusals
    errors = [RuntimeError("a bug")]

    def fail_once() -> list[Refusal]:
        if errors and rig.pump.failure:
            raise errors.pop()
        return refusals()

    monkeypatch.setattr(rig.pump, "refusals", fail_once)
    rig.failed.clear()
    with rig.watch():
        rig.namespace.delete_link(rig.device)
        eventually(lambda: "the thread pump-watch starts again: a bug" in caplog.text)
        rig.failed.clear()
        assert rig.failed.wait(PATIENCE)  # although the event was taken before the error
