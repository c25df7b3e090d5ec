"""The whole overlay between containers, beside kernel VXLAN and no overlay on the same hosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from bench import campaign
from bench.conftest import Replay, plan_of
from bench.plan import FIGURES, UNDERLAYS, Plan, Underlay

Measured = Callable[[Underlay], campaign.Results]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plan = plan_of(metafunc.config)
    metafunc.parametrize(
        ("underlay", "figure", "way"),
        [
            (underlay, figure, way)
            for underlay in UNDERLAYS
            for way in plan.ways
            for figure in plan.figures(way)
        ],
    )


@pytest.fixture(scope="session")
def measured(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The results of an underlay, measured at the first call."""

    @cache
    def measure(underlay: Underlay) -> campaign.Results:
        return campaign.run(plan, underlay, tmp_path_factory.mktemp(underlay))

    return measure


def test_overlay(
    measured: Measured, replay: Replay, underlay: Underlay, figure: str, way: str
) -> None:
    """Seconds per 10^9 bytes, per datagram or per round trip."""
    group = f"{FIGURES[figure].title}, underlay {underlay}"
    replay(group, f"{underlay}/{figure}/{way}", measured(underlay)[figure][way])
