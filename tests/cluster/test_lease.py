"""The lease codec: byte-exact for our own, forgiving for others', never an unexpected error."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannel_udp.cluster.lease import Lease, decode_key, decode_lease, encode_key, encode_value
from flannel_udp.errors import LeaseDecodeError

SUBNETS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


def decode(key: str, value: bytes) -> Lease:
    return decode_lease(key, value, etcd_lease=7, mod_revision=9)


def test_our_lease_is_byte_for_byte_what_flannel_writes() -> None:
    assert encode_key(IPv4Network("10.1.5.0/24")) == "10.1.5.0-24"
    value = encode_value(IPv4Address("172.30.0.1"))
    assert value == b'{"PublicIP":"172.30.0.1","PublicIPv6":null}'


def test_a_lease_of_flannel_is_read() -> None:
    assert decode("10.1.5.0-24", b'{"PublicIP":"172.30.0.1","PublicIPv6":null}') == Lease(
        key="10.1.5.0-24",
        subnet=IPv4Network("10.1.5.0/24"),
        public_ip=IPv4Address("172.30.0.1"),
        etcd_lease=7,
        mod_revision=9,
    )


def test_another_backends_lease_is_read_with_its_type() -> None:
    lease = decode(
        "10.1.5.0-24&fd00:0:0:5::-64",
        b'{"PublicIP":"172.30.0.1","PublicIPv6":"fd01::1","BackendType":"VXLAN",'
        b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":[],"New":1.5}',
    )
    assert lease.backend_type == "vxlan"
    assert lease.subnet_v6 == IPv6Network("fd00:0:0:5::/64")


@pytest.mark.parametrize(
    "value",
    [
        b'{"publicip":"172.30.0.1"}',
        b'{"PublicIP":"9.9.9.9","PUBLICIP":"172.30.0.1","BackendType":null}',
        b' {"PublicIP":"172.30.0.1","BackendType":""}\n',
        b'{"PublicIP":"172.30.0.1","Note":"\xff"}',
        b'{"PublicIP":"172.30.0.1","BackendData":{"x":123456789012345678901}}',
        b'{"PublicIP":"172.30.0.1","BackendData":{"x":%b}}' % (b"9" * 5000),
    ],
)
def test_variants_that_go_reads_as_the_same_lease_are_equal(value: bytes) -> None:
    assert decode("10.1.5.0-24", value) == decode("10.1.5.0-24", encode_value(_ADDRESS))


_ADDRESS = IPv4Address("172.30.0.1")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "10.1.5.0",
        "10.1.5.0/24",
        "10.1.5.0-",
        "10.1.5.0-33",
        "10.1.5.0-024",
        "10.1.5.1-24",
        "010.1.5.0-24",
        "10.1.5.256-24",
        "10.1.5-24",
        "10.1.5.0.0-24",
        "x10.1.5.0-24",
        "10.1.5.0-24\n",
        "10.1.5.0-24/x",
        "10.1.5.0-24&",
        "10.1.5.0-24&fd00::",
        "10.1.5.0-24&fd00::-129",
        "10.1.5.0-24&fd00::1-64",
        "10.1.5.0-24&::::-64",
        "١٠.1.5.0-24",
        "fd00::-64",
    ],
)
def test_a_key_that_is_no_subnet_is_refused_and_shown(key: str) -> None:
    with pytest.raises(LeaseDecodeError) as caught:
        decode(key, encode_value(_ADDRESS))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "no PublicIP"),
        (b'{"PublicIP":null}', "no PublicIP"),
        (b'{"PublicIP":5}', "no PublicIP"),
        (b'{"PublicIP":""}', "not an IPv4 address"),
        (b'{"PublicIP":"172.30.0.1/24"}', "not an IPv4 address"),
        (b'{"PublicIP":"172.30.0.01"}', "not an IPv4 address"),
        (b'{"PublicIP":"fd00::1"}', "not an IPv4 address"),
        (b'{"PublicIP":"172.30.0.1","BackendType":5}', "BackendType"),
        (b'{"PublicIP":"172.30.0.1","BackendData":NaN}', "NaN"),
        (b'{"PublicIP":"172.30.0.1","BackendData":' + b"[" * 100_000, "nested"),
    ],
)
def test_a_value_that_is_no_lease_is_refused_by_naming_the_key(value: bytes, reason: str) -> None:
    with pytest.raises(LeaseDecodeError, match=reason) as caught:
        decode("10.1.5.0-24", value)
    assert "10.1.5.0-24" in str(caught.value)
    assert len(str(caught.value)) < 300


@given(SUBNETS)
def test_every_subnet_survives_its_key(subnet: IPv4Network) -> None:
    assert decode_key(encode_key(subnet)) == (subnet, None)


@given(SUBNETS, st.ip_addresses(v=6), st.integers(0, 128))
def test_every_dual_stack_key_is_read(subnet: IPv4Network, address: object, length: int) -> None:
    subnet_v6 = IPv6Network(f"{address}/{length}", strict=False)
    key = f"{encode_key(subnet)}&{subnet_v6.network_address}-{length}"
    assert decode_key(key) == (subnet, subnet_v6)


@given(SUBNETS, st.ip_addresses(v=4))
def test_every_lease_survives_etcd(subnet: IPv4Network, public_ip: IPv4Address) -> None:
    lease = decode(encode_key(subnet), encode_value(public_ip))
    assert (lease.subnet, lease.public_ip) == (subnet, public_ip)
    assert (lease.etcd_lease, lease.mod_revision, lease.backend_type) == (7, 9, "")


@given(
    st.one_of(st.text(), st.from_regex(r"\d+\.\d+\.\d+\.\d+-\d+(&[a-f\d:]+-\d+)?")),
    st.one_of(st.binary(), st.just(encode_value(_ADDRESS))),
)
@example("10.1.5.0-24", b'{"PublicIP":"\\ud800"}')
def test_garbage_is_a_lease_or_a_sentence(key: str, value: bytes) -> None:
    try:
        lease = decode(key, value)
    except LeaseDecodeError as error:
        str(error).encode()
    else:
        assert encode_key(lease.subnet) == key.partition("&")[0]


def test_65536_leases_decode_well_within_a_second() -> None:
    stored = [
        (f"10.{i >> 8}.{i & 255}.0-24", encode_value(IPv4Address(0xAC100000 + i)))
        for i in range(65536)
    ]
    spent = []
    for _ in range(3):
        start = time.process_time()
        for key, value in stored:
            decode(key, value)
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0
