"""The pump on a real TUN device and real sockets, in a network namespace of its own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from flannel_udp.backends.pump.pump import (
    ALL_OFFLOADS,
    NO_OFFLOADS,
    Offload,
    Pump,
    PumpConfig,
    open_tun,
    open_udp,
    pack,
)
from flannel_udp.host import tunnel_device
from flannel_udp.host.netns import Namespace

NETWORK = IPv4Network("10.1.0.0/16")
OWN_SUBNET = IPv4Network("10.1.5.0/24")
OWN_IP = IPv4Address("172.30.0.1")
TUN_ADDRESS = IPv4Address("10.1.5.0")
PEERS = {IPv4Network(f"10.1.{n}.0/24"): IPv4Address(f"172.30.0.{n}") for n in (6, 7)}
PORT = 8285
IP_RECVERR, SO_RCVBUFFORCE = 11, 33  # linux/in.h, asm/socket.h: not in the socket module
SO_ATTACH_FILTER, BPF_RET = 26, 6  # asm/socket.h, linux/bpf_common.h
PATIENCE = 5.0  # seconds until an awaited packet counts as lost


@dataclass
class Rig:
    """A pump whose peers are plain UDP sockets on addresses of the same namespace."""

    namespace: Namespace
    pump: Pump
    tun_fd: int
    tun_name: str
    udp_fd: int
    sockets: dict[IPv4Address, socket.socket]

    def socket(self, address: IPv4Address | str, port: int = 0) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.settimeout(PATIENCE)
            made.bind((str(address), port))
            return made

        return self.namespace.call(make)

    def from_peer(self, peer: str, packet: Any) -> None:
        data = packet if isinstance(packet, bytes) else bytes(packet)
        self.sockets[IPv4Address(peer)].sendto(data, (str(OWN_IP), PORT))

    def await_stat(self, name: str, value: int) -> None:
        eventually(lambda: self.pump.stats()[name] >= value, f"{name} to reach {value}")
        assert self.pump.stats()[name] == value


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.002)


@pytest.fixture
def source_check() -> bool:
    return True


@pytest.fixture(params=[NO_OFFLOADS, ALL_OFFLOADS], ids=["plain", "offloads"])
def rig(namespace: Namespace, source_check: bool, request: pytest.FixtureRequest) -> Iterator[Rig]:
    for address in (OWN_IP, *PEERS.values(), IPv4Address("172.30.0.66")):
        namespace.add_address("lo", IPv4Interface(f"{address}/32"))
    offloads: Offload = request.param
    tun_fd, tun_name = namespace.call(open_tun, vnet_header=offloads != NO_OFFLOADS)
    udp_fd = namespace.call(open_udp, OWN_IP, PORT)
    namespace.call(tunnel_device.configure, tun_name, TUN_ADDRESS, 1472, NETWORK)
    config = PumpConfig(
        tun_fd,
        udp_fd,
        NETWORK,
        OWN_SUBNET,
        OWN_IP,
        TUN_ADDRESS,
        check_source=source_check,
        offloads=offloads,
        check_port=source_check,
    )
    with Pump(config) as pump, contextlib.ExitStack() as stack:
        assert pump.offloads == offloads  # this kernel has them all
        rig = Rig(namespace, pump, tun_fd, tun_name, udp_fd, {})
        for address in (*PEERS.values(), IPv4Address("172.30.0.66")):
            rig.sockets[address] = stack.enter_context(rig.socket(address, PORT))
        pump.replace(PEERS)
        pump.start()
        yield rig
    for fd in (tun_fd, udp_fd):
        with contextlib.suppress(OSError):
            os.close(fd)


def inner(src: str = "10.1.6.2", dst: str = "10.1.5.0", payload: bytes = b"hello", **ip: Any) -> IP:
    return IP(src=src, dst=dst, **ip) / UDP(sport=9, dport=4000) / Raw(payload)


def test_a_datagram_carries_exactly_the_packet(rig: Rig) -> None:
    sender = rig.socket("10.1.5.0")
    sender.sendto(b"payload", ("10.1.6.2", 7))
    data, outer = rig.sockets[IPv4Address("172.30.0.6")].recvfrom(65536)
    assert outer == (str(OWN_IP), PORT)
    packet = IP(data)
    assert (packet.src, packet.dst, packet.len) == ("10.1.5.0", "10.1.6.2", len(data))
    assert bytes(packet[UDP].payload) == b"payload"
    assert packet.ttl == 64  # untouched


def test_an_accepted_packet_reaches_the_socket_it_is_for(rig: Rig) -> None:
    receiver = rig.socket("10.1.5.0", 4000)
    rig.from_peer("172.30.0.6", inner(payload=b"from afar"))
    assert receiver.recvfrom(100) == (b"from afar", ("10.1.6.2", 9))
    peer = next(p for p in rig.pump.peers() if p.public_ip == IPv4Address("172.30.0.6"))
    assert (peer.received_packets, peer.received_bytes) == (1, 20 + 8 + 9)
    rig.await_stat("tun_written_packets", 1)


def test_a_source_outside_the_network_passes(rig: Rig) -> None:
    receiver = rig.socket("10.1.5.0", 4000)
    rig.from_peer("172.30.0.6", inner(src="192.168.7.7"))
    assert receiver.recvfrom(100)[1][0] == "192.168.7.7"


def test_a_source_address_of_this_host_is_refused_while_it_has_it(rig: Rig) -> None:
    """Whichever of its addresses: a router that does NAT may have another for PublicIP."""
    receiver = rig.socket("10.1.5.0", 4000)
    ours = IPv4Address("192.168.7.7")
    rig.pump.set_addresses([IPv4Address("192.168.7.6"), ours])
    rig.from_peer("172.30.0.6", inner(src=str(ours)))
    rig.await_stat("drop_udp_martian_source", 1)
    rig.pump.set_addresses([IPv4Address("192.168.7.6")])
    rig.from_peer("172.30.0.6", inner(src=str(ours), payload=b"from its new owner"))
    assert receiver.recvfrom(100) == (b"from its new owner", (str(ours), 9))


REFUSED: dict[str, list[Any]] = {
    "udp_not_ip": [b"", b"\x00", b"\x10" * 40, b"\xf5" + b"\x00" * 40],
    "udp_ipv6": [bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP())],
    "udp_bad_header": [b"\x45", b"\x45" + b"\x00" * 18, b"\x44" + b"\x00" * 30, b"\x4f" * 59],
    "udp_bad_length": [
        bytes(inner()) + b"x",
        bytes(inner())[:-1],
        bytes(inner(len=20)),
        b"\x45" + os.urandom(65506),
    ],
    "udp_spoofed_source": [inner(src="10.1.7.2"), inner(src="10.1.99.2")],
    "udp_martian_source": [
        inner(src="127.0.0.1"),
        inner(src="224.0.0.1"),
        inner(src="255.255.255.255"),
        inner(src="0.0.0.0"),
        inner(src="10.1.5.9"),
        inner(src=str(OWN_IP)),
    ],
    "udp_wrong_destination": [
        inner(dst="10.1.7.2"),
        inner(dst="192.168.1.1"),
        inner(dst=str(OWN_IP)),
        inner(dst="224.0.0.1"),
        inner(dst="127.0.0.1"),
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_bad_datagrams_are_counted_by_reason_and_never_forwarded(rig: Rig, reason: str) -> None:
    for packet in REFUSED[reason]:
        rig.from_peer("172.30.0.6", packet)
    rig.await_stat(f"drop_{reason}", len(REFUSED[reason]))
    assert rig.pump.stats()["tun_written_packets"] == 0


def test_an_outer_source_without_a_lease_is_refused_and_reported_once(rig: Rig) -> None:
    for _ in range(3):
        rig.from_peer("172.30.0.66", inner())
    rig.await_stat("drop_udp_unknown_peer", 3)
    assert rig.pump.stats()["tun_written_packets"] == 0
    assert select.select([rig.pump.event_fd], [], [], PATIENCE)[0]
    (refusal,) = rig.pump.refusals()
    assert refusal.reason == "drop_udp_unknown_peer"
    assert refusal.outer_source == IPv4Address("172.30.0.66")
    assert refusal.inner_source == IPv4Address("10.1.6.2")


def test_a_datagram_of_a_peer_from_another_port_is_refused_and_reported(rig: Rig) -> None:
    with rig.socket("172.30.0.6") as other:
        other.sendto(bytes(inner()), (str(OWN_IP), PORT))
        rig.await_stat("drop_udp_wrong_port", 1)
        (refusal,) = rig.pump.refusals()
        assert (refusal.outer_port, refusal.reason) == (
            other.getsockname()[1],
            "drop_udp_wrong_port",
        )
    assert rig.pump.stats()["tun_written_packets"] == 0


def test_a_filter_that_the_last_process_left_on_the_socket_is_removed(rig: Rig) -> None:
    receiver = rig.socket("10.1.5.0", 4000)
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
    with socket.socket(fileno=os.dup(rig.udp_fd)) as udp:
        udp.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    rig.pump.restart(rig.tun_fd, rig.udp_fd)
    rig.from_peer("172.30.0.6", inner())
    assert receiver.recvfrom(100)[0] == b"hello"


@pytest.mark.parametrize("source_check", [False])
def test_without_source_check_any_outer_source_passes_except_our_addresses(rig: Rig) -> None:
    receiver = rig.socket("10.1.5.0", 4000)
    rig.from_peer("172.30.0.66", inner())
    assert receiver.recvfrom(100)[0] == b"hello"
    rig.from_peer("172.30.0.66", inner(src="10.1.5.9"))
    rig.from_peer("172.30.0.66", inner(dst="10.1.7.9"))
    rig.await_stat("drop_udp_martian_source", 1)
    rig.await_stat("drop_udp_wrong_destination", 1)


def test_the_sender_of_an_unroutable_packet_receives_network_unreachable(rig: Rig) -> None:
    sender = rig.socket("10.1.5.0")
    sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # net unreachable is a soft error
    sender.connect(("10.1.200.1", 7))
    sender.send(b"anyone?")
    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        sender.recv(100)
    assert rig.pump.stats()["icmp_replies"] == 1


def test_icmp_replies_are_rate_limited(rig: Rig) -> None:
    sender = rig.socket("10.1.5.0")
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(3000):
        sender.sendto(b"anyone?", ("10.1.200.1", 7))
    rig.await_stat("drop_tun_no_route", 3000 - tun_overruns(rig))
    stats = rig.pump.stats()
    assert stats["icmp_replies"] + stats["icmp_suppressed"] == stats["drop_tun_no_route"]
    assert stats["icmp_suppressed"] > 0


def tun_overruns(rig: Rig) -> int:
    """Packets the kernel could not queue for the pump."""
    statistics = rig.namespace.run(
        ["cat", f"/sys/class/net/{rig.tun_name}/statistics/tx_dropped"]
    ).stdout
    return int(statistics)


def test_a_peer_behind_a_firewall_does_not_block_the_others(rig: Rig) -> None:
    rules = "add table ip t; add chain ip t o { type filter hook output priority 0; }; "
    rules += "add rule ip t o ip daddr 172.30.0.7 udp dport 8285 drop"
    assert rig.namespace.run(["nft", rules]).returncode == 0
    sender = rig.socket("10.1.5.0")
    for i in range(100):
        sender.sendto(b"%d" % i, (f"10.1.{6 + i % 2}.2", 7))
    good = rig.sockets[IPv4Address("172.30.0.6")]
    received = [bytes(IP(good.recv(2000))[UDP].payload) for _ in range(50)]
    assert received == [b"%d" % i for i in range(0, 100, 2)]
    rig.await_stat("drop_tun_send_firewall", 50)
    dropped = {str(p.public_ip): p.dropped_packets for p in rig.pump.peers()}
    assert dropped == {"172.30.0.6": 0, "172.30.0.7": 50}


def test_a_changed_or_withdrawn_route_counts_from_the_next_packet(rig: Rig) -> None:
    sender = rig.socket("10.1.5.0")
    net = IPv4Network("10.1.6.0/24")
    rig.pump.update({net: IPv4Address("172.30.0.7")})
    sender.sendto(b"moved", ("10.1.6.2", 7))
    assert bytes(IP(rig.sockets[IPv4Address("172.30.0.7")].recv(100))[UDP].payload) == b"moved"
    rig.pump.update({}, [net])
    assert rig.pump.lookup(IPv4Address("10.1.6.2")) is None
    sender.sendto(b"gone", ("10.1.6.2", 7))
    rig.await_stat("drop_tun_no_route", 1)


def test_swaps_of_other_routes_lose_and_misroute_nothing(rig: Rig) -> None:
    sender, stable = rig.socket("10.1.5.0"), rig.sockets[IPv4Address("172.30.0.6")]
    stable.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    rng = random.Random(3)
    sent = 0
    others = [IPv4Network((int(NETWORK[0]) + (n << 8), 24)) for n in range(16, 256)]
    for swap in range(500):
        for _ in range(20):
            sender.sendto(b"%d" % sent, ("10.1.6.2", 7))
            sent += 1
        hops = {n: IPv4Address(0xAC1E0100 + rng.randrange(200)) for n in rng.sample(others, 120)}
        if swap % 2:
            rig.pump.replace(PEERS | hops | {NETWORK: IPv4Address("172.30.0.7")})
        else:
            rig.pump.update(hops, rng.sample(others, 60))
        # Backpressure instead of overflow: the test is about the table, not about queues.
        while sent - rig.pump.stats()["udp_sent_packets"] > 400:
            time.sleep(0.0005)
    rig.await_stat("udp_sent_packets", sent)
    received = [int(bytes(IP(stable.recv(2000))[UDP].payload)) for _ in range(sent)]
    assert received == list(range(sent))


def test_a_deleted_device_stops_the_worker_and_is_reported(rig: Rig) -> None:
    rig.namespace.delete_link(rig.tun_name)
    assert select.select([rig.pump.event_fd], [], [], PATIENCE)[0]
    assert isinstance(rig.pump.failure, OSError)
    before = time.process_time()
    time.sleep(0.2)  # a spinning worker would burn all of it
    assert time.process_time() - before < 0.1


def assert_carries(rig: Rig) -> None:
    """One packet each way, through the routes of the rig."""
    with rig.socket("10.1.5.0", 4000) as host:
        host.sendto(b"there", ("10.1.7.2", 7))
        assert rig.sockets[IPv4Address("172.30.0.7")].recv(100).endswith(b"there")
        rig.from_peer("172.30.0.7", inner(src="10.1.7.2", payload=b"back"))
        assert host.recv(100) == b"back"


def test_after_a_deleted_device_it_continues_with_another_one(rig: Rig) -> None:
    """Same routes, same counters, and the socket keeps what arrives meanwhile."""
    assert_carries(rig)
    before, descriptors = rig.pump.stats(), len(os.listdir("/proc/self/fd"))
    offloads = rig.pump.offloads
    rig.namespace.delete_link(rig.tun_name)
    eventually(lambda: rig.pump.failure is not None, "the worker to end")
    rig.from_peer("172.30.0.6", inner(payload=b"meanwhile"))
    tun_fd, name = rig.namespace.call(open_tun, vnet_header=offloads != NO_OFFLOADS)
    rig.namespace.call(tunnel_device.configure, name, TUN_ADDRESS, 1472, NETWORK)
    with rig.socket("10.1.5.0", 4000) as host:
        rig.pump.restart(tun_fd, rig.udp_fd)
        assert host.recv(100) == b"meanwhile"
    assert_carries(rig)
    after = rig.pump.stats()
    assert rig.pump.failure is None
    assert rig.pump.offloads == offloads
    assert after["udp_received_packets"] == before["udp_received_packets"] + 2
    assert after["cpu_ns"] > before["cpu_ns"]
    assert after["routes"] == len(PEERS)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1  # the new device's
    rig.pump.close()
    os.close(tun_fd)


def test_after_a_lost_socket_it_continues_with_another_one(rig: Rig) -> None:
    with socket.socket(fileno=os.dup(rig.udp_fd)) as doomed:
        with contextlib.suppress(OSError):  # it is not connected; its receivers wake all the same
            doomed.shutdown(socket.SHUT_RDWR)
        eventually(lambda: rig.pump.failure is not None, "the worker to end")
    os.close(rig.udp_fd)
    udp_fd = rig.namespace.call(open_udp, OWN_IP, PORT)
    rig.pump.restart(rig.tun_fd, udp_fd)
    assert_carries(rig)
    rig.pump.close()
    if udp_fd != rig.udp_fd:
        os.close(udp_fd)


def test_a_restart_with_a_dead_device_fails_and_may_be_repeated(rig: Rig) -> None:
    rig.namespace.delete_link(rig.tun_name)
    eventually(lambda: rig.pump.failure is not None, "the worker to end")
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
            rig.pump.restart(rig.tun_fd, rig.udp_fd)
    tun_fd, name = rig.namespace.call(open_tun, vnet_header=rig.pump.offloads != NO_OFFLOADS)
    rig.namespace.call(tunnel_device.configure, name, TUN_ADDRESS, 1472, NETWORK)
    rig.pump.restart(tun_fd, rig.udp_fd)
    assert_carries(rig)
    rig.pump.close()
    os.close(tun_fd)


def test_a_device_set_down_and_up_again_carries_on(rig: Rig) -> None:
    receiver = rig.socket("10.1.5.0", 4000)
    rig.namespace.set_link(rig.tun_name, state="down")
    rig.from_peer("172.30.0.6", inner(payload=b"lost"))
    rig.await_stat("drop_udp_tun_refused", 1)
    rig.namespace.set_link(rig.tun_name, state="up")
    rig.from_peer("172.30.0.6", inner(payload=b"back"))
    assert receiver.recv(100) == b"back"
    assert rig.pump.failure is None


def test_multicast_broadcast_and_ipv6_from_the_kernel_are_dropped_quietly(rig: Rig) -> None:
    sender = rig.socket("10.1.5.0")
    device = rig.tun_name.encode()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sender.sendto(b"x", ("224.0.0.251", 5353))
    sender.sendto(b"x", ("255.255.255.255", 67))
    rig.await_stat("drop_tun_not_unicast", 2)
    stats = rig.pump.stats()
    assert (stats["udp_sent_packets"], stats["icmp_replies"]) == (0, 0)


def test_random_datagrams_neither_crash_nor_pass(rig: Rig) -> None:
    rng = random.Random(4)
    peer = rig.sockets[IPv4Address("172.30.0.6")]
    template = bytes(inner())
    sent = 0
    for round_ in range(500):
        for _ in range(200):
            data = bytearray(rng.randbytes(rng.randrange(120)))
            if rng.random() < 0.5:
                data = bytearray(template)
                for _ in range(rng.randrange(1, 4)):
                    data[rng.randrange(20)] = rng.randrange(256)
            peer.sendto(data, (str(OWN_IP), PORT))
            sent += 1
        if round_ % 100 == 0:
            peer.sendto(rng.randbytes(65507), (str(OWN_IP), PORT))
            sent += 1
        rig.await_stat("udp_received_packets", sent)
    stats = rig.pump.stats()
    dropped = sum(value for name, value in stats.items() if name.startswith("drop_udp_"))
    assert stats["udp_received_packets"] == sent
    assert dropped + stats["tun_written_packets"] == sent
    assert rig.pump.failure is None


def test_icmp_to_the_tunnel_address_is_answered_through_the_tunnel(rig: Rig) -> None:
    rig.from_peer("172.30.0.6", IP(src="10.1.6.2", dst="10.1.5.0") / ICMP(type=8, id=7, seq=1))
    answer = IP(rig.sockets[IPv4Address("172.30.0.6")].recv(2000))
    assert (answer.src, answer.dst, answer[ICMP].type) == ("10.1.5.0", "10.1.6.2", 0)


def test_close_leaves_the_descriptors_open(rig: Rig) -> None:
    rig.pump.close()
    os.fstat(rig.tun_fd)
    os.fstat(rig.udp_fd)


def test_a_call_after_close_raises_an_error_and_never_reaches_c(rig: Rig) -> None:
    rig.pump.close()
    rig.pump.close()
    for call in calls(rig):
        with pytest.raises(OSError, match="the packet pump is closed"):
            call()


def calls(rig: Rig) -> list[Callable[[], object]]:
    """A call of every method."""
    pump, table = rig.pump, pack(PEERS)
    return [
        pump.start,
        pump.stop,
        lambda: pump.restart(rig.tun_fd, rig.udp_fd),
        lambda: pump.replace(PEERS),
        lambda: pump.update(PEERS, [OWN_SUBNET]),
        lambda: pump.load(table),
        lambda: pump.set_addresses([OWN_IP]),
        lambda: pump.lookup(OWN_IP),
        pump.stats,
        pump.peers,
        pump.refusals,
        lambda: (pump.offloads, pump.refused_offloads, pump.offload_changes),
        lambda: (pump.event_fd, pump.failure),
    ]


def test_a_close_during_calls_of_other_threads_frees_nothing_they_use(rig: Rig) -> None:
    """A call under way keeps the pump, later ones are refused; the sanitizers watch this test."""
    faults: list[BaseException] = []

    def repeat(call: Callable[[], object]) -> None:
        try:
            while True:
                try:
                    call()
                except OSError as error:
                    if error.errno not in (errno.ECANCELED, errno.EALREADY):
                        raise
        except OSError as error:
            faults.append(error)

    stopping = (rig.pump.start, rig.pump.stop)
    busy = [call for call in calls(rig) if call not in stopping]
    threads = [threading.Thread(target=repeat, args=(call,)) for call in busy]
    for thread in threads:
        thread.start()
    eventually(lambda: rig.pump.stats()["cpu_ns"] > 0, "the calls to begin")
    rig.pump.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert [str(fault) for fault in faults] == ["[Errno 9] the packet pump is closed"] * len(busy)


def test_after_a_stop_no_restart_carries_packets(rig: Rig) -> None:
    """The lease is lost: another host may have the subnet."""
    rig.pump.stop()
    with pytest.raises(OSError, match=os.strerror(errno.ECANCELED)):
        rig.pump.restart(rig.tun_fd, rig.udp_fd)
    rig.from_peer("172.30.0.6", inner())
    assert rig.pump.stats()["udp_received_packets"] == 0


def test_two_pumps_run_in_one_process(rig: Rig) -> None:
    tun_fd, name = rig.namespace.call(open_tun)
    udp_fd = rig.namespace.call(open_udp, IPv4Address("172.30.0.66"), PORT + 1)
    assert name != rig.tun_name
    subnet = IPv4Network("10.2.5.0/24")
    config = PumpConfig(tun_fd, udp_fd, IPv4Network("10.2.0.0/16"), subnet, OWN_IP, subnet[0])
    with Pump(config) as second:
        second.start()
        receiver = rig.socket("10.1.5.0", 4000)
        rig.from_peer("172.30.0.6", inner())
        assert receiver.recv(100) == b"hello"
        assert second.stats()["udp_received_packets"] == 0
    os.close(tun_fd)
    os.close(udp_fd)


@pytest.mark.parametrize(
    "config",
    [
        {"network": IPv4Network("10.1.0.0/16"), "subnet": OWN_SUBNET, "tun_fd": -1},
        {"network": IPv4Network("10.1.0.0/16"), "subnet": OWN_SUBNET, "udp_fd": -1},
    ],
)
def test_bad_descriptors_are_refused_with_an_os_error(config: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"tun_fd": 0, "udp_fd": 0} | config
    fields |= {"public_ip": OWN_IP, "tun_address": TUN_ADDRESS}
    with pytest.raises(OSError, match=r"file descriptor|socket"):
        Pump(PumpConfig(**fields))
