"""Routes from leases: the same whatever the order of events, and never a route that harms."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import (
    Lease,
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    decode_key,
    encode_key,
)
from flannel_udp.routing.routes import Changes, Refusal, RouteSet

CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16","SubnetMax":"10.1.200.0"}')
OWN_SUBNET = IPv4Network("10.1.5.0/24")
OWN_IP = IPv4Address("172.30.0.5")
PEER = "172.30.0.9"
TUNNELLED = IPv4Address("192.0.2.1")
LOOPBACK = "its PublicIP is a loopback address"


def lease(key: str, public_ip: str = PEER, backend_type: str = "") -> Lease:
    subnet, subnet_v6 = decode_key(key)
    return Lease(key, subnet, IPv4Address(public_ip), backend_type, subnet_v6)


def flaw_of_way(address: IPv4Address) -> str:
    return "its PublicIP is behind the tunnel" if address == TUNNELLED else ""


def route_set() -> RouteSet:
    return RouteSet(CONFIG, OWN_SUBNET, OWN_IP, flaw_of_way)


def added(*leases: Lease) -> list[LeaseEvent]:
    return [LeaseAdded(each) for each in leases]


def test_a_lease_becomes_a_route_and_goes_with_it() -> None:
    routes = route_set()
    subnet, peer = IPv4Network("10.1.6.0/24"), IPv4Address(PEER)
    assert routes.apply(added(lease("10.1.6.0-24"))) == Changes({subnet: peer})
    assert dict(routes.routes) == {subnet: peer}
    assert routes.apply([LeaseRemoved("10.1.6.0-24")]) == Changes(removed=(subnet,))
    assert dict(routes.routes) == {}


def test_an_underlay_of_reserved_addresses_is_one_like_any_other() -> None:
    routes = RouteSet(CONFIG, OWN_SUBNET, IPv4Address("240.0.0.5"))
    peer = IPv4Address("240.0.0.9")
    changes = routes.apply(added(lease("10.1.6.0-24", str(peer))))
    assert changes == Changes({IPv4Network("10.1.6.0/24"): peer})
    for nowhere in ("255.255.255.255", "0.0.0.0"):
        assert routes.apply(added(lease("10.1.7.0-24", nowhere))).refused


def test_a_changed_public_ip_is_a_change_by_event_and_by_resync() -> None:
    routes = route_set()
    subnet = IPv4Network("10.1.6.0/24")
    routes.apply(added(lease("10.1.6.0-24")))
    moved = routes.apply(added(lease("10.1.6.0-24", "172.30.0.10")))
    assert moved == Changes({subnet: IPv4Address("172.30.0.10")})
    moved = routes.replace([lease("10.1.6.0-24", "172.30.0.11")])
    assert moved == Changes({subnet: IPv4Address("172.30.0.11")})


def test_a_rewritten_lease_changes_nothing() -> None:
    routes = route_set()
    routes.apply(added(lease("10.1.6.0-24")))
    assert routes.apply(added(lease("10.1.6.0-24"))) == Changes()
    assert routes.replace([lease("10.1.6.0-24")]) == Changes()


def test_events_of_one_batch_give_their_net_effect() -> None:
    routes = route_set()
    events: list[LeaseEvent] = [
        *added(lease("10.1.6.0-24"), lease("10.1.7.0-24")),
        LeaseRemoved("10.1.6.0-24"),
        *added(lease("10.1.7.0-24", "172.30.0.10")),
    ]
    assert routes.apply(events) == Changes({IPv4Network("10.1.7.0/24"): IPv4Address("172.30.0.10")})


def test_our_own_lease_is_ignored_silently() -> None:
    assert route_set().replace([lease("10.1.5.0-24", str(OWN_IP))]) == Changes()


def test_an_unknown_key_may_be_removed() -> None:
    assert route_set().apply([LeaseRemoved("10.1.6.0-24")]) == Changes()


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (lease("10.1.6.0-24", backend_type="vxlan"), "vxlan"),
        (lease("10.2.6.0-24"), "not inside Network"),
        (lease("0.0.0.0-0"), "not inside Network"),
        (lease("10.0.0.0-15"), "not inside Network"),
        (lease("10.1.5.0-24"), "this host's own"),
        (lease("10.1.5.128-25"), "this host's own"),
        (lease("10.1.6.0-24", str(OWN_IP)), "PublicIP is this host's own"),
        (lease("10.1.6.0-24", "10.1.9.1"), "inside Network"),
        (lease("10.1.6.0-24", "127.0.0.1"), "loopback"),
        (lease("10.1.6.0-24", "224.0.0.1"), "multicast"),
        (lease("10.1.6.0-24", "255.255.255.255"), "not the address of a host"),
        (lease("10.1.6.0-24", "0.0.0.0"), "not the address of a host"),
        (lease("10.1.6.0-24", "0.1.2.3"), "not the address of a host"),
        (lease("10.1.6.0-24", str(TUNNELLED)), "behind the tunnel"),
        (lease("10.1.6.0-24", "240.0.0.1"), "not the address of a host"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lease_that_would_harm_gets_no_route_and_the_others_stay(
    refused: Lease, reason: str
) -> None:
    routes = route_set()
    changes = routes.replace([lease("10.1.8.0-24"), refused])
    assert dict(routes.routes) == {IPv4Network("10.1.8.0/24"): IPv4Address(PEER)}
    assert [refusal.lease for refusal in changes.refused] == [refused]
    assert reason in changes.refused[0].reason


def test_udp_may_be_named_and_a_larger_subnet_is_harmless() -> None:
    routes = route_set()
    changes = routes.replace([lease("10.1.0.0-16"), lease("10.1.6.0-24", backend_type="udp")])
    assert changes.refused == ()
    assert set(routes.routes) == {IPv4Network("10.1.0.0/16"), IPv4Network("10.1.6.0/24")}


def test_a_refusal_is_reported_once_for_each_value() -> None:
    routes = route_set()
    bad, worse = lease("10.1.6.0-24", "127.0.0.1"), lease("10.1.6.0-24", "127.0.0.2")
    assert len(routes.apply(added(bad)).refused) == 1
    assert routes.apply(added(bad)) == Changes()
    assert routes.replace([bad]) == Changes()
    assert len(routes.replace([worse]).refused) == 1
    routes.apply(added(lease("10.1.6.0-24")))
    assert routes.replace([worse]) == Changes(
        removed=(IPv4Network("10.1.6.0/24"),), refused=(Refusal(worse, LOOPBACK),)
    )
    routes.apply([LeaseRemoved("10.1.6.0-24")])
    assert len(routes.apply(added(worse)).refused) == 1


def test_a_stranger_inside_anothers_subnet_gets_no_route_until_that_goes() -> None:
    routes = route_set()
    stranger = lease("10.1.6.128-25", "172.30.0.66")
    assert IPv4Network("10.1.6.128/25") in routes.apply(added(stranger)).added
    changes = routes.apply(added(lease("10.1.6.0-24")))
    assert changes.removed == (IPv4Network("10.1.6.128/25"),)
    assert [refusal.lease for refusal in changes.refused] == [stranger]
    assert routes.replace([lease("10.1.6.0-24"), stranger]) == Changes()
    changes = routes.apply([LeaseRemoved("10.1.6.0-24")])
    assert changes == Changes(
        {IPv4Network("10.1.6.128/25"): IPv4Address("172.30.0.66")}, (IPv4Network("10.1.6.0/24"),)
    )


def test_a_piece_of_ones_own_subnet_or_of_an_unleasable_one_is_no_theft() -> None:
    routes = route_set()
    changes = routes.replace(
        [
            lease("10.1.6.0-24"),
            lease("10.1.6.64-26"),
            lease("10.1.201.0-24", "172.30.0.10"),  # behind SubnetMax
            lease("10.1.201.64-26"),
        ]
    )
    assert changes.refused == ()
    assert len(routes.routes) == 4


def test_two_keys_of_one_subnet_agree_on_the_first_in_order() -> None:
    routes = route_set()
    subnet = IPv4Network("10.1.6.0/24")
    dual = lease("10.1.6.0-24&fd00:0:0:6::-64", "172.30.0.10")
    routes.apply(added(dual))
    changes = routes.apply(added(lease("10.1.6.0-24")))
    assert changes.added == {subnet: IPv4Address(PEER)}
    assert [refusal.lease for refusal in changes.refused] == [dual]
    assert routes.apply([LeaseRemoved("10.1.6.0-24")]).added == {subnet: dual.public_ip}


def test_two_keys_of_one_host_are_no_conflict() -> None:
    routes = route_set()
    changes = routes.replace([lease("10.1.6.0-24"), lease("10.1.6.0-24&fd00:0:0:6::-64")])
    assert changes.refused == ()
    assert routes.apply([LeaseRemoved("10.1.6.0-24")]) == Changes()


SMALL = NetworkConfig.parse('{"Network":"10.1.0.0/25","SubnetLen":27}')
SUBNETS = st.builds(
    lambda offset, length: IPv4Network((0x0A010000 + offset, length), strict=False),
    st.integers(-16, 160),
    st.sampled_from([24, 25, 26, 27, 27, 27, 28, 29, 32]),
)
LEASES = st.builds(
    lambda subnet, v6, ip, kind: Lease(encode_key(subnet) + v6, subnet, IPv4Address(ip), kind),
    SUBNETS,
    st.sampled_from(["", "", "&fd00::-64"]),
    st.sampled_from(
        [f"172.30.0.{i}" for i in range(1, 6)] + ["127.0.0.1", "10.1.0.1", "192.0.2.1"]
    ),
    st.sampled_from(["", "", "udp", "vxlan"]),
)
BATCHES = st.lists(st.lists(st.tuples(LEASES, st.booleans()), max_size=8), max_size=8)


def small_route_set() -> RouteSet:
    own_subnet = IPv4Network("10.1.0.64/27")
    own_ip = IPv4Address("172.30.0.1")
    return RouteSet(SMALL, own_subnet, own_ip, flaw_of_way)


def plain_routes(leases: list[Lease]) -> dict[IPv4Network, IPv4Address]:
    """The rules again, one by one over the whole set."""
    good = [
        each
        for each in sorted(leases, key=lambda each: each.key)
        if each.backend_type in ("", "udp")
        and each.subnet.subnet_of(SMALL.network)
        and not each.subnet.subnet_of(IPv4Network("10.1.0.64/27"))
        and str(each.public_ip).startswith("172.30.0.")
        and str(each.public_ip) != "172.30.0.1"
    ]
    routes: dict[IPv4Network, IPv4Address] = {}
    for each in sorted(good, key=lambda each: each.subnet.prefixlen):
        robbed = any(
            SMALL.is_compatible(subnet) and each.subnet.subnet_of(subnet) and each.subnet != subnet
            for subnet, next_hop in routes.items()
            if next_hop != each.public_ip
        )
        if not robbed:
            routes.setdefault(each.subnet, each.public_ip)
    return routes


@given(BATCHES)
def test_events_in_any_order_end_where_a_resync_of_the_final_set_ends(
    batches: list[list[tuple[Lease, bool]]],
) -> None:
    routes = small_route_set()
    leases: dict[str, Lease] = {}
    followed: dict[IPv4Network, IPv4Address] = {}
    for batch in batches:
        events: list[LeaseEvent] = []
        for each, present in batch:
            if present:
                leases[each.key] = each
                events.append(LeaseAdded(each))
            else:
                leases.pop(each.key, None)
                events.append(LeaseRemoved(each.key))
        changes = routes.apply(events)
        assert not changes.added.keys() & set(changes.removed)
        for subnet, next_hop in changes.added.items():
            assert followed.get(subnet) != next_hop
            followed[subnet] = next_hop
        for subnet in changes.removed:
            del followed[subnet]
        assert followed == routes.routes == plain_routes(list(leases.values()))
    fresh = small_route_set()
    fresh.replace(leases.values())
    assert fresh.routes == routes.routes
    assert routes.replace(leases.values()) == Changes()


@given(st.lists(LEASES), st.lists(LEASES))
def test_a_resync_forgets_all_that_was_before(before: list[Lease], after: list[Lease]) -> None:
    routes = small_route_set()
    routes.replace(before)
    unique = {each.key: each for each in after}
    routes.replace(unique.values())
    assert routes.routes == plain_routes(list(unique.values()))


def test_an_event_costs_the_same_beside_65536_leases() -> None:
    config = NetworkConfig.parse('{"Network":"10.0.0.0/8"}')
    routes = RouteSet(config, IPv4Network("10.0.1.0/24"), OWN_IP)
    routes.replace(
        Lease(
            f"10.{i >> 8}.{i & 255}.0-24", IPv4Network((i << 8 | 10 << 24, 24)), IPv4Address(PEER)
        )
        for i in range(2, 65536)
    )
    start = time.process_time()
    for i in range(1000):
        routes.apply(added(lease("10.9.9.0-24", f"172.30.{i >> 8}.{i & 255}")))
    assert time.process_time() - start < 0.5
