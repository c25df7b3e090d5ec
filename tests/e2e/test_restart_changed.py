"""The state of the last process is used only if it still fits; otherwise the start is fresh."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Interface

import pytest
from etcd_server import wait_until
from instruments import devices, leases, log_lines, routes, unreachable
from restarts import STORED, device_index, stored, takeovers, terminate

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import DEFAULT_CONFIG, Host, Lab


def cut(descriptor: int) -> None:
    os.ftruncate(descriptor, 20)


def overwrite(descriptor: int, offset: int, text: bytes) -> None:
    os.pwrite(descriptor, text, offset)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut, "its state is cut short"),
        (partial(overwrite, offset=16, text=b"\x09"), "its state has format 9"),
        (partial(overwrite, offset=60, text=b"garbage"), "its state is damaged"),
    ],
    ids=["cut short", "of another version", "garbage"],
)
def test_unreadable_state_means_a_fresh_start(
    running: Lab, spoil: Callable[[int], None], sentence: str
) -> None:
    host = running.hosts[0]
    before = host.subnet
    host.kill_daemon()
    spoil(host.manager.stored["state"])
    assert_fresh_start(running, host, sentence)
    assert host.subnet == before


def assert_fresh_start(lab: Lab, host: Host, sentence: str, *flags: str) -> None:
    old = device_index(host)
    host.start_daemon(flags)
    assert len(log_lines(host, "starting afresh", sentence)) == 1
    assert takeovers(host) == 0
    assert devices(host) == ["flannel0"]
    assert device_index(host) != old
    assert stored(host) == STORED
    assert unreachable(lab) == []


def test_another_offload_flag_means_a_fresh_start(running: Lab) -> None:
    host = running.hosts[0]
    terminate(host)
    assert_fresh_start(running, host, "--offload", "--offload", "none")


def test_changed_network_config_means_a_fresh_start(running: Lab) -> None:
    """Noticed while packets already flow, because the daemon does not wait for etcd."""
    host = running.hosts[0]
    config = running.etcdctl("get", "--print-value-only", f"{running.prefix}/config").strip()
    terminate(host)
    changed = config.replace('"Type": "udp"', '"Type": "udp", "MTU": 1400')
    running.etcdctl("put", f"{running.prefix}/config", changed)
    try:
        host.start_daemon()
        wait_until(lambda: log_lines(host, "starting afresh: the network config"), "the sentence")
        host.wait_until_ready()
        assert host.env
        assert host.env.mtu == 1400
        assert stored(host) == STORED
        assert unreachable(running) == []
    finally:
        running.etcdctl("put", f"{running.prefix}/config", config)


def test_device_deleted_during_the_restart_means_a_fresh_start(running: Lab) -> None:
    host = running.hosts[0]
    terminate(host)
    host.netns.delete_link("flannel0")
    host.start_daemon()
    assert len(log_lines(host, "starting afresh", "flannel0 is gone")) == 1
    assert unreachable(running) == []


@contextmanager
def moved(host: Host, address: str) -> Iterator[None]:
    """The host has another address on eth0 during the block."""
    old, new = f"{host.address}/24", f"{address}/24"
    move(host, old, new)
    yield
    move(host, new, old)


def move(host: Host, old: str, new: str) -> None:
    host.run(["ip", "address", "del", old, "dev", "eth0"], check=True)
    host.netns.add_address("eth0", IPv4Interface(new))
    host.address = IPv4Interface(new).ip


def test_another_address_means_a_fresh_start(running: Lab) -> None:
    """The lease of the old PublicIP stays, because the daemon cannot know that it is unused."""
    host, other = running.hosts
    before, old = host.subnet, device_index(host)
    terminate(host)
    with moved(host, "172.30.0.61"):
        host.start_daemon()
        assert log_lines(host, "starting afresh", "would send from 172.30.0.61 as 172.30.0.61")
        assert device_index(host) != old
        assert host.subnet != before
        assert routes(other)[str(host.subnet)] == "172.30.0.61"
        assert unreachable(running) == []
        terminate(host)
        running.etcdctl("del", f"{running.prefix}/subnets/{str(host.subnet).replace('/', '-')}")
    host.start_daemon()
    assert host.subnet == before


def test_another_public_ip_means_a_fresh_start(running: Lab) -> None:
    host = running.hosts[0]
    old = device_index(host)
    terminate(host)
    host.start_daemon(["--public-ip=172.30.0.62"])
    assert log_lines(host, "starting afresh", "would send from 172.30.0.1 as 172.30.0.62")
    assert device_index(host) != old
    assert '"172.30.0.62"' in leases(running)[str(host.subnet).replace("/", "-")]
    terminate(host)
    host.start_daemon()
    assert len(log_lines(host, "starting afresh")) == 2


def test_another_prefix_means_a_fresh_start(running: Lab) -> None:
    host = running.hosts[0]
    old = device_index(host)
    terminate(host)
    running.etcdctl("put", "/elsewhere/config", json.dumps(DEFAULT_CONFIG))
    host.start_daemon(["--etcd-prefix=/elsewhere"])
    assert log_lines(host, f"it is of {running.prefix} in etcd, not of /elsewhere", "afresh")
    assert device_index(host) != old
    assert routes(host) == {}
    keys = running.etcdctl("get", "--prefix", "--keys-only", "/elsewhere/subnets/").split()
    assert keys == [f"/elsewhere/subnets/{str(host.subnet).replace('/', '-')}"]
    terminate(host)
    host.start_daemon()
    assert unreachable(running) == []


def test_another_network_namespace_means_a_fresh_start(running: Lab) -> None:
    """The device is in the old namespace."""
    host = running.hosts[0]
    terminate(host)
    here, there = host.netns, Namespace(f"{host.netns.name}-b")
    there.create()
    running.switch.add_veth("there", there, "eth0")
    running.switch.set_link("there", master="underlay")
    there.add_address("eth0", IPv4Interface("172.30.0.63/24"))
    host.netns = there
    try:
        host.start_daemon(wait=False)
        wait_until(lambda: len(log_lines(host, "forwarding: ")) == 2, "the fresh start")
        assert log_lines(host, "it is of another network namespace", "starting afresh")
        terminate(host)
        host.manager.drop_descriptors()
    finally:
        host.netns = here
        there.delete()
    assert devices(host) == []
    host.start_daemon()
    assert unreachable(running) == []
