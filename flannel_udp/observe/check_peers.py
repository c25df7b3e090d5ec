"""``flannel-udp status --check``: probes the path to each peer, and finds why one does not answer.

Pings go to the flannel0 addresses, through the tunnel. If a peer does not answer, its PublicIP, its
UDP port and this host's counters show the cause.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import icmplib

from flannel_udp.observe.check_rules import Finding, bad, good
from flannel_udp.observe.readiness import Status

_TIMEOUT = 1.0  # seconds for an answer
_MOST_AT_ONCE = 256  # peers; a socket each
_PING_HEADERS = 28  # bytes of IPv4 and ICMP in front of a ping's payload
_SMALLEST = 68  # bytes: every IPv4 link carries such packets (RFC 791)


@dataclass(frozen=True, slots=True)
class _Peer:
    public_ip: IPv4Address
    inside: IPv4Address  # the address of its flannel0

    def __str__(self) -> str:
        return f"{self.public_ip} ({self.inside})"


def check_peers(status: Status, read: Callable[[], Status]) -> Iterator[Finding]:
    """One finding for each peer; ``read`` returns the status after the pings.

    All peers are probed at the same time, so that hundreds that are down take some seconds.
    """
    try:
        yield from _check_peers(status, read)
    except icmplib.ICMPLibError as error:
        yield bad("cannot-ping", "peers", f"{_why(error)}, so the way to the peers is not known")


def _why(error: icmplib.ICMPLibError) -> str:
    if isinstance(error, icmplib.SocketPermissionError):
        return "they cannot be pinged: run this as root with CAP_NET_RAW"
    return f"they cannot be pinged: {error}"


def _check_peers(status: Status, read: Callable[[], Status]) -> Iterator[Finding]:
    peers = [
        _Peer(IPv4Address(each["public_ip"]), IPv4Network(each["subnets"][0]).network_address)
        for each in status["peers"]
        if each["subnets"]
    ]
    if not peers:
        return
    with icmplib.ICMPv4Socket():
        pass  # raises here if it cannot be opened; in multiping asyncio would log every failure
    small = _ping((peer.inside for peer in peers), 56)
    alive = [peer for peer in peers if peer.inside in small]
    large = _ping((peer.inside for peer in alive), status["mtu"] - _PING_HEADERS)
    silent = [peer for peer in peers if peer.inside not in small]
    outside = _ping((peer.public_ip for peer in silent), 56)
    refused = _refused_peers(status, read()) if silent else set()

    def judge(peer: _Peer) -> Finding:
        if peer.inside in large:
            return good(str(peer), f"answers in {small[peer.inside]:.1f} ms")
        if peer.inside in small:
            return _find_path_mtu(peer, status["mtu"])
        return _find_cause(peer, status, outside, refused)

    with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        yield from pool.map(judge, peers)


def _ping(
    addresses: Iterable[IPv4Address], payload: int, *, timeout: float = _TIMEOUT
) -> dict[IPv4Address, float]:
    """The shortest round trip in milliseconds of each address that answered."""
    targets = [str(address) for address in addresses]
    if not targets:
        return {}
    hosts = icmplib.multiping(
        targets,
        count=2,  # the first packet that is too large may only lower the path MTU
        interval=0.2,
        timeout=timeout,
        concurrent_tasks=_MOST_AT_ONCE,
        payload_size=payload,
    )
    return {IPv4Address(host.address): host.min_rtt for host in hosts if host.is_alive}


def _find_path_mtu(peer: _Peer, mtu: int) -> Finding:
    """Small packets arrive and large ones do not: find the largest size that arrives."""
    arrives, lost = _SMALLEST, mtu
    while lost - arrives > 1:
        middle = (arrives + lost) // 2
        if _ping((peer.inside,), middle - _PING_HEADERS, timeout=_TIMEOUT / 2):
            arrives = middle
        else:
            lost = middle
    return bad(
        "mtu-black-hole",
        str(peer),
        f"MTU black hole: packets of {mtu} bytes are lost, those of {arrives} arrive; let ICMP"
        f' "fragmentation needed" through on the way, or set "MTU": {arrives} in Backend of the'
        " network config",
    )


def _find_cause(
    peer: _Peer, status: Status, outside: dict[IPv4Address, float], refused: set[str]
) -> Finding:
    """Find why a peer does not answer at all."""
    port = status["port"]
    if str(peer.public_ip) in refused:
        return bad(
            "send-refused",
            str(peer),
            f"this host refuses to send to it: its firewall (OUTPUT, UDP {port}) or its routes;"
            " the drops of the status name which",
        )
    if _port_is_closed(status, peer):
        return bad(
            "port-closed",
            str(peer),
            f"UDP port {port} is closed there: no daemon runs, or a firewall rejects; look there"
            " with flannel-udp status",
        )
    if peer.public_ip in outside:
        return bad(
            "port-blocked",
            str(peer),
            f"its host answers, but nothing comes back through UDP port {port}: a firewall drops"
            " it, here or there or in between; allow UDP to and from that port",
        )
    return bad(
        "host-down",
        str(peer),
        "neither the tunnel nor its host answers: the host is down, or cut off",
    )


def _refused_peers(before: Status, after: Status) -> set[str]:
    """The peers to which the kernel refused to send between the two."""
    counts = {peer["public_ip"]: peer["dropped_packets"] for peer in before["peers"]}
    return {
        peer["public_ip"]
        for peer in after.get("peers", ())
        if peer["dropped_packets"] > counts.get(peer["public_ip"], 0)
    }


def _port_is_closed(status: Status, peer: _Peer) -> bool:
    """Whether the peer's host answers that nothing listens on the port.

    We send an echo reply to a ping that was never sent: if a daemon delivers it, the kernel drops
    it silently.
    """
    packet = _echo_reply(IPv4Network(status["subnet"]).network_address, peer.inside)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(_TIMEOUT)
        with contextlib.suppress(TimeoutError):
            try:
                probe.connect((str(peer.public_ip), status["port"]))
                probe.send(packet)
                probe.recv(1)
            except ConnectionRefusedError:
                return True
            except OSError:  # a firewall here, or no route: the counters show which
                return False
    return False


def _echo_reply(source: IPv4Address, target: IPv4Address) -> bytes:
    icmp = struct.pack("!BBHHH", 0, 0, 0xFFFF, 0, 0)  # 0xFFFF: the checksum of zeros
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0)
    head += source.packed + target.packed
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:] + icmp
