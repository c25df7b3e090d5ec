"""Checksums that a container's kernel leaves to others: forged ones change no address, and those of
its own tunnels are completed."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from etcd_server import wait_until
from instruments import connect, drops
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from flannel_udp.lab.lab import Container, Lab

SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/if_packet.h
NEEDS_CSUM, ETHERNET = 1, 14  # linux/virtio_net.h
TRANSFER = 1 << 20  # bytes


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        yield lab


def send_forged(source: Container, target: Container, start: int, offset: int) -> None:
    """Sends a packet whose checksum is to be written ``offset`` bytes behind ``start``, both in
    the IP packet, as CAP_NET_RAW allows."""
    packet = IP(src=str(source.address), dst=str(target.address)) / UDP(sport=9, dport=4000)
    neighbours = source.run(["ip", "neigh"], check=True).stdout
    gateway = neighbours.partition("lladdr ")[2].split()[0]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            raw.bind(("eth0", 0x0800))
            frame = Ether(dst=gateway, src=raw.getsockname()[4], type=0x800) / packet / Raw(b"x")
            vnet = struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, ETHERNET + start, offset)
            raw.send(vnet + bytes(frame))

    source.netns.call(send)


@pytest.mark.parametrize("start", [10, 19])
def test_a_forged_checksum_in_the_ip_header_is_dropped_before_it_is_written(
    lab: Lab, start: int
) -> None:
    host, (source, target) = lab.hosts[0], lab.containers
    assert lab.ping(source, target) is not None
    before, sent = drops(host).get("tun_malformed", 0), host.status()["stats"]["udp_sent_packets"]
    fields = [at for at in (10, 12, 14, 16, 18, 19, 20) if at >= start]
    for field in fields:
        send_forged(source, target, start, field - start)
    forged = len(fields)
    wait_until(lambda: drops(host).get("tun_malformed", 0) == before + forged, "the drops")
    assert host.status()["stats"]["udp_sent_packets"] == sent
    assert lab.ping(source, target) is not None


def test_a_tunnel_of_containers_through_the_overlay_carries_tcp(lab: Lab) -> None:
    """The kernel leaves us the checksum of the TCP header inside their VXLAN."""
    for number, (here, there) in enumerate(zip(lab.containers, lab.containers[::-1], strict=True)):
        kind = f"type vxlan id 5 dstport 4789 local {here.address} remote {there.address}"
        for words in (
            f"link add nested {kind}",
            f"address add 192.168.77.{number + 1}/24 dev nested",
            "link set nested up",
        ):
            here.run(["ip", *words.split()], check=True)
    source, target = lab.containers

    def listen_inside() -> socket.socket:
        return socket.create_server(("192.168.77.2", 0))

    with target.netns.call(listen_inside) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        with connect(source, IPv4Address("192.168.77.2"), port) as client:
            server, _ = listener.accept()
            with server:
                server.settimeout(10)
                sending = threading.Thread(target=client.sendall, args=(bytes(TRANSFER),))
                sending.start()
                received = 0
                while received < TRANSFER:
                    received += len(server.recv(1 << 16))
                sending.join()
