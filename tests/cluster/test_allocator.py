"""The choice of a subnet: always free, always one of the first hundred, quick on any range."""

from __future__ import annotations

import random
import time
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cluster.allocator import choose, is_free
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.errors import NetworkExhaustedError

CONFIG = NetworkConfig.parse(
    '{"Network":"10.1.0.0/16","SubnetMin":"10.1.4.0","SubnetMax":"10.1.200.0"}'
)
ALL = [IPv4Network(f"10.1.{i}.0/24") for i in range(4, 201)]

NETWORKS = st.builds(
    lambda offset, length: IPv4Network((0x0A010000 + offset, length), strict=False),
    st.integers(-300, 0xFFFF + 300),
    st.integers(0, 32),
)


def plain_candidates(taken: list[IPv4Network]) -> list[IPv4Network]:
    free = [subnet for subnet in ALL if not any(subnet.overlaps(other) for other in taken)]
    return free[:100]


@given(st.lists(NETWORKS.filter(lambda network: network.prefixlen > 17)), st.randoms())
def test_the_choice_is_one_of_the_first_hundred_free(
    taken: list[IPv4Network], rng: random.Random
) -> None:
    expected = plain_candidates(taken)
    if expected:
        assert choose(CONFIG, taken, rng) in expected
    else:
        with pytest.raises(NetworkExhaustedError):
            choose(CONFIG, taken, rng)


TINY = NetworkConfig.parse('{"Network":"10.1.0.0/28"}')


@given(
    st.lists(
        st.builds(
            lambda offset, length: IPv4Network((0x0A010000 + offset, length), strict=False),
            st.integers(-8, 24),
            st.integers(28, 32),
        )
    )
)
def test_every_free_subnet_can_be_chosen(taken: list[IPv4Network]) -> None:
    subnets = [IPv4Network(f"10.1.0.{start}/30") for start in (4, 8, 12)]
    free = {subnet for subnet in subnets if is_free(subnet, taken)}
    if free:
        assert {choose(TINY, taken, random.Random(seed)) for seed in range(60)} == free


def test_hosts_that_start_together_are_spread() -> None:
    chosen = {choose(CONFIG, [], random.Random(seed)) for seed in range(2000)}
    assert chosen == set(ALL[:100])


def test_a_full_network_raises_one_sentence() -> None:
    with pytest.raises(NetworkExhaustedError, match=r"10\.1\.4\.0 to 10\.1\.200\.0"):
        choose(CONFIG, ALL, random.Random(1))


def test_the_last_free_subnet_is_found() -> None:
    assert choose(CONFIG, ALL[:-1], random.Random(1)) == ALL[-1]
    assert choose(CONFIG, ALL[1:], random.Random(1)) == ALL[0]


def test_a_range_at_the_end_of_the_address_space_works() -> None:
    config = NetworkConfig.parse('{"Network":"255.255.0.0/16"}')
    taken = [IPv4Network("255.255.0.0/17"), IPv4Network("255.255.128.0/18")]
    assert choose(config, taken, random.Random(1)) in list(
        IPv4Network("255.255.192.0/18").subnets(new_prefix=24)
    )
    with pytest.raises(NetworkExhaustedError):
        choose(config, [IPv4Network("255.255.0.0/16")], random.Random(1))


def test_a_huge_range_of_tiny_subnets_that_is_almost_full_is_quick() -> None:
    config = NetworkConfig.parse('{"Network":"10.0.0.0/8","SubnetLen":30}')
    taken = [IPv4Network("10.0.0.0/9"), IPv4Network("10.128.0.0/10"), IPv4Network("10.192.0.0/11")]
    taken += [IPv4Network((0x0AE00000 + (i << 8), 24)) for i in range(8000)]
    start = time.process_time()
    assert is_free(choose(config, taken, random.Random(1)), taken)
    assert time.process_time() - start < 1.0


@given(NETWORKS, st.lists(NETWORKS))
def test_free_means_no_overlap_of_any_length(subnet: IPv4Network, taken: list[IPv4Network]) -> None:
    overlapping = [o for o in taken if subnet.subnet_of(o) or subnet.supernet_of(o)]
    assert is_free(subnet, taken) == (not overlapping)
