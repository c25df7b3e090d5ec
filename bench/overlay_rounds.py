"""Measures all datapaths over one underlay, interleaved in rounds."""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from bench import datapaths, programs
from bench.datapaths import Datapath
from bench.measure import Meter
from bench.plan import Plan, Underlay
from flannel_udp.errors import LabError
from flannel_udp.lab.lab import Lab

log = logging.getLogger(__name__)

Results = dict[str, dict[str, list[float]]]  # figure, then datapath: the seconds of every round


def run(plan: Plan, underlay: Underlay, scratch: Path) -> Results:
    """``scratch`` is a directory for the programs that generate traffic."""
    traffic, simple_loop = (programs.build(name, scratch) for name in ("traffic", "simple_loop"))
    results: Results = defaultdict(lambda: defaultdict(list))
    with Lab(hosts=2, underlay=underlay) as lab:
        built: list[Datapath] = []
        try:
            for name in plan.datapaths:
                built.append(_build(lab, plan, name, simple_loop))
            meter = Meter(lab, traffic)
            for datapath in built:
                meter.measure("rtt", datapath, 0.1)  # resolves neighbours and warms caches
            for number in range(plan.rounds):
                log.info("%s: round %d of %d", underlay, number + 1, plan.rounds)
                _measure_round(plan, meter, _rotated(built, number), results)
        finally:
            for datapath in built:
                for daemon in datapath.daemons:
                    with suppress(LabError):
                        daemon.stop_daemon()
    return results


def _build(lab: Lab, plan: Plan, name: str, simple_loop: Path) -> Datapath:
    if name in plan.daemons:
        return datapaths.add_daemons(lab, name, list(plan.daemons).index(name), plan.daemons[name])
    loops = {"loop": datapaths.add_loop, "copies": datapaths.add_copies}
    if name in loops:
        return loops[name](lab, simple_loop)
    return {"vxlan": datapaths.add_vxlan, "plain": datapaths.add_plain}[name](lab)


def _rotated(built: list[Datapath], number: int) -> list[Datapath]:
    """Another order in each round, so that no datapath is always measured first."""
    start = number % len(built)
    return built[start:] + built[:start]


def _measure_round(plan: Plan, meter: Meter, built: list[Datapath], results: Results) -> None:
    """One figure of every datapath, then the next figure, so compared samples are close in time."""
    for measurement, seconds in plan.seconds.items():
        for datapath in built:
            for figure, sample in meter.measure(measurement, datapath, seconds).items():
                results[figure][datapath.name].append(sample)
