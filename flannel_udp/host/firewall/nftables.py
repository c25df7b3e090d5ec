"""The overlay's rules as chains of our own nftables table (pure).

The table is shared by all daemons of a host; each has chains of its own, named after its port, of
which a host has one daemon each.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from flannel_udp.host.firewall.rules import (
    FORWARD_COMMENT,
    KUBE_PROXY_MARK,
    MASQUERADE_COMMENT,
    Match,
    Policy,
    Rule,
    Verdict,
)

TABLE = "flannel-ipv4"

_MARK = f"{KUBE_PROXY_MARK:#x}"
_HOOKS = ("nat hook postrouting priority 100", "filter hook forward priority 0")
_CHAIN_OF_A_DAEMON = re.compile(r"(?:postrtg|forward)-([0-9]+)")

Chains = dict[str, list[dict[str, Any]]]  # by name: the chain's own attributes and its rules


def replacement(policy: Policy, port: int) -> str:
    """What ``nft -f`` must read so that ``policy`` holds, in one transaction.

    A policy that wants nothing leaves no chain of ours.
    """
    script = [f"add table ip {TABLE}"]
    for chain in chain_names(port):
        # Adding comes first, because deleting a chain that does not exist is an error.
        script += [f"{verb} chain ip {TABLE} {chain}" for verb in ("add", "flush", "delete")]
    for (chain, rules), hook in zip(_rules(policy, port).items(), _HOOKS, strict=True):
        if rules:
            script += [f"table ip {TABLE} {{", f"chain {chain} {{"]
            script += [f"type {hook}; policy accept;", *rules, "}", "}"]
    return "\n".join([*script, ""])


def _rules(policy: Policy, port: int) -> dict[str, list[str]]:
    """The rules of each of our chains, as nft reads them."""
    masquerade = [_text(rule, policy, MASQUERADE_COMMENT) for rule in policy.masquerade_rules()]
    if masquerade:
        mark = f'meta mark & {_MARK} == {_MARK} return comment "{MASQUERADE_COMMENT}"'
        masquerade.insert(0, mark)
    forward = [_text(rule, policy, FORWARD_COMMENT) for rule in policy.forward_rules()]
    return dict(zip(chain_names(port), (masquerade, forward), strict=True))


def chain_names(port: int) -> tuple[str, str]:
    """Of the chain that masquerades and of the one that accepts forwarded packets."""
    return f"postrtg-{port}", f"forward-{port}"


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


def ports(found: Chains) -> set[int]:
    """Of all daemons, running or dead, that have chains in the table."""
    return {int(match[1]) for match in map(_CHAIN_OF_A_DAEMON.fullmatch, found) if match}


def is_complete(found: Chains, policy: Policy, port: int) -> bool:
    """Whether our chains have as many rules as ``policy`` wants."""
    counts = {name: sum("expr" in each for each in chain) for name, chain in found.items()}
    wanted = _rules(policy, port).items()
    return all(counts.get(name, 0) == len(rules) for name, rules in wanted)


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
