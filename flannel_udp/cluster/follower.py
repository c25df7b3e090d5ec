"""Following the leases of all hosts: one watch that survives whatever happens to etcd.

    CONNECTING --created--> WATCHING --error--> CONNECTING
    CONNECTING or WATCHING --history gone--> RESYNC --snapshot--> CONNECTING

Every watch resumes at the last delivered revision + 1, so no event is lost. Where etcd cannot
continue from there (compacted, wiped, restored), a snapshot of all leases replaces what was known.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from flannel_udp.clock import boottime
from flannel_udp.cluster.history import History
from flannel_udp.cluster.lease import Events, FollowState, OwnLease, Snapshot, WatchOpened
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import EtcdError, ShortageError
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.watch_stream import WatchService
from flannel_udp.log_limits import ChangeLog, LineBudget
from flannel_udp.logs import DETAIL
from flannel_udp.retry import Backoff
from flannel_udp.units import span

log = logging.getLogger(__name__)

# A connection that is restored sooner than this is not reported as stale.
_STALE_AFTER = 3.0  # seconds

Consumer = Callable[[Snapshot | Events], None]


class Follower(WatchService):
    """Its thread alone calls the consumers and writes the state, which other threads may read:

    ``state``; ``resyncs``, how often all leases were read again because the history was gone;
    ``history_losses``, how often etcd came back with other data than it had.
    """

    def __init__(
        self,
        registry: Registry,
        own: OwnLease,
        start: Snapshot,
        consumers: Sequence[Consumer],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """``consumers`` are called in order with every change after ``start``.

        What one watch answer holds arrives as one Events; a Snapshot replaces everything. A
        consumer that raises ShortageError or OSError gets a Snapshot later; after another
        exception following ends, and ``on_fatal`` gets it. The key of ``own`` helps to recognise
        that etcd's data was replaced.
        """
        super().__init__("follower", on_fatal)
        self._registry, self._consumers = registry, consumers
        self._history = History(own, start)
        self.state = FollowState.CONNECTING
        self._last_contact = boottime()
        self.resyncs = 0
        self.history_losses = 0
        self._must_resync = False
        self._history_lost = False  # the next snapshot does not continue the known history
        self._just_resynced = False
        # With endpoints of two clusters, every switch between them is a loss.
        self._loss_lines = LineBudget()
        self._loss_logged = True  # of the last loss
        self._following_logged = False
        self._backoff, self._faults = Backoff(), ChangeLog(log, registry.lines)
        self._shortages = ChangeLog(log)

    @property
    def revision(self) -> int:
        """etcd's revision up to which every change was delivered."""
        return self._history.revision

    @property
    def last_contact(self) -> float:
        """CLOCK_BOOTTIME seconds of etcd's last answer. While watching it is now: a silent
        connection is given up within 13 s."""
        return boottime() if self.state is FollowState.WATCHING else self._last_contact

    def staleness(self) -> str | None:
        """How old the known leases are, as a clause; None while etcd reports every change."""
        silent = boottime() - self.last_contact
        if silent < _STALE_AFTER:
            return None
        return f"etcd silent for {span(silent)}, routes of revision {self.revision}"

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._must_resync:
                    self._resync()
                self._follow()
            except RevisionError as error:
                self._lose_history(error)
            except EtcdError as error:
                if not self._stopping.is_set():
                    self._disconnect(error)
            except (ShortageError, OSError) as error:
                self._put_off(error)
            if not self._stopping.is_set():
                delay = self._backoff.next()
                log.debug("asking etcd for the leases again in %.1f s", delay)
                self._stopping.wait(delay)

    def _resync(self) -> None:
        identity = self._registry.identity()
        snapshot = replace(self._registry.snapshot(), history_lost=self._history_lost)
        log.log(
            logging.INFO if self._loss_logged else logging.DEBUG,
            "read all leases again: %d at revision %d",
            len(snapshot.leases),
            snapshot.revision,
        )
        self._history.restart(identity, snapshot)
        self._must_resync, self._history_lost, self._just_resynced = False, False, True
        self._following_logged = not self._loss_logged
        self.resyncs += 1
        self.state = FollowState.CONNECTING
        self._deliver(snapshot)
        self._shortages.works("the routes follow the leases again")

    def _follow(self) -> None:
        """Watch until the stream fails."""
        if not self._just_resynced:
            self._history.confirm(self._registry)
        self._just_resynced = False
        first = self.revision + 1
        with self._opened(self._registry.watch(first)) as changes:
            for change in changes:
                self._last_contact = boottime()
                if isinstance(change, WatchOpened):
                    self._report_watching(first)
                    continue
                log.log(DETAIL, "%d changes, revision %d", len(change.events), change.revision)
                if change.events:
                    self._deliver(change)
                self._history.observe(change)

    def _deliver(self, change: Snapshot | Events) -> None:
        for consume in self._consumers:
            consume(change)

    def _report_watching(self, first: int) -> None:
        self.state = FollowState.WATCHING
        self._backoff.reset()
        returned = self._faults.works("etcd answers again")
        if returned or not self._following_logged:
            log.info("following the leases of all hosts from revision %d", first)
        self._following_logged = True

    def _lose_history(self, error: RevisionError) -> None:
        self._loss_logged = self._loss_lines.allows()
        level = logging.WARNING if self._loss_logged else logging.DEBUG
        log.log(level, "%s: reading all leases again", error)
        self.state, self._must_resync = FollowState.RESYNC, True
        if not error.compacted and not self._history_lost:
            self._history_lost = True
            self.history_losses += 1

    def _put_off(self, error: Exception) -> None:
        """A consumer lacked descriptors or memory: it gets all leases again, until it has taken
        them."""
        self._shortages.failed(f"the routes cannot follow the leases: {error}; trying again")
        self.state, self._must_resync = FollowState.RESYNC, True

    def _disconnect(self, error: EtcdError) -> None:
        if self.state is FollowState.WATCHING:
            self._last_contact = boottime()
        if not self._must_resync:
            self.state = FollowState.CONNECTING
        self._faults.failed(f"the leases cannot be followed, known routes stay: {error}")
