"""What one process writes the next one reads, and it tells when it must not use it."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.held_leases import Held
from flannel_udp.cluster.lease import Lease, OwnLease, Snapshot, decode_key
from flannel_udp.errors import HandoverError
from flannel_udp.etcd.values import Identity
from flannel_udp.handover import state as handover
from flannel_udp.handover.state import CHUNK, Head, Place
from flannel_udp.routing.routes import Knowledge

HERE = Place("0f0f", 4026531840)
PREFIX = "/coreos.com/network"
HEAD = Head(
    place=HERE,
    prefix=PREFIX,
    config=NetworkConfig.parse('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","MTU":1400}}'),
    own=OwnLease(
        IPv4Network("10.1.5.0/24"),
        IPv4Address("172.30.0.1"),
        f"{PREFIX}/subnets/10.1.5.0-24",
        etcd_lease=0x7FFFFFFFFFFFFFFF,
        mod_revision=12,
        deadline=86400.25,
        identity=Identity(cluster=0xFFFFFFFFFFFFFFFF, term=7),
    ),
    address=IPv4Address("172.30.0.11"),
    device="flannel0",
    vnet_header=True,
)


def encoded(head: Head, table: bytes, known: Knowledge) -> bytes:
    return b"".join(handover.encode(head, table, known))


def lease(key: str, public_ip: str, backend_type: str = "") -> Lease:
    subnet, subnet_v6 = decode_key(key)
    return Lease(key, subnet, IPv4Address(public_ip), backend_type, subnet_v6, 77, 9)


LEASES = (
    lease("10.1.6.0-24", "172.30.0.2"),
    lease("10.1.7.0-24&fd00:0:0:7::-64", "172.30.0.3", "vxlan"),
)
TABLE = b"\n\n{} any bytes \x00\xff\n"


def test_what_an_older_version_left_lacks_nothing_that_is_needed() -> None:
    own = dataclasses.replace(HEAD.own, identity=None)
    content = encoded(dataclasses.replace(HEAD, own=own), TABLE, Knowledge(Snapshot((), 1)))
    older = content.replace(b', "identity": null', b"", 1)
    assert older != content
    assert handover.decode(older).head.own == own


def test_everything_comes_back() -> None:
    held = [Held(lease("10.1.8.0-24", "172.30.0.4"), 99.5)]
    since = {IPv4Network("10.1.6.0/24"): 12.5, IPv4Network("10.1.8.0/24"): 7.0}
    known = Knowledge(Snapshot(LEASES, 40), held, since)
    read = handover.decode(encoded(HEAD, TABLE, known))
    assert read.head == HEAD
    assert read.table == TABLE
    assert read.known() == known


@pytest.mark.parametrize("count", [CHUNK, CHUNK + 1, 3000])
def test_many_leases_come_back_and_were_encoded_in_small_pieces(count: int) -> None:
    """A thread that encodes lets no other one run meanwhile."""
    many = tuple(
        lease(f"10.{number >> 8}.{number & 255}.0-24", "172.30.0.2") for number in range(count)
    )
    known = Knowledge(Snapshot(many, 40), [Held(each, 9.5) for each in many], {})
    pieces = list(handover.encode(HEAD, TABLE, known))
    assert handover.decode(b"".join(pieces)).known() == known
    assert max(piece.count(b"2887647234") for piece in pieces) == CHUNK


def test_a_reservation_stays_one() -> None:
    own = dataclasses.replace(HEAD.own, etcd_lease=0, deadline=None)
    head = dataclasses.replace(HEAD, own=own)
    assert handover.decode(encoded(head, b"", Knowledge(Snapshot((), 1)))).head == head


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n[]\n",
        b"garbage\n\n",
        encoded(HEAD, TABLE, Knowledge(Snapshot((), 1))).replace(b"mtu_cap", b"unknown"),
        encoded(HEAD, TABLE, Knowledge(Snapshot((), 1))).replace(b"10.1.0.0/16", b"10.1.0.0/99"),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes) -> None:
    with pytest.raises(HandoverError, match="its state cannot be read"):
        handover.decode(content)


@pytest.mark.parametrize("leases", [b"[]", b"x", b'[1, [["no key", 1, "", 0, 0]], []]'])
def test_leases_that_cannot_be_read_are_refused(leases: bytes) -> None:
    with pytest.raises(HandoverError, match="its leases cannot be read"):
        handover.Handover(HEAD, b"", leases).known()


def test_leases_without_their_age_can_be_read() -> None:
    """As written by a version that did not record it."""
    leases = b'[40, [["10.1.6.0-24", 2887647234, "", 77, 9]], []]'
    known = handover.Handover(HEAD, b"", leases).known()
    assert known == Knowledge(Snapshot(LEASES[:1], 40), [])


def test_the_same_place_and_flags_are_fine() -> None:
    assert handover.objection(HEAD, HERE, PREFIX, vnet_header=True) == ""


OTHER_NETWORK = NetworkConfig.parse('{"Network":"10.2.0.0/16"}')


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (dataclasses.replace(HEAD, place=Place("1e1e", HERE.network_namespace)), "earlier boot"),
        (dataclasses.replace(HEAD, place=Place(HERE.boot_id, 1)), "another network namespace"),
        (dataclasses.replace(HEAD, prefix="/other"), f"it is of /other in etcd, not of {PREFIX}"),
        (dataclasses.replace(HEAD, config=OTHER_NETWORK), "is not inside Network 10.2.0.0/16"),
        (dataclasses.replace(HEAD, vnet_header=False), "--offload"),
    ],
)
def test_another_place_or_network_is_an_objection(head: Head, sentence: str) -> None:
    assert sentence in handover.objection(head, HERE, PREFIX, vnet_header=True)
