from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.lease import (
    Events,
    Lease,
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    Snapshot,
    encode_key,
)

OWN = IPv4Address("172.30.0.1")
HOLD = 100.0


def lease(subnet: str, last: int) -> Lease:
    network = IPv4Network(subnet)
    return Lease(encode_key(network), network, IPv4Address(f"172.30.0.{last}"), etcd_lease=7)


A, B, C = (lease(f"10.1.{number}.0/24", number) for number in (2, 3, 4))
GARBAGE = 66  # the last byte of a PublicIP that gets no route


def is_sound(lease: Lease) -> bool:
    return lease.subnet.prefixlen > 16 and int(lease.public_ip) & 0xFF != GARBAGE


def nothing_held(hold: float = HOLD) -> HeldLeases:
    return HeldLeases(OWN, hold, is_sound)


def after_loss(*before: Lease, left: tuple[Lease, ...] = (), hold: float = HOLD) -> HeldLeases:
    """What is held when etcd lost all leases but ``left``, at time 0."""
    held = nothing_held(hold)
    held.take_in(Snapshot(before, 10), 0)
    held.take_in(Snapshot(left, 3, history_lost=True), 0)
    return held


def subnets(held: HeldLeases) -> set[str]:
    return {str(each.lease.subnet) for each in held}


def put(held: HeldLeases, new: Lease) -> tuple[LeaseEvent, ...]:
    change, _ = held.take_in(Events((LeaseAdded(new),), 20), 1)
    assert isinstance(change, Events)
    return change.events


def test_leases_lost_with_the_history_stay_in_the_snapshot() -> None:
    held = nothing_held()
    held.take_in(Snapshot((A, B), 10), 0)
    change, changes = held.take_in(Snapshot((B,), 3, history_lost=True), 5)
    assert isinstance(change, Snapshot)
    assert change.leases == (B, A)
    assert changes.begun == (A,)
    assert held.next_end == 5 + HOLD


def test_leases_that_hosts_gave_up_are_not_held() -> None:
    """A snapshot after a compaction misses only what was deleted."""
    held = nothing_held()
    held.take_in(Snapshot((A, B), 10), 0)
    held.take_in(Events((LeaseRemoved(B.key),), 11), 0)
    change, changes = held.take_in(Snapshot((), 12), 0)
    assert isinstance(change, Snapshot)
    assert (change.leases, changes.begun, len(held)) == ((), (), 0)


def test_a_lease_deleted_before_the_loss_is_not_held() -> None:
    held = nothing_held()
    held.take_in(Snapshot((A, B), 10), 0)
    held.take_in(Events((LeaseRemoved(B.key),), 11), 0)
    held.take_in(Snapshot((), 3, history_lost=True), 0)
    assert subnets(held) == {"10.1.2.0/24"}


def test_our_own_leases_are_not_held() -> None:
    assert len(after_loss(lease("10.1.1.0/24", 1))) == 0


def test_a_hold_of_zero_holds_nothing() -> None:
    assert len(after_loss(A, hold=0)) == 0


def test_a_hold_ends_at_its_time_and_is_reported_once() -> None:
    held = after_loss(A, B)
    assert held.expire(HOLD - 1) == ()
    assert [each.lease for each in held.expire(HOLD)] == [A, B]
    assert held.next_end is None
    assert held.expire(HOLD) == ()


def test_a_second_loss_does_not_prolong_the_first_hold() -> None:
    held = after_loss(A, B)
    put(held, B)
    held.take_in(Snapshot((), 2, history_lost=True), 50)
    assert [(each.lease, each.until) for each in held] == [(A, HOLD), (B, 50 + HOLD)]


def test_a_host_that_registers_again_is_an_ordinary_one() -> None:
    held = after_loss(A, B)
    assert put(held, A) == (LeaseAdded(A),), "its route must not go and come"
    assert subnets(held) == {"10.1.3.0/24"}
    change, changes = held.take_in(Events((LeaseRemoved(A.key),), 30), 2)
    assert isinstance(change, Events)
    assert change.events == (LeaseRemoved(A.key),)
    assert not changes.ended


@pytest.mark.parametrize("subnet", ["10.1.2.0/24", "10.1.2.128/25", "10.1.2.0/23"])
def test_another_host_that_claims_an_overlapping_subnet_ends_the_hold(subnet: str) -> None:
    held = after_loss(A, C)
    claim = lease(subnet, 9)
    events = put(held, claim)
    assert events[-1] == LeaseAdded(claim)
    assert {str(each.lease.subnet) for each in held} == {"10.1.4.0/24"}
    if claim.key != A.key:
        assert events[0] == LeaseRemoved(A.key)


def test_a_claim_in_the_same_snapshot_ends_the_hold() -> None:
    claim = lease("10.1.2.0/24", 9)
    assert subnets(after_loss(A, B, left=(claim,))) == {"10.1.3.0/24"}


def test_a_host_that_registers_another_subnet_gives_up_the_held_one() -> None:
    held = after_loss(A, B)
    assert put(held, lease("10.1.77.0/24", 2))[0] == LeaseRemoved(A.key)
    assert subnets(held) == {"10.1.3.0/24"}


def test_another_subnet_of_a_host_in_old_data_may_be_one_that_it_gave_up() -> None:
    """Also where it gave it up before we knew of it; only its new writes refute a hold."""
    former = replace(lease("10.1.77.0/24", 2), mod_revision=2)
    held = after_loss(A, B, left=(former,))
    assert subnets(held) == {"10.1.2.0/24", "10.1.3.0/24"}
    held.take_in(Snapshot((former,), 9), 0)  # read again after a compaction: no news
    assert subnets(held) == {"10.1.2.0/24", "10.1.3.0/24"}
    put(held, replace(former, mod_revision=20))
    assert subnets(held) == {"10.1.3.0/24"}


def test_another_subnet_of_a_host_found_by_a_later_read_is_news() -> None:
    held = after_loss(A, B)
    held.take_in(Snapshot((lease("10.1.77.0/24", 2),), 9), 0)
    assert subnets(held) == {"10.1.3.0/24"}


def test_old_data_is_no_news_to_the_next_process_either() -> None:
    former = lease("10.1.77.0/24", 2)
    before = after_loss(A, B, left=(former,))
    held = nothing_held()
    held.restore(Snapshot(before.in_etcd(), 9), list(before))
    held.take_in(Snapshot((former,), 12), 0)
    assert subnets(held) == {"10.1.2.0/24", "10.1.3.0/24"}


@pytest.mark.parametrize(
    "garbage",
    [lease("0.0.0.0/0", 9), lease("10.1.2.0/23", GARBAGE), lease("10.0.0.0/8", 2)],
    ids=["another's", "without a usable PublicIP", "the host's own"],
)
def test_a_lease_that_gets_no_route_ends_no_hold(garbage: Lease) -> None:
    held = after_loss(A, B)
    assert put(held, garbage) == (LeaseAdded(garbage),)
    assert subnets(held) == {"10.1.2.0/24", "10.1.3.0/24"}
    assert subnets(after_loss(A, B, left=(garbage,))) == {"10.1.2.0/24", "10.1.3.0/24"}


def test_garbage_under_the_same_key_ends_the_hold() -> None:
    held = after_loss(A, B)
    put(held, lease("10.1.2.0/24", GARBAGE))
    assert subnets(held) == {"10.1.3.0/24"}


def test_a_host_of_two_subnets_that_registers_one_keeps_the_other() -> None:
    second = lease("10.1.77.0/24", 2)
    held = after_loss(A, second)
    put(held, A)
    assert subnets(held) == {"10.1.77.0/24"}
    assert subnets(after_loss(A, second, left=(second,))) == {"10.1.2.0/24"}


def test_a_given_up_subnet_in_an_old_backup_ends_no_hold() -> None:
    former = lease("10.1.77.0/24", 2)
    held = nothing_held()
    held.take_in(Snapshot((former,), 10), 0)
    held.take_in(Events((LeaseRemoved(former.key), LeaseAdded(A)), 11), 0)
    held.take_in(Snapshot((former,), 3, history_lost=True), 0)
    assert subnets(held) == {"10.1.2.0/24"}
    put(held, former)
    assert subnets(held) == set(), "it registers there, so that it is news"


def test_a_former_subnet_of_a_host_in_old_data_ends_no_hold() -> None:
    claim = lease("10.1.3.0/24", 2)
    held = nothing_held()
    held.take_in(Snapshot((A, B), 10), 0)
    change, _ = held.take_in(Snapshot((claim,), 3, history_lost=True), 0)
    assert isinstance(change, Snapshot)
    assert set(change.leases) == {A, claim}


def test_a_value_that_nobody_can_read_ends_the_hold() -> None:
    held = after_loss(A)
    held.take_in(Events((LeaseRemoved(A.key),), 20), 1)
    assert len(held) == 0


leases = st.builds(
    lease,
    st.sampled_from(["10.1.2.0/24", "10.1.3.0/24", "10.1.2.128/25", "10.1.2.0/23", "10.1.8.0/24"]),
    st.sampled_from([1, 2, 3, 4, GARBAGE]),
)
tables = st.lists(leases, max_size=5).map(lambda them: {each.key: each for each in them})
steps = st.lists(
    st.one_of(
        st.builds(lambda t, lost: Snapshot(tuple(t.values()), 1, lost), tables, st.booleans()),
        st.builds(lambda new: Events((LeaseAdded(new),), 1), leases),
        st.builds(lambda old: Events((LeaseRemoved(old.key),), 1), leases),
        st.integers(0, 200),
    ),
    max_size=12,
)


@given(steps)
def test_the_table_is_always_etcds_leases_and_the_held_ones(
    steps: list[Snapshot | Events | int],
) -> None:
    held, now = nothing_held(), 0.0
    etcd: dict[str, Lease] = {}
    seen: dict[str, Lease] = {}
    for step in steps:
        if isinstance(step, int):
            now += step
            for ended in held.expire(now):
                del seen[ended.lease.key]
        else:
            apply(etcd, step)
            apply(seen, held.take_in(step, now)[0])
        kept = {each.lease.key: each.lease for each in held}
        assert seen == etcd | kept
        assert not etcd.keys() & kept.keys()
        for one in kept.values():
            assert one.public_ip != OWN
            for other in etcd.values():
                same_host = other.public_ip == one.public_ip
                harmless = same_host or not is_sound(other)
                assert harmless or not other.subnet.overlaps(one.subnet)
        ends = [each.until for each in held]
        assert ends == sorted(ends)
        assert held.next_end == (ends[0] if ends else None)


def apply(table: dict[str, Lease], change: Snapshot | Events) -> None:
    if isinstance(change, Snapshot):
        table.clear()
        table.update({each.key: each for each in change.leases})
        return
    for event in change.events:
        if isinstance(event, LeaseAdded):
            table[event.lease.key] = event.lease
        else:
            table.pop(event.key, None)


def test_the_cost_of_an_event_does_not_grow_with_the_holds() -> None:
    everything = [
        Lease(encode_key(subnet), subnet, IPv4Address(int(subnet.network_address) >> 8))
        for subnet in IPv4Network("10.0.0.0/8").subnets(new_prefix=22)
    ]
    few, many = after_loss(*everything[:100]), after_loss(*everything)
    assert len(many) == 16384

    def cost(held: HeldLeases) -> float:
        best = []
        for _ in range(5):
            started = time.perf_counter()
            for each in range(50):
                put(held, lease(f"192.168.{each}.0/24", 200))
            best.append(time.perf_counter() - started)
        return min(best)

    assert cost(many) < 20 * cost(few)
