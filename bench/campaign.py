"""All measurements over one underlay: every way in turn, round after round."""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from bench import programs, ways
from bench.measure import Meter
from bench.plan import Plan, Underlay
from bench.ways import Way
from flannel_udp.errors import LabError
from flannel_udp.lab.lab import Lab

log = logging.getLogger(__name__)

Results = dict[str, dict[str, list[float]]]  # figure, then way: the seconds of every round


def run(plan: Plan, underlay: Underlay, scratch: Path) -> Results:
    """``scratch`` is a directory for the programs that make the traffic."""
    traffic, rival = (programs.build(name, scratch) for name in ("traffic", "rival"))
    results: Results = defaultdict(lambda: defaultdict(list))
    with Lab(hosts=2, underlay=underlay) as lab:
        built: list[Way] = []
        try:
            for name in plan.ways:
                built.append(_build(lab, plan, name, rival))
            meter = Meter(lab, traffic)
            for way in built:
                meter.measure("rtt", way, 0.1)  # neighbours are found, caches are warm
            for number in range(plan.rounds):
                log.info("%s: round %d of %d", underlay, number + 1, plan.rounds)
                _measure_round(plan, meter, _rotated(built, number), results)
        finally:
            for way in built:
                for daemon in way.daemons:
                    with suppress(LabError):
                        daemon.stop_daemon()
    return results


def _build(lab: Lab, plan: Plan, name: str, rival: Path) -> Way:
    if name in plan.daemons:
        return ways.add_daemons(lab, name, list(plan.daemons).index(name), plan.daemons[name])
    builders = {"vxlan": ways.add_vxlan, "plain": ways.add_plain}
    return ways.add_rival(lab, rival) if name == "loop" else builders[name](lab)


def _rotated(built: list[Way], number: int) -> list[Way]:
    """None is always the one that comes after the machine has cooled down, or warmed up."""
    start = number % len(built)
    return built[start:] + built[:start]


def _measure_round(plan: Plan, meter: Meter, built: list[Way], results: Results) -> None:
    """One figure of every way, then the next figure: what is compared lies close in time."""
    for measurement, seconds in plan.seconds.items():
        for way in built:
            for figure, sample in meter.measure(measurement, way, seconds).items():
                results[figure][way.name].append(sample)
