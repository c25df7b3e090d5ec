"""Sentences about offloads that the kernel refuses or breaks while packets flow (pure)."""

import re
from collections.abc import Iterable, Set
from ipaddress import IPv4Address

_MOST_NAMES = 3  # peers named in a line

Subject = str | IPv4Address  # superpackets of a protocol on the tunnel device, or a peer

_AGAIN = "nothing is lost, but it costs CPU time; it is tried again every ten seconds"
_BEGUN_TUN = f"the kernel refuses %s superpackets on the tunnel device: {_AGAIN}"
_BEGUN_PEERS = f"the kernel refuses UDP GSO on the way to %s: {_AGAIN}"
_ENDED_TUN = "the kernel takes %s superpackets on the tunnel device again"
_ENDED_PEERS = "the kernel takes UDP GSO on the way to %s again"


def begun(subjects: Set[Subject]) -> list[str]:
    """What the kernel refuses from now on."""
    return _sentences(subjects, _BEGUN_TUN, _BEGUN_PEERS)


def ended(subjects: Set[Subject]) -> list[str]:
    """What the kernel no longer refuses."""
    return _sentences(subjects, _ENDED_TUN, _ENDED_PEERS)


def listed(peers: list[IPv4Address]) -> str:
    """The first three addresses: ``172.30.0.2, 172.30.0.3, 172.30.0.4 and 5 more``."""
    more = len(peers) - _MOST_NAMES
    return ", ".join(map(str, peers[:_MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


def _sentences(subjects: Set[Subject], about_tun: str, about_peers: str) -> list[str]:
    protocols = sorted(each for each in subjects if isinstance(each, str))
    peers = sorted(each for each in subjects if isinstance(each, IPv4Address))
    return [about_tun % protocol for protocol in protocols] + [
        about_peers % listed(peers) for _ in peers[:1]
    ]


# Linux b10b446 (7.0-rc1) segments a run of equal-sized packets into datagrams with wrong lengths
# and checksums where the driver leaves segmentation to software; 7.1.5 has the complete fix.
_MANGLES_UDP_GSO = (7, 0, 0), (7, 1, 4)


def kernel_fault(release: str, offloads: Iterable[str]) -> str | None:
    """A sentence if this kernel (``uname -r``) is known to break one of the offloads in use."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    first, last = _MANGLES_UDP_GSO
    if "UDP GSO" not in offloads or found is None:
        return None
    if not first <= tuple(int(number or 0) for number in found.groups()) <= last:
        return None
    return (
        f"kernel {release} may mangle what is sent with UDP GSO, as Linux 7.0 to 7.1.4 do with some"
        " network drivers: if large transfers to other hosts crawl, update it to 7.1.5, or use"
        " --offload tso until then"
    )
