"""Following the leases of all hosts: one watch that survives whatever happens to etcd.

    CONNECTING --created--> WATCHING --error--> CONNECTING
    CONNECTING or WATCHING --history gone--> RESYNC --snapshot--> CONNECTING

The revision of the last delivered change is the thread of the story: every new watch starts behind
it, so no event is lost. Where etcd cannot continue from there (compacted, wiped, restored), a
snapshot of everything replaces what was known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum

from flannel_udp.clock import boottime
from flannel_udp.cluster.lease import Events, OwnLease, Snapshot
from flannel_udp.cluster.registry import Registry, version_of
from flannel_udp.errors import EtcdError
from flannel_udp.etcd.client import RevisionError, Watch
from flannel_udp.etcd.values import Version, WatchResponse
from flannel_udp.log_limits import ChangeLog, LineBudget
from flannel_udp.logs import DETAIL
from flannel_udp.retry import Backoff
from flannel_udp.units import span

log = logging.getLogger(__name__)

# A connection that is made anew sooner than this is not worth a word.
_STALE_AFTER = 3.0  # seconds


class FollowState(Enum):
    CONNECTING = "connecting"
    RESYNC = "resync"
    WATCHING = "watching"


class Follower:
    """Owns one thread, which alone writes the state below and calls ``on_change``."""

    def __init__(
        self,
        registry: Registry,
        own: OwnLease,
        start: Snapshot,
        on_change: Callable[[Snapshot | Events], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """``start`` is known already; ``on_change`` hears what comes after it.

        What one watch answer holds arrives as one Events; a Snapshot replaces everything. When
        ``on_change`` raises, following ends and ``on_fatal`` gets the exception. ``own`` tells
        the key by which a history that was replaced is recognised.
        """
        self._registry, self._on_change, self._on_fatal = registry, on_change, on_fatal
        self._own_key = own.key
        self._folder, _, self._own_name = own.key.rpartition("/")
        # Of its key as last seen: written after ``start``, or as it was then.
        is_newer = own.mod_revision > start.revision
        self._own_version = version_of(own) if is_newer else self._own_in(start)
        self._revision = start.revision
        self._newest = self._newest_of(start)  # key and version of what changed last
        self._deleted_at: int | None = None  # its revision if that was a deletion
        self._identity = own.identity
        self._state = FollowState.CONNECTING
        self._last_contact = boottime()
        self._resyncs = 0
        self._resync = False  # a snapshot is needed
        self._history_lost = False  # and it will not continue what was known
        self._history_losses = 0
        # Endpoints of two clusters are a loss at every change between them.
        self._loss_lines = LineBudget()
        self._is_said = True  # of the last loss
        self._fresh = False  # a snapshot was read just now
        self._told = False  # that we follow
        self._backoff, self._faults = Backoff(), ChangeLog(log, registry.lines)
        self._stopping = threading.Event()
        self._watch_lock = threading.Lock()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def state(self) -> FollowState:
        return self._state

    @property
    def revision(self) -> int:
        """etcd's revision up to which every change was delivered."""
        return self._revision

    @property
    def resyncs(self) -> int:
        """How often all leases were read anew because the history was gone."""
        return self._resyncs

    @property
    def last_contact(self) -> float:
        """CLOCK_BOOTTIME seconds when etcd last spoke; while watching that is now, give or take
        the 13 s after which a silent connection is given up."""
        return boottime() if self._state is FollowState.WATCHING else self._last_contact

    def staleness(self) -> str | None:
        """How old the known leases are, as a clause; None while etcd tells of every change."""
        silent = boottime() - self.last_contact
        if silent < _STALE_AFTER:
            return None
        return f"etcd silent for {span(silent)}, routes of revision {self._revision}"

    @property
    def history_losses(self) -> int:
        """How often etcd came back with other data than it had."""
        return self._history_losses

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; from any thread, also from ``on_change``."""
        self._stopping.set()
        with self._watch_lock:
            if self._watch:
                self._watch.cancel()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, ``timeout`` seconds at most; whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    if self._resync:
                        self._read_all()
                    self._follow()
                except RevisionError as error:
                    self._lose_history(error)
                except EtcdError as error:
                    self._disconnect(error)
                if not self._stopping.is_set():
                    delay = self._backoff.next()
                    log.debug("asking etcd for the leases again in %.1f s", delay)
                    self._stopping.wait(delay)
        except Exception as error:
            log.exception("following the leases ended")
            self._on_fatal(error)

    def _read_all(self) -> None:
        self._identity = self._registry.identity()
        snapshot = replace(self._registry.snapshot(), history_lost=self._history_lost)
        log.log(
            logging.INFO if self._is_said else logging.DEBUG,
            "read all leases again: %d at revision %d",
            *(len(snapshot.leases), snapshot.revision),
        )
        self._revision, self._own_version = snapshot.revision, self._own_in(snapshot)
        self._newest, self._deleted_at = self._newest_of(snapshot), None
        self._resync, self._history_lost, self._fresh = False, False, True
        self._told = not self._is_said
        self._resyncs += 1
        self._state = FollowState.CONNECTING
        self._on_change(snapshot)

    def _follow(self) -> None:
        """Watch until the stream fails."""
        if not self._fresh:
            self._confirm_history()
        self._fresh = False
        first = self._revision + 1
        watch = self._registry.watch(first)
        with self._watch_lock:
            self._watch = watch
        try:
            if self._stopping.is_set():
                return
            for response in watch:
                self._last_contact = boottime()
                if response.created:
                    self._state = FollowState.WATCHING
                    self._backoff.reset()
                    returned = self._faults.works("etcd answers again")
                    if returned or not self._told:
                        log.info("following the leases of all hosts from revision %d", first)
                    self._told = True
                else:
                    self._deliver(response)
        finally:
            watch.cancel()

    def _deliver(self, response: WatchResponse) -> None:
        for change in response.changes:
            kv = change.kv
            version = Version() if change.deleted else Version(kv.mod_revision, kv.lease)
            self._newest = kv.key, version
            self._deleted_at = kv.mod_revision if change.deleted else None
            if kv.key == self._own_key:
                self._own_version = version
        log.log(DETAIL, "%d changes, revision %d", len(response.changes), response.revision)
        if response.changes:
            self._on_change(self._registry.events(response))
        self._revision = max(self._revision, response.revision)

    def _confirm_history(self) -> None:
        """Raise RevisionError if etcd's data was replaced, though its revision does not show it.

        It is the data we knew if it remembers our own key and the last change as we saw them.
        Done before the watch, these reads also find the member to use and renew the login.
        """
        before, self._identity = self._identity, self._registry.identity()
        if not self._identity.continues(before):
            raise RevisionError("etcd is another cluster than before", compacted=False)
        for key, version, known_at in self._remembered():
            if not self._registry.same_history(key, version, known_at):
                raise RevisionError(
                    f"etcd does not know what it held at revision {known_at}: its data was lost or"
                    " restored",
                    compacted=False,
                )
        log.debug(
            "etcd has the history that was known: cluster %x, term %d, revision %d",
            *(self._identity.cluster, self._identity.term, self._revision),
        )

    def _remembered(self) -> Iterator[tuple[str, Version | None, int]]:
        """What etcd must know: a key, its version (None: whichever) and at which revision."""
        own_at = max(self._revision, self._own_version.mod_revision)
        yield self._own_key, self._own_version, own_at
        key, version = self._newest
        yield key, version, self._revision
        if self._deleted_at is not None:  # data that never had the key is without it, too
            yield key, None, self._deleted_at - 1

    def _lose_history(self, error: RevisionError) -> None:
        self._is_said = self._loss_lines.allows()
        level = logging.WARNING if self._is_said else logging.DEBUG
        log.log(level, "%s: reading all leases again", error)
        self._state, self._resync = FollowState.RESYNC, True
        if not error.compacted and not self._history_lost:
            self._history_lost = True
            self._history_losses += 1

    def _disconnect(self, error: EtcdError) -> None:
        if self._state is FollowState.WATCHING:
            self._last_contact = boottime()
        if not self._resync:
            self._state = FollowState.CONNECTING
        self._faults.failed(f"the leases cannot be followed, known routes stay: {error}")

    def _own_in(self, snapshot: Snapshot) -> Version:
        found = (each for each in snapshot.leases if each.key == self._own_name)
        return next(map(version_of, found), Version())

    def _newest_of(self, snapshot: Snapshot) -> tuple[str, Version]:
        """The lease that was written last; our own key when there is none."""
        newest = max(snapshot.leases, key=lambda lease: lease.mod_revision, default=None)
        if newest is None:
            return self._own_key, Version()
        return f"{self._folder}/{newest.key}", version_of(newest)
