"""What containers can pin of this host's memory while the worker does not read."""

from __future__ import annotations

import json
import signal
import socket
from ipaddress import IPv4Address

from etcd_server import wait_until

from flannel_udp.host.netns import freeze
from flannel_udp.host.tunnel_device import QUEUE_LENGTH
from flannel_udp.lab.lab import Container, Host, Lab

MOST_PINNED = 64 << 20  # bytes, as docs/operations.md says
UDP_SEGMENT = 103  # linux/udp.h
SEGMENT, SEGMENTS = 1444, 45  # bytes of payload, of 64 KiB in all
FLOOD = 2 * QUEUE_LENGTH  # superpackets


def flood(source: Container, target: IPv4Address) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
            superpacket = bytes(SEGMENT * SEGMENTS)
            for _ in range(FLOOD):
                sender.sendto(superpacket, (str(target), 9))

    source.netns.call(send)


def queue_drops(host: Host) -> int:
    shown = host.run(["ip", "-json", "-s", "link", "show", "flannel0"], check=True).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["dropped"])


def test_a_flood_of_superpackets_pins_no_more_than_the_documents_say(network_rights: None) -> None:
    """What the worker reads afterwards is what had waited."""
    with Lab(hosts=2) as lab:
        host, (source, target) = lab.hosts[0], lab.containers
        assert lab.ping(source, target) is not None
        before = host.status()["stats"]
        assert host.daemon
        freeze(host.daemon)
        flood(source, target.address)
        waiting = FLOOD - queue_drops(host)
        host.daemon.send_signal(signal.SIGCONT)

        def grown(name: str) -> int:
            return int(host.status()["stats"][name]) - int(before[name])

        wait_until(lambda: grown("tun_read_superpackets") >= waiting, "the queue being read")
        assert waiting == grown("tun_read_superpackets")
        assert QUEUE_LENGTH * 0.9 < waiting <= QUEUE_LENGTH
        assert grown("tun_read_bytes") <= MOST_PINNED
        assert lab.ping(source, target) is not None
