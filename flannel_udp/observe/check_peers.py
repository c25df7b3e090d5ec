"""``flannel-udp status --check``: is every peer reached, and if not, what stands in between?

Pings go to the flannel0 addresses, through the tunnel. What does not come back is narrowed down by
the peer's own address, by its UDP port and by this host's counters.
"""

from __future__ import annotations

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

PATIENCE = 1.0  # seconds for an answer
_AT_ONCE = 256  # peers; a socket each
_HEADERS = 28  # bytes of IPv4 and ICMP in front of a ping's payload
_LEAST = 68  # bytes: every IPv4 link carries such packets (RFC 791)


@dataclass(frozen=True, slots=True)
class _Peer:
    public_ip: IPv4Address
    inside: IPv4Address  # of its flannel0

    def __str__(self) -> str:
        return f"{self.public_ip} ({self.inside})"


def check_peers(status: Status, read: Callable[[], Status]) -> Iterator[Finding]:
    """One finding for each peer; ``read`` asks for the status again, afterwards.

    What takes time is done with all peers at once: some seconds for hundreds that are down.
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
        pass  # it may be opened: or else each of many fails, and asyncio logs all but the first
    small = _ping((peer.inside for peer in peers), 56)
    alive = [peer for peer in peers if peer.inside in small]
    large = _ping((peer.inside for peer in alive), status["mtu"] - _HEADERS)
    silent = [peer for peer in peers if peer.inside not in small]
    outside = _ping((peer.public_ip for peer in silent), 56)
    refused = _refused(status, read()) if silent else set()

    def judge(peer: _Peer) -> Finding:
        if peer.inside in large:
            return good(str(peer), f"answers in {small[peer.inside]:.1f} ms")
        if peer.inside in small:
            return _black_hole(peer, status["mtu"])
        return _silence(peer, status, outside, refused)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(judge, peers)


def _ping(
    addresses: Iterable[IPv4Address], payload: int, *, patience: float = PATIENCE
) -> dict[IPv4Address, float]:
    """Milliseconds of the quickest answer, of those that answered."""
    words = [str(address) for address in addresses]
    if not words:
        return {}
    hosts = icmplib.multiping(
        words,
        count=2,  # a packet that is too large may be lost before the kernel knows
        interval=0.2,
        timeout=patience,
        concurrent_tasks=_AT_ONCE,
        payload_size=payload,
    )
    return {IPv4Address(host.address): host.min_rtt for host in hosts if host.is_alive}


def _black_hole(peer: _Peer, mtu: int) -> Finding:
    """How large a packet may be on a way that small ones pass and large ones do not."""
    passes, lost = _LEAST, mtu
    while lost - passes > 1:
        middle = (passes + lost) // 2
        if _ping((peer.inside,), middle - _HEADERS, patience=PATIENCE / 2):
            passes = middle
        else:
            lost = middle
    return bad(
        *("mtu-black-hole", str(peer)),
        f"MTU black hole: packets of {mtu} bytes are lost, those of {passes} arrive; let ICMP"
        f' "fragmentation needed" through on the way, or set "MTU": {passes} in Backend of the'
        " network config",
    )


def _silence(
    peer: _Peer, status: Status, outside: dict[IPv4Address, float], refused: set[str]
) -> Finding:
    """Why a peer does not answer at all."""
    port = status["port"]
    if str(peer.public_ip) in refused:
        return bad(
            *("send-refused", str(peer)),
            f"this host refuses to send to it: its firewall (OUTPUT, UDP {port}) or its routes;"
            " the drops of the status name which",
        )
    if _port_is_closed(status, peer):
        return bad(
            *("port-closed", str(peer)),
            f"UDP port {port} is closed there: no daemon runs, or a firewall rejects; look there"
            " with flannel-udp status",
        )
    if peer.public_ip in outside:
        return bad(
            *("port-blocked", str(peer)),
            f"its host answers, but nothing comes back through UDP port {port}: a firewall drops"
            " it, here or there or in between; allow UDP to and from that port",
        )
    return bad(
        *("host-down", str(peer)),
        "neither the tunnel nor its host answers: the host is down, or cut off",
    )


def _refused(before: Status, after: Status) -> set[str]:
    """The peers to which the kernel refused to send meanwhile."""
    counts = {peer["public_ip"]: peer["dropped_packets"] for peer in before["peers"]}
    return {
        peer["public_ip"]
        for peer in after.get("peers", ())
        if peer["dropped_packets"] > counts.get(peer["public_ip"], 0)
    }


def _port_is_closed(status: Status, peer: _Peer) -> bool:
    """Whether the host says that nothing listens there.

    What is sent is an answer to a ping that nobody sent: a daemon that gets it delivers it, and the
    kernel drops it without a word.
    """
    answer = _echo_reply(IPv4Network(status["subnet"]).network_address, peer.inside)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(PATIENCE)
        with contextlib.suppress(TimeoutError):
            try:
                probe.connect((str(peer.public_ip), status["port"]))
                probe.send(answer)
                probe.recv(1)
            except ConnectionRefusedError:
                return True
            except OSError:  # a firewall here, or no route: told by other means
                return False
    return False


def _echo_reply(source: IPv4Address, target: IPv4Address) -> bytes:
    icmp = struct.pack("!BBHHH", 0, 0, 0xFFFF, 0, 0)  # its checksum: the complement of 0
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0)
    head += source.packed + target.packed
    words = sum(struct.unpack("!10H", head))
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    return head[:10] + struct.pack("!H", 0xFFFF - words) + head[12:] + icmp
