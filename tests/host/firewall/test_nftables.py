"""flannel's rules as nft prints them, in flannel's order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network

from flannel_udp.host.firewall.nftables import (
    Chains,
    chains,
    has_table,
    is_complete,
    ports,
    replacement,
    traffic_chains,
)
from flannel_udp.host.firewall.rules import Policy
from flannel_udp.host.netns import Namespace

POLICY = Policy(
    IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24"), masquerade=True, forward=True
)
PORT = 8285
MASQUERADE_CHAIN, FORWARD_CHAIN = "postrtg-8285", "forward-8285"

MASQUERADE = [
    "type nat hook postrouting priority srcnat; policy accept;",
    'meta mark & 0x4000 == 0x4000 return comment "flanneld masq"',
    'ip saddr 10.1.5.0/24 ip daddr 10.1.0.0/16 return comment "flanneld masq"',
    'ip saddr 10.1.0.0/16 ip daddr 10.1.5.0/24 return comment "flanneld masq"',
    'ip saddr != 10.1.0.0/16 ip daddr 10.1.5.0/24 return comment "flanneld masq"',
    'ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"',
    'ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade fully-random comment "flanneld masq"',
]
FORWARD = [
    "type filter hook forward priority filter; policy accept;",
    'ip saddr 10.1.0.0/16 accept comment "flanneld forward"',
    'ip daddr 10.1.0.0/16 accept comment "flanneld forward"',
]


def written(namespace: Namespace, policy: Policy) -> dict[str, list[str]]:
    """What nft makes of it: the rules of each chain, in the order in which they are tried."""
    namespace.run(["nft", "-f", "-"], input=replacement(traffic_chains(policy, PORT)), check=True)
    listing = namespace.run(["nft", "-s", "list", "table", "ip", "flannel-ipv4"], check=True).stdout
    found = re.findall(r"\tchain (\S+) \{\n(.*?)\t\}", re.sub("0x0+", "0x", listing), re.DOTALL)
    return {name: [line.strip() for line in text.splitlines()] for name, text in found}


def test_the_rules_are_flannels_in_flannels_order(namespace: Namespace) -> None:
    assert written(namespace, POLICY) == {MASQUERADE_CHAIN: MASQUERADE, FORWARD_CHAIN: FORWARD}


def test_each_half_is_written_and_removed_alone(namespace: Namespace) -> None:
    only_forward = replace(POLICY, masquerade=False)
    for policy, expected in (
        (POLICY, {MASQUERADE_CHAIN: MASQUERADE, FORWARD_CHAIN: FORWARD}),
        (POLICY, {MASQUERADE_CHAIN: MASQUERADE, FORWARD_CHAIN: FORWARD}),
        (only_forward, {FORWARD_CHAIN: FORWARD}),
        (replace(POLICY, forward=False), {MASQUERADE_CHAIN: MASQUERADE}),
        (replace(only_forward, forward=False), {}),
    ):
        assert written(namespace, policy) == expected


def test_ports_are_left_predictable_on_request(namespace: Namespace) -> None:
    rules = written(namespace, replace(POLICY, random_fully=False))[MASQUERADE_CHAIN]
    assert rules == [rule.replace(" fully-random", "") for rule in MASQUERADE]


def listing(*objects: Mapping[str, object]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *objects]})


def test_daemons_differ_by_the_port_in_their_chains_names() -> None:
    names = (
        "postrtg-8285",
        "forward-8285",
        "postrtg-9000",
        "guard-9001",
        "somebody-1",
        "forward-x",
    )
    assert ports(chains(listing(*({"chain": {"name": name}} for name in names)))) == {
        8285,
        9000,
        9001,
    }


def test_chains_written_again_are_equal_although_their_handles_differ() -> None:
    first, second = (
        listing(
            {"chain": {"name": "forward-8285", "handle": number, "policy": "accept"}},
            {"rule": {"chain": "forward-8285", "handle": number + 1, "expr": [{"accept": None}]}},
        )
        for number in (1, 7)
    )
    assert chains(first) == chains(second)
    assert chains(first) != chains(second.replace("accept", "drop"))


def test_chains_with_a_missing_rule_are_not_complete(namespace: Namespace) -> None:
    def found() -> Chains:
        command = ["nft", "--json", "list", "table", "ip", "flannel-ipv4"]
        return chains(namespace.run(command, check=True).stdout)

    written(namespace, POLICY)
    assert is_complete(found(), traffic_chains(POLICY, PORT))
    namespace.run(["nft", "flush", "chain", "ip", "flannel-ipv4", "forward-8285"], check=True)
    assert not is_complete(found(), traffic_chains(POLICY, PORT))
    assert not is_complete(found(), traffic_chains(replace(POLICY, masquerade=False), PORT))


def test_only_our_table_counts_among_all() -> None:
    others = [{"table": {"name": name}} for name in ("nat", "flannel-ipv6")]
    assert not has_table(listing(*others))
    assert has_table(listing(*others, {"table": {"name": "flannel-ipv4"}}))
