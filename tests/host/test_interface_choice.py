"""Which interface is chosen as the external one, and which regular expressions are refused."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from ipaddress import IPv4Address as Ip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import InterfaceError
from flannel_udp.host.interface_choice import Hop, Link, choose, compile_regex
from flannel_udp.options import Options

LO = Link("lo", 1, 65536, True, (), is_loopback=True)
ETH0 = Link("eth0", 2, 1500, True, (Ip("172.30.0.1"), Ip("172.31.0.1")))
ETH1 = Link("eth1", 3, 9000, True, (Ip("10.9.0.1"),))
BARE = Link("eth2", 4, 1500, True, ())
LINKS = (LO, ETH0, ETH1, BARE)


@pytest.mark.parametrize(
    ("options", "name", "address"),
    [
        (Options(), "eth1", "10.9.0.1"),  # the default route
        (Options(iface=("eth0",)), "eth0", "172.30.0.1"),
        (Options(iface=("172.31.0.1",)), "eth0", "172.31.0.1"),
        (Options(iface=("wlan0", "192.0.2.1", "eth2", "eth1")), "eth1", "10.9.0.1"),
        (Options(iface=("wlan0",), iface_regex=("^eth0$",)), "eth0", "172.30.0.1"),
        (Options(iface_regex=(r"172\.31\.",)), "eth0", "172.31.0.1"),
        (Options(iface_regex=("eth2|10",)), "eth1", "10.9.0.1"),  # addresses before names
        (Options(iface_regex=(r"^eth\d\Z",)), "eth0", "172.30.0.1"),
        (Options(iface_regex=("eth[21]",)), "eth1", "10.9.0.1"),  # a name that has an address
        (Options(iface_regex=("nothing", "eth0")), "eth0", "172.30.0.1"),
        (Options(iface_regex=("(", "eth0")), "eth0", "172.30.0.1"),
        (Options(iface_can_reach=Ip("192.0.2.9")), "eth0", "172.31.0.1"),
        (Options(iface=("wlan0",), iface_can_reach=Ip("192.0.2.9")), "eth0", "172.31.0.1"),
        (Options(public_ip=Ip("172.31.0.1")), "eth0", "172.31.0.1"),
        (Options(public_ip=Ip("203.0.113.5")), "eth1", "10.9.0.1"),  # behind NAT
        (Options(public_ip=Ip("10.9.0.1"), iface=("eth0",)), "eth0", "172.30.0.1"),
    ],
)
def test_candidates_are_tried_in_order(options: Options, name: str, address: str) -> None:
    reach = Hop(2, Ip("172.31.0.1")) if options.iface_can_reach else None
    chosen = choose(options, LINKS, reach, default_route=Hop(3)).interface
    assert (chosen.name, str(chosen.address)) == (name, address)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(iface=("wlan0",)), "--iface wlan0: no such interface"),
        (Options(iface=("192.0.2.1",)), "--iface 192.0.2.1: no interface has this address"),
        (Options(iface=("eth2",)), "--iface eth2: eth2 has no usable IPv4 address"),
        (Options(iface_regex=("^wlan",)), "--iface-regex ^wlan: no address and no name matches"),
        (Options(iface_regex=("eth2",)), "--iface-regex eth2: eth2 has no usable IPv4 address"),
        (Options(iface_regex=("(",)), "--iface-regex (: not a regular expression"),
        (Options(iface_can_reach=Ip("192.0.2.9")), "--iface-can-reach 192.0.2.9: no route leads"),
        (Options(public_ip=Ip("203.0.113.5")), "default route: there is none"),
        (Options(), "default route: there is none"),
    ],
)
def test_no_match_says_what_was_tried_and_what_exists(options: Options, reason: str) -> None:
    with pytest.raises(InterfaceError) as caught:
        choose(options, LINKS, reach=None, default_route=None)
    assert reason in str(caught.value)
    assert "eth0 (172.30.0.1, 172.31.0.1)" in str(caught.value)
    assert "eth2 (no IPv4 address)" in str(caught.value)
    assert "lo (" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "addresses", "in_bridge", "offered"),
    [
        ("flannel0", "tun", 1, False, False),
        ("flannel.1", "vxlan", 1, False, False),
        ("tun0", "tun", 1, False, True),  # a VPN may connect the hosts
        ("docker0", "bridge", 1, False, False),
        ("br-0123456789ab", "bridge", 1, False, False),
        ("cni0", "bridge", 1, False, False),
        ("br-ex", "bridge", 1, False, True),
        ("br0", "bridge", 1, False, True),
        ("eth0", "veth", 1, False, True),  # of a host that is a container
        ("veth12ab34c", "veth", 0, False, False),
        ("veth12ab34c", "veth", 1, True, False),
        ("eth0", "", 0, True, True),
        ("bond0.7", "vlan", 1, False, True),
    ],
)
def test_only_what_may_be_external_is_offered(
    name: str, kind: str, addresses: int, in_bridge: bool, offered: bool
) -> None:
    link = Link(name, 7, 1500, True, (Ip("192.0.2.7"),) * addresses, kind=kind, in_bridge=in_bridge)
    with pytest.raises(InterfaceError) as caught:
        choose(Options(), [LO, link], reach=None, default_route=None)
    assert str(caught.value).endswith(
        f"this host has {link}: name one of them with --iface"
        if offered
        else "this host has none that reaches other hosts: connect it to a network"
    )
    if addresses:
        assert choose(Options(iface=(name,)), [link], None, None).interface.name == name


def test_candidates_that_do_not_fit_are_kept_for_the_log() -> None:
    choice = choose(Options(iface=("wlan0", "eth2", "eth0")), LINKS, None, None)
    assert choice.passed_over == (
        "--iface wlan0: no such interface",
        "--iface eth2: eth2 has no usable IPv4 address",
    )


def test_a_public_ip_behind_nat_is_not_reported() -> None:
    options = Options(public_ip=Ip("203.0.113.5"))
    assert choose(options, LINKS, None, default_route=Hop(3)).passed_over == ()


def test_explicit_flags_never_fall_back_to_the_default_route() -> None:
    with pytest.raises(InterfaceError):
        choose(Options(iface=("wlan0",)), LINKS, None, default_route=Hop(3))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[]a]+$", "]a", "b"),
        ("^[^]a]+$", "b", "]"),
        ("^[a[]+$", "a[", "b"),
        (r"^[\]a]+$", "]a", "b"),
        (r"(?i)^ETH\d$", "eth0", "eth"),
    ],
)
def test_a_regular_expression_means_what_it_means_in_go(pattern: str, good: str, bad: str) -> None:
    assert compile_regex(pattern).search(good)
    assert not compile_regex(pattern).search(bad)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("^eth[[:digit:]]+$", r"\[:digit:\] is Go's syntax; write 0-9"),
        ("[^[:alpha:]]", r"\[:alpha:\] is Go's syntax"),
        ("[a[:^digit:]]", r"\[:\^digit:\] is Go's syntax"),
        ("[[a]", "nested set"),
        ("[a&&b]", "set intersection"),
        (r"\pN", "bad escape"),
        (r"\Qeth0\E", "bad escape"),
        ("(", "missing"),
        ("[", "unterminated"),
        ("a\\", "bad escape"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a{99999999999999999999}", "too large"),
    ],
)
def test_a_regular_expression_that_python_reads_otherwise_is_refused(
    pattern: str, words: str
) -> None:
    with pytest.raises(re.error, match=words):
        compile_regex(pattern)


@given(st.text("[]^:-\\ digt()a|&z*"))
def test_any_text_is_a_regular_expression_or_an_error(pattern: str) -> None:
    with warnings.catch_warnings(), suppress(re.error):
        warnings.simplefilter("error")
        compile_regex(pattern)
