"""How this host gets a subnet, keeps it, and finds out whether it still has it.

Values and the order of choice are flannel's, whose hosts read and write the same keys at the same
time. No transaction ever writes two leases: flannel reads only the first event of a watch answer.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.clock import boottime
from flannel_udp.cluster import allocator
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import Lease, OwnLease, Snapshot, encode_value
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import (
    EtcdError,
    LeaseContestedError,
    LeaseDecodeError,
    LeaseLostError,
    ReservationError,
)
from flannel_udp.etcd.faults import LeaseGoneError
from flannel_udp.etcd.values import KeyRange, KeyValue

log = logging.getLogger(__name__)

LEASE_TTL = 86_400  # seconds, flannel's

# Each try is lost only to another write: this many in a row have another cause than a race.
_TRIES = 30


@dataclass(frozen=True, slots=True)
class Settled:
    """The lease to keep from now on. ``rewritten``: its key was written by somebody else with the
    content of ``own``; only another daemon with our PublicIP does that."""

    own: OwnLease
    rewritten: bool = False


class Claims:
    """This host's lease in etcd. Has no state: every method makes one attempt, and raises
    EtcdError when etcd cannot be used."""

    def __init__(
        self,
        registry: Registry,
        *,
        ttl: int = LEASE_TTL,
        clock: Callable[[], float] = boottime,
        rng: random.Random | None = None,
    ) -> None:
        """``ttl`` in seconds, of new leases."""
        self._registry, self._etcd = registry, registry.etcd
        self.lines = registry.lines
        self._ttl, self._clock = ttl, clock
        self._rng = rng or random.Random()

    # Getting a subnet

    def acquire(
        self, config: NetworkConfig, public_ip: IPv4Address, previous: IPv4Network | None
    ) -> tuple[OwnLease, Snapshot]:
        """Our subnet, and every lease as read just before it was taken or confirmed.

        It is that of the lease with our ``public_ip`` if there is one, else ``previous`` (from
        subnet.env) if free, else a random free subnet. Raises ReservationError when the subnet
        reserved for us does not fit ``config``, NetworkExhaustedError when none is free.
        """
        for _ in range(_TRIES):
            found = self._registry.read()
            snapshot = self._registry.decoded(found)
            ours = [lease for lease in snapshot.leases if lease.public_ip == public_ip]
            fitting = [lease for lease in ours if config.is_compatible(lease.subnet)]
            misfits = [lease for lease in ours if lease not in fitting]
            if not fitting:
                self._refuse_reservations(config, misfits)
            if self._give_up([lease for lease in misfits if not lease.is_reservation]):
                continue
            if fitting:
                own = self._continue(fitting, found, previous)
            else:
                own = self._create(self._choose(config, found, previous), public_ip)
            if own:
                return replace(own, identity=found.identity), snapshot
        raise EtcdError(
            f"{_TRIES} attempts to take a subnet were overtaken by other writes to etcd: check"
            f" what else writes below {self._registry.folder}"
        )

    def _refuse_reservations(self, config: NetworkConfig, misfits: Iterable[Lease]) -> None:
        for lease in misfits:
            if lease.is_reservation:
                raise ReservationError(
                    f"the subnet {lease.subnet} is reserved for {lease.public_ip} in etcd but is no"
                    f" /{config.subnet_len} from {config.subnet_min} to {config.subnet_max}:"
                    f" delete the key {self._registry.key(lease)} or change the network config"
                )

    def _give_up(self, misfits: list[Lease]) -> bool:
        """Delete our leases outside the config; returns whether there were any."""
        for lease in misfits:
            if self._delete(lease):
                log.info("gave up lease %s: it does not fit the network config", lease.subnet)
        return bool(misfits)

    def _continue(
        self, fitting: Iterable[Lease], found: KeyRange, previous: IPv4Network | None
    ) -> OwnLease | None:
        best = min(fitting, key=lambda lease: (lease.subnet != previous, lease.subnet))
        kv = next(kv for kv in found.kvs if kv.key == self._registry.key(best))
        own = self._take_over(kv, best.subnet, best.public_ip)
        if own:
            log.info("going on with lease %s of %s", own.subnet, own.public_ip)
        return own

    def _choose(
        self, config: NetworkConfig, found: KeyRange, previous: IPv4Network | None
    ) -> IPv4Network:
        taken = self._registry.subnets(found)
        if previous and config.is_compatible(previous) and allocator.is_free(previous, taken):
            subnet = previous
        else:
            subnet = allocator.choose(config, taken, self._rng)
        log.debug("trying %s, %d are taken; earlier: %s", subnet, len(taken), previous)
        return subnet

    def _create(self, subnet: IPv4Network, public_ip: IPv4Address) -> OwnLease | None:
        """Take a free subnet under a new etcd lease; None if another host was faster."""
        own = OwnLease(subnet, public_ip, self._registry.key_of(subnet), 0, 0, None)
        created = self._put_under_new_lease(own)
        if created:
            log.info("leased %s for %s", subnet, public_ip)
        return created

    def _take_over(
        self, kv: KeyValue, subnet: IPv4Network, public_ip: IPv4Address
    ) -> OwnLease | None:
        """Keep a key that is ours, rewritten if its value is not byte for byte what we write.

        It stays under its etcd lease, or without one; a lease that ran out is replaced. None if
        the key changed meanwhile.
        """
        own = OwnLease(subnet, public_ip, kv.key, kv.lease, kv.mod_revision, None)
        alive = self.keep_alive(own)
        if alive is None:
            return self._put_under_new_lease(own)
        return alive if kv.value == encode_value(public_ip) else self.rewrite(alive)

    def _put_under_new_lease(self, own: OwnLease) -> OwnLease | None:
        """``rewrite`` under a new etcd lease, which is revoked if that does not succeed."""
        deadline = self._clock() + self._ttl
        granted = self._etcd.grant(self._ttl)
        written = None
        try:
            written = self.rewrite(replace(own, etcd_lease=granted, deadline=deadline))
        finally:
            if written is None:
                with contextlib.suppress(EtcdError):  # else it expires by itself
                    self._etcd.revoke(granted)
        return written

    # Keeping it

    def keep_alive(self, own: OwnLease) -> OwnLease | None:
        """``own`` with a new deadline (none for a reservation); None if its etcd lease is gone."""
        if not own.etcd_lease:
            return replace(own, deadline=None)
        asked = self._clock()
        ttl = self._etcd.keep_alive(own.etcd_lease)
        return replace(own, deadline=asked + ttl) if ttl > 0 else None

    def rewrite(self, own: OwnLease) -> OwnLease | None:
        """Put our value under our etcd lease if the key is as we know it (mod_revision 0: absent).

        None if it is not, or if the etcd lease is gone. A put that changes nothing shows the lease
        to flannel hosts that missed it before.
        """
        try:
            swap = self._etcd.put_if_unchanged(
                own.key,
                encode_value(own.public_ip),
                lease=own.etcd_lease,
                mod_revision=own.mod_revision,
            )
        except LeaseGoneError:
            return None
        return replace(own, mod_revision=swap.revision) if swap.succeeded else None

    def give_back(self, own: OwnLease) -> bool:
        """Delete our key, if it is still ours and no reservation; returns whether it was."""
        if not own.etcd_lease:
            return False
        given = self._etcd.delete_if_unchanged(own.key, mod_revision=own.mod_revision)
        if given:
            log.info("gave back lease %s of %s", own.subnet, own.public_ip)
        return given

    def remove_stale(self, own: OwnLease) -> int:
        """Delete the other keys of our PublicIP that replaced data brought back; returns how many.

        Another host may hold such a subnet by now. Reservations stay: an operator made them.
        """
        removed = 0
        for lease in self._registry.snapshot().leases:
            if lease.public_ip != own.public_ip or lease.is_reservation:
                continue
            if self._registry.key(lease) != own.key and self._delete(lease):
                removed += 1
                log.warning(
                    "removed lease %s of %s, which etcd's old data brought back: ours is %s",
                    lease.subnet,
                    own.public_ip,
                    own.subnet,
                )
        return removed

    def _delete(self, lease: Lease) -> bool:
        key = self._registry.key(lease)
        return self._etcd.delete_if_unchanged(key, mod_revision=lease.mod_revision)

    # Finding out whether we still have it

    def recheck(self, own: OwnLease, known_at: int, *, history_lost: bool = False) -> Settled:
        """Settle what became of our key.

        ``known_at`` is the newest revision at which ``own`` was known to hold; ``history_lost``:
        etcd's data was replaced since. A key that expired while we were cut off, or went with
        etcd's data, is created again if its subnet is free. Raises LeaseLostError when it was
        revoked or another host has it, LeaseContestedError when another host has it in data that
        replaced the data we knew.
        """
        identity = self._registry.identity()
        # This recognises other data even where a compaction has removed its state at ``known_at``.
        history_lost = history_lost or not identity.continues(own.identity)
        for _ in range(_TRIES):
            kv = self._etcd.get(own.key)
            if kv:
                settled = self._settle_existing(kv, own, known_at, history_lost)
            else:
                settled = self._settle_missing(own, known_at, history_lost)
            if settled:
                return replace(settled, own=replace(settled.own, identity=identity))
        raise EtcdError(
            f"the key {own.key} changes faster than it can be read: check who writes it"
        )

    def _settle_existing(
        self, kv: KeyValue, own: OwnLease, known_at: int, history_lost: bool
    ) -> Settled | None:
        """None if the key changed meanwhile."""

        def is_same_history() -> bool:
            same_history = self._registry.same_history
            return not history_lost and same_history(own.key, own.version, known_at)

        rewritten = False
        with contextlib.suppress(LeaseDecodeError):  # a value that the rewrite below repairs
            holder = self._registry.lease(kv).public_ip
            if holder != own.public_ip:
                error = LeaseLostError if is_same_history() else LeaseContestedError
                raise error(
                    f"lease {own.subnet} was taken over by {holder}, whose PublicIP the key"
                    f" {own.key} now carries: forwarding stops, start again to get another subnet"
                )
            is_changed = kv.mod_revision != own.mod_revision
            # An operator who makes it a reservation writes the key too.
            is_reserved = own.etcd_lease and not kv.lease
            rewritten = is_changed and not is_reserved and is_same_history()
        held = self._take_over(kv, own.subnet, own.public_ip)
        if held is None:
            return None
        if held.etcd_lease != own.etcd_lease:
            if held.etcd_lease:
                log.info("lease %s is now under etcd lease %x", own.subnet, held.etcd_lease)
            else:
                log.info("lease %s is now a reservation: it is not renewed any more", own.subnet)
        return Settled(held, rewritten)

    def _settle_missing(self, own: OwnLease, known_at: int, history_lost: bool) -> Settled | None:
        """None if somebody created the key meanwhile."""
        expired = own.deadline is not None and self._clock() >= own.deadline
        if not (history_lost or expired):
            history_lost = not self._registry.same_history(own.key, own.version, known_at)
        if history_lost:
            reason = "was lost with etcd's data"
        elif expired:
            reason = "expired while etcd could not be reached"
        else:
            raise LeaseLostError(
                f"lease {own.subnet} was revoked, its key {own.key} was deleted before it expired:"
                " forwarding stops, start again to get a subnet"
            )
        if not allocator.is_free(own.subnet, self._registry.subnets(self._registry.read())):
            error = LeaseContestedError if history_lost else LeaseLostError
            raise error(
                f"lease {own.subnet} {reason} and another host has the subnet now: forwarding"
                " stops, start again to get another subnet"
            )
        if own.etcd_lease == 0:  # an operator's reservation, restored as it was
            created = self.rewrite(replace(own, mod_revision=0))
        else:
            created = self._create(own.subnet, own.public_ip)
        if created is None:
            return None
        log.warning("lease %s %s: it was created again", own.subnet, reason)
        return Settled(created)
