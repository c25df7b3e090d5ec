from __future__ import annotations

import random
import re
import threading
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from etcd_server import EtcdServer, free_port

from flannel_udp.clock import boottime
from flannel_udp.cluster.claims import LEASE_TTL, Claims
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import Events, LeaseRemoved, OwnLease, WatchOpened, encode_key
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import EtcdError, LeaseLostError, NetworkExhaustedError, ReservationError
from flannel_udp.etcd.client import Etcd

CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
SMALL = NetworkConfig.parse('{"Network":"10.9.0.0/24","SubnetLen":28}')  # 15 subnets
TWO = NetworkConfig.parse('{"Network":"10.9.0.0/26","SubnetLen":28,"SubnetMin":"10.9.0.32"}')
US, OTHER = IPv4Address("172.30.0.1"), IPv4Address("172.30.0.2")
OUR_VALUE = '{"PublicIP":"172.30.0.1","PublicIPv6":null}'
OTHER_VALUE = '{"PublicIP":"172.30.0.2","PublicIPv6":null}'
FLANNEL_VALUE = (
    '{"PublicIP":"172.30.0.1","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"82:0b:00:00:00:01"}}'
)


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def key_of(prefix: str, subnet: str) -> str:
    return f"{prefix}/subnets/{encode_key(net(subnet))}"


def keys(server: EtcdServer, prefix: str) -> list[str]:
    return server.etcdctl("get", "--prefix", "--keys-only", f"{prefix}/subnets/").split()


def lease_of(server: EtcdServer, key: str) -> int:
    found = re.search(r'"Lease" : (\d+)', server.etcdctl("get", "-w", "fields", key))
    assert found
    return int(found[1])


def lease_count(server: EtcdServer) -> int:
    return len(server.etcdctl("lease", "list").split("\n")) - 2


@pytest.fixture
def claims(registry: Registry) -> Claims:
    return Claims(registry)


# Acquire


def test_a_new_lease_is_what_flannel_would_write(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    before = boottime()
    own, snapshot = claims.acquire(CONFIG, US, None)
    assert snapshot.leases == ()
    assert CONFIG.is_compatible(own.subnet)
    assert own.key == key_of(prefix, str(own.subnet))
    assert server.get(own.key) == OUR_VALUE
    assert lease_of(server, own.key) == own.etcd_lease
    assert own.deadline
    assert before + LEASE_TTL <= own.deadline <= boottime() + LEASE_TTL
    assert "granted with TTL(86400s)" in server.etcdctl(
        "lease", "timetolive", f"{own.etcd_lease:x}"
    )


def test_the_snapshot_ends_just_before_our_own_key(registry: Registry, claims: Claims) -> None:
    own, snapshot = claims.acquire(CONFIG, US, None)
    watch = registry.watch(snapshot.revision + 1)
    answers = iter(watch)
    opened, change = next(answers), next(answers)
    assert isinstance(opened, WatchOpened)
    assert isinstance(change, Events)
    (event,) = change.events
    assert not isinstance(event, LeaseRemoved)
    assert event.lease.subnet == own.subnet
    watch.cancel()


def test_acquiring_again_keeps_subnet_and_etcd_lease(server: EtcdServer, claims: Claims) -> None:
    own, _ = claims.acquire(CONFIG, US, None)
    count = lease_count(server)
    again, snapshot = claims.acquire(CONFIG, US, net("10.1.200.0/24"))
    assert (again.subnet, again.etcd_lease) == (own.subnet, own.etcd_lease)
    assert again.mod_revision == own.mod_revision, "an unchanged key was rewritten"
    assert [lease.subnet for lease in snapshot.leases] == [own.subnet]
    assert lease_count(server) == count


def test_the_previous_subnet_is_preferred_if_free_and_fitting(
    server: EtcdServer, etcd: Etcd, prefix: str
) -> None:
    previous = net("10.1.77.0/24")
    own, _ = Claims(Registry(etcd, prefix)).acquire(CONFIG, US, previous)
    assert own.subnet == previous
    second, _ = Claims(Registry(etcd, prefix)).acquire(CONFIG, OTHER, previous)
    assert second.subnet != previous
    third, _ = Claims(Registry(etcd, prefix)).acquire(
        CONFIG, IPv4Address("172.30.0.3"), net("10.99.1.0/24")
    )
    assert CONFIG.is_compatible(third.subnet)


def test_hosts_that_want_the_same_subnet_at_once_get_different_ones(
    server: EtcdServer, prefix: str
) -> None:
    """All draw the same random numbers, so that every round is a race for one key."""
    hosts, rounds = 6, 10
    leases = lease_count(server)
    for number in range(rounds):
        got = join_together(server, f"{prefix}/{number}", hosts)
        assert len({own.subnet for own in got}) == hosts
        for own in got:
            assert f'"PublicIP":"{own.public_ip}"' in server.get(own.key)
    left = lease_count(server) - leases
    assert left == rounds * hosts, "a lost race left an etcd lease behind"


def join_together(server: EtcdServer, prefix: str, hosts: int) -> list[OwnLease]:
    barrier = threading.Barrier(hosts)
    got: list[OwnLease] = []

    def join(number: int) -> None:
        etcd = Etcd([server.url])
        claims = Claims(Registry(etcd, prefix), rng=random.Random(1))
        assert etcd.get("/absent") is None  # connects
        barrier.wait()
        got.append(claims.acquire(SMALL, IPv4Address(f"172.30.0.{number + 1}"), None)[0])
        etcd.close()

    threads = [threading.Thread(target=join, args=(number,)) for number in range(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_an_exhausted_network_is_refused_and_leaves_no_etcd_lease(
    server: EtcdServer, claims: Claims
) -> None:
    claims.acquire(TWO, US, None)
    claims.acquire(TWO, OTHER, None)
    count = lease_count(server)
    with pytest.raises(NetworkExhaustedError):
        claims.acquire(TWO, IPv4Address("172.30.0.3"), None)
    assert lease_count(server) == count


def test_a_reservation_is_used_and_stays_without_a_lease(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    key = key_of(prefix, "10.1.5.0/24")
    server.put(key, '{"PublicIP":"172.30.0.1"}')
    own, _ = claims.acquire(CONFIG, US, net("10.1.9.0/24"))
    assert (own.subnet, own.etcd_lease, own.deadline) == (net("10.1.5.0/24"), 0, None)
    assert server.get(key) == OUR_VALUE
    assert lease_of(server, key) == 0
    assert keys(server, prefix) == [key]


def test_a_reservation_that_does_not_fit_is_refused_and_kept(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    key = key_of(prefix, "10.2.5.0/24")
    server.put(key, OUR_VALUE)
    with pytest.raises(ReservationError, match=re.escape(key)):
        claims.acquire(CONFIG, US, None)
    assert keys(server, prefix) == [key]


def test_our_lease_that_does_not_fit_is_deleted(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    misfit = key_of(prefix, "10.2.5.0/24")
    server.put(misfit, OUR_VALUE, lease=server.grant(600))
    own, snapshot = claims.acquire(CONFIG, US, None)
    assert CONFIG.is_compatible(own.subnet)
    assert keys(server, prefix) == [own.key]
    assert snapshot.leases == ()


def test_our_misfit_is_deleted_also_beside_a_lease_that_fits(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    fitting, misfit = key_of(prefix, "10.1.5.0/24"), key_of(prefix, "10.2.5.0/24")
    reservation = key_of(prefix, "10.3.5.0/24")
    for key in (fitting, misfit):
        server.put(key, OUR_VALUE, lease=server.grant(600))
    server.put(reservation, OUR_VALUE)
    own, snapshot = claims.acquire(CONFIG, US, None)
    assert own.key == fitting
    assert keys(server, prefix) == [fitting, reservation]
    assert {lease.key for lease in snapshot.leases} == {"10.1.5.0-24", "10.3.5.0-24"}


def test_a_key_of_another_backend_is_rewritten_under_its_lease(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    key = key_of(prefix, "10.1.5.0/24")
    etcd_lease = server.grant(600)
    server.put(key, FLANNEL_VALUE, lease=etcd_lease)
    own, _ = claims.acquire(CONFIG, US, None)
    assert server.get(key) == OUR_VALUE
    assert lease_of(server, key) == own.etcd_lease == int(etcd_lease, 16)
    assert own.deadline
    assert own.deadline < boottime() + 601


def test_of_several_leases_the_fitting_then_previous_then_lowest_is_ours(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    for subnet in ("10.0.5.0/24", "10.1.9.0/24", "10.1.10.0/24", "10.1.8.0/24"):
        server.put(key_of(prefix, subnet), OUR_VALUE, lease=server.grant(600))
    for previous, expected in ((None, "10.1.8.0/24"), ("10.1.10.0/24", "10.1.10.0/24")):
        own, _ = claims.acquire(CONFIG, US, net(previous) if previous else None)
        assert own.subnet == net(expected)
    assert len(keys(server, prefix)) == 3


class ForgetfulEtcd(Etcd):
    """Every etcd lease has just run out, as between its expiry and its removal."""

    def keep_alive(self, lease: int) -> int:
        return 0


def test_our_key_under_a_lease_that_ran_out_gets_a_new_one(server: EtcdServer, prefix: str) -> None:
    key = key_of(prefix, "10.1.5.0/24")
    old = server.grant(600)
    server.put(key, OUR_VALUE, lease=old)
    etcd = ForgetfulEtcd([server.url])
    own, _ = Claims(Registry(etcd, prefix)).acquire(CONFIG, US, None)
    etcd.close()
    assert own.key == key
    assert lease_of(server, key) == own.etcd_lease != int(old, 16)


def test_an_unreachable_etcd_is_an_etcd_error(prefix: str) -> None:
    etcd = Etcd([f"http://127.0.0.1:{free_port()}"])
    with pytest.raises(EtcdError, match="connection refused"):
        Claims(Registry(etcd, prefix)).acquire(CONFIG, US, None)
    etcd.close()


def test_a_subnet_whose_value_nobody_can_read_is_not_given_away(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    server.put(key_of(prefix, "10.9.0.32/28"), "no json")
    own, _ = claims.acquire(TWO, US, net("10.9.0.32/28"))
    assert own.subnet == net("10.9.0.48/28")


# Keeping


def test_a_rewrite_changes_the_revision_and_nothing_else(
    server: EtcdServer, claims: Claims
) -> None:
    own, _ = claims.acquire(CONFIG, US, None)
    written = claims.rewrite(own)
    assert written
    assert written.mod_revision > own.mod_revision
    assert server.get(own.key) == OUR_VALUE
    assert lease_of(server, own.key) == own.etcd_lease


def test_a_rewrite_never_overwrites_what_changed(server: EtcdServer, claims: Claims) -> None:
    own, _ = claims.acquire(CONFIG, US, None)
    server.put(own.key, OTHER_VALUE)
    assert claims.rewrite(own) is None
    assert server.get(own.key) == OTHER_VALUE


def test_keep_alive_of_a_revoked_lease_returns_none(server: EtcdServer, claims: Claims) -> None:
    own, _ = claims.acquire(CONFIG, US, None)
    server.etcdctl("lease", "revoke", f"{own.etcd_lease:x}")
    assert claims.keep_alive(own) is None


def test_a_key_revoked_before_its_deadline_is_not_created_again(
    server: EtcdServer, claims: Claims, prefix: str
) -> None:
    own, _ = claims.acquire(CONFIG, US, None)
    server.delete(own.key)
    with pytest.raises(LeaseLostError, match="was revoked"):
        claims.recheck(own, own.mod_revision)
    assert keys(server, prefix) == []


def test_a_lease_is_logged_as_created_only_after_it_was(
    server: EtcdServer,
    etcd: Etcd,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise each of many tries would log it where etcd can be read but not written."""
    now = boottime()
    claims = Claims(Registry(etcd, prefix), clock=lambda: now)
    own, _ = claims.acquire(CONFIG, US, None)
    now += LEASE_TTL + 1
    server.delete(own.key)

    def refuse(*_: object) -> int:
        raise EtcdError("its database is full")

    with monkeypatch.context() as patch:
        patch.setattr(etcd, "grant", refuse)
        with pytest.raises(EtcdError):
            claims.recheck(own, own.mod_revision)
    assert caplog.messages == []
    claims.recheck(own, own.mod_revision)
    (line,) = caplog.messages
    assert line.endswith("expired while etcd could not be reached: it was created again")


def test_a_failed_call_of_the_last_write_is_repeated_safely(tmp_path: Path, prefix: str) -> None:
    """etcd dies, and comes back, between our read and our write."""
    with EtcdServer(tmp_path) as server:
        etcd = Etcd([server.url])
        claims = Claims(Registry(etcd, prefix))
        own, _ = claims.acquire(CONFIG, US, None)
        server.kill()
        with pytest.raises(EtcdError):
            claims.rewrite(own)
        server.start()
        end = time.monotonic() + 10
        while True:
            try:
                again, _ = claims.acquire(CONFIG, US, None)
                break
            except EtcdError:
                assert time.monotonic() < end
        assert (again.subnet, again.etcd_lease) == (own.subnet, own.etcd_lease)
        etcd.close()
