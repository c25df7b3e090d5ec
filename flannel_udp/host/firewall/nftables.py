"""The overlay's rules as chains of our own nftables table (pure).

The table is shared by all daemons of a host; each has chains of its own, named after its port, of
which a host has one daemon each.
"""

from __future__ import annotations

import re

from flannel_udp.host.firewall.policy import (
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
_CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)
_OURS = re.compile(r"(?:postrtg|forward)-([0-9]+)")


def replacement(policy: Policy, port: int) -> str:
    """What ``nft -f`` must read so that ``policy`` holds, in one transaction.

    A policy that wants nothing leaves no chain of ours.
    """
    masquerade, forward = chain_names(port)
    # Declared first, for what is not there cannot be deleted.
    script = [f"add table ip {TABLE}"]
    for chain in (masquerade, forward):
        script += [f"{verb} chain ip {TABLE} {chain}" for verb in ("add", "flush", "delete")]
    if policy.masquerade:
        lines = [
            f'meta mark & {_MARK} == {_MARK} return comment "{MASQUERADE_COMMENT}"',
            *(_text(r, policy, MASQUERADE_COMMENT) for r in policy.masquerade_rules()),
        ]
        script += _chain(masquerade, "nat hook postrouting priority 100", lines)
    if policy.forward:
        lines = [_text(rule, policy, FORWARD_COMMENT) for rule in policy.forward_rules()]
        script += _chain(forward, "filter hook forward priority 0", lines)
    return "\n".join([*script, ""])


def chain_names(port: int) -> tuple[str, str]:
    """Of the chain that masquerades and of the one that accepts forwarded packets."""
    return f"postrtg-{port}", f"forward-{port}"


def chains(listing: str) -> dict[str, str]:
    """The chains in what ``nft list table`` printed: name -> content."""
    return dict(_CHAIN.findall(listing))


def ports(listing: str) -> set[int]:
    """Of all daemons, living or dead, that have chains in the table."""
    return {int(match[1]) for match in map(_OURS.fullmatch, chains(listing)) if match}


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    body = [f"type {hook}; policy accept;", *rules]
    return [f"table ip {TABLE} {{", f"chain {name} {{", *body, "}", "}"]


def _text(rule: Rule, policy: Policy, comment: str) -> str:
    words = [*_match("saddr", rule.source), *_match("daddr", rule.destination), rule.verdict.value]
    if rule.verdict is Verdict.MASQUERADE and policy.random_fully:
        words.append("fully-random")
    return " ".join([*words, f'comment "{comment}"'])


def _match(side: str, match: Match | None) -> list[str]:
    if match is None:
        return []
    return ["ip", side, "!=" if match.outside else "==", str(match.network)]
