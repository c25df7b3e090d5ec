"""What programs on a member, which are not its daemon, can send into the overlay."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from etcd_server import wait_until
from instruments import drops, log_lines
from scapy.layers.inet import IP, UDP

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import Host, Lab

PORT = 8285
NOBODY = 65534  # uid and gid
IP_PKTINFO = 8  # linux/in.h; not in Python's socket module
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def pair(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        assert None not in lab.ping_matrix().values()
        yield lab


class Inbox:
    """A UDP socket in a container; its port is all that the packets sent to it need."""

    def __init__(self, container: Namespace) -> None:
        self._socket = container.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", 0))
        self._socket.setblocking(False)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packet(self, source: IPv4Address, destination: IPv4Address) -> bytes:
        port = self._socket.getsockname()[1]
        return bytes(IP(src=source, dst=destination) / UDP(sport=9, dport=port) / b"injected")

    def count(self) -> int:
        """The datagrams that have arrived since the last call."""
        found = 0
        while True:
            try:
                self._socket.recv(2048)
            except BlockingIOError:
                return found
            found += 1


def as_nobody(netns: Namespace, program: str, *arguments: object) -> str:
    """What a Python program prints that an unprivileged user runs in the namespace."""
    become = (
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--bounding-set=-all",
    )
    command = (*become, "/usr/bin/env", "python3", "-c", program, *map(str, arguments))
    return netns.run(command, check=True).stdout.strip()


SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for _ in range(20):
        out.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8285))
"""


def received(host: Host) -> int:
    stats: dict[str, int] = host.status()["stats"]
    return stats["udp_received_packets"]


@pytest.mark.parametrize("inner", ["a container's", "outside the overlay"])
def test_an_unprivileged_program_on_a_member_cannot_inject(pair: Lab, inner: str) -> None:
    target, member = pair.hosts
    ours, theirs = target.containers[0], member.containers[0]
    source = theirs.address if inner == "a container's" else IPv4Address("192.0.2.1")
    with Inbox(ours.netns) as inbox:
        shot = inbox.packet(source, ours.address)
        before, start = drops(target).get("udp_wrong_port", 0), received(target)
        as_nobody(member.netns, SEND, target.address, shot.hex())
        wait_until(lambda: received(target) >= start + 20, "the datagrams being judged")
        assert pair.ping(theirs, ours) is not None  # what passed before it has arrived
        assert inbox.count() == 0
    assert drops(target)["udp_wrong_port"] == before + 20
    words = f"refused a datagram from {member.address} port "
    wait_until(lambda: bool(log_lines(target, words)), "the line in the log")
    (line,) = log_lines(target, words)
    assert "udp_wrong_port" in line
    assert "--source-check address" in line


HOLD = """
import socket, sys
for address in sys.argv[1:]:
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            if option:
                s.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                s.bind((address, 8285))
            except OSError:
                continue
            print(address, option)
"""

SPOOF = """
import socket, sys
target, ours, packet = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.bind(("127.0.0.1", 8285))
    info = bytes(4) + socket.inet_aton(ours) + bytes(4)
    out.sendmsg([bytes.fromhex(packet)], [(socket.IPPROTO_IP, 8, info)], 0, (target, 8285))
"""


@pytest.mark.parametrize("how", ["started", "executed itself again"])
def test_no_user_of_a_member_can_have_the_overlays_port(pair: Lab, how: str) -> None:
    """A socket that has it on any address can send with any other address of the host."""
    member = pair.hosts[1]
    if how != "started":
        succeed(member)
    assert as_nobody(member.netns, HOLD, "127.0.0.1", "127.0.0.2", "0.0.0.0", member.address) == ""


def succeed(host: Host) -> None:
    """Have the daemon execute itself; returns when the new process is ready."""
    assert host.daemon
    starts = len(log_lines(host, "going on with "))
    host.daemon.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(log_lines(host, "going on with ")) > starts, "the new process")
    host.wait_until_ready()


def test_a_program_that_had_the_port_before_us_is_named(pair: Lab) -> None:
    """It can send in the name of its host; this shows why nobody may have the port."""
    target, member = pair.hosts
    ours, theirs = target.containers[0], member.containers[0]
    member.stop_daemon()
    with (
        Inbox(ours.netns) as inbox,
        member.netns.call(socket.socket, type=socket.SOCK_DGRAM) as early,
    ):
        early.bind((LOOPBACK, PORT))
        member.start_daemon()
        info = bytes(4) + member.address.packed + bytes(4)
        packet = inbox.packet(theirs.address, ours.address)
        early.sendmsg(
            [packet], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, (str(target.address), PORT)
        )
        wait_until(lambda: inbox.count() == 1, "the packet arriving")
    assert log_lines(
        member, f"process {os.getpid()}", f"has UDP port {PORT} too, on another address"
    )
    member.stop_daemon()
    member.start_daemon()
    with Inbox(ours.netns) as inbox:
        packet = inbox.packet(theirs.address, ours.address)
        with pytest.raises(subprocess.CalledProcessError):
            as_nobody(member.netns, SPOOF, target.address, member.address, packet.hex())
    assert pair.ping(theirs, ours) is not None
