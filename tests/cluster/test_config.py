"""The network config: what flannel accepts is accepted, everything else is named in a sentence."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cluster.config import DEFAULT_PORT, NetworkConfig
from flannel_udp.errors import BackendTypeError, NetworkConfigError
from flannel_udp.options import Options, clean_prefix


def test_the_config_of_an_existing_flannel_cluster_is_read() -> None:
    config = NetworkConfig.parse(
        '{"Network":"192.168.0.0/16","SubnetLen":24,"SubnetMin":"192.168.1.0",'
        '"SubnetMax":"192.168.100.0","Backend":{"Type":"udp"}}'
    )
    assert config == NetworkConfig(
        network=IPv4Network("192.168.0.0/16"),
        subnet_len=24,
        subnet_min=IPv4Address("192.168.1.0"),
        subnet_max=IPv4Address("192.168.100.0"),
        port=8285,
    )


@pytest.mark.parametrize(
    ("network", "subnet_len", "subnet_min", "subnet_max"),
    [
        ("10.1.0.0/16", 24, "10.1.1.0", "10.1.255.0"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.1.4.0/22", 24, "10.1.5.0", "10.1.7.0"),
        ("10.1.4.0/23", 25, "10.1.4.128", "10.1.5.128"),
        ("10.1.4.0/28", 30, "10.1.4.4", "10.1.4.12"),
        ("10.1.2.3/16", 24, "10.1.1.0", "10.1.255.0"),
        ("128.0.0.0/1", 24, "128.0.1.0", "255.255.255.0"),
    ],
)
def test_defaults_follow_the_size_of_network(
    network: str, subnet_len: int, subnet_min: str, subnet_max: str
) -> None:
    config = NetworkConfig.parse(json.dumps({"Network": network}))
    assert config.network == IPv4Network(network, strict=False)
    assert config.subnet_len == subnet_len
    assert config.subnet_min == IPv4Address(subnet_min)
    assert config.subnet_max == IPv4Address(subnet_max)
    assert (config.port, config.mtu_cap, config.enable_nftables) == (DEFAULT_PORT, None, False)


def test_all_fields_are_read_and_unknown_ones_ignored() -> None:
    config = NetworkConfig.parse(
        b'{"Network":"10.1.0.0/16","SubnetLen":26,"SubnetMin":"10.1.0.64","SubnetMax":"10.1.9.192",'
        b'"EnableIPv4":true,"EnableIPv6":false,"IPv6Network":"fd00::/48","EnableNFTables":true,'
        b'"Backend":{"Type":"UDP","Port":4242,"MTU":1400,"VNI":1},"Comment":[{}]}\n'
    )
    assert config.subnet_len == 26
    assert config.subnet_min == IPv4Address("10.1.0.64")
    assert config.subnet_max == IPv4Address("10.1.9.192")
    assert (config.port, config.mtu_cap, config.enable_nftables) == (4242, 1400, True)


@pytest.mark.parametrize(
    "text",
    [
        '{"network":"10.1.0.0/16","BACKEND":{"tYPE":"udp","port":8285}}',
        '{"Network":"10.9.0.0/16","nETWORK":"10.1.0.0/16"}',
        '{"Network":"10.1.0.0/16","SubnetLen":null,"EnableNFTables":null,"IPv6SubnetMin":null}',
        '{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":null},"other":null}',
        '{"Network":"10.1.0.0/016"}',
        '{"Network":"10.1.0.0/16","Other":{"x":123456789012345678901234567890}}',
        '{"Network":"10.1.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}',
        '{"\\u004eetwork":"10.1.0.0\\/16"}',
        b'{"Network":"10.1.0.0/16","Note":"\xff"}',
    ],
)
def test_variants_that_go_reads_as_the_same_config_are_equal(text: str | bytes) -> None:
    assert NetworkConfig.parse(text) == NetworkConfig.parse('{"Network":"10.1.0.0/16"}')


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "not JSON"),
        ("null", "not an object"),
        ("[]", "not an object"),
        ('"10.1.0.0/16"', "not an object"),
        ('{"Network":"10.1.0.0/16"} x', "not JSON"),
        ("{'Network':'10.1.0.0/16'}", "not JSON"),
        ('{"Network":NaN}', "NaN"),
        ('{"Network":"10.1.0.0/16","SubnetLen":' + "2" * 5000 + "}", "SubnetLen is Infinity"),
        ('{"Network":"10.1.0.0/16","SubnetLen":' + "2" * 21 + "}", "SubnetLen is 2.2"),
        ('{"Network":"10.1.0.0/ 16"}', 'Network is "10.1.0.0/ 16"'),
        ('{"Network":"10.1.0.0/1_6"}', 'Network is "10.1.0.0/1_6"'),
        ('{"Network":"10.1.0.0/+16"}', 'Network is "10.1.0.0/+16"'),
        ('{"Network":"10.1.0.0/\u0661\u0666"}', "Network is"),
        ('{"Network":"10.1.0.0/' + "1" * 5000 + '"}', "Network is"),
        ('{"Network":"10.1.0.0/16","network":null}', "Network is null"),
        ('{"Network":"10.1.0.0/16","SubnetMin":null}', "SubnetMin is null"),
        ('{"Network":"10.1.0.0/16","subnetmax":null}', "SubnetMax is null"),
        ('{"Network":"10.1.0.0/16","IPv6Network":null}', "IPv6Network is null"),
        ('{"Network":"10.1.0.0/16","Backend":null}', "Backend is null"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{}", "Network is missing"),
        ('{"Network":""}', "Network is missing"),
        ('{"Network":"10.1.0.0"}', "Network"),
        ('{"Network":"10.1.0.0/255.255.0.0"}', "Network"),
        ('{"Network":"10.1.0.0/33"}', "Network"),
        ('{"Network":"fd00::/48"}', "Network"),
        ('{"Network":"0.0.0.0/0"}', "Network"),
        ('{"Network":"10.1.0.0/29"}', "/28 or larger"),
        ('{"Network":5}', "a string"),
        ('{"Network":{}}', "an object"),
        ('{"Network":"10.1.0.0/16","SubnetLen":31}', "SubnetLen is 31; it must be 18 to 30"),
        ('{"Network":"10.1.0.0/16","SubnetLen":17}', "SubnetLen is 17"),
        ('{"Network":"10.1.0.0/29","SubnetLen":30}', "10.1.0.0/29 cannot hold four subnets"),
        ('{"Network":"10.1.0.0/16","SubnetLen":-1}', "SubnetLen is -1"),
        ('{"Network":"10.1.0.0/16","SubnetLen":24.0}', "a whole number"),
        ('{"Network":"10.1.0.0/16","SubnetLen":"24"}', "a whole number"),
        ('{"Network":"10.1.0.0/16","SubnetLen":true}', "a whole number"),
        ('{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}', "SubnetMin is 10.2.0.0"),
        ('{"Network":"10.1.0.0/16","SubnetMax":"10.2.0.0"}', "SubnetMax is 10.2.0.0"),
        ('{"Network":"10.1.0.0/16","SubnetMin":"10.1.0.1"}', "first address of a /24"),
        ('{"Network":"10.1.0.0/16","SubnetMax":"10.1.9.128"}', "first address of a /24"),
        ('{"Network":"10.1.0.0/16","SubnetMin":"here"}', "SubnetMin"),
        (
            '{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.8.0"}',
            "at most SubnetMax",
        ),
        ('{"Network":"10.1.0.0/16","EnableIPv6":true}', "EnableIPv6"),
        ('{"Network":"10.1.0.0/16","EnableIPv4":false}', "EnableIPv4"),
        ('{"Network":"10.1.0.0/16","EnableIPv6":"false"}', "true or false"),
        ('{"Network":"10.1.0.0/16","EnableNFTables":1}', "EnableNFTables is 1"),
        ('{"Network":"10.1.0.0/16","Backend":"udp"}', "Backend is"),
        ('{"Network":"10.1.0.0/16","Backend":{}}', "Backend.Type is missing"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":""}}', "Backend.Type is missing"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":7}}', "Backend.Type is 7"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":0}}', "Port is 0"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":70000}}', "1 to 65535"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":"8285"}}', "Backend.Port"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","MTU":575}}', "Backend.MTU is 575"),
        ('{"Network":"10.1.0.0/16","Backend":{"Type":"udp","MTU":65508}}', "576 to 65507"),
    ],
)
def test_a_wrong_config_is_refused_by_naming_what_is_wrong(text: str, field: str) -> None:
    with pytest.raises(NetworkConfigError) as caught:
        NetworkConfig.parse(text)
    message = str(caught.value)
    assert field in message
    assert "\n" not in message
    assert len(message) < 300


def test_another_backend_is_refused_as_such() -> None:
    with pytest.raises(BackendTypeError, match="vxlan"):
        NetworkConfig.parse('{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":1}}')


def test_a_huge_value_does_not_flood_the_log() -> None:
    with pytest.raises(NetworkConfigError) as caught:
        NetworkConfig.parse(json.dumps({"Network": "x" * 100_000}))
    assert len(str(caught.value)) < 300


@given(st.one_of(st.binary(), st.text()))
def test_any_text_gives_a_config_or_a_sentence(text: str | bytes) -> None:
    with pytest.raises((NetworkConfigError, BackendTypeError)):
        NetworkConfig.parse(text)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["10.1.0.0/16", "10.1.1.0", "10.1.9.0", "udp", "UDP"]),
    st.integers(0, 32),
)
_BACKENDS = st.one_of(
    _VALUES, st.dictionaries(st.sampled_from(["Type", "Port", "MTU"]), _VALUES), st.just({})
)
_FIELDS = ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4", "EnableNFTables"]


@given(st.dictionaries(st.sampled_from(_FIELDS), _VALUES), st.none() | _BACKENDS)
def test_any_values_give_a_sound_config_or_a_sentence(
    fields: dict[str, object], backend: object
) -> None:
    try:
        config = NetworkConfig.parse(json.dumps({**fields, "Backend": backend}))
    except (NetworkConfigError, BackendTypeError):
        return
    assert config.is_compatible(IPv4Network((config.subnet_min, config.subnet_len)))
    assert config.is_compatible(IPv4Network((config.subnet_max, config.subnet_len)))
    assert IPv4Network((config.subnet_max, config.subnet_len)).subnet_of(config.network)
    assert 1 <= config.port <= 65535


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("/coreos.com/network", "/coreos.com/network"),
        ("/coreos.com/network/", "/coreos.com/network"),
        ("//coreos.com///network//", "/coreos.com/network"),
        ("coreos.com/network", "coreos.com/network"),
        ("/a/./b/../c", "/a/c"),
        ("/", ""),
        ("///", ""),
    ],
)
def test_a_prefix_names_the_keys_that_flannel_uses(given: str, cleaned: str) -> None:
    assert clean_prefix(given) == cleaned


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Options(etcd_password="hunter2"))
