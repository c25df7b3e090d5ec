"""Snapshots and events of leases become routes of the backend, and lines in the log."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backends.backend import Backend
from flannel_udp.clock import boottime
from flannel_udp.cluster.held_leases import Held, HeldLeases, HoldChanges
from flannel_udp.cluster.lease import Events, LeaseRemoved, Snapshot
from flannel_udp.log_limits import LISTED, log_listed
from flannel_udp.routing.routes import Changes, Knowledge, RouteSet

log = logging.getLogger(__name__)

# CLOCK_BOOTTIME advances while the machine sleeps; the clock of a waiting thread does not.
_LONGEST_SLEEP = 30.0  # seconds


class Reconciler:
    """Any thread may call; a lock guards the routes, and changes are applied one at a time.

    While routes are held whose leases etcd has lost, a timer thread waits for the end of the hold.
    """

    def __init__(
        self,
        routes: RouteSet,
        backend: Backend,
        held: HeldLeases,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """``on_fatal`` gets an error that the timer's thread meets."""
        self._routes, self._backend, self._held = routes, backend, held
        self._on_fatal = on_fatal
        self._since: dict[IPv4Network, float] = {}  # CLOCK_BOOTTIME of each route's next hop
        self._revision = 0  # of the newest change
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def restore(self, known: Knowledge) -> None:
        """Continue from what another process knew. The backend has the routes: no log line."""
        with self._lock:
            effective = self._held.restore(known.snapshot, known.held)
            changes = self._routes.replace(effective.leases)
            self._backend.replace(self._routes.routes)
            self._note(changes, known.snapshot.revision)
            self._since |= {at: known.since[at] for at in changes.added if at in known.since}

    def known(self) -> tuple[Knowledge, dict[IPv4Network, IPv4Address]]:
        """What another process needs to continue, and the routes made of it."""
        with self._lock:
            snapshot = Snapshot(self._held.in_etcd(), self._revision)
            known = Knowledge(snapshot, list(self._held), dict(self._since))
            return known, dict(self._routes.routes)

    def apply(self, change: Snapshot | Events) -> None:
        """Make the backend's routes what the leases now ask for; nothing after ``close``. Raises
        OSError if it cannot."""
        if log.isEnabledFor(logging.DEBUG):
            _log_leases(change)
        with self._lock:
            if self._closed:
                return
            change, held = self._held.take_in(change, boottime())
            if isinstance(change, Snapshot):
                changes = self._routes.replace(change.leases)
                # The whole table, so that a resync does not depend on earlier bookkeeping.
                self._backend.replace(self._routes.routes)
            else:
                changes = self._routes.apply(change.events)
                self._backend.update(changes.added, changes.removed)
            self._note(changes, change.revision)
        _log_holds(held)
        _log_routes(changes)

    def close(self) -> None:
        """When it returns, no thread changes the backend's routes any more."""
        with self._lock:
            self._closed = True
            timer, self._timer = self._timer, None
        if timer:
            timer.cancel()
            timer.join()

    def held(self) -> list[Held]:
        with self._lock:
            return list(self._held)

    def subnets_by_peer(self) -> dict[IPv4Address, list[IPv4Network]]:
        """The subnets routed to each PublicIP, sorted."""
        by_peer: dict[IPv4Address, list[IPv4Network]] = defaultdict(list)
        with self._lock:
            routes = list(self._routes.routes.items())
        for subnet, public_ip in sorted(routes):
            by_peer[public_ip].append(subnet)
        return by_peer

    def known_since(self) -> dict[IPv4Address, float]:
        """CLOCK_BOOTTIME seconds of each peer's oldest route."""
        since: dict[IPv4Address, float] = {}
        with self._lock:
            routes, ages = list(self._routes.routes.items()), dict(self._since)
        for subnet, public_ip in routes:
            since[public_ip] = min(since.get(public_ip, ages[subnet]), ages[subnet])
        return since

    def _note(self, changes: Changes, revision: int) -> None:
        """Note what was applied, and wait for the end of the first hold, if any; the lock is
        held."""
        self._revision = revision
        self._since |= dict.fromkeys(changes.added, boottime())
        for subnet in changes.removed:
            self._since.pop(subnet, None)
        if self._timer or self._closed or self._held.next_end is None:
            return
        wait = min(max(self._held.next_end - boottime(), 0.0), _LONGEST_SLEEP)
        self._timer = threading.Timer(wait, self._expire)
        self._timer.name, self._timer.daemon = "stale-hold", True
        self._timer.start()

    def _expire(self) -> None:
        try:
            with self._lock:
                if self._closed:
                    return
                ended = self._held.expire(boottime())
                changes = self._routes.apply(LeaseRemoved(each.lease.key) for each in ended)
                self._backend.update(changes.added, changes.removed)
                self._timer = None
                self._note(changes, self._revision)
            _log_holds(HoldChanges(ended=ended))
            _log_routes(changes)
        except Exception as error:
            log.exception("the end of a held lease could not be carried out")
            self._on_fatal(error)


def _log_leases(change: Snapshot | Events) -> None:
    if isinstance(change, Snapshot):
        log.debug("revision %d: %d leases in all", change.revision, len(change.leases))
        return
    for event in change.events:
        if isinstance(event, LeaseRemoved):
            log.debug("revision %d: lease %s is gone", change.revision, event.key)
            continue
        lease = event.lease
        kind = f"under etcd lease {lease.etcd_lease:x}" if lease.etcd_lease else "a reservation"
        holder = f"{lease.key} is of {lease.public_ip}"
        log.debug("revision %d: lease %s, %s", lease.mod_revision, holder, kind)


def _log_holds(changes: HoldChanges) -> None:
    if changes.begun:
        log.warning(
            "etcd lost %d leases: their routes stay until their hosts come back", len(changes.begun)
        )
    for lease in changes.begun:
        log.debug("lease %s of %s is held", lease.key, lease.public_ip)
    lines = [
        f"lease {each.lease.key} of {each.lease.public_ip} is held no longer: {each.reason}"
        for each in changes.ended
    ]
    log_listed(log, logging.INFO, lines, f"{len(lines)} leases are held no longer")


def _log_routes(changes: Changes) -> None:
    lines = [f"route {subnet} goes to {peer}" for subnet, peer in changes.added.items()]
    lines += [f"route {subnet} removed" for subnet in changes.removed]
    added, removed = len(changes.added), len(changes.removed)
    summary = f"{added} routes added or changed, {removed} removed"
    log_listed(log, logging.INFO, lines, summary)
    for refusal in changes.refused[:LISTED]:
        lease = refusal.lease
        log.warning("no route for lease %s of %s: %s", lease.key, lease.public_ip, refusal.reason)
    if len(changes.refused) > LISTED:
        log.warning("no route for %d more leases", len(changes.refused) - LISTED)
