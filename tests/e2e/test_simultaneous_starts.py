"""Daemons that start at the same moment get each other's leases; flannel's may miss one."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from instruments import delete_leases, unreachable
from preloaded import Preloaded

from flannel_udp.lab.lab import Lab


def test_two_daemons_started_at_once_find_each_other(
    network_rights: None, pytestconfig: pytest.Config
) -> None:
    with Lab(hosts=2, start_daemons=False) as lab, ExitStack() as stack:
        daemons = [stack.enter_context(Preloaded(host)) for host in lab.hosts]
        for _ in range(pytestconfig.getoption("starts")):
            delete_leases(lab)
            for host in lab.hosts:
                host.subnet_file.unlink(missing_ok=True)
            for daemon in daemons:
                daemon.start()
            for host in lab.hosts:
                host.wait_until_ready()
            subnets = {host.subnet for host in lab.hosts}
            assert len(subnets) == 2
            assert None not in subnets
            assert unreachable(lab) == []
            for daemon in daemons:
                daemon.begin_stop()
            assert [daemon.exit_code() for daemon in daemons] == [0, 0]
