"""What one process leaves to the next: the state that belongs to the descriptors (pure).

It has three parts. The head decides whether the descriptors may be used. The table lets packets
flow at once. The leases let the new process follow etcd from where the old one stopped.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.held_leases import Held
from flannel_udp.cluster.lease import Lease, OwnLease, Snapshot, decode_key
from flannel_udp.errors import HandoverError, LeaseDecodeError
from flannel_udp.etcd.values import Identity
from flannel_udp.routing.routes import Knowledge

# The names under which the descriptors are stored and inherited.
TUN, UDP, STATE = "tun", "udp", "state"
NAMES = (TUN, UDP, STATE)

CHUNK = 256  # leases or routes that are encoded without a break

_ROW = 5  # fields of a lease in a row; the time since when its subnet has had a route follows


@dataclass(frozen=True, slots=True)
class Place:
    """One boot and one network namespace: only there do descriptors and CLOCK_BOOTTIME keep their
    meaning."""

    boot_id: str
    network_namespace: int


@dataclass(frozen=True, slots=True)
class Head:
    """What the descriptors are and whose packets they carry.

    ``prefix`` is the one in etcd. The UDP socket is bound to ``address`` and the config's port.
    """

    place: Place
    prefix: str
    config: NetworkConfig
    own: OwnLease
    address: IPv4Address
    device: str
    vnet_header: bool


@dataclass(frozen=True, slots=True)
class Handover:
    """``table`` is the pump's, packed; ``knowledge`` is still encoded, see ``known``."""

    head: Head
    table: bytes
    knowledge: bytes

    def known(self) -> Knowledge:
        """Decode what the last process knew. Raises HandoverError."""
        try:
            revision, rows, held_rows = json.loads(self.knowledge)
            aged = [
                (_lease(*row[:_ROW]), row[_ROW:]) for row in [*rows, *(r for _, r in held_rows)]
            ]
            leases = [lease for lease, _ in aged]
            untils = [float(until) for until, _ in held_rows]
            return Knowledge(
                Snapshot(tuple(leases[: len(rows)]), int(revision)),
                [Held(*pair) for pair in zip(leases[len(rows) :], untils, strict=True)],
                {lease.subnet: float(at[0]) for lease, at in aged if at and at[0] is not None},
            )
        except (ValueError, TypeError, LeaseDecodeError) as error:
            raise HandoverError(f"its leases cannot be read: {error}") from None


def encode(head: Head, table: bytes, known: Knowledge) -> Iterator[bytes]:
    """A line for the head, a line for the leases, then the table. In chunks, so that none of them
    holds the GIL for long."""
    since = known.since
    rows = ((*_row(lease), since.get(lease.subnet)) for lease in known.snapshot.leases)
    held = ((h.until, (*_row(h.lease), since.get(h.lease.subnet))) for h in known.held)
    yield json.dumps(dataclasses.asdict(head), default=str).encode()
    yield f"\n[{known.snapshot.revision}, ".encode()
    yield from _array(rows)
    yield b", "
    yield from _array(held)
    yield b"]\n"
    yield table


def decode(content: bytes) -> Handover:
    """The reverse of ``encode``. Raises HandoverError."""
    try:
        head, knowledge, table = content.split(b"\n", 2)
        return Handover(_head(json.loads(head)), table, knowledge)
    except (ValueError, TypeError, KeyError) as error:
        raise HandoverError(f"its state cannot be read: {error!r}") from None


def objection(head: Head, place: Place, prefix: str, *, vnet_header: bool) -> str:
    """Why a process at ``place`` with these flags must not use the descriptors; "" if it may.

    The descriptors themselves are compared with the head where they are opened.
    """
    if head.place.boot_id != place.boot_id:
        return "it is of an earlier boot"
    if head.place.network_namespace != place.network_namespace:
        return "it is of another network namespace"
    if head.prefix != prefix:
        return f"it is of {head.prefix or '/'} in etcd, not of {prefix or '/'}"
    if not head.own.subnet.subnet_of(head.config.network):
        return f"its subnet {head.own.subnet} is not inside Network {head.config.network}"
    if head.vnet_header != vnet_header:
        return "another --offload needs a TUN device with other flags"
    return ""


def _array(rows: Iterator[Any]) -> Iterator[bytes]:
    before = b"["
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield before + json.dumps(chunk)[1:-1].encode()
        before = b", "
    yield b"[]" if before == b"[" else b"]"


def _row(lease: Lease) -> tuple[str, int, str, int, int]:
    named = lease.key, int(lease.public_ip), lease.backend_type
    return *named, lease.etcd_lease, lease.mod_revision


def _lease(
    key: str, public_ip: int, backend_type: str, etcd_lease: int, mod_revision: int
) -> Lease:
    subnet, subnet_v6 = decode_key(key)
    address = IPv4Address(public_ip)
    return Lease(key, subnet, address, backend_type, subnet_v6, etcd_lease, mod_revision)


def _head(fields: dict[str, Any]) -> Head:
    config, own = fields["config"], fields["own"]
    identity = own.get("identity")  # older versions do not write it
    return Head(
        place=Place(**fields["place"]),
        prefix=fields["prefix"],
        config=NetworkConfig(
            **config
            | {
                "network": IPv4Network(config["network"]),
                "subnet_min": IPv4Address(config["subnet_min"]),
                "subnet_max": IPv4Address(config["subnet_max"]),
            }
        ),
        own=OwnLease(
            **own
            | {
                "subnet": IPv4Network(own["subnet"]),
                "public_ip": IPv4Address(own["public_ip"]),
                "identity": Identity(**identity) if identity else None,
            }
        ),
        address=IPv4Address(fields["address"]),
        device=fields["device"],
        vnet_header=fields["vnet_header"],
    )
