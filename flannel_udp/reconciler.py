"""Snapshots and events of leases become routes in the pump, and lines in the log."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.lease import Events, Snapshot
from flannel_udp.pump import Pump
from flannel_udp.registry import boottime
from flannel_udp.routes import Changes, RouteSet

log = logging.getLogger(__name__)

_MOST_LINES = 20  # a change of more routes than this is summed up in one line


class Reconciler:
    """Any thread may call; a lock guards the routes, and changes are applied one at a time."""

    def __init__(self, routes: RouteSet, pump: Pump) -> None:
        self._routes = routes
        self._pump = pump
        self._since: dict[IPv4Network, float] = {}  # CLOCK_BOOTTIME of each route's next hop
        self._lock = threading.Lock()

    def apply(self, change: Snapshot | Events) -> None:
        """Make the pump's table what the leases now ask for. Raises OSError if it cannot."""
        with self._lock:
            if isinstance(change, Snapshot):
                changes = self._routes.replace(change.leases)
                # The whole table: a resync leaves nothing to earlier bookkeeping.
                self._pump.replace(self._routes.routes)
            else:
                changes = self._routes.apply(change.events)
                self._pump.update(changes.added, changes.removed)
            self._since |= dict.fromkeys(changes.added, boottime())
            for subnet in changes.removed:
                self._since.pop(subnet, None)
        _report(changes)

    def subnets_by_peer(self) -> dict[IPv4Address, list[IPv4Network]]:
        """The routes, by the PublicIP they lead to."""
        by_peer: dict[IPv4Address, list[IPv4Network]] = defaultdict(list)
        with self._lock:
            routes = sorted(self._routes.routes.items())
        for subnet, public_ip in routes:
            by_peer[public_ip].append(subnet)
        return by_peer

    def known_since(self) -> dict[IPv4Address, float]:
        """CLOCK_BOOTTIME seconds of each peer's oldest route."""
        since: dict[IPv4Address, float] = {}
        with self._lock:
            for subnet, public_ip in self._routes.routes.items():
                at = self._since[subnet]
                since[public_ip] = min(since.get(public_ip, at), at)
        return since


def _report(changes: Changes) -> None:
    lines = [f"route {subnet} goes to {peer}" for subnet, peer in changes.added.items()]
    lines += [f"route {subnet} removed" for subnet in changes.removed]
    for line in lines if len(lines) <= _MOST_LINES else ():
        log.info("%s", line)
    if len(lines) > _MOST_LINES:
        added, removed = len(changes.added), len(changes.removed)
        log.info("%d routes added or changed, %d removed", added, removed)
    for refusal in changes.refused[:_MOST_LINES]:
        lease = refusal.lease
        log.warning("no route for lease %s of %s: %s", lease.key, lease.public_ip, refusal.reason)
    if len(changes.refused) > _MOST_LINES:
        log.warning("no route for %d more leases", len(changes.refused) - _MOST_LINES)
