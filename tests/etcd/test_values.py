from __future__ import annotations

import pytest

from flannel_udp.etcd.values import Identity


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
