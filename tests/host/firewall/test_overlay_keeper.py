"""The rules that keep the overlay's own datagrams apart, with and without what they need."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from etcd_server import wait_until

from flannel_udp.host.firewall import tools
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.host.firewall.rules import Overlay, Policy
from flannel_udp.host.netns import Namespace

NETWORK = IPv4Network("10.1.0.0/16")
NOTHING = Policy(NETWORK, IPv4Network("10.1.5.0/24"), masquerade=False, forward=False)
ZONE_WORDS = "can take over what peers send to this host"


def policy(port: int = 8285, *, forward: bool = False) -> Policy:
    return replace(NOTHING, forward=forward, overlay=Overlay(IPv4Address("172.30.0.1"), port))


@contextmanager
def kept(namespace: Namespace, wanted: Policy, *, nftables: bool = False) -> Iterator[Firewall]:
    assert wanted.overlay
    firewall = Firewall(wanted, wanted.overlay.port, nftables=nftables, resync=0.05)
    namespace.call(firewall.__enter__)
    try:
        yield firewall
    finally:
        namespace.call(firewall.__exit__)


def rules(namespace: Namespace) -> list[str]:
    """Of the overlay's own datagrams, by whichever tool."""
    saved = namespace.run(["iptables-save"], check=True).stdout
    listed = namespace.run(["nft", "-s", "list", "ruleset"], check=True).stdout
    lines = [line for line in saved.splitlines() if line.startswith("-A")]
    chain = ""
    for line in listed.splitlines():
        chain = line.split()[1] if "\tchain " in line else chain
        lines += [f"{chain} {line.strip()}"] * ("flanneld overlay" in line and "-m " not in line)
    return sorted(line for line in lines if "flanneld overlay" in line)


def test_rules_come_and_go_whatever_else_is_wanted(namespace: Namespace, nftables: bool) -> None:
    with kept(namespace, policy(), nftables=nftables) as firewall:
        assert len(rules(namespace)) == 6
        report = firewall.report()
        assert (report["problems"], report["notes"]) == ([], [])
    assert rules(namespace) == []


def test_two_daemons_keep_to_their_own(namespace: Namespace, nftables: bool) -> None:
    with kept(namespace, policy(), nftables=nftables):
        alone = rules(namespace)
        with kept(namespace, policy(9000), nftables=nftables):
            assert len(rules(namespace)) == 2 * len(alone)
        assert rules(namespace) == alone


def test_damage_is_repaired_and_logged_once(
    namespace: Namespace, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with kept(namespace, policy()):
        before = rules(namespace)
        namespace.run(["iptables", "-w", "20", "-t", "raw", "-F"], check=True)
        wait_until(lambda: "in place again" in caplog.text, "the rules being found in place again")
        assert rules(namespace) == before
    assert caplog.text.count("changed by another program") == 1


@pytest.fixture
def without_zones(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """A tool that answers as on a kernel without xt_CT or CONFIG_NF_CONNTRACK_ZONES."""
    name, word, answer = {
        "iptables": ("iptables-restore", "-j CT", "CT: No chain/target/match by that name."),
        "nft": ("nft", "ct zone", "Error: Could not process rule: Operation not supported"),
    }[request.param]
    (tmp_path / name).write_text(f"""#!/bin/sh
given=$(cat)
case "$given" in *"{word}"*) echo "{answer}" >&2; exit 2;; esac
printf '%s\\n' "$given" | {shutil.which(name)} "$@"
""")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return str(request.param)


@pytest.mark.parametrize("without_zones", ["iptables", "nft"], indirect=True)
def test_a_kernel_without_zones_is_named_once(
    namespace: Namespace,
    without_zones: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other tool is not installed, or has no kernel either."""
    which = tools._which
    monkeypatch.setattr(
        tools, "_which", lambda name: which(name) if without_zones in name else None
    )
    caplog.set_level(logging.DEBUG)

    def lines(level: int) -> list[str]:
        return [each.message for each in caplog.records if each.levelno == level]

    with kept(namespace, policy(forward=True), nftables=without_zones == "nft") as firewall:
        wait_until(lambda: ZONE_WORDS in "".join(lines(logging.DEBUG)), "another check")
        (problem,) = firewall.report()["problems"]
        assert firewall.unready_reason is None
    assert "xt_CT" in problem
    assert "CONFIG_NF_CONNTRACK_ZONES" in problem
    assert [ZONE_WORDS in line for line in lines(logging.WARNING)].count(True) == 1
    assert "path MTU" not in caplog.text
    assert rules(namespace) == []


@pytest.mark.parametrize("without_zones", ["iptables", "nft"], indirect=True)
def test_the_other_tool_stands_in(
    namespace: Namespace, without_zones: str, caplog: pytest.LogCaptureFixture
) -> None:
    with kept(namespace, policy(), nftables=without_zones == "nft") as firewall:
        assert firewall.report()["problems"] == []
        written = " ".join(rules(namespace))
        assert ("-j CT" in written, "ct zone set" in written) == (
            without_zones == "nft",
            without_zones == "iptables",
        )
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert rules(namespace) == []


def test_a_host_without_iptables_uses_nft(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = tools._which
    monkeypatch.setattr(tools, "_which", lambda name: which(name) if name == "nft" else None)
    with kept(namespace, policy()) as firewall:
        assert firewall.report()["problems"] == []
        assert len(rules(namespace)) == 6
    assert rules(namespace) == []


def test_a_host_without_nft_says_what_is_missing(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    which = tools._which
    monkeypatch.setattr(tools, "_which", lambda name: which(name) if name != "nft" else None)
    with kept(namespace, policy()) as firewall:
        report = firewall.report()
        assert report["problems"] == []
        assert "install nftables" in "".join(report["notes"])
    assert caplog.text.count("can send datagrams as its overlay") == 1
