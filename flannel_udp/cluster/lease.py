"""Leases: which host carries which subnet, as etcd stores it and as events report it (pure)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from flannel_udp.cluster import go_json
from flannel_udp.errors import LeaseDecodeError
from flannel_udp.etcd.values import Identity, Version

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_KEY = re.compile(
    rf"{_ADDRESS.pattern}-([12]?[0-9]|3[0-2])(?:&([0-9a-f:.]{{2,45}})-([0-9]{{1,3}}))?"
)


@dataclass(frozen=True, slots=True)
class Lease:
    """One key under ``<prefix>/subnets/``.

    ``key`` is the last element of the etcd key as found (``10.1.5.0-24``); it identifies the lease.
    ``backend_type`` is lower-cased, and empty means udp.
    ``etcd_lease`` is the id of the attached etcd lease; 0 marks a reservation, which never expires.
    """

    key: str
    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    subnet_v6: IPv6Network | None = None
    etcd_lease: int = 0
    mod_revision: int = 0

    @property
    def is_reservation(self) -> bool:
        return self.etcd_lease == 0

    @property
    def version(self) -> Version:
        return Version(self.mod_revision, self.etcd_lease)


@dataclass(frozen=True, slots=True)
class OwnLease:
    """The subnet this host holds.

    ``key`` is the full etcd key. ``etcd_lease`` is 0 for a reservation, which has no ``deadline``.
    ``deadline`` (CLOCK_BOOTTIME seconds) is never later than etcd's own. ``identity`` is that of
    the data in which it was last confirmed.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    key: str
    etcd_lease: int
    mod_revision: int
    deadline: float | None
    identity: Identity | None = None

    @property
    def version(self) -> Version:
        return Version(self.mod_revision, self.etcd_lease)


@dataclass(frozen=True, slots=True)
class LeaseAdded:
    """A lease was created or its value changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """The key of a lease was deleted, or its value stopped being a lease.

    ``version`` is that of a key with another value, ``deleted_at`` the revision of a deletion in
    etcd; neither is compared.
    """

    key: str
    version: Version = field(default=Version(), compare=False)
    deleted_at: int | None = field(default=None, compare=False)


LeaseEvent = LeaseAdded | LeaseRemoved


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every lease as of ``revision``: replaces all that was known before.

    ``history_lost``: etcd's data was replaced (wiped, restored), so a lease that is missing was not
    given up by its host.
    """

    leases: tuple[Lease, ...]
    revision: int
    history_lost: bool = False


@dataclass(frozen=True, slots=True)
class Events:
    """What changed up to and including ``revision``, oldest first."""

    events: tuple[LeaseEvent, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchOpened:
    """etcd has accepted a watch: every change follows."""


class FollowState(Enum):
    """Whether the leases are followed: see the follower."""

    CONNECTING = "connecting"
    RESYNC = "resync"
    WATCHING = "watching"


def encode_key(subnet: IPv4Network) -> str:
    """The last element of the lease's etcd key: ``10.1.5.0-24``."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def decode_key(key: str) -> tuple[IPv4Network, IPv6Network | None]:
    """The subnets a key names: ``10.1.5.0-24`` or dual stack ``10.1.5.0-24&fd00:0:0:5::-64``.

    Raises LeaseDecodeError, also for host bits and for a length no canonical key has (``-024``).
    """
    match = _KEY.fullmatch(key)
    try:
        if match is None:
            raise ValueError("it has another form")
        *octets, length, address_v6, length_v6 = match.groups()
        subnet = IPv4Network((_from_octets(octets), int(length)))
        subnet_v6 = IPv6Network((address_v6, int(length_v6))) if address_v6 else None
    except ValueError as error:
        raise LeaseDecodeError(
            f"the lease key {go_json.shown(key)} is not a subnet such as 10.1.5.0-24 ({error});"
            " it is skipped until somebody corrects or deletes it"
        ) from None
    return subnet, subnet_v6


def encode_value(public_ip: IPv4Address) -> bytes:
    """The lease's etcd value, byte for byte what flannel's udp backend writes."""
    return b'{"PublicIP":"%b","PublicIPv6":null}' % str(public_ip).encode()


def decode_lease(key: str, value: bytes, *, etcd_lease: int, mod_revision: int) -> Lease:
    """The lease stored under ``key`` (the last element of the etcd key).

    Other backends' data and unknown fields are accepted. Raises LeaseDecodeError.
    """
    subnet, subnet_v6 = decode_key(key)
    try:
        fields = go_json.parse_object(value)
        public_ip = fields.get("publicip")
        if not isinstance(public_ip, str):
            raise ValueError("it has no PublicIP")
        match = _ADDRESS.fullmatch(public_ip)
        if match is None:
            raise ValueError(f"its PublicIP is {go_json.shown(public_ip)}, not an IPv4 address")
        backend_type = fields.get("backendtype", "")
        if not isinstance(backend_type, str):
            raise ValueError(f"its BackendType is {go_json.shown(backend_type)}, not a string")
    except ValueError as error:
        raise LeaseDecodeError(
            f"the value of the lease key {key} is not a lease ({error});"
            " it is skipped until somebody corrects or deletes it"
        ) from None
    return Lease(
        key=key,
        subnet=subnet,
        public_ip=IPv4Address(_from_octets(match.groups())),
        backend_type=backend_type.lower(),
        subnet_v6=subnet_v6,
        etcd_lease=etcd_lease,
        mod_revision=mod_revision,
    )


def _from_octets(octets: Sequence[str]) -> int:
    """Several times faster than ipaddress's parser; there can be 65,536 leases at start."""
    a, b, c, d = octets
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
