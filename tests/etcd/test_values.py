from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.etcd.values import Identity, prefix_end


@pytest.mark.parametrize(
    ("now", "before", "continues"),
    [
        (Identity(7, 3), Identity(7, 3), True),
        (Identity(7, 9), Identity(7, 3), True),
        (Identity(7, 2), Identity(7, 3), False),
        (Identity(8, 3), Identity(7, 3), False),
        (Identity(8, 3), None, True),
    ],
    ids=["the same", "after elections", "an earlier term", "another cluster", "nothing known"],
)
def test_another_cluster_or_an_earlier_term_is_other_data(
    now: Identity, before: Identity | None, continues: bool
) -> None:
    assert now.continues(before) == continues


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=6))
def test_prefix_end_lies_behind_the_prefix_and_before_all_else(prefix: bytes, tail: bytes) -> None:
    end = prefix_end(prefix)
    inside = prefix + tail
    assert end == b"\0" or prefix <= inside < end
    if end != b"\0" and not tail.startswith(prefix):
        assert not (prefix <= tail < end)
