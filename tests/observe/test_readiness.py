"""Readiness, and the status as every reader gets it."""

from __future__ import annotations

from flannel_udp.observe.readiness import Readiness, StatusSource


def test_a_fault_interrupts_readiness_and_a_stop_ends_it() -> None:
    readiness = Readiness()
    readiness.set_fault("the tunnel is not whole")
    assert readiness.reason == "starting"
    readiness.ready()
    assert readiness.reason == "the tunnel is not whole"
    readiness.set_fault(None)
    assert readiness.reason is None
    assert readiness.not_ready("stopping")
    assert not readiness.not_ready("stopping")
    assert readiness.reason == "stopping"


def test_the_status_holds_only_readiness_outside_including() -> None:
    source = StatusSource(Readiness())
    source.readiness.not_ready("etcd cannot be used")
    short = {"version": "0.1.0", "ready": False, "reason": "etcd cannot be used"}
    assert source.read() == short
    with source.including(lambda: {"subnet": "10.1.5.0/24"}):
        source.readiness.ready()
        assert source.read() == short | {"ready": True, "reason": None, "subnet": "10.1.5.0/24"}
    assert set(source.read()) == set(short)
