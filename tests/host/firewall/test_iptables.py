from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannel_udp.host.firewall.iptables import (
    Ruleset,
    change,
    complaints,
    is_only_behind_docker,
    networks,
    overlay_change,
    overlay_ports,
    overlay_rules,
)
from flannel_udp.host.firewall.rules import Overlay, Part, Policy

NETWORK = IPv4Network("10.1.0.0/16")
SUBNET = IPv4Network("10.1.5.0/24")
POLICY = Policy(NETWORK, SUBNET, masquerade=True, forward=True)
FORWARD = replace(POLICY, masquerade=False)
NOTHING = replace(POLICY, masquerade=False, forward=False)
OVERLAY = Overlay(IPv4Address("172.30.0.1"), 8285)

# As flannel writes them, in its order.
MASQ = '-m comment --comment "flanneld masq"'
FLANNEL_NAT = [
    f"-m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
    f"-s 10.1.5.0/24 -d 10.1.0.0/16 {MASQ} -j RETURN",
    f"-s 10.1.0.0/16 -d 10.1.5.0/24 {MASQ} -j RETURN",
    f"! -s 10.1.0.0/16 -d 10.1.5.0/24 {MASQ} -j RETURN",
    f"-s 10.1.0.0/16 ! -d 224.0.0.0/4 {MASQ} -j MASQUERADE --random-fully",
    f"! -s 10.1.0.0/16 -d 10.1.0.0/16 {MASQ} -j MASQUERADE --random-fully",
]
FWD = '-m comment --comment "flanneld forward"'
FLANNEL_FILTER = [f"-s 10.1.0.0/16 {FWD} -j ACCEPT", f"-d 10.1.0.0/16 {FWD} -j ACCEPT"]
JUMP = f"{FWD} -j FLANNEL-FWD"


def ruleset(
    forward: list[str] | None = None, chain: list[str] | None = None, *, policy: str = "ACCEPT"
) -> Ruleset:
    """The filter table with these rules in FORWARD and, unless None, in FLANNEL-FWD."""
    lines = ["# a comment", "*filter", ":INPUT ACCEPT [0:0]", f":FORWARD {policy} [12:3456]"]
    if chain is not None:
        lines.append(":FLANNEL-FWD - [0:0]")
    lines += [f"-A FORWARD {rule}" for rule in forward or []]
    lines += [f"-A FLANNEL-FWD {rule}" for rule in chain or []]
    return Ruleset.parse("\n".join([*lines, "COMMIT"]))


def test_an_empty_host_gets_flannels_rules_in_flannels_order() -> None:
    expected = [
        *("*nat", "-N FLANNEL-POSTRTG"),
        *(f"-A FLANNEL-POSTRTG {rule}" for rule in FLANNEL_NAT[1:]),
        f"-I FLANNEL-POSTRTG 1 {FLANNEL_NAT[0]}",
        f"-I POSTROUTING 1 {MASQ} -j FLANNEL-POSTRTG",
        *("COMMIT", "*filter", "-N FLANNEL-FWD"),
        *(f"-A FLANNEL-FWD {rule}" for rule in FLANNEL_FILTER),
        *(f"-I FORWARD 1 {JUMP}", "COMMIT", ""),
    ]
    assert change(Ruleset.parse(""), POLICY).split("\n") == expected


def test_no_random_ports_when_switched_off() -> None:
    text = change(Ruleset.parse(""), replace(POLICY, random_fully=False))
    assert "MASQUERADE\n" in text
    assert "random" not in text


def test_correct_rules_are_not_changed() -> None:
    others = ["-j DOCKER-USER", "-i br0 -j ACCEPT"]
    assert change(ruleset([JUMP, *others], FLANNEL_FILTER), FORWARD) == ""
    assert change(ruleset([*others, JUMP], FLANNEL_FILTER), FORWARD) == ""


@pytest.mark.parametrize(
    "chain",
    [[], FLANNEL_FILTER[:1], FLANNEL_FILTER[::-1], FLANNEL_FILTER * 2],
    ids=["emptied", "one missing", "wrong order", "doubled"],
)
def test_only_our_own_rules_are_replaced(chain: list[str]) -> None:
    other = f"-s 10.2.0.0/16 {FWD} -j ACCEPT"
    lines = change(ruleset([JUMP], [*chain, other]), FORWARD).splitlines()
    assert lines == [
        "*filter",
        *(f"-D FLANNEL-FWD {rule}" for rule in chain),
        *(f"-A FLANNEL-FWD {rule}" for rule in FLANNEL_FILTER),
        "COMMIT",
    ]


def test_a_missing_jump_is_inserted_first_and_duplicates_are_removed() -> None:
    missing = change(ruleset(["-j DROP"], FLANNEL_FILTER), FORWARD).splitlines()
    assert missing == ["*filter", f"-I FORWARD 1 {JUMP}", "COMMIT"]
    doubled = change(ruleset([JUMP, JUMP], FLANNEL_FILTER), FORWARD).splitlines()
    assert doubled[1:-1] == [f"-D FORWARD {JUMP}"] * 2 + [f"-I FORWARD 1 {JUMP}"]


def test_our_jump_precedes_dockers_but_not_the_operators() -> None:
    operator = ["-j DOCKER-USER", "-s 192.0.2.0/24 -j DROP"]
    found = ruleset([*operator, "-j DOCKER-FORWARD", JUMP], FLANNEL_FILTER)
    lines = change(found, FORWARD).splitlines()
    assert lines[1:-1] == [f"-D FORWARD {JUMP}", f"-I FORWARD 3 {JUMP}"]
    assert change(ruleset([*operator, JUMP, "-j DOCKER-FORWARD"], FLANNEL_FILTER), FORWARD) == ""


@pytest.mark.parametrize(
    ("forward", "chain", "is_so"),
    [
        (["-j DOCKER-USER", "-j DOCKER-FORWARD", JUMP], FLANNEL_FILTER, True),
        (["-j DOCKER-ISOLATION-STAGE-1", "-o docker0 -j DOCKER", JUMP], FLANNEL_FILTER, True),
        (["-j DOCKER-FORWARD"], FLANNEL_FILTER, False),
        (["-j DOCKER-FORWARD", JUMP], FLANNEL_FILTER[:1], False),
        (["-j DOCKER-FORWARD", JUMP, JUMP], FLANNEL_FILTER, False),
        ([JUMP], [], False),
        ([JUMP, "-j DOCKER-FORWARD"], FLANNEL_FILTER, False),
    ],
)
def test_chains_of_docker_differ_from_damage(
    forward: list[str], chain: list[str], is_so: bool
) -> None:
    assert is_only_behind_docker(ruleset(forward, chain), FORWARD) == is_so


def test_the_last_daemon_removes_the_chain() -> None:
    lines = change(ruleset([JUMP, "-j DROP"], FLANNEL_FILTER), NOTHING).splitlines()
    assert lines[1:-1] == [
        *(f"-D FLANNEL-FWD {rule}" for rule in FLANNEL_FILTER),
        *(f"-D FORWARD {JUMP}", "-X FLANNEL-FWD"),
    ]
    assert change(ruleset(["-j DROP"]), NOTHING) == ""


def test_another_daemons_rules_and_jumps_stay() -> None:
    other = f"-s 10.2.0.0/16 {FWD} -j ACCEPT"
    lines = change(ruleset([JUMP], [other, *FLANNEL_FILTER]), NOTHING).splitlines()
    assert lines[1:-1] == [f"-D FLANNEL-FWD {rule}" for rule in FLANNEL_FILTER]
    assert networks(ruleset([JUMP], [other, *FLANNEL_FILTER])) == {
        NETWORK,
        IPv4Network("10.2.0.0/16"),
    }


def test_rules_of_old_flannel_in_built_in_chains_are_removed() -> None:
    lines = change(ruleset([FLANNEL_FILTER[0]]), FORWARD).splitlines()
    assert f"-D FORWARD {FLANNEL_FILTER[0]}" in lines


def test_a_network_is_not_confused_with_one_that_starts_alike() -> None:
    other = f"-s 10.1.0.0/1 {FWD} -j ACCEPT"
    assert "-D" not in change(ruleset([JUMP], [other]), NOTHING)


def test_networks_are_found_by_their_own_rules_only() -> None:
    lines = ["*nat", ":FLANNEL-POSTRTG - [0:0]", *(f"-A FLANNEL-POSTRTG {r}" for r in FLANNEL_NAT)]
    assert networks(Ruleset.parse("\n".join(lines))) == {NETWORK}


def test_a_rule_without_match_or_target_is_read() -> None:
    found = ruleset(["", JUMP, ""], FLANNEL_FILTER)
    assert found.of("filter", "FORWARD") == ["", JUMP, ""]
    assert change(found, FORWARD) == ""


LINES = st.sampled_from(["*filter", "*nat", ":FORWARD ACCEPT [0:0]", ":", "*", "-A ", "-A FORWARD"])


@given(st.lists(st.one_of(LINES, st.text(), st.text().map("-A ".__add__))).map("\n".join))
@example(":FORWARD")
@example("*filter\n-A FORWARD\n-A FORWARD ")
def test_any_text_of_iptables_save_is_read_or_ignored(text: str) -> None:
    found = Ruleset.parse(text)
    networks(found)
    complaints(found, replace(POLICY, overlay=OVERLAY), nftables=True)
    overlay_change(found, overlay_rules(Part.ZONE, OVERLAY), OVERLAY.port, Part.ZONE)
    overlay_ports(found)
    change(found, POLICY)
    is_only_behind_docker(found, POLICY)


def test_a_comment_with_unusual_line_ends_is_one_rule() -> None:
    rule = '-m comment --comment "a\x85-A FORWARD\u2028\r\x0c*nat" -j DROP'
    assert ruleset([rule]).rules == {"filter": {"INPUT": [], "FORWARD": [rule]}}


def test_an_address_pattern_that_is_no_network_is_not_ours() -> None:
    pattern = "-s 10.1.0.0/255.0.255.0"
    assert networks(ruleset([f"{pattern} {FWD} -j ACCEPT", *FLANNEL_FILTER])) == {NETWORK}
    sentences = complaints(
        Ruleset.parse(NAT.format("10.1.5.0/255.0.255.0")), POLICY, nftables=False
    )
    assert sentences == []


NAT = "*nat\n-A POSTROUTING -s {} ! -o docker0 -j MASQUERADE\nCOMMIT"
RAW = "*raw\n-A PREROUTING -d {} ! -i docker0 -j DROP\nCOMMIT"
DOCKER = "*filter\n:FORWARD ACCEPT [0:0]\n-A DOCKER ! -i {0} -o {0} -j DROP\nCOMMIT"


CNI = """\
*nat
:POSTROUTING ACCEPT [0:0]
:CNI-a12ea941b040 - [0:0]
-A POSTROUTING -s {0} -m comment --comment "name: \\"overlay\\"" -j CNI-a12ea941b040
-A POSTROUTING -s {0} -m comment --comment "name: \\"twice\\"" -j CNI-a12ea941b040
-A CNI-a12ea941b040 -d 10.1.5.0/24 -m comment --comment "name: \\"overlay\\"" -j ACCEPT
-A CNI-a12ea941b040 ! -d 224.0.0.0/4 -m comment --comment "name: \\"overlay\\"" -j MASQUERADE
COMMIT
"""


@pytest.mark.parametrize(
    ("text", "nftables", "words"),
    [
        (NAT.format("10.1.5.0/24"), False, "docker masquerades 10.1.5.0/24"),
        (RAW.format("10.1.5.2/32"), False, "allow-direct-routing"),
        (CNI.format("10.1.5.2/32"), False, "CNI plugin masquerades containers of 10.1.5.0/24"),
        (CNI.format("10.88.0.2/32"), False, ""),
        ("*filter\n:FORWARD DROP [0:0]\nCOMMIT", True, "an nftables rule cannot overrule it"),
        (DOCKER.format("docker0"), True, "docker drops new connections to its containers"),
        (DOCKER.format("br-0123456789ab"), True, ""),
        (DOCKER.format("docker0"), False, ""),
        (NAT.format("172.17.0.0/16") + "\n" + RAW.format("172.17.0.2/32"), False, ""),
        ("*filter\n:FORWARD DROP [0:0]\nCOMMIT", False, ""),
    ],
)
def test_harmful_rules_of_others_are_named(text: str, nftables: bool, words: str) -> None:
    sentences = complaints(Ruleset.parse(text), POLICY, nftables=nftables)
    assert len(sentences) == bool(words)
    assert words in "".join(sentences)


@pytest.mark.parametrize(
    ("rule", "is_enough"),
    [
        ("-s 10.1.0.0/16 -j ACCEPT", True),
        ("-s 10.0.0.0/8 -j ACCEPT", True),
        ("-i flannel0 -j ACCEPT", True),
        ("-s 10.1.5.0/24 -j ACCEPT", False),
        ("! -s 10.1.0.0/16 -j ACCEPT", False),
        ("-i docker0 ! -o docker0 -j ACCEPT", False),
        ("-s 10.1.0.0/16 -j DROP", False),
    ],
)
def test_a_dropping_forward_chain_needs_a_rule_for_the_whole_network(
    rule: str, is_enough: bool
) -> None:
    dropping = ruleset([rule], policy="DROP")
    assert complaints(dropping, FORWARD, nftables=False) == []
    sentences = complaints(dropping, NOTHING, nftables=False)
    assert bool(sentences) != is_enough
    assert not sentences or "nothing there accepts 10.1.0.0/16" in sentences[0]


INPUT = "*filter\n:INPUT {} [0:0]\n:ours - [0:0]\n-A INPUT -j ours\n{}\nCOMMIT"
ANSWERS = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize(
    ("policy", "rules", "is_named"),
    [
        ("DROP", [f"INPUT {ANSWERS}"], True),
        ("DROP", ["INPUT -i lo -j ACCEPT", "INPUT -p tcp -m tcp --dport 22 -j ACCEPT"], True),
        ("DROP", ["INPUT -p udp -m udp --dport 53 -j ACCEPT"], True),
        ("DROP", ["INPUT -p udp -m multiport --dports 53,8000:8284 -j ACCEPT"], True),
        ("DROP", ["other -p udp -m udp --dport 8285 -j ACCEPT"], True),
        ("ACCEPT", [f"INPUT {ANSWERS}", "INPUT -j REJECT --reject-with icmp"], True),
        ("ACCEPT", [f"INPUT {ANSWERS}", "INPUT -p tcp -j DROP"], False),
        ("DROP", ["INPUT -p udp -m udp --dport 8285 -j ACCEPT"], False),
        ("DROP", ["INPUT -p udp -m multiport --dports 53,8000:8300 -j ACCEPT"], False),
        ("DROP", ["ours -p udp -m udp --dport 8285 -m conntrack --ctstate NEW -j ACCEPT"], False),
        ("DROP", ["INPUT -s 172.30.0.0/24 -j ACCEPT"], False),
    ],
)  # fmt: skip
def test_a_missing_accept_rule_for_peers_is_named(
    policy: str, rules: list[str], is_named: bool
) -> None:
    found = Ruleset.parse(INPUT.format(policy, "\n".join(f"-A {rule}" for rule in rules)))
    sentences = complaints(found, replace(NOTHING, overlay=OVERLAY), nftables=False)
    assert len(sentences) == is_named
    assert not sentences or "--dport 8285 -j ACCEPT" in sentences[0]


def test_rules_of_another_port_or_part_stay() -> None:
    wanted = {part: overlay_rules(part, OVERLAY) for part in Part}
    both = [*wanted[Part.ZONE].items(), *wanted[Part.PORT].items()]
    lines = [f"*{table}\n-A {chain} {rule}" for (table, chain), rule in both]
    found = Ruleset.parse("\n".join([*lines, *(line.replace("8285", "9000") for line in lines)]))
    assert overlay_ports(found) == {8285, 9000}
    for part in (Part.ZONE, Part.PORT):
        assert overlay_change(found, wanted[part], 8285, part) == ""
        removal = overlay_change(found, {}, 8285, part)
        assert removal.count("-D") == len(wanted[part])
        assert "9000" not in removal


def test_an_address_that_is_translated_keeps_the_hosts_source_nat() -> None:
    translated = replace(OVERLAY, is_translated=True)
    assert overlay_rules(Part.PORT, translated).keys() == {("nat", "PREROUTING")}
    assert overlay_rules(Part.ZONE, translated) == overlay_rules(Part.ZONE, OVERLAY)
