"""Each tool alone, and what the host's own tools then print."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall import tools
from flannel_udp.host.firewall.rules import Overlay, Part, Policy
from flannel_udp.host.firewall.tools import Iptables, Nftables, Repair, Tool, remove_dead
from flannel_udp.host.netns import Namespace

NETWORK, OTHER = IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16")
POLICY = Policy(NETWORK, IPv4Network("10.1.5.0/24"), masquerade=True, forward=True)
OTHER_POLICY = Policy(OTHER, IPv4Network("10.2.9.0/24"), masquerade=True, forward=True)
PORT = 8285
TABLE = "flannel-ipv4"


def nft(namespace: Namespace, *words: str) -> str:
    return namespace.run(["nft", *words], check=True).stdout


def test_rules_of_dead_daemons_are_removed_and_others_stay(
    namespace: Namespace, nftables: bool
) -> None:
    def tool(port: int) -> Tool:
        return Nftables(port) if nftables else Iptables()

    def remove() -> list[str]:
        return list(remove_dead(lambda network: network == NETWORK, lambda port: port == PORT))

    def keep_apart(overlay: Overlay) -> None:
        tool(overlay.port).keep_apart(Part.ZONE, overlay)

    namespace.call(lambda: tool(PORT).apply(POLICY))
    namespace.call(lambda: tool(PORT + 1).apply(OTHER_POLICY))
    for port in (PORT, PORT + 1):
        overlay = Overlay(IPv4Address("172.30.0.1"), port)
        namespace.call(keep_apart, overlay)
    assert namespace.call(remove) == (
        ["the nftables rules of port 8286"]
        if nftables
        else ["the iptables rules of 10.2.0.0/16", "the iptables rules of port 8286"]
    )
    rules = nft(namespace, "list", "ruleset") + namespace.run(["iptables-save"]).stdout
    assert "10.2." not in rules
    assert "8286" not in rules
    assert "port 8285" in rules
    assert "10.1.5.0/24" in rules
    assert namespace.call(remove) == []


def test_a_table_that_does_not_exist_is_no_error(namespace: Namespace) -> None:
    tool = namespace.call(Nftables, PORT)
    assert namespace.call(tool.chains) == {}
    namespace.call(tool.remove, POLICY)
    nft(namespace, "add", "table", "inet", TABLE)  # of another family
    assert namespace.call(tool.chains) == {}


@pytest.mark.parametrize(
    "change",
    [
        f"delete table ip {TABLE}",
        f"flush chain ip {TABLE} postrtg-8285",
        f"insert rule ip {TABLE} forward-8285 drop",
        f"chain ip {TABLE} forward-8285 {{ policy drop; }}",
    ],
)
def test_a_change_of_our_nftables_chains_is_noticed_and_undone(
    namespace: Namespace, change: str
) -> None:
    tool = namespace.call(Nftables, PORT)
    assert namespace.call(tool.apply, POLICY) is Repair.WRITTEN
    assert namespace.call(tool.apply, POLICY) is Repair.NOTHING
    before = nft(namespace, "-s", "list", "table", "ip", TABLE)
    nft(namespace, *change.split())
    assert namespace.call(tool.apply, POLICY) is Repair.WRITTEN
    assert nft(namespace, "-s", "list", "table", "ip", TABLE) == before
    assert namespace.call(tool.apply, POLICY) is Repair.NOTHING


def test_chains_of_others_in_our_nftables_table_are_kept(namespace: Namespace) -> None:
    tool = namespace.call(Nftables, PORT)
    namespace.call(tool.apply, POLICY)
    nft(namespace, "add", "chain", "ip", TABLE, "theirs")
    nft(namespace, "add", "rule", "ip", TABLE, "theirs", "counter", "accept")
    assert namespace.call(tool.apply, POLICY) is Repair.NOTHING
    namespace.call(tool.remove, POLICY)
    assert list(namespace.call(tool.chains)) == ["theirs"]


def test_chains_changed_while_they_are_written_are_written_again(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, damages = tools._run, [("flush", "chain", "ip", TABLE, "postrtg-8285")]

    def write_and_damage(command: list[str], feed: str = "") -> str:
        printed = run(command, feed)
        if feed and damages:
            nft(namespace, *damages.pop())
        return printed

    monkeypatch.setattr(tools, "_run", write_and_damage)
    tool = namespace.call(Nftables, PORT)
    namespace.call(tool.apply, POLICY)
    assert namespace.call(tool.apply, POLICY) is Repair.WRITTEN
    assert nft(namespace, "list", "table", "ip", TABLE).count("flanneld masq") == 6


def test_an_nft_that_prints_no_json_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho 'table ip flannel-ipv4'\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(FirewallError, match="nft --json printed no list of chains"):
        Nftables(PORT).chains()
