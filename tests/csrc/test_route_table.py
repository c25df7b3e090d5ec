"""The route table against a plain oracle: a dict searched from the longest prefix down."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest
from csrc_parts import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

Key = tuple[int, int]  # prefix, length


class Table:
    """A C table and its oracle, changed together."""

    def __init__(self) -> None:
        out = ffi.new("struct route_table **")
        assert lib.route_table_create(out) == 0
        self.c: Any = ffi.gc(out[0], lib.route_table_free)
        self.routes: dict[Key, int] = {}
        self._previous = ffi.new("uint32_t *")

    def insert(self, key: Key, hop: int) -> None:
        assert lib.route_table_insert(self.c, *key, hop, self._previous) == 0
        assert self._previous[0] == self.routes.get(key, lib.ROUTE_NONE)
        self.routes[key] = hop

    def remove(self, key: Key) -> None:
        assert lib.route_table_remove(self.c, *key, self._previous) == 0
        assert self._previous[0] == self.routes.pop(key)

    def lookup(self, address: int) -> int:
        return int(lib.route_table_lookup(self.c, address))

    def oracle(self, address: int) -> int:
        for length in range(32, -1, -1):
            hop = self.routes.get((address & mask(length), length))
            if hop is not None:
                return hop
        return int(lib.ROUTE_NONE)

    def check(self, addresses: Iterator[int] | list[int]) -> None:
        assert lib.route_table_count(self.c) == len(self.routes)
        for address in addresses:
            assert self.lookup(address) == self.oracle(address), hex(address)


def mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


def edges(key: Key) -> list[int]:
    """Where a wrong prefix length would show: the first and last address, and their neighbours."""
    prefix, length = key
    last = prefix | (~mask(length) & 0xFFFFFFFF)
    return [a & 0xFFFFFFFF for a in (prefix, last, prefix - 1, last + 1)]


# Few distinct bits, so that prefixes nest and collide instead of lying far apart.
crowded = st.tuples(
    st.sampled_from([0x0A010000, 0x0A01FF00, 0x0A010100, 0x0A0101C0, 0, 0xFFFFFFFF, 0x80000000]),
    st.integers(0, 0x3FF),
    st.integers(0, 32),
).map(lambda t: ((t[0] ^ t[1]) & mask(t[2]), t[2]))
anywhere = st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 32)).map(
    lambda t: (t[0] & mask(t[1]), t[1])
)
keys = st.one_of(crowded, anywhere)
changes = st.lists(st.tuples(keys, st.one_of(st.none(), st.integers(0, 2**32 - 2))), max_size=60)


@settings(max_examples=150)
@given(changes, st.lists(st.integers(0, 0xFFFFFFFF), max_size=20))
def test_any_sequence_of_changes_answers_like_the_oracle(
    sequence: list[tuple[Key, int | None]], addresses: list[int]
) -> None:
    table = Table()
    touched: list[int] = list(addresses)
    for key, hop in sequence:
        touched += edges(key)
        if hop is not None:
            table.insert(key, hop)
        elif key in table.routes:
            table.remove(key)
        lib.route_table_reclaim(table.c)
    table.check(touched)
    for key in list(table.routes):
        table.remove(key)
    table.check(touched)


def test_65536_subnets_and_a_mix_of_lengths_answer_like_the_oracle() -> None:
    rng = random.Random(1)
    table = Table()
    for index in range(65536):
        table.insert((0x0A000000 + (index << 8), 24), index)
    for _ in range(5000):
        length = rng.randrange(33)
        table.insert((rng.getrandbits(32) & mask(length), length), rng.randrange(2**32 - 1))
    sample = [0x0A000000 + rng.getrandbits(24) for _ in range(5000)]
    sample += [rng.getrandbits(32) for _ in range(5000)]
    sample += [edge for key in rng.sample(list(table.routes), 2000) for edge in edges(key)]
    table.check(sample)
    for key in rng.sample(list(table.routes), 40000):
        table.remove(key)
        lib.route_table_reclaim(table.c)
    table.check(sample)


@pytest.mark.parametrize(
    ("prefix", "length"), [("10.1.2.3/24", 24), ("10.0.0.1/0", 0), ("10.0.0.0/33", 33)]
)
def test_a_prefix_with_host_bits_or_a_bad_length_changes_nothing(prefix: str, length: int) -> None:
    table = Table()
    value = int(IPv4Network(prefix.split("/")[0]).network_address)
    previous = ffi.new("uint32_t *")
    assert lib.route_table_insert(table.c, value, length, 7, previous) == -22
    assert lib.route_table_remove(table.c, value, length, previous) == -22
    table.check([value])


def test_prefix_zero_is_the_default_route_and_leaves_no_trace() -> None:
    table = Table()
    table.insert((0, 0), 1)
    table.insert((0x0A010500, 24), 2)
    assert table.lookup(0x0A010501) == 2
    assert table.lookup(0xC0A80001) == 1
    table.remove((0, 0))
    assert table.lookup(0xC0A80001) == lib.ROUTE_NONE
    assert table.lookup(0x0A010501) == 2
