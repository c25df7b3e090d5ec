"""Many hosts at once: every packet reaches the right peer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from conftest import MIXED_PRESETS
from instruments import unreachable
from transfers import MIB, transfer

from flannel_udp.lab.lab import Lab


def test_streams_between_all_of_six_hosts_at_once_arrive_unchanged(
    make_lab: Callable[[Lab], Lab],
) -> None:
    lab = make_lab(Lab(hosts=6, presets=2 * MIXED_PRESETS))
    assert [host.status()["preset"] for host in lab.hosts] == [*2 * MIXED_PRESETS]
    assert unreachable(lab) == []
    transfer(itertools.permutations(lab.containers, 2), 8 * MIB)
    for host in lab.hosts:
        stats = host.status()["stats"]
        assert stats["drop_udp_wrong_destination"] == 0
        assert all(peer["received_bytes"] > 8 * MIB for peer in host.peer_counters())
        assert len(host.peer_counters()) == 5
