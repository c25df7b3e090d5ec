"""All measurements over one underlay: every way in turn, round after round."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench import ways
from bench.measure import Meter, Samples
from bench.plan import FURTHER_DAEMONS, Plan, Underlay
from bench.ways import Way
from flannel_udp.errors import LabError
from flannel_udp.lab import Lab

log = logging.getLogger(__name__)

Results = dict[str, dict[str, list[float]]]  # figure, then way: the seconds of every round


def run(
    plan: Plan,
    underlay: Underlay,
    traffic: Path,
    rival: Path,
    daemon_args: Sequence[str] = (),
) -> Results:
    """``daemon_args`` are further flags of the way ``auto``."""
    results: Results = defaultdict(lambda: defaultdict(list))
    with Lab(hosts=2, underlay=underlay, daemon_args=daemon_args) as lab:
        all_ways = _build(lab, plan, rival)
        try:
            meter = Meter(lab, traffic)
            for way in all_ways:
                meter.round_trip(way, 0.1)  # neighbours are found, caches are warm
            for number in range(plan.rounds):
                log.info("%s: round %d of %d", underlay, number + 1, plan.rounds)
                for way, samples in _round(plan, meter, all_ways):
                    for figure, seconds in samples.items():
                        results[figure][way.name].append(seconds)
        finally:
            for way in all_ways:
                for daemon in way.daemons:
                    with suppress(LabError):
                        daemon.stop_daemon()
    return results


def _build(lab: Lab, plan: Plan, rival: Path) -> list[Way]:
    built = [ways.of_lab(lab, "auto")]
    for number, (name, flags) in enumerate(FURTHER_DAEMONS.items()):
        if name in plan.ways:
            built.append(ways.add_daemons(lab, name, number, flags))
    if "vxlan" in plan.ways:
        built.append(ways.add_vxlan(lab))
    if "plain" in plan.ways:
        built.append(ways.add_plain(lab))
    if "loop" in plan.ways:
        built.append(ways.add_rival(lab, rival))
    return sorted(built, key=lambda way: plan.ways.index(way.name))


def _round(plan: Plan, meter: Meter, all_ways: list[Way]) -> list[tuple[Way, Samples]]:
    """One figure of every way, then the next figure: what is compared lies close in time."""
    found = [(way, meter.tcp(way, 1, plan.tcp1)) for way in all_ways]
    if plan.tcp4:
        for way in all_ways:
            found.append((way, {"tcp4": meter.tcp(way, 4, plan.tcp4)["tcp4"]}))
    found += [(way, meter.udp(way, 64, plan.udp64)) for way in all_ways]
    if plan.udp1400:
        found += [(way, meter.udp(way, 1400, plan.udp1400)) for way in all_ways]
    found += [(way, meter.round_trip(way, plan.round_trip)) for way in all_ways]
    return found
