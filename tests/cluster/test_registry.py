from __future__ import annotations

import logging
import re
import time
from ipaddress import IPv4Address, IPv4Network

import pytest
from etcd_server import EtcdServer

from flannel_udp.cli import commands
from flannel_udp.cluster.claims import Claims
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import Events, LeaseRemoved, encode_key
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import BackendTypeError, NetworkConfigError
from flannel_udp.etcd.values import Version

CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
US = IPv4Address("172.30.0.1")
OTHER_VALUE = '{"PublicIP":"172.30.0.2","PublicIPv6":null}'


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def key_of(prefix: str, subnet: str) -> str:
    return f"{prefix}/subnets/{encode_key(net(subnet))}"


# Config


def test_the_error_about_a_missing_config_has_a_command_that_works(
    server: EtcdServer, registry: Registry, prefix: str
) -> None:
    with pytest.raises(NetworkConfigError) as caught:
        registry.network_config()
    advice = re.search(r"flannel-udp (config .*) '(.*)'$", str(caught.value))
    assert advice
    commands.run([*advice[1].split(), advice[2]], {"FLANNELD_ETCD_ENDPOINTS": server.url})
    assert registry.network_config().network == net("10.1.0.0/16")


def test_a_bad_config_raises_the_error_of_the_parser(
    server: EtcdServer, registry: Registry, prefix: str
) -> None:
    server.put(f"{prefix}/config", "not json")
    with pytest.raises(NetworkConfigError):
        registry.network_config()
    server.put(f"{prefix}/config", '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}')
    with pytest.raises(BackendTypeError):
        registry.network_config()


# Reading


def test_what_is_no_lease_is_skipped_with_one_warning_a_change(
    server: EtcdServer, registry: Registry, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(key_of(prefix, "10.1.5.0/24"), OTHER_VALUE)
    bad = f"{prefix}/subnets/no-subnet"
    server.put(bad, OTHER_VALUE)
    server.put(key_of(prefix, "10.1.6.0/24"), "no json")
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert [lease.subnet for lease in registry.snapshot().leases] == [net("10.1.5.0/24")]
    assert len(caplog.messages) == 2
    server.put(bad, OTHER_VALUE)
    registry.snapshot()
    assert len(caplog.messages) == 3
    server.delete(bad)
    registry.snapshot()
    assert set(registry._skipped) == {"10.1.6.0-24"}, "deleted keys stay in memory"


def test_a_value_that_is_no_lease_any_more_is_a_removal(
    server: EtcdServer, registry: Registry, prefix: str
) -> None:
    key = key_of(prefix, "10.1.5.0/24")
    server.put(key, OTHER_VALUE)
    watch = registry.watch(registry.snapshot().revision + 1)
    answers = iter(watch)
    next(answers)
    server.put(key, "garbage")
    removal = next(answers)
    assert isinstance(removal, Events)
    assert removal.events == (LeaseRemoved("10.1.5.0-24"),)
    watch.cancel()


def test_ten_thousand_leases_are_read_in_one_go(
    server: EtcdServer, registry: Registry, prefix: str
) -> None:
    leases = {
        key_of(prefix, f"10.{a}.{b}.0/24"): f'{{"PublicIP":"172.{a}.{b}.9","PublicIPv6":null}}'
        for a in range(40)
        for b in range(250)
    }
    server.put_many(leases)
    used = []
    for _ in range(3):
        started = time.process_time()
        snapshot = registry.snapshot()
        used.append(time.process_time() - started)
        assert len(snapshot.leases) == 10_000
    assert min(used) < 0.4


# History


def test_a_deleted_key_is_distinguished_from_lost_data(
    server: EtcdServer, registry: Registry
) -> None:
    own, _ = Claims(registry).acquire(CONFIG, US, None)
    at = own.mod_revision
    server.delete(own.key)
    assert registry.same_history(own.key, own.version, at)
    assert not registry.same_history(own.key, Version(at - 1, own.etcd_lease), at)
    assert not registry.same_history(own.key, Version(at, own.etcd_lease + 1), at)
    assert not registry.same_history(own.key, own.version, at + 1)
    assert registry.same_history(own.key, Version(), at + 1)
    assert registry.same_history(own.key, None, at)
    assert not registry.same_history(own.key, None, at + 1)
    assert not registry.same_history(own.key, own.version, at + 1000)
    server.etcdctl("compact", str(at + 1))
    assert registry.same_history(own.key, own.version, at), "the compacted past is unknown"
