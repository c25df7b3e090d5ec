"""The protocol of leases over etcd: how a host gets its subnet, keeps it and learns of the others.

Keys, values and the order of choice are flannel's, whose hosts read and write the same keys at the
same time. No transaction ever writes two leases, because flannel reads only the
first event of a watch answer.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.clock import boottime
from flannel_udp.cluster import allocator
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import (
    Events,
    Lease,
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    OwnLease,
    Snapshot,
    WatchOpened,
    decode_key,
    decode_lease,
    encode_key,
    encode_value,
)
from flannel_udp.errors import (
    EtcdError,
    LeaseContestedError,
    LeaseDecodeError,
    LeaseLostError,
    NetworkConfigError,
    ReservationError,
)
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.faults import LeaseGoneError, RevisionError
from flannel_udp.etcd.values import Identity, KeyChange, KeyRange, KeyValue, Version, WatchResponse
from flannel_udp.etcd.watch import Watch

log = logging.getLogger(__name__)

LEASE_TTL = 86_400  # seconds, flannel's

# A race is lost to another host that won it, so that this many in a row mean something else.
_TRIES = 30


@dataclass(frozen=True, slots=True)
class Settled:
    """The lease to go on with. ``rewritten``: its key holds what ``own`` was, but not as we wrote
    it; no daemon leaves that behind but one that runs with our PublicIP."""

    own: OwnLease
    rewritten: bool = False


class Registry:
    """The leases below ``<prefix>/subnets/``. Every method makes one attempt and raises EtcdError
    when etcd cannot be used. Its only state, the keys already warned about, is behind a lock."""

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        *,
        ttl: int = LEASE_TTL,
        clock: Callable[[], float] = boottime,
        rng: random.Random | None = None,
    ) -> None:
        """``prefix`` as config.clean_prefix returns it; ``ttl`` in seconds, of new leases."""
        self._etcd = etcd
        self.lines = etcd.lines  # for all who warn that etcd cannot be used
        self.config_key = f"{prefix}/config"
        self._folder = f"{prefix}/subnets/"
        self._ttl, self._clock = ttl, clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._skipped: dict[str, int] = {}  # unreadable key -> mod_revision, those now in etcd

    def network_config(self) -> NetworkConfig:
        """The cluster's config. Raises NetworkConfigError, also when missing; BackendTypeError."""
        found = self._etcd.get(self.config_key)
        if found is None:
            raise NetworkConfigError(
                f"there is no network config in etcd at {self.config_key}: write one, as in"
                f" flannel-udp config --etcd-prefix {self.config_key.removesuffix('/config')} set"
                """ '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}'"""
            )
        return NetworkConfig.parse(found.value)

    def read_config(self) -> tuple[bytes | None, int]:
        """The config as it stands in etcd, None if it does not, and etcd's revision."""
        found = self._etcd.range(self.config_key)
        text = next((kv.value for kv in found.kvs if kv.key == self.config_key), None)
        return text, found.revision

    def watch_config(self, revision: int) -> Watch[tuple[bytes | None, ...]]:
        """The config after each change from ``revision`` on, None when deleted; one answer of
        etcd may hold several or none."""

        def decode(response: WatchResponse) -> tuple[bytes | None, ...]:
            return tuple(
                None if change.deleted else change.kv.value
                for change in response.changes
                if change.kv.key == self.config_key
            )

        return self._etcd.watch(self.config_key, revision, decode)

    # Reading the leases of all hosts

    def snapshot(self) -> Snapshot:
        """Every lease, in one read."""
        return self._decode(self._etcd.range(self._folder))

    def watch(self, revision: int) -> Watch[WatchOpened | Events]:
        """Every change of a lease from ``revision`` on, with one Events for each answer of etcd;
        an empty one reports progress. A value that is no lease (any more) removes it."""

        def decode(response: WatchResponse) -> WatchOpened | Events:
            if response.created:
                return WatchOpened()
            return Events(tuple(map(self._event, response.changes)), response.revision)

        return self._etcd.watch(self._folder, revision, decode)

    def identity(self) -> Identity:
        """Which data etcd serves."""
        return self._etcd.identity(self.config_key)

    def same_history(self, key: str, version: Version | None, at: int) -> bool:
        """Whether etcd remembers this version of ``key``, or any for None, as of revision ``at``.

        If not, its data is not the data we knew: wiped or restored, even if its revision has
        overtaken ours since. True as well when that part of the history is compacted.
        """
        try:
            found = self._etcd.get(key, revision=at)
        except RevisionError as error:
            return error.compacted
        if version is None:
            return found is not None
        return version == (Version(found.mod_revision, found.lease) if found else Version())

    def _event(self, change: KeyChange) -> LeaseEvent:
        kv, name = change.kv, self._name(change.kv)
        if change.deleted:
            with self._lock:
                self._skipped.pop(name, None)
            return LeaseRemoved(name, deleted_at=kv.mod_revision)
        lease = self._lease(kv)
        if lease is None:
            return LeaseRemoved(name, Version(kv.mod_revision, kv.lease))
        return LeaseAdded(lease)

    def _name(self, kv: KeyValue) -> str:
        return kv.key.removeprefix(self._folder)

    def _lease(self, kv: KeyValue) -> Lease | None:
        """None for what is no lease, with one warning per change of the key."""
        name = self._name(kv)
        try:
            lease = decode_lease(name, kv.value, etcd_lease=kv.lease, mod_revision=kv.mod_revision)
        except LeaseDecodeError as error:
            with self._lock:
                known = self._skipped.get(name) == kv.mod_revision
                self._skipped[name] = kv.mod_revision
            if not known:
                log.warning("%s", error)
            return None
        return lease

    def _decode(self, found: KeyRange) -> Snapshot:
        leases = tuple(lease for kv in found.kvs if (lease := self._lease(kv)))
        names = {self._name(kv) for kv in found.kvs}
        with self._lock:
            self._skipped = {name: at for name, at in self._skipped.items() if name in names}
        return Snapshot(leases, found.revision)

    # Getting a subnet

    def acquire(
        self, config: NetworkConfig, public_ip: IPv4Address, previous: IPv4Network | None
    ) -> tuple[OwnLease, Snapshot]:
        """Our subnet, and every lease as read just before it was taken or confirmed.

        Taken is the lease of our ``public_ip`` if there is one, else ``previous`` (from
        subnet.env) if free, else a random free subnet. Raises ReservationError when the subnet
        reserved for us does not fit ``config``, NetworkExhaustedError when none is free.
        """
        for _ in range(_TRIES):
            found = self._etcd.range(self._folder)
            snapshot = self._decode(found)
            ours = [lease for lease in snapshot.leases if lease.public_ip == public_ip]
            fitting = [lease for lease in ours if config.is_compatible(lease.subnet)]
            misfits = [lease for lease in ours if lease not in fitting]
            if not fitting:
                self._refuse_reservations(config, misfits)
            if self._give_up([lease for lease in misfits if not lease.is_reservation]):
                continue
            if fitting:
                best = min(fitting, key=lambda lease: (lease.subnet != previous, lease.subnet))
                kv = next(kv for kv in found.kvs if self._name(kv) == best.key)
                own = self._take_over(kv, best.subnet, public_ip)
                if own:
                    log.info("going on with lease %s of %s", own.subnet, public_ip)
            else:
                taken = self._occupied(found)
                if (
                    previous
                    and config.is_compatible(previous)
                    and allocator.is_free(previous, taken)
                ):
                    subnet = previous
                else:
                    subnet = allocator.choose(config, taken, self._rng)
                log.debug("trying %s, %d are taken; earlier: %s", subnet, len(taken), previous)
                own = self._create(subnet, public_ip)
            if own:
                return replace(own, identity=found.identity), snapshot
        raise EtcdError(
            f"{_TRIES} attempts to take a subnet were overtaken by other writes to etcd: check"
            f" what else writes below {self._folder}"
        )

    def _occupied(self, found: KeyRange) -> list[IPv4Network]:
        """The subnets of all keys, also of those whose value nobody can read."""
        taken = []
        for kv in found.kvs:
            with contextlib.suppress(LeaseDecodeError):
                taken.append(decode_key(self._name(kv))[0])
        return taken

    def _refuse_reservations(self, config: NetworkConfig, misfits: list[Lease]) -> None:
        for lease in misfits:
            if lease.is_reservation:
                raise ReservationError(
                    f"the subnet {lease.subnet} is reserved for {lease.public_ip} in etcd but is no"
                    f" /{config.subnet_len} from {config.subnet_min} to {config.subnet_max}:"
                    f" delete the key {self._folder}{lease.key} or change the network config"
                )

    def _give_up(self, misfits: list[Lease]) -> bool:
        """Our leases outside the config go; whether there were any."""
        for lease in misfits:
            key = self._folder + lease.key
            if self._etcd.delete_if_unchanged(key, mod_revision=lease.mod_revision):
                log.info("gave up lease %s: it does not fit the network config", lease.subnet)
        return bool(misfits)

    def _create(self, subnet: IPv4Network, public_ip: IPv4Address) -> OwnLease | None:
        """Take a free subnet under a new etcd lease; None if another host was faster."""
        key = self._folder + encode_key(subnet)
        with self._new_lease() as new:
            own = self.rewrite(OwnLease(subnet, public_ip, key, new.id, 0, new.deadline))
            new.used = own is not None
        if own:
            log.info("leased %s for %s", subnet, public_ip)
        return own

    def _take_over(
        self, kv: KeyValue, subnet: IPv4Network, public_ip: IPv4Address
    ) -> OwnLease | None:
        """Go on with a key that is ours, rewritten if it is not word for word what we would write.

        It stays under its etcd lease, or without one; a lease that ran out is replaced. None if
        the key changed meanwhile.
        """
        own = OwnLease(subnet, public_ip, kv.key, kv.lease, kv.mod_revision, None)
        alive = self.keep_alive(own)
        if alive is None:
            with self._new_lease() as new:
                renewed = replace(own, etcd_lease=new.id, deadline=new.deadline)
                written = self.rewrite(renewed)
                new.used = written is not None
            return written
        if kv.value != encode_value(public_ip):
            return self.rewrite(alive)
        return alive

    @contextlib.contextmanager
    def _new_lease(self) -> Iterator[_NewLease]:
        """A fresh etcd lease, revoked at the end unless ``used``."""
        asked = self._clock()
        new = _NewLease(self._etcd.grant(self._ttl), asked + self._ttl)
        try:
            yield new
        finally:
            if not new.used:
                # Out of reach, it runs out by itself.
                with contextlib.suppress(EtcdError):
                    self._etcd.revoke(new.id)

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
        """Free the subnet for whoever asks next, if the key is still ours; a reservation stays."""
        if not own.etcd_lease:
            return False
        given = self._etcd.delete_if_unchanged(own.key, mod_revision=own.mod_revision)
        if given:
            log.info("gave back lease %s of %s", own.subnet, own.public_ip)
        return given

    def recheck(self, own: OwnLease, known_at: int, *, history_lost: bool = False) -> Settled:
        """Settle what became of our key.

        ``known_at`` is the newest revision at which ``own`` was known to hold; ``history_lost``
        tells that etcd's data was replaced since. A key that expired while we were cut off, or
        went with etcd's data, is created again if its subnet is free. Raises LeaseLostError when
        it was revoked or another host has it, LeaseContestedError when another host has it in
        data that replaced the data we knew.
        """
        identity = self.identity()
        # Told by this even where a compaction has removed what the data held at ``known_at``.
        history_lost = history_lost or not identity.continues(own.identity)
        for _ in range(_TRIES):
            kv = self._etcd.get(own.key)
            if kv:
                settled = self._follow(kv, own, known_at, history_lost)
            else:
                settled = self._create_again(own, known_at, history_lost)
            if settled:
                return replace(settled, own=replace(settled.own, identity=identity))
        raise EtcdError(
            f"the key {own.key} changes faster than it can be read: check who writes it"
        )

    def remove_stale(self, own: OwnLease) -> int:
        """Delete the other keys of our PublicIP that replaced data brought back; how many.

        Another host may hold such a subnet by now. Reservations stay: an operator made them.
        """
        removed = 0
        for lease in self.snapshot().leases:
            key = self._folder + lease.key
            if lease.public_ip != own.public_ip or lease.is_reservation or key == own.key:
                continue
            if self._etcd.delete_if_unchanged(key, mod_revision=lease.mod_revision):
                removed += 1
                log.warning(
                    "removed lease %s of %s, which etcd's old data brought back: ours is %s",
                    *(lease.subnet, own.public_ip, own.subnet),
                )
        return removed

    def _follow(
        self, kv: KeyValue, own: OwnLease, known_at: int, history_lost: bool
    ) -> Settled | None:
        # An operator who makes it a reservation writes the key too.
        rewritten = kv.mod_revision != own.mod_revision and bool(kv.lease or not own.etcd_lease)
        try:
            holder = decode_lease(
                self._name(kv), kv.value, etcd_lease=kv.lease, mod_revision=kv.mod_revision
            ).public_ip
        except LeaseDecodeError:
            holder = own.public_ip  # nobody else's: the rewrite below repairs it
            rewritten = False
        if rewritten or holder != own.public_ip:
            same_history = not history_lost and self.same_history(own.key, own.version, known_at)
            rewritten = rewritten and same_history
        if holder != own.public_ip:
            sentence = (
                f"lease {own.subnet} was taken over by {holder}, whose PublicIP the key {own.key}"
                " now carries: forwarding stops, start again to get another subnet"
            )
            raise LeaseLostError(sentence) if same_history else LeaseContestedError(sentence)
        held = self._take_over(kv, own.subnet, own.public_ip)
        if held is None:
            return None
        if held.etcd_lease != own.etcd_lease:
            if held.etcd_lease:
                log.info("lease %s is now under etcd lease %x", own.subnet, held.etcd_lease)
            else:
                log.info("lease %s is now a reservation: it is not renewed any more", own.subnet)
        return Settled(held, rewritten)

    def _create_again(self, own: OwnLease, known_at: int, history_lost: bool) -> Settled | None:
        expired = own.deadline is not None and self._clock() >= own.deadline
        if not (history_lost or expired):
            history_lost = not self.same_history(own.key, own.version, known_at)
        if history_lost:
            reason = "was lost with etcd's data"
        elif expired:
            reason = "expired while etcd could not be reached"
        else:
            raise LeaseLostError(
                f"lease {own.subnet} was revoked, its key {own.key} was deleted before it expired:"
                " forwarding stops, start again to get a subnet"
            )
        if not allocator.is_free(own.subnet, self._occupied(self._etcd.range(self._folder))):
            sentence = (
                f"lease {own.subnet} {reason} and another host has the subnet now: forwarding"
                " stops, start again to get another subnet"
            )
            raise LeaseContestedError(sentence) if history_lost else LeaseLostError(sentence)
        if own.etcd_lease == 0:  # an operator's reservation, restored as it was
            created = self.rewrite(replace(own, mod_revision=0))
        else:
            created = self._create(own.subnet, own.public_ip)
        if created is None:
            return None
        log.warning("lease %s %s: it was created again", own.subnet, reason)
        return Settled(created)


@dataclass(slots=True)
class _NewLease:
    id: int
    deadline: float
    used: bool = False
