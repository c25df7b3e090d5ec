"""Keeping our own lease: renewing it in time and noticing when it is no longer ours."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from flannel_udp.clock import boottime
from flannel_udp.cluster.claims import LEASE_TTL, Claims, Settled
from flannel_udp.cluster.lease import Events, LeaseAdded, OwnLease, Snapshot
from flannel_udp.errors import EtcdError, LeaseContestedError, LeaseLostError
from flannel_udp.log_limits import ChangeLog
from flannel_udp.retry import Backoff
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

# A flannel host can miss a join; it learns of the lease at the next put of its key.
REWRITE_AFTER_READY = 10.0  # seconds

# CLOCK_BOOTTIME continues while the machine sleeps; the clock of a waiting thread does not.
_LONGEST_SLEEP = 30.0  # seconds

# After etcd's data was replaced, a claim on our subnet may be an old one that its host withdraws.
CONTEST_GRACE = 60.0  # seconds

# A lease that lives shorter than the margin is renewed after a third of its life, or after this.
_LATEST_EARLY_RENEWAL = 60.0  # seconds

# Two daemons with one PublicIP notice each other by writes of the key. We write back, so that the
# one that came later notices us; rate limit, so that the two do not write for ever.
_WRITE_BACK_EVERY = 60.0  # seconds


class _Task(Enum):
    RECHECK = auto()  # our key may have changed
    RENEW = auto()
    REWRITE = auto()


@dataclass(frozen=True, slots=True)
class _Before:
    """The state with which a task begins."""

    own: OwnLease
    known_at: int
    changes: int
    losses: int
    rewrite_at: float | None
    history_lost: bool


class LeaseKeeper(Service):
    """A condition guards all state: ``observe`` and ``mark_ready`` come from other threads. It is
    not held during calls to etcd. ``stop`` leaves the lease in etcd."""

    def __init__(
        self,
        claims: Claims,
        own: OwnLease,
        margin: float,
        on_lost: Callable[[LeaseLostError], None],
        on_fatal: Callable[[BaseException], None],
        *,
        clock: Callable[[], float] = boottime,
        rewrite_after: float = REWRITE_AFTER_READY,
    ) -> None:
        """``margin`` in seconds before the deadline. The thread calls ``on_lost`` and ends when
        the lease was revoked or taken over."""
        super().__init__("lease-keeper", on_fatal)
        self._claims, self._margin, self._clock = claims, margin, clock
        self._on_lost = on_lost
        self._rewrite_after = rewrite_after
        self._condition = threading.Condition()
        self._own = own
        self._renew_at = self._renewal_of(own)
        self._rewrite_at: float | None = None
        self._known_at = own.mod_revision  # the newest revision at which nothing had changed
        self._changes_seen = 0  # of our key
        self._changes_settled = 0
        self._losses_seen = 0  # times that etcd's data was replaced
        self._losses_settled = 0
        self._losses_swept = 0  # after which our stale keys were removed
        self._contested_since: float | None = None
        self.stale_removed = 0  # old keys of our PublicIP that replaced data had brought back
        # The key may hold a write of ours, or of the process before us, that was not confirmed.
        self._own_write_unconfirmed = True
        self._rival_seen_at: float | None = None  # another daemon with our PublicIP
        self._written_back_at: float | None = None
        self._backoff, self._faults = Backoff(), ChangeLog(log, claims.lines)

    @property
    def own(self) -> OwnLease:
        with self._condition:
            return self._own

    @property
    def conflict(self) -> str | None:
        """The sentence about another daemon with our PublicIP, as long as one may be alive: it
        writes the key at least once in the life of a lease."""
        with self._condition:
            return self._conflict()

    @property
    def contest(self) -> str | None:
        """The sentence about another host that claims our subnet, while it may withdraw."""
        if self._contested_since is None:
            return None
        return (
            f"etcd's data was replaced and another host claims {self._own.subnet} in it: going on"
            f" for {CONTEST_GRACE:.0f} s, in which it may withdraw"
        )

    def mark_ready(self) -> None:
        """This host forwards now: the key is written once more a little later."""
        with self._condition:
            self._rewrite_at = self._clock() + self._rewrite_after
            self._condition.notify()

    def observe(self, change: Snapshot | Events) -> None:
        """Look for our key in what the follower delivers; returns at once."""
        with self._condition:
            history_lost = isinstance(change, Snapshot) and change.history_lost
            if history_lost or self._changes_own(change):
                self._losses_seen += history_lost
                self._changes_seen += 1
                self._condition.notify()
            elif self._changes_seen == self._changes_settled:
                self._known_at = max(self._known_at, change.revision)

    def _changes_own(self, change: Snapshot | Events) -> bool:
        name = self._own.key.rpartition("/")[2]
        if isinstance(change, Snapshot):
            at = next((each.mod_revision for each in change.leases if each.key == name), 0)
            return at != self._own.mod_revision
        return any(
            event.lease.key == name and event.lease.mod_revision != self._own.mod_revision
            if isinstance(event, LeaseAdded)
            else event.key == name
            for event in change.events
        )

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _serve(self) -> None:
        try:
            while task := self._next_task():
                self._try(task)
        except LeaseLostError as error:
            log.error("%s", error)
            self._on_lost(error)

    def _next_task(self) -> _Task | None:
        """Wait for something to do; None when asked to stop."""
        with self._condition:
            while not self._stopping.is_set():
                now = self._clock()
                if self._changes_seen != self._changes_settled:
                    return _Task.RECHECK
                if self._renew_at is not None and now >= self._renew_at:
                    return _Task.RENEW
                if self._rewrite_at is not None and now >= self._rewrite_at:
                    return _Task.REWRITE
                due = [at - now for at in (self._renew_at, self._rewrite_at) if at is not None]
                self._condition.wait(min([*due, _LONGEST_SLEEP]))
            return None

    def _try(self, task: _Task) -> None:
        """Do the task, or wait a little for another try. Raises LeaseLostError."""
        try:
            self._do(task)
        except EtcdError as error:
            if self._stopping.is_set():  # which has ended the call
                return
            self._contested_since = None  # without etcd, the other host could not withdraw
            self._faults.failed(f"lease {self._own.subnet} cannot be kept up: {error}")
        except LeaseContestedError as error:
            self._contest(error)
        else:
            self._faults.works(f"lease {self._own.subnet} is kept up again")
            self._backoff.reset()
            return
        self._stopping.wait(self._backoff.next())

    def _do(self, task: _Task) -> None:
        with self._condition:
            before = _Before(
                self._own,
                self._known_at,
                self._changes_seen,
                self._losses_seen,
                self._rewrite_at,
                history_lost=self._losses_seen != self._losses_settled,
            )
        try:
            settled = self._ask_etcd(task, before)
        except EtcdError:
            self._own_write_unconfirmed = True
            raise
        with self._condition:
            if settled is None:
                self._changes_seen += 1
                return
            if settled.rewritten and not self._own_write_unconfirmed:
                self._meet_rival()
            if settled.own.mod_revision != before.own.mod_revision:
                self._own_write_unconfirmed = False  # it was conditional on the old mod_revision
            self._own = settled.own
            self._finish(task, before)

    def _ask_etcd(self, task: _Task, before: _Before) -> Settled | None:
        """None if the key or its etcd lease is not as we know it."""
        own = before.own
        if task is _Task.RECHECK:
            if self._losses_swept != before.losses:
                # Before our own key: two hosts may hold each other's subnet in old data. Once,
                # because it reads all leases, and a contest takes many tries.
                self.stale_removed += self._claims.remove_stale(own)
                self._losses_swept = before.losses
            return self._claims.recheck(own, before.known_at, history_lost=before.history_lost)
        renews = task is _Task.RENEW
        held = self._claims.keep_alive(own) if renews else self._claims.rewrite(own)
        return Settled(held) if held else None

    def _finish(self, task: _Task, before: _Before) -> None:
        """Set when to act next; the condition is held."""
        own = self._own
        match task:
            case _Task.RECHECK:
                self._changes_settled, self._losses_settled = before.changes, before.losses
                self._known_at, self._contested_since = own.mod_revision, None
                self._renew_at = self._renewal_of(own)
                log.debug("lease %s is ours as of revision %d", own.subnet, own.mod_revision)
                self._log_times()
            case _Task.RENEW:
                self._renew_at, self._rewrite_at = self._renewal_of(own), self._clock()
                log.info("renewed lease %s", own.subnet)
                self._log_times()
            case _Task.REWRITE:
                self._known_at = max(self._known_at, own.mod_revision)
                if self._rewrite_at == before.rewrite_at:  # else another was asked for meanwhile
                    self._rewrite_at = None
                log.debug("wrote lease %s again: revision %d", own.subnet, own.mod_revision)

    def _log_times(self) -> None:
        own, now = self._own, self._clock()
        if own.deadline is not None and self._renew_at is not None:
            times = own.deadline - now, self._renew_at - now
            log.debug("lease %s lives for %.0f s and is renewed in %.0f s", own.subnet, *times)

    def _conflict(self) -> str | None:
        if self._rival_seen_at is None or self._clock() - self._rival_seen_at >= LEASE_TTL:
            return None
        return (
            f"another daemon uses PublicIP {self._own.public_ip} too: it rewrote our lease"
            f" {self._own.subnet}, so that two hosts have one subnet; give each host a --public-ip"
            " of its own and start both daemons again"
        )

    def _meet_rival(self) -> None:
        """Another daemon has written our key; the condition is held."""
        now, is_new = self._clock(), self._conflict() is None
        self._rival_seen_at = now
        if is_new:
            log.warning("%s", self._conflict())
        if self._written_back_at is None or now - self._written_back_at >= _WRITE_BACK_EVERY:
            self._written_back_at = self._rewrite_at = now

    def _contest(self, error: LeaseContestedError) -> None:
        """Keep the lease for a while although another host claims our subnet. Raises
        LeaseLostError."""
        now = self._clock()
        if self._contested_since is None:
            self._contested_since = now
            with self._condition:
                if self._losses_seen == self._losses_settled:
                    self._losses_seen += 1  # the follower reports it later
        if now - self._contested_since >= CONTEST_GRACE:
            raise LeaseLostError(str(error)) from None
        if sentence := self.contest:
            self._faults.failed(sentence)

    def _renewal_of(self, own: OwnLease) -> float | None:
        """When to renew, CLOCK_BOOTTIME seconds; never for a reservation."""
        if own.deadline is None:
            return None
        now = self._clock()
        early = min((own.deadline - now) / 3, _LATEST_EARLY_RENEWAL)
        return max(own.deadline - self._margin, now + early)
