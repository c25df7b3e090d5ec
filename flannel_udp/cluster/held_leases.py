"""Leases that etcd lost together with its data, kept until they return or are refuted (pure).

A host still carries its subnet after etcd was wiped or restored from an old backup. flannel
registers again only at its next renewal, up to 23 hours later; until then the lease that we know
is the best information on where its containers are.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import groupby

from flannel_udp.cluster.lease import Events, Lease, LeaseAdded, LeaseEvent, LeaseRemoved, Snapshot


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that is not in etcd; ``until`` in CLOCK_BOOTTIME seconds."""

    lease: Lease
    until: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A lease that is no longer held; the reason is a clause: "it is in etcd again"."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class HoldChanges:
    """Which leases are held from now on, and which no longer."""

    begun: tuple[Lease, ...] = ()
    ended: tuple[Ended, ...] = ()


@dataclass(slots=True)
class _Peer:
    known: frozenset[str]  # keys of its leases when the history was lost
    held: set[str] = field(default_factory=set)  # keys of those that are held now


class HeldLeases:
    """Knows the leases of all other hosts, in etcd and held. Not thread-safe: one owner.

    The cost of an event does not depend on the number of held leases, except for a lease whose
    subnet is larger than theirs.
    """

    def __init__(
        self, own_public_ip: IPv4Address, hold: float, is_sound: Callable[[Lease], bool]
    ) -> None:
        """``hold`` in seconds, 0 to hold nothing. A lease that is not ``is_sound`` has no route
        and does not end the holds of others."""
        self._own_public_ip, self._hold, self._is_sound = own_public_ip, hold, is_sound
        self._leases: dict[str, Lease] = {}  # in etcd, by key
        self._held: dict[str, Held] = {}  # by key, in the order in which they end
        self._peers: dict[IPv4Address, _Peer] = {}  # of the held ones
        self._keys: dict[int, dict[IPv4Network, set[str]]] = {}  # by length, then by subnet

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    @property
    def next_end(self) -> float | None:
        """When the first hold ends, CLOCK_BOOTTIME seconds; None when nothing is held."""
        return next(iter(self._held.values())).until if self._held else None

    def in_etcd(self) -> tuple[Lease, ...]:
        """The leases that are not held: all that etcd has."""
        return tuple(self._leases.values())

    def restore(self, snapshot: Snapshot, held: Iterable[Held]) -> Snapshot:
        """Start with what another process knew: etcd's leases and those it held. Returns both."""
        self._leases = {lease.key: lease for lease in snapshot.leases}
        first_to_end = sorted(held, key=_until)
        everything = self._leases | {each.lease.key: each.lease for each in first_to_end}
        for until, together in groupby(first_to_end, key=_until):
            self._begin([each.lease for each in together], everything, until)
        return replace(snapshot, leases=tuple(everything.values()))

    def take_in(
        self, change: Snapshot | Events, now: float
    ) -> tuple[Snapshot | Events, HoldChanges]:
        """``change`` as it is to be applied: with held leases, and removals of ended ones."""
        if isinstance(change, Snapshot):
            return self._replace(change, now)
        ended: list[Ended] = []
        for event in change.events:
            if isinstance(event, LeaseAdded):
                self._leases[event.lease.key] = event.lease
                ended += self._refuted_by(event.lease)
            else:
                self._leases.pop(event.key, None)
                if event.key in self._held:  # its value became unreadable
                    ended.append(Ended(self._held[event.key].lease, "its key holds no lease now"))
                    self._drop(event.key)
        if not ended:
            return change, HoldChanges()
        named = {_key(event) for event in change.events}
        removals = tuple(
            LeaseRemoved(each.lease.key) for each in ended if each.lease.key not in named
        )
        return replace(change, events=(*removals, *change.events)), HoldChanges(ended=tuple(ended))

    def expire(self, now: float) -> tuple[Ended, ...]:
        """End the holds whose time is over; their leases are to be removed now."""
        over = [held.lease for held in self._held.values() if held.until <= now]
        for lease in over:
            self._drop(lease.key)
        return tuple(Ended(lease, "its host did not come back in time") for lease in over)

    def _replace(self, snapshot: Snapshot, now: float) -> tuple[Snapshot, HoldChanges]:
        before, self._leases = self._leases, {lease.key: lease for lease in snapshot.leases}
        begun: list[Lease] = []
        if snapshot.history_lost and self._hold > 0:
            begun = [
                lease
                for key, lease in before.items()
                if key not in self._leases and lease.public_ip != self._own_public_ip
            ]
            self._begin(begun, before, now + self._hold)
        # Leases in replaced data may be older than all we knew, so they do not show where their
        # hosts are now. What the hosts write from here on does.
        ended = [
            each
            for lease in snapshot.leases
            for each in self._refuted_by(
                lease, is_news=not snapshot.history_lost and before.get(lease.key) != lease
            )
        ]
        refuted = {each.lease.key for each in ended}
        effective = replace(
            snapshot, leases=(*snapshot.leases, *(held.lease for held in self._held.values()))
        )
        stays = tuple(lease for lease in begun if lease.key not in refuted)
        return effective, HoldChanges(stays, tuple(ended))

    def _begin(self, leases: list[Lease], before: dict[str, Lease], until: float) -> None:
        known: dict[IPv4Address, set[str]] = {lease.public_ip: set() for lease in leases}
        for key, lease in before.items():
            if lease.public_ip in known:
                known[lease.public_ip].add(key)
        for public_ip, keys in known.items():
            earlier = self._peers.get(public_ip)
            held = earlier.held if earlier else set()
            self._peers[public_ip] = _Peer(frozenset(keys | held), held)
        for lease in leases:
            self._held[lease.key] = Held(lease, until)
            self._peers[lease.public_ip].held.add(lease.key)
            subnet = lease.subnet
            self._keys.setdefault(subnet.prefixlen, {}).setdefault(subnet, set()).add(lease.key)

    def _refuted_by(self, lease: Lease, *, is_news: bool = True) -> list[Ended]:
        """End the holds that this lease, now in etcd, confirms or refutes."""
        if not self._held:
            return []
        ended: dict[str, Ended] = {}
        for key in self._overlapping(lease.subnet):
            held = self._held[key].lease
            if held.public_ip != lease.public_ip:
                ended[key] = Ended(held, f"{lease.public_ip} leases {lease.subnet} now")
        peer = self._peers.get(lease.public_ip)
        if peer and lease.key not in peer.known and is_news:
            for key in peer.held:
                held = self._held[key].lease
                ended[key] = Ended(held, f"its host leases {lease.subnet} now")
        if ended and not self._is_sound(lease):
            ended.clear()
        if lease.key in self._held:  # sound or not: two leases cannot have one key
            held = self._held[lease.key].lease
            is_same = held.public_ip == lease.public_ip
            reason = "it is in etcd again" if is_same else f"{lease.public_ip} has its key now"
            ended[lease.key] = Ended(held, reason)
        for each in ended.values():
            self._drop(each.lease.key)
        return list(ended.values())

    def _overlapping(self, subnet: IPv4Network) -> Iterator[str]:
        for length, subnets in self._keys.items():
            if length <= subnet.prefixlen:
                yield from subnets.get(subnet.supernet(new_prefix=length), ())
            else:
                for longer, keys in subnets.items():
                    if longer.subnet_of(subnet):
                        yield from keys

    def _drop(self, key: str) -> None:
        lease = self._held.pop(key).lease
        peer = self._peers[lease.public_ip]
        peer.held.discard(lease.key)
        if not peer.held:
            del self._peers[lease.public_ip]
        subnets = self._keys[lease.subnet.prefixlen]
        subnets[lease.subnet].discard(lease.key)
        if not subnets[lease.subnet]:
            del subnets[lease.subnet]
        if not subnets:
            del self._keys[lease.subnet.prefixlen]


def _until(held: Held) -> float:
    return held.until


def _key(event: LeaseEvent) -> str:
    return event.lease.key if isinstance(event, LeaseAdded) else event.key
