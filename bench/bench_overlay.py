"""The whole overlay between containers, compared with kernel VXLAN on the same hosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from bench import overlay_rounds
from bench.conftest import Replay, plan_of
from bench.plan import FIGURES, UNDERLAYS, Plan, Underlay

Measured = Callable[[Underlay], overlay_rounds.Results]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plan = plan_of(metafunc.config)
    metafunc.parametrize(
        ("underlay", "figure", "datapath"),
        [
            (underlay, figure, datapath)
            for underlay in UNDERLAYS
            for datapath in plan.datapaths
            for figure in plan.figures(datapath)
        ],
    )


@pytest.fixture(scope="session")
def measured(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The results of an underlay, measured at the first call."""

    @cache
    def measure(underlay: Underlay) -> overlay_rounds.Results:
        return overlay_rounds.run(plan, underlay, tmp_path_factory.mktemp(underlay))

    return measure


def test_overlay(
    measured: Measured, replay: Replay, underlay: Underlay, figure: str, datapath: str
) -> None:
    """Seconds per 10^9 bytes, per datagram or per round trip."""
    group = f"{FIGURES[figure].title}, underlay {underlay}"
    replay(group, f"{underlay}/{figure}/{datapath}", measured(underlay)[figure][datapath])
