"""A config that changes while a daemon runs is logged once, also after an outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdServer, wait_until

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.config_watch import ConfigWatch
from flannel_udp.cluster.registry import Registry
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.values import KeyRange

KEY = "/net/config"
TEXT = '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}'
SAME = '{ "network": "10.1.7.7/16", "SubnetLen": 24 }'
PORT = '{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":9000}}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path) as server:
        server.put(KEY, TEXT)
        yield server


@pytest.fixture
def watch(server: EtcdServer, caplog: pytest.LogCaptureFixture) -> Iterator[ConfigWatch]:
    caplog.set_level(logging.INFO)
    etcd = Etcd([server.url])
    watch = ConfigWatch(Registry(etcd, "/net"), NetworkConfig.parse(TEXT))
    watch.start()
    yield watch
    watch.stop()
    assert watch.join(5)
    etcd.close()


def await_difference(watch: ConfigWatch, words: str) -> None:
    wait_until(lambda: words in (watch.difference or ""), words, 20)


def test_each_change_is_logged_once_and_so_is_its_end(
    server: EtcdServer, watch: ConfigWatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(KEY, PORT)
    await_difference(watch, "Backend.Port is 9000, was 8285")
    server.put(KEY, PORT)
    server.put(KEY, '{"Network":"10.1.0.0/16","SubnetLen":25,"Backend":{"Type":"udp","MTU":1400}}')
    await_difference(watch, "SubnetLen is 25, was 24")
    assert watch.difference
    assert "Backend.MTU is 1400, was unset" in watch.difference
    server.put(KEY, '{"Network":"10.1.0.0/30"}')
    await_difference(watch, "it must be /28 or larger")
    server.delete(KEY)
    await_difference(watch, f"there is none at {KEY} any more")
    server.put(KEY, SAME)
    wait_until(lambda: watch.difference is None, "being as it was")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 5, messages
    assert messages[-1] == "the network config in etcd is again the one this daemon runs with"


def test_the_same_config_written_differently_is_no_change(
    server: EtcdServer, watch: ConfigWatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(KEY, SAME)
    server.put(f"{KEY}-draft", PORT)
    server.put(KEY, PORT)
    await_difference(watch, "9000")
    assert len(caplog.records) == 1


def test_a_change_while_etcd_restarts_is_not_missed(server: EtcdServer, watch: ConfigWatch) -> None:
    server.put(KEY, PORT)
    await_difference(watch, "9000")
    server.restart()
    server.put(KEY, TEXT)
    wait_until(lambda: watch.difference is None, "the change behind the restart", 20)


def test_an_error_of_our_own_is_logged_and_the_config_followed_again(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [RuntimeError("a bug")]
    etcd = Etcd([server.url])
    read = etcd.range

    def fail_once(key: str) -> KeyRange:
        if errors:
            raise errors.pop()
        return read(key)

    monkeypatch.setattr(etcd, "range", fail_once)
    server.put(KEY, PORT)
    with ConfigWatch(Registry(etcd, "/net"), NetworkConfig.parse(TEXT)) as watch:
        await_difference(watch, "Backend.Port is 9000, was 8285")
    assert "the thread config-watch starts again: a bug" in caplog.text
    etcd.close()
