"""Hosts that join at the same moment get each other's leases (flannel may miss one)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from instruments import delete_leases, log_lines, routes, unreachable

from flannel_udp.lab.lab import Lab


@pytest.fixture(scope="module")
def three_hosts(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=3, start_daemons=False) as lab:
        yield lab


@pytest.mark.parametrize("round_", range(20))
def test_hosts_started_at_the_same_moment_all_reach_each_other(
    three_hosts: Lab, round_: int
) -> None:
    lab = three_hosts
    delete_leases(lab)
    for host in lab.hosts:
        host.subnet_file.unlink(missing_ok=True)
        host.log_path.unlink(missing_ok=True)
    lab.start_daemons()
    try:
        assert unreachable(lab) == []
        for host in lab.hosts:
            others = {str(other.subnet): str(other.address) for other in lab.hosts if other != host}
            assert routes(host) == others
            assert log_lines(host, "leased"), "it did not join anew"
    finally:
        for host in lab.hosts:
            assert host.daemon
            host.daemon.terminate()
        assert [host.stop_daemon() for host in lab.hosts] == [0, 0, 0]
