"""What is remembered of etcd's data, to recognise other data in its place (wiped, restored).

Revisions alone do not show it: those of the other data may have overtaken ours.
"""

import logging
from collections.abc import Iterator

from flannel_udp.cluster.lease import Events, LeaseAdded, OwnLease, Snapshot
from flannel_udp.cluster.registry import Registry
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.values import Identity, Version

log = logging.getLogger(__name__)


class History:
    """The identity of etcd's data, the revision up to which it is known, and the versions of our
    own key and of the key that changed last. One thread writes; others may read ``revision``."""

    def __init__(self, own: OwnLease, start: Snapshot) -> None:
        self._folder, _, self._own_name = own.key.rpartition("/")
        self.restart(own.identity, start)
        if own.mod_revision > start.revision:
            self._own_version = own.version

    def restart(self, identity: Identity | None, snapshot: Snapshot) -> None:
        """Forget what was known: the snapshot is all there is."""
        self._identity, self.revision = identity, snapshot.revision
        leases = snapshot.leases
        own = next((each for each in leases if each.key == self._own_name), None)
        last = max(leases, key=lambda lease: lease.mod_revision, default=None)
        self._own_version = own.version if own else Version()
        self._last_changed = (last.key, last.version) if last else (self._own_name, Version())
        self._deleted_at: int | None = None  # the revision of the last change if it is a deletion

    def observe(self, change: Events) -> None:
        """Remember what a watch reported."""
        for event in change.events:
            if isinstance(event, LeaseAdded):
                name, version, self._deleted_at = event.lease.key, event.lease.version, None
            else:
                name, version, self._deleted_at = event.key, event.version, event.deleted_at
            self._last_changed = name, version
            if name == self._own_name:
                self._own_version = version
        self.revision = max(self.revision, change.revision)

    def confirm(self, registry: Registry) -> None:
        """Raise RevisionError if etcd's data was replaced, even if its revision does not show it.

        It is the data we knew if it has our own key and the last change as we saw them. Done
        before a watch, these reads also find the member to use and renew the login.
        """
        before, self._identity = self._identity, registry.identity()
        if not self._identity.continues(before):
            raise RevisionError("etcd is another cluster than before", compacted=False)
        for name, version, known_at in self._remembered():
            if not registry.same_history(f"{self._folder}/{name}", version, known_at):
                raise RevisionError(
                    f"etcd does not know what it held at revision {known_at}: its data was lost or"
                    " restored",
                    compacted=False,
                )
        log.debug(
            "etcd has the history that was known: cluster %x, term %d, revision %d",
            self._identity.cluster,
            self._identity.term,
            self.revision,
        )

    def _remembered(self) -> Iterator[tuple[str, Version | None, int]]:
        """Each key that etcd must know, its version (None: any) and the revision it had that at."""
        own_at = max(self.revision, self._own_version.mod_revision)
        yield self._own_name, self._own_version, own_at
        name, version = self._last_changed
        yield name, version, self.revision
        if self._deleted_at is not None:  # other data that never had the key also lacks it
            yield name, None, self._deleted_at - 1
