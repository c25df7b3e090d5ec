"""Leases: which host carries which subnet, as etcd stores it and as events tell it (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network


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


@dataclass(frozen=True, slots=True)
class LeaseAdded:
    """A lease was created or its value changed."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """The key of a lease was deleted, or its value stopped being a lease."""

    key: str


LeaseEvent = LeaseAdded | LeaseRemoved


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every lease as of ``revision``: replaces all that was known before."""

    leases: tuple[Lease, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Events:
    """What changed up to and including ``revision``, oldest first."""

    events: tuple[LeaseEvent, ...]
    revision: int
