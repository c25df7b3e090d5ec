"""What an operator reads and writes in etcd: the network config and the leases of all hosts.

Every change is conditional: a concurrent write by somebody else is never overwritten.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import Lease, encode_value
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import ClusterError, LeaseDecodeError
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.values import KeyValue

_OVERTAKEN = "somebody changed {} at the same moment; look at it and try again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One key below ``<prefix>/subnets/``; ``fault`` says why it is no lease."""

    kv: KeyValue
    lease: Lease | None
    fault: str = ""


class Cluster:
    """Every method makes one attempt and raises EtcdError when etcd cannot be used."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        """``prefix`` as config.clean_prefix returns it."""
        self._etcd, self._registry = etcd, Registry(etcd, prefix)
        self.config_key = self._registry.config_key

    def config_text(self) -> bytes | None:
        """As it is in etcd; None if there is none."""
        found = self._etcd.get(self.config_key)
        return found.value if found else None

    def create_config(self, text: str) -> bool:
        """Write the config if there is none; returns whether there was none. Raises
        NetworkConfigError."""
        NetworkConfig.parse(text)
        return self._etcd.put_if_unchanged(
            self.config_key, text.encode(), lease=0, mod_revision=0
        ).succeeded

    def set_config(self, text: str, *, force: bool = False) -> None:
        """Create or replace the config.

        Raises NetworkConfigError or BackendTypeError for a bad one, and ClusterError, unless
        ``force``, if leases do not fit it: their hosts would have to give them up.
        """
        config = NetworkConfig.parse(text)
        found = self._etcd.get(self.config_key)
        misfits = [
            str(entry.lease.subnet)
            for entry in self.entries()
            if entry.lease and not config.is_compatible(entry.lease.subnet)
        ]
        if misfits and not force:
            shown = ", ".join(misfits[:3]) + (" and others" if len(misfits) > 3 else "")
            raise ClusterError(
                f"{len(misfits)} leases do not fit this config ({shown}): each of these hosts gets"
                " another subnet at its next start, and its containers new addresses; if that is"
                " what you want, add --force"
            )
        self._put(self.config_key, text.encode(), found)

    def entries(self) -> list[Entry]:
        """Every key, sorted by subnet; those that are no lease come last."""
        entries = [self._entry(kv) for kv in self._registry.read().kvs]
        return sorted(
            entries, key=lambda each: (each.lease is None, each.lease and each.lease.subnet)
        )

    def reserve(self, subnet: IPv4Network, public_ip: IPv4Address) -> None:
        """Reserve the subnet for this host; a lease of its own becomes the reservation.

        Raises ClusterError if it does not fit the config or is not free, or if the host has
        another.
        """
        text = self.config_text()
        if text is None:
            raise ClusterError(f"there is no network config at {self.config_key}: set one first")
        config = NetworkConfig.parse(text)
        if not config.is_compatible(subnet):
            raise ClusterError(
                f"{subnet} does not fit the network config: a host gets a /{config.subnet_len} from"
                f" {config.subnet_min} to {config.subnet_max}"
            )
        entries = self.entries()
        for entry in entries:
            lease = entry.lease
            if lease and lease.public_ip == public_ip and lease.subnet != subnet:
                raise ClusterError(f"{public_ip} has {lease.subnet} already: revoke that first")
            other = self._registry.subnet(entry.kv)
            is_same = lease and (lease.public_ip, lease.subnet) == (public_ip, subnet)
            if other and other.overlaps(subnet) and not is_same:
                holder = lease.public_ip if lease else "nobody who can be read"
                raise ClusterError(f"{subnet} is not free: {entry.kv.key} belongs to {holder}")
        key = self._registry.key_of(subnet)
        current = next((entry.kv for entry in entries if entry.kv.key == key), None)
        self._put(key, encode_value(public_ip), current)

    def revoke(self, subnet: IPv4Network) -> Entry:
        """Delete the key of the subnet and return what it was. Raises ClusterError."""
        key = self._registry.key_of(subnet)
        entry = next((each for each in self.entries() if each.kv.key == key), None)
        if entry is None:
            raise ClusterError(
                f"nobody has {subnet}: there is no key {key};"
                " flannel-udp lease list shows those that exist"
            )
        if not self._etcd.delete_if_unchanged(key, mod_revision=entry.kv.mod_revision):
            raise ClusterError(_OVERTAKEN.format(key))
        return entry

    def _put(self, key: str, value: bytes, current: KeyValue | None) -> None:
        """Without an etcd lease. Raises ClusterError if the key is not as ``current`` any more."""
        at = current.mod_revision if current else 0
        if not self._etcd.put_if_unchanged(key, value, lease=0, mod_revision=at).succeeded:
            raise ClusterError(_OVERTAKEN.format(key))

    def _entry(self, kv: KeyValue) -> Entry:
        try:
            return Entry(kv, self._registry.lease(kv))
        except LeaseDecodeError as error:
            return Entry(kv, None, str(error))
