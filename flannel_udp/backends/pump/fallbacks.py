"""Uses of offloads that the kernel refuses while packets flow, in the words of the log (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from ipaddress import IPv4Address

# A way that takes small runs and refuses large ones would be news every few seconds.
_SETTLED = 60.0  # seconds without a refusal
_MOST_NAMES = 3  # of peers in a line

Subject = str | IPv4Address  # superpackets of a protocol on the tunnel device; a peer


class Fallbacks:
    """What the log has told of them. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._told: dict[Subject, float | None] = {}  # since when it is taken again

    def observe(
        self,
        protocols: Iterable[str],
        refusing: Iterable[IPv4Address],
        peers: Set[IPv4Address],
        now: float,
    ) -> tuple[list[str], list[str]]:
        """What has become worth a line: what is refused now, and what is taken again.

        The tunnel device refuses superpackets of ``protocols``, the ways to ``refusing`` UDP GSO;
        ``peers`` are all there are.
        """
        refused: set[Subject] = {*protocols, *refusing}
        known = refused | peers | {each for each in self._told if isinstance(each, str)}
        begun = refused - self._told.keys()
        self._told = {
            subject: None if subject in refused else now if since is None else since
            for subject, since in [*self._told.items(), *((each, None) for each in begun)]
            if subject in known
        }
        ended = {
            subject
            for subject, since in self._told.items()
            if since is not None and now - since >= _SETTLED
        }
        for subject in ended:
            del self._told[subject]
        return (
            _sentences(begun, _BEGUN_TUN, _BEGUN_PEERS),
            _sentences(ended, _ENDED_TUN, _ENDED_PEERS),
        )

    @property
    def due(self) -> float | None:
        """When to observe again although nothing changes."""
        waiting = [since + _SETTLED for since in self._told.values() if since is not None]
        return min(waiting, default=None)


_AGAIN = "nothing is lost, but it costs CPU time; it is tried again every ten seconds"
_BEGUN_TUN = f"the kernel refuses %s superpackets on the tunnel device: {_AGAIN}"
_BEGUN_PEERS = f"the kernel refuses UDP GSO on the way to %s: {_AGAIN}"
_ENDED_TUN = "the kernel takes %s superpackets on the tunnel device again"
_ENDED_PEERS = "the kernel takes UDP GSO on the way to %s again"


def _sentences(subjects: Set[Subject], about_tun: str, about_peers: str) -> list[str]:
    protocols = sorted(each for each in subjects if isinstance(each, str))
    peers = sorted(each for each in subjects if isinstance(each, IPv4Address))
    return [about_tun % protocol for protocol in protocols] + [
        about_peers % listed(peers) for _ in peers[:1]
    ]


def listed(peers: list[IPv4Address]) -> str:
    """A few of them by address: ``172.30.0.2, 172.30.0.3, 172.30.0.4 and 5 more``."""
    more = len(peers) - _MOST_NAMES
    return ", ".join(map(str, peers[:_MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


# Linux b10b446 of 7.0-rc1 cuts a run whose packets are all of one size into datagrams with wrong
# lengths and checksums, where the driver of the interface leaves the cutting to software; 7.1.5 has
# the whole repair.
_MANGLES_UDP_GSO = (7, 0, 0), (7, 1, 4)


def kernel_fault(release: str, offloads: Iterable[str]) -> str | None:
    """What is known against this kernel (``uname -r``) with the offloads in use, as a sentence."""
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
