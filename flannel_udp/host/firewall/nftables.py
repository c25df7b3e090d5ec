"""The overlay's rules as chains of our own nftables table (pure).

The table is shared by all daemons of a host; each has chains of its own, named after its port, of
which a host has one daemon each.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from flannel_udp.host.firewall.rules import Comment, Match, Overlay, Part, Policy, Rule, Verdict

TABLE = "flannel-ipv4"

_MARK = Policy.KUBE_PROXY_MARK
_CHAIN_OF_A_DAEMON = re.compile(r"(?:postrtg|forward|(?:zone|port)-(?:in|out)|guard)-(\d+)")

Chains = dict[str, list[dict[str, Any]]]  # by name: the chain's own attributes and its rules
Wanted = dict[str, tuple[str, list[str]]]  # by name: type and hook of the chain, and its rules


def replacement(wanted: Wanted) -> str:
    """What ``nft -f`` must read so that these chains are as wanted, in one transaction.

    A chain without rules is deleted.
    """
    script = [f"add table ip {TABLE}"]
    for chain in wanted:
        # Adding comes first, because deleting a chain that does not exist is an error.
        script += [f"{verb} chain ip {TABLE} {chain}" for verb in ("add", "flush", "delete")]
    for chain, (hook, rules) in wanted.items():
        if rules:
            script += [f"table ip {TABLE} {{", f"chain {chain} {{"]
            script += [f"type {hook}; policy accept;", *rules, "}", "}"]
    return "\n".join([*script, ""])


def traffic_chains(policy: Policy, port: int) -> Wanted:
    """Of --ip-masq and of the forward rules."""
    masquerade = [_text(rule, policy, Comment.MASQUERADE) for rule in policy.masquerade_rules()]
    if masquerade:
        mark = f'meta mark & {_MARK} == {_MARK} return comment "{Comment.MASQUERADE}"'
        masquerade.insert(0, mark)
    forward = [_text(rule, policy, Comment.FORWARD) for rule in policy.forward_rules()]
    return {
        f"postrtg-{port}": ("nat hook postrouting priority 100", masquerade),
        f"forward-{port}": ("filter hook forward priority 0", forward),
    }


def overlay_chains(part: Part, overlay: Overlay) -> Wanted:
    """Each comes just before those of others at its hook, because the first zone counts, and the
    first NAT rule. The guard comes after masquerading: it sees from where a packet will leave.
    """
    address, port = overlay.address, overlay.port
    arriving = f"ip daddr {address} udp dport {port}"
    leaving = f"ip saddr {address} udp sport {port}"
    zone, end = f"ct zone set {overlay.ZONE}", f"{address}:{port}"
    ours = f"{leaving} meta skuid {overlay.owner} accept"
    source_nat = [] if overlay.is_translated else [f"{leaving} snat to {end}"]
    chains = (
        (Part.ZONE, "zone-in", "filter hook prerouting priority -301", [f"{arriving} {zone}"]),
        (Part.ZONE, "zone-out", "filter hook output priority -301", [f"{leaving} {zone}"]),
        (Part.PORT, "port-in", "nat hook prerouting priority -101", [f"{arriving} dnat to {end}"]),
        (Part.PORT, "port-out", "nat hook postrouting priority 99", source_nat),
        (Part.GUARD, "guard", "filter hook postrouting priority 101", [ours, f"{leaving} drop"]),
    )
    return {
        f"{name}-{port}": (hook, [f'{rule} comment "{Comment.OVERLAY}"' for rule in rules])
        for each, name, hook, rules in chains
        if each is part
    }


def has_table(listing: str) -> bool:
    """Whether our table is among those that ``nft --json list tables`` printed."""
    return any(kind == "table" and each["name"] == TABLE for kind, each in _objects(listing))


def chains(listing: str) -> Chains:
    """The chains in what ``nft --json list table`` printed."""
    found: Chains = {}
    for kind, each in _objects(listing):
        each.pop("handle", None)  # differs whenever the same chain or rule is written again
        if kind in ("chain", "rule"):
            found.setdefault(each["name" if kind == "chain" else "chain"], []).append(each)
    return found


def ports(found: Iterable[str]) -> set[int]:
    """Of all daemons, running or dead, to which these chains belong."""
    return {int(match[1]) for match in map(_CHAIN_OF_A_DAEMON.fullmatch, found) if match}


def of_port(found: Iterable[str], port: int) -> list[str]:
    """The names of the chains of one daemon."""
    return [name for name in found if name.endswith(f"-{port}") and ports([name])]


def is_complete(found: Chains, wanted: Wanted) -> bool:
    """Whether the chains have as many rules as wanted."""
    counts = {name: sum("expr" in each for each in chain) for name, chain in found.items()}
    return all(counts.get(name, 0) == len(rules) for name, (_, rules) in wanted.items())


def _objects(listing: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and attributes of each object (libnftables-json(5)): a table, a chain, a rule."""
    for each in json.loads(listing)["nftables"]:
        yield from each.items()


def _text(rule: Rule, policy: Policy, comment: str) -> str:
    parts = [*_match("saddr", rule.source), *_match("daddr", rule.destination), rule.verdict.value]
    if rule.verdict is Verdict.MASQUERADE and policy.random_fully:
        parts.append("fully-random")
    return " ".join([*parts, f'comment "{comment}"'])


def _match(side: str, match: Match | None) -> list[str]:
    if match is None:
        return []
    return ["ip", side, "!=" if match.outside else "==", str(match.network)]
