"""Hosts whose own firewall accepts only what belongs to a connection."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from etcd_server import wait_until
from instruments import log_lines
from iptables_variants import VARIANTS, use_variant

from flannel_udp.lab.lab import Host, Lab

NFTABLES = "nftables"
ACCEPT_PEERS = "-I INPUT -p udp --dport 8285 -j ACCEPT"


@pytest.fixture(params=[*VARIANTS, NFTABLES])
def strict_lab(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Lab:
    """Not entered yet; ``accept_only_answers`` makes a host strict."""
    tool = str(request.param)
    path = use_variant(tool if tool in VARIANTS else "nft", tmp_path)
    monkeypatch.setenv("PATH", path)
    config = {"Network": "10.1.0.0/16", "EnableNFTables": tool == NFTABLES}
    flags = ["--iptables-resync=1"]
    return Lab(
        hosts=2, config=config, daemon_args=flags, daemon_env={"PATH": path}, start_daemons=False
    )


def iptables(host: Host, *rules: str) -> None:
    for rule in rules:
        host.run(["iptables", "-w", "20", *rule.split()], check=True)


def accept_only_answers(host: Host) -> None:
    iptables(
        host,
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-P INPUT DROP",
    )


def test_hosts_that_accept_only_answers_reach_each_other(
    make_lab: Callable[[Lab], Lab], strict_lab: Lab
) -> None:
    lab = make_lab(strict_lab)
    for host in lab.hosts:
        accept_only_answers(host)
    lab.start_daemons()
    one, other = lab.containers
    sending = ["ping", "-n", "-q", "-i", "0.2", str(one.address)]
    with other.netns.popen(sending, stdout=subprocess.DEVNULL) as pinging:
        wait_until(lambda: lab.ping(one, other, wait=1) is not None, "a ping being answered")
        assert lab.ping(one, other) is not None
        pinging.terminate()


def test_a_missing_accept_rule_is_named_by_log_and_check(
    make_lab: Callable[[Lab], Lab], strict_lab: Lab
) -> None:
    lab = make_lab(strict_lab)
    host = lab.hosts[1]
    accept_only_answers(host)
    lab.start_daemons()
    one, other = lab.containers
    assert lab.ping(one, other, wait=1) is None
    (problem,) = host.status()["firewall"]["problems"]
    assert f"'iptables {ACCEPT_PEERS}'" in problem
    assert len(log_lines(host, "WARNING", "none accepts UDP port 8285")) == 1
    iptables(host, ACCEPT_PEERS)
    wait_until(lambda: not host.status()["firewall"]["problems"], "the rule being seen")
    assert lab.ping(one, other) is not None
    assert lab.hosts[0].status()["firewall"]["problems"] == []
