"""Keeping our own lease: renewing it in time and noticing when it is no longer ours."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum, auto

from flannel_udp.clock import boottime
from flannel_udp.cluster.lease import Events, LeaseAdded, OwnLease, Snapshot
from flannel_udp.cluster.registry import LEASE_TTL, Registry
from flannel_udp.errors import EtcdError, LeaseContestedError, LeaseLostError
from flannel_udp.log_limits import ChangeLog
from flannel_udp.retry import Backoff

log = logging.getLogger(__name__)

# Flannel hosts can miss a join and learn of it at the next put: one that soon heals it.
REWRITE_AFTER_READY = 10.0  # seconds

# CLOCK_BOOTTIME goes on while the machine sleeps and the clock of a waiting thread does not.
_LONGEST_SLEEP = 30.0  # seconds

# After etcd's data was replaced, a claim on our subnet may be old news that its host withdraws.
CONTEST_GRACE = 60.0  # seconds

# A lease that lives shorter than the margin is renewed after a third of its life, or this.
_LONGEST_HASTE = 60.0  # seconds

# Of two daemons with one PublicIP, each hears of the other by the other's writes. An answer at most
# so often tells the one that came later, and no two keep answering each other.
_ANSWER_EVERY = 60.0  # seconds


class _Task(Enum):
    RECHECK = auto()  # something happened to our key
    RENEW = auto()
    REWRITE = auto()


class LeaseKeeper:
    """Owns one thread. A condition guards all state: ``observe`` and ``mark_ready`` come from
    other threads; etcd is called without holding it."""

    def __init__(
        self,
        registry: Registry,
        own: OwnLease,
        margin: float,
        on_lost: Callable[[LeaseLostError], None],
        on_fatal: Callable[[BaseException], None],
        *,
        clock: Callable[[], float] = boottime,
        rewrite_after: float = REWRITE_AFTER_READY,
        contest_grace: float = CONTEST_GRACE,
    ) -> None:
        """``margin`` in seconds before the deadline. The thread calls ``on_lost`` and ends when
        the lease was revoked or stolen, ``on_fatal`` when it met an error of our own."""
        self._registry, self._margin, self._clock = registry, margin, clock
        self._on_lost, self._on_fatal = on_lost, on_fatal
        self._rewrite_after, self._contest_grace = rewrite_after, contest_grace
        self._condition = threading.Condition()
        self._own = own
        self._renew_at = self._renewal_of(own)
        self._rewrite_at: float | None = None
        self._known_at = own.mod_revision  # the newest revision at which nothing had changed
        self._suspicions = 0  # changes of our key seen
        self._settled = 0  # of these, looked into
        self._losses = 0  # times that etcd's data was replaced
        self._settled_losses = 0  # of these, looked into
        self._swept_losses = 0  # of these, after which our stale keys were removed
        self._contested_since: float | None = None
        self._stale_removed = 0
        # The key may hold a write of ours, or of the process before us, that we heard nothing of.
        self._unsure = True
        self._rival_at: float | None = None  # when another daemon's write was last seen
        self._answered_at: float | None = None  # when it was last answered
        self._stopping = False
        self._backoff, self._faults = Backoff(), ChangeLog(log, registry.lines)
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

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
            f" for {self._contest_grace:.0f} s, in which it may withdraw"
        )

    @property
    def stale_removed(self) -> int:
        """How many old keys of our PublicIP were removed that replaced data had brought back."""
        return self._stale_removed

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; the lease stays in etcd."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, ``timeout`` seconds at most; whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def mark_ready(self) -> None:
        """We forward: the lease is written once more a little later."""
        with self._condition:
            self._rewrite_at = self._clock() + self._rewrite_after
            self._condition.notify()

    def observe(self, change: Snapshot | Events) -> None:
        """Look for our key in what the follower delivers; returns at once."""
        with self._condition:
            if isinstance(change, Snapshot) and change.history_lost:
                self._losses += 1
                self._suspicions += 1
                self._condition.notify()
            elif self._touches_own(change):
                self._suspicions += 1
                self._condition.notify()
            elif self._suspicions == self._settled:
                self._known_at = max(self._known_at, change.revision)

    def _touches_own(self, change: Snapshot | Events) -> bool:
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

    def _run(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                try:
                    self._do(task)
                except EtcdError as error:
                    self._contested_since = None  # nobody could withdraw meanwhile
                    self._faults.failed(f"lease {self._own.subnet} cannot be kept up: {error}")
                    self._pause(self._backoff.next())
                except LeaseContestedError as error:
                    self._contest(error)
                    self._pause(self._backoff.next())
                else:
                    self._faults.works(f"lease {self._own.subnet} is kept up again")
                    self._backoff.reset()
        except LeaseLostError as error:
            log.error("%s", error)
            self._on_lost(error)
        except Exception as error:
            log.exception("keeping the lease ended")
            self._on_fatal(error)

    def _next_task(self) -> _Task | None:
        """Wait for something to do; None at the end."""
        with self._condition:
            while not self._stopping:
                now = self._clock()
                if self._suspicions != self._settled:
                    return _Task.RECHECK
                if self._renew_at is not None and now >= self._renew_at:
                    return _Task.RENEW
                if self._rewrite_at is not None and now >= self._rewrite_at:
                    return _Task.REWRITE
                due = [at - now for at in (self._renew_at, self._rewrite_at) if at is not None]
                self._condition.wait(min([*due, _LONGEST_SLEEP]))
            return None

    def _do(self, task: _Task) -> None:
        with self._condition:
            own, seen, known_at = self._own, self._suspicions, self._known_at
            losses = self._losses
            history_lost = losses != self._settled_losses
        held: OwnLease | None
        rewritten = False
        try:
            match task:
                case _Task.RECHECK:
                    if self._swept_losses != losses:
                        # Before our own key: two hosts may hold each other's subnet in old data.
                        # Once, for it reads all leases, and a contest takes many tries.
                        self._stale_removed += self._registry.remove_stale(own)
                        self._swept_losses = losses
                    settled = self._registry.recheck(own, known_at, history_lost=history_lost)
                    held, rewritten = settled.own, settled.rewritten
                case _Task.RENEW:
                    held = self._registry.keep_alive(own)
                case _Task.REWRITE:
                    held = self._registry.rewrite(own)
        except EtcdError:
            self._unsure = True
            raise
        with self._condition:
            if held is None:
                self._suspicions += 1
                return
            if rewritten and not self._unsure:
                self._meet_rival()
            if held.mod_revision != own.mod_revision:
                self._unsure = False  # what was conditional on the old one comes too late now
            self._own = held
            match task:
                case _Task.RECHECK:
                    self._settled, self._known_at = seen, held.mod_revision
                    self._renew_at = self._renewal_of(held)
                    self._settled_losses, self._contested_since = losses, None
                    log.debug("lease %s is ours as of revision %d", held.subnet, held.mod_revision)
                    self._tell_times(held)
                case _Task.RENEW:
                    self._renew_at, self._rewrite_at = self._renewal_of(held), self._clock()
                    log.info("renewed lease %s", held.subnet)
                    self._tell_times(held)
                case _Task.REWRITE:
                    self._known_at = max(self._known_at, held.mod_revision)
                    self._rewrite_at = None
                    log.debug("wrote lease %s again: revision %d", held.subnet, held.mod_revision)

    def _tell_times(self, own: OwnLease) -> None:
        if own.deadline is not None and self._renew_at is not None:
            now = self._clock()
            log.debug(
                "lease %s lives for %.0f s and is renewed in %.0f s",
                *(own.subnet, own.deadline - now, self._renew_at - now),
            )

    def _conflict(self) -> str | None:
        if self._rival_at is None or self._clock() - self._rival_at >= LEASE_TTL:
            return None
        return (
            f"another daemon uses PublicIP {self._own.public_ip} too: it rewrote our lease"
            f" {self._own.subnet}, so that two hosts have one subnet; give each host a --public-ip"
            " of its own and start both daemons again"
        )

    def _meet_rival(self) -> None:
        """Somebody else has written our key; the condition is held."""
        now, is_news = self._clock(), self._conflict() is None
        self._rival_at = now
        if is_news:
            log.warning("%s", self._conflict())
        if self._answered_at is None or now - self._answered_at >= _ANSWER_EVERY:
            self._answered_at = self._rewrite_at = now

    def _contest(self, error: LeaseContestedError) -> None:
        """Go on for a while although another host claims our subnet. Raises LeaseLostError."""
        now = self._clock()
        if self._contested_since is None:
            self._contested_since = now
            with self._condition:
                if self._losses == self._settled_losses:
                    self._losses += 1  # which the follower tells of only later
        if now - self._contested_since >= self._contest_grace:
            raise LeaseLostError(str(error)) from None
        if sentence := self.contest:
            self._faults.failed(sentence)

    def _pause(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._stopping, seconds)

    def _renewal_of(self, own: OwnLease) -> float | None:
        """When to renew, CLOCK_BOOTTIME seconds; never for a reservation."""
        if own.deadline is None:
            return None
        now = self._clock()
        haste = min((own.deadline - now) / 3, _LONGEST_HASTE)
        return max(own.deadline - self._margin, now + haste)
