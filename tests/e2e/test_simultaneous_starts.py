"""Daemons that start at the same moment learn of each other; flannel's do not always."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from instruments import delete_leases, unreachable

from flannel_udp.lab import Lab


@pytest.fixture(scope="module")
def pair_lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2, start_daemons=False) as lab:
        yield lab


def test_two_daemons_started_at_once_on_an_empty_etcd_always_find_each_other(
    pair_lab: Lab, pytestconfig: pytest.Config
) -> None:
    for _ in range(pytestconfig.getoption("starts")):
        delete_leases(pair_lab)
        for host in pair_lab.hosts:
            host.subnet_file.unlink(missing_ok=True)
        pair_lab.start_daemons()
        subnets = {host.subnet for host in pair_lab.hosts}
        assert len(subnets) == 2
        assert None not in subnets
        assert unreachable(pair_lab) == []
        for host in pair_lab.hosts:
            assert host.stop_daemon() == 0
