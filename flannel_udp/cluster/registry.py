"""What lies in etcd below the prefix: the network config, and the leases of all hosts.

The keys and values are flannel's.
"""

import contextlib
import logging
import threading
from ipaddress import IPv4Network

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import (
    Events,
    Lease,
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    Snapshot,
    WatchOpened,
    decode_key,
    decode_lease,
    encode_key,
)
from flannel_udp.errors import LeaseDecodeError, NetworkConfigError
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.values import Identity, KeyChange, KeyRange, KeyValue, Version, WatchResponse
from flannel_udp.etcd.watch_stream import Watch

log = logging.getLogger(__name__)


class Registry:
    """Reads and watches. Every method makes one attempt and raises EtcdError when etcd cannot be
    used. Its only state, the keys already warned about, is behind a lock."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        """``prefix`` as config.clean_prefix returns it."""
        self.etcd = etcd
        self.lines = etcd.lines  # shared by all who warn that etcd cannot be used
        self.config_key = f"{prefix}/config"
        self.folder = f"{prefix}/subnets/"
        self._lock = threading.Lock()
        self._skipped: dict[str, int] = {}  # unreadable key -> mod_revision, those now in etcd

    # The network config

    def network_config(self) -> NetworkConfig:
        """The cluster's config. Raises NetworkConfigError, also when missing; BackendTypeError."""
        found = self.etcd.get(self.config_key)
        if found is None:
            raise NetworkConfigError(
                f"there is no network config in etcd at {self.config_key}: write one, as in"
                f" flannel-udp config --etcd-prefix {self.config_key.removesuffix('/config')} set"
                """ '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}'"""
            )
        return NetworkConfig.parse(found.value)

    def read_config(self) -> tuple[bytes | None, int]:
        """The config as it stands in etcd, None if it does not, and etcd's revision."""
        found = self.etcd.range(self.config_key)
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

        return self.etcd.watch(self.config_key, revision, decode)

    # The leases of all hosts

    def snapshot(self) -> Snapshot:
        """Every lease, in one read."""
        return self.decoded(self.read())

    def read(self) -> KeyRange:
        """Every key, in one read, also those that are no leases."""
        return self.etcd.range(self.folder)

    def decoded(self, found: KeyRange) -> Snapshot:
        """The leases among all keys."""
        leases = tuple(lease for kv in found.kvs if (lease := self._lease_or_warn(kv)))
        names = {self._name(kv) for kv in found.kvs}
        with self._lock:
            self._skipped = {name: at for name, at in self._skipped.items() if name in names}
        return Snapshot(leases, found.revision)

    def subnets(self, found: KeyRange) -> list[IPv4Network]:
        """The subnets of all keys, also of those whose value nobody can read."""
        return [subnet for kv in found.kvs if (subnet := self.subnet(kv))]

    def subnet(self, kv: KeyValue) -> IPv4Network | None:
        """That of the key; None if it names none."""
        with contextlib.suppress(LeaseDecodeError):
            return decode_key(self._name(kv))[0]
        return None

    def lease(self, kv: KeyValue) -> Lease:
        """Raises LeaseDecodeError."""
        name = self._name(kv)
        return decode_lease(name, kv.value, etcd_lease=kv.lease, mod_revision=kv.mod_revision)

    def key(self, lease: Lease) -> str:
        """The full key of a lease."""
        return self.folder + lease.key

    def key_of(self, subnet: IPv4Network) -> str:
        """The full key of the lease that names ``subnet``."""
        return self.folder + encode_key(subnet)

    def watch(self, revision: int) -> Watch[WatchOpened | Events]:
        """Every change of a lease from ``revision`` on, with one Events for each answer of etcd;
        an empty one reports progress. A value that is no lease (any more) removes it."""

        def decode(response: WatchResponse) -> WatchOpened | Events:
            if response.created:
                return WatchOpened()
            return Events(tuple(map(self._event, response.changes)), response.revision)

        return self.etcd.watch(self.folder, revision, decode)

    # Which data etcd serves

    def identity(self) -> Identity:
        """Which data etcd serves."""
        return self.etcd.identity(self.config_key)

    def same_history(self, key: str, version: Version | None, at: int) -> bool:
        """Whether etcd remembers this version of ``key``, or any for None, as of revision ``at``.

        If not, its data is not the data we knew: wiped or restored, even if its revision has
        overtaken ours since. True as well when that part of the history is compacted.
        """
        try:
            found = self.etcd.get(key, revision=at)
        except RevisionError as error:
            return error.compacted
        if version is None:
            return found is not None
        return version == (found.version if found else Version())

    def _event(self, change: KeyChange) -> LeaseEvent:
        kv, name = change.kv, self._name(change.kv)
        if change.deleted:
            with self._lock:
                self._skipped.pop(name, None)
            return LeaseRemoved(name, deleted_at=kv.mod_revision)
        lease = self._lease_or_warn(kv)
        return LeaseAdded(lease) if lease else LeaseRemoved(name, kv.version)

    def _lease_or_warn(self, kv: KeyValue) -> Lease | None:
        """None for what is no lease, with one warning per change of the key."""
        try:
            return self.lease(kv)
        except LeaseDecodeError as error:
            name = self._name(kv)
            with self._lock:
                warned = self._skipped.get(name) == kv.mod_revision
                self._skipped[name] = kv.mod_revision
            if not warned:
                log.warning("%s", error)
            return None

    def _name(self, kv: KeyValue) -> str:
        return kv.key.removeprefix(self.folder)
